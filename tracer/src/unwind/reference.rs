//! The full DWARF walk of a captured stack: every register, every expression, as the tables of the files
//! say it. `validate-unwind` holds the kernel's stacks against it.
//!
//! A frame-pointer step is taken only where no FDE exists, and CPython's perf trampolines have their rule. What is
//! known of the places where Go changes stacks has no other source than the code itself: there the two agree by
//! construction, and only the reading of the stack is checked.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use gimli::{
    CfaRule, Encoding, EvaluationResult, Expression, Format, LittleEndian, Location, Register, RegisterRule,
    UnwindExpression, Value, X86_64,
};
use tracer_common::abi::{MAX_FRAMES, StackEnd};

use super::UnwindError;
use super::cfi::{Cfi, Coverage, Source};
use super::elf::{CodeSegments, Elf};
use super::go::{self, Special};
use super::rule::Expressed;
use crate::model::Machine;

/// Registers in DWARF order: rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp, r8 to r15, then the return address
/// column, which holds rip.
pub const REGISTER_COUNT: usize = 17;

const RBP: usize = 6;
const RSP: usize = 7;
const RIP: usize = 16;

/// Operations one expression may take.
const MAX_OPERATIONS: u32 = 1000;
/// Rows kept of one file; when there are more, all are forgotten.
const MAX_CACHED_ROWS: usize = 1 << 18;

/// What lies at an address.
#[derive(Clone, Copy, Debug)]
pub enum Code<'a> {
    /// Code of a file that has call frame information.
    File {
        /// The file's information.
        cfi: &'a FileCfi,
        /// Runtime address minus virtual address, wrapping.
        bias: u64,
    },
    /// Code without call frame information.
    FramePointer,
    /// CPython's perf trampolines.
    Trampoline,
    /// The `[uprobes]` page.
    ReturnProbe,
    /// A file that could not be read.
    NoTable,
    /// Nothing.
    Unmapped,
}

/// The executable mappings of a process.
pub trait CodeMap {
    /// What lies at `pc`.
    fn code_at(&self, pc: u64) -> Code<'_>;
}

/// A walked stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Program counters, innermost first, at most [`MAX_FRAMES`].
    pub frames: Vec<u64>,
    /// Why it ends. [`StackEnd::ReadFault`] means that the captured bytes end there, not that the stack does.
    pub end: StackEnd,
    /// It ends because the caller's frame is on another stack than the one that was captured.
    pub left_stack: bool,
}

/// The call frame information of a file, ready for look-ups by address. Rows are cached.
#[derive(Debug)]
pub struct FileCfi {
    /// `None`: the file has none.
    cfi: Option<Cfi<'static>>,
    coverage: Coverage,
    specials: Vec<Special>,
    segments: CodeSegments,
    rows: RefCell<HashMap<u64, Rc<Step>>>,
}

/// What is to be done at one address.
#[derive(Debug)]
enum Step {
    Uncovered,
    Root,
    Unsupported,
    Special(Expressed),
    Frame(Box<FullRow>),
}

/// One row with the rules of all registers.
#[derive(Debug)]
struct FullRow {
    is_signal: bool,
    cfa: CfaRule<usize>,
    registers: [Option<RegisterRule<usize>>; REGISTER_COUNT],
}

impl FileCfi {
    /// Copies the call frame information out of an ELF file.
    ///
    /// # Errors
    /// As [`super::table::FileTable::from_elf`].
    pub fn from_elf(data: &[u8]) -> Result<Self, UnwindError> {
        // The registers are those of x86-64.
        let elf = Elf::parse(data, Machine::X86_64)?;
        let (cfi, coverage) = match Cfi::locate(&elf)? {
            Some((cfi, coverage)) => (Some(cfi.into_owned()), coverage),
            None => (None, Coverage::default()),
        };
        let specials = go::specials(&elf);
        Ok(Self { cfi, coverage, specials, segments: elf.code, rows: RefCell::default() })
    }

    /// The executable segments, for instance to find the bias of a mapping.
    pub fn segments(&self) -> &CodeSegments {
        &self.segments
    }

    /// Whether the file has no unwind information at all.
    pub fn is_empty(&self) -> bool {
        self.coverage.fde_count == 0 && self.specials.is_empty()
    }

    fn step_at(&self, address: u64) -> Rc<Step> {
        let mut rows = self.rows.borrow_mut();
        if rows.len() >= MAX_CACHED_ROWS {
            rows.clear();
        }
        rows.entry(address).or_insert_with(|| Rc::new(self.find_step(address))).clone()
    }

