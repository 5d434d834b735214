//! Reads how much memory processes have, where it lies, what their runtimes say, and their limits.

use std::collections::{BTreeMap, HashMap};

use rusqlite::Row;

use super::read::{Loader, MAX_ROWS, ProcessRow};
use super::row::{id, nullable, text, unsigned};
use super::series::thinned;
use crate::model::{
    Ledger, LedgerClass, LedgerRow, Lifetime, LiveSize, MemoryLimit, ProcessId, RssSample, RuntimeFigure,
};

/// Most rows of ledgers after thinning, and most figures. A label is at most 64 KiB, and shared by no rows.
const MAX_LEDGER_ROWS: usize = 500_000;
/// Most looks, figures and limits. A recorder writes some ten thousand.
const MAX_LOOKS: usize = 1_000_000;
/// Most bytes of labels, over all rows kept.
const MAX_LABEL_BYTES: usize = 256 << 20;

/// Class and label of an entry, and whose it is.
struct Entry {
    process: ProcessId,
    class: LedgerClass,
    label: Option<String>,
}

/// A look, and whether it is among those that stay.
struct Look {
    process: ProcessId,
    elapsed_ns: u64,
    rss_bytes: u64,
    is_kept: bool,
}

impl Loader<'_> {
    pub(super) fn rss(&mut self, processes: &[ProcessRow]) -> rusqlite::Result<Vec<RssSample>> {
        let mut last_ns: HashMap<ProcessId, u64> = HashMap::new();
        let mut samples = Vec::new();
        self.each(self.queries.rss, MAX_ROWS, |row| {
            let process = ProcessId(id(row, 0)?);
            processes.binary_search_by_key(&process, |row| row.process.id).ok()?;
            let last_ns = last_ns.entry(process).or_default();
            let elapsed_ns = unsigned(row, 1).filter(|elapsed_ns| *elapsed_ns >= *last_ns)?;
            samples.push(RssSample {
                process,
                elapsed_ns,
                rss_bytes: unsigned(row, 2)?,
                anonymous_bytes: nullable(row, 3, unsigned)?,
                file_bytes: nullable(row, 4, unsigned)?,
                shared_bytes: nullable(row, 5, unsigned)?,
                swap_bytes: nullable(row, 6, unsigned)?,
                pss_bytes: nullable(row, 7, unsigned)?,
            });
            *last_ns = elapsed_ns;
            Some(())
        })?;
        Ok(samples)
    }

    pub(super) fn ledgers(&mut self, processes: &[ProcessRow]) -> rusqlite::Result<Vec<Ledger>> {
        let Some(queries) = self.queries.memory else { return Ok(Vec::new()) };
        let looks = self.looks(queries.looks, processes)?;
        let mut entries: HashMap<u64, Entry> = HashMap::new();
        self.each(queries.entries, MAX_ROWS, |row| {
            let process = known(row, 1, processes)?;
            let class = LedgerClass::from_name(&text(row, 2)?)?;
            entries.insert(unsigned(row, 0)?, Entry { process, class, label: nullable(row, 3, text)? });
            Some(())
        })?;
        let mut fold = Fold::new(&looks, &entries);
        self.each(queries.rows, MAX_ROWS, |row| {
            let entry = unsigned(row, 1)?;
            let owner = entries.get(&entry)?;
            let value = LedgerRow {
                class: owner.class,
                label: None,
                mapping_count: unsigned(row, 2)?,
                size_bytes: unsigned(row, 3)?,
                rss_bytes: unsigned(row, 4)?,
                pss_bytes: nullable(row, 5, unsigned)?,
                swap_bytes: unsigned(row, 6)?,
            };
            fold.add(unsigned(row, 0)?, entry, owner.process, value)
        })?;
        let (ledgers, refused) = fold.finish();
        self.skipped_rows = self.skipped_rows.saturating_add(refused);
        Ok(ledgers)
    }

    fn looks(&mut self, sql: &str, processes: &[ProcessRow]) -> rusqlite::Result<BTreeMap<u64, Look>> {
        let mut looks = BTreeMap::new();
        let mut times: HashMap<ProcessId, Vec<(u64, u64)>> = HashMap::new();
        self.each(sql, MAX_LOOKS, |row| {
            let look = Look {
                process: known(row, 1, processes)?,
                elapsed_ns: unsigned(row, 2)?,
                rss_bytes: unsigned(row, 3)?,
                is_kept: false,
            };
            let (id, times) = (unsigned(row, 0)?, times.entry(look.process).or_default());
            if times.last().is_some_and(|last| last.1 > look.elapsed_ns) {
                return None;
            }
            times.push((id, look.elapsed_ns));
            looks.insert(id, look);
            Some(())
        })?;
        for times in times.values() {
            let times_ns: Vec<u64> = times.iter().map(|time| time.1).collect();
            for (id, _) in thinned(&times_ns).into_iter().filter_map(|index| times.get(index)) {
                if let Some(look) = looks.get_mut(id) {
                    look.is_kept = true;
                }
            }
        }
        Ok(looks)
    }

    pub(super) fn figures(&mut self, processes: &[ProcessRow]) -> rusqlite::Result<Vec<RuntimeFigure>> {
        let Some(queries) = self.queries.memory else { return Ok(Vec::new()) };
        self.all(queries.figures, MAX_LOOKS, |row| {
            Some(RuntimeFigure {
                process: known(row, 0, processes)?,
                elapsed_ns: unsigned(row, 1)?,
                source: text(row, 2)?,
                name: text(row, 3)?,
                bytes: nullable(row, 4, unsigned)?,
            })
        })
    }

    pub(super) fn limits(&mut self, processes: &[ProcessRow]) -> rusqlite::Result<Vec<MemoryLimit>> {
        let Some(queries) = self.queries.memory else { return Ok(Vec::new()) };
        self.all(queries.limits, MAX_LOOKS, |row| {
            Some(MemoryLimit {
                process: known(row, 0, processes)?,
                elapsed_ns: unsigned(row, 1)?,
                source: text(row, 2)?,
                limit_bytes: unsigned(row, 3)?,
                used_bytes: nullable(row, 4, unsigned)?,
            })
        })
    }

    pub(super) fn lifetimes(&mut self) -> rusqlite::Result<Vec<Lifetime>> {
        let Some(queries) = self.queries.memory else { return Ok(Vec::new()) };
        self.all(queries.lifetimes, MAX_ROWS, |row| {
            Some(Lifetime {
                site: id(row, 0)?,
                bucket: unsigned(row, 1).and_then(|bucket| u8::try_from(bucket).ok())?,
                count: unsigned(row, 2)?,
            })
            .filter(|lifetime| lifetime.bucket < Lifetime::BUCKETS)
        })
    }

    pub(super) fn live_sizes(&mut self) -> rusqlite::Result<Vec<LiveSize>> {
        let Some(queries) = self.queries.memory else { return Ok(Vec::new()) };
        self.all(queries.sizes, MAX_ROWS, |row| {
            Some(LiveSize {
                site: id(row, 0)?,
                bucket: unsigned(row, 1).and_then(|bucket| u8::try_from(bucket).ok())?,
                count: unsigned(row, 2)?,
                bytes: unsigned(row, 3)?,
            })
            .filter(|size| size.bucket <= LiveSize::LAST_BUCKET)
        })
    }
}

