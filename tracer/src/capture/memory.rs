//! Writes what is seen over time: counters of sites, and the memory of processes.
//!
//! Rows that say what the one before said are left out, and [`pace`](super::pace) bounds the rest.

use std::collections::{BTreeMap, HashMap};

use rusqlite::params;
use tracer_common::abi::SiteCounters;

use super::begin::stored;
use super::pace::{Budget, Pace};
use super::{CaptureError, CaptureWriter};
use crate::model::{
    Ledger, LedgerClass, LedgerRow, Lifetime, MemoryLimit, ProcessId, RssSample, RuntimeFigure,
};

/// Most labels of ledgers in a capture; memory of further ones goes to the row of its class without a label. A
/// target that maps files of ever new names does not make the capture grow for ever.
const MAX_ENTRIES: u64 = 100_000;

/// What was written last.
pub(super) struct Written {
    ticks: Pace,
    tick_rows: Budget,
    tick: i64,
    residents: HashMap<u32, u64>,
    rss: HashMap<ProcessId, (Pace, i64)>,
    rss_rows: Budget,
    ledgers: HashMap<ProcessId, LedgerState>,
    ledger_rows: Budget,
    entry_count: u64,
    figures: HashMap<(ProcessId, String, String), Change<Option<u64>>>,
    limits: HashMap<(ProcessId, String), Change<LimitValue>>,
    figure_rows: Budget,
}

#[derive(Default)]
struct LedgerState {
    pace: Pace,
    look: i64,
    /// Entries of the last look, with their numbers.
    entries: BTreeMap<Key, (i64, LedgerRow)>,
}

type Key = (LedgerClass, Option<String>);

/// A limit, and what counts against it: bytes.
type LimitValue = (u64, Option<u64>);

/// The last value of a figure that is written when it changes.
struct Change<T> {
    pace: Pace,
    row: i64,
    value: T,
}

impl Written {
    pub(super) fn new() -> Self {
        Self {
            ticks: Pace::default(),
            // 30 bytes each: 15 MB, and as much again in the rest of the first hour.
            tick_rows: Budget::new(500_000),
            tick: 0,
            residents: HashMap::new(),
            rss: HashMap::new(),
            rss_rows: Budget::new(50_000),
            ledgers: HashMap::new(),
            ledger_rows: Budget::new(100_000),
            entry_count: 0,
            figures: HashMap::new(),
            limits: HashMap::new(),
            figure_rows: Budget::new(50_000),
        }
    }

    /// Budgets of a smaller recording, so that a test is over sooner.
    #[cfg(test)]
    pub(super) fn divide_budgets(&mut self, by: u64) {
        self.tick_rows = Budget::new(500_000 / by);
        self.rss_rows = Budget::new(50_000 / by);
        self.ledger_rows = Budget::new(100_000 / by);
        self.figure_rows = Budget::new(50_000 / by);
    }

    /// Forgets a process that has ended.
    pub(super) fn forget(&mut self, process: ProcessId) {
        self.rss.remove(&process);
        self.ledgers.remove(&process);
        self.figures.retain(|key, _| key.0 != process);
        self.limits.retain(|key, _| key.0 != process);
    }
}

impl CaptureWriter {
    /// Adds a tick and the totals of the sites that changed since the one before. Call it every tick,
    /// also without changes: ticks are the time axis.
    ///
    /// Of a recording with many changing sites, ticks that have become old are not all kept: see the module `pace`.
    pub fn add_samples(
        &mut self,
        elapsed_ns: u64,
        samples: &[(u32, SiteCounters)],
    ) -> Result<(), CaptureError> {
        self.elapsed_ns = self.elapsed_ns.max(elapsed_ns);
        let written = &mut self.written;
        if written.ticks.overwrites(elapsed_ns, &written.tick_rows) {
            let tick = written.tick;
            self.run("UPDATE tick SET elapsed_ns = ? WHERE id = ?", params![stored(elapsed_ns), tick])?;
        } else {
            self.run("INSERT INTO tick(elapsed_ns) VALUES(?)", params![stored(elapsed_ns)])?;
            self.written.tick = self.connection.last_insert_rowid();
            // Sites that change while a tick is provisional are those that change in any tick, nearly.
            self.written.tick_rows.spend(samples.len() as u64);
        }
        let tick = self.written.tick;
        for (site, counters) in samples {
            self.run(
                "INSERT OR REPLACE INTO sample VALUES(?, ?, ?, ?, ?, ?)",
                params![
                    tick,
                    site,
                    stored(counters.allocated_bytes),
                    stored(counters.allocated_count),
                    stored(counters.freed_bytes),
                    stored(counters.freed_count)
                ],
            )?;
        }
        Ok(())
    }

