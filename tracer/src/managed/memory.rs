//! Memory of a process that is read from outside, and where its files' variables are in it.

use std::collections::HashMap;

use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};

use crate::attach::maps::MapEntry;
use crate::attach::object::{ObjectFile, read_memory};

/// Longest name that is read out of a target, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// Something that has memory.
pub(crate) trait Memory {
    /// Fills the buffer from an address on; false if any of it cannot be read.
    fn read(&self, address: u64, buffer: &mut [u8]) -> bool;

    /// One word.
    fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }

    /// Half a word.
    fn half(&self, address: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes).then(|| u32::from_le_bytes(bytes))
    }

    /// A name with a zero behind it; `None` for one that is too long or no text.
    fn name(&self, address: u64) -> Option<String> {
        let mut bytes = [0; MAX_NAME_BYTES];
        // The page behind it need not be there.
        let length = [MAX_NAME_BYTES, 32]
            .into_iter()
            .find(|length| bytes.get_mut(..*length).is_some_and(|part| self.read(address, part)))?;
        let text = bytes.get(..length)?;
        let end = text.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(text.get(..end)?).ok().map(str::to_owned)
    }
}

/// A running process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessMemory {
    /// Its id.
    pub(crate) tgid: u32,
}

impl Memory for ProcessMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> bool {
        read_memory(self.tgid, address, buffer)
    }
}

/// Addresses of variables in the running process, of the first executable mapping whose file's name begins with one
/// of `objects`. Those that the file does not define are not in the answer.
pub(crate) fn variables(
    tgid: u32,
    entries: &[MapEntry],
    objects: &[&str],
    wanted: impl Fn(&str) -> bool,
) -> HashMap<String, u64> {
    let is_object = |entry: &&MapEntry| {
        let name = entry.display_name();
        let file = name.rsplit('/').next().unwrap_or_default();
        entry.is_executable() && objects.iter().any(|start| file.starts_with(start))
    };
    let found = entries.iter().filter(is_object).find_map(|entry| {
        let bytes = ObjectFile::open(tgid, entry).ok()?.read_all().ok()?;
        let elf = object::File::parse(&*bytes).ok()?;
        let bias = bias_of(&elf, entry)?;
        let symbols = elf.dynamic_symbols().chain(elf.symbols()).filter(|symbol| !symbol.is_undefined());
        let named = symbols.filter_map(|symbol| {
            let name = symbol.name().ok()?.split('@').next()?;
            wanted(name).then(|| (name.to_owned(), symbol.address().wrapping_add(bias)))
        });
        // A small program may stand before the library that has them.
        let found: HashMap<String, u64> = named.collect();
        (!found.is_empty()).then_some(found)
    });
    found.unwrap_or_default()
}

/// Runtime address minus virtual address, of the segment that the mapping shows.
fn bias_of(elf: &object::File<'_>, entry: &MapEntry) -> Option<u64> {
    elf.segments().find_map(|segment| {
        let (offset, size_bytes) = segment.file_range();
        let first = offset & !0xfff;
        let is_shown = first <= entry.file_offset && entry.file_offset < offset.checked_add(size_bytes)?;
        let address = segment.address().wrapping_add(entry.file_offset.wrapping_sub(offset));
        let is_code = matches!(segment.flags(), object::SegmentFlags::Elf { p_flags, .. } if p_flags.contains(object::elf::PF_X));
        (is_shown && is_code).then(|| entry.start.wrapping_sub(address))
    })
}

/// Whether a mapping is private anonymous memory without a name.
pub(crate) fn is_anonymous(entry: &MapEntry) -> bool {
    entry.inode == 0 && entry.name.is_empty() && entry.permissions.get(3) == Some(&b'p')
}

/// Maximal runs of adjacent mappings that satisfy `is_part`: start and end.
pub(crate) fn runs(entries: &[MapEntry], is_part: impl Fn(&MapEntry) -> bool) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for entry in entries.iter().filter(|entry| is_part(entry)) {
        match runs.last_mut() {
            Some((_, end)) if *end == entry.start => *end = entry.end,
            _ => runs.push((entry.start, entry.end)),
        }
    }
    runs
}
