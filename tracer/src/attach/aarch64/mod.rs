//! Instructions of aarch64, as far as placing probes needs them: where they lead, what they write, and what the kernel does
//! with one under a uprobe.
//!
//! Each has four bytes. The encodings are those of the Arm Architecture Reference Manual, C4.1 ("A64 instruction set
//! encoding"). What is not known here is taken for the worst.

pub mod calls;
pub mod placement;

/// Bytes of an instruction.
pub const BYTES: u64 = 4;
/// Register number that means the stack pointer, or nothing.
const SP: u32 = 31;
/// The link register.
pub const LINK: u32 = 30;

/// Where control goes behind an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// To the next one.
    Next,
    /// There, or to the next one.
    Branch(u64),
    /// There.
    Jump(u64),
    /// To where a register says.
    JumpRegister,
    /// There, and back behind it.
    Call(u64),
    /// To where a register says, and back behind it.
    CallRegister,
    /// To the caller.
    Return,
    /// Not known: exceptions, and what is no instruction.
    Stop,
}

/// What the kernel does when a uprobe is on an instruction (`arm_probe_decode_insn` in
/// arch/arm64/kernel/probes/decode-insn.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probing {
    /// It does itself what the instruction would do.
    Simulated,
    /// It has the processor execute a copy elsewhere, and takes a second exception behind it.
    Stepped,
    /// It refuses the probe, or some kernels do it wrong.
    Refused,
}

/// The words of a piece of code; bytes at the end that make none are left out.
pub fn words(code: &[u8]) -> impl Iterator<Item = u32> {
    let (words, _) = code.as_chunks::<4>();
    words.iter().map(|word| u32::from_le_bytes(*word))
}

/// The value of `bits` bits from bit `from` on, with its sign.
fn signed(word: u32, from: u32, bits: u32) -> i64 {
    let up = 64 - bits;
    ((u64::from(word >> from) << up).cast_signed()) >> up
}

fn is(word: u32, mask: u32, value: u32) -> bool {
    word & mask == value
}

/// `bti`, with or without a kind.
fn is_landing(word: u32) -> bool {
    is(word, 0xffff_ff3f, 0xd503_241f)
}

/// Compares with zero and branches: `cbz` (`false`) or `cbnz` (`true`), with the register.
pub fn zero_branch(word: u32) -> Option<(bool, u32)> {
    is(word, 0x7e00_0000, 0x3400_0000).then_some((word & 1 << 24 != 0, word & 31))
}

/// Where control goes behind the instruction at `address`.
pub fn flow(word: u32, address: u64) -> Flow {
    let to = |from, bits| address.wrapping_add_signed(signed(word, from, bits) * 4);
    match word {
        _ if is(word, 0xfc00_0000, 0x1400_0000) => Flow::Jump(to(0, 26)),
        _ if is(word, 0xfc00_0000, 0x9400_0000) => Flow::Call(to(0, 26)),
        // b.cond and bc.cond; cbz and cbnz
        _ if is(word, 0xff00_0000, 0x5400_0000) || is(word, 0x7e00_0000, 0x3400_0000) => {
            Flow::Branch(to(5, 19))
        }
        // tbz, tbnz
        _ if is(word, 0x7e00_0000, 0x3600_0000) => Flow::Branch(to(5, 14)),
        // With pointer authentication (bit 11) or without: br, blr, ret.
        _ if is(word, 0xfeff_f000, 0xd61f_0000) => Flow::JumpRegister,
        _ if is(word, 0xfeff_f000, 0xd63f_0000) => Flow::CallRegister,
        _ if is(word, 0xfeff_f000, 0xd65f_0000) => Flow::Return,
        // Other branches to registers (eret, drps), exceptions (svc, brk, hlt), and what is reserved.
        _ if is(word, 0xfe00_0000, 0xd600_0000) || is(word, 0xff00_0000, 0xd400_0000) => Flow::Stop,
        _ if is(word, 0x1e00_0000, 0) => Flow::Stop,
        _ => Flow::Next,
    }
}

