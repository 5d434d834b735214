//! From a frame to its caller on x86-64.

use tracer_common::{
    abi::{FRAME_INTERRUPTED, MAX_FRAMES, StackEnd},
    row,
};

use crate::{
    escape::escape,
    scratch::Slot,
    walk::{cached_rule, frame_pointer, load_frame_pointer, mix, read_stack},
};

/// Stores the current frame; afterwards `state` is that of its caller.
#[inline(always)]
pub fn step(state: &mut Slot, tgid: u32) -> Result<(), StackEnd> {
    let pc = state.pc;
    let count = state.event.frame_count as usize;
    let (stored, looked_up) =
        if state.leaf != 0 { (pc | FRAME_INTERRUPTED, pc) } else { (pc, pc.wrapping_sub(1)) };
    // SAFETY: the mask keeps the index below MAX_FRAMES.
    unsafe { *state.event.frames.as_mut_ptr().add(count & (MAX_FRAMES - 1)) = stored };
    state.event.frame_count = count as u32 + 1;
    state.hash = mix(state.hash, stored);
    state.leaf = 0;

    let rule = cached_rule(state, tgid, looked_up)?;
    let kind = row::kind(rule);
    let sp = state.sp;
    let (mut fp_at, mut floor) = (0, sp);
    let cfa = match kind {
        row::KIND_SP | row::KIND_FP => {
            let base = if kind == row::KIND_SP { sp } else { frame_pointer(state) };
            let cfa = base.wrapping_add(u64::from(row::cfa_field(rule)) * 8);
            if row::slot(rule) != 0 {
                fp_at = cfa.wrapping_sub(u64::from(row::slot(rule)) * 8);
            }
            cfa
        }
        row::KIND_FRAME_POINTER => {
            let fp = frame_pointer(state);
            if fp == 0 {
                return Err(StackEnd::FramePointerZero);
            }
            fp_at = fp;
            fp.wrapping_add(16)
        }
        row::KIND_TRAMPOLINE => sp.wrapping_add(16),
        row::KIND_END => {
            return Err(match row::cfa_field(rule) {
                row::END_GO_BOUNDARY => StackEnd::GoBoundary,
                _ => StackEnd::ThreadStart,
            });
        }
        row::KIND_PLT => {
            let pushed = (looked_up & 15) >= u64::from(row::cfa_field(rule));
            sp.wrapping_add(8 + 8 * u64::from(pushed))
        }
        row::KIND_SIGNAL => return step_signal(state),
        _ => {
            let escaped = escape(state, row::cfa_field(rule))?;
            fp_at = escaped.fp_at;
            if escaped.is_other_stack {
                floor = 0;
            }
            escaped.cfa
        }
    };
    // The stack grows down, so a caller's frame lies above. A function that has not pushed anything has
    // its CFA right above the return address, never at or below sp. Another stack lies anywhere; the number
    // of frames bounds the walk.
    if cfa <= floor || cfa & 7 != 0 {
        return Err(StackEnd::BadFrame);
    }
    state.fault = 0;
    // The lower address first: one window then serves both.
    if fp_at != 0 {
        load_frame_pointer(state, fp_at);
    }
    state.pc = read_stack(state, cfa.wrapping_sub(8));
    if state.fault != 0 {
        return Err(StackEnd::ReadFault);
    }
    if state.pc == 0 {
        return Err(StackEnd::NullReturn);
    }
    state.sp = cfa;
    Ok(())
}

/// The kernel's `rt_sigframe`: at the return into `__restore_rt`, sp points at the `ucontext`, whose
/// registers begin at 40 (r8 … rdi rsi rbp rbx rdx rax rcx rsp rip, 8 bytes each).
#[inline(always)]
fn step_signal(state: &mut Slot) -> Result<(), StackEnd> {
    let registers = state.sp.wrapping_add(40);
    state.fault = 0;
    load_frame_pointer(state, registers.wrapping_add(8 * 10));
    let sp = read_stack(state, registers.wrapping_add(8 * 15));
    let pc = read_stack(state, registers.wrapping_add(8 * 16));
    if state.fault != 0 {
        return Err(StackEnd::ReadFault);
    }
    if pc == 0 {
        return Err(StackEnd::NullReturn);
    }
    // May lie below: a handler on an alternate stack. The number of frames bounds the walk.
    state.sp = sp;
    state.pc = pc;
    state.leaf = 1;
    Ok(())
}
