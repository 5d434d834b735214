//! Tables of real files against what gimli says about them, at every address where anything changes.

use std::path::Path;

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EndianSlice, EvaluationResult, LittleEndian, Location,
    RegisterRule, UnwindContext, UnwindSection, UnwindTableRow, Value, X86_64,
};
use object::{Object, ObjectSection, ObjectSymbol};
use offheap::unwind::own_vdso;
use offheap::unwind::store::{StoreLimits, TableStore};
use offheap::unwind::table::FileTable;
use tracer_common::row::*;

use super::kernel::{Outcome, Registers, follow};
use super::own_file;

pub const ROOMY: StoreLimits = StoreLimits { page_chunks: 4096, row_chunks: 65_536, escapes: MAX_ESCAPES };
const SP: u64 = 0x7ffc_0000_0000;
const FP: u64 = 0x7ffc_0123_4560;

/// A memory in which every word differs from every other, and is a multiple of 8 as saved stack pointers are.
fn memory(address: u64) -> u64 {
    (address ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15) & !7
}

/// One row as gimli has it.
struct Row {
    start: u64,
    end: u64,
    outcome: Expected,
}

enum Expected {
    Is(Outcome),
    /// The CFA depends on the program counter.
    AtPc(Vec<u8>),
}

fn evaluate(expression: &[u8], pc: u64, initial: Option<u64>) -> u64 {
    let encoding = gimli::Encoding { format: gimli::Format::Dwarf32, version: 4, address_size: 8 };
    let mut evaluation = gimli::Expression(EndianSlice::new(expression, LittleEndian)).evaluation(encoding);
    if let Some(initial) = initial {
        evaluation.set_initial_value(initial);
    }
    let mut result = evaluation.evaluate().unwrap();
    loop {
        result = match result {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresMemory { address, .. } => {
                evaluation.resume_with_memory(Value::Generic(memory(address))).unwrap()
            }
            EvaluationResult::RequiresRegister { register, .. } => {
                evaluation.resume_with_register(Value::Generic(register_value(register, pc))).unwrap()
            }
            other => panic!("{other:?}"),
        };
    }
    match evaluation.as_result()[0].location {
        Location::Address { address } => address,
        ref other => panic!("{other:?}"),
    }
}

fn register_value(register: gimli::Register, pc: u64) -> u64 {
    match register {
        X86_64::RSP => SP,
        X86_64::RBP => FP,
        X86_64::RA => pc,
        other => 0x1111_1111_0000 + u64::from(other.0),
    }
}

fn expected(section: &EhFrame<EndianSlice<'_, LittleEndian>>, row: &UnwindTableRow<usize>) -> Expected {
    let bytes =
        |expression: &gimli::UnwindExpression<usize>| expression.get(section).unwrap().0.slice().to_vec();
    let pc = row.start_address();
    if row.register(X86_64::RA) == Some(RegisterRule::Undefined) {
        return Expected::Is(Outcome::End(tracer_common::abi::StackEnd::ThreadStart));
    }
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            register_value(*register, pc).wrapping_add_signed(*offset)
        }
        CfaRule::Expression(expression) => {
            let bytes = bytes(expression);
            if bytes.len() > 4 && bytes.contains(&0x80) {
                return Expected::AtPc(bytes);
            }
            evaluate(&bytes, pc, None)
        }
    };
    let value = |register| match row.register(register) {
        None | Some(RegisterRule::SameValue) => register_value(register, pc),
        Some(RegisterRule::Offset(offset)) => memory(cfa.wrapping_add_signed(offset)),
        Some(RegisterRule::Register(other)) => register_value(other, pc),
        Some(RegisterRule::Expression(e)) => memory(evaluate(&bytes(&e), pc, Some(cfa))),
        other => panic!("{other:?} at {pc:#x}"),
    };
    let caller = Registers { pc: value(X86_64::RA), sp: cfa, fp: value(X86_64::RBP) };
    Expected::Is(Outcome::Caller(caller))
}

