//! What the BPF unwinder does with a rule, on the host.

use offheap::unwind::process::MappingSet;
use offheap::unwind::store::TableStore;
use tracer_common::abi::*;
use tracer_common::row::*;

/// Registers the kernel keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    pub pc: u64,
    pub sp: u64,
    pub fp: u64,
}

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Caller(Registers),
    End(StackEnd),
    FramePointer,
    Unsupported,
}

/// Follows one rule. `memory` gives the word at an address.
pub fn follow(
    rule: Rule,
    escape: Option<EscapeRule>,
    registers: Registers,
    memory: impl Fn(u64) -> Result<u64, StackEnd>,
) -> Result<Outcome, StackEnd> {
    let Registers { pc, sp, fp } = registers;
    let (field, slot) = (u64::from(cfa_field(rule)), u64::from(slot(rule)));
    let saved_fp = |cfa: u64| if slot == 0 { Ok(fp) } else { memory(cfa.wrapping_sub(slot * 8)) };
    let (cfa, caller_fp) = match kind(rule) {
        KIND_FRAME_POINTER => return Ok(Outcome::FramePointer),
        KIND_END if cfa_field(rule) == END_GO_BOUNDARY => return Ok(Outcome::End(StackEnd::GoBoundary)),
        KIND_END => return Ok(Outcome::End(StackEnd::ThreadStart)),
        KIND_SP => (sp + field * 8, saved_fp(sp + field * 8)?),
        KIND_FP => (fp.wrapping_add(field * 8), saved_fp(fp.wrapping_add(field * 8))?),
        KIND_PLT => (sp + if pc & 15 >= field { 16 } else { 8 }, fp),
        KIND_TRAMPOLINE => (sp + 16, fp),
        KIND_SIGNAL => {
            let (pc, sp, fp) = (memory(sp + 168)?, memory(sp + 160)?, memory(sp + 120)?);
            return Ok(Outcome::Caller(Registers { pc, sp, fp }));
        }
        _ => {
            let Some(escape) = escape else { return Ok(Outcome::Unsupported) };
            let places = escape.cfa_offset.cast_unsigned();
            let address = match escape.cfa_base & ESCAPE_BASE_MASK {
                ESCAPE_BASE_STACK_POINTER => sp.wrapping_add_signed(escape.cfa_offset.into()),
                ESCAPE_BASE_FRAME_POINTER => fp.wrapping_add_signed(escape.cfa_offset.into()),
                _ => {
                    let goroutine = memory(sp + u64::from(places & 0xffff))?;
                    memory(goroutine + 8)?.wrapping_sub(memory(sp + u64::from(places >> 16))?)
                }
            };
            let cfa = if escape.cfa_base & ESCAPE_DEREFERENCE == 0 { address } else { memory(address)? };
            let cfa = cfa.wrapping_add(u64::from(escape.cfa_base >> ESCAPE_ADDED_SHIFT));
            let caller_fp = match escape.fp_rule {
                ESCAPE_FP_SAME => fp,
                ESCAPE_FP_AT_CFA if cfa % 8 == 0 => memory(cfa.wrapping_add_signed(escape.fp_offset.into()))?,
                ESCAPE_FP_AT_CFA => return Err(StackEnd::BadFrame),
                _ => memory(fp.wrapping_add_signed(escape.fp_offset.into()))?,
            };
            (cfa, caller_fp)
        }
    };
    if cfa % 8 != 0 {
        return Err(StackEnd::BadFrame);
    }
    Ok(Outcome::Caller(Registers { pc: memory(cfa.wrapping_sub(8))?, sp: cfa, fp: caller_fp }))
}

/// Walks a stack as the BPF unwinder does. Also says how many signal frames were on it.
pub fn walk(
    store: &TableStore<String>,
    set: &MappingSet,
    mut registers: Registers,
    stack: &[u8],
    stack_start: u64,
) -> (Vec<u64>, StackEnd, usize) {
    let memory = |address: u64| {
        let offset = address.checked_sub(stack_start).ok_or(StackEnd::ReadFault)? as usize;
        let word = stack.get(offset..offset + 8).ok_or(StackEnd::ReadFault)?;
        Ok(u64::from_le_bytes(word.try_into().unwrap()))
    };
    let (mut frames, mut signals, mut is_leaf) = (Vec::new(), 0, true);
    let end = loop {
        if registers.pc == 0 {
            break StackEnd::NullReturn;
        }
        if frames.len() == MAX_FRAMES {
            break StackEnd::Truncated;
        }
        frames.push(registers.pc);
        let lookup_pc = if is_leaf { registers.pc } else { registers.pc - 1 };
        let Some(mapping) = set.find(lookup_pc) else { break StackEnd::NoMapping };
        let rule = match mapping.kind {
            MAPPING_FILE => store.lookup(mapping.page_base, lookup_pc.wrapping_sub(mapping.bias)),
            _ => rule(KIND_FRAME_POINTER, 0, 0),
        };
        is_leaf = kind(rule) == KIND_SIGNAL;
        signals += usize::from(is_leaf);
        let seen = Registers { pc: lookup_pc, ..registers };
        let caller = match follow(rule, store.escape(rule), seen, memory) {
            Ok(Outcome::Caller(caller)) => caller,
            Ok(Outcome::End(end)) => break end,
            Ok(Outcome::Unsupported) => break StackEnd::UnsupportedRule,
            Ok(Outcome::FramePointer) if registers.fp == 0 => break StackEnd::FramePointerZero,
            Ok(Outcome::FramePointer) => match (memory(registers.fp), memory(registers.fp + 8)) {
                (Ok(fp), Ok(pc)) => Registers { pc, sp: registers.fp + 16, fp },
                _ => break StackEnd::ReadFault,
            },
            Err(end) => break end,
        };
        let is_other = store.escape(rule).is_some_and(|escape| escape.cfa_base & ESCAPE_OTHER_STACK != 0);
        let is_other = is_other && kind(rule) == KIND_ESCAPE;
        if !is_leaf && !is_other && caller.sp <= registers.sp {
            break StackEnd::BadFrame;
        }
        registers = caller;
    };
    (frames, end, signals)
}
