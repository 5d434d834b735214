//! Call frame information of a file: where it is, which code it covers, and its rows.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashMap;

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, DebugFrame, EhFrame, EhFrameHdr, EndianSlice,
    FrameDescriptionEntry, LittleEndian, Register, RegisterRule, UnwindContext, UnwindContextStorage,
    UnwindOffset, UnwindSection, UnwindTableRow, Vendor,
};

use super::UnwindError;
use super::elf::{CodeSegments, Elf, check_limit};
use crate::attach::code::entry_bytes;
use crate::model::Machine;

/// Most FDEs of one file.
const MAX_FDES: u64 = 4_000_000;
/// Longest CIE, in bytes. Its instructions are run again for every FDE; compilers write about 20 bytes.
const MAX_CIE_BYTES: usize = 4096;
/// Longest FDE, in bytes.
const MAX_FDE_BYTES: usize = 1 << 20;
/// Bytes of entries that are evaluated for one file: this, plus [`MAX_EVALUATIONS`] times its section.
/// Only overlapping FDEs, or CIEs much longer than their FDEs, need so much.
const MAX_EVALUATED_BYTES: u64 = 4 << 20;
const MAX_EVALUATIONS: u64 = 4;
/// Longest stub at the entry point, in bytes.
const MAX_ENTRY_STUB_BYTES: u64 = 256;

/// Input of gimli.
pub(super) type Slice<'d> = EndianSlice<'d, LittleEndian>;

/// Room for one row: 17 registers, some of the vector registers; gimli's own has room for 192, which
/// makes remembering a state dear.
#[derive(Clone, Debug)]
pub(super) struct RowStorage;

impl UnwindContextStorage<usize> for RowStorage {
    type Rules = [(Register, RegisterRule<usize>); 40];
    type Stack = [UnwindTableRow<usize, Self>; 8];
}

/// A row of the unwind table.
pub(super) type Row = UnwindTableRow<usize, RowStorage>;

/// What a row's FDE says about all of its rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameTraits {
    /// The caller was interrupted, it did not call.
    pub(super) is_signal: bool,
    /// DWARF number of the column of the return address.
    pub(super) return_address: Register,
}

impl FrameTraits {
    pub(super) fn of(fde: &FrameDescriptionEntry<Slice<'_>>) -> Self {
        Self { is_signal: fde.is_signal_trampoline(), return_address: fde.cie().return_address_register() }
    }
}

/// What is known about a range of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Offset of the FDE in its section.
    Fde(usize),
    /// Code at the entry point of the file that has no FDE: nothing called it.
    EntryStub,
}

/// A range of virtual addresses, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CodeRange {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) source: Source,
}

/// The ranges of a file that are covered, sorted, disjoint.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    pub(super) ranges: Vec<CodeRange>,
    /// FDEs that were used.
    pub(super) fde_count: u64,
    /// FDEs that could not be read, or the section ended in something unreadable.
    pub(super) malformed_count: u64,
}

impl Coverage {
    /// The range that contains `address`.
    pub(super) fn find(&self, address: u64) -> Option<&CodeRange> {
        let behind = self.ranges.partition_point(|range| range.start <= address);
        self.ranges.get(behind.checked_sub(1)?).filter(|range| address < range.end)
    }
}

/// What evaluation says about a range of code.
pub(super) enum Unwind<'a> {
    /// A row.
    Row(FrameTraits, &'a Row),
    /// There is an FDE, and it cannot be evaluated here.
    Malformed,
    /// See [`Source::EntryStub`].
    EntryStub,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    EhFrame,
    DebugFrame,
}

/// A section of call frame information.
#[derive(Debug)]
pub(super) struct Cfi<'d> {
    kind: Kind,
    vendor: Vendor,
    bytes: Cow<'d, [u8]>,
    bases: BaseAddresses,
}

