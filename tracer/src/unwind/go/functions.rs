//! The functions of a Go program by name: from `.gopclntab`, which the Go runtime itself needs and which no
//! stripping removes, else from `.symtab`.
//!
//! The four forms of the table are those of Go's `debug/gosym` (pclntab.go): 1.2, 1.16, 1.18 and 1.20. Only the
//! form of 64-bit little-endian machines with one-byte instructions is read.

use std::borrow::Cow;

use object::elf;

use super::super::elf::Elf;
use crate::model::Machine;

/// Most functions that are read; the largest Go programs have some 400,000.
const MAX_FUNCTIONS: usize = 4_000_000;
/// Longest name, in bytes; a longer one is cut.
const MAX_NAME_BYTES: usize = 4096;
/// Sections that can hold the table where it has none of its own: position independent programs up to Go
/// 1.25.
const SHARED_SECTIONS: [&str; 2] = [".data.rel.ro", ".rodata"];
/// Behind the magic number: two zeros, instructions of one byte, pointers of eight.
const AMD64: [u8; 4] = [0, 0, 1, 8];
/// Offset of `text` in the runtime's `moduledata` (Go 1.26 and later, where `.go.module` holds it): a pointer,
/// six slices, three words.
const MODULE_TEXT: usize = 176;
/// Bytes of an entry of `.symtab`.
const SYMBOL_BYTES: usize = 24;
/// Bytes of an entry of `.rela.dyn`.
const RELOCATION_BYTES: usize = 24;

/// One function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    start: u64,
    end: u64,
    /// Where its name begins.
    name: usize,
}

/// The functions of a Go program, sorted by address.
#[derive(Clone, Debug, Default)]
pub struct GoFunctions {
    entries: Vec<Entry>,
    /// Names, each with a zero behind it.
    names: Vec<u8>,
}

/// A function as the program's own tables name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoFunction<'a> {
    /// First virtual address.
    pub start: u64,
    /// First one behind it.
    pub end: u64,
    /// As written, for instance `main.(*pool).take` or `runtime.asmcgocall.abi0`.
    pub name: &'a str,
}

impl GoFunctions {
    /// Reads the table of a Go program. `None`: the file is none, or its tables are of a form that is not
    /// known.
    pub fn from_elf(data: &[u8]) -> Option<Self> {
        Self::of(&Elf::parse(data, Machine::HOST).ok()?)
    }

    pub(super) fn of(elf: &Elf<'_>) -> Option<Self> {
        let is_go = [".go.buildinfo", ".gopclntab", ".note.go.buildid"]
            .into_iter()
            .any(|name| elf.section(name).is_ok_and(|section| section.is_some()));
        if !is_go {
            return None;
        }
        Self::from_line_table(elf)
            .or_else(|| Self::from_symbols(elf))
            .filter(|found| !found.entries.is_empty())
    }

    fn from_line_table(elf: &Elf<'_>) -> Option<Self> {
        if let Ok(Some(section)) = elf.section(".gopclntab") {
            return Self::parse(elf, &section.contents);
        }
        SHARED_SECTIONS.into_iter().find_map(|name| {
            let section = elf.section(name).ok()??;
            let bytes = &section.contents;
            let is_table = |at: &usize| {
                bytes.get(at + 4..at + 8) == Some(&AMD64)
                    && Form::of(bytes.get(*at..).unwrap_or_default()).is_some()
            };
            // The linker aligns the table to 8 bytes or more.
            (0..bytes.len()).step_by(8).filter(is_table).find_map(|at| Self::parse(elf, bytes.get(at..)?))
        })
    }

    fn parse(elf: &Elf<'_>, table: &[u8]) -> Option<Self> {
        let form = Form::of(table)?;
        let count = usize::try_from(word(table, 8)?).ok().filter(|count| *count <= MAX_FUNCTIONS)?;
        let base = match form {
            Form::Go1_18 => text_start(elf, word(table, 24)?)?,
            Form::Go1_2 | Form::Go1_16 => 0,
        };
        let at = |index: usize| usize::try_from(word(table, 8 + 8 * index)?).ok();
        // Where names, function records and the function table begin.
        let (names, functions) = match form {
            Form::Go1_2 => (0, 0),
            Form::Go1_16 => (at(2)?, at(6)?),
            Form::Go1_18 => (at(3)?, at(7)?),
        };
        let first = if form == Form::Go1_2 { 16 } else { functions };
        let width = if form == Form::Go1_18 { 4 } else { 8 };
        let number = |offset: usize| match width {
            4 => half(table, offset).map(u64::from),
            _ => word(table, offset),
        };
        let mut found = Self::default();
        for index in 0..count {
            let entry = first.checked_add(index.checked_mul(2 * width)?)?;
            let start = base.checked_add(number(entry)?)?;
            // The entry behind the last one has an address too: the end.
            let end = base.checked_add(number(entry + 2 * width)?)?;
            let record = functions.checked_add(usize::try_from(number(entry + width)?).ok()?)?;
            let name = names.checked_add(half(table, record.checked_add(width)?)? as usize)?;
            if start < end {
                let name = found.add_name(table.get(name..)?);
                found.entries.push(Entry { start, end, name });
            }
        }
        found.entries.is_sorted_by_key(|entry| entry.start).then_some(found)
    }

