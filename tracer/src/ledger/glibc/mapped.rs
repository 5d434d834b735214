//! Blocks of malloc that have a mapping of their own.
//!
//! Such a block begins at a page, with the size of whole pages in its header, the bit for it set and the two others not,
//! and nothing in the word before. The kernel joins neighbouring mappings, so blocks lie side by side in one.

use super::super::pagemap::{PAGE_BYTES, Presence};
use crate::managed::memory::Memory;

const IS_MAPPED: u64 = 2;
/// `memalign` leaves at most this much in front of a block.
const MAX_FRONT_BYTES: u64 = 1 << 20;

/// The size of the block that begins at a page, if one does.
fn block(memory: &impl Memory, at: u64, end: u64) -> Option<u64> {
    let mut bytes = [0; 16];
    if !memory.read(at, &mut bytes) {
        return None;
    }
    let (front, header) = bytes.split_at(8);
    let front = u64::from_le_bytes(front.try_into().ok()?);
    let header = u64::from_le_bytes(header.try_into().ok()?);
    let size_bytes = header & !7;
    let is_block = front == 0
        && header & 7 == IS_MAPPED
        && size_bytes >= PAGE_BYTES
        && size_bytes.is_multiple_of(PAGE_BYTES)
        && size_bytes <= end - at;
    is_block.then_some(size_bytes)
}

/// The blocks of a mapping. Without `presence`, only those in an unbroken row from its start on; with it, every page that
/// is present is looked at, since something else may be in front.
///
/// A page of the program's that happens to hold such a header would be taken for a block; `mp_` tells how many bytes
/// there are in truth, and both stand in the report.
pub(super) fn blocks(
    memory: &impl Memory,
    start: u64,
    end: u64,
    presence: Option<&Presence>,
) -> Vec<(u64, u64)> {
    let mut blocks: Vec<(u64, u64)> = Vec::new();
    let mut at = start;
    while at < end {
        let is_there = presence.is_none_or(|presence| presence.has(at));
        // A block of `memalign` is looked for only where a block must begin if there is one.
        let is_border = at == start || blocks.last().is_some_and(|(_, end)| *end == at);
        let aligned = || is_border.then(|| aligned(memory, at, end)).flatten();
        let size_bytes = is_there.then(|| block(memory, at, end).or_else(aligned)).flatten();
        match (size_bytes, presence) {
            (Some(size_bytes), _) => {
                match blocks.last_mut() {
                    Some((_, end)) if *end == at => *end = at + size_bytes,
                    _ => blocks.push((at, at + size_bytes)),
                }
                at += size_bytes;
            }
            (None, Some(_)) => at += PAGE_BYTES,
            (None, None) => break,
        }
    }
    blocks
}

/// A block of `memalign`: its header stands at the alignment, and says how much of the mapping is before it.
fn aligned(memory: &impl Memory, start: u64, end: u64) -> Option<u64> {
    let at = |offset: u64| start.checked_add(offset).filter(|at| *at < end);
    // Alignments of a page and more leave 16 bytes in front of the next page.
    let mut offset = PAGE_BYTES;
    while offset <= MAX_FRONT_BYTES {
        let chunk = at(offset - 16)?;
        let (front, header) = (memory.word(chunk)?, memory.word(chunk + 8)?);
        let total = (header & !7).checked_add(front)?;
        if front == offset - 16 && header & 7 == IS_MAPPED && total.is_multiple_of(PAGE_BYTES) {
            return Some(total).filter(|total| *total <= end - start);
        }
        offset *= 2;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::fake::Fake;

    fn memory() -> Fake {
        let mut memory = Fake::new(&[(0x10000, 0x10000)]);
        memory.put(0x10008, 0x2000 | IS_MAPPED);
        memory.put(0x12008, 0x3000 | IS_MAPPED);
        memory.put(0x18008, 0x1000 | IS_MAPPED);
        memory
    }

    #[test]
    fn blocks_side_by_side_are_one_range() {
        assert_eq!(blocks(&memory(), 0x10000, 0x20000, None), [(0x10000, 0x15000)]);
    }

    #[test]
    fn with_pages_known_gaps_are_passed() {
        let presence = Presence::all(0x10000, 0x20000);
        let found = blocks(&memory(), 0x10000, 0x20000, Some(&presence));
        assert_eq!(found, [(0x10000, 0x15000), (0x18000, 0x19000)]);
    }

    #[test]
    fn other_headers_are_no_blocks() {
        for (front, header) in [(1, 0x2002), (0, 0x2003), (0, 0x2006), (0, 0x2012), (0, 0x2_0002), (0, 2)] {
            let mut memory = Fake::new(&[(0x10000, 0x10000)]);
            memory.put(0x10000, front);
            memory.put(0x10008, header);
            assert!(blocks(&memory, 0x10000, 0x20000, None).is_empty(), "{header:#x}");
        }
    }

    #[test]
    fn an_aligned_block_has_its_header_later() {
        let mut memory = Fake::new(&[(0x10000, 0x10000)]);
        memory.put(0x11ff0, 0x1ff0);
        memory.put(0x11ff8, (0x6000 - 0x1ff0) | IS_MAPPED);
        assert_eq!(blocks(&memory, 0x10000, 0x20000, None), [(0x10000, 0x16000)]);
    }
}
