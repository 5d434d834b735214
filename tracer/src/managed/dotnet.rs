//! .NET: by the object that maps, and by the name of its code's memory. Not tried on a running program.

use super::Region;
use super::rule::{Table, rule};
use crate::attach::maps::MapEntry;
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

/// The code that the runtime makes, by the name of the file that it maps twice, to write and to run.
pub(super) fn regions(entries: &[MapEntry]) -> Vec<Region> {
    let is_code = |entry: &&MapEntry| entry.name.starts_with(b"/memfd:doublemapper");
    let region =
        |entry: &MapEntry| Region { start: entry.start, end: entry.end, class: JitCode, label: ".NET code" };
    entries.iter().filter(is_code).map(region).collect()
}
