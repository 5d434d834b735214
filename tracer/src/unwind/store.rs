//! The unwind tables of all files as the kernel's PAGES, ROWS and ESCAPES maps hold them.
//!
//! Tables are added and never removed: they live as long as the recording. What changed is written to the
//! kernel by whoever drains [`TableStore::drain_changes`], before a mapping refers to it.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use tracer_common::abi::{
    EscapeRule, PAGE_BYTES, PAGE_SHIFT, PAGES_PER_CHUNK, PageChunk, ROWS_PER_CHUNK, RowChunk,
};
use tracer_common::row::{
    ESCAPE_UNSUPPORTED, KIND_ESCAPE, MAX_ESCAPES, RULE_MASK, Rule, at, cfa_field, kind, page_offset, rule,
};

use super::UnwindError;
use super::table::{FRAME_POINTER, FileTable, UNSUPPORTED};

/// More page entries could not be counted in the 32 bits of a page base.
const MAX_PAGE_CHUNKS: u32 = 1 << 22;

/// Sizes of the kernel maps, fixed when they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Entries of PAGES; each covers 512 KiB of ELF address space.
    pub page_chunks: u32,
    /// Entries of ROWS, of 1,024 rows each.
    pub row_chunks: u32,
    /// Entries of ESCAPES; more than [`MAX_ESCAPES`] are of no use.
    pub escapes: u32,
}

/// Where a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedTable {
    /// Page entry of a virtual address: `page_base.wrapping_add((address >> 10) as u32)`. The entries
    /// begin with the file's first executable page, so for a file that is linked to a high address the
    /// base lies below zero, modulo 2^32.
    pub page_base: u32,
}

