//! The book of one process: which site has mapped which range.

use std::collections::HashMap;

use tracer_common::abi::{
    MappingEvent, MappingOrigin, OPERATION_BREAK, OPERATION_MAP, OPERATION_REMAP, OPERATION_REMAP_ENTER,
    OPERATION_REMAP_FAILED, OPERATION_SHM_ATTACH, OPERATION_SHM_DETACH, OPERATION_THREAD_EXIT,
    OPERATION_THREAD_START, OPERATION_UNMAP, OPERATION_UNMAP_FAILED, SiteCounters, Tally,
};

use super::{
    facts::SiteFacts,
    ledger::{Ledger, Mapping},
    ranges::{MappingId, Piece, Ranges},
};
use crate::record::live::Ages;

/// The page of x86-64.
const PAGE_BYTES: u64 = 4096;
/// Most pieces of one process: the kernel joins neighbours, we do not where their sites differ.
pub(super) const MAX_PIECES: usize = if cfg!(test) { 1 << 12 } else { 1 << 20 };
/// Most segments whose length is not known yet.
pub(super) const MAX_SEGMENTS: usize = 1024;

/// `MAP_HUGETLB`, and where the log2 of the page size stands (0: the default of x86-64, 2 MiB).
const MAP_HUGETLB: u32 = 0x4_0000;
const MAP_HUGE_SHIFT: u32 = 26;
const HUGE_PAGE_LOG2: u32 = 21;
/// `MREMAP_DONTUNMAP`.
const MREMAP_DONTUNMAP: u32 = 4;

/// What the book could not do, or had to do by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BookTallies {
    /// Unmapped ranges that no event had mapped: older than the recording.
    pub unknown_unmap: Tally,
    /// Ranges that were gone though no event had unmapped them.
    pub healed: Tally,
    /// Mappings that were not booked because there were too many pieces.
    pub full: Tally,
    /// Shared memory segments that were detached before their length was read.
    pub unseen_segment: Tally,
    /// Ranges that were found mapped though no event had said so.
    pub unaccounted: Tally,
}

impl BookTallies {
    /// Adds those of another process.
    pub fn add(&mut self, other: &Self) {
        for (sum, part) in [
            (&mut self.unknown_unmap, other.unknown_unmap),
            (&mut self.healed, other.healed),
            (&mut self.full, other.full),
            (&mut self.unseen_segment, other.unseen_segment),
            (&mut self.unaccounted, other.unaccounted),
        ] {
            sum.count += part.count;
            sum.bytes = sum.bytes.saturating_add(part.bytes);
        }
    }
}

/// What a thread's system call in progress has announced.
#[derive(Clone, Debug)]
enum Aside {
    /// Counted as gone; comes back if the call fails. There is no record of success, so it stays until the thread's
    /// next call.
    Unmap { address: u64, length: u64, pieces: Vec<(Piece, Mapping)> },
    /// Still counted; goes to its new place, or back.
    Remap { old_address: u64, pieces: Vec<Piece> },
}

/// A segment whose length is not known yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewSegment {
    pub address: u64,
    pub site: u32,
    pub origin: MappingOrigin,
    pub born_ns: u64,
}

/// The mappings of one process that were made under the eyes of the tracer.
#[derive(Clone, Debug, Default)]
pub struct MappingBook {
    pub(super) ranges: Ranges,
    pub(super) ledger: Ledger,
    asides: HashMap<u32, Aside>,
    pub(super) new_segments: Vec<NewSegment>,
    pub(super) break_address: Option<u64>,
    pub(super) tallies: BookTallies,
    pub(super) is_stale: bool,
    /// What was mapped and not booked at the last look; `None` before the first.
    pub(super) unbooked: Option<Ranges>,
    /// What has changed since a look began.
    pub(super) touched: Option<Ranges>,
    events: u64,
}

impl MappingBook {
    /// Tells where the break was before the first event; without it, the first move of the break is not booked.
    pub fn set_break(&mut self, address: u64) {
        self.break_address = Some(address);
    }

