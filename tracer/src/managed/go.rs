//! Go: functions of its runtime, which is in every program; 1.19 to 1.27 have the same ones.
//!
//! `mheap.sysAlloc` reserves arenas with `sysReserve`, and allocates their metadata with `sysAlloc`.

use super::Region;
use super::memory::{is_anonymous, runs};
use super::rule::{Table, rule};
use crate::attach::maps::MapEntry;
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

/// Bytes, and alignment, of an arena of the heap on 64-bit Linux (`heapArenaBytes` of runtime/malloc.go).
const ARENA_BYTES: u64 = 64 << 20;
/// How far below the libraries a run must end: where the kernel would put no mapping by itself.
const FAR_BYTES: u64 = 1 << 40;

/// The arenas of the heap: runs of anonymous memory, of whole arenas, far from where the kernel places mappings.
///
/// Go asks for its arenas at an address of its own choice: 0xc000000000 up to 1.25, a random one since. The kernel places
/// what is mapped without a wish right below the stack, where glibc's arenas are, which look alike. Where Go does not
/// get the address that it wants, nothing is said.
pub(super) fn regions(entries: &[MapEntry]) -> Vec<Region> {
    let of = |name: &[u8]| entries.iter().find(|entry| entry.name.starts_with(name));
    let Some(stack) = of(b"[stack]") else { return Vec::new() };
    // The run of mappings that goes down from the stack, with gaps that the kernel leaves.
    let lowest =
        entries.iter().rev().filter(|entry| entry.start <= stack.start).fold(stack.start, |lowest, entry| {
            if lowest.saturating_sub(entry.end) < FAR_BYTES { entry.start.min(lowest) } else { lowest }
        });
    let is_heap = |entry: &MapEntry| is_anonymous(entry) && !entry.is_executable() && entry.end <= lowest;
    runs(entries, is_heap)
        .into_iter()
        .filter(|(start, end)| start % ARENA_BYTES == 0 && end % ARENA_BYTES == 0)
        .map(|(start, end)| Region { start, end, class: ManagedHeap, label: "Go heap" })
        .collect()
}