fn known(row: &Row<'_>, column: usize, processes: &[ProcessRow]) -> Option<ProcessId> {
    let process = ProcessId(id(row, column)?);
    processes.binary_search_by_key(&process, |row| row.process.id).ok().map(|_| process)
}

/// Puts changed rows together to whole ledgers.
struct Fold<'a> {
    looks: &'a BTreeMap<u64, Look>,
    entries: &'a HashMap<u64, Entry>,
    /// What is known of each process so far.
    states: HashMap<ProcessId, BTreeMap<u64, LedgerRow>>,
    waiting: std::collections::btree_map::Iter<'a, u64, Look>,
    next: Option<(&'a u64, &'a Look)>,
    ledgers: Vec<Ledger>,
    row_count: usize,
    label_bytes: usize,
    refused: u64,
}

impl<'a> Fold<'a> {
    fn new(looks: &'a BTreeMap<u64, Look>, entries: &'a HashMap<u64, Entry>) -> Self {
        let mut waiting = looks.iter();
        let next = waiting.next();
        Self {
            looks,
            entries,
            states: HashMap::new(),
            waiting,
            next,
            ledgers: Vec::new(),
            row_count: 0,
            label_bytes: 0,
            refused: 0,
        }
    }

    /// Adds a row; looks come in rising order.
    fn add(&mut self, look: u64, entry: u64, owner: ProcessId, row: LedgerRow) -> Option<()> {
        self.looks.get(&look).filter(|look| look.process == owner)?;
        self.finish_before(look);
        let state = self.states.entry(owner).or_default();
        if (row.mapping_count, row.size_bytes, row.rss_bytes, row.swap_bytes) == (0, 0, 0, 0) {
            state.remove(&entry);
        } else {
            state.insert(entry, row);
        }
        Some(())
    }

    /// Writes down the looks before `id`: all their rows are known.
    fn finish_before(&mut self, id: u64) {
        while let Some((_, look)) = self.next.filter(|(at, _)| **at < id) {
            self.write_down(look);
            self.next = self.waiting.next();
        }
    }

    fn write_down(&mut self, look: &Look) {
        if !look.is_kept {
            return;
        }
        let none = BTreeMap::new();
        let state = self.states.get(&look.process).unwrap_or(&none);
        self.row_count = self.row_count.saturating_add(state.len());
        let sum = state.values().fold(0u64, |sum, row| sum.saturating_add(row.rss_bytes));
        let label = |entry: &u64| self.entries.get(entry).and_then(|entry| entry.label.clone());
        // Rows that do not add up say something else than the total: neither can be shown.
        if sum != look.rss_bytes || self.row_count > MAX_LEDGER_ROWS || self.label_bytes > MAX_LABEL_BYTES {
            self.refused = self.refused.saturating_add(1);
            return;
        }
        let rows: Vec<LedgerRow> =
            state.iter().map(|(entry, row)| LedgerRow { label: label(entry), ..row.clone() }).collect();
        let label_bytes = rows.iter().filter_map(|row| row.label.as_ref()).map(String::len).sum();
        self.label_bytes = self.label_bytes.saturating_add(label_bytes);
        self.ledgers.push(Ledger {
            process: look.process,
            elapsed_ns: look.elapsed_ns,
            rss_bytes: look.rss_bytes,
            rows,
        });
    }

    /// The ledgers, and how many looks were refused.
    fn finish(mut self) -> (Vec<Ledger>, u64) {
        self.finish_before(u64::MAX);
        (self.ledgers, self.refused)
    }
}
