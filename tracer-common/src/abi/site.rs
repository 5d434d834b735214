//! Allocation sites: one stack of one process, and its counters.

use super::layout;

/// The site that stands for every stack that could not be kept. Its bytes are exact; where they come
/// from is lost, and the reason is counted ([`super::Loss`]).
pub const SITE_LOST: u32 = 0;

/// Key under which a stack is interned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SiteKey {
    /// Process id.
    pub tgid: u32,
    /// Address-space epoch of the process ([`super::Process::epoch`]).
    pub epoch: u32,
    /// Hash over all frames and the way the stack ended.
    pub stack_hash: u64,
}
layout!(SiteKey, 16, [tgid: u32, epoch: u32, stack_hash: u64]);

/// Totals of one site since the start of the recording; they only ever grow.
/// Outstanding = allocated minus freed. Where they are estimates ([`super::Settings::sample_bytes`],
/// [`super::Settings::has_windows`]), blocks add their weight, and counts have [`crate::sampling::COUNT_FRACTION_BITS`] behind the
/// point.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SiteCounters {
    /// Bytes requested by booked allocations.
    pub allocated_bytes: u64,
    /// Booked allocations.
    pub allocated_count: u64,
    /// Bytes of booked blocks that were released.
    pub freed_bytes: u64,
    /// Booked blocks that were released.
    pub freed_count: u64,
}
layout!(SiteCounters, 32, [allocated_bytes: u64, allocated_count: u64, freed_bytes: u64, freed_count: u64]);

/// Buckets of a lifetime histogram.
pub const LIFETIME_BUCKETS: usize = 32;
/// The first bucket holds all lifetimes below 2^11 ns.
pub const LIFETIME_FIRST_LOG2: u32 = 10;

/// How long the released blocks of one site lived: blocks by the binary logarithm of their lifetime in ns, the first of
/// [`LIFETIME_FIRST_LOG2`]. The first and the last bucket hold also what lies beyond them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SiteLifetimes {
    /// Released blocks.
    pub counts: [u64; LIFETIME_BUCKETS],
}
layout!(SiteLifetimes, 256, [counts: [u64; LIFETIME_BUCKETS]]);

/// The bucket of a lifetime: below [`LIFETIME_BUCKETS`].
#[inline(always)]
pub const fn lifetime_bucket(lifetime_ns: u64) -> u32 {
    // BPF has no instruction for a logarithm; what LLVM makes of `ilog2` takes as long as an atomic addition.
    let mut rest = lifetime_ns >> LIFETIME_FIRST_LOG2;
    if rest >> LIFETIME_BUCKETS != 0 {
        return LIFETIME_BUCKETS as u32 - 1;
    }
    let mut bucket = 0;
    let mut bits = LIFETIME_BUCKETS as u32 / 2;
    while bits > 0 {
        if rest >> bits != 0 {
            rest >>= bits;
            bucket += bits;
        }
        bits /= 2;
    }
    bucket
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lifetime_has_its_bucket() {
        for (lifetime_ns, bucket) in [
            (0, 0),
            (1, 0),
            (2047, 0),
            (2048, 1),
            (4095, 1),
            (4096, 2),
            ((1 << 26) - 1, 15),
            (1 << 26, 16),
            ((1 << 41) - 1, 30),
            (1 << 40, 30),
            (1 << 41, 31),
            (u64::MAX, 31),
        ] {
            assert_eq!(lifetime_bucket(lifetime_ns), bucket, "{lifetime_ns}");
        }
    }
}