    /// Whether the break is known.
    pub fn knows_break(&self) -> bool {
        self.break_address.is_some()
    }

    /// Books one event. They must come in the order of the ring.
    pub fn apply(&mut self, event: &MappingEvent) {
        self.events += 1;
        let origin = MappingOrigin(event.origin);
        let flags = if event.operation == OPERATION_MAP { event.flags } else { 0 };
        let (start, end) = span(event.address, event.length, flags);
        match event.operation {
            OPERATION_THREAD_START => return self.thread(event.address, 1),
            OPERATION_THREAD_EXIT => {
                // Nothing can be in progress; the number may become that of another thread.
                if let Some(Aside::Remap { pieces, .. }) = self.asides.remove(&event.tid) {
                    self.put_back(&pieces);
                }
                return self.thread(event.address, -1);
            }
            OPERATION_MAP => {
                let is_reserved = event.protection == 0;
                if !is_reserved {
                    self.ledger.facts_mut(event.site, origin).protection |= event.protection;
                }
                self.map((start, end), event, is_reserved, None);
            }
            OPERATION_UNMAP => self.unmap(event, start, end),
            OPERATION_UNMAP_FAILED => self.unmap_failed(event),
            OPERATION_REMAP_ENTER => self.remap_enter(event),
            OPERATION_REMAP => self.remap(event),
            OPERATION_REMAP_FAILED => {
                let pieces = self.remap_aside(event);
                self.put_back(&pieces);
            }
            OPERATION_BREAK => self.move_break(event),
            OPERATION_SHM_ATTACH => self.attach_segment(event),
            OPERATION_SHM_DETACH => self.detach_segment(event.address),
            _ => return,
        }
        self.is_stale = true;
    }

    /// The process has executed another program: all is gone.
    pub fn end_program(&mut self) {
        self.ledger.clear();
        self.ranges.clear();
        self.asides.clear();
        self.new_segments.clear();
        self.break_address = None;
        self.unbooked = None;
    }

    /// Totals of every site of this process.
    pub fn sites(&self) -> impl Iterator<Item = (u32, SiteCounters)> {
        self.ledger.sites()
    }

    /// Totals of a site; zero for one that has mapped nothing.
    #[cfg(test)]
    pub fn counters(&self, site: u32) -> SiteCounters {
        self.ledger.counters(site)
    }

    /// What is mapped now, by site: first address, and the one behind the last.
    pub fn ranges_by_site(&self) -> std::collections::BTreeMap<u32, Vec<(u64, u64)>> {
        let mut ranges: std::collections::BTreeMap<u32, Vec<(u64, u64)>> = std::collections::BTreeMap::new();
        for piece in self.ranges.iter() {
            if let Some(mapping) = self.ledger.mapping(piece.mapping) {
                ranges.entry(mapping.site).or_default().push((piece.start, piece.end));
            }
        }
        ranges
    }

    /// The facts of every site.
    pub fn facts(&self) -> std::collections::BTreeMap<u32, SiteFacts> {
        self.ledger.facts()
    }

    /// Adds what is outstanding, by birth.
    pub fn add_ages(&self, ages: &mut Ages) {
        self.ledger.blocks().for_each(|block| ages.add_mapping(&block));
    }

    /// What the book could not do.
    pub fn tallies(&self) -> BookTallies {
        self.tallies
    }

    /// Events so far.
    pub fn event_count(&self) -> u64 {
        self.events
    }

    /// Maps a range, over whatever is there.
    pub(super) fn map(
        &mut self,
        (start, end): (u64, u64),
        event: &MappingEvent,
        is_reserved: bool,
        segment: Option<(u64, u64)>,
    ) {
        self.replace(start, end);
        self.add_mapping((start, end), event, is_reserved, segment);
    }

    /// Books a range where nothing is as a mapping of its own.
    fn add_mapping(
        &mut self,
        (start, end): (u64, u64),
        event: &MappingEvent,
        is_reserved: bool,
        segment: Option<(u64, u64)>,
    ) {
        if start >= end {
            return;
        }
        if self.ranges.len() >= MAX_PIECES {
            return count(&mut self.tallies.full, end - start);
        }
        self.ledger.facts_mut(event.site, MappingOrigin(event.origin)).add_length(end - start);
        let mapping = self.ledger.open(event.site, event.header.value, segment);
        let piece = Piece { start, end, mapping, is_reserved };
        self.ledger.add(&piece);
        self.ranges.put(piece);
    }

