//! Rules that do not fit into a row: realigned frames, far offsets, and Go's changes of stacks.

use tracer_common::{
    abi::{
        ESCAPE_ADDED_SHIFT, ESCAPE_BASE_FRAME_POINTER, ESCAPE_BASE_GO_SWITCH, ESCAPE_BASE_MASK,
        ESCAPE_DEREFERENCE, ESCAPE_FP_AT_CFA, ESCAPE_FP_AT_FP, ESCAPE_OTHER_STACK, StackEnd,
    },
    row,
};

use crate::{
    map::ESCAPES,
    scratch::Slot,
    walk::{frame_pointer, read_stack},
};

/// What an escape rule says of the caller's frame.
pub struct Escaped {
    /// Its CFA.
    pub cfa: u64,
    /// Where its frame pointer is saved; 0: unchanged.
    pub fp_at: u64,
    /// Whether it may lie below.
    pub is_other_stack: bool,
}

/// Follows the escape rule of an index.
#[inline(always)]
pub fn escape(state: &mut Slot, index: u32) -> Result<Escaped, StackEnd> {
    if index == row::ESCAPE_UNSUPPORTED {
        return Err(StackEnd::UnsupportedRule);
    }
    let Some(rule) = ESCAPES.get_ptr(index) else { return Err(StackEnd::UnsupportedRule) };
    // SAFETY: a map value.
    let rule = unsafe { *rule };
    let mut cfa = match rule.cfa_base & ESCAPE_BASE_MASK {
        ESCAPE_BASE_GO_SWITCH => go_switch(state, rule.cfa_offset as u32)?,
        ESCAPE_BASE_FRAME_POINTER => frame_pointer(state).wrapping_add(rule.cfa_offset as i64 as u64),
        _ => state.sp.wrapping_add(rule.cfa_offset as i64 as u64),
    };
    if rule.cfa_base & ESCAPE_DEREFERENCE != 0 {
        state.fault = 0;
        cfa = read_stack(state, cfa);
        if state.fault != 0 {
            return Err(StackEnd::ReadFault);
        }
    }
    cfa = cfa.wrapping_add(u64::from(rule.cfa_base >> ESCAPE_ADDED_SHIFT));
    let fp_at = match rule.fp_rule {
        ESCAPE_FP_AT_CFA => cfa.wrapping_add(rule.fp_offset as i64 as u64),
        ESCAPE_FP_AT_FP => frame_pointer(state).wrapping_add(rule.fp_offset as i64 as u64),
        _ => 0,
    };
    Ok(Escaped { cfa, fp_at, is_other_stack: rule.cfa_base & ESCAPE_OTHER_STACK != 0 })
}

/// The stack pointer of a goroutine that is in a C call. What is saved is how deep its stack was, since the
/// stack may have moved meanwhile.
#[inline(always)]
fn go_switch(state: &mut Slot, places: u32) -> Result<u64, StackEnd> {
    state.fault = 0;
    let goroutine = read_stack(state, state.sp.wrapping_add(u64::from(places & 0xffff)));
    let depth = read_stack(state, state.sp.wrapping_add(u64::from(places >> 16)));
    let high = read_stack(state, goroutine.wrapping_add(8));
    if state.fault != 0 {
        return Err(StackEnd::ReadFault);
    }
    Ok(high.wrapping_sub(depth))
}
