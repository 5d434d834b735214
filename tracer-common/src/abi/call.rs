//! Calls that have been entered and not yet returned, and the blocks that are live.

use super::layout;

/// Key of a live block: the address alone is not unique, two processes may use the same one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LiveKey {
    /// Process id as the kernel's initial pid namespace sees it.
    pub tgid: u32,
    /// Zero.
    pub reserved: u32,
    /// Address the allocator returned.
    pub address: u64,
}
layout!(LiveKey, 16, [tgid: u32, reserved: u32, address: u64]);

/// A block that was allocated under the eyes of the tracer and is not yet released.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveBlock {
    /// Bytes that were requested, not the usable size.
    pub size_bytes: u64,
    /// `CLOCK_MONOTONIC` time at which the allocation was booked.
    pub born_ns: u64,
    /// Index into the site counters.
    pub site: u32,
    /// Id of the allocator function ([`crate::func::Function::id`]).
    pub function: u8,
    /// Zero.
    pub reserved: [u8; 3],
}
layout!(LiveBlock, 24, [size_bytes: u64, born_ns: u64, site: u32, function: u8, reserved: [u8; 3]]);

/// The outermost allocator call that a thread is in. One per thread, key is `pid_tgid`; kept when the
/// call has returned, with `active` 0, because a fresh map entry per call costs more than a lookup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallInFlight {
    /// Stack pointer at the first instruction of the function: it points at the return address.
    pub entry_sp: u64,
    /// Attach cookie of the function that was entered ([`crate::cookie::Cookie`]).
    pub cookie: u64,
    /// Bytes requested; `u64::MAX` where count times size overflowed.
    pub size_bytes: u64,
    /// Resize: the old address. Aligned-out: where the result will be written. Else 0.
    pub pointer: u64,
    /// Resize in place: the most bytes that the block may count with. Else 0.
    pub limit_bytes: u64,
    /// What stood at `entry_sp`, where the end is seen by probes at the function's exits. Else 0.
    pub return_address: u64,
    /// Resize: the old block, set aside until the outcome is known. Valid if `has_aside` is 1.
    pub aside: LiveBlock,
    /// 1 while the thread is inside the call.
    pub active: u32,
    /// 1 if `aside` holds a block.
    pub has_aside: u32,
}
layout!(CallInFlight, 80, [entry_sp: u64, cookie: u64, size_bytes: u64, pointer: u64, limit_bytes: u64, return_address: u64, aside: LiveBlock, active: u32, has_aside: u32]);
