//! The rules of aarch64 (`tracer_common::row` says what the fields mean there).
//!
//! Whether a return address is signed stands in the tables too (the pseudo register `RA_SIGN_STATE`). It need not be known:
//! the kernel's side takes off what stands above the address in any case.

use gimli::{AArch64, CfaRule, Register, RegisterRule};
use tracer_common::abi::{
    ESCAPE_BASE_FRAME_POINTER, ESCAPE_BASE_STACK_POINTER, ESCAPE_FP_AT_CFA, ESCAPE_FP_SAME,
    ESCAPE_LINK_SHIFT, EscapeRule,
};
use tracer_common::row::{KIND_END, KIND_FP, KIND_SIGNAL, KIND_SP, MAX_CFA_BYTES, Rule, SLOT_AT_BASE, rule};

use super::super::cfi::{FrameTraits, Row};
use super::Expressed;

/// Where a register of the caller is, by its distance from the CFA in bytes; `None`: still in the register.
type Saved = Option<i64>;

/// Expresses a row. `None`: nothing can.
pub(super) fn expressible(traits: FrameTraits, row: &Row) -> Option<Expressed> {
    if traits.return_address != AArch64::X30 {
        return None;
    }
    if row.register(AArch64::X30) == Some(RegisterRule::Undefined) {
        return Some(Expressed::Rule(rule(KIND_END, 0, 0)));
    }
    let (link, fp) = (saved(row, AArch64::X30)?, saved(row, AArch64::X29)?);
    let CfaRule::RegisterAndOffset { register, offset } = *row.cfa() else { return None };
    if traits.is_signal {
        // The vDSO's `__kernel_rt_sigreturn`: the frame record that the kernel leaves beside its registers.
        let is_kernel_frame = register == AArch64::X29 && offset == 0 && fp == Some(0) && link == Some(8);
        return is_kernel_frame.then_some(Expressed::Rule(rule(KIND_SIGNAL, 0, 0)));
    }
    packed(register, offset, fp, link)
        .map(Expressed::Rule)
        .or_else(|| escape(register, offset, fp, link).map(Expressed::Escape))
}

fn saved(row: &Row, register: Register) -> Option<Saved> {
    match row.register(register) {
        // Callee-saved registers of which nothing is said are unchanged.
        None | Some(RegisterRule::SameValue) => Some(None),
        Some(RegisterRule::Offset(offset)) => Some(Some(offset)),
        Some(_) => None,
    }
}

/// The rule, if all of it fits into its fields.
fn packed(register: Register, offset: i64, fp: Saved, link: Saved) -> Option<Rule> {
    let kind = match register {
        AArch64::SP => KIND_SP,
        AArch64::X29 => KIND_FP,
        _ => return None,
    };
    let slot = match (fp, link) {
        (None, None) => 0,
        (Some(fp), Some(link)) if link.checked_sub(fp) == Some(8) => match fp {
            fp if fp.checked_neg() == Some(offset) => SLOT_AT_BASE,
            // 63 is taken.
            -496..=-8 if fp % 8 == 0 => (-fp / 8) as u32,
            _ => return None,
        },
        _ => return None,
    };
    let fits = (0..=MAX_CFA_BYTES).contains(&offset) && offset % 8 == 0;
    fits.then(|| rule(kind, (offset / 8) as u32, slot))
}

/// Far offsets, and one of the two registers saved alone or elsewhere.
fn escape(register: Register, offset: i64, fp: Saved, link: Saved) -> Option<EscapeRule> {
    let cfa_base = match register {
        AArch64::SP => ESCAPE_BASE_STACK_POINTER,
        AArch64::X29 => ESCAPE_BASE_FRAME_POINTER,
        _ => return None,
    };
    let (fp_rule, fp_offset) = match fp {
        None => (ESCAPE_FP_SAME, 0),
        Some(offset) => (ESCAPE_FP_AT_CFA, offset.try_into().ok()?),
    };
    let link_eighths = match link {
        None => 0,
        Some(below) if below < 0 && below % 8 == 0 => u16::try_from(below.checked_neg()? / 8).ok()?,
        Some(_) => return None,
    };
    Some(EscapeRule {
        cfa_base,
        cfa_offset: offset.try_into().ok()?,
        fp_rule: fp_rule | u32::from(link_eighths) << ESCAPE_LINK_SHIFT,
        fp_offset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracer_common::row::{cfa_field, kind, slot};

    const SP: Register = AArch64::SP;

    fn fields(register: Register, offset: i64, fp: Saved, link: Saved) -> Option<(u32, u32, u32)> {
        packed(register, offset, fp, link).map(|rule| (kind(rule), cfa_field(rule), slot(rule)))
    }

    #[test]
    fn pairs_and_leaves_are_rows() {
        assert_eq!(fields(SP, 0, None, None), Some((KIND_SP, 0, 0)), "nothing was saved yet");
        assert_eq!(fields(SP, 48, None, None), Some((KIND_SP, 6, 0)), "a leaf with a frame");
        // stp x29, x30, [sp, #-48]!
        assert_eq!(fields(SP, 48, Some(-48), Some(-40)), Some((KIND_SP, 6, SLOT_AT_BASE)));
        // sub sp, sp, #96; stp x29, x30, [sp, #80]
        assert_eq!(fields(SP, 96, Some(-16), Some(-8)), Some((KIND_SP, 12, 2)));
        assert_eq!(fields(AArch64::X29, 16, Some(-16), Some(-8)), Some((KIND_FP, 2, SLOT_AT_BASE)));
        assert_eq!(fields(SP, 4096, Some(-496), Some(-488)), Some((KIND_SP, 512, 62)));
    }

    #[test]
    fn what_does_not_fit_is_an_escape_or_nothing() {
        assert_eq!(fields(SP, 4096, Some(-504), Some(-496)), None, "63 has another meaning");
        let far = escape(SP, 4096, Some(-504), Some(-496));
        let expected = EscapeRule {
            cfa_base: ESCAPE_BASE_STACK_POINTER,
            cfa_offset: 4096,
            fp_rule: ESCAPE_FP_AT_CFA | 62 << ESCAPE_LINK_SHIFT,
            fp_offset: -504,
        };
        assert_eq!(far, Some(expected));
        // str x30, [sp, #-16]!
        assert_eq!(fields(SP, 16, None, Some(-16)), None);
        let alone = escape(SP, 16, None, Some(-16)).map(|rule| (rule.fp_rule, rule.fp_offset));
        assert_eq!(alone, Some((ESCAPE_FP_SAME | 2 << ESCAPE_LINK_SHIFT, 0)));
        assert_eq!(escape(SP, 16, None, Some(-12)), None);
        assert_eq!(escape(SP, 16, None, Some(i64::MIN)), None);
        assert_eq!(escape(AArch64::X9, 16, None, None), None);
    }
}
