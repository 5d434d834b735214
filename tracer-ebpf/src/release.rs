//! Releasing functions.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_get_attach_cookie, programs::ProbeContext};
use tracer_common::{abi::LiveKey, cookie::Cookie};

use crate::{
    block, book, in_flight, map,
    task::{self, Registers},
};

/// Books the release of a known block. One that stands in the live map was handed out to the program,
/// so its release counts wherever it is called from, also inside of another allocator call.
#[inline(always)]
pub fn enter(ctx: &ProbeContext) {
    if map::has_stopped() {
        return;
    }
    // SAFETY: `ctx` is the context the kernel passed.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    let address = Registers::new(ctx.regs).argument(cookie.pointer_argument());
    if address == 0 {
        return;
    }
    let pid_tgid = task::pid_tgid();
    match block::take(LiveKey { tgid: task::memory_owner(pid_tgid), reserved: 0, address }) {
        Some(block) => book::released(&block),
        None if map::is_estimate() => {}
        None => {
            // Inside of an allocator call it is the allocator's own block, or one that is set aside.
            // SAFETY: a map value.
            if !in_flight::find(pid_tgid).is_some_and(|call| unsafe { (*call).active } != 0) {
                book::unknown_release();
            }
        }
    }
}
