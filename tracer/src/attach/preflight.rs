//! What may go wrong with probes in this process on this kernel: found, named, and refused or worked around before
//! any is placed.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use super::{
    AttachError,
    discover::Allocator,
    feature::{Release, release_text},
    launch::loader::auxiliary,
    maps::{self, MapEntry},
    object::read_memory,
};

/// The auxiliary vector's entry that says that the program has rights its caller had not (set-user-ID, file
/// capabilities): include/uapi/linux/auxvec.h.
const AT_SECURE: u64 = 23;
/// `int3`: what a uprobe or a debugger leaves in memory.
const BREAKPOINT: u8 = 0xcc;

/// What is known of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// It has a seccomp filter.
    pub is_filtered: bool,
    /// The thread that traces it (ptrace).
    pub tracer: Option<u32>,
    /// Its program has rights that its caller had not.
    pub is_secure: bool,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// What was found, and what follows from it.
    pub text: String,
    /// Whether it goes into a recording's notes.
    pub is_notable: bool,
}

/// A fault of some kernels.
struct KernelFault {
    is_affected: fn(Release) -> bool,
    consequence: &'static str,
}

/// The bounds are those of the stable releases. A distribution that counts its patches otherwise (`6.12.0-55`) may have the
/// correction, which cannot be seen: it is taken for affected.
const FAULTS: [KernelFault; 2] = [
    KernelFault {
        is_affected: kills_filtered,
        consequence: "it kills processes that have a seccomp filter at a return probe (corrected in 6.12.14, 6.13.3 and \
                      6.14): such processes are refused; one that installs a filter while it is recorded is not \
                      safe either",
    },
    KernelFault {
        is_affected: panics_beside_profilers,
        consequence: "it may panic while another tool samples user stacks by the kernel's own walk (profilers on eBPF, \
                      `perf record -g`) where there are uprobes (\"uprobes: Fix race in uprobe_free_utask\"): \
                      stop such profilers before you record; offheap itself does not walk so",
    },
];

/// A return probe ends in a system call of its own since 6.11 (x86-64), which filters did not know. They were taught to pass
/// it in 6.14, 6.13.3 and 6.12.14 ("seccomp: passthrough uretprobe systemcall without filtering"); 6.11 ended without.
/// The system call that takes the place of some breakpoints from 6.18 on was passed from its begin.
fn kills_filtered(release: Release) -> bool {
    match release {
        Release(6, 11, _) => true,
        Release(6, 12, patch) => patch < 14,
        Release(6, 13, patch) => patch < 3,
        _ => false,
    }
}

/// "perf,x86: avoid missing caller address in stack traces captured in uprobe" (6.12, and in 6.6 before 6.6.58) made the
/// kernel's walk read what `uprobe_free_utask` frees; corrected by b583ef82b671, which stable releases took over in the
/// spring of 2025. The bounds are rather too wide than too narrow.
fn panics_beside_profilers(release: Release) -> bool {
    match release {
        Release(6, 6, patch) => (50..=80).contains(&patch),
        Release(6, 11, _) => true,
        Release(6, 12, patch) => patch < 18,
        Release(6, 13, patch) => patch < 6,
        _ => false,
    }
}

/// The faults of a kernel, as sentences.
pub fn kernel_faults(release: &str) -> Vec<String> {
    let Some(parsed) = Release::parse(release) else { return Vec::new() };
    let affecting = FAULTS.iter().filter(|fault| (fault.is_affected)(parsed));
    affecting.map(|fault| fault.consequence.to_owned()).collect()
}

/// Refuses a process that its kernel would kill at the first return probe.
///
/// # Errors
/// [`AttachError::Seccomp`].
pub fn require_survival(tgid: u32, facts: Facts) -> Result<(), AttachError> {
    survives_on(tgid, facts, release_text())
}

fn survives_on(tgid: u32, facts: Facts, release: String) -> Result<(), AttachError> {
    if facts.is_filtered && Release::parse(&release).is_some_and(kills_filtered) {
        return Err(AttachError::Seccomp { tgid, release });
    }
    Ok(())
}

/// Whether the auxiliary vector says that the program has rights its caller had not.
pub(super) fn is_secure(auxv: &[u8]) -> bool {
    auxiliary(auxv, AT_SECURE).is_some_and(|value| value != 0)
}

/// What there is to be said of a process. `others` is the number of places at which somebody else has a breakpoint.
pub fn findings(tgid: u32, facts: Facts, is_go: bool, others: usize) -> Vec<Finding> {
    let is_own = |tid: &u32| Path::new(&format!("/proc/self/task/{tid}")).exists();
    let tracer = facts.tracer.filter(|tid| !is_own(tid));
    describe(tgid, &Facts { tracer, ..facts }, is_go, others)
}

fn describe(tgid: u32, facts: &Facts, is_go: bool, others: usize) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |name, is_notable, text: String| findings.push(Finding { name, text, is_notable });
    let filter = if facts.is_filtered { "a filter, which this kernel's probes pass" } else { "no filter" };
    add("seccomp", false, filter.to_owned());
    if let Some(tracer) = facts.tracer {
        add(
            "debugger",
            true,
            format!(
                "process {tgid} is traced by thread {tracer} (a debugger, strace): its breakpoints on probed instructions \
                 would be lost, and a stopped target is not recorded"
            ),
        );
    }
    if facts.is_secure {
        add(
            "set-user-ID",
            true,
            format!(
                "the program of process {tgid} has rights that its caller had not: the capture tells what it allocates and \
                 where, so give it to nobody who may not know"
            ),
        );
    }
    if is_go {
        let text = "probes are on C functions only, which run on stacks that Go never moves";
        add("go", false, text.to_owned());
    }
    match others {
        0 => add("others", false, "no breakpoint of anybody else on what would be probed".to_owned()),
        _ => add(
            "others",
            true,
            format!(
                "somebody else has breakpoints on {others} of the places that are probed in process {tgid} (another \
                 tracer, or a debugger): each call pays for both, and offheap's numbers stay right; a debugger's breakpoints \
                 there are lost"
            ),
        ),
    }
    findings
}

