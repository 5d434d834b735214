//! The class of a mapping site.

use super::{Region, cpython, dotnet, go, jvm, native, v8};
use crate::managed::rule::Table;
use crate::model::{MemoryClass, Runtime};

/// How memory was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingKind {
    /// `MAP_ANONYMOUS | MAP_PRIVATE`.
    Anonymous,
    /// A file, shared or private.
    File,
    /// `MAP_ANONYMOUS | MAP_SHARED`.
    SharedAnonymous,
    /// A file of `memfd_create`.
    Memfd,
    /// `shmat`.
    SystemV,
    /// `brk`.
    Brk,
}

/// What is known of a mapping besides its stack.
#[derive(Clone, Copy, Debug)]
pub struct MappingFacts<'a> {
    /// How it was mapped.
    pub kind: MappingKind,
    /// `MAP_STACK` or `MAP_GROWSDOWN`.
    pub is_stack: bool,
    /// `PROT_EXEC`.
    pub is_executable: bool,
    /// `PROT_NONE`: addresses without memory.
    pub is_reserved: bool,
    /// Bytes asked for.
    pub size_bytes: u64,
    /// The allocator in one of whose functions the call was made.
    pub allocator: Option<&'a str>,
    /// Name in `/proc/PID/maps`: a path, `/memfd:…`, `[anon:…]`; empty for none. Hostile input.
    pub name: &'a str,
}

/// One frame of the stack that made the mapping.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameFacts<'a> {
    /// Demangled name; hostile input.
    pub function: Option<&'a str>,
    /// Path of the object; `None` for code made at run time. Hostile input.
    pub object: Option<&'a str>,
}

/// Where the mapping lies among the regions that the runtime has named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// The runtime could not be asked.
    NotKnown,
    /// In none of them.
    Outside,
    /// In this one.
    Inside(&'a Region),
}

/// What a mapping site is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classified {
    /// Its class.
    pub class: MemoryClass,
    /// What it is more exactly.
    pub label: Option<String>,
}

/// Decides what a mapping is, by the strongest evidence there is: what the runtime says of the address, the
/// allocator in which the call was made, the name in the list of mappings, the functions on the stack (innermost
/// first), and at last how it was mapped.
pub fn classify(
    facts: &MappingFacts<'_>,
    stack: &[FrameFacts<'_>],
    runtime: Option<&Runtime>,
    place: Place<'_>,
) -> Classified {
    let found = |(class, label): (MemoryClass, &str)| Classified { class, label: Some(label.to_owned()) };
    if let Place::Inside(region) = place {
        return found((region.class, region.label));
    }
    if facts.kind == MappingKind::Brk {
        return Classified { class: MemoryClass::BrkHeap, label: facts.allocator.map(str::to_owned) };
    }
    if let Some(allocator) = facts.allocator {
        return found((MemoryClass::AllocatorArena, allocator));
    }
    // Behind the C library's own frames.
    let begin = stack.iter().position(|frame| !native::is_c_library(frame)).unwrap_or(stack.len());
    let (libc, stack) = stack.split_at(begin);
    if let Some(what) = native::by_name(facts.name).or_else(|| native::by_flags(facts, libc, stack)) {
        return found(what);
    }
    let table = runtime.and_then(|runtime| table_of(&runtime.name));
    if let Some(what) = native::TABLE.apply(facts, stack, place) {
        return found(what);
    }
    if let Some(what) = table.and_then(|table| table.apply(facts, stack, place)) {
        return by_kind_first(facts, what);
    }
    if let Some(what) = runtime.and_then(|runtime| cpython::by_size(runtime, facts, stack)) {
        return found(what);
    }
    let class = match facts.kind {
        MappingKind::File => MemoryClass::FileMapping,
        MappingKind::SharedAnonymous | MappingKind::Memfd | MappingKind::SystemV => MemoryClass::SharedMemory,
        // It may as well be the runtime's heap.
        MappingKind::Anonymous if table.is_some() && stack.is_empty() => MemoryClass::Unknown,
        MappingKind::Anonymous | MappingKind::Brk => MemoryClass::DirectMapping,
    };
    Classified { class, label: None }
}

/// A file that a runtime maps for itself is a file all the same, with a label.
fn by_kind_first(facts: &MappingFacts<'_>, (class, label): (MemoryClass, &str)) -> Classified {
    let class = match (facts.kind, class) {
        (MappingKind::File, MemoryClass::RuntimeInternal) => MemoryClass::FileMapping,
        _ => class,
    };
    Classified { class, label: Some(label.to_owned()) }
}

fn table_of(runtime: &str) -> Option<&'static Table> {
    Some(match runtime {
        "node" => &v8::TABLE,
        "jvm" => &jvm::TABLE,
        "cpython" => &cpython::TABLE,
        "go" => &go::TABLE,
        "dotnet" => &dotnet::TABLE,
        _ => return None,
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