/// What the kernel does when a uprobe is on it.
pub fn probing(word: u32) -> Probing {
    match word {
        // Plain branches. Those with authentication are refused, and so is bc.cond here.
        _ if is(word, 0x7c00_0000, 0x1400_0000)
            || is(word, 0xff00_0010, 0x5400_0000)
            || is(word, 0x7c00_0000, 0x3400_0000)
            || is(word, 0xffff_fc1f, 0xd61f_0000)
            || is(word, 0xffff_fc1f, 0xd63f_0000)
            || is(word, 0xffff_fc1f, 0xd65f_0000) =>
        {
            Probing::Simulated
        }
        // adr, adrp
        _ if is(word, 0x1f00_0000, 0x1000_0000) => Probing::Simulated,
        _ if flow(word, 0) != Flow::Next => Probing::Refused,
        // Loads from beside the instruction: kernels up to 6.12 simulate them wrong ("arm64: probes: Remove broken LDR
        // (literal) uprobe support"), and those of vector registers would be copied to another place.
        _ if is(word, 0x3b00_0000, 0x1800_0000) => Probing::Refused,
        // Exclusive loads and stores, and ordered ones with them.
        _ if is(word, 0x3f00_0000, 0x0800_0000) => Probing::Refused,
        // Copies and sets of memory (cpyp, setp and what follows them).
        _ if is(word, 0x3b20_0c00, 0x1900_0400) => Probing::Refused,
        // Hints: those in the kernel's list (`aarch64_insn_is_steppable_hint`) without the ones that came late.
        _ if is(word, 0xffff_f01f, 0xd503_201f) => match word >> 5 & 0x7f {
            // nop, xpaclri, pacia1716, pacib1716, paciaz, paciasp, pacibz, pacibsp, bti
            0x00 | 0x07 | 0x08 | 0x0a | 0x18 | 0x19 | 0x1a | 0x1b | 0x20 | 0x22 | 0x24 | 0x26 => {
                Probing::Stepped
            }
            _ => Probing::Refused,
        },
        // System instructions: reading a register is stepped (DAIF is not for user code).
        _ if is(word, 0xfff0_0000, 0xd530_0000) => Probing::Stepped,
        _ if is(word, 0xffc0_0000, 0xd500_0000) => Probing::Refused,
        _ => Probing::Stepped,
    }
}

/// The general registers that an instruction writes, one bit each, bit 31 for the stack pointer; `None` if that is not
/// known here.
pub fn writes(word: u32) -> Option<u32> {
    let register = |from: u32| 1u32 << (word >> from & 31);
    // Number 31 is nothing.
    let general = |from: u32| register(from) & !(1 << SP);
    let is_vector = word & 1 << 26 != 0;
    match word {
        // Data processing with an immediate: add and sub, and logical ones, may write the stack pointer.
        _ if is(word, 0x1c00_0000, 0x1000_0000) => {
            let sets_flags = if is(word, 0x1f80_0000, 0x1200_0000) {
                is(word, 0x6000_0000, 0x6000_0000)
            } else {
                word & 1 << 29 != 0
            };
            let may_be_sp = is(word, 0x1f00_0000, 0x1100_0000) || is(word, 0x1f80_0000, 0x1200_0000);
            Some(if may_be_sp && !sets_flags { register(0) } else { general(0) })
        }
        // Data processing with registers.
        _ if is(word, 0x0e00_0000, 0x0a00_0000) => {
            let may_be_sp = is(word, 0x1f20_0000, 0x0b20_0000) && word & 1 << 29 == 0;
            Some(if may_be_sp { register(0) } else { general(0) })
        }
        // Pairs: loaded ones, and the base where it is moved.
        _ if is(word, 0x3a00_0000, 0x2800_0000) => {
            let loaded = if word & 1 << 22 != 0 && !is_vector { general(0) | general(10) } else { 0 };
            let base = if word & 1 << 23 != 0 { register(5) } else { 0 };
            Some(loaded | base)
        }
        // One register, at an offset.
        _ if is(word, 0x3b00_0000, 0x3900_0000) => Some(loaded_one(word, general(0))),
        // One register, unscaled, by a register, or with the base moved.
        _ if is(word, 0x3b20_0000, 0x3800_0000) || is(word, 0x3b20_0c00, 0x3820_0800) => {
            let moves_base = word & 1 << 21 == 0 && word & 1 << 10 != 0;
            Some(loaded_one(word, general(0)) | if moves_base { register(5) } else { 0 })
        }
        // From beside the instruction.
        _ if is(word, 0x3b00_0000, 0x1800_0000) => Some(if is_vector { 0 } else { general(0) }),
        // Hints: what signs the return address changes it.
        _ if is(word, 0xffff_f01f, 0xd503_201f) => match word >> 5 & 0x7f {
            0x00 | 0x20 | 0x22 | 0x24 | 0x26 => Some(0),
            0x18..=0x1b => Some(1 << LINK),
            _ => None,
        },
        // Reading a system register.
        _ if is(word, 0xfff0_0000, 0xd530_0000) => Some(general(0)),
        _ => None,
    }
}

/// What a load or store of one register writes: nothing if it stores, or if it is of a vector register.
fn loaded_one(word: u32, target: u32) -> u32 {
    let is_vector = word & 1 << 26 != 0;
    if is_vector || word >> 22 & 3 == 0 { 0 } else { target }
}