    /// Says for the tick added last how much of what is outstanding is resident, by site: bytes. A site that is not
    /// named stays at what was said last; without ever being named, it was not measured.
    pub fn add_residents(&mut self, residents: &[(u32, u64)]) -> Result<(), CaptureError> {
        let tick = self.written.tick;
        for (site, bytes) in residents {
            if self.written.residents.insert(*site, *bytes) != Some(*bytes) {
                self.written.tick_rows.spend(1);
                self.run(
                    "INSERT OR REPLACE INTO resident VALUES(?, ?, ?)",
                    params![tick, site, stored(*bytes)],
                )?;
            }
        }
        Ok(())
    }

    /// Adds a look at a process's memory.
    pub fn add_rss(&mut self, sample: &RssSample) -> Result<(), CaptureError> {
        let (pace, row) = self.written.rss.entry(sample.process).or_default();
        let kept = if pace.overwrites(sample.elapsed_ns, &self.written.rss_rows) {
            Some(*row)
        } else {
            self.written.rss_rows.spend(1);
            None
        };
        // Without an id, a new row gets the next one.
        self.run(
            "INSERT OR REPLACE INTO rss VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                kept,
                sample.process.0,
                stored(sample.elapsed_ns),
                stored(sample.rss_bytes),
                sample.anonymous_bytes.map(stored),
                sample.file_bytes.map(stored),
                sample.shared_bytes.map(stored),
                sample.swap_bytes.map(stored),
                sample.pss_bytes.map(stored)
            ],
        )?;
        let row = self.connection.last_insert_rowid();
        self.written.rss.entry(sample.process).or_default().1 = row;
        Ok(())
    }

    /// Adds a look at where a process's memory lies. Rows of the same class and label are summed; only those that
    /// changed are written.
    pub fn add_ledger(&mut self, ledger: &Ledger) -> Result<(), CaptureError> {
        let mut state = self.written.ledgers.remove(&ledger.process).unwrap_or_default();
        let done = self.write_ledger(ledger, &mut state);
        self.written.ledgers.insert(ledger.process, state);
        done
    }

    fn write_ledger(&mut self, ledger: &Ledger, state: &mut LedgerState) -> Result<(), CaptureError> {
        let (process, elapsed_ns) = (ledger.process.0, stored(ledger.elapsed_ns));
        let overwrites = state.pace.overwrites(ledger.elapsed_ns, &self.written.ledger_rows);
        // Without an id, a new row gets the next one.
        self.run(
            "INSERT OR REPLACE INTO ledger_look VALUES(?, ?, ?, ?)",
            params![overwrites.then_some(state.look), process, elapsed_ns, stored(ledger.rss_bytes)],
        )?;
        state.look = self.connection.last_insert_rowid();
        let mut rows = summed(&ledger.rows, |key| {
            state.entries.contains_key(key) || self.written.entry_count < MAX_ENTRIES
        });
        let mut changed = u64::from(!overwrites);
        for (key, (entry, last)) in &state.entries {
            // What has gone is written as nothing, once.
            let now = rows.get(key).cloned().unwrap_or_else(|| nothing(key));
            if now != *last {
                self.write_ledger_row(state.look, *entry, &now)?;
                changed += u64::from(!overwrites);
            }
        }
        for (key, row) in &rows {
            if !state.entries.contains_key(key) {
                self.run(
                    "INSERT INTO ledger_entry(process, class, label) VALUES(?, ?, ?)",
                    params![process, key.0.name(), key.1],
                )?;
                let entry = self.connection.last_insert_rowid();
                self.written.entry_count += 1;
                self.write_ledger_row(state.look, entry, row)?;
                changed += 2;
                state.entries.insert(key.clone(), (entry, row.clone()));
            }
        }
        state.entries.retain(|key, (_, last)| rows.remove(key).map(|row| *last = row).is_some());
        self.written.ledger_rows.spend(changed);
        Ok(())
    }

    fn write_ledger_row(&mut self, look: i64, entry: i64, row: &LedgerRow) -> Result<(), CaptureError> {
        self.run(
            "INSERT OR REPLACE INTO ledger VALUES(?, ?, ?, ?, ?, ?, ?)",
            params![
                look,
                entry,
                stored(row.mapping_count),
                stored(row.size_bytes),
                stored(row.rss_bytes),
                row.pss_bytes.map(stored),
                stored(row.swap_bytes)
            ],
        )
    }

    /// Adds what a runtime says about itself; it is written when it has changed.
    pub fn add_figure(&mut self, figure: &RuntimeFigure) -> Result<(), CaptureError> {
        let key = (figure.process, figure.source.clone(), figure.name.clone());
        let known = self.written.figures.get_mut(&key);
        let Some((pace, row)) = next(known, figure.elapsed_ns, &figure.bytes, &self.written.figure_rows)
        else {
            return Ok(());
        };
        let source = self.intern(Some(&figure.source))?;
        let name = self.intern(Some(&figure.name))?;
        self.written.figure_rows.spend(u64::from(row.is_none()));
        self.run(
            "INSERT OR REPLACE INTO figure VALUES(?, ?, ?, ?, ?, ?)",
            params![row, figure.process.0, stored(figure.elapsed_ns), source, name, figure.bytes.map(stored)],
        )?;
        let row = self.connection.last_insert_rowid();
        self.written.figures.insert(key, Change { pace, row, value: figure.bytes });
        Ok(())
    }

    /// Adds the limit of a process; it is written when it, or what counts against it, has changed.
    pub fn add_limit(&mut self, limit: &MemoryLimit) -> Result<(), CaptureError> {
        let key = (limit.process, limit.source.clone());
        let value = (limit.limit_bytes, limit.used_bytes);
        let known = self.written.limits.get_mut(&key);
        let Some((pace, row)) = next(known, limit.elapsed_ns, &value, &self.written.figure_rows) else {
            return Ok(());
        };
        let source = self.intern(Some(&limit.source))?;
        self.written.figure_rows.spend(u64::from(row.is_none()));
        self.run(
            "INSERT OR REPLACE INTO memory_limit VALUES(?, ?, ?, ?, ?, ?)",
            params![
                row,
                limit.process.0,
                stored(limit.elapsed_ns),
                source,
                stored(limit.limit_bytes),
                limit.used_bytes.map(stored)
            ],
        )?;
        let row = self.connection.last_insert_rowid();
        self.written.limits.insert(key, Change { pace, row, value });
        Ok(())
    }

    /// Says how long the freed blocks of sites have lived: totals since the start, in place of what was said of the
    /// same site and bucket before.
    pub fn add_lifetimes(&mut self, lifetimes: &[Lifetime]) -> Result<(), CaptureError> {
        for lifetime in lifetimes {
            self.run(
                "INSERT OR REPLACE INTO lifetime VALUES(?, ?, ?)",
                params![lifetime.site, lifetime.bucket, stored(lifetime.count)],
            )?;
        }
        Ok(())
    }
}

