//! Symbolization of real files, made by the compiler at hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use object::{Object, ObjectSection, ObjectSymbol};

use super::elf::ElfFacts;
use super::*;

const SOURCE: &str = "#include <cstdlib>
namespace pool {
inline __attribute__((always_inline)) void *take(unsigned long size) {
  return std::malloc(size + 1);
}
__attribute__((noinline)) void *scratch(unsigned long size) {
  void *block = take(size);
  if (block) *static_cast<char *>(block) = 1;
  return block;
}
}
int main(int count, char **) { return pool::scratch(count) == nullptr; }
";
const ID: ObjectId = ObjectId(7);

/// A directory that plays a target's root, with the program in `/app`.
struct Target {
    root: tempfile::TempDir,
}

impl Target {
    fn build(flags: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("app")).unwrap();
        let target = Self { root };
        fs::write(target.path("app/pool.cc"), SOURCE).unwrap();
        target.run("g++", &[&["-O2", "-g", "pool.cc", "-o", "pool"], flags].concat());
        target
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.path().join(relative)
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let output = Command::new(program).args(arguments).current_dir(self.path("app")).output().unwrap();
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Splits the debug information off into `pool.debug`; gives the range of `scratch`, which the stripped
    /// file does not have any more.
    fn split(&self) -> std::ops::Range<u64> {
        let range = self.range_of("_ZN4pool7scratchEm");
        self.run("objcopy", &["--only-keep-debug", "pool", "pool.debug"]);
        self.run("strip", &["pool"]);
        range
    }

    fn range_of(&self, symbol: &str) -> std::ops::Range<u64> {
        file_range_of(&fs::read(self.path("app/pool")).unwrap(), symbol)
    }

    fn source(&self) -> ObjectSource {
        ObjectSource::File {
            file: File::open(self.path("app/pool")).unwrap(),
            display_path: "/app/pool".into(),
            root: Some(self.root.path().to_owned()),
        }
    }
}

/// The file offsets of a function. In these files, addresses are those of the file plus a constant.
fn file_range_of(bytes: &[u8], name: &str) -> std::ops::Range<u64> {
    let file = object::File::parse(bytes).unwrap();
    let symbol =
        file.symbols().chain(file.dynamic_symbols()).find(|symbol| symbol.name() == Ok(name)).unwrap();
    let facts = facts_of(bytes);
    let start =
        (0..bytes.len() as u64).find(|&offset| facts.address_of(offset) == Some(symbol.address())).unwrap();
    start..start + symbol.size()
}

fn facts_of(bytes: &[u8]) -> ElfFacts {
    let file = memory_file().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    ElfFacts::read(&file).unwrap()
}

fn places(range: std::ops::Range<u64>) -> Vec<CodeOffset> {
    range.map(|file_offset| CodeOffset { file_offset, is_return_address: false }).collect()
}

fn symbolizer_with(source: ObjectSource) -> Symbolizer {
    let mut symbolizer = Symbolizer::new(SymbolizeOptions::default());
    symbolizer.add_object(ID, source);
    symbolizer
}

fn functions(locations: &[Location]) -> Vec<Option<&str>> {
    locations.iter().map(|location| location.function.as_deref()).collect()
}

/// Expects the names, the lines and the inlined call somewhere in `scratch`.
fn expect_lines(source: ObjectSource, range: std::ops::Range<u64>) {
    let mut symbolizer = symbolizer_with(source);
    let answers = symbolizer.symbolize(ID, &places(range));
    assert!(
        answers.iter().all(|answer| functions(answer).last() == Some(&Some("pool::scratch(unsigned long)")))
    );
    let inlined =
        answers.iter().find(|answer| answer.len() == 2).expect("an address in the inlined function");
    let [take, scratch] = &inlined[..] else { panic!("{inlined:?}") };
    assert_eq!(take.function.as_deref(), Some("pool::take(unsigned long)"));
    assert_eq!((take.line, take.inlined), (Some(4), true));
    assert_eq!((scratch.line, scratch.inlined), (Some(7), false));
    for location in inlined {
        assert!(location.file.as_deref().is_some_and(|file| file.ends_with("/pool.cc")), "{location:?}");
    }
    assert_eq!(symbolizer.problems().count(), 0);
}

#[test]
fn debug_information_in_the_file_gives_inlined_frames_and_lines() {
    let target = Target::build(&[]);
    expect_lines(target.source(), target.range_of("_ZN4pool7scratchEm"));
}

