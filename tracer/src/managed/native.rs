//! What is no runtime's: thread stacks, what the dynamic linker maps, closures of libffi, and names that
//! mappings have.

use super::mapping::{FrameFacts, MappingFacts};
use super::rule::{Table, file_name, matches, rule};
use crate::model::MemoryClass::{
    self, AllocatorArena, FileMapping, JitCode, ManagedHeap, RuntimeInternal, ThreadStack,
};

/// What the C library and the dynamic linker map for the program.
pub(super) const TABLE: Table = Table {
    rules: &[
        rule("ffi_closure_alloc", JitCode, "libffi closures"),
        rule("dlmalloc$", JitCode, "libffi closures"),
    ],
    borders: &[],
    own_functions: &[],
    own_objects: &["libffi.so"],
    otherwise: None,
    code_label: None,
};

/// Names that whoever made a mapping has given it: `memfd_create`, or `PR_SET_VMA_ANON_NAME`, which kernels with
/// `CONFIG_ANON_VMA_NAME` show as `[anon:…]`.
const NAMES: &[(&str, MemoryClass, &str)] = &[
    ("/memfd:doublemapper", JitCode, ".NET code"),
    // ZGC maps its heap several times; so smaps counts it several times, too.
    ("/memfd:java_heap", ManagedHeap, "Java heap"),
    ("/memfd:JITCode:", JitCode, "WebKit code"),
    ("/memfd:jit-cache", JitCode, "ART code"),
    // glibc 2.38 with glibc.mem.decorate_maps.
    ("[anon: glibc: malloc", AllocatorArena, "glibc malloc"),
    ("[anon: glibc: loader malloc", AllocatorArena, "glibc malloc of the dynamic linker"),
    ("[anon: glibc: pthread stack", ThreadStack, "stack of a thread"),
    ("[anon: glibc: pthread user stack", ThreadStack, "stack of a thread"),
    ("[anon:scudo:", AllocatorArena, "scudo"),
    ("[anon:partition_alloc", AllocatorArena, "PartitionAlloc"),
    ("[anon:v8]", ManagedHeap, "V8 heap"),
    // Go 1.25 and later.
    ("[anon: Go: heap]", ManagedHeap, "Go heap"),
    ("[anon: Go: heap reservation]", ManagedHeap, "Go heap"),
    ("[anon: Go: ", RuntimeInternal, "Go runtime"),
];

/// Functions of C libraries that map a thread's stack. musl does not say so in the flags.
const STACK_MAKERS: &[&str] = &["pthread_create", "__pthread_create", "allocate_stack"];

/// What the mapping's name says.
pub(crate) fn by_name(name: &str) -> Option<(MemoryClass, &'static str)> {
    NAMES.iter().find(|(start, ..)| name.starts_with(start)).map(|(_, class, label)| (*class, *label))
}

/// What its flags and the innermost object say. `libc` are the frames of the C library, `stack` the rest.
pub(super) fn by_flags(
    facts: &MappingFacts<'_>,
    libc: &[FrameFacts<'_>],
    stack: &[FrameFacts<'_>],
) -> Option<(MemoryClass, &'static str)> {
    let makes_stack = |frame: &FrameFacts<'_>| {
        frame.function.is_some_and(|name| STACK_MAKERS.iter().any(|m| matches(name, m)))
    };
    if facts.is_stack || libc.iter().any(makes_stack) {
        return Some((ThreadStack, "stack of a thread"));
    }
    // Its zeroed data is anonymous memory, mapped over the end of the file's.
    let is_loader = |frame: &FrameFacts<'_>| is_loader(file_name(frame.object));
    let first = libc.iter().chain(stack).next()?;
    is_loader(first).then_some((FileMapping, "loaded library"))
}

fn is_loader(name: &str) -> bool {
    name.starts_with("ld-linux")
        || name.starts_with("ld-musl")
        || name.starts_with("ld-2.")
        || name == "ld.so.1"
}

/// Whether a frame is in the C library, which maps for its caller.
pub(super) fn is_c_library(frame: &FrameFacts<'_>) -> bool {
    let name = file_name(frame.object);
    ["libc.so", "libc-2.", "libc.musl", "libpthread", "ld-musl"].iter().any(|start| name.starts_with(start))
}
