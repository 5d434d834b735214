//! This process's own stacks, walked by the tables as the kernel does and by the full DWARF walk.

use std::arch::asm;
use std::collections::HashMap;
use std::sync::Mutex;

use offheap::unwind::own_vdso;
use offheap::unwind::process::{ChunkAllocator, MappingSet};
use offheap::unwind::reference::{self, Code, CodeMap, FileCfi, REGISTER_COUNT};
use offheap::unwind::store::TableStore;
use offheap::unwind::table::FileTable;
use tracer_common::abi::*;

use super::kernel::{self, Registers};
use super::libraries::ROOMY;

struct Captured {
    registers: [u64; REGISTER_COUNT],
    stack: Vec<u8>,
}

/// One line of `/proc/self/maps`.
struct Line {
    start: u64,
    end: u64,
    is_executable: bool,
    offset: u64,
    name: String,
}

fn maps() -> Vec<Line> {
    let parse = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-').unwrap();
        let hex = |text| u64::from_str_radix(text, 16).unwrap();
        Line {
            start: hex(start),
            end: hex(end),
            is_executable: fields[1].contains('x'),
            offset: hex(fields[2]),
            name: fields.get(5).copied().unwrap_or_default().to_owned(),
        }
    };
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().map(parse).collect()
}

/// Takes registers and stack of the calling thread.
#[inline(never)]
fn capture() -> Captured {
    let mut registers = [0u64; REGISTER_COUNT];
    // SAFETY: writes only into the array, in which all offsets lie; `lea` has no side effect.
    unsafe {
        asm!(
            "mov [{to} + 24], rbx",
            "mov [{to} + 48], rbp",
            "mov [{to} + 56], rsp",
            "mov [{to} + 96], r12",
            "mov [{to} + 104], r13",
            "mov [{to} + 112], r14",
            "mov [{to} + 120], r15",
            "lea {pc}, [rip]",
            "mov [{to} + 128], {pc}",
            to = in(reg) registers.as_mut_ptr(),
            pc = out(reg) _,
        );
    }
    let sp = registers[7];
    let end = maps().iter().find(|line| (line.start..line.end).contains(&sp)).unwrap().end;
    // SAFETY: the range is mapped and readable, and this thread is inside it: only frames below this one
    // change while it is copied.
    let stack = unsafe { std::slice::from_raw_parts(sp as *const u8, (end - sp) as usize) }.to_vec();
    Captured { registers, stack }
}

struct Process {
    store: TableStore<String>,
    set: MappingSet,
    lines: Vec<Line>,
    files: HashMap<String, FileCfi>,
}

impl Process {
    fn this() -> Self {
        let lines: Vec<_> = maps().into_iter().filter(|line| line.is_executable).collect();
        let mut store = TableStore::new(ROOMY);
        let mut files = HashMap::new();
        let mut mappings = Vec::new();
        for line in &lines {
            let data = match line.name.as_str() {
                "[vdso]" => own_vdso().unwrap().unwrap(),
                path if path.starts_with('/') => std::fs::read(path).unwrap(),
                _ => continue,
            };
            let table = FileTable::from_elf(&data).unwrap();
            let bias = table.bias_of(line.start, line.offset).unwrap();
            assert_eq!(table.covered_end(line.end, bias), line.end, "{}", line.name);
            let page_base = store.add(line.name.clone(), &table).unwrap().page_base;
            mappings.push(Mapping { start: line.start, end: line.end, bias, page_base, kind: MAPPING_FILE });
            files.insert(line.name.clone(), FileCfi::from_elf(&data).unwrap());
        }
        let set = MappingSet::build(&mappings, 1, 1, &mut ChunkAllocator::new(4)).unwrap();
        Self { store, set, lines, files }
    }

    /// Walks both ways, and says how many signal frames there were.
    fn check(&self, captured: &Captured) -> usize {
        let Captured { registers, stack } = captured;
        let start = registers[7];
        let walk = reference::walk(*registers, stack, start, true, self);
        assert_eq!(walk.end, StackEnd::ThreadStart, "{:x?}", walk.frames);
        let kept = Registers { pc: registers[16], sp: start, fp: registers[6] };
        let (frames, end, signals) = kernel::walk(&self.store, &self.set, kept, stack, start);
        assert_eq!((frames, end), (walk.frames, walk.end));
        signals
    }
}

impl CodeMap for Process {
    fn code_at(&self, pc: u64) -> Code<'_> {
        let Some(line) = self.lines.iter().find(|line| (line.start..line.end).contains(&pc)) else {
            return Code::Unmapped;
        };
        match self.files.get(&line.name) {
            Some(cfi) => {
                let bias = cfi.segments().bias_of(line.start, line.offset).unwrap();
                Code::File { cfi, bias }
            }
            None => Code::FramePointer,
        }
    }
}

/// Has frames of many sizes on the stack, at different depths.
#[inline(never)]
fn descend<const BYTES: usize>(depth: u32, to: &mut dyn FnMut()) {
    let mut filler = [0u8; BYTES];
    std::hint::black_box(&mut filler);
    if depth == 0 {
        to();
    } else {
        descend::<BYTES>(depth - 1, to);
    }
    std::hint::black_box(&filler);
}

/// For the measurement of the reference walk.
pub fn time_of_reference_walk(rounds: u32) -> (usize, std::time::Duration) {
    let mut captured = None;
    descend::<100>(30, &mut || captured = Some(capture()));
    let (process, Captured { registers, stack }) = (Process::this(), captured.unwrap());
    let start = std::time::Instant::now();
    let walk_once = |_| reference::walk(registers, &stack, registers[7], true, &process).frames.len();
    let frames = (0..rounds).map(walk_once).max().unwrap();
    (frames, start.elapsed() / rounds)
}

#[test]
fn own_stacks_are_walked_to_the_root_by_both() {
    let mut captured = Vec::new();
    let mut take = || captured.push(capture());
    descend::<8>(3, &mut take);
    descend::<3000>(7, &mut take);
    descend::<70_000>(2, &mut take);
    // By way of libc, which was compiled without frame pointers.
    extern "C" fn compare(left: *const libc::c_void, _: *const libc::c_void) -> i32 {
        // SAFETY: `left` points into the array below, or to a copy that `qsort` made of an element.
        let take = unsafe { &mut **left.cast::<*mut Vec<Captured>>() };
        take.push(capture());
        0
    }
    let mut items = [&raw mut captured; 3];
    // SAFETY: the array has three elements of that size.
    unsafe { libc::qsort(items.as_mut_ptr().cast(), 3, size_of::<*mut Vec<Captured>>(), Some(compare)) };
    assert!(captured.len() >= 5);
    let process = Process::this();
    for captured in &captured {
        assert_eq!(process.check(captured), 0);
    }
}

#[test]
fn signal_frames_are_walked_through_by_both() {
    static CAPTURED: Mutex<Vec<Captured>> = Mutex::new(Vec::new());
    extern "C" fn handler(_: i32) {
        CAPTURED.lock().unwrap().push(capture());
    }
    // SAFETY: the handler runs in this thread, inside `raise`, and no lock of its own is held there.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()), 0);
        assert_eq!(libc::raise(libc::SIGUSR2), 0);
    }
    let captured = CAPTURED.lock().unwrap();
    assert_eq!(captured.len(), 1);
    assert_eq!(Process::this().check(&captured[0]), 1);
}