#[test]
fn a_deleted_file_is_read_through_its_descriptor() {
    let target = Target::build(&[]);
    let (source, range) = (target.source(), target.range_of("_ZN4pool7scratchEm"));
    fs::remove_file(target.path("app/pool")).unwrap();
    expect_lines(source, range);
}

#[test]
fn compressed_debug_information_is_read() {
    for method in ["zlib", "zstd"] {
        let target = Target::build(&[]);
        target.run("objcopy", &[&format!("--compress-debug-sections={method}"), "pool"]);
        assert!(
            facts_of(&fs::read(target.path("app/pool")).unwrap()).sections.iter().any(|s| s.is_compressed)
        );
        expect_lines(target.source(), target.range_of("_ZN4pool7scratchEm"));
    }
}

#[test]
fn a_compressed_section_that_lies_about_its_size_costs_the_lines_only() {
    let target = Target::build(&[]);
    let range = target.range_of("_ZN4pool7scratchEm");
    target.run("objcopy", &["--compress-debug-sections=zlib", "pool"]);
    let bytes = fs::read(target.path("app/pool")).unwrap();
    for claimed in [u64::MAX, 1 << 62, 3 << 30, 1] {
        let mut bytes = bytes.clone();
        for section in facts_of(&bytes).sections.iter().filter(|section| section.is_compressed) {
            let at = section.header_offset as usize + 24;
            let contents = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            bytes[contents + 8..contents + 16].copy_from_slice(&claimed.to_le_bytes());
        }
        let mut symbolizer = symbolizer_with(ObjectSource::Bytes(bytes));
        let answer = &symbolizer.symbolize(ID, &places(range.start..range.start + 1))[0];
        assert_eq!(functions(answer), [Some("pool::scratch(unsigned long)")], "{claimed:#x}");
        assert_eq!(answer[0].line, None);
    }
}

#[test]
fn a_stripped_file_finds_its_debug_link() {
    let target = Target::build(&[]);
    let range = target.split();
    target.run("objcopy", &["--add-gnu-debuglink=pool.debug", "pool"]);
    expect_lines(target.source(), range);
}

#[test]
fn a_stripped_file_without_a_build_id_finds_its_debug_link_by_checksum() {
    let target = Target::build(&["-Wl,--build-id=none"]);
    let range = target.split();
    target.run("objcopy", &["--add-gnu-debuglink=pool.debug", "pool"]);
    expect_lines(target.source(), range.clone());

    let mut damaged = fs::read(target.path("app/pool.debug")).unwrap();
    damaged.push(0);
    fs::write(target.path("app/pool.debug"), damaged).unwrap();
    let mut symbolizer = symbolizer_with(target.source());
    assert_eq!(symbolizer.symbolize(ID, &places(range.start..range.start + 1)), [nowhere()]);
}

#[test]
fn a_stripped_file_finds_its_build_id() {
    let target = Target::build(&[]);
    let range = target.split();
    let id = facts_of(&fs::read(target.path("app/pool")).unwrap()).build_id.unwrap();
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let directory = target.path(&format!("usr/lib/debug/.build-id/{}", &hex[..2]));
    fs::create_dir_all(&directory).unwrap();
    fs::rename(target.path("app/pool.debug"), directory.join(format!("{}.debug", &hex[2..]))).unwrap();
    expect_lines(target.source(), range);
}

#[test]
fn a_debug_file_of_another_build_is_not_used() {
    let other = Target::build(&["-DOTHER", "-O1"]);
    other.split();
    let target = Target::build(&[]);
    let range = target.split();
    target.run("objcopy", &["--add-gnu-debuglink=pool.debug", "pool"]);
    fs::copy(other.path("app/pool.debug"), target.path("app/pool.debug")).unwrap();
    let mut symbolizer = symbolizer_with(target.source());
    assert_eq!(symbolizer.symbolize(ID, &places(range.start..range.start + 1)), [nowhere()]);
}

#[test]
fn a_mini_symbol_table_that_cannot_be_read_leaves_the_dynamic_symbols() {
    let target = Target::build(&["-shared", "-fPIC"]);
    let range = target.range_of("_ZN4pool7scratchEm");
    target.run("strip", &["pool"]);
    fs::write(target.path("app/junk"), b"\xfd7zXZ\0junk").unwrap();
    target.run("objcopy", &["--add-section", ".gnu_debugdata=junk", "pool"]);
    let mut symbolizer = symbolizer_with(target.source());
    let answer = &symbolizer.symbolize(ID, &places(range.start..range.start + 1))[0];
    assert_eq!(functions(answer), [Some("pool::scratch(unsigned long)")]);
}

