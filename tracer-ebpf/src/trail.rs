//! Walks that are remembered: the same stack is not unwound twice.
//!
//! A walk is a function of the registers that it begins with, of the mapping sets, and of the words of memory that it reads:
//! nothing else goes into it. So one that began with the same registers under the same mapping sets, and that finds the same words at
//! the same addresses, ends at the same site. (A frame pointer counts when the walk goes on from it. Code without frame pointers
//! keeps other things in that register.) Reading those words again is several times cheaper than looking up a
//! rule for each frame. That the words are the same is seen, not assumed from a hash.

use core::{ffi::c_void, ptr};

use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_probe_read_user};
use tracer_common::abi::{SLOTS_PER_CPU, TRAIL_WORDS, TRAILS_PER_CPU, WINDOW_BYTES};

use crate::{
    map::{SETS_ENDED, SETS_WRITTEN, SLOTS, TRAILS},
    scratch::{NO_WINDOW, Slot},
    walk::{self, Start},
};

/// The scratch slot whose owner may use the trails of its CPU: there is one of it, so nobody else does meanwhile.
const SLOT: u32 = 0;

/// A word of memory that a walk has read.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Word {
    /// Where.
    pub address: u64,
    /// What stood there.
    pub value: u64,
}

/// A walk that is remembered.
#[repr(C)]
pub struct Trail {
    /// Where it began.
    pc: u64,
    sp: u64,
    /// Frame pointer, if the walk has used it.
    fp: u64,
    link: u64,
    /// [`version`] before it began.
    version: u64,
    tgid: u32,
    /// [`crate::intern::Origin::origin`].
    origin: u32,
    /// Where it ended.
    site: u32,
    /// Words that it has read and that it depends on.
    count: u32,
    /// 1: it depends on the frame pointer.
    uses_fp: u32,
    /// Words of 8 bytes to be read from the first one on, to have them all; 0: a window does not hold these, or they overlap.
    span_words: u32,
    words: [Word; TRAIL_WORDS],
}

/// What tells one walk from the next before memory is read.
#[derive(Clone, Copy)]
pub struct Beginning {
    start: Start,
    tgid: u32,
    origin: u32,
    version: u64,
    index: u32,
}

/// How often mapping sets have changed, by user space and by programs: only ever grows. Read before a walk, changed after a set.
#[inline(always)]
fn version() -> u64 {
    SETS_WRITTEN.load().wrapping_add(SETS_ENDED.load())
}

/// What is needed to look for a trail, and to keep one; `None` in another slot, and where a walk begins at an instruction that is no
/// return address.
#[inline(always)]
pub fn begin(slot: u32, start: Start, tgid: u32, origin: u32) -> Option<Beginning> {
    if slot != SLOT || start.leaf != 0 {
        return None;
    }
    // SAFETY: the helper has no arguments and cannot fail.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let hash = walk::mix(walk::mix(start.pc, start.sp), u64::from(tgid));
    let index = cpu * TRAILS_PER_CPU + ((hash >> 32) as u32 & (TRAILS_PER_CPU - 1));
    Some(Beginning { start, tgid, origin, version: version(), index })
}

/// The site at which a walk that begins so ends, if it is remembered.
#[inline(always)]
pub fn follow(beginning: &Beginning) -> Option<u32> {
    let Beginning { start, tgid, origin, version, index } = *beginning;
    let trail = TRAILS.get_ptr(index)?;
    // SAFETY: a map value that only the owner of this CPU's slot uses.
    let trail = unsafe { &*trail };
    let is_same = trail.pc == start.pc
        && trail.sp == start.sp
        && (trail.uses_fp == 0 || trail.fp == start.fp)
        && trail.link == link_of(start)
        && trail.version == version
        && trail.tgid == tgid
        && trail.origin == origin;
    (is_same && has_same_words(SLOT, index) != 0).then_some(trail.site)
}

