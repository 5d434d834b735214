//! On which instruction of a function its probe goes.
//!
//! Under a uprobe the kernel emulates a few instructions (arch/x86/kernel/uprobes.c: `push` of a register,
//! relative `jmp`, `jcc` and `call`, `nop`); any other is copied out of line and single-stepped, which takes a
//! second exception: 4–18 µs instead of 0.6–0.9 µs in a virtual machine. So the probe goes to the first
//! instruction that is emulated, provided that getting there changes nothing the programs look at.
//! Some instructions the kernel refuses to probe at all; a function that offers no other gets no probe.
//!
//! Kernel 6.18 emulates long nops (`0f 1f`) too, and still single-steps `endbr64`; only what every kernel
//! since 5.15 emulates is taken for emulated.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Formatter, Instruction, InstructionInfoFactory,
    IntelFormatter, OpAccess, OpKind, Register,
};
use tracer_common::func::{Function, Shape};

use crate::model::Machine;

/// Instructions looked at for a better place.
const MAX_INSTRUCTIONS: usize = 12;

/// Where a probe goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Bytes from the function's first instruction.
    pub offset: u64,
    /// How far the stack pointer has moved down by then.
    pub pushed_bytes: u16,
    /// The instruction.
    pub instruction: String,
    /// Whether the kernel emulates it; else each hit is single-stepped.
    pub is_emulated: bool,
    /// Why it is no better place; empty if it is emulated.
    pub reason: String,
}

/// Decides for one function. `body` is its code, as far as its size is known. `None`: the kernel refuses
/// every place that would do.
pub fn place(machine: Machine, function: &Function, body: &[u8]) -> Option<Placement> {
    match machine {
        Machine::X86_64 => place_x86(function, body),
        Machine::Aarch64 => super::aarch64::placement::place(function, body),
    }
}

fn place_x86(function: &Function, body: &[u8]) -> Option<Placement> {
    let instructions = decode(body);
    let front = Front::of(function, body, &instructions);
    let at = |(index, pushed_bytes): (usize, u16), is_emulated, reason| {
        let instruction = &instructions[index];
        Placement {
            offset: instruction.ip(),
            pushed_bytes,
            instruction: text(instruction),
            is_emulated,
            reason,
        }
    };
    match front.emulated {
        Some(place) => Some(at(place, true, String::new())),
        None => front.probeable.map(|place| at(place, false, front.reason)),
    }
}

/// Behind bytes that are no instruction, decoding begins anew at the next byte.
fn decode(body: &[u8]) -> Vec<Instruction> {
    let mut decoder = Decoder::with_ip(64, body, 0, DecoderOptions::NONE);
    let mut instructions = Vec::new();
    while decoder.can_decode() {
        let at = decoder.position();
        let instruction = decoder.decode();
        instructions.push(instruction);
        if instruction.is_invalid() {
            if decoder.set_position(at + 1).is_err() {
                break;
            }
            decoder.set_ip(at as u64 + 1);
        }
    }
    instructions
}

/// The instruction as a person reads it; a branch with its target's distance from the function's start.
fn text(instruction: &Instruction) -> String {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_rip_relative_addresses(true);
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    let mut text = String::new();
    let is_near_branch =
        matches!(instruction.op0_kind(), OpKind::NearBranch64) && instruction.op_count() == 1;
    if is_near_branch {
        formatter.format_mnemonic(instruction, &mut text);
        let distance = instruction.near_branch_target().cast_signed();
        let sign = if distance < 0 { '-' } else { '+' };
        return format!("{text} {sign}{:#x}", distance.unsigned_abs());
    }
    formatter.format(instruction, &mut text);
    text
}

/// The straight line at the front of a function along which a probe sees what it would see at the first
/// instruction.
#[derive(Debug, Default)]
struct Front {
    /// Index of the first emulated instruction, and the bytes pushed by then.
    emulated: Option<(usize, u16)>,
    /// The same for the first one that can be probed at all.
    probeable: Option<(usize, u16)>,
    /// Why the line ends before an emulated instruction.
    reason: String,
}

impl Front {
    fn of(function: &Function, body: &[u8], instructions: &[Instruction]) -> Self {
        let mut front = Self::default();
        if let Err(reason) = front.walk(function, body, instructions) {
            front.reason = reason;
        }
        front
    }