    fn find_step(&self, address: u64) -> Step {
        if let Some(special) = go::find(&self.specials, address) {
            return Step::Special(special.rule);
        }
        let (Some(cfi), Some(range)) = (&self.cfi, self.coverage.find(address)) else {
            return Step::Uncovered;
        };
        let Source::Fde(offset) = range.source else { return Step::Root };
        let row = cfi.row_at(offset, address, |traits, row| {
            let mut registers = [const { None }; REGISTER_COUNT];
            for (register, rule) in row.registers() {
                if let Some(slot) = registers.get_mut(usize::from(register.0)) {
                    *slot = Some(rule.clone());
                }
            }
            let full = FullRow { is_signal: traits.is_signal, cfa: row.cfa().clone(), registers };
            (traits.return_address == X86_64::RA).then_some(full)
        });
        match row {
            Ok(Some(row)) if row.registers[RIP] == Some(RegisterRule::Undefined) => Step::Root,
            // Without a rule for the return address the frame would be its own caller.
            Ok(Some(row)) if row.registers[RIP].is_some() => Step::Frame(Box::new(row)),
            _ => Step::Unsupported,
        }
    }
}

/// Walks a captured stack.
///
/// `registers` are in DWARF order (see [`REGISTER_COUNT`]); `stack` is what stood in memory from
/// `stack_start` on. With `is_leaf` false the first program counter is a return address, as at a return
/// probe, and is looked up at minus one.
pub fn walk(
    registers: [u64; REGISTER_COUNT],
    stack: &[u8],
    stack_start: u64,
    is_leaf: bool,
    code: &dyn CodeMap,
) -> Walk {
    let memory = Memory { bytes: stack, start: stack_start };
    let mut frames = Vec::new();
    let mut frame = Frame { registers: registers.map(Some), is_leaf };
    let end = loop {
        let pc = match frame.registers[RIP] {
            None => break StackEnd::UnsupportedRule,
            Some(0) => break StackEnd::NullReturn,
            Some(pc) => pc,
        };
        if frames.len() == MAX_FRAMES {
            break StackEnd::Truncated;
        }
        frames.push(pc);
        match frame.caller(pc, &memory, code) {
            Ok(caller) => frame = caller,
            Err(StackEnd::ReadFault) if frame.leaves_stack(pc, code) => {
                return Walk { frames, end: StackEnd::ReadFault, left_stack: true };
            }
            Err(end) => break end,
        }
    };
    Walk { frames, end, left_stack: false }
}

struct Memory<'a> {
    bytes: &'a [u8],
    start: u64,
}

impl Memory<'_> {
    fn word(&self, address: u64) -> Result<u64, StackEnd> {
        let offset = address.checked_sub(self.start).and_then(|offset| usize::try_from(offset).ok());
        offset
            .and_then(|offset| self.bytes.get(offset..)?.first_chunk())
            .map(|word| u64::from_le_bytes(*word))
            .ok_or(StackEnd::ReadFault)
    }
}

struct Frame {
    registers: [Option<u64>; REGISTER_COUNT],
    is_leaf: bool,
}

impl Frame {
    fn caller(&self, pc: u64, memory: &Memory<'_>, code: &dyn CodeMap) -> Result<Self, StackEnd> {
        let lookup_pc = if self.is_leaf { pc } else { pc - 1 };
        match code.code_at(lookup_pc) {
            Code::File { cfi, bias } => match (&*cfi.step_at(lookup_pc.wrapping_sub(bias)), &cfi.cfi) {
                (Step::Frame(row), Some(section)) => self.by_row(row, section.bytes(), memory),
                (Step::Root, _) => Err(StackEnd::ThreadStart),
                (Step::Unsupported, _) => Err(StackEnd::UnsupportedRule),
                (Step::Special(rule), _) => self.by_special(rule, memory),
                (Step::Uncovered | Step::Frame(_), _) => self.by_frame_pointer(memory),
            },
            Code::FramePointer => self.by_frame_pointer(memory),
            Code::Trampoline => {
                let cfa = self.checked_cfa(self.registers[RSP].map(|sp| sp.wrapping_add(16)))?;
                let mut registers = self.registers;
                registers[RIP] = Some(memory.word(cfa.wrapping_sub(8))?);
                registers[RSP] = Some(cfa);
                Ok(Self { registers, is_leaf: false })
            }
            Code::ReturnProbe => Err(StackEnd::ForeignReturnProbe),
            Code::NoTable => Err(StackEnd::NoTable),
            Code::Unmapped => Err(StackEnd::NoMapping),
        }
    }

    fn leaves_stack(&self, pc: u64, code: &dyn CodeMap) -> bool {
        let lookup_pc = if self.is_leaf { pc } else { pc - 1 };
        let Code::File { cfi, bias } = code.code_at(lookup_pc) else { return false };
        matches!(&*cfi.step_at(lookup_pc.wrapping_sub(bias)), Step::Special(rule) if go::leaves_stack(rule))
    }

    /// The rules of [`super::go`].
    fn by_special(&self, special: &Expressed, memory: &Memory<'_>) -> Result<Self, StackEnd> {
        let sp = self.registers[RSP].ok_or(StackEnd::BadFrame)?;
        let fp = self.registers[RBP];
        let frame = go::follow(special, sp, fp, |address| memory.word(address))?;
        let cfa = if frame.is_other_stack { frame.cfa } else { self.checked_cfa(Some(frame.cfa))? };
        // Go's functions keep no register for their callers but the frame pointer.
        let mut registers = [None; REGISTER_COUNT];
        registers[RBP] = match frame.fp_at {
            Some(place) => Some(memory.word(place)?),
            None => fp,
        };
        registers[RIP] = Some(memory.word(cfa.wrapping_sub(8))?);
        registers[RSP] = Some(cfa);
        Ok(Self { registers, is_leaf: false })
    }

