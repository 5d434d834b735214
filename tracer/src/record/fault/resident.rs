//! How much of what is allocated is resident: an untouched gigabyte is none.

use std::collections::BTreeMap;

use super::pagemap::{PAGE_BYTES, PageRun, PageState};

/// A block that is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// First byte.
    pub address: u64,
    /// Bytes requested.
    pub size_bytes: u64,
    /// Its site.
    pub site: u32,
}

impl Block {
    fn end(&self) -> u64 {
        self.address.saturating_add(self.size_bytes)
    }
}

/// The pages in which blocks lie, as ranges to be read. `blocks` are sorted by address.
pub fn ranges(blocks: &[Block]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for block in blocks.iter().filter(|block| block.size_bytes > 0) {
        let (start, end) = (block.address / PAGE_BYTES, block.end().div_ceil(PAGE_BYTES));
        match ranges.last_mut() {
            // A short hole is read faster than skipped.
            Some(last) if start <= last.1.saturating_add(64) => last.1 = last.1.max(end),
            _ => ranges.push((start, end)),
        }
    }
    ranges
}

/// Adds up, by site, the bytes of blocks that lie in resident pages. `blocks` are sorted by address, and so are `runs`.
/// A page of zeroes that was only read is not resident.
pub fn add(blocks: &[Block], runs: &[PageRun], sums: &mut BTreeMap<u32, u64>) {
    for block in blocks {
        let sum = sums.entry(block.site).or_default();
        let first = runs.partition_point(|run| run.end.saturating_mul(PAGE_BYTES) <= block.address);
        for run in runs.iter().skip(first) {
            let (start, end) = (run.start.saturating_mul(PAGE_BYTES), run.end.saturating_mul(PAGE_BYTES));
            if start >= block.end() {
                break;
            }
            if run.state.is(PageState::PRESENT) && !run.state.is(PageState::ZERO) {
                *sum += end.min(block.end()).saturating_sub(start.max(block.address));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_on_resident_pages_are_counted() {
        let block = |address, size_bytes, site| Block { address, size_bytes, site };
        let blocks = [
            block(0x1000, 100, 1),
            block(0x1ff0, 32, 2),
            block(0x10_0000, 1 << 20, 1),
            block(0x50_0000, 0, 3),
        ];
        assert_eq!(ranges(&blocks), [(1, 3), (0x100, 0x200)]);
        let run = |start, end, state| PageRun { start, end, state };
        let runs = [
            run(1, 2, PageState::PRESENT),
            run(2, 3, PageState::SWAPPED),
            run(0x100, 0x101, PageState::PRESENT.and(PageState::ZERO)),
            run(0x101, 0x103, PageState::PRESENT),
            run(0x1ff, 0x300, PageState::PRESENT.and(PageState::FILE)),
        ];
        let mut sums = BTreeMap::new();
        add(&blocks, &runs, &mut sums);
        assert_eq!(sums, BTreeMap::from([(1, 100 + 3 * 4096), (2, 16), (3, 0)]));
    }
}
