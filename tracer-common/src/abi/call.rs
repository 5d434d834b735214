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
    pub reserved: u8,
    /// In estimates: how many blocks it stands for because it was born in a part of the time of which only some was seen, in
    /// sixteenths ([`crate::sampling::SCALE_ONE`]). Else 0, and not looked at.
    pub scale: u16,
}
layout!(LiveBlock, 24, [size_bytes: u64, born_ns: u64, site: u32, function: u8, reserved: u8, scale: u16]);

/// The thread is in no call.
pub const CALL_NONE: u32 = 0;
/// The call's block will be booked.
pub const CALL_BOOKED: u32 = 1;
/// The call's block was not sampled: it will not be booked, and neither will those of calls inside of this one.
pub const CALL_UNSAMPLED: u32 = 2;

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
    /// `CALL_` constant.
    pub active: u32,
    /// 1 if `aside` holds a block.
    pub has_aside: u32,
    /// Bytes that the thread will ask for before the next sample point. Kept from call to call; 0 where nothing is sampled.
    pub until_sample_bytes: u64,
    /// The window in which the call was entered ([`crate::abi::window`]); 0 where there are no windows.
    pub window: u64,
}
layout!(CallInFlight, 96, [entry_sp: u64, cookie: u64, size_bytes: u64, pointer: u64, limit_bytes: u64, return_address: u64, aside: LiveBlock, active: u32, has_aside: u32, until_sample_bytes: u64, window: u64]);

/// A place for the calls of one thread: that of its tid, if no other one has it. The others' are in a hash map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallPlace {
    /// `pid_tgid` of the thread; 0: nobody's.
    pub owner: u64,
    /// Its call.
    pub call: CallInFlight,
}
layout!(CallPlace, 104, [owner: u64, call: CallInFlight]);

/// Places for calls where `threads` threads are provided for. Few are provided for to the thread, by the hash map alone.
pub const fn call_places(threads: u32) -> u32 {
    if threads < 4096 { 0 } else { 8192 }
}

/// A window: a time in which allocations are seen, or are not. `number` tells one from the next, `scale` is what blocks that are
/// born in it stand for, in sixteenths; 0: allocations are not booked.
#[inline(always)]
pub const fn window(number: u64, scale: u16) -> u64 {
    number << 16 | scale as u64
}

/// The scale of a window.
#[inline(always)]
pub const fn scale_of_window(window: u64) -> u16 {
    window as u16
}
