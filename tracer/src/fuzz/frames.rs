//! Call frame information.

use crate::unwind::reference::FileCfi;
use crate::unwind::store::{StoreLimits, TableStore};
use crate::unwind::table::FileTable;

/// Where the section lies; the code of the file reaches to both sides of it.
const SECTION_ADDRESS: u64 = 0x10_0000;
/// Bytes of code.
const CODE_BYTES: u64 = 0x20_0000;
const HEADER_BYTES: usize = 64 + 56;
const NAMES: &[u8] = b"\0.eh_frame\0.debug_frame\0.shstrtab\0";

/// The first byte chooses the section, the rest is its contents: the fuzzer need not find an ELF file first.
pub(super) fn run(bytes: &[u8]) {
    if let Some((kind, section)) = bytes.split_first() {
        digest(&file(section, kind & 1 == 0));
    }
}

/// Builds what is built of a file, and asks it.
pub(super) fn digest(file: &[u8]) {
    let _ = FileCfi::from_elf(file);
    let Ok(table) = FileTable::from_elf(file) else { return };
    let rules = table.rules();
    assert!(
        rules.iter().zip(rules.iter().skip(1)).all(|(before, after)| before.address < after.address),
        "rules are not sorted"
    );
    let mut store = TableStore::new(StoreLimits { page_chunks: 256, row_chunks: 1024, escapes: 256 });
    let Ok(placed) = store.add((), &table) else { return };
    let (start, end) = table.segments().span();
    for rule in rules.iter().take(500) {
        for address in [rule.address.wrapping_sub(1), rule.address] {
            let stored = store.lookup(placed.page_base, address);
            // An escape rule has another number in the store than in its file.
            if (start..end).contains(&address) && store.escape(stored).is_none() {
                assert_eq!(stored, table.rule_at(address), "at {address:#x}");
            }
        }
    }
    let _ = (table.bias_of(0x7000_0000_0000, 0), table.covered_end(u64::MAX, 1));
}

/// An ELF file with one executable segment and one section of call frame information.
fn file(section: &[u8], is_eh_frame: bool) -> Vec<u8> {
    let names_offset = HEADER_BYTES + section.len();
    let table_offset = (names_offset + NAMES.len()).next_multiple_of(8);
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    // ET_DYN, EM_X86_64, version 1.
    out.extend([3, 0, 62, 0, 1, 0, 0, 0]);
    push_words(&mut out, &[0x1000, 64, table_offset as u64]);
    for half in [0u16, 0, 64, 56, 1, 64, 3, 2] {
        out.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable and executable; file bytes as large as the memory, of which the file has little.
    out.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    push_words(&mut out, &[0, 0, 0, CODE_BYTES, CODE_BYTES, 4096]);
    out.extend(section);
    out.extend(NAMES);
    out.resize(table_offset + 64, 0);
    let (name, address) = if is_eh_frame { (1, SECTION_ADDRESS) } else { (11, 0) };
    push_section(&mut out, name, 1, [address, HEADER_BYTES as u64, section.len() as u64]);
    push_section(&mut out, 24, 3, [0, names_offset as u64, NAMES.len() as u64]);
    out
}

fn push_words(out: &mut Vec<u8>, words: &[u64]) {
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

/// Address, offset and size of a section.
fn push_section(out: &mut Vec<u8>, name: u32, kind: u32, place: [u64; 3]) {
    out.extend(name.to_le_bytes());
    out.extend(kind.to_le_bytes());
    let [address, offset, size] = place;
    push_words(out, &[0, address, offset, size, 0, 8, 0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CIE and an FDE of 16 bytes of code: what is made here is found there.
    #[test]
    fn a_section_is_read_as_what_it_is() {
        let mut section = vec![0x14, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x04];
        section.extend([0x0c, 7, 8, 0x90, 1, 0, 0]);
        section.extend([0x1c, 0, 0, 0, 0x1c, 0, 0, 0]);
        push_words(&mut section, &[0x2000, 16]);
        section.extend([0; 8]);
        let table = FileTable::from_elf(&file(&section, true));
        assert_eq!(table.map(|table| table.stats().fde_count).ok(), Some(1));
    }
}
