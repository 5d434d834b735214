//! What happens to ranges of pages: they move, go, or are made resident at once.

use std::collections::BTreeMap;

use tracer_common::abi::is_admitted;

use super::{
    book::PageBook,
    chunk::{CHUNK_SHIFT, Chunk, bits, mask, split},
};

/// Pages that were made resident without faults, until two looks have seen them: the page tables of the first one may have been read
/// before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Populated {
    /// First page.
    pub start: u64,
    /// First page behind it.
    pub end: u64,
    /// Whose they are.
    pub site: u32,
    /// Not looked at yet.
    pub is_new: bool,
}

/// Such ranges, by their start. No two overlap, so that whatever a target does, a change looks at those that it concerns.
#[derive(Debug, Default)]
pub struct PopulatedRanges(BTreeMap<u64, Populated>);

impl PopulatedRanges {
    /// Adds one, in the place of what was there.
    pub fn add(&mut self, range: Populated) {
        if range.start < range.end {
            self.cut(range.start, range.end);
            self.0.insert(range.start, range);
        }
    }

    /// Cuts out what lies between two pages, and gives it.
    pub fn cut(&mut self, start: u64, end: u64) -> Vec<Populated> {
        let mut cut = Vec::new();
        while let Some((_, range)) = self.0.range(..end).next_back().filter(|(_, range)| range.end > start) {
            let range = *range;
            self.0.remove(&range.start);
            if range.end > end {
                self.0.insert(end, Populated { start: end, ..range });
            }
            if range.start < start {
                self.0.insert(range.start, Populated { end: start, ..range });
            }
            cut.push(Populated { start: range.start.max(start), end: range.end.min(end), ..range });
        }
        cut
    }

    /// Whose a page is.
    pub fn site_of(&self, page: u64) -> Option<u32> {
        let (_, range) = self.0.range(..=page).next_back()?;
        (page < range.end).then_some(range.site)
    }

    /// All of them, by their start.
    pub fn iter(&self) -> impl Iterator<Item = &Populated> {
        self.0.values()
    }

