//! Where the debug information of a stripped file lies: by build id and by debug link, on the target's root
//! and on the host's.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::elf::ElfFacts;
use crate::attach::plain_file::open_below;

/// Where distributions install debug files.
const DEBUG_DIRECTORY: &str = "usr/lib/debug";
/// Build ids shorter than this are not unique.
const MIN_BUILD_ID_BYTES: usize = 8;
/// Size up to which a debug file without a build id is believed: all of it has to be read.
const MAX_CHECKSUM_BYTES: u64 = 4 << 30;

/// A separate debug file that was verified to belong to the object.
#[derive(Debug)]
pub(super) struct DebugFile {
    /// The file.
    pub file: File,
    /// Its headers.
    pub facts: ElfFacts,
    /// Whether it lies where packages put debug files, and not somewhere beside the object.
    pub is_installed: bool,
}

/// Finds the object's debug file below a root directory. A file counts if its build id is the object's, or,
/// for objects without one, if its checksum is that of the debug link.
pub(super) fn find_debug_file(
    root: BorrowedFd<'_>,
    facts: &ElfFacts,
    object_path: &Path,
) -> Option<DebugFile> {
    candidates(facts, object_path).into_iter().find_map(|path| {
        let file = open_below(root, &path).ok()?;
        let found = ElfFacts::read(&file).ok()?;
        let is_match = match (&facts.build_id, &facts.debug_link) {
            (Some(wanted), _) => found.build_id.as_ref() == Some(wanted),
            (None, Some((_, checksum))) => checksum_of(&file).is_ok_and(|actual| actual == *checksum),
            (None, None) => false,
        };
        is_match.then(|| DebugFile { file, facts: found, is_installed: path.starts_with(DEBUG_DIRECTORY) })
    })
}

/// Paths relative to a root, in the order of gdb's manual ("Separate Debug Files").
fn candidates(facts: &ElfFacts, object_path: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    if let Some(id) = facts.build_id.as_deref().filter(|id| id.len() >= MIN_BUILD_ID_BYTES) {
        let rest: String = id[1..].iter().map(|byte| format!("{byte:02x}")).collect();
        paths.push(Path::new(DEBUG_DIRECTORY).join(format!(".build-id/{:02x}/{rest}.debug", id[0])));
    }
    let Some((link, _)) = &facts.debug_link else { return paths };
    let link = Path::new(OsStr::from_bytes(link));
    // The link is a file name; one that is a path is an attempt to be led somewhere else.
    let is_file_name = matches!(link.components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
    let directory = object_path.parent().and_then(|directory| directory.strip_prefix("/").ok());
    if let (true, Some(directory)) = (is_file_name, directory) {
        paths.push(directory.join(link));
        paths.push(directory.join(".debug").join(link));
        paths.push(Path::new(DEBUG_DIRECTORY).join(directory).join(link));
    }
    paths
}

/// CRC-32 (IEEE 802.3) of a file's contents, up to [`MAX_CHECKSUM_BYTES`]: those of a longer file never match.
fn checksum_of(mut file: &File) -> io::Result<u32> {
    file.seek(SeekFrom::Start(0))?;
    let mut contents = file.take(MAX_CHECKSUM_BYTES);
    let mut checksum = !0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match contents.read(&mut buffer)? {
            0 => return Ok(!checksum),
            length => checksum = extend_checksum(checksum, &buffer[..length]),
        }
    }
}

fn extend_checksum(checksum: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(checksum, |sum, &byte| (sum >> 8) ^ CRC_TABLE[((sum as u8) ^ byte) as usize])
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < table.len() {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = (value >> 1) ^ if value & 1 == 1 { 0xedb8_8320 } else { 0 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
};

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn paths(build_id: Option<&[u8]>, link: Option<&[u8]>, object: &str) -> Vec<String> {
        let facts = ElfFacts {
            build_id: build_id.map(<[u8]>::to_vec),
            debug_link: link.map(|name| (name.to_vec(), 0)),
            ..ElfFacts::default()
        };
        candidates(&facts, Path::new(object)).iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn the_build_id_is_looked_up_before_the_link() {
        let id = [0xab, 0xcd, 1, 2, 3, 4, 5, 6];
        assert_eq!(
            paths(Some(&id), Some(b"libx.debug"), "/opt/lib/libx.so"),
            [
                "usr/lib/debug/.build-id/ab/cd010203040506.debug",
                "opt/lib/libx.debug",
                "opt/lib/.debug/libx.debug",
                "usr/lib/debug/opt/lib/libx.debug",
            ]
        );
    }

    #[test]
    fn a_link_that_is_a_path_is_not_followed() {
        for link in ["/etc/shadow", "../x", "a/b", "..", "."] {
            assert_eq!(paths(None, Some(link.as_bytes()), "/bin/x"), Vec::<String>::new(), "{link}");
        }
        assert_eq!(paths(Some(&[1, 2]), None, "/bin/x"), Vec::<String>::new());
    }

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(!extend_checksum(!0, b"123456789"), 0xcbf4_3926);
    }
}
