//! CPython: arenas of its small-object allocator, the stack of its frames, and code it makes.
//!
//! `_PyObject_ArenaMmap` maps both arenas and chunks of the frame stack (Objects/obmalloc.c, Python/pystate.c); who called
//! it tells them apart. It is static, so that a stripped interpreter has no name for it: then an arena is known by
//! its size, which nothing else in the interpreter asks for.

use std::collections::HashMap;

use super::Region;
use super::mapping::{FrameFacts, MappingFacts, MappingKind};
use super::memory::Memory;
use super::rule::{Table, file_name, rule};
use crate::model::MemoryClass::{self, JitCode, ManagedHeap};
use crate::model::Runtime;

const ARENA: &str = "CPython arena";
/// Bytes of an arena: 1 MiB since 3.10, 256 KiB before (`ARENA_BITS` of Objects/obmalloc.c; 64-bit machines).
const ARENA_BYTES: u64 = 1 << 20;
const OLD_ARENA_BYTES: u64 = 256 << 10;
/// Arenas that are read: a terabyte of them.
const MAX_ARENAS: u64 = 1 << 20;
/// Bytes of an entry of the table of arenas, `struct arena_object`, the same since 2.5.
const ARENA_OBJECT_BYTES: u64 = 48;
pub(super) const OBJECTS: &[&str] = &["libpython", "python"];

pub(super) const TABLE: Table = Table {
    rules: &[
        rule("_PyThreadState_BumpFramePointer", ManagedHeap, "CPython frames"),
        rule("_PyThreadState_PushFrame", ManagedHeap, "CPython frames"),
        rule("push_chunk", ManagedHeap, "CPython frames"),
        rule("allocate_chunk", ManagedHeap, "CPython frames"),
        rule("_PyPerf_", JitCode, "CPython perf trampolines"),
        rule("new_code_arena", JitCode, "CPython perf trampolines"),
        rule("_PyJIT_", JitCode, "CPython code"),
        rule("jit_alloc", JitCode, "CPython code"),
        rule("_PyObject_Arena", ManagedHeap, ARENA),
        rule("_PyMem_Arena", ManagedHeap, ARENA),
        rule("new_arena", ManagedHeap, ARENA),
        rule("allocate_from_new_pool", ManagedHeap, ARENA),
        // 3.13 without the GIL.
        rule("_mi_", ManagedHeap, "CPython heap (mimalloc)"),
        rule("mi_", ManagedHeap, "CPython heap (mimalloc)"),
    ],
    // The program's own code, or a module that is built in.
    borders: &[
        "_PyEval_EvalFrame",
        "_PyEval_Vector",
        "PyObject_Call",
        "_PyObject_Vectorcall",
        "new_mmap_object",
    ],
    own_functions: &[],
    own_objects: OBJECTS,
    otherwise: None,
    code_label: Some("CPython code"),
};

/// An arena by its size, where the interpreter has no symbols.
pub(super) fn by_size(
    runtime: &Runtime,
    facts: &MappingFacts<'_>,
    stack: &[FrameFacts<'_>],
) -> Option<(MemoryClass, &'static str)> {
    let first = stack.first()?;
    let is_unnamed =
        first.function.is_none() && OBJECTS.iter().any(|start| file_name(first.object).starts_with(start));
    let version =
        runtime.version.as_deref().and_then(|version| version.split('.').nth(1)?.parse::<u32>().ok());
    let is_arena = match version {
        Some(..10) => facts.size_bytes == OLD_ARENA_BYTES,
        Some(_) => facts.size_bytes == ARENA_BYTES,
        None => [ARENA_BYTES, OLD_ARENA_BYTES].contains(&facts.size_bytes),
    };
    let is_plain = facts.kind == MappingKind::Anonymous && !facts.is_executable && !facts.is_reserved;
    (runtime.name == "cpython" && is_unnamed && is_arena && is_plain)
        .then_some((ManagedHeap, "CPython arena, by its size"))
}

/// Whether a variable of the interpreter is needed for [`regions`].
pub(super) fn is_needed(variable: &str) -> bool {
    ["arenas", "maxarenas"].contains(&variable)
}

/// The arenas of the small-object allocator, by its own table (`arenas` of Objects/obmalloc.c, up to 3.11).
///
/// The table is a static variable: an interpreter without `.symtab`, as distributions ship it, does not tell, and
/// neither does 3.12, which has it in the interpreter's state. Chunks of the frame stack are in no table.
pub(super) fn regions(
    memory: &impl Memory,
    variables: &HashMap<String, u64>,
    runtime: &Runtime,
) -> Vec<Region> {
    let arenas = || {
        let table = memory.word(*variables.get("arenas")?).filter(|table| *table != 0)?;
        let count = u64::from(memory.half(*variables.get("maxarenas")?)?).min(MAX_ARENAS);
        let size_bytes = match minor_version(runtime) {
            Some(..10) => OLD_ARENA_BYTES,
            _ => ARENA_BYTES,
        };
        let region = |index: u64| {
            let start =
                memory.word(table.checked_add(index * ARENA_OBJECT_BYTES)?).filter(|start| *start != 0)?;
            let end = start.checked_add(size_bytes)?;
            Some(Region { start, end, class: ManagedHeap, label: ARENA })
        };
        Some((0..count).filter_map(region).collect())
    };
    arenas().unwrap_or_default()
}

/// The second number of the version.
fn minor_version(runtime: &Runtime) -> Option<u32> {
    runtime.version.as_deref()?.split('.').nth(1)?.parse().ok()
}
