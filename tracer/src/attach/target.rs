//! Who is to be traced, read from /proc, and whether it can be.

use std::{
    fs::{self, File},
    io::Read,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
};

use super::{
    AttachError,
    preflight::{Facts, is_secure},
    runtime,
};
use crate::model::{Machine, Runtime, Target};

/// Most bytes of a command line that are kept.
const MAX_CMDLINE_BYTES: u64 = 64 << 10;
/// More than any kernel writes into `auxv`.
const MAX_AUXV_BYTES: u64 = 4096;
/// The kernel's PF_KTHREAD, include/linux/sched.h.
const PF_KTHREAD: u64 = 0x0020_0000;

/// A process that can be traced.
#[derive(Debug)]
pub struct TargetProcess {
    /// Who it is.
    pub target: Target,
    /// Owner.
    pub uid: u32,
    /// What may stand in the way of probes.
    pub facts: Facts,
    /// Readable when it has exited.
    pub exit: OwnedFd,
}

/// Reads who a process is, and refuses those that cannot be traced.
///
/// # Errors
/// [`AttachError`]: each of its variants says what to do.
pub fn examine(tgid: u32) -> Result<TargetProcess, AttachError> {
    // Opened first: whatever is read afterwards belongs to the process that this stands for, or to none.
    let exit = open_pidfd(tgid)?;
    let status = Status::parse(&read_bounded(tgid, "status", MAX_CMDLINE_BYTES)?);
    if let Some(leader) = status.tgid.filter(|leader| *leader != tgid) {
        return Err(AttachError::Thread { tid: tgid, tgid: leader });
    }
    let comm = text(read_bounded(tgid, "comm", 256)?.trim_ascii_end());
    refuse_impossible(tgid, &comm, &status)?;
    let cmdline = read_bounded(tgid, "cmdline", MAX_CMDLINE_BYTES)?;
    let exe = exe_of(tgid)?;
    let auxv = read_bounded(tgid, "auxv", MAX_AUXV_BYTES).unwrap_or_default();
    let facts = Facts { is_secure: is_secure(&auxv), ..status.facts };
    let runtime = runtime::of_process(tgid);
    require_known_runtime(tgid, Machine::HOST, runtime.as_ref())?;
    let target = Target {
        tgid,
        inner_tgid: status.inner_tgid.filter(|inner| *inner != tgid),
        comm,
        cmdline: split_arguments(&cmdline),
        exe: Some(exe),
        runtime,
    };
    Ok(TargetProcess { target, uid: status.uid, facts, exit })
}

/// The language runtime that a process runs, as far as its files tell. Needs no privileges beyond reading /proc.
pub fn runtime_of(tgid: u32) -> Option<crate::model::Runtime> {
    runtime::of_process(tgid)
}

/// A child of a process that is traced already and runs the same program: what is the same is not read again.
///
/// # Errors
/// As [`examine`]; mostly that it has gone.
pub fn examine_child(tgid: u32, parent: &Target) -> Result<TargetProcess, AttachError> {
    let exit = open_pidfd(tgid)?;
    let status = Status::parse(&read_bounded(tgid, "status", MAX_CMDLINE_BYTES)?);
    if status.state == Some('Z') {
        return Err(AttachError::Zombie { tgid });
    }
    let target =
        Target { tgid, inner_tgid: status.inner_tgid.filter(|inner| *inner != tgid), ..parent.clone() };
    Ok(TargetProcess { target, uid: status.uid, facts: status.facts, exit })
}

/// Refuses what has not been tried: on aarch64 programs with a language runtime, whose stacks and memory have rules of their
/// own.
fn require_known_runtime(tgid: u32, machine: Machine, runtime: Option<&Runtime>) -> Result<(), AttachError> {
    match (machine, runtime) {
        (Machine::Aarch64, Some(runtime)) => {
            Err(AttachError::UntriedRuntime { tgid, runtime: runtime.name.clone() })
        }
        _ => Ok(()),
    }
}

fn open_pidfd(tgid: u32) -> Result<OwnedFd, AttachError> {
    let gone = || AttachError::NoProcess { tgid };
    let pid = i32::try_from(tgid).ok().and_then(rustix::process::Pid::from_raw).ok_or_else(gone)?;
    match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        Ok(exit) => Ok(exit),
        // A thread that is no group leader.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {
            let status = read_bounded(tgid, "status", MAX_CMDLINE_BYTES)?;
            Err(match Status::parse(&status).tgid {
                Some(leader) if leader != tgid => AttachError::Thread { tid: tgid, tgid: leader },
                _ => gone(),
            })
        }
        Err(_) => Err(gone()),
    }
}

