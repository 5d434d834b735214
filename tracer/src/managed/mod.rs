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
mod native;
mod rule;
mod v8;

pub use mapping::{Classified, FrameFacts, MappingFacts, MappingKind, Place, classify};

use crate::model::MemoryClass;

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
