//! On which instruction of a function its probe goes, on aarch64.
//!
//! As on x86-64 the first instruction that the kernel handles without a second exception is looked for. A probe that
//! replaces the return address (at the entry of what allocates) must come before the link register is signed or saved, and
//! with the stack pointer of the entry: mostly that is the first instruction, which pushes the frame, and is stepped.

use tracer_common::func::Function;

use super::{BYTES, Flow, LINK, Probing, flow, probing, stack_movement, text, words, writes};
use crate::attach::placement::Placement;

/// Instructions looked at for a better place.
const MAX_INSTRUCTIONS: usize = 12;

/// Decides for one function, as [`crate::attach::placement::place`].
pub fn place(function: &Function, body: &[u8]) -> Option<Placement> {
    let words: Vec<u32> = words(body).collect();
    let mut front = Front::default();
    let reason = front.walk(function, &words).err().unwrap_or_default();
    let at = |(index, pushed_bytes): (usize, u16), is_emulated, reason| {
        let offset = index as u64 * BYTES;
        let instruction = text(words.get(index).copied().unwrap_or(0), offset);
        Placement { offset, pushed_bytes, instruction, is_emulated, reason }
    };
    match front.simulated {
        Some(place) => Some(at(place, true, String::new())),
        None => front.probeable.map(|place| at(place, false, reason)),
    }
}

/// The straight line at the front of a function along which a probe sees what it would see at the first instruction.
#[derive(Debug, Default)]
struct Front {
    /// Index of the first instruction that is simulated, and the bytes pushed by then.
    simulated: Option<(usize, u16)>,
    /// The same for the first one that can be probed at all.
    probeable: Option<(usize, u16)>,
}

impl Front {
    fn walk(&mut self, function: &Function, words: &[u32]) -> Result<(), String> {
        let arguments: u32 = function
            .shape
            .arguments()
            .into_iter()
            .flatten()
            .fold(0, |mask, index| mask | 1u32 << (index & 7));
        let mut pushed_bytes = 0u16;
        for (index, &word) in words.iter().enumerate().take(MAX_INSTRUCTIONS) {
            let offset = index as u64 * BYTES;
            let what = || text(word, offset);
            if index > 0
                && let Some(from) = branch_into(words, offset)
            {
                return Err(format!("a branch at +{from:#x} enters the function behind its start"));
            }
            match probing(word) {
                Probing::Simulated => {
                    self.simulated = Some((index, pushed_bytes));
                    return Ok(());
                }
                Probing::Stepped => {
                    self.probeable.get_or_insert((index, pushed_bytes));
                }
                Probing::Refused => {}
            }
            if flow(word, offset) != Flow::Next {
                return Err(format!("`{}` comes before any instruction that is simulated", what()));
            }
            let written = writes(word).ok_or_else(|| format!("it is not known what `{}` changes", what()))?;
            if written & arguments != 0 {
                return Err(format!("`{}` overwrites an argument", what()));
            }
            if function.shape.returns_block() && written & 1 << LINK != 0 {
                return Err(format!("`{}` signs the return address", what()));
            }
            if written & 1 << super::SP == 0 {
                continue;
            }
            let moved = stack_movement(word)
                .ok_or_else(|| format!("`{}` moves the stack pointer by an unknown amount", what()))?;
            if function.shape.returns_block() {
                return Err(format!("`{}` begins the frame, in which the return address is saved", what()));
            }
            pushed_bytes = i16::try_from(moved)
                .ok()
                .and_then(i16::checked_neg)
                .and_then(|down| pushed_bytes.checked_add_signed(down))
                .ok_or("the stack pointer moves up, or far")?;
        }
        Err("none of its first instructions is simulated".to_owned())
    }
}

/// Where a branch comes from that enters the function between its start and `end`, if there is one.
fn branch_into(words: &[u32], end: u64) -> Option<u64> {
    (0..).step_by(BYTES as usize).zip(words).find_map(|(offset, word)| match flow(*word, offset) {
        Flow::Branch(target) | Flow::Jump(target) | Flow::Call(target) if (1..=end).contains(&target) => {
            Some(offset)
        }
        _ => None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tracer_common::func::by_name;

    use super::*;

    fn placed(name: &str, words: &[u32]) -> Option<Placement> {
        let body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        place(by_name(name).unwrap(), &body)
    }

    const STP_FRAME: u32 = 0xa9bd_7bfd; // stp x29, x30, [sp, #-48]!
    const MOV_FP: u32 = 0x9100_03fd; // mov x29, sp
    const CBZ_X0: u32 = 0xb400_0120; // cbz x0, +0x24
    const ADRP_X1: u32 = 0xb000_0941; // adrp x1, …
    const RET: u32 = 0xd65f_03c0;
    const BTI_C: u32 = 0xd503_245f;
    const PACIASP: u32 = 0xd503_233f;

    #[test]
    fn a_branch_at_the_start_is_the_place() {
        let placement = placed("free", &[CBZ_X0, STP_FRAME, RET]).unwrap();
        assert_eq!(
            (placement.offset, placement.is_emulated, &*placement.instruction),
            (0, true, "cbz +0x24")
        );
    }

    #[test]
    fn what_allocates_is_probed_before_its_frame() {
        let placement = placed("malloc", &[STP_FRAME, ADRP_X1, MOV_FP, RET]).unwrap();
        assert_eq!((placement.offset, placement.is_emulated), (0, false));
        assert!(placement.reason.contains("begins the frame"), "{}", placement.reason);
        let signed = placed("malloc", &[PACIASP, ADRP_X1]).unwrap();
        assert_eq!((signed.offset, signed.is_emulated), (0, false));
        assert!(signed.reason.contains("signs"), "{}", signed.reason);
        assert_eq!(placed("malloc", &[BTI_C, ADRP_X1]).unwrap().offset, 4, "its frame is not begun");
    }

    #[test]
    fn what_releases_may_be_probed_behind_it() {
        let placement = placed("free", &[PACIASP, STP_FRAME, ADRP_X1, MOV_FP, RET]).unwrap();
        assert_eq!((placement.offset, placement.pushed_bytes, placement.is_emulated), (8, 48, true));
    }

    #[test]
    fn arguments_and_ways_in_are_kept_off() {
        let clobbered = placed("free", &[0xd100_4000, CBZ_X0]).unwrap(); // sub x0, x0, #16
        assert_eq!((clobbered.offset, clobbered.is_emulated), (0, false));
        assert!(clobbered.reason.contains("overwrites"), "{}", clobbered.reason);
        // mov x29, sp; cbz x0; b -4 (back to the cbz)
        let looped = placed("free", &[MOV_FP, CBZ_X0, 0x17ff_ffff]).unwrap();
        assert_eq!((looped.offset, looped.is_emulated), (0, false));
        assert!(looped.reason.contains("enters the function"), "{}", looped.reason);
    }

    #[test]
    fn what_is_refused_gets_no_probe() {
        assert_eq!(placed("free", &[]), None);
        assert_eq!(placed("free", &[0xd65f_0bff]), None, "retaa");
        assert_eq!(placed("free", &[0xd420_0000, RET]), None, "a breakpoint that somebody else has set");
        assert_eq!(placed("free", &[0x5800_0040, RET]), None, "ldr x0 from beside it: the argument is gone");
        assert_eq!(placed("free", &[0x5800_0049, RET]).unwrap().offset, 4, "ldr x9 from beside it")
    }
}
