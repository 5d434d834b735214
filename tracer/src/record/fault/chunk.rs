//! 64 pages of a process, by bits.

/// log2 of the pages of a chunk.
pub const CHUNK_SHIFT: u32 = 6;
/// Pages of a chunk.
pub const CHUNK_PAGES: usize = 1 << CHUNK_SHIFT;

/// What is known of 64 neighbouring pages. Bit 0 is the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Whose a page is that is `own` or `claimed`.
    pub sites: [u32; CHUNK_PAGES],
    /// It has a fault of its own.
    pub own: u64,
    /// It was resident without one, and counts for a fault nearby.
    pub claimed: u64,
    /// It was resident at the last look: it is in its site's counters.
    pub booked: u64,
    /// The last fault was a write.
    pub write: u64,
    /// No look has begun since its fault.
    pub fresh: u64,
    /// It was resident before the recording, and is a private copy of that now.
    pub copied: u64,
    /// It is in swap.
    pub swapped: u64,
    /// It was near the stack pointer.
    pub on_stack: u64,
}

impl Chunk {
    /// Nothing is known.
    pub const EMPTY: Self = Self {
        sites: [0; CHUNK_PAGES],
        own: 0,
        claimed: 0,
        booked: 0,
        write: 0,
        fresh: 0,
        copied: 0,
        swapped: 0,
        on_stack: 0,
    };

    /// Pages that belong to a site.
    pub const fn held(&self) -> u64 {
        self.own | self.claimed
    }

    /// The site of a page; the number is taken modulo 64.
    pub fn site(&self, index: u32) -> u32 {
        self.sites.get(index as usize % CHUNK_PAGES).copied().unwrap_or(0)
    }

    /// Says whose a page is.
    pub fn set_site(&mut self, index: u32, site: u32) {
        if let Some(place) = self.sites.get_mut(index as usize % CHUNK_PAGES) {
            *place = site;
        }
    }

    /// Forgets pages.
    pub const fn forget(&mut self, bits: u64) {
        let keep = !bits;
        self.own &= keep;
        self.claimed &= keep;
        self.booked &= keep;
        self.write &= keep;
        self.fresh &= keep;
        self.copied &= keep;
        self.swapped &= keep;
        self.on_stack &= keep;
    }
}

/// The chunk of a page, and its number in it.
pub const fn split(page: u64) -> (u64, u32) {
    (page >> CHUNK_SHIFT, (page & (CHUNK_PAGES as u64 - 1)) as u32)
}

/// The numbers of the bits that are set.
pub fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let index = word.trailing_zeros();
        (word != 0).then(|| {
            word &= word - 1;
            index
        })
    })
}

/// The part of a chunk that lies between two pages.
pub fn mask(chunk: u64, start: u64, end: u64) -> u64 {
    let first = chunk << CHUNK_SHIFT;
    let low = start.saturating_sub(first).min(64);
    let high = end.saturating_sub(first).min(64);
    if low >= high {
        return 0;
    }
    let below = |count: u64| if count >= 64 { u64::MAX } else { (1 << count) - 1 };
    below(high) & !below(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_cut_at_both_ends() {
        assert_eq!(mask(1, 0, 64), 0);
        assert_eq!(mask(1, 64, 128), u64::MAX);
        assert_eq!(mask(1, 65, 67), 0b110);
        assert_eq!(mask(1, 0, 65), 1);
        assert_eq!(mask(1, 127, 1000), 1 << 63);
        assert_eq!(mask(1, 70, 66), 0);
    }

    #[test]
    fn bits_are_counted_from_the_lowest() {
        assert_eq!(bits(0).count(), 0);
        assert_eq!(bits(1 << 63 | 5).collect::<Vec<_>>(), [0, 2, 63]);
    }
}