fn refuse_impossible(tgid: u32, comm: &str, status: &Status) -> Result<(), AttachError> {
    if status.state == Some('Z') {
        return Err(AttachError::Zombie { tgid });
    }
    let stat = read_bounded(tgid, "stat", 4096)?;
    if flags_of_stat(&stat).is_some_and(|flags| flags & PF_KTHREAD != 0) {
        return Err(AttachError::KernelThread { tgid, comm: comm.to_owned() });
    }
    let mut head = [0u8; 20];
    let path = format!("/proc/{tgid}/exe");
    File::open(&path)
        .and_then(|mut exe| exe.read_exact(&mut head))
        .map_err(|source| AttachError::proc(tgid, path, source))?;
    let what = match (&head[..4], head[4], u16::from_le_bytes([head[18], head[19]])) {
        (b"\x7fELF", 1, _) => "a 32-bit program",
        (b"\x7fELF", 2, machine) if machine == Machine::HOST.e_machine() => return Ok(()),
        (b"\x7fELF", 2, _) => "for another machine",
        _ => "not an ELF file",
    };
    Err(AttachError::WrongMachine { tgid, exe: exe_of(tgid)?, what })
}

fn exe_of(tgid: u32) -> Result<String, AttachError> {
    let path = format!("/proc/{tgid}/exe");
    let exe = fs::read_link(&path).map_err(|source| AttachError::proc(tgid, path, source))?;
    Ok(text(exe.as_os_str().as_bytes()))
}

fn read_bounded(tgid: u32, file: &str, limit: u64) -> Result<Vec<u8>, AttachError> {
    let path = format!("/proc/{tgid}/{file}");
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|source| AttachError::proc(tgid, path, source))?;
    Ok(bytes)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn split_arguments(cmdline: &[u8]) -> Vec<String> {
    let cmdline = cmdline.strip_suffix(b"\0").unwrap_or(cmdline);
    if cmdline.is_empty() { Vec::new() } else { cmdline.split(|byte| *byte == 0).map(text).collect() }
}

/// Field 9 of `/proc/PID/stat`, behind the name in parentheses, which may hold anything.
pub(crate) fn flags_of_stat(stat: &[u8]) -> Option<u64> {
    let behind = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(behind + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(6)?.parse().ok()
}

/// The fields of `/proc/PID/status` that matter.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    tgid: Option<u32>,
    inner_tgid: Option<u32>,
    state: Option<char>,
    uid: u32,
    facts: Facts,
}

impl Status {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let mut status = Self::default();
        for line in text(bytes).lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let mut words = value.split_ascii_whitespace();
            match name {
                "Tgid" => status.tgid = words.next().and_then(|word| word.parse().ok()),
                "NSpid" => status.inner_tgid = words.next_back().and_then(|word| word.parse().ok()),
                "State" => status.state = words.next().and_then(|word| word.chars().next()),
                // real, effective, saved, filesystem
                "Uid" => status.uid = words.nth(1).and_then(|word| word.parse().ok()).unwrap_or(0),
                "Seccomp" => status.facts.is_filtered = words.next().is_some_and(|mode| mode != "0"),
                "TracerPid" => {
                    let tracer = words.next().and_then(|word| word.parse().ok());
                    status.facts.tracer = tracer.filter(|tracer| *tracer != 0);
                }
                _ => {}
            }
        }
        status
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_traced() {
        let found = examine(std::process::id()).unwrap();
        assert_eq!(found.target.tgid, std::process::id());
        assert_eq!(found.uid, rustix::process::geteuid().as_raw());
        assert!(found.target.exe.unwrap().contains("offheap"));
        assert_eq!(found.target.runtime, None);
    }

    #[test]
    fn each_impossible_target_has_its_reason() {
        assert!(matches!(examine(0), Err(AttachError::NoProcess { .. })));
        assert!(matches!(examine(u32::MAX), Err(AttachError::NoProcess { .. })));
        assert!(matches!(examine(2), Err(AttachError::KernelThread { .. })));
        let thread = std::thread::spawn(|| {
            let tid = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            assert!(matches!(examine(tid), Err(AttachError::Thread { .. })));
        });
        thread.join().unwrap();
    }

    #[test]
    fn runtimes_are_refused_where_they_have_not_been_tried() {
        let node = Runtime { name: "node".into(), version: None };
        assert!(require_known_runtime(7, Machine::X86_64, Some(&node)).is_ok());
        assert!(require_known_runtime(7, Machine::Aarch64, None).is_ok());
        let refused = require_known_runtime(7, Machine::Aarch64, Some(&node)).unwrap_err();
        assert!(refused.to_string().contains("process 7 runs node"), "{refused}");
    }

    #[test]
    fn a_zombie_is_none() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = child.id();
        // Wait until it has exited, without reaping it.
        let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).unwrap();
        assert!(matches!(examine(id), Err(AttachError::Zombie { .. })));
        child.wait().unwrap();
    }

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_flags() {
        assert_eq!(flags_of_stat(b"7 (a) b) S 1 7 7 0 -1 4194560 100"), Some(4_194_560));
        assert_eq!(flags_of_stat(b"nonsense"), None);
    }

    #[test]
    fn arguments_are_split_and_kept_as_text() {
        assert_eq!(split_arguments(b"node\0app.js\0\0"), ["node", "app.js", ""]);
        assert_eq!(split_arguments(b""), Vec::<String>::new());
        assert_eq!(split_arguments(b"\xff\0"), ["\u{fffd}"]);
    }
}