#[test]
fn a_return_address_belongs_to_the_call_before_it() {
    let target = Target::build(&[]);
    let range = target.range_of("_ZN4pool7scratchEm");
    let mut symbolizer = symbolizer_with(target.source());
    let name_at = |symbolizer: &mut Symbolizer, file_offset, is_return_address| {
        let mut answers = symbolizer.symbolize(ID, &[CodeOffset { file_offset, is_return_address }]);
        answers.pop().unwrap().pop().unwrap().function
    };
    let scratch = Some("pool::scratch(unsigned long)".to_owned());
    assert_eq!(name_at(&mut symbolizer, range.end, true), scratch);
    assert_ne!(name_at(&mut symbolizer, range.end, false), scratch);
    assert_eq!(name_at(&mut symbolizer, range.start, false), scratch);
    assert_ne!(name_at(&mut symbolizer, range.start, true), scratch);
}

#[test]
fn a_jump_table_entry_has_no_name() {
    let target = Target::build(&["-Wl,-z,lazy"]);
    let bytes = fs::read(target.path("app/pool")).unwrap();
    let facts = facts_of(&bytes);
    let in_plt = (0..bytes.len() as u64)
        .find(|&offset| facts.address_of(offset).is_some_and(|address| facts.is_plt(address)))
        .unwrap();
    let mut symbolizer = symbolizer_with(target.source());
    assert_eq!(symbolizer.symbolize(ID, &places(in_plt..in_plt + 1)), [nowhere()]);
}

/// The object of this process that an address lies in, with the file offset.
fn mapping_of(address: u64) -> (PathBuf, u64) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let found = maps.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).unwrap();
        (hex(start)..hex(end)).contains(&address).then(|| {
            (fields.get(5).map(PathBuf::from).unwrap_or_default(), address - hex(start) + hex(fields[2]))
        })
    });
    found.unwrap()
}

/// The locations of an address of the running test.
pub(crate) fn symbolize_own(address: u64) -> Vec<Location> {
    let (path, file_offset) = mapping_of(address);
    let file = File::open(&path).unwrap();
    let mut symbolizer = symbolizer_with(ObjectSource::File { file, display_path: path, root: None });
    symbolizer.symbolize(ID, &places(file_offset..file_offset + 1)).pop().unwrap()
}

