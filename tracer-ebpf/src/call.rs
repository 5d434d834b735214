//! Allocating functions: entry and return.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_get_attach_cookie, bpf_probe_read_user},
    programs::{ProbeContext, RetProbeContext},
};
use aya_log_ebpf::{debug, trace};
use core::ffi::c_void;
use tracer_common::{
    abi::{CallInFlight, LENS_MALLOC, LiveBlock, LiveKey, Loss},
    cookie::{Cookie, SHAPE_ALIGNED_OUT, SHAPE_ALLOCATE_ARRAY, SHAPE_RESIZE, SHAPE_RESIZE_ARRAY},
    outcome,
};

use crate::{
    book,
    intern::{self, Origin},
    map::{CALLS, SETTINGS},
    task::{self, Registers},
};

const EMPTY: CallInFlight = CallInFlight {
    entry_sp: 0,
    cookie: 0,
    size_bytes: 0,
    pointer: 0,
    aside: LiveBlock { size_bytes: 0, born_ns: 0, site: 0, function: 0, reserved: [0; 3] },
    active: 0,
    has_aside: 0,
};

/// Remembers the call; for a resize, sets the old block aside.
#[inline(always)]
pub fn enter(ctx: &ProbeContext) {
    let regs = Registers::new(ctx.regs);
    // SAFETY: `ctx` is the context the kernel passed.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    let pid_tgid = task::pid_tgid();
    let tgid = task::tgid_of(pid_tgid);
    let entry_sp = regs.sp().wrapping_add(cookie.pushed_bytes());
    let call = match CALLS.get_ptr_mut(pid_tgid) {
        Some(call) => call,
        None => {
            if CALLS.insert(pid_tgid, EMPTY, u64::from(BPF_NOEXIST)).is_err() {
                return book::tally(Loss::InFlightFull, 0);
            }
            let Some(call) = CALLS.get_ptr_mut(pid_tgid) else { return };
            call
        }
    };
    // SAFETY: a map value that only this thread's programs touch.
    let call = unsafe { &mut *call };
    if call.active != 0 {
        if outcome::is_nested(call.entry_sp, entry_sp) {
            return book::tally(Loss::NestedCall, 0);
        }
        if call.entry_sp != entry_sp {
            debug!(ctx, "call at {:x} was abandoned, new call at {:x}", call.entry_sp, entry_sp);
            book::tally(Loss::AbandonedCall, 0);
        }
        if call.has_aside != 0 {
            book::restore(LiveKey { tgid, reserved: 0, address: call.pointer }, call.aside);
        }
    }
    let shape = cookie.shape();
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
    if shape == SHAPE_ALIGNED_OUT {
        call.pointer = regs.argument(cookie.pointer_argument());
    } else if shape == SHAPE_RESIZE || shape == SHAPE_RESIZE_ARRAY {
        let old = regs.argument(cookie.pointer_argument());
        call.pointer = old;
        if old != 0 {
            match book::take(LiveKey { tgid, reserved: 0, address: old }) {
                Some(block) => {
                    call.aside = block;
                    call.has_aside = 1;
                }
                None => book::tally(Loss::UnknownRelease, 0),
            }
        }
    }
    call.active = 1;
}

/// Books what the outermost call of the thread has done.
#[inline(always)]
pub fn leave(ctx: &RetProbeContext) {
    let regs = Registers::new(ctx.regs);
    let pid_tgid = task::pid_tgid();
    let tgid = task::tgid_of(pid_tgid);
    let Some(call) = CALLS.get_ptr_mut(pid_tgid) else {
        return book::tally(Loss::UnmatchedReturn, 0);
    };
    // SAFETY: a map value that only this thread's programs touch.
    let call = unsafe { &mut *call };
    if !outcome::is_return_of(call.entry_sp, regs.sp()) {
        if call.active == 0 {
            book::tally(Loss::UnmatchedReturn, 0);
        }
        return; // the return of a nested call
    }
    if call.active == 0 {
        return; // a function that was left by a jump into another one: both return at once
    }
    call.active = 0;
    let cookie = Cookie(call.cookie);
    let size_bytes = call.size_bytes;
    let mut address = regs.result();
    if cookie.shape() == SHAPE_ALIGNED_OUT {
        let mut result = 0u64;
        if outcome::reads_result(SHAPE_ALIGNED_OUT, address) {
            // SAFETY: the destination is a local of 8 bytes.
            let status =
                unsafe { bpf_probe_read_user((&raw mut result).cast(), 8, call.pointer as *const c_void) };
            if status != 0 {
                return book::tally(Loss::ResultReadFault, size_bytes);
            }
        }
        address = result;
    }
    if call.has_aside != 0 {
        call.has_aside = 0;
        match outcome::aside(cookie.shape(), size_bytes, address) {
            outcome::Aside::Restore => {
                book::restore(LiveKey { tgid, reserved: 0, address: call.pointer }, call.aside);
            }
            _ => book::freed(&call.aside),
        }
    }
    if address == 0 {
        return book::tally(Loss::FailedAllocation, 0);
    }
    if size_bytes == outcome::OVERFLOW {
        return book::tally(Loss::SizeOverflow, 0);
    }
    let settings = SETTINGS.load();
    if size_bytes < settings.min_size_bytes || size_bytes > settings.max_size_bytes {
        return book::tally(Loss::FilteredSize, size_bytes);
    }
    let site = intern::site_of_stack(
        ctx,
        pid_tgid,
        regs.start(),
        Origin { lens: LENS_MALLOC, origin: cookie.allocator(), call_sp: 0 },
        size_bytes,
    );
    trace!(ctx, "block {:x} of {} bytes at site {}", address, size_bytes, site);
    book::allocation(
        LiveKey { tgid, reserved: 0, address },
        LiveBlock {
            size_bytes,
            born_ns: book::now_ns(),
            site,
            function: cookie.function(),
            reserved: [0; 3],
        },
    );
}
