//! The reference walk on made-up stacks: how each kind of code is stepped through, and every end.

use offheap::unwind::reference::{Code, CodeMap, FileCfi, REGISTER_COUNT, Walk, walk};
use tracer_common::abi::{MAX_FRAMES, StackEnd};

use super::elf_file::*;

const STACK: u64 = 0x7fff_0000;
const BIAS: u64 = 0x10_0000;
/// Runtime address of the function at the offset.
const fn code(offset: u64) -> u64 {
    BASE + BIAS + offset
}

const PLAIN: u64 = code(0x1000);
const ROOT: u64 = code(0x2000);
const UNSUPPORTED: u64 = code(0x3000);
const STUB: u64 = code(0x5000);
const JIT: u64 = 0x100;
const TRAMPOLINE: u64 = 0x200;
const PROBES: u64 = 0x300;
const UNREADABLE: u64 = 0x400;
const NOTHING: u64 = 0x500;

struct Map(FileCfi);

impl CodeMap for Map {
    fn code_at(&self, pc: u64) -> Code<'_> {
        match pc {
            JIT..0x200 => Code::FramePointer,
            TRAMPOLINE..0x300 => Code::Trampoline,
            PROBES..0x400 => Code::ReturnProbe,
            UNREADABLE..0x500 => Code::NoTable,
            BASE.. => Code::File { cfi: &self.0, bias: BIAS },
            _ => Code::Unmapped,
        }
    }
}

fn map() -> Map {
    // From its byte 0x10 on, the first one has pushed rbp.
    let pushed = [vec![ADVANCE_16], vec![0x0e, 16], saved_below(6, 2)].concat();
    let functions = [
        Function::new(0x1000, 0x100, &pushed),
        Function::new(0x2000, 0x100, &[0x07, 16]),
        Function::new(0x3000, 0x100, &cfa_expression(&[0x96])),
    ];
    Map(FileCfi::from_elf(&file(&functions, BASE + 0x5000, Found::ByEhFrameSection)).unwrap())
}

/// Walks from `pc` with rsp at the first of the words.
fn walk_from(pc: u64, fp: u64, words: &[u64], is_leaf: bool) -> Walk {
    let mut registers = [0; REGISTER_COUNT];
    (registers[6], registers[7], registers[16]) = (fp, STACK, pc);
    let stack: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    walk(registers, &stack, STACK, is_leaf, &map())
}

#[test]
fn every_kind_of_code_is_stepped_through() {
    let words = [
        // rbp pushed by PLAIN, and the return addresses of it, of the trampoline, of the JIT code.
        STACK + 32,
        TRAMPOLINE + 7,
        0,
        JIT + 8,
        0x77,
        ROOT + 4,
    ];
    let found = walk_from(PLAIN + 0x20, 1, &words, true);
    let frames = vec![PLAIN + 0x20, TRAMPOLINE + 7, JIT + 8, ROOT + 4];
    assert_eq!(found, Walk { frames, end: StackEnd::ThreadStart, left_stack: false });
}

#[test]
fn only_a_leaf_is_looked_up_at_its_own_address() {
    // At byte 0x10 the row changes; a return address there belongs to the byte before.
    let words = [ROOT + 4, UNREADABLE + 4];
    assert_eq!(walk_from(PLAIN + 0x10, 1, &words, false).end, StackEnd::ThreadStart);
    assert_eq!(walk_from(PLAIN + 0x10, 1, &words, true).end, StackEnd::NoTable);
}

#[test]
fn every_end_has_its_reason() {
    let end = |pc, fp, words: &[u64]| walk_from(pc, fp, words, true).end;
    assert_eq!(end(ROOT, 1, &[]), StackEnd::ThreadStart);
    assert_eq!(end(STUB, 1, &[]), StackEnd::ThreadStart);
    assert_eq!(end(UNSUPPORTED, 1, &[]), StackEnd::UnsupportedRule);
    assert_eq!(end(PROBES, 1, &[]), StackEnd::ForeignReturnProbe);
    assert_eq!(end(UNREADABLE, 1, &[]), StackEnd::NoTable);
    assert_eq!(end(NOTHING, 1, &[]), StackEnd::NoMapping);
    assert_eq!(end(0, 1, &[]), StackEnd::NullReturn);
    assert_eq!(end(PLAIN, 1, &[0]), StackEnd::NullReturn);
    assert_eq!(end(PLAIN, 1, &[]), StackEnd::ReadFault);
    assert_eq!(end(JIT, 0, &[1, 1]), StackEnd::FramePointerZero);
    // In a gap of a file that has information elsewhere.
    assert_eq!(end(code(0x4000), 0, &[]), StackEnd::FramePointerZero);
    assert_eq!(end(JIT, STACK - 16, &[1, 1]), StackEnd::BadFrame);
    assert_eq!(end(JIT, STACK + 4, &[1, 1, 1]), StackEnd::BadFrame);
    assert_eq!(end(JIT, u64::MAX - 7, &[1, 1]), StackEnd::BadFrame);
    assert_eq!(end(JIT, STACK, &[1]), StackEnd::ReadFault);
}

#[test]
fn a_deep_stack_is_cut_off_at_its_outer_end() {
    let found = walk_from(PLAIN, 1, &[PLAIN + 4; 2 * MAX_FRAMES], true);
    assert_eq!((found.frames.len(), found.end), (MAX_FRAMES, StackEnd::Truncated));
    let mut words = [PLAIN + 4; MAX_FRAMES - 1];
    words[MAX_FRAMES - 2] = ROOT + 4;
    let found = walk_from(PLAIN, 1, &words, true);
    assert_eq!((found.frames.len(), found.end), (MAX_FRAMES, StackEnd::ThreadStart));
}