#[test]
fn a_library_has_the_names_of_its_interface_with_and_without_debug_information() {
    let locations = symbolize_own(libc::qsort as *const () as u64);
    assert_eq!(functions(&locations), [Some("qsort")]);
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn inlined_probe() -> u64 {
    let here: u64;
    // SAFETY: reads the instruction pointer, and nothing else.
    unsafe { std::arch::asm!("lea {}, [rip]", out(reg) here) };
    here
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
fn outer_probe() -> u64 {
    inlined_probe()
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_rust_program_has_its_paths_and_inlined_functions() {
    // The address behind the instruction may be the outer function's.
    let locations = symbolize_own(outer_probe() - 1);
    assert_eq!(
        functions(&locations),
        [Some("offheap::symbolize::tests::inlined_probe"), Some("offheap::symbolize::tests::outer_probe"),]
    );
    assert!(
        locations.iter().all(|location| location.file.as_deref().is_some_and(|f| f.ends_with("tests.rs")))
    );
}

#[test]
fn the_vdso_is_symbolized_from_its_bytes() {
    // SAFETY: asks for a number.
    let start = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
    let end = u64::from_str_radix(line.split(['-', ' ']).nth(1).unwrap(), 16).unwrap();
    let mut bytes = vec![0; (end - start) as usize];
    File::open("/proc/self/mem").unwrap().read_exact_at(&mut bytes, start).unwrap();

    let range = file_range_of(&bytes, "__vdso_clock_gettime");
    let mut symbolizer = symbolizer_with(ObjectSource::Bytes(bytes));
    let answer = &symbolizer.symbolize(ID, &places(range.start..range.start + 1))[0];
    let name = answer[0].function.as_deref();
    assert!(matches!(name, Some("clock_gettime" | "__vdso_clock_gettime")), "{name:?}");
}

#[test]
fn what_is_no_elf_file_has_no_names_and_a_reason() {
    for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF", &[0; 4096]] {
        let mut symbolizer = symbolizer_with(ObjectSource::Bytes(bytes.to_vec()));
        assert_eq!(symbolizer.symbolize(ID, &places(0..2)), [nowhere(), nowhere()]);
        assert!(matches!(symbolizer.problems().next(), Some((ID, SymbolizeError::NotElf(_)))));
    }
    let mut symbolizer = Symbolizer::new(SymbolizeOptions::default());
    assert_eq!(symbolizer.symbolize(ID, &places(0..1)), [nowhere()]);
    assert!(matches!(symbolizer.problems().next(), Some((ID, SymbolizeError::UnknownObject))));
}

#[test]
fn an_object_that_takes_too_long_is_given_up() {
    let target = Target::build(&[]);
    let mut symbolizer = Symbolizer::new(SymbolizeOptions { deadline: Duration::ZERO });
    symbolizer.add_object(ID, target.source());
    assert_eq!(symbolizer.symbolize(ID, &places(0..1)), [nowhere()]);
    assert!(matches!(symbolizer.problems().next(), Some((ID, SymbolizeError::TimedOut(_)))));
    assert!(symbolizer.worker.is_none());
}

#[test]
fn a_file_cut_short_after_it_was_opened_is_a_miss() {
    let target = Target::build(&[]);
    let range = target.range_of("_ZN4pool7scratchEm");
    let mut symbolizer = symbolizer_with(target.source());
    assert_ne!(symbolizer.symbolize(ID, &places(range.start..range.start + 1)), [nowhere()]);
    File::options().write(true).open(target.path("app/pool")).unwrap().set_len(64).unwrap();
    assert_eq!(symbolizer.symbolize(ID, &places(range.start + 1..range.start + 2)), [nowhere()]);
    assert!(matches!(symbolizer.problems().next(), Some((ID, SymbolizeError::Truncated))));
}

#[test]
fn a_file_that_makes_the_parser_panic_costs_its_own_names_only() {
    let target = Target::build(&[]);
    target.run("strip", &["-g", "pool"]);
    let range = target.range_of("_ZN4pool7scratchEm");
    let mut bytes = fs::read(target.path("app/pool")).unwrap();
    // A symbol of 2^64 - 1 bytes: its end overflows, which is a panic in builds with overflow checks.
    let size_at = {
        let file = object::File::parse(&*bytes).unwrap();
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok("_ZN4pool7scratchEm")).unwrap();
        let (table, _) = file.section_by_name(".symtab").unwrap().file_range().unwrap();
        table as usize + symbol.index().0 * 24 + 16
    };
    bytes[size_at..size_at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut symbolizer = symbolizer_with(ObjectSource::Bytes(bytes));
    let sound = ObjectId(8);
    symbolizer.add_object(sound, target.source());

    assert_eq!(symbolizer.symbolize(ID, &places(range.start + 1..range.start + 3)).len(), 2);
    let panicked = symbolizer.problems().any(|(_, error)| matches!(error, SymbolizeError::Panicked(_)));
    assert_eq!(panicked, cfg!(debug_assertions));
    let answer = &symbolizer.symbolize(sound, &places(range.start..range.start + 1))[0];
    assert_eq!(functions(answer), [Some("pool::scratch(unsigned long)")]);
}

#[test]
fn mutilated_files_are_survived() {
    let target = Target::build(&[]);
    let range = target.range_of("_ZN4pool7scratchEm");
    target.run("objcopy", &["--compress-debug-sections=zlib", "pool", "packed"]);
    let plain = fs::read(target.path("app/pool")).unwrap();
    let packed = fs::read(target.path("app/packed")).unwrap();
    let mut symbolizer = Symbolizer::new(SymbolizeOptions { deadline: Duration::from_secs(20) });
    // A fixed xorshift: a failure is reproducible by its round.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound as u64) as usize
    };
    let mut named = 0;
    for round in 0..400 {
        let mut bytes = if round % 4 == 3 { packed.clone() } else { plain.clone() };
        let section_table = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
        let length = bytes.len();
        for _ in 0..1 + next(8) {
            let at = match round % 3 {
                0 => next(64 + 56 * 13),
                1 => section_table + next(length - section_table),
                _ => next(length),
            };
            bytes[at] = [0, 0xff, 0x80, 1, next(256) as u8][next(5)];
        }
        if round % 50 == 0 {
            bytes.truncate(next(length));
        }
        let id = ObjectId(round);
        symbolizer.add_object(id, ObjectSource::Bytes(bytes));
        let answers = symbolizer.symbolize(id, &places(range.start..range.start + 8));
        assert!(answers.iter().all(|answer| !answer.is_empty()), "round {round}");
        named += usize::from(answers.iter().any(|answer| answer[0].function.is_some()));
    }
    let problems: Vec<_> = symbolizer.problems().map(|(id, error)| format!("{}: {error}", id.0)).collect();
    assert!(!problems.iter().any(|problem| problem.contains("no answer")), "{problems:?}");
    assert!(named > 100, "only {named} of 400 files were readable: {problems:?}");
}