/// Places among those that would be probed where a breakpoint stands already. To be asked before any probe is placed.
pub fn foreign_breakpoints(tgid: u32, allocators: &[Arc<Allocator>]) -> usize {
    let entries = maps::read(tgid).unwrap_or_default();
    let has_breakpoint = |allocator: &Allocator, file_offset: u64| {
        let Some(address) = address_of(&entries, allocator.key, file_offset) else { return false };
        let (mut mapped, mut stored) = ([0], [0]);
        read_memory(tgid, address, &mut mapped)
            && allocator.file.file().read_exact_at(&mut stored, file_offset).is_ok()
            && mapped == [BREAKPOINT]
            && stored != [BREAKPOINT]
    };
    let places = allocators
        .iter()
        .flat_map(|allocator| allocator.probed.iter().map(move |probed| (allocator, probed.file_offset())));
    places.filter(|(allocator, file_offset)| has_breakpoint(allocator, *file_offset)).count()
}

/// Where the process has a byte of a file mapped as code.
fn address_of(entries: &[MapEntry], file: (u64, u64), file_offset: u64) -> Option<u64> {
    entries.iter().filter(|entry| entry.is_executable() && (entry.device, entry.inode) == file).find_map(
        |entry| {
            let distance = file_offset.checked_sub(entry.file_offset)?;
            (distance < entry.end - entry.start).then(|| entry.start + distance)
        },
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const FILTERED: Facts = Facts { is_filtered: true, tracer: None, is_secure: false };

    #[test]
    fn the_kernels_that_kill_are_known() {
        for (text, kills) in [
            ("6.10.14", false),
            ("6.11.11", true),
            ("6.12.13", true),
            ("6.12.14", false),
            ("6.12.0-55.el10", true),
            ("6.13.2", true),
            ("6.13.3", false),
            ("6.14.0", false),
            ("6.1.0", false),
        ] {
            assert_eq!(kills_filtered(Release::parse(text).unwrap()), kills, "{text}");
            let outcome = survives_on(7, FILTERED, text.to_owned());
            assert_eq!(matches!(outcome, Err(AttachError::Seccomp { .. })), kills, "{text}");
            assert!(survives_on(7, Facts::default(), text.to_owned()).is_ok(), "{text}");
        }
    }

    #[test]
    fn the_kernels_that_panic_beside_profilers_are_known() {
        for (text, panics) in [
            ("6.1.128", false),
            ("6.5.13", false),
            ("6.6.0", false),
            ("6.6.58-talos", true),
            ("6.6.90", false),
            ("6.12.17", true),
            ("6.12.30", false),
            ("6.13.5", true),
            ("6.14.0", false),
            ("7.2.0", false),
        ] {
            assert_eq!(panics_beside_profilers(Release::parse(text).unwrap()), panics, "{text}");
        }
        assert_eq!(kernel_faults("6.12.3").len(), 2);
        assert!(kernel_faults("6.1.0").is_empty() && kernel_faults("nonsense").is_empty());
    }

    #[test]
    fn what_matters_is_a_note() {
        let notes = |facts: &Facts, others| -> Vec<&str> {
            let findings = describe(7, facts, true, others);
            findings.iter().filter(|finding| finding.is_notable).map(|finding| finding.name).collect()
        };
        assert!(notes(&Facts::default(), 0).is_empty() && notes(&FILTERED, 0).is_empty());
        let all = Facts { is_filtered: true, tracer: Some(9), is_secure: true };
        assert_eq!(notes(&all, 3), ["debugger", "set-user-ID", "others"]);
    }

    #[test]
    fn own_tracers_are_nobody_else() {
        let own = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        let facts = Facts { tracer: Some(own), ..Facts::default() };
        assert!(findings(7, facts, false, 0).iter().all(|finding| finding.name != "debugger"));
    }

    #[test]
    fn rights_are_read_from_the_auxiliary_vector() {
        let vector = |value: u64| -> Vec<u8> {
            [6, 4096, AT_SECURE, value, 0, 0].iter().flat_map(|word: &u64| word.to_le_bytes()).collect()
        };
        assert!(is_secure(&vector(1)) && !is_secure(&vector(0)) && !is_secure(b""));
        assert!(!is_secure(&std::fs::read("/proc/self/auxv").unwrap()));
    }

    #[test]
    fn a_byte_of_a_file_has_an_address_where_it_is_code() {
        let entries = maps::parse(
            b"1000-3000 r--p 00000000 fe:01 7 /lib/a\n3000-5000 r-xp 00002000 fe:01 7 /lib/a\n\
              8000-9000 r-xp 00002000 fe:01 8 /lib/b\n",
        );
        let file = (0xfe_0000_0001, 7);
        assert_eq!(address_of(&entries, file, 0x2010), Some(0x3010));
        assert_eq!(address_of(&entries, file, 0x10), None, "not code");
        assert_eq!(address_of(&entries, file, 0x4000), None, "behind the end");
        assert_eq!(address_of(&entries, (0xfe_0000_0001, 9), 0x2010), None);
    }
}
