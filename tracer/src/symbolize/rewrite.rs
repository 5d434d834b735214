//! A copy of an ELF file in which blazesym finds nothing that it cannot be trusted with.
//!
//! blazesym 0.2.7 decompresses debug sections without a bound, opens whatever path the file's links name
//! (a FIFO would block it), and gives up on a whole file when it meets `.gnu_debugdata` without its xz
//! support. A file that has any of these is copied into memory with the sections decompressed here, to the
//! size that their headers state and no further, and with the other sections made nameless.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use object::elf::{self, SectionHeader64};
use object::pod::bytes_of;
use object::read::elf::{CompressionHeader, SectionHeader};
use object::read::{CompressedData, CompressionFormat};
use object::{LittleEndian, ReadCache, ReadRef};
use rustix::fs::{MemfdFlags, memfd_create};

use super::SymbolizeError;
use super::elf::{ElfFacts, SectionFacts};

const ENDIAN: LittleEndian = LittleEndian;
/// Size of the copy beyond which debug information is given up.
const MAX_COPY_BYTES: u64 = 2 << 30;

/// Sections through which a file makes its reader open other files, or fail.
const HIDDEN: [&str; 4] = [".gnu_debuglink", ".gnu_debugdata", ".gnu_debugaltlink", ".debug_sup"];
/// Those of [`HIDDEN`] that lead from a distribution's debug file to the part it shares with others.
const SUPPLEMENT: [&str; 2] = [".gnu_debugaltlink", ".debug_sup"];

/// Whether links to supplementary debug files are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    /// The file is the administrator's own: they are.
    Trusted,
    /// The file is the target's: they are not.
    Untrusted,
}

/// What is done to a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Decompress,
    Hide,
}

fn change_for(section: &SectionFacts, wants_debug_info: bool, links: Links) -> Option<Change> {
    let name = section.name.as_str();
    let is_debug_info = name.starts_with(".debug_") && !SUPPLEMENT.contains(&name);
    if name == ".gnu_debugdata" {
        return Some(Change::Hide);
    }
    if !wants_debug_info {
        return None;
    }
    if HIDDEN.contains(&name) {
        let is_kept = links == Links::Trusted && SUPPLEMENT.contains(&name) && !section.is_compressed;
        return (!is_kept).then_some(Change::Hide);
    }
    section.is_compressed.then_some(if is_debug_info { Change::Decompress } else { Change::Hide })
}

/// Gives a file that blazesym can be handed: `None` if the file is fit as it is, else the copy.
pub(super) fn rewrite(
    file: &File,
    facts: &ElfFacts,
    wants_debug_info: bool,
    links: Links,
) -> Result<Option<File>, SymbolizeError> {
    let changes: Vec<_> = facts
        .sections
        .iter()
        .filter_map(|section| Some((section, change_for(section, wants_debug_info, links)?)))
        .collect();
    if changes.is_empty() {
        return Ok(None);
    }
    let mut copy = copy_of(file)?;
    let original = ReadCache::new(file);
    for (section, change) in changes {
        let at = section.header_offset;
        match change {
            Change::Hide => hide(&original, at, &copy)?,
            Change::Decompress => decompress(&original, at, &mut copy)?,
        }
    }
    Ok(Some(copy))
}

fn copy_of(file: &File) -> Result<File, SymbolizeError> {
    let size = file.metadata().map_err(SymbolizeError::Copy)?.len();
    if size > MAX_COPY_BYTES {
        return Err(SymbolizeError::TooLarge { bytes: size, limit_bytes: MAX_COPY_BYTES });
    }
    let mut copy = memory_file().map_err(SymbolizeError::Copy)?;
    let mut source = file;
    source.seek(SeekFrom::Start(0)).map_err(SymbolizeError::Copy)?;
    io::copy(&mut io::Read::take(source, size), &mut copy).map_err(SymbolizeError::Copy)?;
    Ok(copy)
}

/// An empty file in memory.
pub(super) fn memory_file() -> io::Result<File> {
    Ok(memfd_create("offheap-object", MemfdFlags::CLOEXEC)?.into())
}

fn header_at(original: &ReadCache<&File>, at: u64) -> Result<SectionHeader64<LittleEndian>, SymbolizeError> {
    original
        .read_at::<SectionHeader64<LittleEndian>>(at)
        .copied()
        .map_err(|()| SymbolizeError::Compressed("section header out of file".into()))
}

/// Takes the section's name, and its contents as well, as a hostile string table may have any name at index 0.
fn hide(original: &ReadCache<&File>, at: u64, copy: &File) -> Result<(), SymbolizeError> {
    let mut changed = header_at(original, at)?;
    changed.sh_name.set(ENDIAN, 0);
    changed.sh_type.set(ENDIAN, elf::SHT_NOBITS);
    copy.write_all_at(bytes_of(&changed), at).map_err(SymbolizeError::Copy)
}

/// Appends the section's decompressed contents and lets its header say so.
fn decompress(original: &ReadCache<&File>, at: u64, copy: &mut File) -> Result<(), SymbolizeError> {
    let damaged = SymbolizeError::Compressed;
    let section = header_at(original, at)?;
    let (header, offset, compressed_size) = section
        .compression(ENDIAN, original)
        .map_err(|error| damaged(error.to_string()))?
        .ok_or_else(|| damaged("no compression header".into()))?;
    let uncompressed_size = header.ch_size(ENDIAN);
    let end = copy.seek(SeekFrom::End(0)).map_err(SymbolizeError::Copy)?.next_multiple_of(16);
    let total = end.saturating_add(uncompressed_size);
    if total > MAX_COPY_BYTES {
        return Err(SymbolizeError::TooLarge { bytes: total, limit_bytes: MAX_COPY_BYTES });
    }
    let contents = CompressedData {
        format: match header.ch_type(ENDIAN) {
            elf::ELFCOMPRESS_ZLIB => CompressionFormat::Zlib,
            elf::ELFCOMPRESS_ZSTD => CompressionFormat::Zstandard,
            other => return Err(damaged(format!("unknown method {}", other.0))),
        },
        data: original
            .read_bytes_at(offset, compressed_size)
            .map_err(|()| damaged("contents out of file".into()))?,
        uncompressed_size,
    };
    let contents = contents.decompress().map_err(|error| damaged(error.to_string()))?;
    copy.seek(SeekFrom::Start(end)).map_err(SymbolizeError::Copy)?;
    copy.write_all(&contents).map_err(SymbolizeError::Copy)?;
    let mut changed = section;
    changed.sh_offset.set(ENDIAN, end);
    changed.sh_size.set(ENDIAN, uncompressed_size);
    changed.sh_flags.set(ENDIAN, elf::SectionFlags(0));
    copy.write_all_at(bytes_of(&changed), at).map_err(SymbolizeError::Copy)
}