    /// Stacks grow downwards, and every frame is aligned.
    fn checked_cfa(&self, cfa: Option<u64>) -> Result<u64, StackEnd> {
        match (cfa, self.registers[RSP]) {
            (Some(cfa), Some(sp)) if cfa > sp && cfa % 8 == 0 => Ok(cfa),
            _ => Err(StackEnd::BadFrame),
        }
    }

    fn by_frame_pointer(&self, memory: &Memory<'_>) -> Result<Self, StackEnd> {
        let fp = self.registers[RBP];
        if fp == Some(0) {
            return Err(StackEnd::FramePointerZero);
        }
        let cfa = self.checked_cfa(fp.map(|fp| fp.wrapping_add(16)))?;
        let mut registers = [None; REGISTER_COUNT];
        registers[RBP] = Some(memory.word(cfa.wrapping_sub(16))?);
        registers[RIP] = Some(memory.word(cfa.wrapping_sub(8))?);
        registers[RSP] = Some(cfa);
        Ok(Self { registers, is_leaf: false })
    }

    fn by_row(&self, row: &FullRow, section: &[u8], memory: &Memory<'_>) -> Result<Self, StackEnd> {
        let evaluate = |expression, initial| self.evaluate(expression, section, memory, initial);
        let cfa = match row.cfa {
            CfaRule::RegisterAndOffset { register, offset } => {
                self.register(register).map(|value| value.wrapping_add_signed(offset))
            }
            CfaRule::Expression(expression) => Some(evaluate(expression, None)?),
        };
        // A signal handler may run on a stack of its own.
        let cfa = if row.is_signal { cfa.ok_or(StackEnd::BadFrame)? } else { self.checked_cfa(cfa)? };
        let mut registers = self.registers;
        registers[RSP] = Some(cfa);
        for (index, rule) in row.registers.iter().enumerate() {
            let value = match rule {
                None | Some(RegisterRule::SameValue) => continue,
                Some(RegisterRule::Offset(offset)) => memory.word(cfa.wrapping_add_signed(*offset)),
                Some(RegisterRule::ValOffset(offset)) => Ok(cfa.wrapping_add_signed(*offset)),
                Some(RegisterRule::Register(other)) => self.register(*other).ok_or(StackEnd::UnsupportedRule),
                Some(RegisterRule::Expression(expression)) => {
                    evaluate(*expression, Some(cfa)).and_then(|address| memory.word(address))
                }
                Some(RegisterRule::ValExpression(expression)) => evaluate(*expression, Some(cfa)),
                Some(_) => Err(StackEnd::UnsupportedRule),
            };
            registers[index] = match value {
                Ok(value) => Some(value),
                // Registers that no later frame needs may be lost.
                Err(end) if matches!(index, RBP | RSP | RIP) && *rule != Some(RegisterRule::Undefined) => {
                    return Err(end);
                }
                Err(_) => None,
            };
        }
        Ok(Self { registers, is_leaf: row.is_signal })
    }

    fn register(&self, register: Register) -> Option<u64> {
        self.registers.get(usize::from(register.0)).copied().flatten()
    }

    fn evaluate(
        &self,
        expression: UnwindExpression<usize>,
        section: &[u8],
        memory: &Memory<'_>,
        initial: Option<u64>,
    ) -> Result<u64, StackEnd> {
        const ENCODING: Encoding = Encoding { format: Format::Dwarf32, version: 4, address_size: 8 };
        let unsupported = |_| StackEnd::UnsupportedRule;
        let end = expression.offset.saturating_add(expression.length);
        let bytes = section.get(expression.offset..end).ok_or(StackEnd::UnsupportedRule)?;
        let mut evaluation = Expression(gimli::EndianSlice::new(bytes, LittleEndian)).evaluation(ENCODING);
        evaluation.set_max_iterations(MAX_OPERATIONS);
        if let Some(initial) = initial {
            evaluation.set_initial_value(initial);
        }
        let mut state = evaluation.evaluate().map_err(unsupported)?;
        loop {
            state = match state {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresMemory { address, size: 8, space: None, .. } => {
                    let value = Value::Generic(memory.word(address)?);
                    evaluation.resume_with_memory(value).map_err(unsupported)?
                }
                EvaluationResult::RequiresRegister { register, .. } => {
                    let value = self.register(register).ok_or(StackEnd::UnsupportedRule)?;
                    evaluation.resume_with_register(Value::Generic(value)).map_err(unsupported)?
                }
                _ => return Err(StackEnd::UnsupportedRule),
            };
        }
        match evaluation.as_result().last().map(|piece| &piece.location) {
            Some(Location::Address { address }) => Ok(*address),
            _ => Err(StackEnd::UnsupportedRule),
        }
    }
}
