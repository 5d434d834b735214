//! The 4-byte unwind row: how to get from one frame to its caller, for one range of code.
//!
//! ```text
//! bit 31        22 21   19 18            6 5      0
//!     pc_low (10)  kind(3) cfa / 8 (13)    slot (6)
//! ```
//!
//! `pc_low` is the first address of the range within its 1 KiB page; the range ends where the next row
//! begins. `slot` = k: the caller's frame pointer was saved at CFA - 8k; 0: unchanged. The return
//! address is at CFA - 8.
//!
//! On aarch64 frame pointer and return address are saved side by side: `slot` = k: at CFA - 8k and the word behind it;
//! [`SLOT_AT_BASE`]: at the register that the CFA is counted from; 0: neither is saved, the return address is in the link
//! register. KIND_PLT and KIND_TRAMPOLINE do not occur there, and a frame-pointer step goes to the record at the frame
//! pointer, wherever that lies in its frame.
//!
//! Worked example: at page offset 0x40, CFA = rsp + 16, rbp saved at CFA - 16:
//! `0x40 << 22 | RSP << 19 | 2 << 6 | 2` = `0x1008_0082`.

/// A rule: a row without its address, in the low 22 bits.
pub type Rule = u32;

/// Bits of a rule.
pub const RULE_MASK: u32 = 0x003f_ffff;
/// Largest CFA offset a rule can hold, in bytes.
pub const MAX_CFA_BYTES: i64 = 0x1fff * 8;
/// Largest slot.
pub const MAX_SLOT: i64 = 63;
/// Slot on aarch64: at the lower end of the frame, where the register points to that the CFA is counted from.
pub const SLOT_AT_BASE: u32 = 63;

/// Frame-pointer step: CFA = rbp + 16, rbp and return address below it. For code without an FDE.
pub const KIND_FRAME_POINTER: u32 = 0;
/// CFA = rsp + n.
pub const KIND_SP: u32 = 1;
/// CFA = rbp + n.
pub const KIND_FP: u32 = 2;
/// Procedure linkage table: CFA = rsp + 8, plus 8 from byte `n/8` of each 16-byte entry on.
pub const KIND_PLT: u32 = 3;
/// The stack ends here. The cfa field says how: 0, the return address is undefined (root of the thread);
/// [`END_GO_BOUNDARY`].
pub const KIND_END: u32 = 4;
/// Signal frame: the registers are in the `rt_sigframe`.
pub const KIND_SIGNAL: u32 = 5;
/// Index of an [`crate::abi::EscapeRule`] in the cfa field; [`ESCAPE_UNSUPPORTED`] for none.
pub const KIND_ESCAPE: u32 = 6;
/// CPython perf trampoline: CFA = rsp + 16.
pub const KIND_TRAMPOLINE: u32 = 7;

/// In the cfa field of [`KIND_END`]: the stack ends where the Go runtime changed stacks.
pub const END_GO_BOUNDARY: u32 = 1;

/// Escape index of a rule that cannot be followed.
pub const ESCAPE_UNSUPPORTED: u32 = 0x1fff;
/// Escape rules there can be.
pub const MAX_ESCAPES: u32 = ESCAPE_UNSUPPORTED;

/// Builds a rule. `cfa_eighths` and `slot` are masked to their fields.
pub const fn rule(kind: u32, cfa_eighths: u32, slot: u32) -> Rule {
    ((kind & 7) << 19) | ((cfa_eighths & 0x1fff) << 6) | (slot & 63)
}

/// Kind of a rule.
#[inline(always)]
pub const fn kind(rule: Rule) -> u32 {
    (rule >> 19) & 7
}

/// The cfa field: eighths of the offset, or an index, or a threshold.
#[inline(always)]
pub const fn cfa_field(rule: Rule) -> u32 {
    (rule >> 6) & 0x1fff
}

/// The slot field.
#[inline(always)]
pub const fn slot(rule: Rule) -> u32 {
    rule & 63
}

/// Puts a rule at an offset within its page.
pub const fn at(page_offset: u32, rule: Rule) -> u32 {
    ((page_offset & 0x3ff) << 22) | (rule & RULE_MASK)
}

/// Offset of a row within its page.
#[inline(always)]
pub const fn page_offset(row: u32) -> u32 {
    row >> 22
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_example_holds() {
        let row = at(0x40, rule(KIND_SP, 2, 2));
        assert_eq!(row, 0x1008_0082);
        assert_eq!((page_offset(row), kind(row), cfa_field(row), slot(row)), (0x40, KIND_SP, 2, 2));
    }

    #[test]
    fn fields_do_not_spill() {
        let row = at(0x3ff, rule(KIND_TRAMPOLINE, 0x1fff, 63));
        assert_eq!(row, u32::MAX);
        assert_eq!((page_offset(row), kind(row), cfa_field(row), slot(row)), (0x3ff, 7, 0x1fff, 63));
    }
}
