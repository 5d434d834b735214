//! On which instruction of a function its probe goes.
//!
//! Under a uprobe the kernel emulates a few instructions (arch/x86/kernel/uprobes.c: `push` of a register,
//! relative `jmp`, `jcc` and `call`, one-byte `nop`); any other is copied out of line and single-stepped, which takes
//! a second exception: 17–20 µs instead of 0.5 µs in a virtual machine. So the probe goes to the first
//! instruction that is emulated, provided that getting there changes nothing the programs look at.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Formatter, Instruction, InstructionInfoFactory,
    IntelFormatter, OpAccess, Register,
};
use tracer_common::func::{Function, Shape};

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

/// Decides for one function. `body` is its code, as far as its size is known.
pub fn place(function: &Function, body: &[u8]) -> Placement {
    let instructions: Vec<Instruction> = decode(body);
    let Some(first) = instructions.first() else {
        return at_start("(nothing)".to_owned(), "its code cannot be read".to_owned());
    };
    match search(function, body, &instructions) {
        Ok((index, pushed_bytes)) => Placement {
            offset: instructions[index].ip(),
            pushed_bytes,
            instruction: text(&instructions[index]),
            is_emulated: true,
            reason: String::new(),
        },
        Err(reason) => at_start(text(first), reason),
    }
}

fn at_start(instruction: String, reason: String) -> Placement {
    Placement { offset: 0, pushed_bytes: 0, instruction, is_emulated: false, reason }
}

fn decode(body: &[u8]) -> Vec<Instruction> {
    Decoder::with_ip(64, body, 0, DecoderOptions::NONE).into_iter().take_while(|i| !i.is_invalid()).collect()
}

fn text(instruction: &Instruction) -> String {
    let mut text = String::new();
    IntelFormatter::new().format(instruction, &mut text);
    text
}

/// Index of the first emulated instruction, and the bytes pushed by then.
fn search(function: &Function, body: &[u8], instructions: &[Instruction]) -> Result<(usize, u16), String> {
    let arguments = argument_registers(function.shape);
    let mut info = InstructionInfoFactory::new();
    let mut pushed_bytes = 0u16;
    for (index, instruction) in instructions.iter().enumerate().take(MAX_INSTRUCTIONS) {
        if is_emulated(instruction, body) {
            return match branch_into(instructions, instruction.ip()) {
                Some(from) if index > 0 => {
                    Err(format!("a branch at +{from:#x} enters the function in front of it"))
                }
                _ => Ok((index, pushed_bytes)),
            };
        }
        if instruction.flow_control() != FlowControl::Next {
            return Err(format!("`{}` comes before any instruction that is emulated", text(instruction)));
        }
        for used in info.info(instruction).used_registers() {
            let is_written = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None);
            if is_written && arguments.contains(&used.register().full_register()) {
                return Err(format!("`{}` overwrites an argument", text(instruction)));
            }
        }
        let moved = stack_movement(instruction, &mut info)
            .ok_or_else(|| format!("`{}` moves the stack pointer by an unknown amount", text(instruction)))?;
        if moved != 0 && function.shape.returns_block() {
            return Err(format!(
                "`{}` moves the stack pointer away from the return address",
                text(instruction)
            ));
        }
        pushed_bytes = pushed_bytes.checked_add_signed(-moved).ok_or("the stack pointer moves up")?;
    }
    Err("none of its first instructions is emulated".to_owned())
}

/// Registers of the integer arguments that the programs read.
fn argument_registers(shape: Shape) -> Vec<Register> {
    const INTEGER: [Register; 6] =
        [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];
    let indices = match shape {
        Shape::Allocate { size } => vec![size],
        Shape::AllocateArray { count, size } => vec![count, size],
        Shape::Resize { pointer, size } => vec![pointer, size],
        Shape::ResizeArray { pointer, count, size } => vec![pointer, count, size],
        Shape::AlignedOut { out, size } => vec![out, size],
        Shape::Release { pointer } => vec![pointer],
    };
    indices.into_iter().filter_map(|index| INTEGER.get(usize::from(index)).copied()).collect()
}

/// What the kernel has emulated under uprobes since long before 5.15.
fn is_emulated(instruction: &Instruction, body: &[u8]) -> bool {
    let at = usize::try_from(instruction.ip()).unwrap_or(usize::MAX);
    let Some(bytes) = body.get(at..at.saturating_add(instruction.len())) else { return false };
    match *bytes {
        [0x50..=0x57] | [0x41, 0x50..=0x57] => true, // push
        [0x90] => true,                              // nop
        [0xeb, _] | [0x70..=0x7f, _] => true,        // short jmp, jcc
        [0xe9 | 0xe8, _, _, _, _] => true,           // jmp, call
        [0x0f, 0x80..=0x8f, _, _, _, _] => true,     // near jcc
        _ => false,
    }
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
    let writes_sp = info.info(instruction).used_registers().iter().any(|used| {
        used.register().full_register() == Register::RSP
            && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None)
    });
    if !writes_sp {
        return Some(0);
    }
    match instruction.code() {
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 if instruction.op0_register() == Register::RSP => {
            i16::try_from(instruction.immediate32to64())
                .ok()
                .or_else(|| i16::try_from(instruction.immediate8to64()).ok())?
                .checked_neg()
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
        place(by_name(name).unwrap(), body)
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
        assert_eq!(placement.instruction, "je 0000000000000007h");
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
        assert!(!placed("free", &[]).is_emulated);
        assert!(!placed("free", &[0x66, 0xe8, 0, 0]).is_emulated, "16-bit call");
    }

    #[test]
    fn the_libc_of_this_machine_has_fast_places_for_malloc_and_free() {
        let entries = crate::attach::maps::read(std::process::id()).unwrap();
        let entry = entries.iter().find(|e| e.display_name().contains("/libc.so.6")).unwrap();
        let bytes = std::fs::read(entry.display_name()).unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        for definition in crate::attach::resolve::definitions(&elf, false).found {
            let placement = place(definition.function, &definition.body);
            if ["malloc", "free", "calloc", "realloc"].contains(&definition.function.name) {
                assert!(placement.is_emulated, "{}: {placement:?}", definition.function.name);
            }
        }
    }
}