/// The pace and the row to overwrite, if any, of a value; `None` where it is the same as before.
fn next<T: PartialEq>(
    known: Option<&mut Change<T>>,
    elapsed_ns: u64,
    value: &T,
    budget: &Budget,
) -> Option<(Pace, Option<i64>)> {
    let Some(known) = known else {
        let mut pace = Pace::default();
        pace.overwrites(elapsed_ns, budget);
        return Some((pace, None));
    };
    if known.value == *value {
        return None;
    }
    let overwrites = known.pace.overwrites(elapsed_ns, budget);
    Some((known.pace, overwrites.then_some(known.row)))
}

/// Rows by class and label; a label that is not taken is left out.
fn summed(rows: &[LedgerRow], takes: impl Fn(&Key) -> bool) -> BTreeMap<Key, LedgerRow> {
    let mut sums: BTreeMap<Key, LedgerRow> = BTreeMap::new();
    for row in rows {
        let mut key = (row.class, row.label.clone());
        if !takes(&key) {
            key.1 = None;
        }
        match sums.get_mut(&key) {
            Some(sum) => {
                sum.mapping_count = sum.mapping_count.saturating_add(row.mapping_count);
                sum.size_bytes = sum.size_bytes.saturating_add(row.size_bytes);
                sum.rss_bytes = sum.rss_bytes.saturating_add(row.rss_bytes);
                sum.pss_bytes = sum.pss_bytes.zip(row.pss_bytes).map(|(a, b)| a.saturating_add(b));
                sum.swap_bytes = sum.swap_bytes.saturating_add(row.swap_bytes);
            }
            None => {
                let row = LedgerRow { label: key.1.clone(), ..row.clone() };
                sums.insert(key, row);
            }
        }
    }
    sums
}

fn nothing(key: &Key) -> LedgerRow {
    LedgerRow {
        class: key.0,
        label: key.1.clone(),
        mapping_count: 0,
        size_bytes: 0,
        rss_bytes: 0,
        pss_bytes: None,
        swap_bytes: 0,
    }
}
