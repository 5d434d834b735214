//! From a frame to its caller on aarch64.
//!
//! A function that calls others saves the caller's frame pointer and its own return address side by side, mostly where its
//! frame pointer points to then; one that calls none keeps the return address in the link register.

use tracer_common::{
    abi::{
        ESCAPE_BASE_FRAME_POINTER, ESCAPE_BASE_MASK, ESCAPE_FP_AT_CFA, ESCAPE_FP_MASK, ESCAPE_LINK_SHIFT,
        FRAME_INTERRUPTED, MAX_FRAMES, StackEnd,
    },
    row,
};

use super::strip;
use crate::{
    map::ESCAPES,
    scratch::Slot,
    walk::{cached_rule, mix, read_stack},
};

/// Stack pointer of a frame that was reached by its frame pointer: it is not known.
const UNKNOWN_SP: u64 = 0;

/// Offsets of registers in a signal frame, from the stack pointer at the handler's return: behind `siginfo` (128 bytes), the
/// head of `ucontext` (176) and the fault address (`rt_sigframe` in arch/arm64/kernel/signal.c, part of the ABI).
const SIGNAL_REGISTERS: u64 = 312;
const SIGNAL_FP: u64 = SIGNAL_REGISTERS + 8 * 29;
const SIGNAL_LINK: u64 = SIGNAL_REGISTERS + 8 * 30;
const SIGNAL_SP: u64 = SIGNAL_REGISTERS + 8 * 31;
const SIGNAL_PC: u64 = SIGNAL_REGISTERS + 8 * 32;

/// Where a rule says that a caller's registers are.
struct Places {
    cfa: u64,
    /// Its frame pointer; 0: unchanged.
    fp_at: u64,
    /// The return address; 0: in the link register.
    link_at: u64,
}

/// Stores the current frame; afterwards `state` is that of its caller. (The beginning is that of x86-64. In a function of its
/// own it would change the code that LLVM makes there.)
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
    let link = state.link;
    state.link = 0;
    let sp = state.sp;
    let places = match row::kind(rule) {
        row::KIND_SP | row::KIND_FP => by_row(state, rule)?,
        row::KIND_FRAME_POINTER => {
            let record = state.fp;
            if record == 0 {
                return Err(StackEnd::FramePointerZero);
            }
            // Records lie above each other; nothing tells how far the frame reaches above its record.
            if record < sp || record & 7 != 0 {
                return Err(StackEnd::BadFrame);
            }
            state.fault = 0;
            let fp = read_stack(state, record);
            let pc = strip(read_stack(state, record.wrapping_add(8)));
            if state.fault != 0 {
                return Err(StackEnd::ReadFault);
            }
            if pc == 0 {
                return Err(StackEnd::NullReturn);
            }
            if fp != 0 && fp <= record {
                return Err(StackEnd::BadFrame);
            }
            state.fp = fp;
            state.pc = pc;
            state.sp = UNKNOWN_SP;
            return Ok(());
        }
        row::KIND_END => return Err(StackEnd::ThreadStart),
        row::KIND_SIGNAL => return step_signal(state),
        row::KIND_ESCAPE => by_escape(state, row::cfa_field(rule))?,
        _ => return Err(StackEnd::UnsupportedRule),
    };
    let Places { cfa, fp_at, link_at } = places;
    // The stack grows down. A function without a frame has its caller's stack pointer; that there is only one of these in
    // a row is seen to by the link register.
    if cfa < sp || cfa & 7 != 0 || (link_at == 0 && link == 0) {
        return Err(StackEnd::BadFrame);
    }
    if cfa == sp && link_at != 0 {
        return Err(StackEnd::BadFrame);
    }
    state.fault = 0;
    if fp_at != 0 {
        state.fp = read_stack(state, fp_at);
    }
    let pc = if link_at == 0 { link } else { strip(read_stack(state, link_at)) };
    if state.fault != 0 {
        return Err(StackEnd::ReadFault);
    }
    if pc == 0 {
        return Err(StackEnd::NullReturn);
    }
    state.pc = pc;
    state.sp = cfa;
    Ok(())
}