    /// A look has seen them: those that it was the second one for go.
    pub fn were_seen(&mut self) {
        self.0.retain(|_, range| std::mem::take(&mut range.is_new));
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl PageBook {
    /// Memory has moved, with its pages, from `old` to `new` (first page, pages). What was at the new place has gone.
    pub fn move_range(&mut self, old: (u64, u64), new: (u64, u64)) {
        let pages = old.1.min(new.1);
        let end = old.0.saturating_add(pages);
        let (first, last) = (old.0 >> CHUNK_SHIFT, end.saturating_sub(1) >> CHUNK_SHIFT);
        // The rest of memory that became smaller.
        self.drop_range(end, old.0.saturating_add(old.1));
        if pages == 0 {
            return;
        }
        let populated = self.populated.cut(old.0, end);
        let mut moved = Vec::new();
        for (number, chunk) in self.chunks.range_mut(first..=last) {
            let taken = chunk.held() & mask(*number, old.0, end);
            moved.extend(
                bits(taken)
                    .map(|index| ((number << CHUNK_SHIFT) + u64::from(index), Self::lift(chunk, index))),
            );
            chunk.forget(taken);
            self.held -= u64::from(taken.count_ones());
            *self.gone_from.entry(*number).or_default() |= taken;
        }
        let empty = self.chunks.range(first..=last).filter(|(_, chunk)| chunk.held() == 0);
        let empty: Vec<u64> = empty.map(|(number, _)| *number).collect();
        for number in empty {
            self.chunks.remove(&number);
        }
        let mut before = Vec::new();
        for (number, word) in self.before.range_mut(first..=last) {
            let taken = *word & mask(*number, old.0, end);
            *word &= !taken;
            *self.gone_from.entry(*number).or_default() |= taken;
            before.extend(bits(taken).map(|index| (number << CHUNK_SHIFT) + u64::from(index)));
        }
        self.drop_range(new.0, new.0.saturating_add(new.1));
        for page in before {
            let (number, index) = split((page - old.0).saturating_add(new.0));
            *self.before.entry(number).or_default() |= 1 << index;
            *self.moved_before.entry(number).or_default() |= 1 << index;
        }
        for (page, lifted) in moved {
            self.settle((page - old.0).saturating_add(new.0), lifted);
        }
        let there = |page: u64| (page - old.0).saturating_add(new.0);
        for range in populated {
            let (start, end) = (there(range.start), there(range.end));
            self.populated.add(Populated { start, end, is_new: true, ..range });
        }
    }

    /// A range has gone. What was touched there and never seen came and went.
    pub fn drop_range(&mut self, start: u64, end: u64) {
        let (first, last) = (start >> CHUNK_SHIFT, end.saturating_sub(1) >> CHUNK_SHIFT);
        if start >= end {
            return;
        }
        self.populated.cut(start, end);
        let mut gone = Vec::new();
        for (number, chunk) in self.chunks.range_mut(first..=last) {
            let dropped = chunk.held() & mask(*number, start, end);
            gone.extend(bits(dropped & chunk.booked).map(|index| (chunk.site(index), true)));
            // What was only read may have been the page of zeroes.
            let unseen = dropped & chunk.own & !chunk.booked & chunk.write;
            gone.extend(bits(unseen).map(|index| (chunk.site(index), false)));
            self.held -= u64::from(dropped.count_ones());
            chunk.forget(dropped);
            *self.gone_from.entry(*number).or_default() |= dropped;
        }
        for (number, word) in self.before.range_mut(first..=last) {
            let dropped = *word & mask(*number, start, end);
            *word &= !dropped;
            *self.gone_from.entry(*number).or_default() |= dropped;
        }
        for (site, is_booked) in gone {
            if !is_booked {
                self.allocate(site, 1);
            }
            self.free(site, 1);
        }
    }

    /// One page as a chunk whose bit 0 it is.
    fn lift(chunk: &Chunk, index: u32) -> Chunk {
        let one = |word: u64| word >> index & 1;
        let mut lifted = Chunk {
            own: one(chunk.own),
            claimed: one(chunk.claimed),
            booked: one(chunk.booked),
            write: one(chunk.write),
            copied: one(chunk.copied),
            swapped: one(chunk.swapped),
            on_stack: one(chunk.on_stack),
            ..Chunk::EMPTY
        };
        lifted.set_site(0, chunk.site(index));
        lifted
    }

    fn settle(&mut self, page: u64, lifted: Chunk) {
        let (number, index) = split(page);
        if !is_admitted(page, self.level) {
            // Another block, which is not looked at: as far as this one goes, it has gone.
            self.free(lifted.site(0), lifted.booked);
            return;
        }
        let chunk = self.chunks.entry(number).or_insert_with(|| Box::new(Chunk::EMPTY));
        self.held += 1;
        chunk.own |= lifted.own << index;
        chunk.claimed |= lifted.claimed << index;
        chunk.booked |= lifted.booked << index;
        chunk.write |= lifted.write << index;
        // The page tables may have been read before it moved.
        chunk.fresh |= 1 << index;
        chunk.copied |= lifted.copied << index;
        chunk.swapped |= lifted.swapped << index;
        chunk.on_stack |= lifted.on_stack << index;
        chunk.set_site(index, lifted.site(0));
    }

    /// A range was made resident without faults; its pages are the site's if nobody else has them at the next looks.
    pub fn populate(&mut self, start: u64, end: u64, site: u32) {
        self.populated.add(Populated { start, end, site, is_new: true });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn populated(start: u64, end: u64, site: u32) -> Populated {
        Populated { start, end, site, is_new: true }
    }

    #[test]
    fn ranges_never_overlap() {
        let mut ranges = PopulatedRanges::default();
        ranges.add(populated(10, 100, 1));
        ranges.add(populated(40, 50, 2));
        ranges.add(populated(7, 7, 9));
        let all: Vec<_> = ranges.iter().copied().collect();
        assert_eq!(all, [populated(10, 40, 1), populated(40, 50, 2), populated(50, 100, 1)]);
        let sites: Vec<_> = [9, 10, 39, 40, 49, 50, 99, 100].map(|page| ranges.site_of(page)).into();
        assert_eq!(sites, [None, Some(1), Some(1), Some(2), Some(2), Some(1), Some(1), None]);
        let mut cut = ranges.cut(30, 60);
        cut.sort_by_key(|range| range.start);
        assert_eq!(cut, [populated(30, 40, 1), populated(40, 50, 2), populated(50, 60, 1)]);
        assert_eq!(ranges.cut(0, 5), []);
        assert_eq!(ranges.iter().count(), 2);
        ranges.were_seen();
        assert_eq!(ranges.site_of(10), Some(1));
        ranges.were_seen();
        assert_eq!(ranges.site_of(10), None);
    }
}
