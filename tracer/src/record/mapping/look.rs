//! Compares the book with `/proc/PID/maps`.
//!
//! Two things have no event: a change of protection (`mprotect` is called all the time by runtimes that compile), and
//! a record that was lost. Both are seen here. A look takes a while, and the process goes on meanwhile: what an event
//! has touched since the look began is left for the next one.

use tracer_common::abi::{MappingEvent, OPERATION_SHM_ATTACH};

use super::{
    book::{MappingBook, NewSegment, count},
    ranges::{Piece, Ranges},
};
use crate::attach::maps::MapEntry;

/// What the kernel says of a part of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Gone,
    Memory,
    Reserved,
}

impl MappingBook {
    /// Whether a look could bring something: after events, and while ranges are reserved.
    pub fn wants_look(&self) -> bool {
        self.is_stale || self.ledger.has_reserved() || self.wants_look_now()
    }

    /// Whether a look cannot wait: a segment's length is to be read while it is attached.
    pub fn wants_look_now(&self) -> bool {
        !self.new_segments.is_empty()
    }

    /// To be called before `/proc/PID/maps` is read, with all events applied that have arrived. Those that arrive
    /// until [`Self::reconcile`] must be applied in between.
    pub fn begin_look(&mut self) {
        self.touched = Some(Ranges::default());
    }

    /// Takes over what the kernel says: which parts are memory, which are gone, and what they are called. `entries`
    /// are all mappings by address; none at all means that the process is gone, and says nothing. `has_skipped`: whether
    /// the kernel has skipped a program since the last look that was told of it, in this process or another.
    pub fn reconcile(&mut self, entries: &[MapEntry], has_skipped: Option<bool>) {
        let touched = self.touched.take().unwrap_or_default();
        if entries.is_empty() {
            return;
        }
        self.is_stale = false;
        self.measure_segments(entries);
        // Only where it is not known: the record of a move that is seen here may still be on its way.
        if self.break_address.is_none() {
            let heap = entries.iter().rev().find(|entry| entry.name == b"[heap]");
            self.break_address = heap.map(|heap| heap.end);
        }
        for (part, seen) in self.compare(entries) {
            if touched.is_touched(part.start, part.end) {
                self.is_stale = true;
                continue;
            }
            for piece in self.ranges.take(part.start, part.end) {
                if seen == Seen::Gone {
                    count(&mut self.tallies.healed, piece.bytes());
                    self.ledger.remove(&piece);
                } else {
                    let turned = self.ledger.turn(&piece);
                    self.ranges.put(turned);
                }
            }
        }
        if let Some(has_skipped) = has_skipped {
            self.audit(entries, &touched, has_skipped);
        }
    }

    /// The parts of the book that are not as the kernel says. Notes names and protection on the way.
    fn compare(&mut self, entries: &[MapEntry]) -> Vec<(Piece, Seen)> {
        self.ledger.begin_look();
        let mut changes = Vec::new();
        let mut first = 0;
        for piece in self.ranges.iter() {
            while entries.get(first).is_some_and(|entry| entry.end <= piece.start) {
                first += 1;
            }
            let mut position = piece.start;
            for entry in entries.get(first..).unwrap_or_default() {
                let Some(part) = piece.cut(entry.start, entry.end) else { break };
                changes.extend(piece.cut(position, part.start).map(|gap| (gap, Seen::Gone)));
                position = part.end;
                let protection = protection(entry);
                let seen = if protection == 0 { Seen::Reserved } else { Seen::Memory };
                if part.is_reserved != (seen == Seen::Reserved) {
                    changes.push((part, seen));
                }
                if let Some(facts) = self.ledger.facts_of(piece.mapping)
                    && protection != 0
                {
                    facts.protection |= protection;
                    facts.add_name(&entry.name, part.bytes());
                }
            }
            changes.extend(piece.cut(position, piece.end).map(|gap| (gap, Seen::Gone)));
        }
        changes
    }

    /// Books the segments whose length the kernel now tells.
    fn measure_segments(&mut self, entries: &[MapEntry]) {
        for segment in std::mem::take(&mut self.new_segments) {
            let Some((start, end)) = extent(entries, &segment) else {
                count(&mut self.tallies.unseen_segment, 0);
                continue;
            };
            let mut event = MappingEvent {
                operation: OPERATION_SHM_ATTACH,
                site: segment.site,
                origin: segment.origin.0,
                ..MappingEvent::default()
            };
            event.header.value = segment.born_ns;
            self.map((start, end), &event, false, Some((start, end)));
        }
    }
}

/// Where a segment lies: changes of protection can have cut it.
fn extent(entries: &[MapEntry], segment: &NewSegment) -> Option<(u64, u64)> {
    let index = entries.binary_search_by_key(&segment.address, |entry| entry.start).ok()?;
    let first = entries.get(index)?;
    let mut end = first.end;
    for next in entries.get(index + 1..).unwrap_or_default() {
        let is_same = next.start == end
            && (next.device, next.inode) == (first.device, first.inode)
            && next.name == first.name
            // A second attachment of the same segment right behind the first begins at its beginning.
            && next.file_offset != 0;
        if !is_same {
            break;
        }
        end = next.end;
    }
    Some((first.start, end))
}

/// `PROT_` bits.
fn protection(entry: &MapEntry) -> u32 {
    let [read, write, execute, _] = entry.permissions;
    u32::from(read == b'r') | u32::from(write == b'w') << 1 | u32::from(execute == b'x') << 2
}