/// Whether memory holds the words of a trail. A global function of its own: the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn has_same_words(slot: u32, index: u32) -> u32 {
    let Some(slot) = SLOTS.get_ptr_mut(slot & (SLOTS_PER_CPU - 1)) else { return 0 };
    let Some(trail) = TRAILS.get_ptr(index) else { return 0 };
    // SAFETY: map values that only the owner of this CPU's slot uses.
    let (state, trail) = unsafe { (&mut *slot, &*trail) };
    let count = trail.count as usize;
    let span_words = trail.span_words;
    let mut at = 0;
    if span_words != 0 {
        // A mask, and no comparison: verifiers before 6.18 lose the bounds in what LLVM makes of that.
        let span_bytes = 8 * (((span_words - 1) & (WINDOW_BYTES as u32 / 8 - 1)) + 1);
        let first = trail.words[0].address;
        let window = state.window.as_mut_ptr();
        // SAFETY: the destination is the window, of that size at least.
        if unsafe { bpf_probe_read_user(window.cast(), span_bytes, first as *const c_void) } != 0 {
            return 0;
        }
        while at < TRAIL_WORDS {
            if at >= count {
                return 1;
            }
            // SAFETY: in bounds, the latter by the mask.
            unsafe {
                let word = &*trail.words.as_ptr().add(at);
                let index = (word.address.wrapping_sub(first) >> 3) as usize & (WINDOW_BYTES / 8 - 1);
                if ptr::read_volatile(window.add(index)) != word.value {
                    return 0;
                }
            }
            at += 1;
        }
        return 1;
    }
    state.window_start = NO_WINDOW;
    state.fault = 0;
    while at < TRAIL_WORDS {
        if at >= count {
            return 1;
        }
        // SAFETY: in bounds.
        let word = unsafe { &*trail.words.as_ptr().add(at) };
        if walk::peek(state, word.address) != word.value || state.fault != 0 {
            return 0;
        }
        at += 1;
    }
    1
}

/// Keeps the walk that the slot has just made.
#[inline(always)]
pub fn keep(beginning: &Beginning, state: &Slot, site: u32) {
    let Beginning { start, tgid, origin, version, index } = *beginning;
    // A walk that has read more ends after the last place.
    let count = state.word_count;
    if count > TRAIL_WORDS as u32 {
        return;
    }
    let Some(trail) = TRAILS.get_ptr_mut(index) else { return };
    // SAFETY: a map value that only the owner of this CPU's slot uses.
    let trail = unsafe { &mut *trail };
    trail.pc = start.pc;
    trail.sp = start.sp;
    trail.fp = start.fp;
    trail.link = link_of(start);
    trail.version = version;
    trail.tgid = tgid;
    trail.origin = origin;
    trail.site = site;
    trail.count = count;
    trail.uses_fp = state.uses_start_fp;
    copy_words(SLOT, index);
}

/// Copies the words of the slot's walk into a trail. A global function of its own: the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn copy_words(slot: u32, index: u32) -> u32 {
    let Some(slot) = SLOTS.get_ptr(slot & (SLOTS_PER_CPU - 1)) else { return 0 };
    let Some(trail) = TRAILS.get_ptr_mut(index) else { return 0 };
    // SAFETY: map values that only the owner of this CPU's slot uses.
    let (state, trail) = unsafe { (&*slot, &mut *trail) };
    let count = trail.count as usize;
    let first = state.words[0].address;
    let (mut farthest, mut distances) = (0, 0);
    let mut at = 0;
    while at < TRAIL_WORDS {
        if at >= count {
            break;
        }
        // SAFETY: in bounds of both; volatile, or LLVM makes a call of `memcpy` of it.
        let word = unsafe { ptr::read_volatile(state.words.as_ptr().add(at)) };
        // SAFETY: as above.
        unsafe { ptr::write_volatile(trail.words.as_mut_ptr().add(at), word) };
        let distance = word.address.wrapping_sub(first);
        farthest = if distance > farthest { distance } else { farthest };
        distances |= distance;
        at += 1;
    }
    // Up to the last word that the walk has read, and no further: behind that may be nothing.
    let fits = count != 0 && farthest < WINDOW_BYTES as u64 && distances & 7 == 0;
    trail.span_words = if fits { farthest as u32 / 8 + 1 } else { 0 };
    1
}

/// What the link register holds, where there is one.
#[inline(always)]
const fn link_of(start: Start) -> u64 {
    #[cfg(bpf_target_arch = "aarch64")]
    return start.link;
    #[cfg(not(bpf_target_arch = "aarch64"))]
    {
        let _ = start;
        0
    }
}
