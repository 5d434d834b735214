//! The file in which a JVM counts, `hsperfdata` (`-XX:+UsePerfData`, which is the default): what is in its heap and
//! its metaspace.
//!
//! The process has it mapped, so it is read from the process's memory: no file of the target's is opened by name. Where
//! memory cannot be read, the file itself is taken: from the target's own root, each part of the path without
//! following a link, and only a plain file of the target's owner.
//!
//! Format: `prologue_t` and `PerfDataEntry` of HotSpot's runtime/perfMemory.hpp, version 2. With G1 the heap's figures
//! are those of the last collection.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

use rustix::fs::{Mode, OFlags, openat};

use super::context::Context;
use crate::managed::memory::Memory;

/// Largest file that is read; 32 KiB is the default (`-XX:PerfDataMemorySize`).
const MAX_BYTES: u64 = 1 << 20;
const MAX_ENTRIES: u32 = 20_000;
const MAGIC: [u8; 4] = [0xca, 0xfe, 0xc0, 0xc0];
const LITTLE_ENDIAN: u8 = 1;
/// Folders of users that are looked through in `/tmp`.
const MAX_FOLDERS: usize = 1000;

/// Counters by name.
pub(crate) type Counters = HashMap<String, u64>;

/// Reads the counters of a process; `None` if it has none that can be read.
pub(super) fn read(tgid: u32, context: &Context<'_>) -> Option<Counters> {
    let is_ours = |name: &[u8]| {
        let mut parts = name.rsplit(|byte| *byte == b'/');
        let file = parts.next().unwrap_or_default();
        let folder = parts.next().unwrap_or_default();
        folder.starts_with(b"hsperfdata_") && !file.is_empty() && file.iter().all(u8::is_ascii_digit)
    };
    let entry = context.entries.iter().find(|entry| is_ours(&entry.name));
    let from_memory = entry.and_then(|entry| {
        let size_bytes = usize::try_from((entry.end - entry.start).min(MAX_BYTES)).ok()?;
        let mut bytes = vec![0; size_bytes];
        context.memory.read(entry.start, &mut bytes).then(|| parse(&bytes)).flatten()
    });
    from_memory.or_else(|| parse(&read_file(tgid)?))
}

/// The file of the process's own pid in its own `/tmp`.
fn read_file(tgid: u32) -> Option<Vec<u8>> {
    let process = procfs::process::Process::new(i32::try_from(tgid).ok()?).ok()?;
    let status = process.status().ok()?;
    let inner =
        status.nspid.as_ref().and_then(|ids| ids.last().copied()).unwrap_or(i32::try_from(tgid).ok()?);
    let folder = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // The root itself is a link of the kernel's.
    let root = File::open(format!("/proc/{tgid}/root")).ok()?;
    let tmp = openat(&root, "tmp", folder, Mode::empty()).ok()?;
    let users = rustix::fs::Dir::read_from(&tmp).ok()?;
    users.flatten().take(MAX_FOLDERS).find_map(|user| {
        if !user.file_name().to_bytes().starts_with(b"hsperfdata_") {
            return None;
        }
        let user = openat(&tmp, user.file_name(), folder, Mode::empty()).ok()?;
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&user, inner.to_string().as_str(), flags, Mode::empty()).ok()?);
        let stat = rustix::fs::fstat(&file).ok()?;
        let is_plain = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_nlink == 1;
        if !is_plain || stat.st_uid != status.euid {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    })
}

/// Reads the entries that are single numbers; those that lie are left out.
pub(crate) fn parse(bytes: &[u8]) -> Option<Counters> {
    let half = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    if !bytes.starts_with(&MAGIC) || bytes.get(4) != Some(&LITTLE_ENDIAN) || bytes.get(5) != Some(&2) {
        return None;
    }
    let mut at = half(24)? as usize;
    let mut counters = Counters::new();
    for _ in 0..half(28)?.min(MAX_ENTRIES) {
        let Some(size_bytes) = half(at).filter(|size| *size >= 20) else { break };
        let entry = || {
            let (name_at, elements) = (half(at + 4)? as usize, half(at + 8)?);
            let (kind, data_at) = (*bytes.get(at + 12)?, half(at + 16)? as usize);
            let entry = bytes.get(at..at.checked_add(size_bytes as usize)?)?;
            let name = entry.get(name_at..)?;
            let name = name.get(..name.iter().position(|byte| *byte == 0)?)?;
            let data = entry.get(data_at..data_at.checked_add(8)?)?;
            let value = u64::from_le_bytes(data.try_into().ok()?);
            // A long that is no array.
            (kind == b'J' && elements == 0).then_some((std::str::from_utf8(name).ok()?.to_owned(), value))
        };
        counters.extend(entry());
        let Some(next) = at.checked_add(size_bytes as usize) else { break };
        at = next;
    }
    Some(counters)
}

/// Sum of all counters `sun.gc.generation.G.space.S.` + `what`.
pub(crate) fn spaces(counters: &Counters, what: &str) -> Option<u64> {
    let is_space = |name: &str| {
        let parts: Vec<&str> = name.split('.').collect();
        matches!(parts[..], ["sun", "gc", "generation", _, "space", _, last] if last == what)
    };
    let values: Vec<u64> =
        counters.iter().filter(|(name, _)| is_space(name)).map(|(_, value)| *value).collect();
    (!values.is_empty()).then(|| values.into_iter().fold(0, u64::saturating_add))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(entries: &[(&str, u64)]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([LITTLE_ENDIAN, 2, 0, 1]);
        bytes.resize(24, 0);
        bytes.extend(32u32.to_le_bytes());
        bytes.extend((entries.len() as u32).to_le_bytes());
        for (name, value) in entries {
            let data_at = (20 + name.len() + 1).next_multiple_of(8);
            for field in [data_at as u32 + 8, 20, 0] {
                bytes.extend(field.to_le_bytes());
            }
            bytes.extend([b'J', 0, 2, 3]);
            bytes.extend((data_at as u32).to_le_bytes());
            let start = bytes.len() - 20;
            bytes.extend(name.as_bytes());
            bytes.resize(start + data_at, 0);
            bytes.extend(value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn counters_have_their_values() {
        let bytes = file(&[
            ("sun.gc.generation.0.space.0.used", 3),
            ("sun.gc.generation.1.space.0.used", 4),
            ("sun.gc.generation.0.capacity", 100),
            ("sun.gc.metaspace.used", 9),
        ]);
        let counters = parse(&bytes).unwrap();
        assert_eq!(counters.len(), 4);
        assert_eq!(counters.get("sun.gc.metaspace.used"), Some(&9));
        assert_eq!((spaces(&counters, "used"), spaces(&counters, "capacity")), (Some(7), None));
    }

    #[test]
    fn other_files_are_refused() {
        let mut bytes = file(&[("a", 1)]);
        bytes[4] = 0;
        assert_eq!(parse(&bytes), None);
        assert_eq!(parse(b"\x7fELF"), None);
    }

    proptest! {
        #[test]
        fn a_hostile_file_is_survived(changes in proptest::collection::vec((6usize..400, any::<u8>()), 0..30), length in 0usize..500) {
            let mut bytes = file(&[("a.b", 1), ("sun.gc.metaspace.used", 9), ("c", 3)]);
            for (at, value) in changes {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes.truncate(length);
            let _ = parse(&bytes);
        }
    }
}
