//! Where a function is left.
//!
//! A return probe puts the kernel's trampoline in the place of the return address, and no unwind table tells what lies
//! there: a C++ exception that comes through ends in `std::terminate`. So the functions that may throw have probes on
//! their `ret` instructions instead, and on those of the functions that they jump to at their end (slow paths, parts that
//! the compiler has split off). At a `ret` the stack pointer is what it was at entry, by which the program knows
//! whose end it sees.
//!
//! A breakpoint in the middle of an instruction would break the target. So a `ret` counts only where control flow from the
//! function's entry leads to it, step by step.

use std::collections::{BTreeSet, HashSet};

use iced_x86::FlowControl;

use super::code::{Callee, Code};
use crate::model::Machine;

/// Most exits of one function.
const MAX_EXITS: usize = 64;
/// Most instructions that are looked at for one function.
const MAX_INSTRUCTIONS: usize = 32 << 10;

/// The exits of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    /// Offsets in the file of the instructions to probe.
    pub file_offsets: Vec<u64>,
    /// Ways out that cannot be followed; calls that take them are not booked.
    pub gaps: Vec<String>,
}

/// Finds the exits of the function at `address`. `is_probed` tells functions that have probes of their own: their end is
/// seen by those.
pub fn exits(code: &Code<'_>, address: u64, is_probed: impl Fn(u64) -> bool) -> Exits {
    // Where a function keeps its return address is needed too, to tell calls that an exception has left from those that
    // still run.
    if code.machine() == Machine::Aarch64 {
        let gap = "exits are not looked for in code of aarch64".to_owned();
        return Exits { file_offsets: Vec::new(), gaps: vec![gap] };
    }
    let mut search = Search {
        code,
        is_probed,
        seen: HashSet::new(),
        open: vec![address],
        rets: BTreeSet::new(),
        gaps: BTreeSet::new(),
    };
    while let Some(address) = search.open.pop() {
        search.follow(address);
        if search.seen.len() > MAX_INSTRUCTIONS || search.rets.len() > MAX_EXITS {
            search.gaps.insert("it has more exits than are looked for".to_owned());
            break;
        }
    }
    let file_offsets = search.rets.iter().filter_map(|ret| code.file_offset(*ret)).take(MAX_EXITS).collect();
    Exits { file_offsets, gaps: search.gaps.into_iter().collect() }
}

struct Search<'c, 'd, P> {
    code: &'c Code<'d>,
    is_probed: P,
    seen: HashSet<u64>,
    open: Vec<u64>,
    rets: BTreeSet<u64>,
    gaps: BTreeSet<String>,
}

impl<P: Fn(u64) -> bool> Search<'_, '_, P> {
    /// Follows one way to its end.
    fn follow(&mut self, mut address: u64) {
        // Behind a call that never returns there may be another function, or nothing: its end is where the
        // unwind table says.
        let extent = self.code.extent(address);
        while self.seen.insert(address) && self.seen.len() <= MAX_INSTRUCTIONS {
            let Some(instruction) = self.code.instruction(address) else {
                self.gaps.insert(format!("its code cannot be decoded at {address:#x}"));
                return;
            };
            let next = instruction.next_ip();
            match instruction.flow_control() {
                FlowControl::Return => {
                    self.rets.insert(address);
                    return;
                }
                FlowControl::UnconditionalBranch | FlowControl::IndirectBranch => {
                    match self.code.destination(&instruction) {
                        None => {
                            self.gaps.insert(format!(
                                "it jumps at {address:#x} to where only the processor knows"
                            ));
                        }
                        Some(callee) => self.branch(callee),
                    }
                    return;
                }
                FlowControl::ConditionalBranch => {
                    self.branch(self.code.callee(instruction.near_branch_target()))
                }
                FlowControl::Call | FlowControl::IndirectCall => {
                    if self.code.destination(&instruction) == Some(Callee::NeverReturns) {
                        return;
                    }
                    match &extent {
                        Some(extent) if extent.contains(&next) => {}
                        Some(_) => return,
                        // Nothing tells whether what follows is still this function, or code at all.
                        None => {
                            self.gaps.insert(format!("no table tells how far its code at {address:#x} goes"));
                            return;
                        }
                    }
                }
                FlowControl::Next => {}
                // Interrupts, `ud2`, `hlt`: nothing comes back.
                _ => return,
            }
            address = next;
        }
    }

