//! The book of one process: which pages belong to which site, and what of them is resident.
//!
//! Pure: faults and what the page tables say go in, counters come out.

use std::collections::{BTreeMap, HashMap};

use tracer_common::abi::{
    BLOCK_SHIFT, FAULT_FRESH, FAULT_ON_STACK, FAULT_WRITE, PageFault, SiteCounters, is_admitted,
};

use super::{
    area::{Area, AreaKind, area_of},
    chunk::{CHUNK_SHIFT, Chunk, bits, mask, split},
    pagemap::{PAGE_BYTES, PageRun, PageState},
    range::PopulatedRanges,
};

/// Uses kept of one site, the first ones seen.
const MAX_USES: usize = 8;

/// What a site's pages were when they were booked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// What they lay in.
    pub kind: AreaKind,
    /// Its name; hostile input.
    pub name: Vec<u8>,
    /// Pages.
    pub pages: u64,
    /// Of these, near the stack pointer.
    pub on_stack: u64,
}

/// One site.
#[derive(Clone, Debug, Default)]
pub struct SitePages {
    /// Totals, in bytes and pages; outstanding is what was resident at the last look.
    pub counters: SiteCounters,
    /// Pages in the book that are resident, not scaled.
    pub booked: u64,
    /// What they are.
    pub uses: Vec<Use>,
}

/// What one look at all mappings came to, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Resident pages.
    pub resident: u64,
    /// Those that were resident before the recording.
    pub before: u64,
    /// Those of sites.
    pub of_sites: u64,
    /// Of these, private copies of pages that were resident before.
    pub copied: u64,
    /// Those that have no fault, and no fault nearby.
    pub unattributed: u64,
    /// Pages of sites that are in swap.
    pub swapped: u64,
}

/// Resident pages of one chunk.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    resident: u64,
    perhaps_zero: u64,
    file: u64,
    zero: u64,
    swapped: u64,
}

/// The book.
#[derive(Debug, Default)]
pub struct PageBook {
    pub(super) chunks: BTreeMap<u64, Box<Chunk>>,
    pub(super) before: BTreeMap<u64, u64>,
    /// Of these, those that have moved here since the last look. Page tables that were read before do not show them.
    pub(super) moved_before: BTreeMap<u64, u64>,
    /// Where pages have gone or moved away since the last look. Page tables that were read before show them still.
    pub(super) gone_from: BTreeMap<u64, u64>,
    pub(super) populated: PopulatedRanges,
    sites: HashMap<u32, SitePages>,
    pub(super) level: u32,
    pub(super) held: u64,
    /// Resident pages at the begin; `None` before it.
    start_pages: Option<u64>,
}

impl PageBook {
    /// Pages in the book.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Pages that were resident when the recording of the process began; `None` if that is not known.
    pub fn start_pages(&self) -> Option<u64> {
        self.start_pages
    }

    /// The level of sampling.
    pub fn level(&self) -> u32 {
        self.level
    }

    /// Every site.
    pub fn sites(&self) -> impl Iterator<Item = (u32, &SitePages)> {
        self.sites.iter().map(|(site, state)| (*site, state))
    }

    /// A fault: the page is the site's from now on.
    pub fn fault(&mut self, page: u64, fault: &PageFault) {
        if !is_admitted(page, self.level) {
            return;
        }
        let (number, index) = split(page);
        let bit = 1u64 << index;
        let is_fresh = fault.flags & FAULT_FRESH != 0;
        let chunk = self.chunks.entry(number).or_insert_with(|| Box::new(Chunk::EMPTY));
        // What is there at the begin is not known yet: a page that its first fault finds there was.
        let is_known = chunk.own & bit != 0;
        let was_there = if is_known { chunk.copied & bit != 0 } else { self.start_pages.is_none() };
        let mut is_copy = was_there && !is_fresh;
        if let Some(before) = self.before.get_mut(&number)
            && *before & bit != 0
        {
            // It is either a copy of the page that was there, or that had gone.
            *before &= !bit;
            is_copy = !is_fresh;
        }
        if chunk.held() & bit == 0 {
            self.held += 1;
        }
        let was_booked = chunk.booked & bit != 0;
        let old = chunk.site(index);
        chunk.forget(bit);
        chunk.own |= bit;
        chunk.fresh |= bit;
        let set = |word: &mut u64, is: bool| *word |= if is { bit } else { 0 };
        set(&mut chunk.write, fault.flags & FAULT_WRITE != 0);
        set(&mut chunk.on_stack, fault.flags & FAULT_ON_STACK != 0);
        set(&mut chunk.copied, is_copy);
        chunk.set_site(index, fault.site);
        if was_booked {
            self.free(old, 1);
        }
    }

