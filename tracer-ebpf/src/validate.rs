//! The validate mode: the walked stack beside everything that is needed to walk it again.

use aya_ebpf::{
    helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user},
    programs::RetProbeContext,
};
use core::ffi::c_void;
use tracer_common::abi::{Loss, MAX_FRAMES, VALIDATION_PAGES, Validation};

use crate::{
    book,
    map::VALIDATIONS,
    scratch,
    task::{self, Registers},
    walk,
};

/// Walks the stack at a return, and sends it with registers and raw stack.
#[inline(always)]
pub fn leave(ctx: &RetProbeContext) {
    let regs = Registers::new(ctx.regs);
    let pid_tgid = task::pid_tgid();
    let Some((index, slot)) = scratch::claim(pid_tgid) else { return };
    walk::walk(slot, index, task::tgid_of(pid_tgid), regs.start());
    // A full ring is no loss here: the mode samples what the reader can take.
    if let Some(mut entry) = VALIDATIONS.reserve::<Validation>(0) {
        let out = entry.as_mut_ptr();
        // SAFETY: `out` is the reserved record, `slot` the claimed map value; sizes are those of the fields.
        unsafe {
            (*out).registers = regs.dwarf();
            (*out).tgid = task::tgid_of(pid_tgid);
            (*out).frame_count = (*slot).event.frame_count;
            (*out).end = (*slot).event.end;
            if bpf_probe_read_kernel(
                (&raw mut (*out).frames).cast(),
                (8 * MAX_FRAMES) as u32,
                (&raw const (*slot).event.frames).cast(),
            ) != 0
            {
                book::tally(Loss::NoScratchSlot, 0);
            }
            (*out).stack_bytes = copy_stack(&raw mut (*out).stack, regs.sp());
        }
        entry.submit(0);
    }
    scratch::release(slot);
}

/// Copies the stack from `sp` up, page by page, as far as it goes; returns the bytes copied.
#[inline(always)]
unsafe fn copy_stack(out: *mut [[u8; 4096]; VALIDATION_PAGES], sp: u64) -> u32 {
    let mut copied = 0;
    let mut page = 0;
    while page < VALIDATION_PAGES {
        let from = sp.wrapping_add(page as u64 * 4096);
        // SAFETY: `page` is below the number of pages in `out`.
        let to = unsafe { (&raw mut (*out)[page]).cast::<c_void>() };
        // SAFETY: `to` has 4096 bytes.
        if unsafe { bpf_probe_read_user(to, 4096, from as *const c_void) } != 0 {
            let rest = (4096 - (from & 4095)) as u32 & 4095;
            // SAFETY: `rest` is below 4096.
            if rest != 0 && unsafe { bpf_probe_read_user(to, rest, from as *const c_void) } == 0 {
                copied += rest;
            }
            break;
        }
        copied += 4096;
        page += 1;
    }
    copied
}
