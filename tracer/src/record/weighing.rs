//! What blocks count for: themselves, or more where only some of them are seen.

use tracer_common::{
    abi::{LiveBlock, SiteCounters},
    sampling::{self, COUNT_FRACTION_BITS, SCALE_ONE, Weight},
};

/// How the kernel's counters are to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weighing {
    /// Mean bytes from one sample point to the next; 0: every allocation is seen.
    pub sample_bytes: u64,
    /// Whether allocations are seen in windows of time only.
    pub has_windows: bool,
}

impl Weighing {
    /// Whether blocks stand for others too.
    pub const fn is_estimate(self) -> bool {
        self.sample_bytes != 0 || self.has_windows
    }

    /// What a block adds; its count has [`COUNT_FRACTION_BITS`] behind the point.
    pub fn block(self, block: &LiveBlock) -> Weight {
        let scale = if self.has_windows { block.scale } else { SCALE_ONE };
        sampling::weight(self.sample_bytes, block.size_bytes, scale)
    }

    /// The kernel's counters of allocator calls with whole counts.
    pub const fn counters(self, mut counters: SiteCounters) -> SiteCounters {
        if self.is_estimate() {
            counters.allocated_count >>= COUNT_FRACTION_BITS;
            counters.freed_count >>= COUNT_FRACTION_BITS;
        }
        counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_whole_and_blocks_weigh_what_the_kernel_adds() {
        let exact = Weighing::default();
        let counters = SiteCounters {
            allocated_bytes: 10,
            allocated_count: 3 << 16,
            freed_bytes: 5,
            freed_count: 1 << 15,
        };
        assert_eq!((exact.is_estimate(), exact.counters(counters)), (false, counters));
        let sampled = Weighing { sample_bytes: 64 << 10, has_windows: false };
        let whole = sampled.counters(counters);
        assert_eq!((whole.allocated_bytes, whole.allocated_count, whole.freed_count), (10, 3, 0));
        let block = LiveBlock { size_bytes: 100, scale: 32, ..LiveBlock::default() };
        assert_eq!(exact.block(&block), Weight { bytes: 100, count: 1 << 16 });
        assert_eq!(sampled.block(&block), sampling::weight(64 << 10, 100, SCALE_ONE));
        let windows = Weighing { has_windows: true, ..exact };
        assert_eq!(windows.block(&block), Weight { bytes: 200, count: 2 << 16 });
    }
}
