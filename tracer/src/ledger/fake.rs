//! Memory made by hand, for tests.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use crate::managed::memory::Memory;

/// Ranges of memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Fake(BTreeMap<u64, Vec<u8>>);

impl Fake {
    /// Ranges of zeros: start and size.
    pub(super) fn new(ranges: &[(u64, usize)]) -> Self {
        Self(ranges.iter().map(|(start, size)| (*start, vec![0; *size])).collect())
    }

    /// Writes a word.
    pub(super) fn put(&mut self, address: u64, value: u64) {
        let (start, bytes) = self.0.range_mut(..=address).next_back().unwrap();
        let at = (address - start) as usize;
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Writes bytes.
    pub(super) fn put_bytes(&mut self, address: u64, value: &[u8]) {
        let (start, bytes) = self.0.range_mut(..=address).next_back().unwrap();
        let at = (address - start) as usize;
        bytes[at..at + value.len()].copy_from_slice(value);
    }
}

impl Memory for Fake {
    fn read(&self, address: u64, buffer: &mut [u8]) -> bool {
        let Some((start, bytes)) = self.0.range(..=address).next_back() else { return false };
        let at = (address - start) as usize;
        let Some(part) = bytes.get(at..at.saturating_add(buffer.len())) else { return false };
        buffer.copy_from_slice(part);
        true
    }
}
