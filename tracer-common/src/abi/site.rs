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