/// Bytes by which an instruction that writes the stack pointer moves it (down is negative); `None` if that is not known.
pub fn stack_movement(word: u32) -> Option<i64> {
    if word >> 5 & 31 != SP {
        return None;
    }
    match word {
        // add and sub with an immediate, which may be shifted by 12
        _ if is(word, 0xbf80_001f, 0x9100_001f) => {
            let bytes = i64::from(word >> 10 & 0xfff) << if word & 1 << 22 != 0 { 12 } else { 0 };
            Some(if word & 1 << 30 != 0 { -bytes } else { bytes })
        }
        // Pairs of 4, 8 or 16 bytes each.
        _ if is(word, 0x3a80_0000, 0x2880_0000) => {
            let shift = match (word & 1 << 26 != 0, word >> 30) {
                (true, size @ 0..=2) => 2 + size,
                (false, 0) => 2,
                (false, 2) => 3,
                _ => return None,
            };
            Some(signed(word, 15, 7) << shift)
        }
        _ if is(word, 0x3b20_0400, 0x3800_0400) => Some(signed(word, 12, 9)),
        _ => None,
    }
}

/// The slot of the global offset table that a stub of the procedure linkage table jumps through, if the code at `address`
/// is one: `adrp x16; ldr x17, [x16, …]; add x16, …; br x17`, perhaps behind a `bti`.
pub fn stub_slot(code: &[u8], address: u64) -> Option<u64> {
    let mut words = words(code).zip((0..).map(|index| address.wrapping_add(index * BYTES))).peekable();
    if words.peek().is_some_and(|(word, _)| is_landing(*word)) {
        words.next();
    }
    let (page, at) = words.next().filter(|(word, _)| is(*word, 0x9f00_001f, 0x9000_0010))?;
    let (load, _) = words.next().filter(|(word, _)| is(*word, 0xffc0_03ff, 0xf940_0211))?;
    let jumps = words.take(2).any(|(word, _)| word == 0xd61f_0220);
    let pages = signed(page, 5, 19) << 2 | i64::from(page >> 29 & 3);
    let slot = (at & !0xfff).wrapping_add_signed(pages << 12).wrapping_add(u64::from(load >> 10 & 0xfff) * 8);
    jumps.then_some(slot)
}

