//! The chunks of a heap, one after the other: how much of it is in use, and which free bytes are resident.
//!
//! A chunk's header is its size, whose low bits say whether the chunk before it is in use (1), whether the chunk has a
//! mapping of its own (2), and whether its arena is not the main one (4). Chunks lie side by side up to the top. The
//! process runs meanwhile: a chunk that is split or joined while it is passed is counted as it was or as it is. Only pages
//! that are present are read: reading others would bring them in.

use super::super::pagemap::{PAGE_BYTES, Presence};
use crate::managed::memory::Memory;

const PREVIOUS_IN_USE: u64 = 1;
const IS_MAPPED: u64 = 2;
const FLAGS: u64 = 7;
/// Smallest chunk; a smaller one is a fence at the end of a heap that is no longer grown.
const MIN_CHUNK_BYTES: u64 = 32;
const FENCE_BYTES: u64 = 16;
/// Bytes of a chunk that holds a thread's cache: 2.30 to 2.41, and 2.26 to 2.29, where the counters are bytes.
const CACHE_CHUNKS: [(u64, u64); 2] = [(0x290, 2), (0x250, 1)];
const CACHE_BINS: u64 = 64;
/// Longest list of cached chunks that is followed; `glibc.malloc.tcache_count` is 7, and at most 65,535.
const MAX_CACHED: u64 = 1 << 16;
/// Memory is read in windows of this size.
const WINDOW_BYTES: u64 = 1 << 20;
/// Most chunks of all heaps: some seconds of work.
pub(in crate::ledger) const MAX_CHUNKS: u64 = 400_000_000;

/// A stretch of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ledger) struct Heap {
    /// Where its first chunk begins.
    pub(in crate::ledger) first: u64,
    /// Where it ends.
    pub(in crate::ledger) end: u64,
    /// The arena's top chunk, if that is in this heap.
    pub(in crate::ledger) top: Option<u64>,
}

/// What was found, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::ledger) struct Walk {
    /// Chunks in use, with their headers, whatever the caches of threads hold included.
    pub(in crate::ledger) used_bytes: u64,
    /// Free chunks, without the top.
    pub(in crate::ledger) free_bytes: u64,
    /// The top chunk.
    pub(in crate::ledger) top_bytes: u64,
    /// Chunks that threads keep for themselves: free for the program, in use for the heap.
    pub(in crate::ledger) cached_bytes: u64,
    /// Resident bytes of whole pages inside of one free chunk, or the top: `malloc_trim` gives them back.
    pub(in crate::ledger) trimmable_bytes: u64,
    /// The same, of the top chunk alone.
    pub(in crate::ledger) top_resident_bytes: u64,
    /// Resident free bytes on pages that hold something in use.
    pub(in crate::ledger) between_bytes: u64,
    /// Chunks passed.
    pub(in crate::ledger) chunk_count: u64,
    /// Whether the end was reached.
    pub(in crate::ledger) is_whole: bool,
}

/// Reads words through a window.
struct Window<'a, M> {
    memory: &'a M,
    presence: &'a Presence,
    start: u64,
    bytes: Vec<u8>,
}

impl<M: Memory> Window<'_, M> {
    /// The word at an address; `None` if its page is not there.
    fn word(&mut self, address: u64, end: u64) -> Option<u64> {
        let is_inside = |window: &Self| {
            address >= window.start
                && address.checked_add(8).is_some_and(|to| to <= window.start + window.bytes.len() as u64)
        };
        if !is_inside(self) {
            self.load(address, end);
        }
        let at = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let bytes = self.bytes.get(at..at.checked_add(8)?)?;
        self.presence.has(address).then(|| bytes.try_into().ok().map(u64::from_le_bytes)).flatten()
    }

    /// Reads the window that begins at an address's page: those pages that are present.
    fn load(&mut self, address: u64, end: u64) {
        self.start = address / PAGE_BYTES * PAGE_BYTES;
        let size_bytes = WINDOW_BYTES.min(end.saturating_sub(self.start).next_multiple_of(PAGE_BYTES));
        self.bytes.clear();
        self.bytes.resize(usize::try_from(size_bytes).unwrap_or(0), 0);
        let pages = size_bytes / PAGE_BYTES;
        let mut page = 0;
        while page < pages {
            let present = |page: &u64| self.presence.has(self.start + page * PAGE_BYTES);
            let run = (page..pages).take_while(present).count() as u64;
            if run > 0 {
                let from = usize::try_from(page * PAGE_BYTES).unwrap_or(0);
                let to = usize::try_from((page + run) * PAGE_BYTES).unwrap_or(0);
                if let Some(part) = self.bytes.get_mut(from..to) {
                    // Pages that went meanwhile stay zero, and end the walk.
                    self.memory.read(self.start + page * PAGE_BYTES, part);
                }
            }
            page += run.max(1);
        }
    }
}

