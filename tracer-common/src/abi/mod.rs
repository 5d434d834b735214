//! The kernel/user ABI: one definition of every layout, used by both sides.
//!
//! Rules: `repr(C)`, fixed-width integers and arrays of them only, explicit padding, sizes asserted at
//! compile time, enumerations travel as integers with explicit values, ids are append-only.

mod bucket;
mod call;
mod end;
mod event;
mod fault;
mod loss;
mod mapping;
mod mapping_event;
mod setting;
mod site;

pub use bucket::{BUCKET_PLACES, Bucket, Home, PLACE_EMPTY, PLACE_WRITTEN, Place, TableSize, home_of};
pub use call::{
    CALL_BOOKED, CALL_NONE, CALL_UNSAMPLED, CallInFlight, CallPlace, LiveBlock, LiveKey, call_places,
    scale_of_window, window,
};
pub use end::StackEnd;
pub use event::{
    EVENT_EXEC, EVENT_FORK, EVENT_REFRESH, EVENT_STACK, EventHeader, FORK_EXECUTED, FRAME_INTERRUPTED,
    LENS_FAULTS, LENS_MALLOC, LENS_MMAP, StackEvent, VALIDATION_PAGES, Validation,
};
pub use fault::{
    BLOCK_SHIFT, EVENT_FAULT_RANGE, EVENT_FAULTS_PENDING, FAULT_FRESH, FAULT_IN_KERNEL, FAULT_LEVEL_KERNEL,
    FAULT_LEVEL_USER, FAULT_ON_PRESENT, FAULT_ON_STACK, FAULT_STATES, FAULT_WRITE, FAULTS_ADDED,
    FAULTS_TAKEN, MAX_FAULT_LEVEL, PageFault, PageKey, is_admitted, pending_limit,
};
pub use loss::{Loss, Tally};
pub use mapping::{
    CHUNK_MAPPINGS, ESCAPE_ADDED_SHIFT, ESCAPE_BASE_FRAME_POINTER, ESCAPE_BASE_GO_SWITCH, ESCAPE_BASE_MASK,
    ESCAPE_BASE_STACK_POINTER, ESCAPE_DEREFERENCE, ESCAPE_FP_AT_CFA, ESCAPE_FP_AT_FP, ESCAPE_FP_MASK,
    ESCAPE_FP_SAME, ESCAPE_LINK_SHIFT, ESCAPE_OTHER_STACK, EscapeRule, MAPPING_FILE, MAPPING_FRAME_POINTER,
    MAPPING_NO_TABLE, MAPPING_RETURN_PROBE, MAPPING_TRAMPOLINE, Mapping, MappingChunk, PAGE_BYTES,
    PAGE_SHIFT, PAGES_PER_CHUNK, PROCESS_CHUNKS, PageChunk, Process, ROWS_PER_CHUNK, RULE_CACHE_ENTRIES,
    RowChunk, RuleCacheEntry,
};
pub use mapping_event::{
    EVENT_MAPPING, MappingEvent, MappingKind, MappingOrigin, OPERATION_BREAK, OPERATION_MAP, OPERATION_REMAP,
    OPERATION_REMAP_ENTER, OPERATION_REMAP_FAILED, OPERATION_SHM_ATTACH, OPERATION_SHM_DETACH,
    OPERATION_THREAD_EXIT, OPERATION_THREAD_START, OPERATION_UNMAP, OPERATION_UNMAP_FAILED,
};
pub use setting::Settings;
pub use site::{
    LIFETIME_BUCKETS, LIFETIME_FIRST_LOG2, SITE_LOST, SiteCounters, SiteKey, SiteLifetimes, lifetime_bucket,
};

/// Frames kept of one stack, innermost first. Deeper stacks end as [`StackEnd::Truncated`].
pub const MAX_FRAMES: usize = 256;

/// Scratch slots per CPU. Uprobe programs are preemptible since kernel 6.0, so several can be at
/// work on one CPU at the same time.
pub const SLOTS_PER_CPU: u32 = 8;

/// Walks that are remembered for each CPU, a power of two.
pub const TRAILS_PER_CPU: u32 = 64;

/// Words that a walk may read to be remembered, a power of two.
pub const TRAIL_WORDS: usize = 128;

/// Bytes of user stack fetched by one read while unwinding.
pub const WINDOW_BYTES: usize = 512;

/// Plain data: every bit pattern is a value, and there is no padding, so that it can be copied to and
/// from bytes.
///
/// # Safety
/// Only for `repr(C)` types without padding whose fields are plain.
pub unsafe trait Plain: Copy + 'static {}

// SAFETY: integers have no invalid bit patterns and no padding.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: arrays add no padding.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Copies a value from the start of `bytes`; `None` if they are too few.
pub fn read<T: Plain>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < core::mem::size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked, `T` is plain data, and the read needs no alignment.
    Some(unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

/// Declares a type plain data, and asserts its size and that it has no implicit padding.
macro_rules! layout {
    ($type:ty, $size:expr, [$($field:ident : $field_type:ty),+ $(,)?]) => {
        // SAFETY: fields are plain by the rules above, and the assertion below excludes padding.
        unsafe impl crate::abi::Plain for $type {}
        const _: () = {
            assert!(core::mem::size_of::<$type>() == $size);
            assert!(0 $(+ core::mem::size_of::<$field_type>())+ == $size);
            $(let _ = core::mem::offset_of!($type, $field);)+
        };
    };
}
pub(crate) use layout;