    fn walk(&mut self, function: &Function, body: &[u8], instructions: &[Instruction]) -> Result<(), String> {
        let arguments = argument_registers(function.shape);
        let mut info = InstructionInfoFactory::new();
        let mut pushed_bytes = 0u16;
        for (index, instruction) in instructions.iter().enumerate().take(MAX_INSTRUCTIONS) {
            if instruction.is_invalid() {
                return Err(format!("its code cannot be decoded at +{:#x}", instruction.ip()));
            }
            if index > 0
                && let Some(from) = branch_into(instructions, instruction.ip())
            {
                return Err(format!("a branch at +{from:#x} enters the function behind its start"));
            }
            if is_emulated(instruction, body) {
                self.emulated = Some((index, pushed_bytes));
                return Ok(());
            }
            let is_unsafe = index > 0 && is_call_sized_nop(bytes_of(instruction, body));
            if !is_unsafe && !is_refused(instruction, body) {
                self.probeable.get_or_insert((index, pushed_bytes));
            }
            if instruction.flow_control() != FlowControl::Next {
                return Err(format!("`{}` comes before any instruction that is emulated", text(instruction)));
            }
            for used in info.info(instruction).used_registers() {
                if is_written(used.access()) && arguments.contains(&used.register().full_register()) {
                    return Err(format!("`{}` overwrites an argument", text(instruction)));
                }
            }
            let moved = stack_movement(instruction, &mut info).ok_or_else(|| {
                format!("`{}` moves the stack pointer by an unknown amount", text(instruction))
            })?;
            if moved != 0 && function.shape.returns_block() {
                let what = text(instruction);
                return Err(format!("`{what}` moves the stack pointer away from the return address"));
            }
            pushed_bytes = pushed_bytes.checked_add_signed(-moved).ok_or("the stack pointer moves up")?;
        }
        Err("none of its first instructions is emulated".to_owned())
    }
}

fn is_written(access: OpAccess) -> bool {
    !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess)
}

/// Registers of the integer arguments that the programs read.
fn argument_registers(shape: Shape) -> Vec<Register> {
    const INTEGER: [Register; 6] =
        [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];
    shape
        .arguments()
        .into_iter()
        .flatten()
        .filter_map(|index| INTEGER.get(usize::from(index)).copied())
        .collect()
}

fn bytes_of<'a>(instruction: &Instruction, body: &'a [u8]) -> &'a [u8] {
    let at = usize::try_from(instruction.ip()).unwrap_or(usize::MAX);
    body.get(at..at.saturating_add(instruction.len())).unwrap_or_default()
}

/// What the kernel has emulated under uprobes since long before 5.15.
fn is_emulated(instruction: &Instruction, body: &[u8]) -> bool {
    matches!(
        *bytes_of(instruction, body),
        [0x50..=0x57] | [0x41, 0x50..=0x57]        // push
            | [0x90] | [0x66, 0x90]                // nop
            | [0xeb, _] | [0x70..=0x7f, _]         // short jmp, jcc
            | [0xe9 | 0xe8, _, _, _, _]            // jmp, call
            | [0x0f, 0x80..=0x8f, _, _, _, _] // near jcc
    )
}

/// Nops of five bytes: from 6.18 on the kernel may put a call in their place, whose return address lands in the red zone
/// of the function, of which the instructions before it may have made use.
fn is_call_sized_nop(bytes: &[u8]) -> bool {
    bytes.len() == 5 && matches!(bytes, [0x0f, 0x1f, ..] | [0x66, 0x0f, 0x1f, ..])
}