/// Passes the chunks of one heap. `budget` is how many chunks may still be passed.
pub(in crate::ledger) fn walk(
    memory: &impl Memory,
    presence: &Presence,
    heap: Heap,
    budget: &mut u64,
) -> Walk {
    let mut window = Window { memory, presence, start: 0, bytes: Vec::new() };
    let mut walk = Walk::default();
    let mut at = heap.first;
    // The chunk before `at`, of which the header at `at` tells whether it is in use.
    let mut before: Option<(u64, u64)> = None;
    loop {
        if at == heap.end {
            // A heap that ends without a fence or a top.
            if let Some((start, end)) = before {
                walk.used_bytes += end - start;
            }
            walk.is_whole = true;
            return walk;
        }
        let Some(header) = window.word(at.saturating_add(8), heap.end) else { return walk };
        let size_bytes = header & !FLAGS;
        let is_fence = size_bytes <= FENCE_BYTES && heap.top != Some(at) && heap.end - at <= 8 * FENCE_BYTES;
        if let Some((start, end)) = before.take() {
            if header & PREVIOUS_IN_USE != 0 {
                walk.used_bytes += end - start;
                walk.cached_bytes += cached(memory, start, end - start);
            } else {
                walk.free(presence, start, end);
            }
        }
        if heap.top == Some(at) {
            walk.top(presence, at, heap.end);
            walk.is_whole = true;
            return walk;
        }
        if is_fence {
            walk.used_bytes += heap.end - at;
            walk.is_whole = true;
            return walk;
        }
        let next = at.checked_add(size_bytes).filter(|next| *next <= heap.end);
        let is_chunk =
            size_bytes >= MIN_CHUNK_BYTES && size_bytes.is_multiple_of(16) && header & IS_MAPPED == 0;
        let (Some(next), true, true) = (next, is_chunk, *budget > 0) else { return walk };
        *budget -= 1;
        walk.chunk_count += 1;
        before = Some((at, next));
        at = next;
    }
}

impl Walk {
    /// Books a free chunk. Its header and its links in the bins, 48 bytes, stay where they are when it is trimmed.
    fn free(&mut self, presence: &Presence, start: u64, end: u64) {
        self.free_bytes += end - start;
        self.split(presence, start, start + 48.min(end - start), end);
    }

    /// Books the top chunk, of which `malloc_trim` leaves the header.
    fn top(&mut self, presence: &Presence, start: u64, end: u64) {
        self.top_bytes += end.saturating_sub(start);
        let before = self.trimmable_bytes;
        self.split(presence, start, start.saturating_add(16).min(end), end);
        self.top_resident_bytes += self.trimmable_bytes - before;
    }

    /// Divides resident free bytes into whole pages behind `kept` and the rest.
    fn split(&mut self, presence: &Presence, start: u64, kept: u64, end: u64) {
        let first_whole = kept.next_multiple_of(PAGE_BYTES).min(end);
        let last_whole = (end / PAGE_BYTES * PAGE_BYTES).max(first_whole);
        self.trimmable_bytes += presence.bytes_in(first_whole, last_whole);
        self.between_bytes += presence.bytes_in(start, first_whole) + presence.bytes_in(last_whole, end);
    }

    /// Adds another heap.
    pub(in crate::ledger) fn add(&mut self, other: &Self) {
        self.used_bytes += other.used_bytes;
        self.free_bytes += other.free_bytes;
        self.top_bytes += other.top_bytes;
        self.cached_bytes += other.cached_bytes;
        self.trimmable_bytes += other.trimmable_bytes;
        self.top_resident_bytes += other.top_resident_bytes;
        self.between_bytes += other.between_bytes;
        self.chunk_count += other.chunk_count;
    }
}

