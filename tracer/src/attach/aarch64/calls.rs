//! Whether a function always hands on to another one of the table, on aarch64: the rules of [`crate::attach::calls`].

use tracer_common::func::Shape;

use super::{BYTES, Flow, flow, is_landing, words, writes, zero_branch};
use crate::attach::{
    calls::{Called, MAX_INSTRUCTIONS, Walk},
    code::{Callee, Code},
};

/// As [`crate::attach::calls::forwards_to`].
pub fn forwards_to(code: &Code<'_>, address: u64, shape: Shape, may_differ: bool) -> Option<Called> {
    if !may_differ {
        return jumps_to(code, address, shape);
    }
    Walk::new(code, shape).run(address, |walk, address, _| follow(walk, address))
}

fn word(code: &Code<'_>, address: u64) -> Option<u32> {
    words(code.bytes_at(address)?).next()
}

fn jumps_to(code: &Code<'_>, mut address: u64, shape: Shape) -> Option<Called> {
    if is_landing(word(code, address)?) {
        address = address.checked_add(BYTES)?;
    }
    let Flow::Jump(target) = flow(word(code, address)?, address) else { return None };
    match code.callee(target) {
        Callee::Table(function, address) if function.shape == shape => Some((function, address)),
        _ => None,
    }
}

/// One way, up to its end or its next fork. `None`: it leads around.
fn follow(walk: &mut Walk<'_, '_>, mut address: u64) -> Option<()> {
    let keeps_pointer = !walk.shape.returns_block();
    let extent = walk.code.extent(address);
    while walk.seen.insert(address) {
        if walk.seen.len() > MAX_INSTRUCTIONS {
            return None;
        }
        let word = word(walk.code, address)?;
        let next = address.checked_add(BYTES)?;
        match flow(word, address) {
            Flow::Next => {
                // A way on which the pointer changes counts as a way around, and so does one of which nobody knows.
                if keeps_pointer && writes(word).is_none_or(|written| written & 1 != 0) {
                    return None;
                }
                address = next;
            }
            called @ (Flow::Call(_) | Flow::CallRegister) => {
                let ends = match called {
                    Flow::Call(target) => walk.ends_well(walk.code.callee(target)),
                    _ => false,
                };
                // Behind a call that is the last instruction of its function there is nothing.
                let is_last = extent.as_ref().is_some_and(|extent| !extent.contains(&next));
                if ends || is_last {
                    return Some(());
                }
                // What is called may change the register.
                if keeps_pointer {
                    return None;
                }
                address = next;
            }
            Flow::Jump(target) => match walk.code.callee(target) {
                callee if walk.ends_well(callee) => return Some(()),
                Callee::Inside(target) => address = target,
                _ => return None,
            },
            Flow::Branch(target) => match (keeps_pointer, zero_branch(word)) {
                // Nothing is released where the pointer is null: that way need not be followed.
                (true, Some((false, 0))) => address = next,
                (true, Some((true, 0))) => address = target,
                _ => {
                    walk.fork(target)?;
                    address = next;
                }
            },
            Flow::Return | Flow::JumpRegister | Flow::Stop => return None,
        }
    }
    Some(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::attach::code::tests::{BASE, with_code_for};
    use crate::model::Machine;

    const ALLOCATE: Shape = Shape::Allocate { size: 0 };
    const RELEASE: Shape = Shape::Release { pointer: 0 };
    const STP_FRAME: u32 = 0xa9be_7bfd; // stp x29, x30, [sp, #-32]!
    const RET: u32 = 0xd65f_03c0;

    /// The function that the code forwards to; `malloc`, `free` and `abort` lie behind it, one instruction each.
    fn forwarded(code: &[u32], shape: Shape, may_differ: bool) -> Option<&'static str> {
        let end = code.len() as u64 * BYTES;
        let functions = [("own", 0, end), ("malloc", end, 4), ("free", end + 4, 4), ("abort", end + 8, 4)];
        let padded: Vec<u8> = code.iter().chain(&[RET; 3]).flat_map(|word| word.to_le_bytes()).collect();
        let mut found = None;
        with_code_for(Machine::Aarch64, &padded, &functions, |code| {
            found = crate::attach::calls::forwards_to(code, BASE, shape, may_differ);
        });
        found.map(|(function, _)| function.name)
    }

    #[test]
    fn a_plain_jump_leaves_all_arguments_as_they_are() {
        assert_eq!(forwarded(&[0x1400_0001], ALLOCATE, false), Some("malloc"));
        assert_eq!(forwarded(&[0xd503_245f, 0x1400_0001], ALLOCATE, false), Some("malloc"), "behind bti c");
        assert_eq!(forwarded(&[0x1400_0002], ALLOCATE, false), None, "free is of another shape");
        assert_eq!(forwarded(&[0xd100_4000, 0x1400_0002], RELEASE, false), None, "sub x0, x0, #16");
    }

    #[test]
    fn every_way_must_come_to_a_call_that_serves() {
        // stp; mov x19, x0; mov x0, x19; bl malloc; cbz x0, -8; ret: operator new of libstdc++, in short
        let new = [STP_FRAME, 0xaa00_03f3, 0xaa13_03e0, 0x9400_0003, 0xb4ff_ffc0, RET];
        assert_eq!(forwarded(&new, ALLOCATE, true), Some("malloc"));
        // cbz x0, +8 (around); bl malloc; ret
        assert_eq!(forwarded(&[0xb400_0040, 0x9400_0002, RET], ALLOCATE, true), None);
        // cbz x0, +8; b free; ret: nothing is released where the pointer is null
        assert_eq!(forwarded(&[0xb400_0040, 0x1400_0003, RET], RELEASE, true), Some("free"));
        assert_eq!(forwarded(&[0xd100_4000, 0x1400_0002], RELEASE, true), None, "another pointer");
    }
}