    /// The blocks in which something is, as ranges of pages.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let blocks = self.chunks.keys().map(|number| number >> (BLOCK_SHIFT - CHUNK_SHIFT));
        let blocks = blocks.map(|block| (block << BLOCK_SHIFT, (block + 1) << BLOCK_SHIFT));
        let mut all: Vec<(u64, u64)> = blocks
            .chain(self.populated.iter().map(|range| {
                // Whole blocks, so that many small ones side by side are read at once.
                let last = range.end.saturating_sub(1) >> BLOCK_SHIFT;
                (range.start >> BLOCK_SHIFT << BLOCK_SHIFT, (last + 1) << BLOCK_SHIFT)
            }))
            .collect();
        all.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in all {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        merged
    }

    /// Begins: what is resident and was not touched under our eyes was resident before.
    pub fn begin(&mut self, areas: &[Area], runs: &[PageRun]) {
        let mut start_pages = 0;
        for (number, seen) in seen(areas, runs) {
            let (held, copied) =
                self.chunks.get(&number).map_or((0, 0), |chunk| (chunk.held(), chunk.copied));
            let before = seen.resident & !held;
            start_pages += u64::from((before | seen.resident & copied).count_ones());
            if before != 0 {
                self.before.insert(number, before);
            }
        }
        self.start_pages = Some(start_pages);
    }

    /// Takes over what the page tables say of the pages in `ranges`, which are sorted.
    pub fn look(&mut self, areas: &[Area], ranges: &[(u64, u64)], runs: &[PageRun]) -> Looked {
        let seen = seen(areas, runs);
        let of = |number: &u64| {
            seen.binary_search_by_key(number, |(number, _)| *number)
                .ok()
                .and_then(|index| seen.get(index))
                .map_or_else(Seen::default, |(_, seen)| *seen)
        };
        let mut numbers = Vec::new();
        for (start, end) in ranges {
            let (first, last) = (start >> CHUNK_SHIFT, end.saturating_sub(1) >> CHUNK_SHIFT);
            numbers.extend(self.chunks.range(first..=last).map(|(number, _)| *number));
            for (number, before) in self.before.range_mut(first..=last) {
                let now = of(number);
                let moved = self.moved_before.get(number).copied().unwrap_or(0);
                *before &= now.resident | now.swapped | moved | !mask(*number, *start, *end);
            }
        }
        self.moved_before.clear();
        self.before.retain(|_, bits| *bits != 0);
        numbers.dedup();
        for number in numbers {
            self.update(number, of(&number), areas);
        }
        self.claim(&seen, areas);
        self.chunks.retain(|_, chunk| chunk.held() != 0);
        self.populated.were_seen();
        let looked = self.sum(&seen);
        self.gone_from.clear();
        looked
    }

    /// Resident pages of a chunk that nobody has.
    fn unowned(&self, number: u64, seen: &Seen) -> u64 {
        let of = |map: &BTreeMap<u64, u64>| map.get(&number).copied().unwrap_or(0);
        let held = self.chunks.get(&number).map_or(0, |chunk| chunk.held());
        seen.resident & !held & !of(&self.before) & !of(&self.gone_from)
    }

