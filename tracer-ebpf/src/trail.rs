//! Walks that are remembered: the same stack is not unwound twice.
//!
//! A walk is a function of the registers that it begins with, of the mapping sets, and of the words of memory that it reads:
//! nothing else goes into it. So one that began with the same registers under the same mapping sets, and that finds the same words at
//! the same addresses, ends at the same site. (A frame pointer counts when the walk goes on from it. Code without frame pointers
//! keeps other things in that register.) Reading those words again is several times cheaper than looking up a
//! rule for each frame. That the words are the same is seen, not assumed from a hash.

use core::ptr;

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use tracer_common::abi::{SLOTS_PER_CPU, TRAIL_WORDS, TRAILS_PER_CPU};

use crate::{
    map::{SET_VERSIONS, SLOTS, TRAILS},
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
    reserved: u32,
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
    let part = |index| {
        // SAFETY: a map value.
        SET_VERSIONS.get_ptr(index).map_or(0, |version| unsafe { ptr::read_volatile(version) })
    };
    part(0).wrapping_add(part(1))
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
    state.window_start = NO_WINDOW;
    state.fault = 0;
    let count = trail.count as usize;
    let mut at = 0;
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
    let mut at = 0;
    while at < TRAIL_WORDS {
        if at >= count {
            break;
        }
        // SAFETY: in bounds of both; volatile, or LLVM makes a call of `memcpy` of it.
        unsafe {
            let word = ptr::read_volatile(state.words.as_ptr().add(at));
            ptr::write_volatile(trail.words.as_mut_ptr().add(at), word);
        }
        at += 1;
    }
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