    fn branch(&mut self, callee: Callee) {
        match callee {
            Callee::Inside(target) | Callee::Table(_, Some(target)) => {
                if !(self.is_probed)(target) {
                    self.open.push(target);
                }
            }
            Callee::Outside => {
                self.gaps.insert("it jumps into another object".to_owned());
            }
            // Of another object, where it has probes.
            Callee::Table(_, None) | Callee::NeverReturns => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::code::tests::{BASE, with_code};

    /// Exits as offsets from the start of the code, and gaps.
    fn found(code: &[u8], functions: &[(&str, u64, u64)], probed: &[u64]) -> (Vec<u64>, Vec<String>) {
        with_code(code, functions, |code| {
            let start = code.file_offset(BASE).unwrap_or(0);
            let Exits { file_offsets, gaps } =
                exits(code, BASE, |address| probed.contains(&(address.wrapping_sub(BASE))));
            (file_offsets.into_iter().map(|offset| offset - start).collect(), gaps)
        })
    }

    #[test]
    fn every_ret_counts_and_what_looks_like_one_does_not() {
        // mov eax,0xc3c3c3c3; test edi,edi; je +1; ret; nop; ret
        let code = [0xb8, 0xc3, 0xc3, 0xc3, 0xc3, 0x85, 0xff, 0x74, 1, 0xc3, 0x90, 0xc3, 0xc3];
        assert_eq!(found(&code, &[], &[]), (vec![9, 11], vec![]));
    }

    #[test]
    fn a_jump_at_the_end_is_followed() {
        // je +3; jmp +2 (5); ret; (5:) call +0; ret
        let code = [0x74, 2, 0xeb, 1, 0xc3, 0xe8, 0, 0, 0, 0, 0xc3];
        let functions = [("malloc", 0, 5), ("calloc", 5, 6)];
        assert_eq!(found(&code, &functions, &[]), (vec![4, 10], vec![]));
        assert_eq!(found(&code, &functions, &[5]), (vec![4], vec![]), "it has probes of its own");
    }

    #[test]
    fn behind_the_last_call_of_a_function_there_is_nothing() {
        // test edi,edi; je +1; ret; call +0; | ret
        let code = [0x85, 0xff, 0x74, 1, 0xc3, 0xe8, 0, 0, 0, 0, 0xc3];
        assert_eq!(found(&code, &[("malloc", 0, 10)], &[]), (vec![4], vec![]));
        assert_eq!(found(&code, &[("malloc", 0, 11)], &[]), (vec![4, 10], vec![]));
        let (rets, gaps) = found(&code, &[], &[]);
        assert_eq!((rets, gaps.len()), (vec![4], 1), "without a size the rest is unknown: {gaps:?}");
    }

    #[test]
    fn what_cannot_be_followed_is_told() {
        let (rets, gaps) = found(&[0x74, 1, 0xc3, 0xff, 0xe0], &[("malloc", 0, 5)], &[]);
        assert_eq!(rets, [2]);
        assert!(gaps[0].contains("only the processor knows"), "{gaps:?}");
        let (rets, gaps) = found(&[0x74, 1, 0xc3, 0xe9, 0, 0, 1, 0], &[("malloc", 0, 8)], &[]);
        assert_eq!(rets, [2]);
        assert!(gaps[0].contains("another object"), "{gaps:?}");
        let (rets, gaps) = found(&[0x06, 0xc3], &[], &[]);
        assert!(rets.is_empty() && gaps[0].contains("decoded"), "{gaps:?}");
    }

    #[test]
    fn there_is_a_bound() {
        let code: Vec<u8> = std::iter::repeat_n([0x74, 1, 0xc3], 100).flatten().chain([0xc3]).collect();
        let (rets, gaps) = found(&code, &[("malloc", 0, 301)], &[]);
        assert!(rets.len() <= MAX_EXITS && gaps[0].contains("more exits"), "{} {gaps:?}", rets.len());
    }

    proptest::proptest! {
        /// Whatever the bytes are: an exit is a `ret`.
        #[test]
        fn any_code_is_survived(code in proptest::collection::vec(proptest::prelude::any::<u8>(), 1..200)) {
            let (rets, _) = found(&code, &[("malloc", 0, code.len() as u64)], &[]);
            for ret in rets {
                let at = usize::try_from(ret).unwrap_or(usize::MAX);
                let is_ret = |byte: &u8| matches!(byte, 0xc2 | 0xc3 | 0xca | 0xcb | 0xcf);
                // Prefixes may stand in front.
                proptest::prop_assert!(code[at..].iter().take(15).any(is_ret) || code[at..].contains(&0x0f));
            }
        }
    }
}