/// Bytes of the chunks that a thread's cache holds, if the chunk is one: as many counters as lists, each list as long as
/// its counter says, and every element of the size that its list is for.
fn cached(memory: &impl Memory, chunk: u64, size_bytes: u64) -> u64 {
    let Some((_, counter_bytes)) = CACHE_CHUNKS.iter().find(|(size, _)| *size == size_bytes) else {
        return 0;
    };
    let mut bytes = vec![0; usize::try_from(size_bytes).unwrap_or(0)];
    if !memory.read(chunk, &mut bytes) {
        return 0;
    }
    let word = |at: u64| {
        let at = usize::try_from(at).ok()?;
        Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
    };
    let list = |bin: u64| {
        let mask = if *counter_bytes == 2 { 0xffff } else { 0xff };
        let count = word(16 + counter_bytes * bin)? & mask;
        let mut entry = word(16 + counter_bytes * CACHE_BINS + 8 * bin)?;
        let chunk_bytes = MIN_CHUNK_BYTES + 16 * bin;
        if count > MAX_CACHED || (count == 0) != (entry == 0) {
            return None;
        }
        for left in (0..count).rev() {
            let header = memory.word(entry.checked_sub(8)?)?;
            if !entry.is_multiple_of(16) || header & !FLAGS != chunk_bytes {
                return None;
            }
            // Since 2.32 a link is disguised by where it stands.
            let stored = memory.word(entry)?;
            let next = if left == 0 { 0 } else { unmask(stored, entry, memory) };
            entry = next;
        }
        // What the thread took from another arena belongs to that one, and is counted here all the same.
        Some(count * chunk_bytes)
    };
    let sums: Option<Vec<u64>> = (0..CACHE_BINS).map(list).collect();
    sums.map_or(0, |sums| sums.iter().sum())
}

/// The address that a link means: plain before 2.32, since then exclusive-or with its own place, shifted by a page.
fn unmask(stored: u64, place: u64, memory: &impl Memory) -> u64 {
    let disguised = stored ^ (place >> 12);
    let is_chunk =
        |at: u64| at.is_multiple_of(16) && at.checked_sub(8).is_some_and(|at| memory.word(at).is_some());
    if is_chunk(disguised) { disguised } else { stored }
}

/// Bytes of the chunks in an arena's fast bins, which count as in use; those that fit the bin's size.
pub(in crate::ledger) fn fast(memory: &impl Memory, fastbins: &[u64]) -> u64 {
    let list = |(first, index): (&u64, u64)| {
        let chunk_bytes = MIN_CHUNK_BYTES + 16 * index;
        let mut chunk = *first;
        let mut count = 0;
        while chunk != 0 && count < MAX_CACHED {
            let header = chunk.checked_add(8).and_then(|at| memory.word(at));
            if header.is_none_or(|header| header & !FLAGS != chunk_bytes) {
                break;
            }
            count += 1;
            let Some((place, stored)) =
                chunk.checked_add(16).and_then(|place| Some((place, memory.word(place)?)))
            else {
                break;
            };
            let plain = stored ^ (place >> 12);
            chunk = if plain == 0 || stored == 0 { 0 } else { unmask_chunk(stored, place, memory) };
        }
        count * chunk_bytes
    };
    fastbins.iter().zip(0u64..).map(list).sum()
}