    fn sum(&self, seen: &[(u64, Seen)]) -> Looked {
        let mut looked = Looked::default();
        let count = |bits: u64| u64::from(bits.count_ones());
        for (number, seen) in seen {
            let chunk = self.chunks.get(number);
            let before = self.before.get(number).copied().unwrap_or(0) & seen.resident;
            // What has moved is booked where it is, though these page tables may show it elsewhere.
            let held = chunk.map_or(0, |chunk| chunk.booked & seen.resident);
            looked.resident += count(seen.resident);
            looked.before += count(before);
            looked.of_sites += count(held);
            looked.copied += chunk.map_or(0, |chunk| count(chunk.copied & held));
            looked.swapped += chunk.map_or(0, |chunk| count(chunk.swapped));
            if is_admitted(number << CHUNK_SHIFT, self.level) {
                looked.unattributed += count(self.unowned(*number, seen));
            }
        }
        looked
    }

    /// Books and frees the pages of a chunk as they are now.
    fn update(&mut self, number: u64, seen: Seen, areas: &[Area]) {
        let Some(chunk) = self.chunks.get_mut(&number) else { return };
        // A page of zeroes counts for nobody: what was only read in anonymous memory may be one.
        let resident = seen.resident & !(seen.perhaps_zero & chunk.own & !chunk.write);
        let zero = (seen.zero | seen.perhaps_zero) & !resident;
        let now = chunk.held() & resident;
        let new = now & !chunk.booked;
        // A page may be on its way while the fault is being served, or moved after the tables were read: it has until the
        // next look.
        let gone = chunk.booked & !resident & (!chunk.fresh | seen.swapped);
        let waits = chunk.held() & chunk.fresh & !resident;
        let unseen = chunk.own & !chunk.booked & !resident & !waits & !seen.swapped & !zero;
        chunk.swapped = chunk.held() & seen.swapped;
        chunk.fresh = 0;
        let dropped = (gone | unseen | (zero & chunk.own & !waits)) & !chunk.swapped;
        let owners = |bits_of: u64| -> Vec<u32> { bits(bits_of).map(|index| chunk.site(index)).collect() };
        let (gone_of, unseen_of) = (owners(gone), owners(unseen));
        let new_of: Vec<(u32, u32, bool)> =
            bits(new).map(|index| (index, chunk.site(index), chunk.on_stack >> index & 1 == 1)).collect();
        chunk.booked = (chunk.booked | new) & !gone;
        self.held -= u64::from((chunk.held() & dropped).count_ones());
        chunk.forget(dropped);
        gone_of.into_iter().for_each(|site| self.free(site, 1));
        for site in unseen_of {
            // It came and went between two looks.
            self.allocate(site, 1);
            self.free(site, 1);
        }
        for (index, site, on_stack) in new_of {
            self.allocate(site, 1);
            self.note_use(areas, (number << CHUNK_SHIFT) + u64::from(index), site, on_stack);
        }
    }

    /// Resident pages without a fault of their own count for the nearest fault of their block, within one mapping.
    fn claim(&mut self, seen: &[(u64, Seen)], areas: &[Area]) {
        let mut claims = Vec::new();
        for (number, seen) in seen {
            let free = self.unowned(*number, seen);
            if free == 0 || !is_admitted(number << CHUNK_SHIFT, self.level) {
                continue;
            }
            let base = number << CHUNK_SHIFT;
            let block = base >> BLOCK_SHIFT << BLOCK_SHIFT;
            let faults = self.faults_of(block);
            for index in bits(free) {
                let page = base + u64::from(index);
                let Some(area) = area_of(areas, page) else { continue };
                let is_file = seen.file >> index & 1 == 1;
                let populated = self.populated.site_of(page);
                let near = || {
                    nearest(&faults, page, |fault| {
                        (area.start..area.end).contains(&fault.page) && (is_file || fault.is_write)
                    })
                };
                // The rest of a huge page below a stack pointer is stack as much as the page that was touched.
                let near = || near().map(|fault| (fault.site, fault.on_stack));
                if let Some((site, on_stack)) = populated.map(|site| (site, false)).or_else(near) {
                    claims.push((page, site, on_stack));
                }
            }
        }
        for (page, site, on_stack) in claims {
            let (number, index) = split(page);
            let chunk = self.chunks.entry(number).or_insert_with(|| Box::new(Chunk::EMPTY));
            chunk.claimed |= 1 << index;
            chunk.booked |= 1 << index;
            chunk.set_site(index, site);
            self.held += 1;
            self.allocate(site, 1);
            self.note_use(areas, page, site, on_stack);
        }
    }

