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
}
layout!(Settings, 24, [min_size_bytes: u64, max_size_bytes: u64, max_sites: u32, reserved: u32]);

impl Settings {
    /// Books every size.
    pub const DEFAULT: Self =
        Self { min_size_bytes: 0, max_size_bytes: u64::MAX, max_sites: 65_536, reserved: 0 };
}
