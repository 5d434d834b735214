//! `/proc/PID/pagemap`: which pages of a range are resident.
//!
//! Who may read the process's mappings may read which pages are present; only the numbers of the frames are hidden from
//! ordinary users. The shared page of zeros, which a read of untouched memory maps, is present there and not in Rss.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes of a page. x86-64 has no other smallest one.
pub(super) const PAGE_BYTES: u64 = 4096;
/// Entries read at a time.
const CHUNK_ENTRIES: usize = 1 << 15;
/// Pages that are looked up for one ledger: a tebibyte of address space.
const MAX_PAGES: u64 = 1 << 28;
/// The page is in memory (bit 63), or swapped out (62): admin-guide/mm/pagemap.rst.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// Pages of a range: one bit for each that is present, and the sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Presence {
    start: u64,
    words: Vec<u64>,
    /// Pages present.
    pub(super) present_count: u64,
    /// Pages swapped out.
    pub(super) swapped_count: u64,
}

impl Presence {
    /// The pages from an address on, which is that of a page. The entries are those of the file.
    pub(super) fn new(start: u64) -> Self {
        Self { start, ..Self::default() }
    }

    fn push(&mut self, index: usize, entry: u64) {
        if self.words.len() <= index / 64 {
            self.words.resize(index / 64 + 1, 0);
        }
        if entry & PRESENT != 0 {
            self.present_count += 1;
            if let Some(word) = self.words.get_mut(index / 64) {
                *word |= 1 << (index % 64);
            }
        } else if entry & SWAPPED != 0 {
            self.swapped_count += 1;
        }
    }

    /// All pages of a range present, for tests and where nothing better is known.
    #[cfg(test)]
    pub(super) fn all(start: u64, end: u64) -> Self {
        let mut presence = Self::new(start);
        for index in 0..(end - start) / PAGE_BYTES {
            presence.push(usize::try_from(index).unwrap_or(0), PRESENT);
        }
        presence
    }

    /// The same without the page of an address.
    #[cfg(test)]
    pub(super) fn without(mut self, address: u64) -> Self {
        let index = usize::try_from((address - self.start) / PAGE_BYTES).unwrap_or(0);
        if let Some(word) = self.words.get_mut(index / 64) {
            *word &= !(1 << (index % 64));
        }
        self.present_count -= 1;
        self
    }

    /// Whether the page of an address is present.
    pub(super) fn has(&self, address: u64) -> bool {
        let Some(index) = address.checked_sub(self.start).map(|offset| offset / PAGE_BYTES) else {
            return false;
        };
        let word = usize::try_from(index / 64).ok().and_then(|word| self.words.get(word));
        word.is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// Resident bytes within a range, whose ends may lie within pages.
    pub(super) fn bytes_in(&self, start: u64, end: u64) -> u64 {
        let mut bytes = 0;
        let mut at = start;
        while at < end {
            let next = (at / PAGE_BYTES + 1).saturating_mul(PAGE_BYTES).min(end);
            if self.has(at) {
                bytes += next - at;
            }
            at = next;
        }
        bytes
    }
}

/// The file of one process.
pub(super) struct Pagemap {
    file: File,
    budget_pages: u64,
}

impl Pagemap {
    /// Opens it; `None` where that is not permitted.
    pub(super) fn open(tgid: u32) -> Option<Self> {
        let file = File::open(format!("/proc/{tgid}/pagemap")).ok()?;
        Some(Self { file, budget_pages: MAX_PAGES })
    }

    /// The pages of a range; `None` if they cannot be read, or too many have been read already.
    pub(super) fn presence(&mut self, start: u64, end: u64) -> Option<Presence> {
        let (first, behind) = (start / PAGE_BYTES, end.div_ceil(PAGE_BYTES));
        let count = behind.checked_sub(first)?;
        self.budget_pages = self.budget_pages.checked_sub(count)?;
        let mut presence = Presence::new(first * PAGE_BYTES);
        let mut buffer = vec![0; 8 * CHUNK_ENTRIES.min(usize::try_from(count).ok()?)];
        let mut done = 0;
        while done < count {
            let wanted = (buffer.len() as u64).min(8 * (count - done));
            let part = buffer.get_mut(..usize::try_from(wanted).ok()?)?;
            let got = self.file.read_at(part, 8 * (first + done)).ok()? / 8;
            if got == 0 {
                break;
            }
            for (index, entry) in part.chunks_exact(8).take(got).enumerate() {
                let entry = u64::from_le_bytes(entry.try_into().ok()?);
                presence.push(usize::try_from(done).ok()? + index, entry);
            }
            done += got as u64;
        }
        Some(presence)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_to_the_byte() {
        let presence = Presence::all(0x10000, 0x14000).without(0x12000);
        assert_eq!(presence.present_count, 3);
        assert_eq!(presence.bytes_in(0x10ff0, 0x13010), 16 + 4096 + 16);
        assert_eq!(presence.bytes_in(0x12000, 0x13000), 0);
        assert_eq!(
            (presence.has(0xffff), presence.has(0x13fff), presence.has(0x14000)),
            (false, true, false)
        );
    }

    #[test]
    fn touched_pages_are_present() {
        let block = vec![1u8; 64 << 10];
        let start = (block.as_ptr() as u64).next_multiple_of(PAGE_BYTES);
        let mut pagemap = Pagemap::open(std::process::id()).unwrap();
        let presence = pagemap.presence(start, start + 8 * PAGE_BYTES).unwrap();
        assert_eq!(presence.present_count, 8);
        assert_eq!(presence.bytes_in(start, start + 8 * PAGE_BYTES), 8 * PAGE_BYTES);
    }
}
