//! What the memory of language runtimes is: by the stack that mapped it, and by what the runtime itself says.
//!
//! [`classify`] is pure: facts about a mapping and its stack give a class and a label. [`regions`] asks a running
//! process, from outside, which ranges are its runtime's. One file per runtime holds its table and its
//! heuristics, with their reasons. What no rule covers is never guessed.

mod cpython;
mod dotnet;
mod go;
mod jvm;
mod mapping;
pub(crate) mod memory;
pub(crate) mod native;
mod rule;
mod v8;

pub use mapping::{Classified, FrameFacts, MappingFacts, MappingKind, Place, classify};

use crate::attach::maps::MapEntry;
use crate::model::{MemoryClass, Runtime};

pub(crate) use self::jvm::{
    heap_object as jvm_heap_object, is_needed as jvm_is_needed, metaspace_samples as jvm_metaspace_samples,
};
use self::memory::{ProcessMemory, variables};

/// A range of addresses that belongs to a runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// What it is.
    pub class: MemoryClass,
    /// Its name in reports.
    pub label: &'static str,
}

/// The ranges of a running process that are its runtime's now, sorted; `None` if it does not tell. Reads the
/// process's memory from outside, never stops it, and believes nothing that does not fit.
pub fn regions(tgid: u32, runtime: &Runtime, entries: &[MapEntry]) -> Option<Vec<Region>> {
    let memory = ProcessMemory { tgid };
    let mut regions = match runtime.name.as_str() {
        "jvm" => jvm::regions(&memory, &variables(tgid, entries, &["libjvm.so"], jvm::is_needed), entries),
        "cpython" => {
            let variables = variables(tgid, entries, cpython::OBJECTS, cpython::is_needed);
            cpython::regions(&memory, &variables, runtime)
        }
        "node" => v8::regions(&memory, entries),
        "go" => go::regions(entries),
        "dotnet" => dotnet::regions(entries),
        _ => Vec::new(),
    };
    regions.sort_by_key(|region| region.start);
    (!regions.is_empty()).then_some(regions)
}

/// Where an address lies among regions, which are sorted.
pub fn place(regions: Option<&[Region]>, address: u64) -> Place<'_> {
    let Some(regions) = regions else { return Place::NotKnown };
    let behind = regions.partition_point(|region| region.start <= address);
    let before = behind.checked_sub(1).and_then(|index| regions.get(index));
    before.filter(|region| address < region.end).map_or(Place::Outside, Place::Inside)
}

#[cfg(test)]
mod region_tests;
