//! Finds what was mapped though no event said so.
//!
//! The kernel skips a program on a system call where another one is at work on that CPU, preempted in the middle. It
//! counts that for the whole machine, and does not say whose call it was. A look at `/proc/PID/maps` does: what is
//! there, and is neither booked nor was there before, was missed.

use super::{
    book::{MappingBook, count},
    ranges::{MappingId, Piece, Ranges},
};
use crate::attach::maps::MapEntry;

impl MappingBook {
    /// Takes note of what is mapped and not booked. With `has_skipped`, what has come since the last look is counted
    /// as unaccounted for; without, it has an explanation (older than the recording, the kernel's own, moved).
    pub(super) fn audit(&mut self, entries: &[MapEntry], touched: &Ranges, has_skipped: bool) {
        let mut unbooked = Ranges::default();
        for entry in entries.iter().filter(|entry| is_asked_for(entry)) {
            for gap in gaps(&self.ranges, entry.start, entry.end) {
                unbooked.put(gap);
            }
        }
        if let Some(known) = self.unbooked.as_ref().filter(|_| has_skipped) {
            let fresh = unbooked.iter().flat_map(|piece| gaps(known, piece.start, piece.end));
            let missed = fresh.filter(|piece| !touched.is_touched(piece.start, piece.end));
            missed.for_each(|piece| count(&mut self.tallies.unaccounted, piece.bytes()));
        }
        self.unbooked = Some(unbooked);
    }
}

/// Whether a system call that is followed has made it. The kernel makes those with names in brackets by itself, but for
/// named anonymous memory; the break is known by its address, not by its steps.
fn is_asked_for(entry: &MapEntry) -> bool {
    !entry.name.starts_with(b"[") || entry.name.starts_with(b"[anon:")
}

/// The parts between two addresses where nothing is.
fn gaps(ranges: &Ranges, start: u64, end: u64) -> Vec<Piece> {
    let mut gaps = Vec::new();
    let mut position = start;
    let mut gap = |from: u64, to: u64| {
        if from < to {
            gaps.push(Piece { start: from, end: to, mapping: MappingId(0), is_reserved: false });
        }
    };
    for piece in ranges.within(start, end) {
        gap(position, piece.start);
        position = piece.end;
    }
    gap(position, end);
    gaps
}
