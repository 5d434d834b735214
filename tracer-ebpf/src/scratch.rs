//! Scratch slots: a program claims one of its CPU's slots for the time of a stack walk.

use tracer_common::abi::{
    Loss, RULE_CACHE_ENTRIES, RuleCacheEntry, SLOTS_PER_CPU, StackEvent, TRAIL_WORDS, WINDOW_BYTES,
};

use crate::{atomic, book, map::SLOTS, trail::Word};

/// State of one stack walk. The stack is built up in the form in which it is sent.
#[repr(C)]
pub struct Slot {
    /// `pid_tgid` of the program that has claimed the slot; 0: free.
    pub owner: u64,
    /// Program counter of the current frame.
    pub pc: u64,
    /// Stack pointer of the current frame.
    pub sp: u64,
    /// Frame pointer of the current frame.
    pub fp: u64,
    /// Hash over the frames so far.
    pub hash: u64,
    /// Generation of the mapping set.
    pub generation: u32,
    /// Epoch of the mapping set.
    pub epoch: u32,
    /// 1 if `pc` is no return address: after a signal frame.
    pub leaf: u32,
    /// 1 after a read that failed.
    pub fault: u32,
    /// Words that the walk has read, also beyond the room for them.
    pub word_count: u32,
    /// 1: the walk depends on the frame pointer that it began with.
    pub uses_start_fp: u32,
    /// Where the frame pointer was loaded from, until the walk uses it.
    pub fp_from: u64,
    /// The link register, if it holds the return address of the current frame; else 0.
    #[cfg(bpf_target_arch = "aarch64")]
    pub link: u64,
    /// Address of the first byte in `window`.
    pub window_start: u64,
    /// The stack.
    pub event: StackEvent,
    /// A piece of the user stack.
    pub window: [u64; WINDOW_BYTES / 8],
    /// Words that the walk has read, as far as there is room.
    pub words: [Word; TRAIL_WORDS],
    /// pc → rule. Lossy on purpose.
    pub cache: [RuleCacheEntry; RULE_CACHE_ENTRIES],
}

/// The kernel's limit for one value of a per-CPU map (PCPU_MIN_UNIT_SIZE).
const _: () = assert!(size_of::<Slot>() <= 32 << 10);

/// Value of `window_start` when the window holds nothing: no user address is near it.
pub const NO_WINDOW: u64 = u64::MAX / 2;

/// Claims a slot of this CPU for `owner`: its index, and where it is. `None` and a count when all are taken.
#[inline(always)]
pub fn claim(owner: u64) -> Option<(u32, *mut Slot)> {
    // The first one is mostly free: no call for that.
    let first = SLOTS.get_ptr_mut(0)?;
    // SAFETY: a map value.
    if unsafe { atomic::claim(&raw mut (*first).owner, 0, owner) } {
        return Some((0, first));
    }
    let index = claim_index(owner as u32, (owner >> 32) as u32);
    if index < SLOTS_PER_CPU {
        Some((index, SLOTS.get_ptr_mut(index)?))
    } else {
        book::tally(Loss::NoScratchSlot, 0);
        None
    }
}

/// A global function of its own: the verifier looks at it once. Scalars only, each one used.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_index(owner_low: u32, owner_high: u32) -> u32 {
    let owner = (u64::from(owner_high) << 32) | u64::from(owner_low);
    let mut index = 0;
    while index < SLOTS_PER_CPU {
        let Some(slot) = SLOTS.get_ptr_mut(index) else { return SLOTS_PER_CPU };
        // SAFETY: `slot` is a map value.
        if unsafe { atomic::claim(&raw mut (*slot).owner, 0, owner) } {
            return index;
        }
        index += 1;
    }
    SLOTS_PER_CPU
}

/// Gives a claimed slot back.
#[inline(always)]
pub fn release(slot: *mut Slot) {
    // SAFETY: `slot` is a map value that this program has claimed; volatile so that the write stays last.
    unsafe { core::ptr::write_volatile(&raw mut (*slot).owner, 0) };
}

/// Whether a program of this thread is at work on this CPU: what it reads may fault, and that is no fault of the target.
#[inline(always)]
pub fn is_at_work(owner: u64) -> bool {
    is_owner(owner as u32, (owner >> 32) as u32) != 0
}

/// A global function of its own, as [`claim_index`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_owner(owner_low: u32, owner_high: u32) -> u32 {
    let owner = (u64::from(owner_high) << 32) | u64::from(owner_low);
    let mut index = 0;
    while index < SLOTS_PER_CPU {
        let Some(slot) = SLOTS.get_ptr(index) else { return 0 };
        // SAFETY: `slot` is a map value.
        if unsafe { core::ptr::read_volatile(&raw const (*slot).owner) } == owner {
            return 1;
        }
        index += 1;
    }
    0
}
