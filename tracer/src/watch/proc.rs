//! Reads a process's memory and identity from `/proc`. Each file may vanish between two reads, and what stands in
//! it comes from a hostile process: everything is bounded.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;

use crate::model::{ProcessId, RssSample, Target};

/// Longest file that is read whole; `status` has some 1.5 KiB.
const MAX_BYTES: u64 = 64 << 10;

/// Why a process gave no sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It has exited, or only waits for its parent.
    Exited,
    /// It is there and cannot be read.
    Unreadable(i32),
}

/// Which run of which program a process id stands for: changes with a restart (start time) and with an exec (the program's
/// place in memory, which the kernel chooses anew; zeros where this user may not see it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Start of the process since boot, in clock ticks: field 22 of `/proc/PID/stat`.
    pub start_ticks: u64,
    /// Begin and end of the code and begin of the stack: fields 26 to 28.
    pub image: [u64; 3],
}

impl Identity {
    /// Whether both are of one process.
    pub fn is_same_process(&self, other: &Self) -> bool {
        self.start_ticks == other.start_ticks
    }

    /// Whether the process executed another program between the two. Not known where one of the two could not be
    /// seen.
    pub fn has_executed(&self, later: &Self) -> bool {
        let is_known = |identity: &Self| identity.image.iter().any(|address| *address > 1);
        self.is_same_process(later) && is_known(self) && is_known(later) && self.image != later.image
    }
}

/// What `/proc/PID/stat` says: the state's letter and the identity. The name in parentheses may hold anything.
pub fn parse_stat(stat: &[u8]) -> Option<(char, Identity)> {
    let behind = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(behind + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().take(30).collect();
    // The first behind the name is field 3.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let state = fields.first()?.chars().next()?;
    let image = [26, 27, 28].map(|number| field(number).unwrap_or(0));
    Some((state, Identity { start_ticks: field(22)?, image }))
}

/// Bytes of a line `Name:   123 kB` of `status` or `smaps_rollup`.
fn kib_field(line: &str, name: &str) -> Option<u64> {
    let value = line.strip_prefix(name)?.strip_prefix(':')?;
    let mut words = value.split_ascii_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    (words.next() == Some("kB")).then(|| number.checked_mul(1024))?
}

/// A sample from the text of `/proc/PID/status`; `None` for what has no memory of its own.
pub fn parse_status(status: &str, process: ProcessId, elapsed_ns: u64) -> Option<RssSample> {
    let find = |name: &str| status.lines().find_map(|line| kib_field(line, name));
    Some(RssSample {
        process,
        elapsed_ns,
        rss_bytes: find("VmRSS")?,
        anonymous_bytes: find("RssAnon"),
        file_bytes: find("RssFile"),
        shared_bytes: find("RssShmem"),
        swap_bytes: find("VmSwap"),
        pss_bytes: None,
    })
}

/// Pss of the text of `/proc/PID/smaps_rollup`.
pub fn parse_pss(rollup: &str) -> Option<u64> {
    rollup.lines().find_map(|line| kib_field(line, "Pss"))
}

fn read(tgid: u32, file: &str) -> Result<Vec<u8>, Gone> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{tgid}/{file}"))
        .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes))
        .map_err(|error| gone(&error))?;
    Ok(bytes)
}

fn gone(error: &io::Error) -> Gone {
    match error.raw_os_error() {
        // ESRCH: it went away after the file was opened.
        Some(libc::ENOENT | libc::ESRCH) => Gone::Exited,
        Some(number) => Gone::Unreadable(number),
        None => Gone::Unreadable(0),
    }
}

/// Who runs under this process id now.
///
/// # Errors
/// [`Gone`].
pub fn identity(tgid: u32) -> Result<Identity, Gone> {
    let (state, identity) = parse_stat(&read(tgid, "stat")?).ok_or(Gone::Exited)?;
    if matches!(state, 'Z' | 'X' | 'x') { Err(Gone::Exited) } else { Ok(identity) }
}

/// A sample of a process's memory, without Pss. Some 40 µs.
///
/// # Errors
/// [`Gone`].
pub fn sample(tgid: u32, process: ProcessId, elapsed_ns: u64) -> Result<RssSample, Gone> {
    let status = read(tgid, "status")?;
    // Without memory it is about to go: the address space is given back before the process is.
    parse_status(&String::from_utf8_lossy(&status), process, elapsed_ns).ok_or(Gone::Exited)
}

