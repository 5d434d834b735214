//! The few parts of an ELF file that unwinding needs, read without trust.

use std::borrow::Cow;

use object::LittleEndian;
use object::elf;
use object::read::elf::{CompressionHeader, FileHeader, ProgramHeader, SectionHeader};
use object::read::{CompressedData, CompressionFormat};

use super::UnwindError;
use crate::model::Machine;

/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 8 << 30;
/// Most program headers that are read; linkers write about a dozen.
const MAX_PROGRAM_HEADERS: usize = 1024;
/// Most sections that are looked through.
const MAX_SECTIONS: usize = 1 << 17;
/// Largest section of call frame information, in bytes, after decompression.
const MAX_CFI_BYTES: u64 = 256 << 20;
/// Widest range of executable addresses of one file, in bytes.
const MAX_CODE_SPAN_BYTES: u64 = 4 << 30;
/// Granularity of mappings, in bytes.
const MAPPING_PAGE_BYTES: u64 = 4096;

const LE: LittleEndian = LittleEndian;
type Header = elf::FileHeader64<LittleEndian>;

/// One loadable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Virtual address.
    pub address: u64,
    /// Offset in the file.
    pub file_offset: u64,
    /// Bytes in the file.
    pub file_bytes: u64,
    /// Bytes in memory.
    pub memory_bytes: u64,
}

impl Segment {
    fn end(&self) -> u64 {
        self.address + self.memory_bytes
    }
}

/// The executable segments of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodeSegments(Vec<Segment>);

impl CodeSegments {
    /// Runtime address minus ELF virtual address (wrapping) of the executable mapping that begins at
    /// `mapping_start` and shows the file from `mapping_file_offset` on; both as in `/proc/PID/maps`.
    ///
    /// It follows from the executable segment whose page-rounded range of file offsets holds that offset.
    /// Other segments may share the file page (lld links them so), which is why "the first segment that
    /// contains the offset" would be wrong. `None`: no executable segment is shown there.
    pub fn bias_of(&self, mapping_start: u64, mapping_file_offset: u64) -> Option<u64> {
        let offset = mapping_file_offset;
        let first_page = |segment: &Segment| segment.file_offset & !(MAPPING_PAGE_BYTES - 1);
        let begins = |segment: &&Segment| first_page(segment) == offset;
        let holds = |segment: &&Segment| {
            first_page(segment) <= offset && offset < page_ceil(segment.file_offset + segment.file_bytes)
        };
        let segment = self.0.iter().find(begins).or_else(|| self.0.iter().find(holds))?;
        let address = segment.address.wrapping_add(offset.wrapping_sub(segment.file_offset));
        Some(mapping_start.wrapping_sub(address))
    }

    /// The page-rounded range of virtual addresses from the first to the last executable segment; empty
    /// if there is none.
    pub fn span(&self) -> (u64, u64) {
        let start = self.0.iter().map(|segment| segment.address).min().unwrap_or(0);
        let end = self.0.iter().map(Segment::end).max().unwrap_or(0);
        (start & !(MAPPING_PAGE_BYTES - 1), page_ceil(end))
    }

    /// End of the executable segment that contains `address`.
    pub(super) fn end_of(&self, address: u64) -> Option<u64> {
        self.0.iter().find(|segment| (segment.address..segment.end()).contains(&address)).map(Segment::end)
    }
}

/// Rounds up to a mapping page. No overflow: all addresses and offsets are checked to be below 2^63.
fn page_ceil(value: u64) -> u64 {
    value.next_multiple_of(MAPPING_PAGE_BYTES)
}

/// A section.
pub(super) struct Section<'d> {
    /// Virtual address.
    pub(super) address: u64,
    /// Contents, decompressed.
    pub(super) contents: Cow<'d, [u8]>,
}

/// A checked view of an ELF file.
pub(super) struct Elf<'d> {
    data: &'d [u8],
    header: &'d Header,
    /// Processor that the file is for.
    pub(super) machine: Machine,
    loads: Vec<Segment>,
    /// Executable segments.
    pub(super) code: CodeSegments,
    /// Segment of `.eh_frame_hdr`.
    pub(super) eh_frame_hdr: Option<Segment>,
}

impl<'d> Elf<'d> {
    /// Reads the file header and the program headers of a file for `machine`.
    pub(super) fn parse(data: &'d [u8], machine: Machine) -> Result<Self, UnwindError> {
        check_limit("file size in bytes", data.len() as u64, MAX_FILE_BYTES)?;
        let header = Header::parse(data).map_err(|_| UnwindError::NotElf)?;
        if !header.is_little_endian() {
            return Err(UnwindError::NotElf);
        }
        if header.e_machine(LE).0 != machine.e_machine() {
            return Err(UnwindError::Machine { machine: header.e_machine(LE).0 });
        }
        let programs = header
            .program_headers(LE, data)
            .map_err(|_| UnwindError::Malformed { part: "program headers" })?;
        check_limit("program header count", programs.len() as u64, MAX_PROGRAM_HEADERS as u64)?;
        let (loads, code) = (Vec::new(), CodeSegments::default());
        let mut view = Self { data, header, machine, loads, code, eh_frame_hdr: None };
        for program in programs {
            let kind = program.p_type(LE);
            if kind == elf::PT_LOAD {
                let segment = segment_of(program)?;
                view.loads.push(segment);
                if program.p_flags(LE).contains(elf::PF_X) && segment.file_bytes > 0 {
                    view.code.0.push(segment);
                }
            } else if kind == elf::PT_GNU_EH_FRAME {
                view.eh_frame_hdr = Some(segment_of(program)?);
            }
        }
        let (start, end) = view.code.span();
        check_limit("span of executable addresses in bytes", end.saturating_sub(start), MAX_CODE_SPAN_BYTES)?;
        Ok(view)
    }

