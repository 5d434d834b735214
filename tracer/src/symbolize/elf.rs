//! What an ELF file says about itself, read before anything is handed to blazesym.

use std::fs::File;
use std::ops::Range;

use object::elf::{self, FileHeader64, ProgramHeader64, SectionHeader64};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader, SectionHeader};
use object::{LittleEndian, ReadCache, ReadCacheOps, ReadRef};

use super::SymbolizeError;

type Header = FileHeader64<LittleEndian>;
const ENDIAN: LittleEndian = LittleEndian;

/// Longest build id that is believed; real ones have 8, 16, 20 or 32 bytes.
const MAX_BUILD_ID_BYTES: usize = 64;
/// Notes and links beyond this size are not read: they are at most a few hundred bytes.
const MAX_NOTE_BYTES: u64 = 64 << 10;
/// Larger files have no names; debug files of browsers have 4 GB.
const MAX_FILE_BYTES: u64 = 8 << 30;
/// Files with more sections are refused; linked files have some forty.
const MAX_SECTIONS: usize = 10_000;

/// One section, as far as symbolization cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SectionFacts {
    /// Where its header lies in the file.
    pub header_offset: u64,
    /// Name; empty where it is not UTF-8.
    pub name: String,
    /// `SHF_COMPRESSED` is set.
    pub is_compressed: bool,
    /// Address range in memory, empty where it is not loaded.
    pub addresses: Range<u64>,
}

/// What is known about an ELF file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ElfFacts {
    /// GNU build id.
    pub build_id: Option<Vec<u8>>,
    /// File name and CRC-32 of `.gnu_debuglink`.
    pub debug_link: Option<(Vec<u8>, u32)>,
    /// Every section but the first, which is always empty.
    pub sections: Vec<SectionFacts>,
    /// `PT_LOAD`: file range and the address it is mapped at.
    pub loads: Vec<(Range<u64>, u64)>,
}

impl ElfFacts {
    /// Reads the headers of a 64-bit little-endian ELF file.
    pub fn read(file: &File) -> Result<Self, SymbolizeError> {
        let bytes = file.metadata().map_err(SymbolizeError::Copy)?.len();
        // Tables of headers are read into memory: a sparse file can claim any size for them.
        if bytes > MAX_FILE_BYTES {
            return Err(SymbolizeError::TooLarge { bytes, limit_bytes: MAX_FILE_BYTES });
        }
        Self::parse(&ReadCache::new(file))
    }

    fn parse<R: ReadCacheOps>(data: &ReadCache<R>) -> Result<Self, SymbolizeError> {
        let header = Header::parse(data).map_err(SymbolizeError::NotElf)?;
        let mut facts = Self::default();
        for segment in header.program_headers(ENDIAN, data).map_err(SymbolizeError::NotElf)? {
            facts.add_segment(segment, data);
        }
        // A file without usable section headers has no symbols, but is not in error.
        let Ok(sections) = header.sections(ENDIAN, data) else { return Ok(facts) };
        if sections.len() > MAX_SECTIONS {
            return Err(SymbolizeError::TooManySections { count: sections.len(), limit: MAX_SECTIONS });
        }
        let table_offset = header.e_shoff.get(ENDIAN);
        for (index, section) in sections.enumerate().skip(1) {
            let name = sections.section_name(ENDIAN, section).unwrap_or_default();
            let name = std::str::from_utf8(name).unwrap_or_default().to_owned();
            facts.add_section(section, name, table_offset, index.0, data);
        }
        Ok(facts)
    }

    fn add_segment<'data, R: ReadRef<'data>>(&mut self, segment: &ProgramHeader64<LittleEndian>, data: R) {
        match segment.p_type(ENDIAN) {
            elf::PT_LOAD => {
                let start = segment.p_offset(ENDIAN);
                let end = start.saturating_add(segment.p_filesz(ENDIAN));
                self.loads.push((start..end, segment.p_vaddr(ENDIAN)));
            }
            elf::PT_NOTE if self.build_id.is_none() && segment.p_filesz(ENDIAN) <= MAX_NOTE_BYTES => {
                if let Ok(Some(notes)) = segment.notes(ENDIAN, data) {
                    self.build_id = build_id_in(notes);
                }
            }
            _ => {}
        }
    }