/// Pss of a process. The kernel walks all of its page tables for it: 0.1 ms and more, and it holds the target's mmap
/// lock for reading meanwhile.
///
/// # Errors
/// [`Gone`]: also without the right to read it, which is that of a debugger.
pub fn pss(tgid: u32) -> Result<Option<u64>, Gone> {
    Ok(parse_pss(&String::from_utf8_lossy(&read(tgid, "smaps_rollup")?)))
}

/// Who a process is, as far as this user may know.
pub fn target(tgid: u32) -> Target {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let comm = read(tgid, "comm").map(|comm| text(comm.trim_ascii_end())).unwrap_or_default();
    let cmdline = read(tgid, "cmdline").unwrap_or_default();
    let cmdline = cmdline.strip_suffix(b"\0").unwrap_or(&cmdline);
    let status = read(tgid, "status").map(|status| text(&status)).unwrap_or_default();
    let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let inner = inner.and_then(|line| line.split_ascii_whitespace().next_back()?.parse().ok());
    Target {
        tgid,
        inner_tgid: inner.filter(|inner| *inner != tgid),
        comm,
        cmdline: if cmdline.is_empty() {
            Vec::new()
        } else {
            cmdline.split(|byte| *byte == 0).map(text).collect()
        },
        exe: fs::read_link(format!("/proc/{tgid}/exe")).ok().map(|exe| text(exe.as_os_str().as_bytes())),
        runtime: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_cannot_pretend_to_be_fields() {
        let stat = b"7 (a) R 9 9) S 1 7 7 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 4711 1000 50 18446744073709551615 10 20 30 0";
        let (state, identity) = parse_stat(stat).unwrap();
        assert_eq!((state, identity), ('S', Identity { start_ticks: 4711, image: [10, 20, 30] }));
        assert_eq!(parse_stat(b"7 (a"), None);
        assert_eq!(parse_stat(b"7 (a) S 1"), None);
    }

    #[test]
    fn exec_and_restart_are_told_apart() {
        let before = Identity { start_ticks: 5, image: [1 << 40, 2 << 40, 3 << 40] };
        let after = Identity { image: [1 << 41, 2 << 41, 3 << 41], ..before };
        let hidden = Identity { image: [1, 1, 0], ..before };
        let restarted = Identity { start_ticks: 6, ..after };
        assert!(before.has_executed(&after) && !before.has_executed(&before));
        assert!(!before.has_executed(&hidden) && !hidden.has_executed(&after));
        assert!(!before.is_same_process(&restarted) && !before.has_executed(&restarted));
    }

    #[test]
    fn status_lines() {
        let status = "Name:\tVmRSS: 9 kB\nVmSwap:\t       8 kB\nVmRSS:\t    1024 kB\nRssAnon:\t 512 kB\nRssFile:\t x kB\n\
                      RssShmem:\t 18446744073709551615 kB\n";
        let sample = parse_status(status, ProcessId(2), 7).unwrap();
        assert_eq!((sample.rss_bytes, sample.anonymous_bytes), (1 << 20, Some(512 << 10)));
        assert_eq!((sample.file_bytes, sample.shared_bytes, sample.swap_bytes), (None, None, Some(8192)));
        assert_eq!(parse_status("Name:\tkthreadd\nThreads:\t1\n", ProcessId(0), 0), None);
        assert_eq!(
            parse_pss("55d0-7ffd ---p 0 00:00 0 [rollup]\nRss: 20 kB\nPss:    12 kB\nPss_Dirty: 3 kB\n"),
            Some(12288)
        );
        assert_eq!(parse_pss("Pss: 12\n"), None, "without a unit");
    }

    #[test]
    fn this_process_has_memory() {
        let own = std::process::id();
        let found = sample(own, ProcessId(0), 1).unwrap();
        assert!(found.rss_bytes > 1 << 20 && found.anonymous_bytes.unwrap() <= found.rss_bytes, "{found:?}");
        assert!(pss(own).unwrap().unwrap() > 0);
        assert_eq!(identity(own), identity(own));
        assert!(target(own).exe.unwrap().contains("offheap"));
        assert_eq!(sample(u32::MAX, ProcessId(0), 0), Err(Gone::Exited));
        assert_eq!(identity(u32::MAX), Err(Gone::Exited));
        // A kernel thread has none.
        assert_eq!(sample(2, ProcessId(0), 0), Err(Gone::Exited));
    }

    proptest! {
        #[test]
        fn hostile_texts_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), text in ".{0,200}") {
            let _ = parse_stat(&bytes);
            let _ = parse_status(&text, ProcessId(0), 0);
            let _ = parse_status(&format!("VmRSS:{text}"), ProcessId(0), 0);
            let _ = parse_pss(&text);
        }
    }
}
