//! From a row of call frame information to the rule the kernel follows.

mod aarch64;

use gimli::{CfaRule, Reader, Register, RegisterRule, UnwindExpression, X86_64};
use tracer_common::abi::{
    ESCAPE_BASE_FRAME_POINTER, ESCAPE_BASE_STACK_POINTER, ESCAPE_DEREFERENCE, ESCAPE_FP_AT_CFA,
    ESCAPE_FP_AT_FP, ESCAPE_FP_SAME, EscapeRule,
};
use tracer_common::row::{
    KIND_END, KIND_FP, KIND_PLT, KIND_SIGNAL, KIND_SP, MAX_CFA_BYTES, MAX_SLOT, Rule, rule,
};

use super::cfi::{FrameTraits, Row, Slice};
use crate::model::Machine;

/// Longest expression that is looked at, in bytes.
const MAX_EXPRESSION_BYTES: usize = 64;

const OP_DEREF: u8 = 0x06;
const OP_LIT0: u8 = 0x30;
const OP_BREG0: u8 = 0x70;
/// `DW_OP_breg7 8; breg16 0; lit15; and;` then the threshold.
const PLT_HEAD: [u8; 6] = [0x77, 8, 0x80, 0, 0x3f, 0x1a];
/// `ge; lit3; shl; plus`.
const PLT_TAIL: [u8; 4] = [0x2a, 0x33, 0x24, 0x22];

/// Offsets from rsp, in bytes, at which a signal frame holds the interrupted registers: `rt_sigframe`
/// without its return address is a `ucontext`, whose registers begin at 40. Part of the kernel's ABI.
const SIGNAL_RBP: i64 = 120;
const SIGNAL_RIP: i64 = 168;

/// How one row is expressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expressed {
    /// In the 22 bits of a rule.
    Rule(Rule),
    /// By an entry of the escape table.
    Escape(EscapeRule),
    /// Not at all.
    Unsupported,
}

/// Where the CFA is.
#[derive(Clone, Copy)]
struct Cfa {
    base: Register,
    offset: i64,
    is_dereferenced: bool,
}

/// Where the caller's frame pointer is.
#[derive(Clone, Copy)]
enum SavedFp {
    Unchanged,
    AtCfa(i64),
    AtFp(i64),
}

/// Expresses a row. `section` is what the row's expressions lie in.
pub(super) fn express(machine: Machine, traits: FrameTraits, row: &Row, section: &[u8]) -> Expressed {
    match machine {
        Machine::X86_64 => expressible(traits, row, section),
        Machine::Aarch64 => aarch64::expressible(traits, row),
    }
    .unwrap_or(Expressed::Unsupported)
}

fn expressible(traits: FrameTraits, row: &Row, section: &[u8]) -> Option<Expressed> {
    if traits.return_address != X86_64::RA {
        return None;
    }
    let return_address = row.register(X86_64::RA)?;
    if return_address == RegisterRule::Undefined {
        return Some(Expressed::Rule(rule(KIND_END, 0, 0)));
    }
    let saved_fp = row.register(X86_64::RBP);
    if traits.is_signal {
        let is_saved_at = |rule: Option<RegisterRule<usize>>, offset| match rule {
            Some(RegisterRule::Expression(at)) => based(bytes_of(at, section)) == Some((X86_64::RSP, offset)),
            _ => false,
        };
        let is_kernel_frame =
            is_saved_at(Some(return_address), SIGNAL_RIP) && is_saved_at(saved_fp, SIGNAL_RBP);
        return is_kernel_frame.then_some(Expressed::Rule(rule(KIND_SIGNAL, 0, 0)));
    }
    if return_address != RegisterRule::Offset(-8) {
        return None;
    }
    let saved_fp = match saved_fp {
        None | Some(RegisterRule::SameValue) => SavedFp::Unchanged,
        Some(RegisterRule::Offset(offset)) => SavedFp::AtCfa(offset),
        Some(RegisterRule::Expression(at)) => match based(bytes_of(at, section))? {
            (X86_64::RBP, offset) => SavedFp::AtFp(offset),
            _ => return None,
        },
        Some(_) => return None,
    };
    let cfa = match *row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            Cfa { base: register, offset, is_dereferenced: false }
        }
        CfaRule::Expression(expression) => {
            let bytes = bytes_of(expression, section)?;
            if let (Some(threshold), SavedFp::Unchanged) = (plt_threshold(bytes), saved_fp) {
                return Some(Expressed::Rule(rule(KIND_PLT, threshold, 0)));
            }
            let (bytes, is_dereferenced) = match bytes.strip_suffix(&[OP_DEREF]) {
                Some(address) => (address, true),
                None => (bytes, false),
            };
            let (base, offset) = based(Some(bytes))?;
            Cfa { base, offset, is_dereferenced }
        }
    };
    packed(cfa, saved_fp).map(Expressed::Rule).or_else(|| escape(cfa, saved_fp).map(Expressed::Escape))
}