    /// Pages of a block that have a fault of their own, in order.
    fn faults_of(&self, block: u64) -> Vec<Touched> {
        let first = block >> CHUNK_SHIFT;
        let last = first + (1 << (BLOCK_SHIFT - CHUNK_SHIFT)) - 1;
        let mut faults = Vec::new();
        for (number, chunk) in self.chunks.range(first..=last) {
            faults.extend(bits(chunk.own).map(|index| {
                let page = (number << CHUNK_SHIFT) + u64::from(index);
                let has = |set: u64| set >> index & 1 == 1;
                Touched {
                    page,
                    site: chunk.site(index),
                    is_write: has(chunk.write),
                    on_stack: has(chunk.on_stack),
                }
            }));
        }
        faults
    }

    /// From now on only one block in 2 to the power of `level` counts, for as many: every number is an estimate.
    pub fn sample(&mut self, level: u32) {
        if level <= self.level {
            return;
        }
        self.level = level;
        let mut held = 0;
        let mut booked: HashMap<u32, u64> = HashMap::new();
        self.chunks.retain(|number, _| is_admitted(number << CHUNK_SHIFT, level));
        for chunk in self.chunks.values() {
            held += u64::from(chunk.held().count_ones());
            for index in bits(chunk.booked) {
                *booked.entry(chunk.site(index)).or_default() += 1;
            }
        }
        self.held = held;
        for (site, state) in &mut self.sites {
            state.booked = booked.get(site).copied().unwrap_or(0);
            let counters = &mut state.counters;
            let was = counters.allocated_count.saturating_sub(counters.freed_count);
            let is = state.booked << level;
            let (more, less) = (is.saturating_sub(was), was.saturating_sub(is));
            counters.allocated_count += more;
            counters.allocated_bytes += more * PAGE_BYTES;
            counters.freed_count += less;
            counters.freed_bytes += less * PAGE_BYTES;
        }
    }

    /// The standard error of all that is resident, in pages: blocks are drawn, and each stands for 2 to the power of
    /// the level (Horvitz–Thompson: the variance of a sum over drawn blocks of share f is (1 − f) / f² · Σ x²).
    pub fn standard_error_pages(&self) -> f64 {
        let mut blocks: HashMap<u64, f64> = HashMap::new();
        for (number, chunk) in &self.chunks {
            *blocks.entry(number >> (BLOCK_SHIFT - CHUNK_SHIFT)).or_default() +=
                f64::from(chunk.booked.count_ones());
        }
        let share = 0.5f64.powi(i32::try_from(self.level).unwrap_or(0));
        let squares: f64 = blocks.values().map(|pages| pages * pages).sum();
        ((1.0 - share) * squares).sqrt() / share
    }

    /// Another program runs: all of it has gone.
    pub fn clear(&mut self) {
        for chunk in std::mem::take(&mut self.chunks).into_values() {
            for index in bits(chunk.booked) {
                self.free(chunk.site(index), 1);
            }
        }
        self.before.clear();
        self.moved_before.clear();
        self.gone_from.clear();
        self.populated.clear();
        self.held = 0;
        // Nothing of the new program was there before.
        self.start_pages = None;
    }

    /// The process has ended: what was touched since the last look cannot be looked at, and counts as it was.
    pub fn end(&mut self) {
        let mut new = Vec::new();
        for chunk in self.chunks.values_mut() {
            let unseen = chunk.own & chunk.fresh & !chunk.booked & !chunk.swapped;
            new.extend(bits(unseen).map(|index| chunk.site(index)));
            chunk.booked |= unseen;
            chunk.fresh = 0;
        }
        new.into_iter().for_each(|site| self.allocate(site, 1));
    }

