//! Made-up Go programs: every form of the function table, and stacks that change to another stack and back.

use offheap::unwind::GoFunctions;
use offheap::unwind::process::{ChunkAllocator, MappingSet};
use offheap::unwind::reference::{self, Code, CodeMap, FileCfi, REGISTER_COUNT};
use offheap::unwind::store::TableStore;
use offheap::unwind::table::FileTable;
use proptest::prelude::*;
use tracer_common::abi::*;

use super::kernel::{self, Registers};
use super::libraries::ROOMY;

/// Address of the code, which is that of the executable segment.
const TEXT: u64 = 0x40_1000;
/// Bytes from one function to the next.
const STEP: u64 = 0x100;

const ENTER: &[u8] = &[0x55, 0x48, 0x89, 0xe5]; // push rbp; mov rbp, rsp
const COPY: &[u8] = &[0x48, 0x89, 0xe2]; // mov rdx, rsp
const TO_THREAD: &[u8] = &[0x48, 0x8b, 0x66, 0x38]; // mov rsp, [rsi+0x38]
const ALIGN: &[u8] = &[0x48, 0x83, 0xec, 0x40, 0x48, 0x83, 0xe4, 0xf0]; // sub rsp, 0x40; and rsp, -16
const SAVE_GOROUTINE: &[u8] = &[0x48, 0x89, 0x7c, 0x24, 0x30]; // mov [rsp+0x30], rdi
const TO_HIGH: &[u8] = &[0x48, 0x8b, 0x7f, 0x08]; // mov rdi, [rdi+8]
const TO_DEPTH: &[u8] = &[0x48, 0x29, 0xd7]; // sub rdi, rdx
const SAVE_DEPTH: &[u8] = &[0x48, 0x89, 0x7c, 0x24, 0x28]; // mov [rsp+0x28], rdi
const SAVE_COPY: &[u8] = &[0x48, 0x89, 0x54, 0x24, 0x28]; // mov [rsp+0x28], rdx
const CALL: &[u8] = &[0xff, 0xd0]; // call rax
const RETURN: &[u8] = &[0xc3];
/// `sub rsp, 0x28; mov [rsp+0x20], rbp; lea rbp, [rsp+0x20]`: what the compiler began functions with up to Go 1.20.
const FRAME: &[u8] = &[0x48, 0x83, 0xec, 0x28, 0x48, 0x89, 0x6c, 0x24, 0x20, 0x48, 0x8d, 0x6c, 0x24, 0x20];