    /// Entry point; 0 where there is none.
    pub(super) fn entry(&self) -> u64 {
        self.header.e_entry(LE)
    }

    /// A section that has contents, decompressed where needed. `None` if there is no
    /// such section, or if the section headers cannot be read: a file runs without them.
    pub(super) fn section(&self, name: &str) -> Result<Option<Section<'d>>, UnwindError> {
        let Ok(sections) = self.header.section_headers(LE, self.data) else { return Ok(None) };
        let names = self.header.shstrndx(LE, self.data).ok().and_then(|index| sections.get(index as usize));
        let Some((names_offset, _)) = names.and_then(|names| names.file_range(LE)) else { return Ok(None) };
        let is_named = |section: &&elf::SectionHeader64<LittleEndian>| {
            let found = names_offset
                .checked_add(section.sh_name(LE).into())
                .and_then(|offset| self.bytes(offset, name.len() as u64 + 1));
            found.is_some_and(|found| found.strip_suffix(&[0]) == Some(name.as_bytes()))
        };
        let Some(section) = sections.iter().take(MAX_SECTIONS).find(is_named) else { return Ok(None) };
        let Some((offset, size_bytes)) = section.file_range(LE) else { return Ok(None) };
        let malformed = UnwindError::Malformed { part: "section of call frame information" };
        let contents = match section.compression(LE, self.data) {
            Ok(None) => self.bytes(offset, size_bytes).map(Cow::Borrowed).ok_or(malformed)?,
            Ok(Some((header, offset, size_bytes))) => {
                let format = match header.ch_type(LE) {
                    elf::ELFCOMPRESS_ZLIB => CompressionFormat::Zlib,
                    elf::ELFCOMPRESS_ZSTD => CompressionFormat::Zstandard,
                    _ => CompressionFormat::Unknown,
                };
                let uncompressed_size = header.ch_size(LE);
                check_cfi_bytes(uncompressed_size)?;
                let Some(data) = self.bytes(offset, size_bytes) else { return Err(malformed) };
                CompressedData { format, data, uncompressed_size }.decompress().map_err(|_| malformed)?
            }
            Err(_) => return Err(malformed),
        };
        check_cfi_bytes(contents.len() as u64)?;
        Ok(Some(Section { address: section.sh_addr(LE), contents }))
    }

    /// What the file holds from a virtual address to the end of its segment.
    pub(super) fn bytes_from_address(&self, address: u64) -> Option<&'d [u8]> {
        let segment = self
            .loads
            .iter()
            .find(|segment| (segment.address..segment.address + segment.file_bytes).contains(&address))?;
        let skip = address - segment.address;
        let left_bytes = (segment.file_bytes - skip).min(MAX_CFI_BYTES);
        // A truncated file still has the part that is there.
        let offset = segment.file_offset + skip;
        self.bytes(offset, left_bytes.min((self.data.len() as u64).saturating_sub(offset)))
    }

    fn bytes(&self, offset: u64, size_bytes: u64) -> Option<&'d [u8]> {
        let start = usize::try_from(offset).ok()?;
        self.data.get(start..start.checked_add(usize::try_from(size_bytes).ok()?)?)
    }
}

fn segment_of(program: &elf::ProgramHeader64<LittleEndian>) -> Result<Segment, UnwindError> {
    let segment = Segment {
        address: program.p_vaddr(LE),
        file_offset: program.p_offset(LE),
        file_bytes: program.p_filesz(LE),
        memory_bytes: program.p_memsz(LE),
    };
    let is_sane =
        |start: u64, size_bytes: u64| start.checked_add(size_bytes).is_some_and(|end| end < 1 << 63);
    if is_sane(segment.address, segment.memory_bytes)
        && is_sane(segment.address, segment.file_bytes)
        && is_sane(segment.file_offset, segment.file_bytes)
    {
        Ok(segment)
    } else {
        Err(UnwindError::Malformed { part: "program header" })
    }
}

fn check_cfi_bytes(found: u64) -> Result<(), UnwindError> {
    check_limit("call frame information in bytes", found, MAX_CFI_BYTES)
}

/// Errors if a quantity of a file is over its limit.
pub(super) fn check_limit(what: &'static str, found: u64, limit: u64) -> Result<(), UnwindError> {
    if found > limit { Err(UnwindError::OverLimit { what, found, limit }) } else { Ok(()) }
}
