//! Regions of real runtimes, against what those say of themselves. A runtime that is not installed is said to be.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use proptest::prelude::*;

use super::memory::Memory;
use super::*;
use crate::attach::maps;

/// A runtime that has said one line and waits for the end of its input.
struct Running(Child, String);

impl Running {
    fn start(program: &str, arguments: &[&str]) -> Option<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let Ok(mut child) = command.spawn() else {
            eprintln!("skipped: {program} is not installed");
            return None;
        };
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Some(Self(child, line))
    }

    fn regions(&self, name: &str, version: &str) -> Option<Vec<Region>> {
        let runtime = Runtime { name: name.to_owned(), version: Some(version.to_owned()) };
        regions(self.0.id(), &runtime, &maps::read(self.0.id()).unwrap())
    }

    fn jcmd(&self, command: &str) -> String {
        let output = Command::new("jcmd").args([&self.0.id().to_string(), command]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bytes_of(regions: &[Region], label: &str) -> u64 {
    regions.iter().filter(|region| region.label == label).map(|region| region.end - region.start).sum()
}

/// Hexadecimal numbers behind `start` in a text.
fn numbers_behind(text: &str, start: &str) -> Vec<u64> {
    let line = text
        .lines()
        .find_map(|line| line.split_once(start))
        .unwrap_or_else(|| panic!("no {start} in {text}"))
        .1;
    line.split("0x")
        .skip(1)
        .filter_map(|part| {
            let end = part.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(part.len());
            u64::from_str_radix(&part[..end], 16).ok()
        })
        .collect()
}

#[test]
fn a_jvm_tells_its_heap_code_and_classes() {
    let source = std::env::temp_dir().join(format!("offheap-{}", std::process::id()));
    std::fs::create_dir_all(&source).unwrap();
    let file = source.join("Wait.java");
    let text = "public class Wait { public static void main(String[] a) throws Exception { System.out.println(1); System.in.read(); } }";
    std::fs::write(&file, text).unwrap();
    for collector in ["-XX:+UseG1GC", "-XX:+UseParallelGC"] {
        let Some(java) = Running::start("java", &["-Xmx64m", collector, file.to_str().unwrap()]) else {
            break;
        };
        let regions = java.regions("jvm", "17").unwrap();
        let range = |label| {
            let region =
                regions.iter().find(|region| region.label == label).unwrap_or_else(|| panic!("{label}"));
            vec![region.start, region.end]
        };
        let info = java.jcmd("VM.info");
        let heap = numbers_behind(&info, "Heap address: ");
        assert_eq!(
            (heap[0], bytes_of(&regions, "Java heap")),
            (range("Java heap")[0], 64 << 20),
            "{collector}"
        );
        assert_eq!(range("JVM class space"), numbers_behind(&info, "Compressed class space mapped at: "));
        let archive = numbers_behind(&info, "CDS archive(s) mapped at: ");
        assert_eq!(range("JVM class archive")[0], archive[0]);
        // Every code heap lies in the code cache, which holds nothing else.
        let code = java.jcmd("Compiler.codecache");
        let heaps: Vec<u64> = code
            .lines()
            .filter(|line| line.contains("bounds ["))
            .flat_map(|line| numbers_behind(line, "bounds"))
            .collect();
        let cache = regions
            .iter()
            .filter(|region| region.label == "JVM code cache")
            .max_by_key(|region| region.end - region.start)
            .unwrap();
        assert_eq!(
            (heaps.iter().min(), heaps.iter().max()),
            (Some(&cache.start), Some(&cache.end)),
            "{code}"
        );
    }
    std::fs::remove_dir_all(source).unwrap();
}

#[test]
fn the_pages_of_v8_are_what_v8_says_that_they_are() {
    let script = "const a = []; for (let i = 0; i < 300000; i++) a.push({ x: i, s: 'a' + i }); \
        const big = []; for (let i = 0; i < 20; i++) big.push(new Array(200000).fill(i)); \
        const s = require('v8').getHeapStatistics(); const page = 256 * 1024; \
        const spaces = require('v8').getHeapSpaceStatistics(); \
        console.log([s.total_heap_size, s.total_heap_size_executable].join(' ')); \
        process.stdin.on('data', () => a.length + big.length + spaces.length);";
    let Some(node) = Running::start("node", &["-e", script]) else { return };
    let regions = node.regions("node", "20").unwrap();
    let told: Vec<u64> = node.1.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let [total, executable] = told[..] else { panic!("{told:?}") };
    let found = bytes_of(&regions, "V8 heap");
    eprintln!("V8 says {total}, of it {executable} code; found {found}");
    assert!(found.abs_diff(total - executable) * 20 < total, "{found} of {total}, {executable} of it code");
    // Without the head of each code page, which is data.
    let code = bytes_of(&regions, "V8 code");
    assert!((executable - (64 << 10)..=executable + (1 << 20)).contains(&code), "{code} of {executable}");
}

#[test]
fn the_arenas_of_cpython_are_counted_by_cpython() {
    let script = "import sys, os\nx = [str(i) * 10 for i in range(200000)]\n\
        r, w = os.pipe()\ne = os.dup(2)\nos.dup2(w, 2)\nsys._debugmallocstats()\nos.dup2(e, 2)\n\
        t = os.read(r, 65536).decode()\nc = [l.split('=')[1].strip() for l in t.splitlines() if l.startswith('# arenas allocated current')]\n\
        print(c[0], '%d.%d' % sys.version_info[:2], flush=True)\nsys.stdin.read()";
    let Some(python) = Running::start("python3", &["-c", script]) else { return };
    let mut told = python.1.split_whitespace();
    let (count, version) = (told.next().unwrap().parse::<u64>().unwrap(), told.next().unwrap());
    match python.regions("cpython", version) {
        Some(regions) => assert_eq!(bytes_of(&regions, "CPython arena"), count << 20),
        // Stripped, or 3.12 and later.
        None => eprintln!("Python {version} here does not tell its arenas"),
    }
}

/// Memory that is made of words.
struct Words(HashMap<u64, u64>);

impl Memory for Words {
    fn read(&self, address: u64, buffer: &mut [u8]) -> bool {
        if !address.is_multiple_of(8) {
            return false;
        }
        (address..).step_by(8).zip(buffer.chunks_mut(8)).all(|(address, part)| {
            let Some(word) = self.0.get(&address) else { return false };
            part.copy_from_slice(&word.to_le_bytes()[..part.len()]);
            true
        })
    }
}

fn anonymous(start: u64, end: u64, permissions: &[u8; 4]) -> MapEntry {
    MapEntry { start, end, permissions: *permissions, file_offset: 0, device: 0, inode: 0, name: Vec::new() }
}

#[test]
fn the_go_heap_is_far_from_where_the_kernel_maps() {
    const ARENA: u64 = 64 << 20;
    let (heap, libraries) = (0xc0_0000_0000, 0x7f00_0000_0000);
    let mut entries = vec![
        // Too small, and the arenas, in pieces.
        anonymous(0x1000, 0x5000, b"rw-p"),
        anonymous(heap, heap + 0x1000, b"rw-p"),
        anonymous(heap + 0x1000, heap + 2 * ARENA, b"---p"),
        // An arena of glibc.
        anonymous(libraries, libraries + 0x2000, b"rw-p"),
        anonymous(libraries + 0x2000, libraries + ARENA, b"---p"),
        anonymous(0x7fff_0000_0000, 0x7fff_0002_0000, b"rw-p"),
    ];
    assert_eq!(go::regions(&entries), [], "without a stack nothing is known of the kernel's choice");
    entries.last_mut().unwrap().name = b"[stack]".to_vec();
    let found = go::regions(&entries);
    assert_eq!(
        found.iter().map(|region| (region.start, region.end)).collect::<Vec<_>>(),
        [(heap, heap + 2 * ARENA)]
    );
    assert_eq!(place(Some(&found), heap + 5), Place::Inside(&found[0]));
    assert_eq!(place(Some(&found), heap + 2 * ARENA), Place::Outside);
    assert_eq!(place(None, heap), Place::NotKnown);
}

#[test]
fn a_few_pages_that_look_like_v8s_are_not_believed() {
    const PAGE: u64 = 256 << 10;
    let pages = |count: u64| {
        let base = 0x10_0000_0000;
        let words = (0..count).flat_map(|page| {
            let start = base + page * PAGE;
            let header = [PAGE, 4, 0x5555_0000, start + 0x1148, 0, 0, 0, 0, 0, 0, start, PAGE, 0, 0, 0, 0];
            (start..).step_by(8).zip(header)
        });
        let memory = Words(words.collect());
        v8::regions(&memory, &[anonymous(base, base + count * PAGE, b"rw-p")]).len()
    };
    assert_eq!([pages(1), pages(7), pages(8), pages(100)], [0, 0, 8, 100]);
}

proptest! {
    #[test]
    fn any_memory_is_survived(words in prop::collection::vec(any::<u64>(), 600), offsets in prop::collection::vec(0u64..512, 8)) {
        let base = 0x10_0000;
        let memory = Words((base..).step_by(8).zip(words).collect());
        let names = ["ArrayStride", "TypeNameOffset", "FieldNameOffset", "IsStaticOffset", "OffsetOffset", "AddressOffset"];
        let mut variables: HashMap<String, u64> = names
            .iter()
            .zip(&offsets)
            .map(|(name, at)| (format!("gHotSpotVMStructEntry{name}"), base + at * 8))
            .collect();
        variables.insert("gHotSpotVMStructs".to_owned(), base);
        variables.extend([("arenas".to_owned(), base), ("maxarenas".to_owned(), base + 8)]);
        let entries = [anonymous(base, base + (1 << 30), b"rwxp")];
        jvm::regions(&memory, &variables, &entries);
        let runtime = Runtime { name: "cpython".to_owned(), version: None };
        for region in cpython::regions(&memory, &variables, &runtime).into_iter().chain(v8::regions(&memory, &entries)) {
            prop_assert!(region.start < region.end);
        }
    }
}
