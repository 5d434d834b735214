//! Whether a function always hands on to another function of the table: then that one's probe sees all, and a second probe
//! would only cost.
//!
//! What releases must hand on the very pointer it was given. One that frees what lies in front of it (a header of its own)
//! belongs to a function that allocates with one, and that is booked with the pointer which the program was given.

use std::collections::HashSet;

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use tracer_common::func::{Function, Shape};

use super::code::{Callee, Code};
use crate::model::Machine;

/// Most instructions that are looked at in one function and what it jumps to.
pub(super) const MAX_INSTRUCTIONS: usize = 4096;

/// A function that is called, and its address if it is of the same object.
pub type Called = (&'static Function, Option<u64>);

/// The function of the table that a function always calls, whatever way it takes; `None` if there is a way around.
///
/// `may_differ`: whether that one may have other arguments. Without, only a plain jump as the very first instruction
/// counts, which leaves all arguments as they are.
pub fn forwards_to(code: &Code<'_>, address: u64, shape: Shape, may_differ: bool) -> Option<Called> {
    if code.machine() == Machine::Aarch64 {
        return super::aarch64::calls::forwards_to(code, address, shape, may_differ);
    }
    if may_differ { Walk::new(code, shape).run(address, follow) } else { jumps_to(code, address, shape) }
}

fn jumps_to(code: &Code<'_>, address: u64, shape: Shape) -> Option<Called> {
    let mut instruction = code.instruction(address)?;
    if instruction.mnemonic() == Mnemonic::Endbr64 {
        instruction = code.instruction(instruction.next_ip())?;
    }
    match (instruction.mnemonic(), code.destination(&instruction)) {
        (Mnemonic::Jmp, Some(Callee::Table(function, address))) if function.shape == shape => {
            Some((function, address))
        }
        _ => None,
    }
}

/// Whether a call of `callee` does all that a function of shape `caller` is probed for.
fn serves(caller: Shape, callee: Shape) -> bool {
    use Shape::{
        AlignedOut, Allocate, AllocateArray, Release, Resize, ResizeArray, ResizeInPlace, ResizeOrFree,
    };
    match caller {
        Allocate { .. } | AllocateArray { .. } | AlignedOut { .. } => {
            matches!(callee, Allocate { .. } | AllocateArray { .. } | AlignedOut { .. })
        }
        Resize { .. } | ResizeArray { .. } => matches!(callee, Resize { .. } | ResizeArray { .. }),
        ResizeOrFree { .. } => matches!(callee, ResizeOrFree { .. }),
        ResizeInPlace { .. } => matches!(callee, ResizeInPlace { .. }),
        Release { .. } => matches!(callee, Release { .. }),
    }
}

/// A walk over all ways through a function. Each must come to a call that serves, or never return.
pub(super) struct Walk<'c, 'd> {
    pub(super) code: &'c Code<'d>,
    pub(super) shape: Shape,
    pub(super) seen: HashSet<u64>,
    open: Vec<u64>,
    found: Option<Called>,
}

impl<'c, 'd> Walk<'c, 'd> {
    pub(super) fn new(code: &'c Code<'d>, shape: Shape) -> Self {
        Self { code, shape, seen: HashSet::new(), open: Vec::new(), found: None }
    }

    /// Follows each way by `follow`, which is told whether it is at the front of the function.
    pub(super) fn run(
        mut self,
        start: u64,
        follow: impl Fn(&mut Self, u64, bool) -> Option<()>,
    ) -> Option<Called> {
        self.open.push(start);
        while let Some(address) = self.open.pop() {
            follow(&mut self, address, address == start)?;
        }
        self.found
    }

    /// The way of a branch that is taken: followed later, unless it ends well. `None`: it leads around.
    pub(super) fn fork(&mut self, target: u64) -> Option<()> {
        match self.code.callee(target) {
            callee if self.ends_well(callee) => {}
            Callee::Inside(target) => self.open.push(target),
            _ => return None,
        }
        Some(())
    }

    /// Whether a way may end with a call or jump to this.
    pub(super) fn ends_well(&mut self, callee: Callee) -> bool {
        match callee {
            Callee::Table(function, address) if serves(self.shape, function.shape) => {
                self.found = self.found.or(Some((function, address)));
                true
            }
            callee => callee == Callee::NeverReturns,
        }
    }
}

/// One way, up to its end or its next fork. `None`: it leads around.
fn follow(walk: &mut Walk<'_, '_>, mut address: u64, is_front: bool) -> Option<()> {
    let mut tested = false;
    let mut info = InstructionInfoFactory::new();
    let extent = walk.code.extent(address);
    while walk.seen.insert(address) {
        if walk.seen.len() > MAX_INSTRUCTIONS {
            return None;
        }
        let instruction = walk.code.instruction(address)?;
        let next = instruction.next_ip();
        // A way on which the pointer changes counts as a way around.
        if !walk.shape.returns_block() && writes_first_argument(&instruction, &mut info) {
            return None;
        }
        match instruction.flow_control() {
            FlowControl::Next => {
                tested = is_front && is_null_test(&instruction);
                address = next;
                continue;
            }
            FlowControl::Call | FlowControl::IndirectCall => {
                let destination = walk.code.destination(&instruction);
                // Behind a call that is the last instruction of its function there is nothing.
                let is_last = extent.as_ref().is_some_and(|extent| !extent.contains(&next));
                if destination.is_some_and(|callee| walk.ends_well(callee)) || is_last {
                    return Some(());
                }
                // What is called may change the register.
                if !walk.shape.returns_block() {
                    return None;
                }
                address = next;
            }
            FlowControl::UnconditionalBranch | FlowControl::IndirectBranch => {
                match walk.code.destination(&instruction)? {
                    callee if walk.ends_well(callee) => return Some(()),
                    Callee::Inside(target) => address = target,
                    _ => return None,
                }
            }
            FlowControl::ConditionalBranch => {
                let target = instruction.near_branch_target();
                // Nothing is released where the pointer is null: that way need not be followed.
                match (tested && !walk.shape.returns_block(), instruction.mnemonic()) {
                    (true, Mnemonic::Je) => address = next,
                    (true, Mnemonic::Jne) => address = target,
                    _ => {
                        walk.fork(target)?;
                        address = next;
                    }
                }
            }
            _ => return None,
        }
        tested = false;
    }
    Some(())
}

/// Whether an instruction changes the register of the first argument.
fn writes_first_argument(instruction: &Instruction, info: &mut InstructionInfoFactory) -> bool {
    info.info(instruction).used_registers().iter().any(|used| {
        let is_read = matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
        used.register().full_register() == Register::RDI && !is_read
    })
}

/// `test rdi, rdi`: is the first argument null?
fn is_null_test(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Test
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
        && instruction.op0_register() == Register::RDI
        && instruction.op1_register() == Register::RDI
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tracer_common::func::by_name;

    use super::*;
    use crate::attach::code::tests::{BASE, with_code};

    const ALLOCATE: Shape = Shape::Allocate { size: 0 };
    const RELEASE: Shape = Shape::Release { pointer: 0 };

    /// The function that the code forwards to; `malloc`, `free`, `_ZdlPv` and `abort` lie behind it, one byte each.
    fn forwarded(code: &[u8], shape: Shape, may_differ: bool) -> Option<&'static str> {
        let end = code.len() as u64;
        let functions = [("own", 0, end), ("malloc", end, 1), ("free", end + 1, 1), ("abort", end + 2, 1)];
        let padded = [code, &[0xc3; 3]].concat();
        let mut found = None;
        with_code(&padded, &functions, |code| found = forwards_to(code, BASE, shape, may_differ));
        found.map(|(function, address)| {
            assert!(address.is_some());
            function.name
        })
    }

    #[test]
    fn a_plain_jump_leaves_all_arguments_as_they_are() {
        assert_eq!(forwarded(&[0xeb, 0], ALLOCATE, false), Some("malloc"));
        assert_eq!(forwarded(&[0xf3, 0x0f, 0x1e, 0xfa, 0xeb, 0], ALLOCATE, false), Some("malloc"));
        assert_eq!(forwarded(&[0xeb, 1], ALLOCATE, false), None, "free is of another shape");
        assert_eq!(forwarded(&[0x89, 0xff, 0xeb, 0], ALLOCATE, false), None, "an instruction in front");
        assert_eq!(forwarded(&[0x89, 0xff, 0xeb, 0], ALLOCATE, true), Some("malloc"));
    }

    #[test]
    fn every_way_must_lead_there() {
        // push rbx; call malloc; test rax,rax; je +2; pop rbx; ret; (je:) call abort
        let new = [0x53, 0xe8, 12, 0, 0, 0, 0x48, 0x85, 0xc0, 0x74, 2, 0x5b, 0xc3, 0xe8, 2, 0, 0, 0];
        assert_eq!(forwarded(&new, ALLOCATE, true), Some("malloc"));
        // test rdi,rdi; je +2; jmp malloc; ret
        let around = [0x48, 0x85, 0xff, 0x74, 2, 0xeb, 1, 0xc3];
        assert_eq!(forwarded(&around, ALLOCATE, true), None);
        // The same with free: where nothing is given, nothing is released.
        let null = [0x48, 0x85, 0xff, 0x74, 2, 0xeb, 2, 0xc3];
        assert_eq!(forwarded(&null, RELEASE, true), Some("free"));
        // cmp edi,1; je +2; jmp free; ret: no null pointer.
        assert_eq!(forwarded(&[0x83, 0xff, 1, 0x74, 2, 0xeb, 2, 0xc3], RELEASE, true), None);
        assert_eq!(forwarded(&[0xff, 0xe0], ALLOCATE, true), None, "jmp rax");
        assert_eq!(forwarded(&[0xeb, 0xfe], ALLOCATE, true), None, "a loop goes nowhere");
        assert_eq!(forwarded(&[0x06], ALLOCATE, true), None, "no instruction");
    }

    #[test]
    fn another_pointer_is_another_block() {
        assert_eq!(forwarded(&[0x48, 0x83, 0xef, 16, 0xeb, 1], RELEASE, true), None, "sub rdi,16; jmp free");
        // mov rdi,rdi would do no harm, but who knows; an access through it does not change it.
        assert_eq!(forwarded(&[0x48, 0x8b, 0x07, 0xeb, 1], RELEASE, true), Some("free"), "mov rax,[rdi]");
        assert_eq!(forwarded(&[0xff, 0xd0, 0xeb, 1], RELEASE, true), None, "call rax; jmp free");
    }

    #[test]
    fn a_function_serves_its_like() {
        let shape = |name| by_name(name).unwrap().shape;
        assert!(serves(shape("_Znwm"), shape("posix_memalign")));
        assert!(serves(shape("reallocarray"), shape("realloc")));
        assert!(!serves(shape("realloc"), shape("malloc")));
        assert!(!serves(shape("reallocf"), shape("realloc")), "it also frees");
        assert!(!serves(shape("free"), shape("malloc")));
    }
}
