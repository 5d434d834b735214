//! Ranges of addresses that do not overlap, each belonging to a mapping.

use std::collections::BTreeMap;

/// A mapping: what one system call has mapped. It may consist of several pieces, or of none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MappingId(pub u64);

/// A range of one mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Whose it is.
    pub mapping: MappingId,
    /// Whether it is `PROT_NONE`: address space, not memory.
    pub is_reserved: bool,
}

impl Piece {
    /// Length.
    pub fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// The part between two addresses; `None` if there is none.
    pub fn cut(&self, start: u64, end: u64) -> Option<Self> {
        let cut = Self { start: self.start.max(start), end: self.end.min(end), ..*self };
        (cut.start < cut.end).then_some(cut)
    }

    fn joins(&self, next: &Self) -> bool {
        self.end == next.start && self.mapping == next.mapping && self.is_reserved == next.is_reserved
    }
}

/// Pieces by address. None overlaps another one, none is empty, and neighbours that are the same are one.
#[derive(Clone, Debug, Default)]
pub struct Ranges {
    by_start: BTreeMap<u64, Piece>,
}

impl Ranges {
    /// Pieces.
    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// All pieces, by address.
    pub fn iter(&self) -> impl Iterator<Item = &Piece> {
        self.by_start.values()
    }

    /// The piece at an address.
    pub fn at(&self, address: u64) -> Option<Piece> {
        self.by_start
            .range(..=address)
            .next_back()
            .map(|(_, piece)| *piece)
            .filter(|piece| address < piece.end)
    }

    /// Whether anything lies between two addresses.
    pub fn is_touched(&self, start: u64, end: u64) -> bool {
        start < end && (self.at(start).is_some() || self.by_start.range(start..end).next().is_some())
    }

    /// What lies between two addresses, cut to them.
    pub fn within(&self, start: u64, end: u64) -> Vec<Piece> {
        if start >= end {
            return Vec::new();
        }
        let before = self.by_start.range(..start).next_back();
        before
            .into_iter()
            .chain(self.by_start.range(start..end))
            .filter_map(|(_, piece)| piece.cut(start, end))
            .collect()
    }

    /// Takes out what lies between two addresses, and gives it by address. Pieces that reach beyond are cut.
    pub fn take(&mut self, start: u64, end: u64) -> Vec<Piece> {
        let taken = self.within(start, end);
        for piece in &taken {
            let Some(whole) = self.at(piece.start) else { continue };
            self.by_start.remove(&whole.start);
            for rest in [whole.cut(whole.start, start), whole.cut(end, whole.end)].into_iter().flatten() {
                self.by_start.insert(rest.start, rest);
            }
        }
        taken
    }

    /// Puts a piece where nothing is, and joins it with its neighbours where they are the same. What was there is
    /// the caller's to take out before; an empty piece is left out.
    pub fn put(&mut self, piece: Piece) {
        debug_assert!(!self.is_touched(piece.start, piece.end), "the place is taken");
        if piece.start >= piece.end {
            return;
        }
        let mut piece = piece;
        if let Some(before) = piece.start.checked_sub(1).and_then(|address| self.at(address))
            && before.joins(&piece)
        {
            self.by_start.remove(&before.start);
            piece.start = before.start;
        }
        if let Some(behind) = self.at(piece.end)
            && piece.joins(&behind)
        {
            self.by_start.remove(&behind.start);
            piece.end = behind.end;
        }
        self.by_start.insert(piece.start, piece);
    }

    /// Puts only those parts of a piece where nothing is, and gives them.
    pub fn fill(&mut self, piece: Piece) -> Vec<Piece> {
        let mut free = Vec::new();
        let mut start = piece.start;
        for taken in self.within(piece.start, piece.end) {
            free.extend(piece.cut(start, taken.start));
            start = taken.end;
        }
        free.extend(piece.cut(start, piece.end));
        free.iter().for_each(|part| self.put(*part));
        free
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.by_start.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(start: u64, end: u64, mapping: u64) -> Piece {
        Piece { start, end, mapping: MappingId(mapping), is_reserved: false }
    }

    fn ranges(pieces: &[Piece]) -> Ranges {
        let mut ranges = Ranges::default();
        pieces.iter().for_each(|piece| ranges.put(*piece));
        ranges
    }

    fn all(ranges: &Ranges) -> Vec<Piece> {
        ranges.iter().copied().collect()
    }

    type Span = (u64, u64);

    /// Every way in which what is taken can lie to one piece.
    #[test]
    fn every_overlap_is_cut() {
        let cases: &[(Span, Option<Span>, &[Span])] = &[
            ((0, 10), None, &[(10, 20)]),
            ((20, 30), None, &[(10, 20)]),
            ((0, 11), Some((10, 11)), &[(11, 20)]),
            ((10, 12), Some((10, 12)), &[(12, 20)]),
            ((12, 15), Some((12, 15)), &[(10, 12), (15, 20)]),
            ((15, 20), Some((15, 20)), &[(10, 15)]),
            ((19, 25), Some((19, 20)), &[(10, 19)]),
            ((10, 20), Some((10, 20)), &[]),
            ((5, 25), Some((10, 20)), &[]),
            ((15, 15), None, &[(10, 20)]),
            ((15, 12), None, &[(10, 20)]),
        ];
        for ((start, end), taken, left) in cases {
            let mut ranges = ranges(&[piece(10, 20, 1)]);
            let taken: Vec<Piece> = taken.iter().map(|(start, end)| piece(*start, *end, 1)).collect();
            let left: Vec<Piece> = left.iter().map(|(start, end)| piece(*start, *end, 1)).collect();
            assert_eq!(ranges.within(*start, *end), taken, "{start}..{end}");
            assert_eq!(ranges.is_touched(*start, *end), !taken.is_empty(), "{start}..{end}");
            assert_eq!(ranges.take(*start, *end), taken, "{start}..{end}");
            assert_eq!(all(&ranges), left, "{start}..{end}");
        }
    }

    #[test]
    fn one_take_spans_several() {
        let mut ranges = ranges(&[piece(10, 20, 1), piece(20, 30, 2), piece(40, 50, 3)]);
        assert_eq!(ranges.take(15, 45), [piece(15, 20, 1), piece(20, 30, 2), piece(40, 45, 3)]);
        assert_eq!(all(&ranges), [piece(10, 15, 1), piece(45, 50, 3)]);
    }

    #[test]
    fn neighbours_that_are_the_same_are_one() {
        let mut ranges = ranges(&[piece(10, 20, 1), piece(30, 40, 1)]);
        ranges.put(piece(20, 30, 1));
        assert_eq!(all(&ranges), [piece(10, 40, 1)]);
        ranges.put(piece(40, 50, 2));
        ranges.put(Piece { is_reserved: true, ..piece(0, 10, 1) });
        assert_eq!(ranges.len(), 3);
    }

    #[test]
    fn filling_leaves_what_is_there() {
        let mut ranges = ranges(&[piece(10, 12, 1), piece(14, 16, 2)]);
        assert_eq!(ranges.fill(piece(8, 18, 3)), [piece(8, 10, 3), piece(12, 14, 3), piece(16, 18, 3)]);
        assert_eq!(ranges.len(), 5);
    }

    #[test]
    fn the_last_address_is_no_trouble() {
        let mut ranges = ranges(&[piece(u64::MAX - 1, u64::MAX, 1), piece(0, 1, 2)]);
        assert_eq!(ranges.at(u64::MAX), None);
        assert_eq!(ranges.take(0, u64::MAX).len(), 2);
    }
}
