//! Allocating functions: entry, return and exits.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_attach_cookie, bpf_get_prandom_u32, bpf_probe_read_user},
    programs::{ProbeContext, RetProbeContext},
};
use aya_log_ebpf::{debug, trace};
use core::{ffi::c_void, ptr};
use tracer_common::{
    abi::{
        CALL_BOOKED, CALL_NONE, CALL_UNSAMPLED, CallInFlight, LENS_MALLOC, LiveBlock, LiveKey, Loss,
        scale_of_window,
    },
    cookie::{Cookie, SHAPE_ALIGNED_OUT, SHAPE_ALLOCATE_ARRAY, SHAPE_RESIZE_ARRAY, SHAPE_RESIZE_IN_PLACE},
    outcome, sampling,
};

use crate::{
    block, book, in_flight,
    intern::{self, Origin},
    machine,
    map::{self, setting},
    task::{self, Registers},
    walk::Start,
};

/// Remembers the call; for a resize, sets the old block aside.
#[inline(always)]
pub fn enter(ctx: &ProbeContext) {
    if map::has_stopped() {
        return;
    }
    let regs = Registers::new(ctx.regs);
    // SAFETY: `ctx` is the context the kernel passed.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    let (window, shape) = (map::window(), cookie.shape());
    if scale_of_window(window) == 0 && !outcome::resizes(shape) {
        return; // nobody looks now; its probe is about to go
    }
    let pid_tgid = task::pid_tgid();
    let tgid = task::memory_owner(pid_tgid);
    let entry_sp = regs.sp().wrapping_add(cookie.pushed_bytes());
    let call = match in_flight::find(pid_tgid) {
        Some(call) => call,
        None => {
            let Some(call) = in_flight::begin(pid_tgid) else { return book::tally(Loss::InFlightFull, 0) };
            // SAFETY: a map value that only this thread's programs touch.
            unsafe { (*call).until_sample_bytes = next_sample_bytes() };
            call
        }
    };
    // SAFETY: a map value that only this thread's programs touch.
    let call = unsafe { &mut *call };
    // What the caller of this one has entered at the same stack pointer, left by a jump, returns with it.
    let mut returns_elsewhere = false;
    if call.active != CALL_NONE && ends_unseen(call, window) {
        call.active = CALL_NONE;
    }
    if call.active != CALL_NONE {
        if outcome::is_nested(call.entry_sp, entry_sp) && still_runs(regs, call) {
            return book::tally(Loss::NestedCall, 0);
        }
        if call.entry_sp == entry_sp {
            returns_elsewhere = call.return_address == 0;
        } else {
            debug!(ctx, "call at {:x} was abandoned, new call at {:x}", call.entry_sp, entry_sp);
            book::tally(Loss::AbandonedCall, 0);
        }
        if call.has_aside != 0 {
            book::restore(LiveKey { tgid, reserved: 0, address: call.pointer }, call.aside);
        }
    }
    let size = regs.argument(cookie.size_argument());
    call.size_bytes = if shape == SHAPE_ALLOCATE_ARRAY || shape == SHAPE_RESIZE_ARRAY {
        outcome::array_bytes(regs.argument(cookie.count_argument()), size)
    } else {
        size
    };
    call.entry_sp = entry_sp;
    call.cookie = cookie.0;
    call.has_aside = 0;
    call.pointer = 0;
    // Volatile: LLVM would make a call of `memset` of this and its neighbours, which costs as much as a lookup.
    // SAFETY: a field of the call.
    unsafe { ptr::write_volatile(&raw mut call.limit_bytes, 0) };
    call.return_address = 0;
    call.window = window;
    if cookie.is_left_at_exit() && !returns_elsewhere {
        call.return_address = machine::return_address(regs, entry_sp).unwrap_or(0);
    }
    if shape == SHAPE_ALIGNED_OUT {
        call.pointer = regs.argument(cookie.pointer_argument());
    } else if outcome::resizes(shape) {
        if shape == SHAPE_RESIZE_IN_PLACE {
            call.limit_bytes = size.saturating_add(regs.argument(cookie.count_argument()));
        }
        let old = regs.argument(cookie.pointer_argument());
        call.pointer = old;
        if old != 0 {
            match block::take(LiveKey { tgid, reserved: 0, address: old }) {
                Some(block) => {
                    call.aside = block;
                    call.has_aside = 1;
                }
                None => book::unknown_release(),
            }
        }
    }
    // How large a block is that was resized in place is known at the end only.
    let is_open = shape == SHAPE_RESIZE_IN_PLACE || is_sampled(call, call.size_bytes);
    call.active = if is_open && scale_of_window(window) != 0 { CALL_BOOKED } else { CALL_UNSAMPLED };
}

/// Whether a block of this size is to be booked; moves the thread on towards its next sample point.
#[inline(always)]
fn is_sampled(call: &mut CallInFlight, size_bytes: u64) -> bool {
    if setting!(sample_bytes) == 0 {
        return true;
    }
    sampling::is_sampled(&mut call.until_sample_bytes, size_bytes, next_sample_bytes)
}

/// Bytes from one sample point to the next.
#[inline(always)]
fn next_sample_bytes() -> u64 {
    let interval_bytes = setting!(sample_bytes);
    if interval_bytes == 0 {
        return 0;
    }
    // SAFETY: the helper has no arguments and cannot fail.
    sampling::exponential_bytes(unsafe { bpf_get_prandom_u32() }, interval_bytes)
}