/// What the kernel refuses to probe: a lock or segment prefix (`notrack` and the padding nops with `cs`
/// among them), 16-bit branches, breakpoints, EVEX, and what user code cannot execute.
fn is_refused(instruction: &Instruction, body: &[u8]) -> bool {
    let bytes = bytes_of(instruction, body);
    let is_legacy = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    let prefix_count = bytes.iter().take_while(|byte| is_legacy(byte)).count();
    let (prefixes, rest) = bytes.split_at(prefix_count);
    let (rex, rest) = match rest {
        [rex @ 0x40..=0x4f, rest @ ..] => (*rex, rest),
        rest => (0, rest),
    };
    let is_branch = matches!(rest, [0xe8 | 0xe9 | 0xeb | 0x70..=0x7f, ..] | [0x0f, 0x80..=0x8f, ..]);
    prefixes.iter().any(|byte| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0xf0))
        || (is_branch && prefixes.contains(&0x66))
        // `xchg r8, rax`: kernels before 6.18 take it for a nop and skip it.
        || (rex & 1 == 1 && rest == [0x90])
        || matches!(
            rest,
            [] | [0x62 | 0x6c..=0x6f | 0xcc..=0xcf | 0xe4..=0xe7 | 0xec..=0xef | 0xf1 | 0xf4 | 0xfa | 0xfb, ..]
                // mov ss, pop ss: they hold exceptions back.
                | [0x8e, 0x10..=0x17 | 0x50..=0x57 | 0x90..=0x97 | 0xd0..=0xd7, ..]
        )
}

/// Where a branch comes from that enters the function between its start and `end`, if there is one.
fn branch_into(instructions: &[Instruction], end: u64) -> Option<u64> {
    instructions
        .iter()
        .filter(|instruction| {
            matches!(
                instruction.flow_control(),
                FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call
            )
        })
        .find(|instruction| (1..=end).contains(&instruction.near_branch_target()))
        .map(Instruction::ip)
}