/// Something the kernel does not have yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// An entry of ESCAPES.
    Escape(u32, EscapeRule),
    /// An entry of ROWS.
    Rows(u32, &'a RowChunk),
    /// An entry of PAGES.
    Pages(u32, &'a PageChunk),
}

/// Host image of the three maps. `K` identifies a file, by whatever the caller holds to be identity.
#[derive(Debug)]
pub struct TableStore<K> {
    limits: StoreLimits,
    placed: HashMap<K, PlacedTable>,
    pages: Vec<PageChunk>,
    /// Page entries taken.
    page_count: u32,
    rows: Vec<RowChunk>,
    /// Rows taken in the last chunk.
    rows_filled: usize,
    escapes: Vec<EscapeRule>,
    escape_index: HashMap<EscapeRule, u32>,
    changed_pages: BTreeSet<u32>,
    changed_rows: BTreeSet<u32>,
    /// Escape rules that the kernel has.
    drained_escapes: usize,
}

/// What one table adds, until it is known to fit.
struct Addition {
    entries: Vec<u64>,
    /// Index of the first of `rows`: the last chunk of the store, if that has room.
    first_row_chunk: usize,
    rows: Vec<RowChunk>,
    rows_filled: usize,
}

impl<K: Eq + Hash> TableStore<K> {
    /// An empty store for maps of these sizes.
    pub fn new(limits: StoreLimits) -> Self {
        Self {
            limits: StoreLimits {
                page_chunks: limits.page_chunks.min(MAX_PAGE_CHUNKS),
                escapes: limits.escapes.min(MAX_ESCAPES),
                ..limits
            },
            placed: HashMap::new(),
            pages: Vec::new(),
            page_count: 0,
            rows: Vec::new(),
            rows_filled: ROWS_PER_CHUNK,
            escapes: Vec::new(),
            escape_index: HashMap::new(),
            changed_pages: BTreeSet::new(),
            changed_rows: BTreeSet::new(),
            drained_escapes: 0,
        }
    }

    /// Keeps to other sizes from now on; what is there stays.
    pub fn set_limits(&mut self, limits: StoreLimits) {
        self.limits = StoreLimits { escapes: limits.escapes.min(MAX_ESCAPES), ..limits };
    }

    /// The table of a file that was added before.
    pub fn get(&self, file: &K) -> Option<PlacedTable> {
        self.placed.get(file).copied()
    }

    /// Entries that are in use, in the units of the limits.
    pub fn usage(&self) -> StoreLimits {
        StoreLimits {
            page_chunks: self.pages.len() as u32,
            row_chunks: self.rows.len() as u32,
            escapes: self.escapes.len() as u32,
        }
    }

    /// Adds the table of a file; a file that is there already keeps its table.
    ///
    /// # Errors
    /// [`UnwindError::TableFull`]: it does not fit; nothing was added, smaller tables may still fit.
    pub fn add(&mut self, file: K, table: &FileTable) -> Result<PlacedTable, UnwindError> {
        if let Some(placed) = self.get(&file) {
            return Ok(placed);
        }
        let (start, end) = table.segments().span();
        let (first_page, page_count) = (start >> PAGE_SHIFT, (end - start) >> PAGE_SHIFT);
        let page_limit = u64::from(self.limits.page_chunks) * PAGES_PER_CHUNK as u64;
        let pages_needed = u64::from(self.page_count) + page_count;
        check_room("PAGES", pages_needed, page_limit)?;
        let new_escapes = self.new_escapes(table)?;
        let addition = self.lay_out(table, first_page, page_count);
        let chunks_needed = (addition.first_row_chunk + addition.rows.len()) as u64;
        check_room("ROWS", chunks_needed, self.limits.row_chunks.into())?;

        for escape in new_escapes {
            self.escape_index.insert(escape, self.escapes.len() as u32);
            self.escapes.push(escape);
        }
        let placed = PlacedTable { page_base: self.page_count.wrapping_sub(first_page as u32) };
        self.commit(addition);
        self.placed.insert(file, placed);
        Ok(placed)
    }

    /// The table's escape rules that the store lacks, in the order of their future indices.
    fn new_escapes(&self, table: &FileTable) -> Result<Vec<EscapeRule>, UnwindError> {
        let is_new = |escape: &&EscapeRule| !self.escape_index.contains_key(escape);
        let new: Vec<_> = table.escapes().iter().filter(is_new).copied().collect();
        check_room("ESCAPES", (self.escapes.len() + new.len()) as u64, self.limits.escapes.into())?;
        Ok(new)
    }

    /// The store's index of each of the table's escape rules, once the new ones are in.
    fn escape_indices(&self, table: &FileTable) -> Vec<u32> {
        let mut new = self.escapes.len() as u32..;
        let index_of = |escape| self.escape_index.get(escape).copied().or_else(|| new.next());
        table.escapes().iter().filter_map(index_of).collect()
    }

    fn lay_out(&self, table: &FileTable, first_page: u64, page_count: u64) -> Addition {
        let indices = self.escape_indices(table);
        let as_stored = |local: Rule| match (kind(local), indices.get(cfa_field(local) as usize)) {
            (KIND_ESCAPE, Some(index)) => rule(KIND_ESCAPE, *index, 0),
            _ => local,
        };
        let mut addition = Addition {
            entries: Vec::with_capacity(page_count as usize),
            first_row_chunk: self.rows.len().saturating_sub(1),
            rows: self.rows.last().copied().into_iter().collect(),
            rows_filled: self.rows_filled,
        };
        let mut rules = table.rules().iter().peekable();
        let mut current = FRAME_POINTER;
        let mut page_rows: Vec<u32> = Vec::new();
        for page in first_page..first_page + page_count {
            let page_start = page << PAGE_SHIFT;
            page_rows.clear();
            if rules.peek().is_none_or(|next| next.address != page_start) {
                page_rows.push(at(0, current));
            }
            while let Some(next) = rules.next_if(|next| next.address < page_start + PAGE_BYTES) {
                current = as_stored(next.rule);
                page_rows.push(at((next.address - page_start) as u32, current));
            }
            addition.push_page(&page_rows);
        }
        addition
    }

    fn commit(&mut self, addition: Addition) {
        for (index, chunk) in (addition.first_row_chunk..).zip(addition.rows) {
            match self.rows.get_mut(index) {
                Some(old) if *old == chunk => continue,
                Some(old) => *old = chunk,
                None => self.rows.push(chunk),
            }
            self.changed_rows.insert(index as u32);
        }
        self.rows_filled = addition.rows_filled;
        for entry in addition.entries {
            let (chunk, slot) =
                (self.page_count as usize / PAGES_PER_CHUNK, self.page_count as usize % PAGES_PER_CHUNK);
            if chunk == self.pages.len() {
                self.pages.push([0; PAGES_PER_CHUNK]);
            }
            self.pages[chunk][slot] = entry;
            self.changed_pages.insert(chunk as u32);
            self.page_count += 1;
        }
    }

    /// What the kernel does not have yet, in an order in which nothing refers to what is not there. A
    /// change is given once; whoever fails to write it must give up the tables.
    pub fn drain_changes(&mut self) -> impl Iterator<Item = Change<'_>> {
        let escapes_from = std::mem::replace(&mut self.drained_escapes, self.escapes.len());
        let rows = std::mem::take(&mut self.changed_rows);
        let pages = std::mem::take(&mut self.changed_pages);
        let escapes = self.escapes.iter().enumerate().skip(escapes_from);
        escapes
            .map(|(index, escape)| Change::Escape(index as u32, *escape))
            .chain(rows.into_iter().map(|index| Change::Rows(index, &self.rows[index as usize])))
            .chain(pages.into_iter().map(|index| Change::Pages(index, &self.pages[index as usize])))
    }

    /// The rule at a virtual address, by the very search the kernel does.
    pub fn lookup(&self, page_base: u32, address: u64) -> Rule {
        let page = page_base.wrapping_add((address >> PAGE_SHIFT) as u32) as usize;
        let Some(pages) = self.pages.get(page / PAGES_PER_CHUNK) else { return UNSUPPORTED };
        let entry = pages[page % PAGES_PER_CHUNK];
        let (len, start) = ((entry >> 48) as usize, (entry >> 32) as usize & 0xffff);
        if len == 0 {
            return FRAME_POINTER;
        }
        let Some(rows) = self.rows.get(entry as u32 as usize) else { return UNSUPPORTED };
        let offset = (address % PAGE_BYTES) as u32;
        let (mut low, mut high) = (start, start + len);
        while low < high {
            let middle = (low + high) / 2;
            if page_offset(rows[middle % ROWS_PER_CHUNK]) <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low == start { FRAME_POINTER } else { rows[(low - 1) % ROWS_PER_CHUNK] & RULE_MASK }
    }

    /// The escape rule of a rule of kind `KIND_ESCAPE`; `None` for one that cannot be followed.
    pub fn escape(&self, rule: Rule) -> Option<EscapeRule> {
        let index = cfa_field(rule);
        if index == ESCAPE_UNSUPPORTED { None } else { self.escapes.get(index as usize).copied() }
    }
}

impl Addition {
    /// Adds the entry of a page whose rows begin at its first byte.
    fn push_page(&mut self, page_rows: &[u32]) {
        if page_rows == [at(0, FRAME_POINTER)] {
            self.entries.push(0);
            return;
        }
        if self.rows_filled + page_rows.len() > ROWS_PER_CHUNK {
            self.rows.push([0; ROWS_PER_CHUNK]);
            self.rows_filled = 0;
        }
        let chunk = self.first_row_chunk + self.rows.len() - 1;
        self.entries.push((page_rows.len() as u64) << 48 | (self.rows_filled as u64) << 32 | chunk as u64);
        if let Some(rows) = self.rows.last_mut() {
            rows[self.rows_filled..][..page_rows.len()].copy_from_slice(page_rows);
        }
        self.rows_filled += page_rows.len();
    }
}

fn check_room(map: &'static str, needed: u64, limit: u64) -> Result<(), UnwindError> {
    if needed > limit { Err(UnwindError::TableFull { map, needed, limit }) } else { Ok(()) }
}