/// Every row of `.eh_frame`, sorted.
fn rows_of(data: &[u8]) -> Vec<Row> {
    let file = object::File::parse(data).unwrap();
    let section = file.section_by_name(".eh_frame").expect(".eh_frame");
    let bytes = section.uncompressed_data().unwrap();
    let bases = BaseAddresses::default().set_eh_frame(section.address());
    let eh_frame = EhFrame::new(&bytes, LittleEndian);
    let (mut rows, mut context) = (Vec::new(), UnwindContext::new());
    let mut entries = eh_frame.entries(&bases);
    while let Some(entry) = entries.next().unwrap() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let fde = partial.parse(|section, bases, offset| section.cie_from_offset(bases, offset)).unwrap();
        let mut table = fde.rows(&eh_frame, &bases, &mut context).unwrap();
        while let Some(row) = table.next_row().unwrap() {
            if row.start_address() < row.end_address() {
                let outcome = expected(&eh_frame, row);
                rows.push(Row { start: row.start_address(), end: row.end_address(), outcome });
            }
        }
    }
    rows.sort_by_key(|row| row.start);
    assert!(rows.windows(2).all(|pair| pair[0].end <= pair[1].start), "overlapping FDEs");
    rows
}

/// Compares the table of a file, through the store, with gimli's rows; every `step`th row is looked at.
/// Returns addresses compared and addresses that the table does not support.
fn compare(path: &Path, data: &[u8], step: usize) -> (u64, u64) {
    let table = FileTable::from_elf(data).unwrap();
    assert_eq!(table.stats().malformed_fde_count, 0, "{path:?}");
    let mut store = TableStore::new(ROOMY);
    let base = store.add((), &table).unwrap().page_base;
    let (rows, span) = (rows_of(data), table.segments().span());
    let entry = object::File::parse(data).unwrap().entry();
    assert!(rows.len() > 4, "{path:?}");
    let mut compared = 0u64;
    let mut unsupported = 0u64;
    for (index, row) in rows.iter().enumerate().step_by(step) {
        for address in [row.start - 1, row.start, row.start + 1, row.end - 1, row.end, row.end + 1] {
            if !(span.0..span.1).contains(&address) {
                continue;
            }
            let near = &rows[index.saturating_sub(2)..(index + 3).min(rows.len())];
            let rule = store.lookup(base, address);
            let seen = Registers { pc: address, sp: SP, fp: FP };
            let outcome = follow(rule, store.escape(rule), seen, |address| Ok(memory(address))).unwrap();
            let expected =
                near.iter().find(|row| (row.start..row.end).contains(&address)).map(|row| &row.outcome);
            let expected = match expected {
                Some(Expected::Is(outcome)) => *outcome,
                Some(Expected::AtPc(expression)) => {
                    let cfa = evaluate(expression, address, None);
                    Outcome::Caller(Registers { pc: memory(cfa - 8), sp: cfa, fp: FP })
                }
                // Padding, or the stub at the entry point.
                None if outcome != Outcome::FramePointer => {
                    let gap_start = near.iter().map(|row| row.end).filter(|end| *end <= address).max();
                    let starts = near.iter().map(|row| row.start).chain([entry]);
                    let gap_end = starts.filter(|start| *start > address).min();
                    let gap_bytes = gap_start.zip(gap_end).map(|(start, end)| end - start);
                    assert!(
                        gap_bytes.is_some_and(|bytes| bytes <= 15)
                            || (outcome == Outcome::End(tracer_common::abi::StackEnd::ThreadStart)
                                && (entry..entry + 256).contains(&address)),
                        "{path:?} at {address:#x}: {outcome:?} in a gap of {gap_bytes:?} bytes"
                    );
                    continue;
                }
                None => Outcome::FramePointer,
            };
            compared += 1;
            if outcome == Outcome::Unsupported {
                unsupported += 1;
            } else {
                assert_eq!(outcome, expected, "{path:?} at {address:#x}, rule {rule:#x}");
            }
        }
    }
    (compared, unsupported)
}

fn check(path: &Path, step: usize) {
    let data = std::fs::read(path).unwrap();
    let (compared, unsupported) = compare(path, &data, step);
    let stats = FileTable::from_elf(&data).unwrap().stats();
    println!("{}: {compared} addresses, {unsupported} unsupported; {stats:?}", path.display());
    // OpenSSL's assembly keeps the CFA in rax and rsi while it sets up its frames.
    let per_mille = if path.ends_with("libcrypto.so.3") { 15 } else { 5 };
    assert!(stats.unsupported_row_count * 1000 <= stats.row_count * per_mille, "{path:?}: {stats:?}");
}

/// Checks a file that is not on every machine.
fn check_optional(path: &str, step: usize) {
    if Path::new(path).exists() {
        check(Path::new(path), step);
    } else {
        println!("SKIPPED: `{path}` is not installed");
    }
}

#[test]
fn libc_and_loader_and_this_program() {
    check(&own_file("libc.so"), 1);
    check(&own_file("ld-linux"), 1);
    check(&std::env::current_exe().unwrap(), 1);
}

