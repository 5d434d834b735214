//! What happens to ranges of pages: they move, go, or are made resident at once.

use tracer_common::abi::is_admitted;

use super::{
    book::PageBook,
    chunk::{CHUNK_SHIFT, Chunk, bits, mask, split},
};

/// Pages that were made resident without faults, until two looks have seen them: the page tables of the first one may have been read
/// before.
#[derive(Clone, Copy, Debug)]
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

impl PageBook {
    /// Memory has moved, with its pages, from `old` to `new` (first page, pages). What was at the new place has gone.
    pub fn move_range(&mut self, old: (u64, u64), new: (u64, u64)) {
        let pages = old.1.min(new.1);
        let end = old.0.saturating_add(pages);
        let (first, last) = (old.0 >> CHUNK_SHIFT, end.saturating_sub(1) >> CHUNK_SHIFT);
        if pages == 0 {
            return;
        }
        let mut populated = self.cut_populated(old.0, end);
        let mut moved = Vec::new();
        for (number, chunk) in self.chunks.range_mut(first..=last) {
            let taken = chunk.held() & mask(*number, old.0, end);
            moved.extend(
                bits(taken)
                    .map(|index| ((number << CHUNK_SHIFT) + u64::from(index), Self::lift(chunk, index))),
            );
            chunk.forget(taken);
            self.held -= u64::from(taken.count_ones());
            *self.moved_away.entry(*number).or_default() |= taken;
        }
        self.chunks.retain(|number, chunk| !(first..=last).contains(number) || chunk.held() != 0);
        let mut before = Vec::new();
        for (number, word) in self.before.range_mut(first..=last) {
            let taken = *word & mask(*number, old.0, end);
            *word &= !taken;
            *self.moved_away.entry(*number).or_default() |= taken;
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
        for range in &mut populated {
            let moved = |page: u64| (page - old.0).saturating_add(new.0);
            *range = Populated { start: moved(range.start), end: moved(range.end), is_new: true, ..*range };
        }
        self.populated.append(&mut populated);
    }

    /// A range has gone. What was touched there and never seen came and went.
    pub fn drop_range(&mut self, start: u64, end: u64) {
        let (first, last) = (start >> CHUNK_SHIFT, end.saturating_sub(1) >> CHUNK_SHIFT);
        if start >= end {
            return;
        }
        self.cut_populated(start, end);
        let mut gone = Vec::new();
        for (number, chunk) in self.chunks.range_mut(first..=last) {
            let dropped = chunk.held() & mask(*number, start, end);
            gone.extend(bits(dropped & chunk.booked).map(|index| (chunk.site(index), true)));
            // What was only read may have been the page of zeroes.
            let unseen = dropped & chunk.own & !chunk.booked & chunk.write;
            gone.extend(bits(unseen).map(|index| (chunk.site(index), false)));
            self.held -= u64::from(dropped.count_ones());
            chunk.forget(dropped);
        }
        for (number, word) in self.before.range_mut(first..=last) {
            *word &= !mask(*number, start, end);
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
        self.populated.push(Populated { start, end, site, is_new: true });
    }

    /// Cuts a range out of those that were populated, and gives what was in it.
    fn cut_populated(&mut self, start: u64, end: u64) -> Vec<Populated> {
        let mut cut = Vec::new();
        for range in std::mem::take(&mut self.populated) {
            let inner = Populated { start: range.start.max(start), end: range.end.min(end), ..range };
            let before = Populated { end: range.end.min(start), ..range };
            let behind = Populated { start: range.start.max(end), ..range };
            let is_some = |part: &Populated| part.start < part.end;
            self.populated.extend([before, behind].into_iter().filter(is_some));
            cut.extend(Some(inner).filter(is_some));
        }
        cut
    }
}
