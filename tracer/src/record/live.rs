//! The blocks that are live at the end of a recording, and those that an exec has ended.

use std::{collections::BTreeMap, os::fd::BorrowedFd};

use tracer_common::abi::{LIFETIME_FIRST_LOG2, LiveBlock, LiveKey, SiteLifetimes};

use super::{
    RecordError,
    kernel_map::{self, MappedArray},
};
use crate::model::{Lifetime, LiveAge};

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
pub fn read_ages(live: BorrowedFd<'_>, ages: &mut Ages) -> Result<(), RecordError> {
    kernel_map::read_hash::<LiveKey, LiveBlock>(live, "LIVE", |_, block| ages.add(block))
}

/// How long the released blocks of all sites lived.
pub fn lifetimes(lifetimes: &MappedArray<SiteLifetimes>, last_site: u32) -> Vec<Lifetime> {
    let rows = |site| {
        let counts = lifetimes.get(site).map(|lifetimes| lifetimes.counts).unwrap_or_default();
        let buckets = (LIFETIME_FIRST_LOG2 as u8..).zip(counts).filter(|(_, count)| *count > 0);
        buckets.map(move |(bucket, count)| Lifetime { site, bucket, count })
    };
    (0..=last_site).flat_map(rows).collect()
}

/// Ends of address spaces that the kernel's map does not know of yet. One pass over the map serves them all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Process → time of its last exec (`CLOCK_MONOTONIC`).
    execs: BTreeMap<u32, u64>,
    /// Process → time at which its exit was seen.
    exits: BTreeMap<u32, u64>,
}

impl Ends {
    /// The process has executed another program.
    pub fn executed(&mut self, tgid: u32, time_ns: u64) {
        let last = self.execs.entry(tgid).or_default();
        *last = (*last).max(time_ns);
    }

    /// The process has exited.
    pub fn exited(&mut self, tgid: u32, time_ns: u64) {
        self.exits.insert(tgid, time_ns);
    }

    fn of(&self, key: &LiveKey, block: &LiveBlock) -> Option<End> {
        let died = |times: &BTreeMap<u32, u64>| times.get(&key.tgid).is_some_and(|end| block.born_ns < *end);
        // A block that an exec has ended did not live to see the exit.
        if died(&self.execs) { Some(End::Exec) } else { died(&self.exits).then_some(End::Exit) }
    }

    /// Takes the blocks that have ended out of the map. Those of an exec are freed: `ended` says what they were, by
    /// site. Those of an exit count as live at the end: `ages` gets them. A block that a program removes
    /// meanwhile is counted there, not here.
    ///
    /// # Errors
    /// [`RecordError::MapCall`].
    pub fn purge(
        &mut self,
        live: BorrowedFd<'_>,
        ended: &mut BTreeMap<u32, Amount>,
        ages: &mut Ages,
    ) -> Result<(), RecordError> {
        if self.execs.is_empty() && self.exits.is_empty() {
            return Ok(());
        }
        let mut dead = Vec::new();
        kernel_map::read_hash::<LiveKey, LiveBlock>(live, "LIVE", |key, block| {
            if let Some(end) = self.of(key, block) {
                dead.push((*key, *block, end));
            }
        })?;
        for (key, block, end) in dead {
            if !kernel_map::delete(live, "LIVE", &key)? {
                continue;
            }
            match end {
                End::Exec => {
                    let amount = ended.entry(block.site).or_default();
                    amount.bytes = amount.bytes.saturating_add(block.size_bytes);
                    amount.count += 1;
                }
                End::Exit => ages.add(&block),
            }
        }
        *self = Self::default();
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Exec,
    Exit,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_comes_before_an_exit() {
        let mut ends = Ends::default();
        ends.executed(7, 50);
        ends.executed(7, 40);
        ends.exited(7, 90);
        ends.exited(8, 90);
        let of = |tgid, born_ns| {
            let key = LiveKey { tgid, ..LiveKey::default() };
            ends.of(&key, &LiveBlock { born_ns, ..LiveBlock::default() })
        };
        assert_eq!([of(7, 49), of(7, 50), of(7, 90)], [Some(End::Exec), Some(End::Exit), None]);
        assert_eq!([of(8, 10), of(9, 10)], [Some(End::Exit), None]);
    }

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
