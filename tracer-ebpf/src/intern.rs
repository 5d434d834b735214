//! Stack to site: each distinct stack is sent to user space once, and has a number from then on.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_NOEXIST, BPF_RB_FORCE_WAKEUP},
    helpers::generated::bpf_ringbuf_output,
};
use aya_log_ebpf::debug;
use tracer_common::abi::{
    EVENT_REFRESH, EVENT_STACK, EventHeader, LENS_MALLOC, Loss, MAX_FRAMES, SITE_LOST, SiteKey, StackEnd,
    StackEvent,
};

use crate::{
    atomic, book, machine,
    map::{EVENTS, PROCESSES, SITE_COUNT, SITE_KEYS, setting},
    scratch::{self, Slot},
    syscall, trail,
    walk::{self, Start},
};

/// What makes two sites of one stack, sent along with it.
#[derive(Clone, Copy)]
pub struct Origin {
    /// `LENS_` constant.
    pub lens: u32,
    /// Depends on the lens, see [`StackEvent::origin`].
    pub origin: u32,
    /// Stack pointer at the entry of the allocator call that the thread is inside of; 0 if it is in none.
    pub call_sp: u64,
}

/// Walks the current stack of the memory of process `tgid` and gives its site, [`SITE_LOST`] with a counted reason where it has none.
#[inline(always)]
pub fn site_of_stack<C: EbpfContext>(
    ctx: &C,
    (pid_tgid, tgid): (u64, u32),
    start: Start,
    origin: Origin,
    size_bytes: u64,
) -> u32 {
    let Some((index, slot)) = scratch::claim(pid_tgid) else { return SITE_LOST };
    let trail =
        if origin.lens == LENS_MALLOC { trail::begin(index, start, tgid, origin.origin) } else { None };
    if let Some(site) = trail.as_ref().and_then(trail::follow) {
        scratch::release(slot);
        return site;
    }
    walk::walk(slot, index, tgid, start);
    // SAFETY: a map value that this program has claimed.
    let state = unsafe { &mut *slot };
    let is_trampoline = state.event.end == StackEnd::ForeignReturnProbe as u32
        // The kernel maps the trampoline at the first hit, and the mapping set may not have it yet.
        || state.event.end == StackEnd::NoMapping as u32;
    if origin.call_sp != 0
        && is_trampoline
        && state.sp <= origin.call_sp.wrapping_add(machine::RETURN_POPS_BYTES)
    {
        // Our own, of the call that the thread is in or of one inside it; it is no frame.
        state.event.end = StackEnd::AllocatorCall as u32;
        state.event.frame_count = state.event.frame_count.saturating_sub(1);
    }
    if state.event.end == StackEnd::NoMapping as u32 {
        ask_for_refresh(ctx, tgid, state.pc);
    }
    state.event.lens = origin.lens;
    state.event.origin = origin.origin;
    state.hash = walk::mix(state.hash, u64::from(origin.lens) << 32 | u64::from(origin.origin));
    let site = intern(state, tgid, size_bytes);
    if let Some(trail) = &trail
        && site != SITE_LOST
        && is_settled(state.event.end)
    {
        trail::keep(trail, state, site);
    }
    scratch::release(slot);
    site
}

/// Whether a stack that ends so ends so again: not where memory could not be read, or where user space is asked to look.
#[inline(always)]
const fn is_settled(end: u32) -> bool {
    end != StackEnd::ReadFault as u32
        && end != StackEnd::NoMapping as u32
        && end != StackEnd::NoProcess as u32
        && end != StackEnd::ForeignReturnProbe as u32
}

#[inline(always)]
fn intern(state: &mut Slot, tgid: u32, size_bytes: u64) -> u32 {
    let key = SiteKey { tgid, epoch: state.epoch, stack_hash: state.hash };
    if let Some(site) = SITE_KEYS.get_ptr(key) {
        // SAFETY: a map value; keys are never removed.
        return unsafe { *site };
    }
    let Some(count) = SITE_COUNT.get_ptr_mut(0) else { return SITE_LOST };
    let last = setting!(max_sites) - 1;
    // SAFETY: a map value.
    if unsafe { core::ptr::read_volatile(count) } >= last {
        return book::lost(Loss::SiteMapFull, size_bytes);
    }
    // SAFETY: a map value.
    let site = unsafe { atomic::fetch_add(count, 1) } + 1;
    if site > last {
        return book::lost(Loss::SiteMapFull, size_bytes);
    }
    state.event.header = EventHeader { kind: EVENT_STACK, tgid, value: state.hash };
    state.event.site = site;
    state.event.epoch = state.epoch;
    let frames = state.event.frame_count as u64;
    if frames > MAX_FRAMES as u64 {
        return SITE_LOST;
    }
    let bytes = StackEvent::HEAD_BYTES as u64 + frames * 8;
    // Sent before the key is published: whoever finds the key can rely on the stack being on its way.
    // SAFETY: the source is a map value of at least that size.
    if unsafe {
        bpf_ringbuf_output(
            (&raw const EVENTS).cast_mut().cast(),
            (&raw mut state.event).cast(),
            bytes,
            syscall::wakeup(0),
        )
    } != 0
    {
        return book::lost(Loss::StackRingFull, size_bytes);
    }
    match SITE_KEYS.insert(key, site, u64::from(BPF_NOEXIST)) {
        Ok(()) => site,
        Err(_) => match SITE_KEYS.get_ptr(key) {
            Some(winner) => {
                book::tally(Loss::InterningRace, 0);
                // SAFETY: a map value.
                unsafe { *winner }
            }
            None => book::lost(Loss::StackMapFull, size_bytes),
        },
    }
}

/// Asks user space, once per mapping set, to read the mappings again.
#[inline(always)]
fn ask_for_refresh<C: EbpfContext>(ctx: &C, tgid: u32, pc: u64) {
    let Some(process) = PROCESSES.get_ptr_mut(tgid) else { return };
    // SAFETY: a map value.
    if !unsafe { atomic::claim32(&raw mut (*process).refresh, 0, 1) } {
        return;
    }
    debug!(ctx, "unknown pc {:x} in process {}", pc, tgid);
    if EVENTS
        .output::<EventHeader>(
            EventHeader { kind: EVENT_REFRESH, tgid, value: pc },
            u64::from(BPF_RB_FORCE_WAKEUP),
        )
        .is_err()
    {
        book::tally(Loss::EventRingFull, 0);
    }
}
