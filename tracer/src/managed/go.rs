//! Go: functions of its runtime, which is in every program; 1.19 to 1.27 have the same ones.
//!
//! `mheap.sysAlloc` reserves arenas with `sysReserve`, and allocates their metadata with `sysAlloc`.

use super::rule::{Table, rule};
use crate::model::MemoryClass::{ManagedHeap, RuntimeInternal};

const INTERNAL: &str = "Go runtime";

pub(super) const TABLE: Table = Table {
    rules: &[
        rule("runtime.sysAlloc$", RuntimeInternal, INTERNAL),
        rule("runtime.sysAllocOS$", RuntimeInternal, INTERNAL),
        rule("runtime.persistentalloc", RuntimeInternal, INTERNAL),
        rule("runtime.(*pageAlloc).", RuntimeInternal, INTERNAL),
        rule("runtime.(*scavengeIndex).", RuntimeInternal, INTERNAL),
        rule("runtime.(*addrRanges).", RuntimeInternal, INTERNAL),
        rule("runtime.(*fixalloc).", RuntimeInternal, INTERNAL),
        rule("runtime.(*linearAlloc).", ManagedHeap, "Go heap"),
        rule("runtime.(*mheap).", ManagedHeap, "Go heap"),
    ],
    borders: &["runtime.asmcgocall", "runtime.cgocall", "runtime.main$", "runtime.goexit"],
    own_functions: &["runtime."],
    own_objects: &[],
    otherwise: Some((RuntimeInternal, INTERNAL)),
    code_label: None,
};