    fn add_section<'data, R: ReadRef<'data>>(
        &mut self,
        section: &SectionHeader64<LittleEndian>,
        name: String,
        table_offset: u64,
        index: usize,
        data: R,
    ) {
        // A file of debug information alone keeps the note's section, but not always the segment's contents.
        let is_small = section.sh_size(ENDIAN) <= MAX_NOTE_BYTES;
        if is_small
            && self.build_id.is_none()
            && let Ok(Some(notes)) = section.notes(ENDIAN, data)
        {
            self.build_id = build_id_in(notes);
        }
        if is_small
            && name == ".gnu_debuglink"
            && let Ok(bytes) = section.data(ENDIAN, data)
        {
            self.debug_link = parse_debug_link(bytes);
        }
        let has_contents = section.sh_type(ENDIAN) != elf::SHT_NOBITS;
        let start = section.sh_addr(ENDIAN);
        self.sections.push(SectionFacts {
            header_offset: table_offset
                .saturating_add(index as u64 * size_of::<SectionHeader64<LittleEndian>>() as u64),
            name: if has_contents { name } else { String::new() },
            is_compressed: has_contents && section.sh_flags(ENDIAN).contains(elf::SHF_COMPRESSED),
            addresses: start..start.saturating_add(section.sh_size(ENDIAN)),
        });
    }

    /// Whether a section of this name has contents in the file.
    pub fn has_section(&self, name: &str) -> bool {
        self.sections.iter().any(|section| section.name == name)
    }

    /// The address, as linked, of a byte of the file.
    pub fn address_of(&self, file_offset: u64) -> Option<u64> {
        self.loads
            .iter()
            .find(|(range, _)| range.contains(&file_offset))
            .and_then(|(range, address)| address.checked_add(file_offset - range.start))
    }

    /// Whether the address is in a table of jumps to other objects. Such a place has no symbol, and the
    /// nearest one before it is a wrong one.
    pub fn is_plt(&self, address: u64) -> bool {
        self.sections
            .iter()
            .any(|section| section.name.starts_with(".plt") && section.addresses.contains(&address))
    }
}

fn build_id_in(mut notes: NoteIterator<'_, Header>) -> Option<Vec<u8>> {
    while let Ok(Some(note)) = notes.next() {
        let id = note.desc();
        if note.name() == elf::ELF_NOTE_GNU && note.n_type(ENDIAN) == elf::NT_GNU_BUILD_ID && !id.is_empty() {
            return (id.len() <= MAX_BUILD_ID_BYTES).then(|| id.to_vec());
        }
    }
    None
}

/// The section is a file name, a zero byte, padding to four bytes, and a CRC-32.
fn parse_debug_link(bytes: &[u8]) -> Option<(Vec<u8>, u32)> {
    let name_length = bytes.iter().position(|&byte| byte == 0)?;
    let crc_offset = (name_length + 1).next_multiple_of(4);
    let crc = bytes.get(crc_offset..crc_offset + 4)?.try_into().ok()?;
    (name_length > 0).then(|| (bytes[..name_length].to_vec(), u32::from_le_bytes(crc)))
}

#[cfg(test)]
mod tests {
    use super::parse_debug_link;

    #[test]
    fn a_debug_link_is_a_padded_name_and_a_checksum() {
        assert_eq!(parse_debug_link(b"a.debug\0\x01\x02\x03\x04"), Some((b"a.debug".to_vec(), 0x0403_0201)));
        assert_eq!(parse_debug_link(b"ab.debug\0\0\0\0\x01\0\0\0"), Some((b"ab.debug".to_vec(), 1)));
        for damaged in [&b""[..], b"\0\0\0\0\x01\0\0\0", b"no end", b"a.debug\0\x01\x02\x03"] {
            assert_eq!(parse_debug_link(damaged), None, "{damaged:?}");
        }
    }
}