/// A rule that is a row: all saved side by side, or nothing.
#[inline(always)]
fn by_row(state: &Slot, rule: u32) -> Result<Places, StackEnd> {
    let offset = u64::from(row::cfa_field(rule)) * 8;
    let slot = row::slot(rule);
    let is_from_sp = row::kind(rule) == row::KIND_SP;
    if is_from_sp && state.sp == UNKNOWN_SP {
        // Reached by its frame pointer, which is where the two are saved.
        let distance = match slot {
            0 => return Err(StackEnd::BadFrame),
            row::SLOT_AT_BASE => offset,
            slot => u64::from(slot) * 8,
        };
        let pair = state.fp;
        return Ok(Places { cfa: pair.wrapping_add(distance), fp_at: pair, link_at: pair.wrapping_add(8) });
    }
    let base = if is_from_sp { state.sp } else { state.fp };
    let cfa = base.wrapping_add(offset);
    let pair = match slot {
        0 => return Ok(Places { cfa, fp_at: 0, link_at: 0 }),
        row::SLOT_AT_BASE => base,
        slot => cfa.wrapping_sub(u64::from(slot) * 8),
    };
    Ok(Places { cfa, fp_at: pair, link_at: pair.wrapping_add(8) })
}

/// A rule that is none: far offsets, and a return address that is saved alone.
#[inline(always)]
fn by_escape(state: &Slot, index: u32) -> Result<Places, StackEnd> {
    if index == row::ESCAPE_UNSUPPORTED {
        return Err(StackEnd::UnsupportedRule);
    }
    let Some(rule) = ESCAPES.get_ptr(index) else { return Err(StackEnd::UnsupportedRule) };
    // SAFETY: a map value.
    let rule = unsafe { *rule };
    let base = if rule.cfa_base & ESCAPE_BASE_MASK == ESCAPE_BASE_FRAME_POINTER {
        state.fp
    } else if state.sp == UNKNOWN_SP {
        return Err(StackEnd::BadFrame);
    } else {
        state.sp
    };
    let cfa = base.wrapping_add(rule.cfa_offset as i64 as u64);
    let fp_at = match rule.fp_rule & ESCAPE_FP_MASK {
        ESCAPE_FP_AT_CFA => cfa.wrapping_add(rule.fp_offset as i64 as u64),
        _ => 0,
    };
    let link_at = match rule.fp_rule >> ESCAPE_LINK_SHIFT {
        0 => 0,
        eighths => cfa.wrapping_sub(u64::from(eighths) * 8),
    };
    Ok(Places { cfa, fp_at, link_at })
}

/// The kernel's `rt_sigframe`: at the return into the vDSO's `__kernel_rt_sigreturn` sp points at it.
#[inline(always)]
fn step_signal(state: &mut Slot) -> Result<(), StackEnd> {
    let frame = state.sp;
    if frame == UNKNOWN_SP {
        return Err(StackEnd::BadFrame);
    }
    state.fault = 0;
    let fp = read_stack(state, frame.wrapping_add(SIGNAL_FP));
    let link = read_stack(state, frame.wrapping_add(SIGNAL_LINK));
    let sp = read_stack(state, frame.wrapping_add(SIGNAL_SP));
    let pc = read_stack(state, frame.wrapping_add(SIGNAL_PC));
    if state.fault != 0 {
        return Err(StackEnd::ReadFault);
    }
    if pc == 0 {
        return Err(StackEnd::NullReturn);
    }
    state.fp = fp;
    // May lie below: a handler on an alternate stack. The number of frames bounds the walk.
    state.sp = sp;
    state.pc = strip(pc);
    // What was interrupted may not have saved it yet.
    state.link = strip(link);
    state.leaf = 1;
    Ok(())
}