    /// Resident pages of each site, as ranges of addresses.
    pub fn resident_ranges(&self) -> HashMap<u32, Vec<(u64, u64)>> {
        let mut ranges: HashMap<u32, Vec<(u64, u64)>> = HashMap::new();
        for (number, chunk) in &self.chunks {
            for index in bits(chunk.booked) {
                let start = ((number << CHUNK_SHIFT) + u64::from(index)).saturating_mul(PAGE_BYTES);
                let of_site = ranges.entry(chunk.site(index)).or_default();
                match of_site.last_mut() {
                    Some(last) if last.1 == start => last.1 = start.saturating_add(PAGE_BYTES),
                    _ => of_site.push((start, start.saturating_add(PAGE_BYTES))),
                }
            }
        }
        ranges
    }

    pub(super) fn allocate(&mut self, site: u32, pages: u64) {
        let state = self.sites.entry(site).or_default();
        state.booked += pages;
        state.counters.allocated_count += pages << self.level;
        state.counters.allocated_bytes += (pages << self.level) * PAGE_BYTES;
    }

    pub(super) fn free(&mut self, site: u32, pages: u64) {
        let state = self.sites.entry(site).or_default();
        state.booked = state.booked.saturating_sub(pages);
        state.counters.freed_count += pages << self.level;
        state.counters.freed_bytes += (pages << self.level) * PAGE_BYTES;
    }

    fn note_use(&mut self, areas: &[Area], page: u64, site: u32, on_stack: bool) {
        let (Some(area), Some(state)) = (area_of(areas, page), self.sites.get_mut(&site)) else { return };
        let uses = &mut state.uses;
        let index = uses.iter().position(|one| one.kind == area.kind && one.name == area.name);
        let index = index.or_else(|| {
            let name = area.name.clone();
            (uses.len() < MAX_USES)
                .then(|| uses.push(Use { kind: area.kind, name, pages: 0, on_stack: 0 }))?;
            uses.len().checked_sub(1)
        });
        if let Some(one) = index.and_then(|index| uses.get_mut(index)) {
            one.pages += 1;
            one.on_stack += u64::from(on_stack);
        }
    }
}

/// A page that has a fault of its own.
#[derive(Clone, Copy, Debug)]
struct Touched {
    page: u64,
    site: u32,
    is_write: bool,
    on_stack: bool,
}

/// The nearest usable one; the lower of two equally near.
fn nearest(faults: &[Touched], page: u64, is_usable: impl Fn(&Touched) -> bool) -> Option<&Touched> {
    let (below, above) = faults.split_at(faults.partition_point(|fault| fault.page < page));
    let below = below.iter().rev().find(|fault| is_usable(fault));
    let above = above.iter().find(|fault| is_usable(fault));
    match (below, above) {
        (Some(below), Some(above)) if above.page - page < page - below.page => Some(above),
        (Some(found), _) | (None, Some(found)) => Some(found),
        (None, None) => None,
    }
}

/// What the page tables say, by chunk.
fn seen(areas: &[Area], runs: &[PageRun]) -> Vec<(u64, Seen)> {
    let mut all: Vec<(u64, Seen)> = Vec::new();
    for run in runs {
        let mut page = run.start;
        while page < run.end {
            // A run can go from one mapping into the next.
            let Some(area) = area_of(areas, page) else {
                let next = areas.partition_point(|area| area.start <= page);
                page = areas.get(next).map_or(run.end, |area| area.start);
                continue;
            };
            let end = run.end.min(area.end);
            add_run(&mut all, (page, end), run.state, area.counts(run.state));
            page = end;
        }
    }
    all
}

fn add_run(all: &mut Vec<(u64, Seen)>, (start, end): (u64, u64), state: PageState, is_resident: bool) {
    for number in start >> CHUNK_SHIFT..=end.saturating_sub(1) >> CHUNK_SHIFT {
        let bits = mask(number, start, end);
        if all.last().is_none_or(|(last, _)| *last != number) {
            all.push((number, Seen::default()));
        }
        let Some((_, seen)) = all.last_mut() else { continue };
        let set = |word: &mut u64, is: bool| *word |= if is { bits } else { 0 };
        set(&mut seen.resident, is_resident);
        set(&mut seen.swapped, state.is(PageState::SWAPPED));
        set(&mut seen.zero, state.is(PageState::ZERO));
        set(&mut seen.file, state.is(PageState::FILE));
        set(&mut seen.perhaps_zero, state.is(PageState::PERHAPS_ZERO));
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