/// The instruction as assemblers write it, as far as it is simulated; else its number.
pub fn text(word: u32, offset: u64) -> String {
    let far = |name: &str, target: u64| {
        let distance = target.cast_signed();
        let sign = if distance < 0 { '-' } else { '+' };
        format!("{name} {sign}{:#x}", distance.unsigned_abs())
    };
    match flow(word, offset) {
        Flow::Jump(target) => far("b", target),
        Flow::Call(target) => far("bl", target),
        Flow::Branch(target) => {
            let name = match word >> 24 & 0x7f {
                0x34 => "cbz",
                0x35 => "cbnz",
                0x36 => "tbz",
                0x37 => "tbnz",
                _ => "b.cond",
            };
            far(name, target)
        }
        Flow::Return => "ret".to_owned(),
        Flow::JumpRegister => format!("br x{}", word >> 5 & 31),
        Flow::CallRegister => format!("blr x{}", word >> 5 & 31),
        Flow::Next if is(word, 0x1f00_0000, 0x1000_0000) => {
            format!("{} x{}", if word & 1 << 31 != 0 { "adrp" } else { "adr" }, word & 31)
        }
        Flow::Next | Flow::Stop => format!(".inst {word:#010x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // From Debian's libc.so.6 2.36 and libstdc++.so.6 12 for arm64.
    const STP_FRAME: u32 = 0xa9bd_7bfd; // stp x29, x30, [sp, #-48]!
    const MOV_FP: u32 = 0x9100_03fd; // mov x29, sp
    const CBZ_X0: u32 = 0xb400_0120; // cbz x0, +0x24
    const RET: u32 = 0xd65f_03c0;
    const PACIASP: u32 = 0xd503_233f;
    const BTI_C: u32 = 0xd503_245f;

    #[test]
    fn control_flow() {
        assert_eq!(flow(CBZ_X0, 0x100), Flow::Branch(0x124));
        assert_eq!(flow(0x17ff_ffff, 0x100), Flow::Jump(0xfc)); // b -4
        assert_eq!(flow(0x9400_0002, 0x100), Flow::Call(0x108));
        assert_eq!(flow(0x5400_0041, 0x100), Flow::Branch(0x108)); // b.ne +8
        assert_eq!(flow(0x3707_ffe0, 0x100), Flow::Branch(0xfc)); // tbnz w0, #0, -4
        assert_eq!((flow(RET, 0), flow(0xd65f_0bff, 0)), (Flow::Return, Flow::Return)); // ret, retaa
        assert_eq!((flow(0xd61f_0220, 0), flow(0xd63f_0020, 0)), (Flow::JumpRegister, Flow::CallRegister));
        assert_eq!(
            (flow(0xd400_0001, 0), flow(0xd420_0000, 0), flow(0, 0)),
            (Flow::Stop, Flow::Stop, Flow::Stop)
        );
        assert_eq!((flow(STP_FRAME, 0), flow(PACIASP, 0)), (Flow::Next, Flow::Next));
    }

    #[test]
    fn what_the_kernel_does() {
        for word in
            [CBZ_X0, RET, 0x9000_0010, 0x1000_0000, 0xd61f_0220, 0xd63f_0020, 0x5400_0041, 0x3707_ffe0]
        {
            assert_eq!(probing(word), Probing::Simulated, "{word:#x}");
        }
        for word in [STP_FRAME, MOV_FP, PACIASP, BTI_C, 0xd503_201f, 0xd53b_d041, 0xb900_0001] {
            assert_eq!(probing(word), Probing::Stepped, "{word:#x}");
        }
        // ldr literal (general, vector), ldxr, ldar, autiasp, retaa, svc, msr, dmb, yield, udf
        for word in [
            0x5800_0040,
            0x1c00_0040,
            0xc85f_7c00,
            0xc8df_fc00,
            0xd503_23bf,
            0xd65f_0bff,
            0xd400_0001,
            0xd51b_d041,
            0xd503_3bbf,
            0xd503_203f,
            0,
        ] {
            assert_eq!(probing(word), Probing::Refused, "{word:#x}");
        }
    }

    #[test]
    fn what_is_written() {
        assert_eq!((writes(STP_FRAME), stack_movement(STP_FRAME)), (Some(1 << SP), Some(-48)));
        assert_eq!(writes(MOV_FP), Some(1 << 29));
        assert_eq!(writes(0xd101_03ff), Some(1 << SP)); // sub sp, sp, #64
        assert_eq!(stack_movement(0xd101_03ff), Some(-64));
        assert_eq!(stack_movement(0xd140_07ff), Some(-4096)); // sub sp, sp, #1, lsl #12
        assert_eq!(writes(0xf100_001f), Some(0), "cmp x0, #0");
        assert_eq!(writes(0xaa01_03e0), Some(1), "mov x0, x1");
        assert_eq!(writes(0xa8c3_7bfd), Some(1 << 29 | 1 << 30 | 1 << SP), "ldp x29, x30, [sp], #48");
        assert_eq!(stack_movement(0xa8c3_7bfd), Some(48));
        assert_eq!(writes(0xf900_0bf3), Some(0), "str x19, [sp, #16]");
        assert_eq!(writes(0xf940_0000), Some(1), "ldr x0, [x0]");
        assert_eq!(
            (writes(0xf81f_0ffe), stack_movement(0xf81f_0ffe)),
            (Some(1 << SP), Some(-16)),
            "str x30, [sp, #-16]!"
        );
        assert_eq!((writes(PACIASP), writes(BTI_C)), (Some(1 << LINK), Some(0)));
        assert_eq!(writes(0x9e66_0000), None, "fmov x0, d0");
        assert_eq!(writes(0xc85f_7c00), None, "ldxr");
    }

    #[test]
    fn a_stub_leads_to_its_slot() {
        // adrp x16, 0xb0000 (from 0x9d40); ldr x17, [x16, #24]; add x16, x16, #24; br x17
        let stub = [0xd000_0530u32, 0xf940_0e11, 0x9100_6210, 0xd61f_0220];
        let bytes: Vec<u8> = stub.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(stub_slot(&bytes, 0x9d40), Some(0x9000 + (0xa6 << 12) + 24));
        let landing: Vec<u8> = [BTI_C].iter().chain(&stub).flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(stub_slot(&landing, 0x9d3c), stub_slot(&bytes, 0x9d40));
        assert_eq!(stub_slot(&bytes[..12], 0x9d40), None);
        assert_eq!(stub_slot(&bytes[4..], 0x9d40), None);
    }

    proptest::proptest! {
        /// Whatever the word is: nothing panics, and what is simulated by the kernel is known here.
        #[test]
        fn any_word_is_survived(word in proptest::prelude::any::<u32>(), address in proptest::prelude::any::<u64>()) {
            let _ = (flow(word, address), writes(word), stack_movement(word), text(word, address));
            let _ = stub_slot(&word.to_le_bytes(), address);
            if probing(word) == Probing::Simulated {
                proptest::prop_assert!(!text(word, 0).starts_with(".inst"));
            }
        }
    }
}
