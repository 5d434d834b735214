//! Files under /proc. The kernel writes them, but names in them are the target's.

use std::path::Path;

use crate::attach::launch::loader;
use crate::attach::scope::Scope;
use crate::attach::{maps, runtime, target};
use crate::ledger::{hsperf, limit, native_memory, smaps, threads};
use crate::model::ProcessId;
use crate::watch::proc as watch;

/// A parser, and what must hold.
type Parser = fn(&[u8]);

const PARSERS: &[Parser] =
    &[maps, smaps, stat, status, cgroup, arguments, limits, others, runtimes, counters];

/// The first byte chooses the file, the rest is its contents.
pub(super) fn run(bytes: &[u8]) {
    if let Some((kind, text)) = bytes.split_first()
        && let Some(parser) = PARSERS.get(usize::from(*kind) % PARSERS.len())
    {
        parser(text);
    }
}

fn maps(bytes: &[u8]) {
    for entry in maps::parse(bytes) {
        assert!(entry.start < entry.end, "an empty mapping");
        let _ = (entry.is_executable(), entry.display_name());
    }
}

fn smaps(bytes: &[u8]) {
    let Ok(smaps) = smaps::read(bytes) else { return };
    let smaps = smaps.without_empty();
    let _ = smaps.rss_bytes();
    let mut end = 0;
    for vma in &smaps.vmas {
        assert!(end <= vma.entry.start && vma.entry.start < vma.entry.end, "mappings overlap");
        end = vma.entry.end;
    }
}

fn stat(bytes: &[u8]) {
    let _ = (watch::parse_stat(bytes), target::flags_of_stat(bytes));
}

fn status(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = target::Status::parse(bytes);
    let _ = (watch::parse_status(&text, ProcessId(0), 0), watch::parse_pss(&text));
}

fn cgroup(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (wanted, cgroup) = text.split_once('\0').unwrap_or(("deadbeefdeadbeef", &text));
    for scope in [Scope::cgroup(wanted), Scope::container(wanted)].into_iter().flatten() {
        let _ = (scope.holds(cgroup), scope.describe());
    }
}

fn arguments(bytes: &[u8]) {
    assert!(target::split_arguments(bytes).len() <= bytes.len() + 1);
}

/// The groups, the mounts and the group's files, with zero bytes between them.
fn limits(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.split('\0');
    let mut next = || parts.next().unwrap_or_default().to_owned();
    let (groups, mounts, file) = (next(), next(), next());
    let read = |path: &Path| {
        Some(match path.to_str()? {
            "/proc/7/cgroup" => groups.clone(),
            "/proc/self/mountinfo" => mounts.clone(),
            _ => file.clone(),
        })
    };
    let _ = limit::of_process(7, &read);
}

fn others(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = (threads::stack_pointer(&text), loader::base_of(bytes), native_memory(&text, ProcessId(0), 0));
}

fn runtimes(bytes: &[u8]) {
    let _ = (runtime::go_version_of(bytes), runtime::version_behind(bytes, b"/v"));
}

fn counters(bytes: &[u8]) {
    if let Some(counters) = hsperf::parse(bytes) {
        let _ = hsperf::spaces(&counters, "used");
    }
}