    fn from_symbols(elf: &Elf<'_>) -> Option<Self> {
        let symbols = elf.section(".symtab").ok()??.contents;
        let names: Cow<'_, [u8]> = elf.section(".strtab").ok()??.contents;
        let mut found = Self::default();
        for symbol in symbols.chunks_exact(SYMBOL_BYTES).take(MAX_FUNCTIONS) {
            let (Some(name), Some(start), Some(size_bytes)) =
                (half(symbol, 0), word(symbol, 8), word(symbol, 16))
            else {
                continue;
            };
            let is_function = symbol.get(4).is_some_and(|info| info & 0xf == elf::STT_FUNC.0);
            let (Some(end), Some(name)) = (start.checked_add(size_bytes), names.get(name as usize..)) else {
                continue;
            };
            if is_function && start < end {
                let name = found.add_name(name);
                found.entries.push(Entry { start, end, name });
            }
        }
        found.entries.sort_by_key(|entry| entry.start);
        Some(found)
    }

    fn add_name(&mut self, text: &[u8]) -> usize {
        let at = self.names.len();
        let text = text.get(..MAX_NAME_BYTES).unwrap_or(text);
        let length = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        self.names.extend(text.iter().take(length));
        self.names.push(0);
        at
    }

    fn describe(&self, entry: &Entry) -> Option<GoFunction<'_>> {
        let text = self.names.get(entry.name..)?;
        let length = text.iter().position(|byte| *byte == 0)?;
        let name = std::str::from_utf8(text.get(..length)?).ok()?;
        Some(GoFunction { start: entry.start, end: entry.end, name })
    }

    /// All functions with a readable name.
    pub fn iter(&self) -> impl Iterator<Item = GoFunction<'_>> {
        self.entries.iter().filter_map(|entry| self.describe(entry))
    }

    /// The function at a virtual address.
    pub fn find(&self, address: u64) -> Option<GoFunction<'_>> {
        let behind = self.entries.partition_point(|entry| entry.start <= address);
        let entry = self.entries.get(behind.checked_sub(1)?).filter(|entry| address < entry.end)?;
        self.describe(entry).filter(|function| !function.name.is_empty())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Go1_2,
    Go1_16,
    /// 1.20 differs in the magic number only.
    Go1_18,
}

impl Form {
    fn of(table: &[u8]) -> Option<Self> {
        if table.get(4..8)? != AMD64 {
            return None;
        }
        Some(match half(table, 0)? {
            0xffff_fffb => Self::Go1_2,
            0xffff_fffa => Self::Go1_16,
            0xffff_fff0 | 0xffff_fff1 => Self::Go1_18,
            _ => return None,
        })
    }
}

/// Where Go's code begins. The table says it up to Go 1.25, the runtime's `moduledata` after that; where the file
/// holds a zero that the loader fills in, the relocation says it.
fn text_start(elf: &Elf<'_>, written: u64) -> Option<u64> {
    let is_code = |address: &u64| elf.code.end_of(*address).is_some();
    if written != 0 {
        return Some(written).filter(is_code);
    }
    let module = elf.section(".go.module").ok()??;
    match word(&module.contents, MODULE_TEXT)? {
        0 => {
            let place = module.address.checked_add(MODULE_TEXT as u64)?;
            let relocations = elf.section(".rela.dyn").ok()??.contents;
            let relocation =
                relocations.chunks_exact(RELOCATION_BYTES).find(|entry| word(entry, 0) == Some(place))?;
            word(relocation, 16).filter(is_code)
        }
        start => Some(start).filter(is_code),
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|half| u32::from_le_bytes(*half))
}
