//! What is known of the caller's frame at each call of a function that was written in assembly.
//!
//! A small interpreter follows the stack pointer, the frame pointer and two more registers in a straight line,
//! and along branches to where they go. It knows the three ways in which the Go runtime leaves a stack:
//!
//! - `asmcgocall` saves the goroutine and how deep its stack was, and calls C on the thread's stack,
//! - on a thread's stack already, it saves the stack pointer and aligns it,
//! - `systemstack` and `cgocallback` (since Go 1.21) keep the frame pointer in the frame on the other stack.
//!
//! Source: `runtime/asm_amd64.s` of Go 1.19 to 1.27.

use std::collections::HashMap;

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};
use tracer_common::abi::{
    ESCAPE_BASE_FRAME_POINTER, ESCAPE_BASE_GO_SWITCH, ESCAPE_BASE_STACK_POINTER, ESCAPE_DEREFERENCE,
    ESCAPE_FP_AT_CFA, ESCAPE_FP_SAME, ESCAPE_OTHER_STACK, EscapeRule,
};
use tracer_common::row::{KIND_SP, MAX_CFA_BYTES, MAX_SLOT, rule};

use super::super::rule::Expressed;

/// Longest function that is looked at, in bytes; those meant here have less than 600.
const MAX_BODY_BYTES: usize = 4096;
/// Offset of `stack.hi` in the runtime's `g`: its second word.
const STACK_HIGH: i64 = 8;
/// Where the frame pointer is saved below the CFA, in bytes: right below the return address.
const FP_SLOT_BYTES: i64 = 16;

/// One call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallSite {
    /// Address of the call instruction.
    pub(super) start: u64,
    /// The return address.
    pub(super) end: u64,
    /// How the caller is found from there; `None`: that is not known.
    pub(super) rule: Option<Expressed>,
}

/// What `rdi` holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Rdi {
    #[default]
    Other,
    /// What has been saved as the goroutine.
    Goroutine,
    /// The upper end of its stack.
    High,
    /// The depth of its stack.
    Depth,
}

/// What `rbp` holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fp {
    /// What it held at the entry.
    Original,
    /// The CFA minus this many bytes.
    Frame(i64),
    #[default]
    Other,
}

/// State before an instruction. Offsets of places are from the stack pointer.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Bytes the stack pointer lies below that of the entry; `None`: on another stack, or aligned.
    depth: Option<i64>,
    fp: Fp,
    /// Where the frame pointer of the entry is saved, in bytes below the CFA.
    saved_fp: Option<i64>,
    /// `rdx` holds the stack pointer as it was at this depth.
    copy: Option<i64>,
    rdi: Rdi,
    goroutine_at: Option<i64>,
    depth_at: Option<i64>,
    copy_at: Option<i64>,
}

/// Looks at all calls of the function whose code, from `address` on, is `body`.
pub(super) fn calls(body: &[u8], address: u64) -> Vec<CallSite> {
    let body = body.get(..MAX_BODY_BYTES).unwrap_or(body);
    let mut info = InstructionInfoFactory::new();
    let mut branches: HashMap<u64, State> = HashMap::new();
    let mut sites = Vec::new();
    let mut state = State { depth: Some(0), fp: Fp::Original, ..State::default() };
    for instruction in Decoder::with_ip(64, body, address, DecoderOptions::NONE) {
        if instruction.is_invalid() {
            break;
        }
        match instruction.flow_control() {
            FlowControl::Call | FlowControl::IndirectCall => {
                sites.push(CallSite {
                    start: instruction.ip(),
                    end: instruction.next_ip(),
                    rule: state.rule(),
                });
            }
            FlowControl::ConditionalBranch => {
                branches.entry(instruction.near_branch_target()).or_insert(state);
            }
            FlowControl::Next => state.step(&instruction, &mut info),
            FlowControl::UnconditionalBranch => {
                branches.entry(instruction.near_branch_target()).or_insert(state);
                state = branches.get(&instruction.next_ip()).copied().unwrap_or_default();
            }
            _ => state = branches.get(&instruction.next_ip()).copied().unwrap_or_default(),
        }
    }
    sites
}