    /// Whatever is there is gone.
    fn replace(&mut self, start: u64, end: u64) {
        self.touch(start, end);
        for piece in self.ranges.take(start, end) {
            self.ledger.remove(&piece);
        }
    }

    /// Notes what has changed since a look began.
    fn touch(&mut self, start: u64, end: u64) {
        if let Some(touched) = &mut self.touched {
            touched.fill(Piece { start, end, mapping: MappingId(0), is_reserved: false });
        }
    }

    fn unmap(&mut self, event: &MappingEvent, start: u64, end: u64) {
        self.touch(start, end);
        let mut known = 0;
        let mut pieces = Vec::new();
        for piece in self.ranges.take(start, end) {
            known += piece.bytes();
            if let Some(mapping) = self.ledger.mapping(piece.mapping) {
                pieces.push((piece, *mapping));
            }
            self.ledger.remove(&piece);
        }
        if known < end - start {
            count(&mut self.tallies.unknown_unmap, end - start - known);
        }
        let aside = Aside::Unmap { address: event.address, length: event.length, pieces };
        self.set_aside(event.tid, aside);
    }

    fn unmap_failed(&mut self, event: &MappingEvent) {
        match self.asides.remove(&event.tid) {
            // The same call: one that a filter has refused was never announced.
            Some(Aside::Unmap { address, length, pieces })
                if (address, length) == (event.address, event.length) =>
            {
                let (start, end) = span(address, length, 0);
                self.touch(start, end);
                for (piece, before) in pieces {
                    for part in self.ranges.fill(piece) {
                        self.ledger.restore(&part, before);
                    }
                }
            }
            Some(other) => self.set_aside(event.tid, other),
            None => {}
        }
    }

    fn remap_enter(&mut self, event: &MappingEvent) {
        let (start, end) = span(event.old_address, event.old_length, 0);
        self.touch(start, end);
        let pieces = self.ranges.take(start, end);
        self.set_aside(event.tid, Aside::Remap { old_address: event.old_address, pieces });
    }

    fn set_aside(&mut self, tid: u32, aside: Aside) {
        if let Some(Aside::Remap { pieces, .. }) = self.asides.insert(tid, aside) {
            // Its end was lost: where the bytes are now is for /proc to say.
            self.put_back(&pieces);
        }
    }

    /// The pieces that the thread's `mremap` has announced; without the announcement, what is there now.
    fn remap_aside(&mut self, event: &MappingEvent) -> Vec<Piece> {
        match self.asides.remove(&event.tid) {
            Some(Aside::Remap { old_address, pieces }) if old_address == event.old_address => pieces,
            other => {
                if let Some(aside) = other {
                    self.set_aside(event.tid, aside);
                }
                let (start, end) = span(event.old_address, event.old_length, 0);
                self.ranges.take(start, end)
            }
        }
    }

