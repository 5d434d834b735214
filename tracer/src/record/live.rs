//! The blocks that are live at the end of a recording, and those that an exec has ended.

use std::collections::BTreeMap;

use tracer_common::{
    abi::{LIFETIME_FIRST_LOG2, LiveBlock, LiveKey, SiteLifetimes},
    sampling::{COUNT_FRACTION_BITS, Weight},
};

use super::{RecordError, kernel_map::MappedArray, live_blocks::LiveBlocks, weighing::Weighing};
use crate::model::{Lifetime, LiveAge, LiveSize, SampledAge};

/// Bytes and blocks of one site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes requested.
    pub bytes: u64,
    /// Blocks that were seen.
    pub seen_count: u64,
    /// Blocks that these stand for, in units of 2^-[`COUNT_FRACTION_BITS`].
    fraction_count: u64,
}

impl Amount {
    fn add(&mut self, weight: Weight) {
        self.bytes = self.bytes.saturating_add(weight.bytes);
        self.seen_count += 1;
        self.fraction_count = self.fraction_count.saturating_add(weight.count);
    }

    /// Blocks that were seen, or that these stand for.
    pub const fn count(&self) -> u64 {
        self.fraction_count.saturating_add(1 << (COUNT_FRACTION_BITS - 1)) >> COUNT_FRACTION_BITS
    }
}

/// Sums live blocks by site and time of birth, and by site and size.
#[derive(Clone, Debug)]
pub struct Ages {
    start_ns: u64,
    weighing: Weighing,
    buckets: BTreeMap<(u32, u64), Amount>,
    /// At most 65 for each site.
    sizes: BTreeMap<(u32, u8), Amount>,
}

impl Ages {
    /// Times of birth are counted from `start_ns` (`CLOCK_MONOTONIC`).
    pub fn new(start_ns: u64, weighing: Weighing) -> Self {
        Self { start_ns, weighing, buckets: BTreeMap::new(), sizes: BTreeMap::new() }
    }

    /// Adds one mapping. It has no size that was asked for: it may have been cut and joined since.
    pub fn add_mapping(&mut self, mapping: &LiveBlock) {
        self.add_weighed(mapping, Weighing::default().block(mapping));
    }

    fn add_weighed(&mut self, block: &LiveBlock, weight: Weight) {
        let born = block.born_ns.saturating_sub(self.start_ns);
        let bucket = born - born % LiveAge::RESOLUTION_NS;
        self.buckets.entry((block.site, bucket)).or_default().add(weight);
    }

    /// Adds one block of an allocator.
    pub fn add(&mut self, block: &LiveBlock) {
        let weight = self.weighing.block(block);
        self.add_weighed(block, weight);
        self.sizes.entry((block.site, LiveSize::bucket_of(block.size_bytes))).or_default().add(weight);
    }

    /// How many blocks were seen, by site and birth, where these stand for others; else nothing.
    pub fn sampled(&self) -> Vec<SampledAge> {
        let row = |((site, born_ns), amount): (&(u32, u64), &Amount)| SampledAge {
            site: *site,
            born_ns: *born_ns,
            count: amount.seen_count,
        };
        if self.weighing.is_estimate() { self.buckets.iter().map(row).collect() } else { Vec::new() }
    }

    /// The sums, by site and birth, and by site and size.
    pub fn into_rows(self) -> (Vec<LiveAge>, Vec<LiveSize>) {
        let age = |((site, born_ns), amount): ((u32, u64), Amount)| LiveAge {
            site,
            born_ns,
            count: amount.count(),
            bytes: amount.bytes,
        };
        let size = |((site, bucket), amount): ((u32, u8), Amount)| LiveSize {
            site,
            bucket,
            count: amount.count(),
            bytes: amount.bytes,
        };
        (self.buckets.into_iter().map(age).collect(), self.sizes.into_iter().map(size).collect())
    }
}

/// Reads the live blocks of all processes.
///
/// # Errors
/// [`RecordError::MapCall`].
pub fn read_ages(live: &LiveBlocks, ages: &mut Ages) -> Result<(), RecordError> {
    live.read(|_, block| ages.add(block))
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
        live: &LiveBlocks,
        ended: &mut BTreeMap<u32, Amount>,
        ages: &mut Ages,
    ) -> Result<(), RecordError> {
        if self.execs.is_empty() && self.exits.is_empty() {
            return Ok(());
        }
        let mut dead = Vec::new();
        live.read(|key, block| {
            if let Some(end) = self.of(key, block) {
                dead.push((*key, *block, end));
            }
        })?;
        for (key, block, end) in dead {
            if !live.delete(&key)? {
                continue;
            }
            match end {
                End::Exec => {
                    ended.entry(block.site).or_default().add(ages.weighing.block(&block));
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
        let mut ages = Ages::new(1_000, Weighing::default());
        let block =
            |site, born_ns, size_bytes| LiveBlock { size_bytes, born_ns, site, ..LiveBlock::default() };
        ages.add(&block(1, 1_000, 10));
        ages.add(&block(1, 100_000_999, 20));
        ages.add(&block(1, 100_001_000, 40));
        ages.add(&block(2, 500, 80)); // born before the start of the clock: rounds to it
        let row = |site, born_ns, count, bytes| LiveAge { site, born_ns, count, bytes };
        assert_eq!(ages.into_rows().0, [row(1, 0, 2, 30), row(1, 100_000_000, 1, 40), row(2, 0, 1, 80)]);
    }

    #[test]
    fn blocks_are_summed_by_site_and_power_of_two() {
        let mut ages = Ages::new(0, Weighing::default());
        let block = |site, size_bytes| LiveBlock { size_bytes, site, ..LiveBlock::default() };
        for size_bytes in [0, 1, 2, 3, 4, 7, 8, u64::MAX] {
            ages.add(&block(1, size_bytes));
        }
        ages.add(&block(2, 3));
        ages.add_mapping(&block(3, 4096));
        let row = |site, bucket, count, bytes| LiveSize { site, bucket, count, bytes };
        let one = [row(1, 0, 1, 0), row(1, 1, 1, 1), row(1, 2, 2, 5), row(1, 3, 2, 11), row(1, 4, 1, 8)];
        let rest = [row(1, 64, 1, u64::MAX), row(2, 2, 1, 3)];
        assert_eq!(ages.into_rows().1, [&one[..], &rest].concat());
        for bucket in 0..=LiveSize::LAST_BUCKET {
            let (least, largest) = LiveSize::sizes(bucket);
            assert_eq!((LiveSize::bucket_of(least), LiveSize::bucket_of(largest)), (bucket, bucket));
        }
    }
}