impl State {
    fn step(&mut self, instruction: &Instruction, info: &mut InstructionInfoFactory) {
        if self.store(instruction) || self.load(instruction) {
            return;
        }
        let writes = |info: &mut InstructionInfoFactory, register| {
            info.info(instruction)
                .used_registers()
                .iter()
                .any(|used| used.register().full_register() == register && is_written(used.access()))
        };
        if writes(info, Register::RDX) {
            self.copy = None;
        }
        if writes(info, Register::RDI) {
            self.rdi = Rdi::Other;
        }
        if writes(info, Register::RBP) {
            self.fp = Fp::Other;
        }
        if writes(info, Register::RSP) {
            self.move_stack(instruction);
        }
    }

    /// A store into the frame, or a copy of the stack pointer: nothing that is followed is overwritten.
    fn store(&mut self, instruction: &Instruction) -> bool {
        let Some(at) = stack_place(instruction) else { return false };
        if instruction.code() != Code::Mov_rm64_r64 {
            return false;
        }
        match instruction.op1_register() {
            Register::RBP if self.fp == Fp::Original => {
                // Bytes below the CFA, which is eight above the stack pointer of the entry.
                self.saved_fp = self.depth.map(|depth| depth + 8 - at);
            }
            Register::RDI if self.rdi == Rdi::Depth => self.depth_at = Some(at),
            Register::RDI => {
                self.goroutine_at = Some(at);
                self.rdi = Rdi::Goroutine;
            }
            Register::RDX if self.copy.is_some() => self.copy_at = Some(at),
            _ => {}
        }
        true
    }

    /// The moves that give the followed registers a known value.
    fn load(&mut self, instruction: &Instruction) -> bool {
        let registers = (instruction.op0_register(), instruction.op1_register());
        let is_move = matches!(instruction.code(), Code::Mov_rm64_r64 | Code::Mov_r64_rm64);
        let is_between_registers =
            instruction.op0_kind() == OpKind::Register && instruction.op1_kind() == OpKind::Register;
        match (instruction.mnemonic(), registers) {
            (Mnemonic::Mov, (Register::RDX, Register::RSP)) if is_move && is_between_registers => {
                self.copy = self.depth;
            }
            (Mnemonic::Mov, (Register::RBP, Register::RSP)) if is_move && is_between_registers => {
                self.fp = self.depth.map_or(Fp::Other, |depth| Fp::Frame(depth + 8));
            }
            (Mnemonic::Lea, (Register::RBP, _)) if is_stack_based(instruction) => {
                let displacement = instruction.memory_displacement64().cast_signed();
                self.fp = self.depth.map_or(Fp::Other, |depth| Fp::Frame(depth + 8 - displacement));
            }
            (Mnemonic::Mov, (Register::RDI, _))
                if self.rdi == Rdi::Goroutine
                    && instruction.op1_kind() == OpKind::Memory
                    && instruction.memory_base() == Register::RDI
                    && instruction.memory_index() == Register::None
                    && instruction.segment_prefix() == Register::None
                    && instruction.memory_displacement64().cast_signed() == STACK_HIGH =>
            {
                self.rdi = Rdi::High;
            }
            (Mnemonic::Sub, (Register::RDI, Register::RDX))
                if self.rdi == Rdi::High && self.copy.is_some() && is_between_registers =>
            {
                self.rdi = Rdi::Depth;
            }
            _ => return false,
        }
        true
    }