    /// Puts counted pieces back where they were; what has been mapped over them meanwhile stays.
    fn put_back(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            self.touch(piece.start, piece.end);
            let mut covered = piece.bytes();
            for part in self.ranges.fill(*piece) {
                covered -= part.bytes();
            }
            if covered > 0 {
                self.ledger.remove(&Piece { end: piece.start + covered, ..*piece });
            }
        }
    }

    /// The old bytes keep their mapping and go to the new place. What is added there, and the empty range that
    /// `MREMAP_DONTUNMAP` leaves at the old place, are mappings of the `mremap`'s own site.
    fn remap(&mut self, event: &MappingEvent) {
        let pieces = self.remap_aside(event);
        let (old_start, old_end) = span(event.old_address, event.old_length, 0);
        let (start, end) = span(event.address, event.length, 0);
        self.touch(old_start, old_end);
        self.replace(start, end);
        let kept = (old_end - old_start).min(end - start);
        for piece in &pieces {
            let inside = piece.cut(old_start, old_start + kept);
            if let Some(part) = inside {
                let offset = part.start - old_start;
                self.ranges.put(Piece { start: start + offset, end: start + offset + part.bytes(), ..part });
            }
            if let Some(rest) = piece.cut(old_start + kept, old_end) {
                self.ledger.remove(&rest);
            }
        }
        let is_reserved = pieces.last().is_some_and(|piece| piece.is_reserved);
        self.add_mapping((start + kept, end), event, is_reserved, None);
        if event.flags & MREMAP_DONTUNMAP != 0 && old_start != start {
            self.add_mapping((old_start, old_end), event, is_reserved, None);
        }
    }

    fn move_break(&mut self, event: &MappingEvent) {
        let Some(old) = self.break_address.replace(event.address) else { return };
        let (old, new) = (page_end(old), page_end(event.address));
        if new > old {
            self.map((old, new), event, false, None);
        } else {
            self.touch(new, old);
            let pieces = self.ranges.take(new, old);
            let known: u64 = pieces.iter().map(Piece::bytes).sum();
            pieces.iter().for_each(|piece| self.ledger.remove(piece));
            if known < old - new {
                count(&mut self.tallies.unknown_unmap, old - new - known);
            }
        }
    }

    fn attach_segment(&mut self, event: &MappingEvent) {
        self.touch(event.address, event.address.saturating_add(PAGE_BYTES));
        if self.new_segments.len() >= MAX_SEGMENTS {
            return count(&mut self.tallies.unseen_segment, 0);
        }
        self.new_segments.push(NewSegment {
            address: event.address,
            site: event.site,
            origin: MappingOrigin(event.origin),
            born_ns: event.header.value,
        });
    }

    fn detach_segment(&mut self, address: u64) {
        if let Some(index) = self.new_segments.iter().rposition(|segment| segment.address == address) {
            self.new_segments.remove(index);
            return count(&mut self.tallies.unseen_segment, 0);
        }
        let segment = self.ranges.at(address).and_then(|piece| {
            let (start, end) = self.ledger.mapping(piece.mapping)?.segment?;
            (start == address).then_some((piece.mapping, start, end))
        });
        let Some((mapping, start, end)) = segment else { return };
        self.touch(start, end);
        // Only what is still of that segment; something else may have been mapped over a part of it.
        for piece in self.ranges.within(start, end).into_iter().filter(|piece| piece.mapping == mapping) {
            for taken in self.ranges.take(piece.start, piece.end) {
                self.ledger.remove(&taken);
            }
        }
    }

    /// A stack grows down: the byte below the pointer is in it, the one at the pointer may not be.
    fn thread(&mut self, stack_pointer: u64, change: i64) {
        if let Some(piece) = stack_pointer.checked_sub(1).and_then(|address| self.ranges.at(address)) {
            self.ledger.add_thread(piece.mapping, change);
        }
    }
}

/// Counts one event of so many bytes.
pub(super) fn count(tally: &mut Tally, bytes: u64) {
    tally.count += 1;
    tally.bytes = tally.bytes.saturating_add(bytes);
}

/// The end of the page that an address lies in, or the address itself where a page begins.
fn page_end(address: u64) -> u64 {
    address.checked_next_multiple_of(PAGE_BYTES).unwrap_or(address & !(PAGE_BYTES - 1))
}

/// The pages of a range; empty where it would wrap.
fn span(address: u64, length: u64, mmap_flags: u32) -> (u64, u64) {
    let page_bytes = if mmap_flags & MAP_HUGETLB == 0 {
        PAGE_BYTES
    } else {
        match mmap_flags >> MAP_HUGE_SHIFT {
            0 => 1 << HUGE_PAGE_LOG2,
            log2 => 1u64 << log2.min(63),
        }
    };
    let start = address & !(PAGE_BYTES - 1);
    let end = length.checked_next_multiple_of(page_bytes).and_then(|length| start.checked_add(length));
    (start, end.unwrap_or(start))
}
