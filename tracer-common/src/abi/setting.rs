//! Read-only settings, written by the loader before the object is loaded.

use super::layout;

/// Settings the programs read. All fields are constants to the verifier.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Allocations below this many bytes are not booked.
    pub min_size_bytes: u64,
    /// Allocations above this many bytes are not booked.
    pub max_size_bytes: u64,
    /// Entries of the site counter array.
    pub max_sites: u32,
    /// Zero.
    pub reserved: u32,
    /// 1: children of traced processes are traced too.
    pub follow: u32,
    /// Where `clone_flags` stands in the record of the tracepoint `task_newtask`.
    pub clone_flags_offset: u32,
    /// Entries of the map of faults.
    pub fault_capacity: u32,
    /// 1: probes do not run for processes that share the memory of a traced one without being its threads; these are counted.
    pub sharers_unseen: u32,
    /// Mean bytes from one sample point to the next ([`crate::sampling`]); 0: every allocation is booked.
    pub sample_bytes: u64,
    /// 1: allocations are booked in windows only.
    pub has_windows: u32,
    /// Buckets of the table of live blocks ([`super::Bucket`]); 0: it is not used.
    pub buckets: u32,
    /// Entries of the array of calls in flight, a power of two; 0: it is not used.
    pub call_places: u32,
    /// Zero.
    pub padding: u32,
}
layout!(Settings, 64, [min_size_bytes: u64, max_size_bytes: u64, max_sites: u32, reserved: u32, follow: u32, clone_flags_offset: u32, fault_capacity: u32, sharers_unseen: u32, sample_bytes: u64, has_windows: u32, buckets: u32, call_places: u32, padding: u32]);

impl Settings {
    /// Books every size, follows nobody.
    pub const DEFAULT: Self = Self {
        min_size_bytes: 0,
        max_size_bytes: u64::MAX,
        max_sites: 65_536,
        reserved: 0,
        follow: 0,
        clone_flags_offset: 32,
        fault_capacity: 1 << 19,
        sharers_unseen: 0,
        sample_bytes: 0,
        has_windows: 0,
        buckets: 0,
        call_places: 0,
        padding: 0,
    };
}
