//! The code to which a signal handler returns, on aarch64: the vDSO there has no call frame information.

use super::elf::Elf;
use crate::model::Machine;

/// `mov x8, #139; svc #0`: the system call `rt_sigreturn` (arch/arm64/kernel/vdso/sigreturn.S).
const CODE: [u8; 8] = [0x68, 0x11, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4];
/// Bytes of an instruction. One stands before the code, so that a look-up at the return address minus one finds it.
const INSTRUCTION_BYTES: u64 = 4;
/// Most executable bytes that are looked through: vDSOs have a few thousand.
const MAX_CODE_BYTES: usize = 64 << 10;

/// The range of virtual addresses of that code in a file, with the instruction before it.
pub(super) fn find(elf: &Elf<'_>) -> Option<(u64, u64)> {
    if elf.machine != Machine::Aarch64 {
        return None;
    }
    let (start, end) = elf.code.span();
    let bytes = elf.bytes_from_address(start)?;
    let bytes = bytes.get(..bytes.len().min(MAX_CODE_BYTES))?;
    let (words, _) = bytes.as_chunks::<4>();
    let (first, second) = CODE.split_at(4);
    let index = words.windows(2).position(|pair| {
        pair.first().is_some_and(|word| word == first) && pair.last().is_some_and(|word| word == second)
    })?;
    let address = start.checked_add(index as u64 * INSTRUCTION_BYTES)?;
    Some((address.saturating_sub(INSTRUCTION_BYTES).max(start), (address + CODE.len() as u64).min(end)))
}
