//! `/proc/PID/maps`, as bytes: names are the target's and need not be UTF-8. (The procfs crate wants text,
//! and fails as a whole on one line that is not.)

use std::{fs::File, io::Read};

use super::AttachError;

/// Most bytes that are read: some 500,000 mappings, eight times the kernel's default limit.
const MAX_BYTES: u64 = 64 << 20;

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `rwxp` or `rwxs`, `-` for what is not there.
    pub permissions: [u8; 4],
    /// Offset of the first byte within the file.
    pub file_offset: u64,
    /// Device: major in the high half, minor in the low.
    pub device: u64,
    /// Inode; 0 for anonymous memory.
    pub inode: u64,
    /// Path or `[name]`; newlines are escaped by the kernel as `\012`.
    pub name: Vec<u8>,
}

impl MapEntry {
    /// Whether code can run there.
    pub fn is_executable(&self) -> bool {
        self.permissions[2] == b'x'
    }

    /// The name as text, for messages.
    pub fn display_name(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }
}

/// Reads the mappings of a process, sorted by address.
///
/// # Errors
/// [`AttachError::NoProcess`], [`AttachError::NotPermitted`], [`AttachError::Proc`].
pub fn read(tgid: u32) -> Result<Vec<MapEntry>, AttachError> {
    let path = format!("/proc/{tgid}/maps");
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes))
        .map_err(|source| AttachError::proc(tgid, path, source))?;
    Ok(parse(&bytes))
}

/// Parses the file; lines of another form are left out.
pub fn parse(bytes: &[u8]) -> Vec<MapEntry> {
    bytes.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MapEntry> {
    let mut rest = line;
    let mut field = || {
        let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
        let (field, tail) = rest.split_at(end);
        rest = tail.strip_prefix(b" ").unwrap_or(tail);
        std::str::from_utf8(field).ok()
    };
    let (start, end) = field()?.split_once('-')?;
    let permissions = field()?.as_bytes().try_into().ok()?;
    let file_offset = hex(field()?)?;
    let (major, minor) = field()?.split_once(':')?;
    let inode = field()?.parse().ok()?;
    let (start, end) = (hex(start)?, hex(end)?);
    let padding = rest.iter().position(|byte| *byte != b' ').unwrap_or(rest.len());
    (start < end).then(|| MapEntry {
        start,
        end,
        permissions,
        file_offset,
        device: hex(major).unwrap_or(0) << 32 | hex(minor).unwrap_or(0),
        inode,
        name: rest[padding..].to_vec(),
    })
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_of_line_is_read() {
        let entries = parse(
            b"55d0c0a00000-55d0c0a22000 r-xp 00002000 fe:01 1234 /usr/bin/with space\\012 (deleted)\n\
              7ffe0000-7ffe1000 rw-p 00000000 00:00 0                          [stack]\n\
              7f0000000000-7f0000001000 rwxp 00000000 00:00 0\n\
              nonsense\n\
              2000-1000 r--p 00000000 00:00 0\n\
              7f0000002000-7f0000003000 r-xs 00000000 00:01 7                  /\xff\xfe\n",
        );
        assert_eq!(entries.len(), 4);
        assert_eq!(entries[0].name, b"/usr/bin/with space\\012 (deleted)");
        assert_eq!(
            (entries[0].device, entries[0].inode, entries[0].file_offset),
            (0xfe_0000_0001, 1234, 0x2000)
        );
        assert!(entries[0].is_executable() && !entries[1].is_executable());
        assert_eq!((entries[1].name.as_slice(), entries[2].name.as_slice()), (&b"[stack]"[..], &b""[..]));
        assert_eq!(entries[3].name, b"/\xff\xfe");
    }

    #[test]
    fn own_code_is_mapped() {
        let address = own_code_is_mapped as *const () as u64;
        let entries = read(std::process::id()).unwrap();
        let own = entries.iter().find(|entry| (entry.start..entry.end).contains(&address)).unwrap();
        assert!(own.is_executable() && own.inode != 0);
    }

    #[test]
    fn a_process_that_is_not_there_is_said_to_be() {
        assert!(matches!(read(u32::MAX), Err(AttachError::NoProcess { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            for entry in parse(&bytes) {
                prop_assert!(entry.start < entry.end);
            }
        }
    }
}