/// Runs a generic expression on the section as what it is.
macro_rules! as_section {
    ($cfi:expr, $section:ident => $body:expr) => {
        match $cfi.kind {
            Kind::EhFrame => {
                let mut $section = EhFrame::new(&$cfi.bytes, LittleEndian);
                $section.set_address_size(8);
                $section.set_vendor($cfi.vendor);
                $body
            }
            Kind::DebugFrame => {
                let mut $section = DebugFrame::new(&$cfi.bytes, LittleEndian);
                $section.set_address_size(8);
                $section.set_vendor($cfi.vendor);
                $body
            }
        }
    };
}

impl<'d> Cfi<'d> {
    /// Finds the section: `.eh_frame` by its name, else by `.eh_frame_hdr` (which stripping leaves), else
    /// `.debug_frame`. A section without any FDE counts as none. `None` if there is none at all.
    pub(super) fn locate(elf: &Elf<'d>) -> Result<Option<(Self, Coverage)>, UnwindError> {
        let candidates = [Self::eh_frame_section, Self::eh_frame_segment, Self::debug_frame_section];
        for candidate in candidates {
            let Some(cfi) = candidate(elf)? else { continue };
            let coverage = cfi.coverage(elf)?;
            if coverage.fde_count > 0 {
                return Ok(Some((cfi, coverage)));
            }
        }
        Ok(None)
    }

    fn eh_frame_section(elf: &Elf<'d>) -> Result<Option<Self>, UnwindError> {
        let section = elf.section(".eh_frame")?;
        Ok(section.map(|section| Self::new(elf, Kind::EhFrame, section.contents, section.address)))
    }

    fn eh_frame_segment(elf: &Elf<'d>) -> Result<Option<Self>, UnwindError> {
        let address = elf.eh_frame_hdr.and_then(|segment| {
            let header = elf.bytes_from_address(segment.address)?;
            let bases = BaseAddresses::default().set_eh_frame_hdr(segment.address);
            EhFrameHdr::new(header, LittleEndian).parse(&bases, 8).ok()?.eh_frame_ptr().direct().ok()
        });
        let found = address.and_then(|address| Some((address, elf.bytes_from_address(address)?)));
        Ok(found.map(|(address, bytes)| Self::new(elf, Kind::EhFrame, Cow::Borrowed(bytes), address)))
    }

    fn debug_frame_section(elf: &Elf<'d>) -> Result<Option<Self>, UnwindError> {
        let section = elf.section(".debug_frame")?;
        Ok(section.map(|section| Self::new(elf, Kind::DebugFrame, section.contents, 0)))
    }

    fn new(elf: &Elf<'_>, kind: Kind, bytes: Cow<'d, [u8]>, address: u64) -> Self {
        let vendor = match elf.machine {
            Machine::X86_64 => Vendor::Default,
            // Whether a return address is signed stands in the tables.
            Machine::Aarch64 => Vendor::AArch64,
        };
        Self { kind, vendor, bytes, bases: BaseAddresses::default().set_eh_frame(address) }
    }

    /// The bytes of the section, in which expressions lie.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same section, independent of the file's bytes.
    pub(super) fn into_owned(self) -> Cfi<'static> {
        Cfi {
            kind: self.kind,
            vendor: self.vendor,
            bytes: Cow::Owned(self.bytes.into_owned()),
            bases: self.bases,
        }
    }

    fn coverage(&self, elf: &Elf<'_>) -> Result<Coverage, UnwindError> {
        let mut coverage = Coverage::default();
        let mut fdes =
            as_section!(self, section => scan(&section, &self.bytes, &self.bases, &elf.code, &mut coverage))?;
        coverage.ranges = flatten(&mut fdes);
        if let Some(stub) = entry_stub(elf, &coverage) {
            let index = coverage.ranges.partition_point(|range| range.start < stub.start);
            coverage.ranges.insert(index, stub);
        }
        Ok(coverage)
    }

    /// Visits the rows of the covered ranges in the order of their addresses, as `(start, end, what)`
    /// with `start < end`. Ranges between two visits are not covered.
    pub(super) fn visit_rows(
        &self,
        ranges: &[CodeRange],
        visit: impl FnMut(u64, u64, Unwind<'_>) -> Result<(), UnwindError>,
    ) -> Result<(), UnwindError> {
        let limit = MAX_EVALUATED_BYTES + MAX_EVALUATIONS * self.bytes.len() as u64;
        as_section!(self, section => visit_rows(&section, &self.bytes, &self.bases, (ranges, limit), visit))
    }

    /// Evaluates the FDE at `fde_offset` for one address.
    pub(super) fn row_at<T>(
        &self,
        fde_offset: usize,
        address: u64,
        read: impl FnOnce(FrameTraits, &Row) -> T,
    ) -> gimli::Result<T> {
        as_section!(self, section => {
            let get_cie = |section: &_, bases: &_, offset| UnwindSection::cie_from_offset(section, bases, offset);
            let fde = section.fde_from_offset(&self.bases, fde_offset.into(), get_cie)?;
            let mut context = UnwindContext::new_in();
            let row = fde.unwind_info_for_address(&section, &self.bases, &mut context, address)?;
            Ok(read(FrameTraits::of(&fde), row))
        })
    }
}