/// Bytes by which an instruction moves the stack pointer (down is negative); `None` if that is not known.
fn stack_movement(instruction: &Instruction, info: &mut InstructionInfoFactory) -> Option<i16> {
    let writes_sp = info
        .info(instruction)
        .used_registers()
        .iter()
        .any(|used| used.register().full_register() == Register::RSP && is_written(used.access()));
    if !writes_sp {
        return Some(0);
    }
    match instruction.code() {
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 if instruction.op0_register() == Register::RSP => {
            // Whatever its size, the immediate is sign-extended.
            i16::try_from(instruction.immediate(1).cast_signed()).ok()?.checked_neg()
        }
        _ if instruction.stack_pointer_increment() != 0 => {
            i16::try_from(instruction.stack_pointer_increment()).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tracer_common::func::by_name;

    fn placed(name: &str, body: &[u8]) -> Placement {
        place_x86(by_name(name).unwrap(), body).unwrap()
    }

    #[test]
    fn a_push_at_the_start_is_the_place() {
        let placement = placed("malloc", &[0x41, 0x54, 0x49, 0x89, 0xfc, 0xc3]); // push r12; mov r12,rdi; ret
        assert_eq!((placement.offset, placement.pushed_bytes, placement.is_emulated), (0, 0, true));
        assert_eq!(placement.instruction, "push r12");
    }

    #[test]
    fn the_branch_behind_a_test_is_taken() {
        // test rdi,rdi; je +2; push rbp; ret; ret
        let placement = placed("free", &[0x48, 0x85, 0xff, 0x74, 0x02, 0x55, 0xc3, 0xc3]);
        assert_eq!((placement.offset, placement.is_emulated), (3, true));
        assert_eq!(placement.instruction, "je +0x7");
    }

    #[test]
    fn endbr64_is_stepped_over() {
        let placement = placed("malloc", &[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0xc3]); // endbr64; push rbp; ret
        assert_eq!((placement.offset, placement.is_emulated), (4, true));
    }

    #[test]
    fn a_clobbered_argument_keeps_the_probe_at_the_start() {
        let placement = placed("free", &[0x31, 0xff, 0x74, 0x01, 0x90, 0xc3]); // xor edi,edi; je
        assert_eq!((placement.offset, placement.is_emulated), (0, false));
        assert!(placement.reason.contains("overwrites an argument"), "{}", placement.reason);
        // calloc reads rsi too, malloc does not.
        let body = [0x48, 0x89, 0xfe, 0x55, 0xc3]; // mov rsi,rdi; push rbp
        assert!(!placed("calloc", &body).is_emulated);
        assert_eq!(placed("malloc", &body).offset, 3);
    }

    #[test]
    fn a_moved_stack_pointer_matters_to_returns_only() {
        let body = [0x48, 0x83, 0xec, 0x18, 0x48, 0x85, 0xff, 0x74, 0x00, 0xc3]; // sub rsp,24; test rdi,rdi; je
        let allocating = placed("malloc", &body);
        assert_eq!((allocating.offset, allocating.is_emulated), (0, false));
        assert!(allocating.reason.contains("return address"), "{}", allocating.reason);
        let releasing = placed("free", &body);
        assert_eq!((releasing.offset, releasing.pushed_bytes, releasing.is_emulated), (7, 24, true));
    }

    #[test]
    fn a_loop_back_to_the_front_keeps_the_probe_at_the_start() {
        // test rdi,rdi; push rbp; jmp -4 (back to the push)
        let placement = placed("free", &[0x48, 0x85, 0xff, 0x55, 0xeb, 0xfd, 0xc3]);
        assert_eq!((placement.offset, placement.is_emulated), (0, false));
        assert!(placement.reason.contains("enters the function"), "{}", placement.reason);
        // A jump back to the first instruction is harmless there: each pass is a call anyhow.
        assert!(placed("malloc", &[0x55, 0x5d, 0xeb, 0xfc]).is_emulated);
    }

    #[test]
    fn a_return_or_an_indirect_jump_ends_the_search() {
        assert!(!placed("free", &[0xc3]).is_emulated);
        assert!(!placed("free", &[0xff, 0x25, 0, 0, 0, 0]).is_emulated); // jmp [rip]
        assert_eq!(place_x86(by_name("free").unwrap(), &[0x66, 0xe8, 0, 0, 0, 0]), None, "16-bit call");
    }

    #[test]
    fn what_the_kernel_refuses_is_stepped_over_or_not_probed() {
        let free = by_name("free").unwrap();
        assert_eq!(place_x86(free, &[]), None);
        assert_eq!(place_x86(free, &[0xcc, 0xc3]), None, "a breakpoint that somebody else has set");
        assert_eq!(place_x86(free, &[0x06]), None, "no instruction");
        // cs nop: refused; the ret behind it is not emulated, but can be probed.
        let padded = placed("free", &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0, 0xc3]);
        assert_eq!((padded.offset, padded.is_emulated, &*padded.instruction), (10, false, "ret"));
        // notrack jmp rax; lock inc [rdi]; xchg r8,rax, each with nothing behind it that is reached.
        for refused in [
            &[0x3e, 0xff, 0xe0][..],
            &[0xf0, 0xff, 0x07],
            &[0x49, 0x90],
            &[0x62, 0xf1, 0x7c, 0x48, 0x10, 0x07],
        ] {
            assert_eq!(place_x86(free, refused), None, "{refused:x?}");
        }
    }

    #[test]
    fn a_branch_behind_bytes_that_are_no_code_is_seen() {
        // test rdi,rdi; je +5; ret; (no instruction); jmp -8 (back to the je)
        let body = [0x48, 0x85, 0xff, 0x74, 0x02, 0xc3, 0x06, 0xeb, 0xfa];
        let placement = placed("free", &body);
        assert_eq!((placement.offset, placement.is_emulated), (0, false));
    }

    #[test]
    fn a_negative_immediate_moves_the_stack_pointer_up() {
        // sub rsp,-128; je: the stack pointer would lie above the return address.
        let placement = placed("free", &[0x48, 0x83, 0xec, 0x80, 0x74, 0x00, 0xc3]);
        assert_eq!((placement.offset, placement.is_emulated), (0, false));
        assert_eq!(placement.reason, "the stack pointer moves up");
    }

    proptest::proptest! {
        /// Whatever the bytes are: the place is an instruction of the straight line at the front.
        #[test]
        fn any_code_is_survived(
            body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80),
            index in 0..tracer_common::func::FUNCTIONS.len(),
        ) {
            let function = &tracer_common::func::FUNCTIONS[index];
            if let Some(placement) = place_x86(function, &body) {
                proptest::prop_assert!(usize::try_from(placement.offset).unwrap() < body.len());
                proptest::prop_assert!(placement.pushed_bytes == 0 || !function.shape.returns_block());
                proptest::prop_assert_eq!(placement.is_emulated, placement.reason.is_empty());
            }
        }
    }
}