/// The same for links of fast bins, which lead to the chunk and not to its memory.
fn unmask_chunk(stored: u64, place: u64, memory: &impl Memory) -> u64 {
    let disguised = stored ^ (place >> 12);
    let is_chunk =
        |at: u64| at.is_multiple_of(16) && at.checked_add(8).is_some_and(|at| memory.word(at).is_some());
    if is_chunk(disguised) { disguised } else { stored }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::fake::Fake;
    use proptest::prelude::*;

    const START: u64 = 0x10_0000;

    /// A heap of chunks: size and whether it is in use; then the top up to the end.
    fn heap(chunks: &[(u64, bool)], end: u64) -> (Fake, Heap) {
        let mut memory = Fake::new(&[(START, (end - START) as usize)]);
        let (mut at, mut is_used) = (START, true);
        for (size, used) in chunks {
            memory.put(at + 8, size | u64::from(is_used));
            (at, is_used) = (at + size, *used);
        }
        memory.put(at + 8, (end - at) | u64::from(is_used));
        (memory, Heap { first: START, end, top: Some(at) })
    }

    fn walked(memory: &Fake, presence: &Presence, heap: Heap) -> Walk {
        walk(memory, presence, heap, &mut MAX_CHUNKS.clone())
    }

    #[test]
    fn free_and_used_bytes_are_told_apart() {
        let end = START + 0x20000;
        let (memory, heap) =
            heap(&[(0x40, true), (0x5000, false), (0x30, true), (0x20, false), (0x20, true)], end);
        let found = walked(&memory, &Presence::all(START, end), heap);
        assert_eq!((found.used_bytes, found.free_bytes), (0x90, 0x5020));
        assert_eq!(found.top_bytes, 0x20000 - 0x50b0);
        assert!(found.is_whole && found.chunk_count == 5);
        // The free chunk begins at 0x40: four whole pages up to 0x5000, and a piece behind.
        assert_eq!(found.trimmable_bytes - found.top_resident_bytes, 0x4000);
        assert_eq!(found.top_resident_bytes, 0x1a000);
        assert_eq!(found.between_bytes, (0x5000 - 0x4000) + 0x20 + (0x6000 - 0x50b0));
        // A page of it that was given back.
        let less = walked(&memory, &Presence::all(START, end).without(START + 0x2000), heap);
        assert_eq!(less.trimmable_bytes, found.trimmable_bytes - 0x1000);
        assert_eq!(less.used_bytes, found.used_bytes);
    }

    #[test]
    fn a_fence_ends_a_heap() {
        let end = START + 0x1000;
        let (mut memory, mut heap) = heap(&[(0x100, true), (0xee0, false)], end);
        heap.top = None;
        memory.put(START + 0xfe0 + 8, 0x10);
        let found = walked(&memory, &Presence::all(START, end), heap);
        assert_eq!((found.used_bytes, found.free_bytes, found.is_whole), (0x120, 0xee0, true));
    }

    #[test]
    fn nonsense_and_missing_pages_end_the_walk() {
        let end = START + 0x8000;
        for (at, value) in [(0x48, 0), (0x48, 0x21f8), (0x48, !7), (0x48, 0x23)] {
            let (mut memory, heap) = heap(&[(0x40, true), (0x40, true)], end);
            memory.put(START + at, value);
            let found = walked(&memory, &Presence::all(START, end), heap);
            assert!(!found.is_whole, "{value:#x}");
        }
        let (memory, heap) = heap(&[(0x4000, true), (0x40, true)], end);
        assert!(!walked(&memory, &Presence::all(START, end).without(START + 0x4000), heap).is_whole);
        assert!(!walk(&memory, &Presence::all(START, end), heap, &mut 1).is_whole, "budget");
    }

    #[test]
    fn caches_of_threads_are_counted() {
        let end = START + 0x8000;
        let (mut memory, heap) = heap(&[(0x290, true), (0x20, true), (0x20, true), (0x30, true)], end);
        let (first, second) = (START + 0x290 + 16, START + 0x2b0 + 16);
        memory.put_bytes(START + 16, &[2, 0]);
        memory.put(START + 16 + 128, first);
        memory.put(first, second ^ (first >> 12));
        memory.put(second, second >> 12);
        assert_eq!(walked(&memory, &Presence::all(START, end), heap).cached_bytes, 0x40);
        // A counter that lies.
        memory.put_bytes(START + 16, &[3, 0]);
        assert_eq!(walked(&memory, &Presence::all(START, end), heap).cached_bytes, 0);
    }

    #[test]
    fn fast_bins_are_followed() {
        let (mut memory, _) = heap(&[(0x20, true), (0x20, true), (0x30, true)], START + 0x1000);
        let second = START + 0x20;
        memory.put(START + 16, second ^ ((START + 16) >> 12));
        memory.put(second + 16, (second + 16) >> 12);
        assert_eq!(fast(&memory, &[START, 0]), 0x40);
        assert_eq!(fast(&memory, &[0, START]), 0, "another size");
    }

    proptest! {
        #[test]
        fn bytes_add_up(chunks in proptest::collection::vec((2u64..600, any::<bool>()), 1..60), absent in 0u64..30) {
            let mut chunks: Vec<_> = chunks.into_iter().map(|(size, used)| (16 * size, used)).collect();
            // glibc joins free neighbours, and a free last one with the top.
            chunks.push((32, true));
            let end = (START + chunks.iter().map(|(size, _)| size).sum::<u64>() + 4096).next_multiple_of(4096);
            let (memory, heap) = heap(&chunks, end);
            // The pages that have no header can be absent.
            let page = START + 4096 * (absent % ((end - START) / 4096));
            let mut at = START;
            let mut has_header = false;
            for (size, _) in &chunks {
                has_header |= (at + 8) / 4096 == page / 4096;
                at += size;
            }
            has_header |= (at + 8) / 4096 == page / 4096;
            let mut presence = Presence::all(START, end);
            if !has_header {
                presence = presence.without(page);
            }
            let found = walked(&memory, &presence, heap);
            prop_assert!(found.is_whole);
            prop_assert_eq!(found.used_bytes + found.free_bytes + found.top_bytes, end - START);
            let used: u64 = chunks.iter().filter(|(_, used)| *used).map(|(size, _)| size).sum();
            prop_assert_eq!(found.used_bytes, used);
            prop_assert!(found.trimmable_bytes + found.between_bytes <= presence.bytes_in(START, end));
        }
    }
}
