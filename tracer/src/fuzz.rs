//! What the fuzzer feeds (`cargo xtask fuzz`), and what unit tests feed again with the corpora in `fuzz/corpus`: every
//! parser of what a target, or whoever sends a capture, has written. A target may do anything with its bytes but panic,
//! hang or take much memory, and where there is something that must hold of any input, it says so.

mod capture;
mod frames;
mod proc;
#[cfg(test)]
mod tests;

use crate::profile::{Suppressions, suppression};
use crate::symbolize::{PerfMap, demangle, parse_jit_name};
use crate::{attach, symbolize, unwind};

/// One thing to be fed.
#[derive(Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Longest input that makes sense, in bytes.
    pub max_bytes: usize,
    /// Feeds it.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "cfi", max_bytes: 4096, run: frames::run },
    Target { name: "elf", max_bytes: 32 << 10, run: elf },
    Target { name: "perf-map", max_bytes: 4096, run: perf_map },
    Target { name: "capture", max_bytes: 4096, run: capture::run },
    Target { name: "proc", max_bytes: 4096, run: proc::run },
    Target { name: "suppressions", max_bytes: 1024, run: suppressions },
];

/// The target of a name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// A whole ELF file, as attaching, unwinding and symbolizing read it. (blazesym, which reads symbols and DWARF, runs on a
/// thread that may panic and has a deadline: it is not fed here.)
fn elf(bytes: &[u8]) {
    frames::digest(bytes);
    attach::discover::places_in(bytes);
    symbolize::prepare_headers(bytes);
    if let Some(functions) = unwind::GoFunctions::from_elf(bytes) {
        for function in functions.iter().take(1000) {
            assert!(function.start < function.end, "an empty function");
            let _ = functions.find(function.start);
        }
    }
}

fn perf_map(bytes: &[u8]) {
    // Read in two parts, as a map that grows.
    let Ok(whole) = PerfMap::parse(bytes) else { return };
    let mut grown = PerfMap::default();
    let half = bytes.len() as u64 / 2;
    let used = grown.add(bytes, half, false).unwrap_or(0);
    let rest = bytes.get(usize::try_from(used).unwrap_or(0)..).unwrap_or_default();
    let _ = grown.add(rest, u64::MAX, true);
    assert_eq!(whole.len(), grown.len(), "a map that grows differs from one that is whole");
    assert_eq!(whole.losses(), grown.losses());
    for line in bytes.split(|byte| *byte == b'\n').take(100) {
        let name = String::from_utf8_lossy(line);
        let _ = (parse_jit_name(&name), demangle(&name));
        is_printable(&crate::report::escape(&name));
    }
}

/// Rules, and behind a zero byte the name that they are tried on.
fn suppressions(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (rules, name) = text.split_once('\0').unwrap_or((&text, ""));
    let mut all = Suppressions::built_in();
    let built_in = all.rules().len();
    if all.add_file(rules).is_err() {
        assert_eq!(all.rules().len(), built_in, "a file in error has left rules behind");
    }
    for rule in all.rules() {
        let is_found = suppression::is_match(&rule.pattern, name);
        let is_plain = !rule.pattern.contains(['*', '^', '$']);
        assert!(!is_plain || is_found == name.contains(&*rule.pattern), "{rule:?} in {name:?}");
    }
}

/// Fails where a text that goes to a terminal could do more than be shown there.
fn is_printable(text: &str) {
    let found = text.chars().find(|character| character.is_control() && *character != '\n');
    assert_eq!(found, None, "a control character in what is printed");
}