#[test]
fn vdso() {
    let image = own_vdso().unwrap().expect("a vDSO");
    let (compared, unsupported) = compare(Path::new("[vdso]"), &image, 1);
    assert!(compared > 50 && unsupported == 0, "{compared} {unsupported}");
    assert_eq!(FileTable::from_elf(&image).unwrap().bias_of(0x7fff_0000, 0), Some(0x7fff_0000));
}

#[test]
fn cpp_runtime_and_python() {
    check_optional("/usr/lib/x86_64-linux-gnu/libstdc++.so.6", 1);
    check_optional("/usr/bin/python3.11", 1);
    check_optional("/usr/lib/x86_64-linux-gnu/libcrypto.so.3", 1);
}

#[test]
fn node() {
    check_optional("/usr/bin/node", 3);
}

#[test]
fn java() {
    check_optional("/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so", 1);
    check_optional("/usr/lib/jvm/temurin-25-jdk-amd64/lib/server/libjvm.so", 5);
}

#[test]
fn cargo() {
    check_optional(env!("CARGO"), 3);
}

#[test]
#[ignore = "takes minutes in the dev profile"]
fn rust_compiler() {
    let libraries = Path::new(env!("CARGO")).parent().unwrap().join("../lib");
    for entry in std::fs::read_dir(libraries).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains("librustc_driver") {
            check(&path, 1);
        }
    }
}

/// Address and size of a symbol.
fn symbol(data: &[u8], name: &str) -> Option<(u64, u64)> {
    let file = object::File::parse(data).unwrap();
    let mut symbols = file.symbols().chain(file.dynamic_symbols());
    symbols.find(|symbol| symbol.name() == Ok(name)).map(|symbol| (symbol.address(), symbol.size()))
}

#[test]
fn thread_roots_end_stacks() {
    let libc = std::fs::read(own_file("libc.so")).unwrap();
    let table = FileTable::from_elf(&libc).unwrap();
    let (clone, size_bytes) = symbol(&libc, "clone").unwrap();
    assert!((clone..clone + size_bytes).any(|address| kind(table.rule_at(address)) == KIND_END));

    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let table = FileTable::from_elf(&program).unwrap();
    let start = object::File::parse(&*program).unwrap().entry();
    assert_eq!(symbol(&program, "_start").unwrap().0, start);
    assert!((start + 4..start + 0x20).all(|address| kind(table.rule_at(address)) == KIND_END));
}

#[test]
fn the_loaders_start_code_is_a_root_as_a_whole() {
    let loader = std::fs::read(own_file("ld-linux")).unwrap();
    let table = FileTable::from_elf(&loader).unwrap();
    let entry = object::File::parse(&*loader).unwrap().entry();
    assert!(rows_of(&loader).iter().all(|row| !(row.start..row.end).contains(&entry)), "it has an FDE here");
    // `_start` is 8 bytes long, `_dl_start_user` follows.
    assert!((entry..entry + 8 + 40).all(|address| kind(table.rule_at(address)) == KIND_END));
    assert!(kind(table.rule_at(entry + 256)) != KIND_END);
}

#[test]
fn signal_return_is_a_signal_frame() {
    let libc = std::fs::read(own_file("libc.so")).unwrap();
    let table = FileTable::from_elf(&libc).unwrap();
    // mov $15, %rax; syscall
    let code = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
    let signals: Vec<_> = table.rules().iter().filter(|start| kind(start.rule) == KIND_SIGNAL).collect();
    let [signal] = signals[..] else { panic!("{signals:?}") };
    // The FDE begins one byte early, for those who look up the return address minus one.
    let file = object::File::parse(&*libc).unwrap();
    let text = file.section_by_name(".text").unwrap();
    let found = text.data_range(signal.address + 1, code.len() as u64).unwrap();
    assert_eq!(found, Some(&code[..]));
}

#[test]
fn procedure_linkage_tables_are_recognised() {
    let libc = std::fs::read(own_file("libc.so")).unwrap();
    let table = FileTable::from_elf(&libc).unwrap();
    let file = object::File::parse(&*libc).unwrap();
    let plt = file.section_by_name(".plt").unwrap();
    let rule = table.rule_at(plt.address() + 0x10);
    assert_eq!((kind(rule), cfa_field(rule)), (KIND_PLT, 11));
    assert_eq!(table.rule_at(plt.address() + plt.size() - 1), rule);
}