/// CIEs already parsed, or the error that it was, by offset.
struct CieCache<'d> {
    /// The section.
    bytes: &'d [u8],
    known: HashMap<usize, gimli::Result<CommonInformationEntry<Slice<'d>>>>,
}

impl<'d> CieCache<'d> {
    fn new(bytes: &'d [u8]) -> Self {
        Self { bytes, known: HashMap::new() }
    }

    fn get<S: UnwindSection<Slice<'d>>>(
        &mut self,
        section: &S,
        bases: &BaseAddresses,
        offset: S::Offset,
    ) -> gimli::Result<CommonInformationEntry<Slice<'d>>> {
        let key = UnwindOffset::into(offset);
        let parse = || {
            // An FDE may name any place, and parsing a CIE looks through all of it.
            let is_short = entry_bytes(self.bytes, key).is_some_and(|length| length <= MAX_CIE_BYTES);
            if is_short {
                section.cie_from_offset(bases, offset)
            } else {
                Err(gimli::Error::NotCieId(key as u64))
            }
        };
        self.known.entry(key).or_insert_with(parse).clone()
    }
}

fn scan<'d, S: UnwindSection<Slice<'d>>>(
    section: &S,
    bytes: &'d [u8],
    bases: &BaseAddresses,
    code: &CodeSegments,
    coverage: &mut Coverage,
) -> Result<Vec<CodeRange>, UnwindError> {
    let mut cies = CieCache::new(bytes);
    let mut fdes = Vec::new();
    let mut entries = section.entries(bases);
    loop {
        let partial = match entries.next() {
            Ok(Some(CieOrFde::Fde(partial))) => partial,
            Ok(Some(CieOrFde::Cie(_))) => continue,
            Ok(None) => break,
            // The length of the entry is not to be trusted, so there is no next one.
            Err(_) => {
                coverage.malformed_count += 1;
                break;
            }
        };
        let Ok(fde) = partial.parse(|section, bases, offset| cies.get(section, bases, offset)) else {
            coverage.malformed_count += 1;
            continue;
        };
        if fde.entry_len() > MAX_FDE_BYTES || fde.cie().entry_len() > MAX_CIE_BYTES {
            coverage.malformed_count += 1;
            continue;
        }
        // Linkers leave FDEs of functions that they dropped, at address 0 or thereabouts.
        let start = fde.initial_address();
        let Some(segment_end) = code.end_of(start) else { continue };
        let end = start.saturating_add(fde.len()).min(segment_end);
        if start < end {
            coverage.fde_count += 1;
            check_limit("FDE count", coverage.fde_count, MAX_FDES)?;
            fdes.push(CodeRange { start, end, source: Source::Fde(fde.offset()) });
        }
    }
    Ok(fdes)
}

