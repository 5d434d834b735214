//! Follows the rules of Go's functions in memory that was captured, for the reference walk.

use tracer_common::abi::{
    ESCAPE_ADDED_SHIFT, ESCAPE_BASE_FRAME_POINTER, ESCAPE_BASE_GO_SWITCH, ESCAPE_BASE_MASK,
    ESCAPE_DEREFERENCE, ESCAPE_FP_SAME, ESCAPE_OTHER_STACK, EscapeRule, StackEnd,
};
use tracer_common::row::{END_GO_BOUNDARY, KIND_END, KIND_SP, cfa_field, kind, slot};

use super::super::rule::Expressed;

/// Where the caller's frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct CallerFrame {
    pub(in super::super) cfa: u64,
    /// Where its frame pointer is saved; `None`: it is unchanged.
    pub(in super::super) fp_at: Option<u64>,
    /// Whether it may lie below.
    pub(in super::super) is_other_stack: bool,
}

/// Whether the caller's frame is on another stack.
pub(in super::super) fn leaves_stack(rule: &Expressed) -> bool {
    matches!(rule, Expressed::Escape(escape) if escape.cfa_base & ESCAPE_OTHER_STACK != 0)
}

/// Follows one rule. `memory` gives the word at an address.
pub(in super::super) fn follow(
    rule: &Expressed,
    sp: u64,
    fp: Option<u64>,
    memory: impl Fn(u64) -> Result<u64, StackEnd>,
) -> Result<CallerFrame, StackEnd> {
    match *rule {
        Expressed::Rule(rule) if kind(rule) == KIND_END => Err(match cfa_field(rule) {
            END_GO_BOUNDARY => StackEnd::GoBoundary,
            _ => StackEnd::ThreadStart,
        }),
        Expressed::Rule(rule) if kind(rule) == KIND_SP => {
            let cfa = sp.wrapping_add(u64::from(cfa_field(rule)) * 8);
            let fp_at = (slot(rule) != 0).then(|| cfa.wrapping_sub(u64::from(slot(rule)) * 8));
            Ok(CallerFrame { cfa, fp_at, is_other_stack: false })
        }
        Expressed::Escape(escape) => follow_escape(escape, sp, fp, memory),
        Expressed::Rule(_) | Expressed::Unsupported => Err(StackEnd::UnsupportedRule),
    }
}

fn follow_escape(
    escape: EscapeRule,
    sp: u64,
    fp: Option<u64>,
    memory: impl Fn(u64) -> Result<u64, StackEnd>,
) -> Result<CallerFrame, StackEnd> {
    let places = escape.cfa_offset.cast_unsigned();
    let mut cfa = match escape.cfa_base & ESCAPE_BASE_MASK {
        ESCAPE_BASE_GO_SWITCH => {
            let goroutine = memory(sp.wrapping_add(u64::from(places & 0xffff)))?;
            let depth = memory(sp.wrapping_add(u64::from(places >> 16)))?;
            memory(goroutine.wrapping_add(8))?.wrapping_sub(depth)
        }
        ESCAPE_BASE_FRAME_POINTER => {
            fp.ok_or(StackEnd::BadFrame)?.wrapping_add_signed(escape.cfa_offset.into())
        }
        _ => sp.wrapping_add_signed(escape.cfa_offset.into()),
    };
    if escape.cfa_base & ESCAPE_DEREFERENCE != 0 {
        cfa = memory(cfa)?;
    }
    cfa = cfa.wrapping_add(u64::from(escape.cfa_base >> ESCAPE_ADDED_SHIFT));
    if cfa == 0 || cfa % 8 != 0 {
        return Err(StackEnd::BadFrame);
    }
    let fp_at = (escape.fp_rule != ESCAPE_FP_SAME).then(|| cfa.wrapping_add_signed(escape.fp_offset.into()));
    Ok(CallerFrame { cfa, fp_at, is_other_stack: escape.cfa_base & ESCAPE_OTHER_STACK != 0 })
}