/// Whether nobody saw or will see the end of an earlier call: the probes that would have were taken off with its window. Those
/// of calls that resize stay.
#[inline(always)]
fn ends_unseen(call: &CallInFlight, window: u64) -> bool {
    call.window != window && !outcome::resizes(Cookie(call.cookie).shape())
}

/// Whether an outer call is still in progress, as far as that can be seen.
///
/// An exception may have left it (only functions that may throw have probes at their exits). The frames that were
/// pushed since then lie where its own was: its return address is not there any more.
#[inline(always)]
fn still_runs(regs: Registers, call: &CallInFlight) -> bool {
    call.return_address == 0 || machine::may_still_run(regs, call.entry_sp, call.return_address)
}

/// Eight bytes of the target's memory.
#[inline(always)]
fn user_word(address: u64) -> Option<u64> {
    let mut word = 0u64;
    // SAFETY: the destination is a local of 8 bytes.
    let status = unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, address as *const c_void) };
    if status == 0 { Some(word) } else { None }
}

/// A return probe: books what the outermost call of the thread has done.
#[inline(always)]
pub fn leave(ctx: &RetProbeContext) {
    let regs = Registers::new(ctx.regs);
    let pid_tgid = task::pid_tgid();
    let Some(call) = in_flight::find(pid_tgid) else {
        return book::tally(Loss::UnmatchedReturn, 0);
    };
    // SAFETY: a map value that only this thread's programs touch.
    let call = unsafe { &mut *call };
    if !outcome::is_return_of(call.entry_sp, regs.sp(), machine::RETURN_POPS_BYTES) {
        if call.active == CALL_NONE {
            book::tally(Loss::UnmatchedReturn, 0);
        }
        return; // the return of a nested call
    }
    if call.active == CALL_NONE {
        return; // a function that was left by a jump into another one: both return at once
    }
    finish(ctx, call, pid_tgid, regs.result(), regs.start());
}

/// A `ret` instruction of a function that may throw, or of one that it jumps to: the return address is still on the
/// stack. Others may come by, too: the active call is left here only if this is its stack pointer and its return address.
#[inline(always)]
pub fn leave_at_exit(ctx: &ProbeContext) {
    let regs = Registers::new(ctx.regs);
    let pid_tgid = task::pid_tgid();
    let Some(call) = in_flight::find(pid_tgid) else { return };
    // SAFETY: a map value that only this thread's programs touch.
    let call = unsafe { &mut *call };
    let sp = regs.sp();
    if call.active == CALL_NONE || call.return_address == 0 || call.entry_sp != sp {
        return;
    }
    if machine::return_address(regs, sp) != Some(call.return_address) {
        return;
    }
    // As the walk finds it behind the return.
    let start = regs.start_behind_return(sp, call.return_address);
    finish(ctx, call, pid_tgid, regs.result(), start);
}

/// Books a call that has come to its end; `start` is the caller's state behind the return.
#[inline(always)]
fn finish<C: EbpfContext>(ctx: &C, call: &mut CallInFlight, pid_tgid: u64, returned: u64, start: Start) {
    let is_booked = call.active == CALL_BOOKED;
    call.active = CALL_NONE;
    if !is_booked && call.has_aside == 0 {
        return;
    }
    let tgid = task::memory_owner(pid_tgid);
    let cookie = Cookie(call.cookie);
    let shape = cookie.shape();
    let mut size_bytes = call.size_bytes;
    let mut address = returned;
    if shape == SHAPE_ALIGNED_OUT {
        address = 0;
        if outcome::reads_result(SHAPE_ALIGNED_OUT, returned) {
            match user_word(call.pointer) {
                Some(result) => address = result,
                None => return book::tally(Loss::ResultReadFault, size_bytes),
            }
        }
    } else if shape == SHAPE_RESIZE_IN_PLACE {
        match outcome::in_place_bytes(size_bytes, call.limit_bytes, returned) {
            Some(bytes) => {
                size_bytes = bytes;
                address = call.pointer;
            }
            None => address = 0,
        }
    }
    if call.has_aside != 0 {
        call.has_aside = 0;
        let is_dropped = if shape == SHAPE_RESIZE_IN_PLACE {
            address != 0
        } else {
            matches!(outcome::aside(shape, size_bytes, address), outcome::Aside::Drop)
        };
        if is_dropped {
            book::released(&call.aside);
        } else {
            book::restore(LiveKey { tgid, reserved: 0, address: call.pointer }, call.aside);
        }
    }
    if !is_booked {
        return;
    }
    if address == 0 {
        return book::tally(Loss::FailedAllocation, 0);
    }
    if size_bytes == outcome::OVERFLOW {
        return book::tally(Loss::SizeOverflow, 0);
    }
    if size_bytes < setting!(min_size_bytes) || size_bytes > setting!(max_size_bytes) {
        return book::tally(Loss::FilteredSize, size_bytes);
    }
    if shape == SHAPE_RESIZE_IN_PLACE && !is_sampled(call, size_bytes) {
        return;
    }
    let origin = Origin { lens: LENS_MALLOC, origin: cookie.allocator(), call_sp: 0 };
    let site = intern::site_of_stack(ctx, (pid_tgid, tgid), start, origin, size_bytes);
    trace!(ctx, "block {:x} of {} bytes at site {}", address, size_bytes, site);
    book::allocation(
        LiveKey { tgid, reserved: 0, address },
        LiveBlock {
            size_bytes,
            born_ns: book::now_ns(),
            site,
            function: cookie.function(),
            reserved: 0,
            scale: scale_of_window(call.window),
        },
    );
}