/// Makes ranges disjoint: where several overlap, the one that starts last has the address, of those the
/// shortest, of those the first in the section.
fn flatten(fdes: &mut [CodeRange]) -> Vec<CodeRange> {
    let offset_of = |range: &CodeRange| match range.source {
        Source::Fde(offset) => offset,
        Source::EntryStub => 0,
    };
    fdes.sort_unstable_by_key(|range| (range.start, Reverse(range.end), Reverse(offset_of(range))));
    let mut flat = Vec::with_capacity(fdes.len());
    // Ranges that began and have not ended; the top has the addresses from `position` on.
    let mut open: Vec<CodeRange> = Vec::new();
    let mut position = 0;
    let mut advance = |open: &mut Vec<CodeRange>, position: &mut u64, to: u64| {
        while let Some(top) = open.last() {
            let end = top.end.min(to);
            if *position < end {
                flat.push(CodeRange { start: *position, end, source: top.source });
                *position = end;
            }
            if top.end > to {
                return;
            }
            open.pop();
        }
    };
    for range in fdes.iter() {
        advance(&mut open, &mut position, range.start);
        position = position.max(range.start);
        open.push(*range);
    }
    advance(&mut open, &mut position, u64::MAX);
    flat
}

/// The start-up code of the dynamic linker and of musl has no FDE. It reaches from the entry point to the
/// first function that has one.
fn entry_stub(elf: &Elf<'_>, coverage: &Coverage) -> Option<CodeRange> {
    let start = elf.entry();
    let segment_end = elf.code.end_of(start)?;
    if coverage.fde_count == 0 || coverage.find(start).is_some() {
        return None;
    }
    let next = coverage.ranges.partition_point(|range| range.start <= start);
    let next_start = coverage.ranges.get(next).map_or(segment_end, |range| range.start);
    let end = next_start.min(segment_end).min(start.saturating_add(MAX_ENTRY_STUB_BYTES));
    Some(CodeRange { start, end, source: Source::EntryStub })
}

fn visit_rows<'d, S: UnwindSection<Slice<'d>>>(
    section: &S,
    bytes: &'d [u8],
    bases: &BaseAddresses,
    (ranges, max_evaluated_bytes): (&[CodeRange], u64),
    mut visit: impl FnMut(u64, u64, Unwind<'_>) -> Result<(), UnwindError>,
) -> Result<(), UnwindError> {
    let mut cies = CieCache::new(bytes);
    let mut context = UnwindContext::<usize, RowStorage>::new_in();
    let mut evaluated_bytes = 0u64;
    for range in ranges {
        let Source::Fde(offset) = range.source else {
            visit(range.start, range.end, Unwind::EntryStub)?;
            continue;
        };
        let mut position = range.start;
        let fde = section.fde_from_offset(bases, offset.into(), |s, b, o| cies.get(s, b, o));
        if let Ok(fde) = &fde {
            evaluated_bytes += (fde.entry_len() + fde.cie().entry_len()) as u64;
            check_limit("evaluated call frame information in bytes", evaluated_bytes, max_evaluated_bytes)?;
            let traits = FrameTraits::of(fde);
            if let Ok(mut table) = fde.rows(section, bases, &mut context) {
                while let Ok(Some(row)) = table.next_row() {
                    let end = row.end_address().min(range.end);
                    if row.start_address() <= position && position < end {
                        visit(position, end, Unwind::Row(traits, row))?;
                        position = end;
                    }
                }
            }
        }
        if position < range.end {
            visit(position, range.end, Unwind::Malformed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner(fdes: &[CodeRange], address: u64) -> Option<Source> {
        fdes.iter()
            .filter(|range| (range.start..range.end).contains(&address))
            .max_by_key(|range| {
                let Source::Fde(offset) = range.source else { panic!("only FDEs are made here") };
                (range.start, Reverse(range.end), Reverse(offset))
            })
            .map(|range| range.source)
    }

    proptest! {
        #[test]
        fn the_last_started_range_has_the_address(spans in prop::collection::vec((0u64..60, 1u64..30), 0..12)) {
            let ranges: Vec<_> = spans
                .iter()
                .enumerate()
                .map(|(i, &(start, len))| CodeRange { start, end: start + len, source: Source::Fde(i) })
                .collect();
            let coverage = Coverage { ranges: flatten(&mut ranges.clone()), ..Coverage::default() };
            prop_assert!(coverage.ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
            prop_assert!(coverage.ranges.iter().all(|range| range.start < range.end));
            for address in 0..100 {
                prop_assert_eq!(coverage.find(address).map(|range| range.source), owner(&ranges, address));
            }
        }
    }
}
