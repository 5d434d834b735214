//! The blocks that are live at the end of a recording, and those that an exec has ended.

use std::{collections::BTreeMap, os::fd::BorrowedFd};

use tracer_common::abi::{LiveBlock, LiveKey};

use super::{RecordError, kernel_map};
use crate::model::LiveAge;

/// Bytes and blocks of one site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes requested.
    pub bytes: u64,
    /// Blocks.
    pub count: u64,
}

/// Sums live blocks by site and time of birth.
#[derive(Clone, Debug)]
pub struct Ages {
    start_ns: u64,
    buckets: BTreeMap<(u32, u64), Amount>,
}

impl Ages {
    /// Times of birth are counted from `start_ns` (`CLOCK_MONOTONIC`).
    pub fn new(start_ns: u64) -> Self {
        Self { start_ns, buckets: BTreeMap::new() }
    }

    /// Adds one block.
    pub fn add(&mut self, block: &LiveBlock) {
        let born = block.born_ns.saturating_sub(self.start_ns);
        let bucket = born - born % LiveAge::RESOLUTION_NS;
        let amount = self.buckets.entry((block.site, bucket)).or_default();
        amount.bytes = amount.bytes.saturating_add(block.size_bytes);
        amount.count += 1;
    }

    /// The sums, by site and birth.
    pub fn into_rows(self) -> Vec<LiveAge> {
        self.buckets
            .into_iter()
            .map(|((site, born_ns), amount)| LiveAge {
                site,
                born_ns,
                count: amount.count,
                bytes: amount.bytes,
            })
            .collect()
    }
}

/// Reads the live blocks of all processes.
///
/// # Errors
/// [`RecordError::MapCall`].
pub fn read_ages(live: BorrowedFd<'_>, start_ns: u64) -> Result<Ages, RecordError> {
    let mut ages = Ages::new(start_ns);
    kernel_map::read_hash::<LiveKey, LiveBlock>(live, "LIVE", |_, block| ages.add(block))?;
    Ok(ages)
}

/// Removes the blocks of a process that were born before it executed a new program, and says what they
/// were by site. A block that a program removes meanwhile is counted there, not here.
///
/// # Errors
/// [`RecordError::MapCall`].
pub fn end_by_exec(
    live: BorrowedFd<'_>,
    tgid: u32,
    exec_ns: u64,
) -> Result<BTreeMap<u32, Amount>, RecordError> {
    let mut dead = Vec::new();
    kernel_map::read_hash::<LiveKey, LiveBlock>(live, "LIVE", |key, block| {
        if key.tgid == tgid && block.born_ns < exec_ns {
            dead.push((*key, *block));
        }
    })?;
    let mut ended: BTreeMap<u32, Amount> = BTreeMap::new();
    for (key, block) in dead {
        if kernel_map::delete(live, "LIVE", &key)? {
            let amount = ended.entry(block.site).or_default();
            amount.bytes = amount.bytes.saturating_add(block.size_bytes);
            amount.count += 1;
        }
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_summed_by_site_and_tenth_of_a_second() {
        let mut ages = Ages::new(1_000);
        let block =
            |site, born_ns, size_bytes| LiveBlock { size_bytes, born_ns, site, ..LiveBlock::default() };
        ages.add(&block(1, 1_000, 10));
        ages.add(&block(1, 100_000_999, 20));
        ages.add(&block(1, 100_001_000, 40));
        ages.add(&block(2, 500, 80)); // born before the start of the clock: rounds to it
        let row = |site, born_ns, count, bytes| LiveAge { site, born_ns, count, bytes };
        assert_eq!(ages.into_rows(), [row(1, 0, 2, 30), row(1, 100_000_000, 1, 40), row(2, 0, 1, 80)]);
    }
}