    fn move_stack(&mut self, instruction: &Instruction) {
        if instruction.code() == Code::Push_r64
            && instruction.op0_register() == Register::RBP
            && self.fp == Fp::Original
        {
            self.saved_fp = self.depth.map(|depth| depth + FP_SLOT_BYTES);
        }
        let immediate = || i32::try_from(instruction.immediate(1).cast_signed()).ok().map(i64::from);
        let down = match instruction.code() {
            Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 => immediate(),
            Code::Add_rm64_imm8 | Code::Add_rm64_imm32 => immediate().map(|bytes| -bytes),
            Code::Lea_r64_m if is_stack_based(instruction) => {
                i32::try_from(instruction.memory_displacement64().cast_signed())
                    .ok()
                    .map(|bytes| -i64::from(bytes))
            }
            _ if instruction.is_stack_instruction() => {
                Some(-i64::from(instruction.stack_pointer_increment()))
            }
            _ => None,
        };
        self.depth = self.depth.zip(down).and_then(|(depth, down)| depth.checked_add(down));
        (self.goroutine_at, self.depth_at, self.copy_at) = (None, None, None);
    }

    /// The rule for a return address whose call is made in this state.
    fn rule(&self) -> Option<Expressed> {
        let (fp_rule, fp_offset) = match (self.saved_fp, self.fp) {
            (Some(below), _) => (ESCAPE_FP_AT_CFA, i32::try_from(-below).ok()?),
            (None, Fp::Original) => (ESCAPE_FP_SAME, 0),
            (None, _) => return None,
        };
        // From the copied stack pointer up to the CFA.
        let above =
            self.copy.and_then(|depth| u32::try_from(depth + 8).ok().filter(|above| *above < 1 << 16));
        if let (Some(goroutine), Some(depth), Some(above)) = (self.goroutine_at, self.depth_at, above) {
            let place = |at: i64| u32::try_from(at).ok().filter(|at| *at < 1 << 15);
            let packed = place(goroutine)? | place(depth)? << 16;
            return Some(Expressed::Escape(EscapeRule {
                cfa_base: ESCAPE_BASE_GO_SWITCH | ESCAPE_OTHER_STACK | above << 16,
                cfa_offset: packed.cast_signed(),
                fp_rule,
                fp_offset,
            }));
        }
        if let (Some(copy_at), Some(above)) = (self.copy_at, above) {
            return Some(Expressed::Escape(EscapeRule {
                cfa_base: ESCAPE_BASE_STACK_POINTER | ESCAPE_DEREFERENCE | above << 16,
                cfa_offset: i32::try_from(copy_at).ok()?,
                fp_rule,
                fp_offset,
            }));
        }
        if let Some(depth) = self.depth {
            let cfa = depth.checked_add(8).filter(|cfa| (8..=MAX_CFA_BYTES).contains(cfa) && cfa % 8 == 0)?;
            let slot = -i64::from(fp_offset) / 8;
            let fits = (0..=MAX_SLOT).contains(&slot) && fp_offset % 8 == 0;
            return fits.then(|| Expressed::Rule(rule(KIND_SP, (cfa / 8) as u32, slot as u32)));
        }
        match self.fp {
            Fp::Frame(FP_SLOT_BYTES) if self.saved_fp == Some(FP_SLOT_BYTES) => {
                Some(Expressed::Escape(EscapeRule {
                    cfa_base: ESCAPE_BASE_FRAME_POINTER | ESCAPE_OTHER_STACK,
                    cfa_offset: FP_SLOT_BYTES as i32,
                    fp_rule,
                    fp_offset,
                }))
            }
            _ => None,
        }
    }
}

fn is_written(access: OpAccess) -> bool {
    !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess)
}

fn is_stack_based(instruction: &Instruction) -> bool {
    instruction.memory_base() == Register::RSP && instruction.memory_index() == Register::None
}

/// Offset from the stack pointer of the place that an instruction writes to.
fn stack_place(instruction: &Instruction) -> Option<i64> {
    let is_place = instruction.op0_kind() == OpKind::Memory
        && is_stack_based(instruction)
        && instruction.segment_prefix() == Register::None;
    is_place.then(|| instruction.memory_displacement64().cast_signed())
}
