//! .NET: by the object that maps, and by the name of its code's memory. Not tried on a running program.

use super::rule::{Table, rule};
use crate::model::MemoryClass::{JitCode, ManagedHeap, RuntimeInternal};

pub(super) const TABLE: Table = Table {
    rules: &[
        rule("WKS::gc_heap::", ManagedHeap, ".NET heap"),
        rule("SVR::gc_heap::", ManagedHeap, ".NET heap"),
        rule("ExecutableAllocator::", JitCode, ".NET code"),
        rule("ExecutableMemoryAllocator::", JitCode, ".NET code"),
    ],
    borders: &["CallDescrWorkerInternal"],
    own_functions: &[],
    own_objects: &["libcoreclr.so", "libclrgc.so", "libclrjit.so"],
    otherwise: Some((RuntimeInternal, ".NET runtime")),
    code_label: Some(".NET code"),
};
