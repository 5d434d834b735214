//! What the parts of the ledger share about the process they look at.

use super::pagemap::{Pagemap, Presence};
use crate::attach::maps::MapEntry;
use crate::managed::memory::ProcessMemory;

/// A process that is looked at.
pub(super) struct Context<'a> {
    /// Its memory.
    pub(super) memory: ProcessMemory,
    /// Its mappings.
    pub(super) entries: &'a [MapEntry],
    /// Its page map, where that can be read.
    pub(super) pagemap: Option<Pagemap>,
    /// Whether to look into heaps.
    pub(super) is_deep: bool,
}

impl Context<'_> {
    /// Pages of a range.
    pub(super) fn presence(&mut self, start: u64, end: u64) -> Option<Presence> {
        self.pagemap.as_mut()?.presence(start, end)
    }
}