/// The rule, if all of it fits into its fields.
fn packed(cfa: Cfa, saved_fp: SavedFp) -> Option<Rule> {
    let kind = match cfa.base {
        X86_64::RSP => KIND_SP,
        X86_64::RBP => KIND_FP,
        _ => return None,
    };
    let slot = match saved_fp {
        SavedFp::Unchanged => 0,
        SavedFp::AtCfa(offset) if (-8 * MAX_SLOT..=-8).contains(&offset) && offset % 8 == 0 => -offset / 8,
        SavedFp::AtCfa(_) | SavedFp::AtFp(_) => return None,
    };
    let fits = !cfa.is_dereferenced && (0..=MAX_CFA_BYTES).contains(&cfa.offset) && cfa.offset % 8 == 0;
    fits.then(|| rule(kind, (cfa.offset / 8) as u32, slot as u32))
}

fn escape(cfa: Cfa, saved_fp: SavedFp) -> Option<EscapeRule> {
    let base = match cfa.base {
        X86_64::RSP => ESCAPE_BASE_STACK_POINTER,
        X86_64::RBP => ESCAPE_BASE_FRAME_POINTER,
        _ => return None,
    };
    let (fp_rule, fp_offset) = match saved_fp {
        SavedFp::Unchanged => (ESCAPE_FP_SAME, 0),
        SavedFp::AtCfa(offset) => (ESCAPE_FP_AT_CFA, offset),
        SavedFp::AtFp(offset) => (ESCAPE_FP_AT_FP, offset),
    };
    Some(EscapeRule {
        cfa_base: base | if cfa.is_dereferenced { ESCAPE_DEREFERENCE } else { 0 },
        cfa_offset: cfa.offset.try_into().ok()?,
        fp_rule,
        fp_offset: fp_offset.try_into().ok()?,
    })
}

fn bytes_of(expression: UnwindExpression<usize>, section: &[u8]) -> Option<&[u8]> {
    if expression.length > MAX_EXPRESSION_BYTES {
        return None;
    }
    section.get(expression.offset..expression.offset.checked_add(expression.length)?)
}

/// Register and offset of an expression that is one `DW_OP_breg` and nothing else.
fn based(expression: Option<&[u8]>) -> Option<(Register, i64)> {
    let (&operation, operand) = expression?.split_first()?;
    let register = operation.checked_sub(OP_BREG0).filter(|register| *register < 32)?;
    let mut operand = Slice::new(operand, gimli::LittleEndian);
    let offset = operand.read_sleb128().ok()?;
    operand.is_empty().then_some((Register(register.into()), offset))
}

fn plt_threshold(expression: &[u8]) -> Option<u32> {
    match expression.strip_prefix(&PLT_HEAD)?.strip_suffix(&PLT_TAIL)? {
        [literal] => literal.checked_sub(OP_LIT0).filter(|threshold| *threshold < 16).map(u32::from),
        _ => None,
    }
}
