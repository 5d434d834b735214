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
/// Outstanding = allocated minus freed.
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
pub const LIFETIME_BUCKETS: usize = 31;
/// Logarithm of the upper bound of the first bucket, in ns: lifetimes below 2 µs.
pub const LIFETIME_FIRST_LOG2: u32 = 11;

/// How long the released blocks of one site lived.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SiteLifetimes {
    /// `CLOCK_MONOTONIC` time of the last release, 0: none.
    pub last_freed_ns: u64,
    /// Released blocks by lifetime. The first bucket ends at 2^[`LIFETIME_FIRST_LOG2`] ns, each further one at twice
    /// the end of the one before, the last one does not end.
    pub counts: [u64; LIFETIME_BUCKETS],
}
layout!(SiteLifetimes, 256, [last_freed_ns: u64, counts: [u64; LIFETIME_BUCKETS]]);

/// The bucket of a lifetime: below [`LIFETIME_BUCKETS`].
#[inline(always)]
pub const fn lifetime_bucket(lifetime_ns: u64) -> u32 {
    let bucket = (lifetime_ns | 1).ilog2().saturating_sub(LIFETIME_FIRST_LOG2 - 1);
    if bucket < LIFETIME_BUCKETS as u32 { bucket } else { LIFETIME_BUCKETS as u32 - 1 }
}

/// Shortest lifetime in a bucket, in ns.
pub const fn lifetime_bucket_start_ns(bucket: u32) -> u64 {
    if bucket == 0 { 0 } else { 1 << (bucket + LIFETIME_FIRST_LOG2 - 1) }
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
            (1 << 39, 29),
            (1 << 40, 30),
            (u64::MAX, 30),
        ] {
            assert_eq!(lifetime_bucket(lifetime_ns), bucket, "{lifetime_ns}");
            assert!(lifetime_bucket_start_ns(bucket) <= lifetime_ns);
        }
        for bucket in 0..LIFETIME_BUCKETS as u32 {
            assert_eq!(lifetime_bucket(lifetime_bucket_start_ns(bucket)), bucket);
        }
    }
}