/// Name and code.
type Source = (&'static str, Vec<u8>);

/// `asmcgocall` of its two forms: with `enter` since Go 1.21.
fn asmcgocall(enter: &[u8]) -> Vec<u8> {
    let switch = [TO_THREAD, ALIGN, SAVE_GOROUTINE, TO_HIGH, TO_DEPTH, SAVE_DEPTH, CALL, RETURN].concat();
    let branch = [0x74, switch.len() as u8]; // je
    [enter, COPY, &branch, &switch, ALIGN, SAVE_COPY, CALL, RETURN].concat()
}

fn program(enter: &[u8]) -> Vec<Source> {
    vec![
        ("main.work", [ENTER, CALL, RETURN].concat()),
        ("runtime.asmcgocall", asmcgocall(enter)),
        ("runtime.cgocall", [FRAME, CALL, RETURN].concat()),
        ("runtime.goexit", vec![0x90; 16]),
        ("runtime.systemstack", [enter, TO_THREAD, CALL, RETURN].concat()),
    ]
}

/// Address of the return address of the `nth` call of a function.
fn behind_call(program: &[Source], function: &str, nth: usize) -> u64 {
    let index = program.iter().position(|(name, _)| *name == function).unwrap();
    let code = &program[index].1;
    let at = (0..code.len() - 1).filter(|at| code[*at..*at + 2] == *CALL).nth(nth).unwrap();
    TEXT + index as u64 * STEP + at as u64 + 2
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Go1_2,
    Go1_16,
    Go1_18,
    /// The table does not say where the code begins, `.go.module` does.
    Go1_26,
    /// No table of a known form; symbols.
    Symbols,
}

const FORMS: [Form; 5] = [Form::Go1_2, Form::Go1_16, Form::Go1_18, Form::Go1_26, Form::Symbols];

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The function table and, for [`Form::Symbols`], none.
fn line_table(program: &[Source], form: Form) -> Vec<u8> {
    let (is_short, header_words) = match form {
        Form::Go1_2 => (false, 1),
        Form::Go1_16 => (false, 7),
        Form::Go1_18 | Form::Go1_26 => (true, 8),
        Form::Symbols => return Vec::new(),
    };
    let width = if is_short { 4 } else { 8 };
    let number = |value: u64| value.to_le_bytes()[..width].to_vec();
    let (mut names, mut places) = (vec![0], Vec::new());
    for (name, _) in program {
        places.push(names.len());
        names.extend(name.as_bytes());
        names.push(0);
    }
    let base = if is_short { TEXT } else { 0 };
    let start = |index: usize| TEXT + index as u64 * STEP - base;
    // From the header: names, then functions, whose records stand behind their table. In the oldest form all
    // offsets are from the header.
    let names_at = 8 + 8 * header_words;
    let functions_at =
        if form == Form::Go1_2 { names_at } else { (names_at + names.len()).next_multiple_of(8) };
    let from = if form == Form::Go1_2 { 0 } else { functions_at };
    let records_at = functions_at + (2 * program.len() + 1) * width;
    let names_in_old = records_at + program.len() * (width + 4);
    let (mut table, mut records) = (Vec::new(), Vec::new());
    for (index, place) in places.iter().enumerate() {
        table.extend(number(start(index)));
        table.extend(number((records_at + records.len() - from) as u64));
        records.extend(number(start(index)));
        let place = if form == Form::Go1_2 { names_in_old + place } else { *place };
        records.extend((place as u32).to_le_bytes());
    }
    table.extend(number(start(program.len())));
    let magic: u32 = match form {
        Form::Go1_2 => 0xffff_fffb,
        Form::Go1_16 => 0xffff_fffa,
        Form::Go1_18 => 0xffff_fff0,
        _ => 0xffff_fff1,
    };
    let mut out = magic.to_le_bytes().to_vec();
    out.extend([0, 0, 1, 8]);
    let count = program.len() as u64;
    let (names_offset, functions_offset) = (names_at as u64, functions_at as u64);
    match form {
        Form::Go1_2 => out.extend(words(&[count])),
        Form::Go1_16 => out.extend(words(&[count, 0, names_offset, 0, 0, 0, functions_offset])),
        _ => {
            let text = if form == Form::Go1_18 { TEXT } else { 0 };
            out.extend(words(&[count, 0, text, names_offset, 0, 0, 0, functions_offset]));
        }
    }
    if form == Form::Go1_2 {
        return [out, table, records, names].concat();
    }
    out.extend(&names);
    out.resize(functions_at, 0);
    [out, table, records].concat()
}

/// Name in the section table, type, contents.
type Section = (&'static str, u32, Vec<u8>);

fn sections(program: &[Source], form: Form) -> Vec<Section> {
    let mut list: Vec<Section> = vec![(".go.buildinfo", 1, vec![0; 32])];
    match form {
        Form::Symbols => {
            let (mut symbols, mut names) = (vec![0; 24], vec![0]);
            for (index, (name, code)) in program.iter().enumerate() {
                symbols.extend((names.len() as u32).to_le_bytes());
                symbols.extend([2, 0, 1, 0]); // STT_FUNC
                symbols.extend(words(&[TEXT + index as u64 * STEP, code.len() as u64]));
                // As symbol tables mark assembly.
                names.extend(format!("{name}.abi0\0").bytes());
            }
            list.extend([(".symtab", 2, symbols), (".strtab", 3, names)]);
        }
        Form::Go1_16 => list.push((".data.rel.ro", 1, [vec![7; 24], line_table(program, form)].concat())),
        _ => list.push((".gopclntab", 1, line_table(program, form))),
    }
    if form == Form::Go1_26 {
        let mut module = vec![0; 176];
        module.extend(words(&[TEXT]));
        list.push((".go.module", 1, module));
    }
    list
}

/// The file: headers, one executable segment with the functions, sections.
fn file(program: &[Source], form: Form) -> Vec<u8> {
    let mut text = Vec::new();
    for (index, (_, code)) in program.iter().enumerate() {
        text.resize(index * STEP as usize, 0xcc);
        text.extend(code);
    }
    text.resize(program.len() * STEP as usize, 0xcc);
    let mut list = sections(program, form);
    let names: Vec<u8> =
        list.iter().flat_map(|(name, ..)| name.bytes().chain([0])).chain(*b".shstrtab\0").collect();
    list.push((".shstrtab", 3, [vec![0], names].concat()));

    let text_offset = 0x1000;
    let mut contents = vec![0; text_offset];
    contents.extend(&text);
    let (mut headers, mut name) = (vec![0; 64], 1u32);
    for (section_name, kind, bytes) in &list {
        contents.resize(contents.len().next_multiple_of(16), 0);
        headers.extend([name.to_le_bytes(), kind.to_le_bytes()].concat());
        headers.extend(words(&[2, 0, contents.len() as u64, bytes.len() as u64, 0, 16, 0]));
        name += section_name.len() as u32 + 1;
        contents.extend(bytes);
    }
    let table = contents.len().next_multiple_of(8);
    contents.resize(table, 0);
    contents.extend(headers);

    let mut head = b"\x7fELF\x02\x01\x01".to_vec();
    head.resize(16, 0);
    head.extend([3, 0, 62, 0, 1, 0, 0, 0]);
    head.extend(words(&[0, 64, table as u64]));
    let count = list.len() as u16 + 1;
    let halves: [u16; 8] = [0, 0, 64, 56, 1, 64, count, count - 1];
    head.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
    head.extend([1u32.to_le_bytes(), 5u32.to_le_bytes()].concat());
    let size_bytes = text.len() as u64;
    head.extend(words(&[text_offset as u64, TEXT, TEXT, size_bytes, size_bytes, 0x1000]));
    contents[..head.len()].copy_from_slice(&head);
    contents
}

#[test]
fn every_form_of_the_function_table_is_read() {
    let program = program(&[]);
    for form in FORMS {
        let functions = GoFunctions::from_elf(&file(&program, form)).unwrap_or_else(|| panic!("{form:?}"));
        for (index, (name, code)) in program.iter().enumerate() {
            let start = TEXT + index as u64 * STEP;
            for address in [start, start + code.len() as u64 - 1] {
                let found = functions.find(address).unwrap();
                assert_eq!((found.start, found.name.trim_end_matches(".abi0")), (start, *name), "{form:?}");
            }
        }
        assert_eq!(functions.find(TEXT - 1), None);
        assert_eq!(functions.find(TEXT + program.len() as u64 * STEP), None);
    }
    assert!(GoFunctions::from_elf(&std::fs::read(super::own_file("libc")).unwrap()).is_none());
}

/// A process with one Go program, and both ways to walk its stacks.
struct Process {
    program: Vec<Source>,
    cfi: FileCfi,
    store: TableStore<String>,
    set: MappingSet,
}

impl CodeMap for Process {
    fn code_at(&self, pc: u64) -> Code<'_> {
        if pc >= TEXT { Code::File { cfi: &self.cfi, bias: 0 } } else { Code::FramePointer }
    }
}

/// C code, which takes frame-pointer steps here.
const C: u64 = 0x1000;
/// Where the captured memory begins: first the goroutine's stack, then the thread's.
const MEMORY: u64 = 0x10_0000;
const GOROUTINE_HIGH: u64 = MEMORY + 0x1000;
const THREAD_SP: u64 = MEMORY + 0x2000;
/// The goroutine's `g`.
const GOROUTINE: u64 = MEMORY + 0x3000;
const MEMORY_END: u64 = MEMORY + 0x3800;

impl Process {
    fn new(program: Vec<Source>, form: Form) -> Self {
        let data = file(&program, form);
        let table = FileTable::from_elf(&data).unwrap();
        let mut store = TableStore::new(ROOMY);
        let page_base = store.add("go".to_owned(), &table).unwrap().page_base;
        let end = TEXT + program.len() as u64 * STEP;
        let mapping = |start, end, kind| Mapping { start, end, bias: 0, page_base, kind };
        let list = [mapping(C, C + 0x100, MAPPING_FRAME_POINTER), mapping(TEXT, end, MAPPING_FILE)];
        let set = MappingSet::build(&list, 1, 1, &mut ChunkAllocator::new(4)).unwrap();
        Self { cfi: FileCfi::from_elf(&data).unwrap(), program, store, set }
    }

    fn behind(&self, function: &str, nth: usize) -> u64 {
        behind_call(&self.program, function, nth)
    }

    /// Walks from C code, whose frame pointer is at [`THREAD_SP`], both ways, and demands that they agree.
    fn walk(&self, memory: &[(u64, u64)]) -> (Vec<u64>, StackEnd) {
        let mut bytes = vec![0; (MEMORY_END - MEMORY) as usize];
        for (address, value) in memory {
            bytes[(address - MEMORY) as usize..][..8].copy_from_slice(&value.to_le_bytes());
        }
        let mut registers = [0; REGISTER_COUNT];
        (registers[6], registers[7], registers[16]) = (THREAD_SP, THREAD_SP - 0x20, C + 8);
        let walk = reference::walk(registers, &bytes, MEMORY, true, self);
        let start = Registers { pc: C + 8, sp: THREAD_SP - 0x20, fp: THREAD_SP };
        let (frames, end, _) = kernel::walk(&self.store, &self.set, start, &bytes, MEMORY);
        assert_eq!((&walk.frames, walk.end), (&frames, end));
        (frames, end)
    }
}

#[test]
fn a_c_call_leads_to_its_goroutine() {
    // With the frame that Go 1.21 and later push, the goroutine's stack begins with the frame pointer.
    for (enter, pushed) in [(&[][..], 0), (ENTER, 8)] {
        let process = Process::new(program(enter), Form::Go1_18);
        let (asmcgocall, cgocall) =
            (process.behind("runtime.asmcgocall", 0), process.behind("runtime.cgocall", 0));
        let (work, root) = (process.behind("main.work", 0), TEXT + 3 * STEP + 1);
        let sp = GOROUTINE_HIGH - 0x100;
        let memory = [
            // C pushed its caller's frame pointer, which is stale: the stack has moved.
            (THREAD_SP, 0xdead),
            (THREAD_SP + 8, asmcgocall),
            (THREAD_SP + 16 + 0x30, GOROUTINE),
            (THREAD_SP + 16 + 0x28, GOROUTINE_HIGH - sp),
            (GOROUTINE + 8, GOROUTINE_HIGH),
            (sp + pushed, cgocall),
            // cgocall's frame of 0x28 bytes, the last of them the frame pointer.
            (sp + pushed + 8 + 0x20, GOROUTINE_HIGH - 0x40),
            (sp + pushed + 8 + 0x28, work),
            (GOROUTINE_HIGH - 0x40, 0),
            (GOROUTINE_HIGH - 0x38, root),
        ];
        let expected = vec![C + 8, asmcgocall, cgocall, work, root];
        assert_eq!(process.walk(&memory), (expected, StackEnd::ThreadStart), "{enter:x?}");
        // Nothing that the goroutine says is believed without looking.
        let mut broken = memory;
        broken[4].1 = u64::MAX;
        assert!(!process.walk(&broken).1.is_whole());
        broken[4].1 = GOROUTINE_HIGH + 1;
        assert_eq!(process.walk(&broken).1, StackEnd::BadFrame);
        broken[2].1 = 0;
        assert_eq!(process.walk(&broken).1, StackEnd::ReadFault);
    }
}

#[test]
fn a_c_call_on_the_threads_own_stack_stays_there() {
    for (enter, above) in [(&[][..], 0), (ENTER, 8)] {
        let process = Process::new(program(enter), Form::Go1_16);
        let (asmcgocall, work) = (process.behind("runtime.asmcgocall", 1), process.behind("main.work", 0));
        let (saved, root) = (THREAD_SP + 0x80, TEXT + 3 * STEP + 1);
        let memory = [
            (THREAD_SP, THREAD_SP + 0xc0),
            (THREAD_SP + 8, asmcgocall),
            (THREAD_SP + 16 + 0x28, saved),
            // Where the frame pointer is pushed, else the return address.
            (saved, THREAD_SP + 0xc0),
            (saved + above, work),
            (THREAD_SP + 0xc8, root),
        ];
        let expected = vec![C + 8, asmcgocall, work, root];
        assert_eq!(process.walk(&memory), (expected, StackEnd::ThreadStart), "{enter:x?}");
    }
}

#[test]
fn systemstack_leads_back_where_it_keeps_a_frame() {
    let process = Process::new(program(ENTER), Form::Go1_26);
    let (systemstack, work) = (process.behind("runtime.systemstack", 0), process.behind("main.work", 0));
    let (frame, root) = (GOROUTINE_HIGH - 0x80, TEXT + 3 * STEP + 1);
    let memory = [
        (THREAD_SP, frame),
        (THREAD_SP + 8, systemstack),
        (frame, frame + 0x20),
        (frame + 8, work),
        (frame + 0x28, root),
    ];
    let expected = vec![C + 8, systemstack, work, root];
    assert_eq!(process.walk(&memory), (expected, StackEnd::ThreadStart));
    // Up to Go 1.20 it does not: the stack ends there, and says so.
    let process = Process::new(program(&[]), Form::Go1_18);
    let systemstack = process.behind("runtime.systemstack", 0);
    let memory = [(THREAD_SP, frame), (THREAD_SP + 8, systemstack)];
    assert_eq!(process.walk(&memory), (vec![C + 8, systemstack], StackEnd::GoBoundary));
    assert!(StackEnd::GoBoundary.is_whole());
}

#[test]
fn an_unknown_asmcgocall_is_a_boundary() {
    let mut program = program(&[]);
    program[1].1 = [TO_THREAD, ALIGN, CALL, RETURN].concat();
    let process = Process::new(program, Form::Symbols);
    let asmcgocall = process.behind("runtime.asmcgocall", 0);
    let memory = [(THREAD_SP, 0), (THREAD_SP + 8, asmcgocall)];
    assert_eq!(process.walk(&memory), (vec![C + 8, asmcgocall], StackEnd::GoBoundary));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn any_damage_is_survived(
        form in prop::sample::select(&FORMS[..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        length in any::<prop::sample::Index>(),
    ) {
        let mut data = file(&program(ENTER), form);
        // The pages between the headers and the code are empty.
        for (index, byte) in changes {
            let index = 0x1000 + index.index(data.len() - 0x1000);
            data[index] = byte;
        }
        for data in [&data[..], &data[..length.index(data.len())]] {
            if let Ok(table) = FileTable::from_elf(data) {
                prop_assert!(table.rules().windows(2).all(|pair| pair[0].address < pair[1].address));
            }
            let _ = (FileCfi::from_elf(data), GoFunctions::from_elf(data));
        }
    }

    #[test]
    fn any_code_is_survived(code in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut program = program(&[]);
        program[1].1 = code;
        prop_assert!(FileTable::from_elf(&file(&program, Form::Go1_18)).is_ok());
    }
}
