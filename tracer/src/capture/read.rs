//! Reads a capture into memory, with bounds. The file is hostile input: what does not fit is skipped and
//! counted, and only a file that cannot be read on is an error.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rusqlite::{Connection, Row};
use tracer_common::abi::{MAX_FRAMES, SiteCounters};

use super::head::Head;
use super::row::{bits, each, id, nullable, text, unsigned};
use super::schema::{Queries, queries};
use super::series::Thinner;
use super::{CaptureError, Header, Series, open};
use crate::model::{
    Allocator, AllocatorId, EndReason, Frame, FrameId, FrameKind, Ledger, Lens, Lifetime, LiveAge, LiveSize,
    Location, LossTally, MemoryLimit, Object, ObjectId, Process, ProcessEnd, ProcessId, RssSample,
    RuntimeFigure, SampledAge, SiteClass, Stack, StackEnd,
};

/// Most rows taken from one table; far above what the default bounds of a recording can make.
pub(super) const MAX_ROWS: usize = 8_000_000;
/// Most rows of the tables that describe the recording.
pub(super) const MAX_HEAD_ROWS: usize = 10_000;
/// Most locations of one frame: functions inlined into each other.
const MAX_LOCATIONS: usize = 256;
/// Most samples kept after thinning.
const MAX_SERIES_ENTRIES: usize = 8_000_000;

/// How a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Why.
    pub reason: EndReason,
    /// Since the start.
    pub elapsed_ns: u64,
}

/// What the tracing itself did to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overhead {
    /// Program runs.
    pub probe_hits: u64,
    /// Their CPU time, where it was measured.
    pub probe_cpu_ns: Option<u64>,
}

/// What a recording with a budget has cost, and how much it saw for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// CPU time of the traps, as calibrated on that machine; `None` where it was not.
    pub trap_ns: Option<u64>,
    /// CPU time of the targets, with everything that tracing took of it; `None` where it was not measured.
    pub target_cpu_ns: Option<u64>,
    /// How long allocations were seen.
    pub seen_ns: u64,
    /// In how many windows.
    pub window_count: u64,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How.
    pub how: ProcessEnd,
    /// Since the start of the recording.
    pub elapsed_ns: u64,
}

/// A process and its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessRow {
    /// What is known about it.
    pub process: Process,
    /// `None` where it ran on at the end of the recording.
    pub ended: Option<Ended>,
}

/// A recording.
#[derive(Clone, Debug)]
pub struct Capture {
    /// What was known at its begin.
    pub header: Header,
    /// Processes by their id, rising; never empty. The first is the header's target.
    pub processes: Vec<ProcessRow>,
    /// Allocators by their id, rising.
    pub allocators: Vec<Allocator>,
    /// Files that frames lie in.
    pub objects: HashMap<ObjectId, Object>,
    /// Frames; each has at least one location.
    pub frames: HashMap<FrameId, Frame>,
    /// Stacks by site number, rising. Their frames are in `frames`, their process in `processes`, their
    /// allocator in `allocators`.
    pub stacks: Vec<Stack>,
    /// What the memory of sites is, by site number, where the recorder knew it.
    pub classes: HashMap<u32, SiteClass>,
    /// Counters over time.
    pub series: Series,
    /// Memory over time.
    pub rss: Vec<RssSample>,
    /// Where memory lies: looks in the order of time, thinned like the series; rows add up to their total.
    pub ledgers: Vec<Ledger>,
    /// What runtimes say about themselves, in the order of time; a value stands until the next of its name.
    pub figures: Vec<RuntimeFigure>,
    /// Limits of the processes, in the order of time; one stands until the next of its source.
    pub limits: Vec<MemoryLimit>,
    /// By site, where it was measured: index into the points of the series, and how much of what is outstanding then
    /// is resident, bytes. An entry stands until the next.
    pub residents: Residents,
    /// How long freed blocks have lived, by site and bucket, rising.
    pub lifetimes: Vec<Lifetime>,
    /// The loss ledger.
    pub losses: Vec<LossTally>,
    /// Blocks that were live at the end, by age.
    pub live_ages: Vec<LiveAge>,
    /// How many of these were seen, where they stand for others; else empty.
    pub sampled_ages: Vec<SampledAge>,
    /// Blocks of allocators that were live at the end, by site and size, rising.
    pub live_sizes: Vec<LiveSize>,
    /// `None` where it was not measured.
    pub overhead: Option<Overhead>,
    /// `None` for a recording without a budget.
    pub budget: Option<Budget>,
    /// Sentences for the user.
    pub hints: Vec<String>,
    /// `None` for a recording that was interrupted, or still goes on.
    pub finish: Option<Finish>,
    /// Rows that made no sense or exceeded a bound.
    pub skipped_rows: u64,
    /// Whether this is how it stood before its end.
    pub is_earlier_moment: bool,
}

impl Capture {
    /// Reads a capture, also one that is being recorded or was interrupted.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let (connection, version) = open::open(path)?;
        let loaded = Loader { connection: &connection, queries: queries(version), skipped_rows: 0 }.load();
        let damaged =
            || CaptureError::Damaged { path: path.to_path_buf(), detail: "it has no header".into() };
        loaded.map_err(|error| CaptureError::reading(path, error))?.ok_or_else(damaged)
    }

    /// Length of the recording, as far as it is known.
    pub fn elapsed_ns(&self) -> u64 {
        let ticks_ns = self.series.points_ns.last().copied().unwrap_or(0);
        let rss_ns = self.rss.iter().map(|sample| sample.elapsed_ns).max().unwrap_or(0);
        let ledger_ns = self.ledgers.iter().map(|ledger| ledger.elapsed_ns).max().unwrap_or(0);
        self.finish.map_or(ticks_ns.max(rss_ns).max(ledger_ns), |finish| finish.elapsed_ns)
    }
}

/// By site: index into the points of the series and bytes.
type Residents = BTreeMap<u32, Vec<(u16, u64)>>;

pub(super) struct Loader<'a> {
    connection: &'a Connection,
    pub(super) queries: Queries,
    pub(super) skipped_rows: u64,
}

impl Loader<'_> {
    fn load(mut self) -> rusqlite::Result<Option<Capture>> {
        let Some(Head { header, processes, allocators }) = self.head()? else { return Ok(None) };
        let objects = self.objects()?;
        let frames = self.frames(&objects)?;
        let stacks = self.stacks(&frames, &processes, &allocators)?;
        let classes = self.classes()?;
        let (series, residents) = self.series()?;
        let rss = self.rss(&processes)?;
        let ledgers = self.ledgers(&processes)?;
        let figures = self.figures(&processes)?;
        let limits = self.limits(&processes)?;
        let lifetimes = self.lifetimes()?;
        let losses = self.losses()?;
        let live_ages = self.live_ages()?;
        let sampled_ages = self.sampled_ages()?;
        let live_sizes = self.live_sizes()?;
        let overhead = self.overhead()?;
        let budget = self.budget()?;
        let hints = self.hints()?;
        let finish = self.finish()?;
        let skipped_rows = self.skipped_rows;
        Ok(Some(Capture {
            header,
            processes,
            allocators,
            objects,
            frames,
            stacks,
            classes,
            series,
            rss,
            ledgers,
            figures,
            limits,
            residents,
            lifetimes,
            losses,
            live_ages,
            sampled_ages,
            live_sizes,
            overhead,
            budget,
            hints,
            finish,
            skipped_rows,
            is_earlier_moment: false,
        }))
    }

    pub(super) fn each(
        &mut self,
        sql: &str,
        limit: usize,
        take: impl FnMut(&Row<'_>) -> Option<()>,
    ) -> rusqlite::Result<()> {
        self.skipped_rows = self.skipped_rows.saturating_add(each(self.connection, sql, limit, take)?);
        Ok(())
    }

    pub(super) fn all<T>(
        &mut self,
        sql: &str,
        limit: usize,
        take: impl Fn(&Row<'_>) -> Option<T>,
    ) -> rusqlite::Result<Vec<T>> {
        let mut rows = Vec::new();
        self.each(sql, limit, |row| take(row).map(|value| rows.push(value)))?;
        Ok(rows)
    }

    pub(super) fn first<T>(
        &mut self,
        sql: &str,
        take: impl Fn(&Row<'_>) -> Option<T>,
    ) -> rusqlite::Result<Option<T>> {
        Ok(self.all(sql, 1, take)?.into_iter().next())
    }

    fn objects(&mut self) -> rusqlite::Result<HashMap<ObjectId, Object>> {
        let mut objects = HashMap::new();
        self.each("SELECT id, path, build_id FROM object", MAX_ROWS, |row| {
            let id = ObjectId(id(row, 0)?);
            objects.insert(id, Object { id, path: text(row, 1)?, build_id: nullable(row, 2, text)? });
            Some(())
        })?;
        Ok(objects)
    }

    fn frames(&mut self, objects: &HashMap<ObjectId, Object>) -> rusqlite::Result<HashMap<FrameId, Frame>> {
        let mut frames = HashMap::new();
        self.each("SELECT id, address, object, file_offset, kind FROM frame", MAX_ROWS, |row| {
            let id_ = FrameId(id(row, 0)?);
            let object = nullable(row, 2, id)?.map(ObjectId);
            let known = object.filter(|object| objects.contains_key(object));
            let frame = Frame {
                id: id_,
                address: bits(row, 1)?,
                object: known,
                file_offset: nullable(row, 3, bits)?.filter(|_| known.is_some()),
                kind: FrameKind::from_name(&text(row, 4)?)?,
                locations: Vec::new(),
            };
            frames.insert(id_, frame);
            // The frame stands, the reference does not.
            (object == known).then_some(())
        })?;
        self.locations(&mut frames)?;
        for frame in frames.values_mut().filter(|frame| frame.locations.is_empty()) {
            frame.locations.push(Location { function: None, file: None, line: None, inlined: false });
        }
        Ok(frames)
    }

    fn locations(&mut self, frames: &mut HashMap<FrameId, Frame>) -> rusqlite::Result<()> {
        let mut strings: HashMap<u64, String> = HashMap::new();
        self.each("SELECT id, value FROM string", MAX_ROWS, |row| {
            strings.insert(unsigned(row, 0)?, text(row, 1)?);
            Some(())
        })?;
        let string = |row: &Row<'_>, column| match nullable(row, column, unsigned)? {
            Some(id) => strings.get(&id).cloned().map(Some),
            None => Some(None),
        };
        let sql = "SELECT frame, function, file, line, inlined FROM location ORDER BY frame, position";
        self.each(sql, MAX_ROWS, |row| {
            let frame = frames.get_mut(&FrameId(id(row, 0)?))?;
            if frame.locations.len() == MAX_LOCATIONS {
                return None;
            }
            frame.locations.push(Location {
                function: string(row, 1)?,
                file: string(row, 2)?,
                line: nullable(row, 3, id)?,
                inlined: unsigned(row, 4)? != 0,
            });
            Some(())
        })
    }

    fn stacks(
        &mut self,
        frames: &HashMap<FrameId, Frame>,
        processes: &[ProcessRow],
        allocators: &[Allocator],
    ) -> rusqlite::Result<Vec<Stack>> {
        let mut stacks: Vec<Stack> = Vec::new();
        self.each(self.queries.stacks, MAX_ROWS, |row| {
            let process = ProcessId(id(row, 1)?);
            processes.binary_search_by_key(&process, |row| row.process.id).ok()?;
            let allocator = nullable(row, 3, id)?.map(AllocatorId);
            let known =
                allocator.filter(|id| allocators.binary_search_by_key(id, |allocator| allocator.id).is_ok());
            stacks.push(Stack {
                site: id(row, 0)?,
                process,
                lens: Lens::from_name(&text(row, 2)?)?,
                allocator: known,
                frames: Vec::new(),
                end: StackEnd::from_name(&text(row, 4)?)?,
            });
            // The stack stands, the reference does not.
            (allocator == known).then_some(())
        })?;
        let sql = "SELECT site, frame FROM stack_frame ORDER BY site, position";
        self.each(sql, MAX_ROWS, |row| {
            let site = id(row, 0)?;
            let frame = FrameId(id(row, 1)?);
            let index = stacks.binary_search_by_key(&site, |stack| stack.site).ok()?;
            let stack = stacks.get_mut(index)?;
            if stack.frames.len() == MAX_FRAMES || !frames.contains_key(&frame) {
                return None;
            }
            stack.frames.push(frame);
            Some(())
        })?;
        Ok(stacks)
    }

    /// And how much of what is outstanding is resident.
    fn series(&mut self) -> rusqlite::Result<(Series, Residents)> {
        let mut ids = Vec::new();
        let mut times_ns: Vec<u64> = Vec::new();
        self.each("SELECT id, elapsed_ns FROM tick ORDER BY id", MAX_ROWS, |row| {
            let (id, elapsed_ns) = (unsigned(row, 0)?, unsigned(row, 1)?);
            if times_ns.last().is_some_and(|last| *last > elapsed_ns) {
                return None;
            }
            ids.push(id);
            times_ns.push(elapsed_ns);
            Some(())
        })?;
        let mut thinner = Thinner::new(&times_ns);
        let mut entry_count = 0;
        let sql = "SELECT tick, site, allocated_bytes, allocated_count, freed_bytes, freed_count \
                   FROM sample ORDER BY tick, site";
        self.each(sql, usize::MAX, |row| {
            let tick = ids.binary_search(&unsigned(row, 0)?).ok()?;
            let counters = SiteCounters {
                allocated_bytes: unsigned(row, 2)?,
                allocated_count: unsigned(row, 3)?,
                freed_bytes: unsigned(row, 4)?,
                freed_count: unsigned(row, 5)?,
            };
            if entry_count >= MAX_SERIES_ENTRIES {
                return None;
            }
            entry_count = thinner.add(tick, id(row, 1)?, counters);
            Some(())
        })?;
        let residents = self.residents(&ids, &thinner)?;
        Ok((thinner.finish(), residents))
    }

    fn residents(&mut self, tick_ids: &[u64], thinner: &Thinner) -> rusqlite::Result<Residents> {
        let mut residents = Residents::new();
        let Some(queries) = self.queries.memory else { return Ok(residents) };
        let mut entry_count = 0;
        self.each(queries.residents, usize::MAX, |row| {
            let tick = tick_ids.binary_search(&unsigned(row, 0)?).ok()?;
            let (site, bytes, point) = (id(row, 1)?, unsigned(row, 2)?, thinner.point(tick));
            if entry_count >= MAX_SERIES_ENTRIES {
                return None;
            }
            let entries = residents.entry(site).or_default();
            match entries.last_mut() {
                Some(last) if last.0 == point => last.1 = bytes,
                _ => {
                    entries.push((point, bytes));
                    entry_count += 1;
                }
            }
            Some(())
        })?;
        Ok(residents)
    }

    fn losses(&mut self) -> rusqlite::Result<Vec<LossTally>> {
        let sql = "SELECT reason, count, bytes, is_incomplete, meaning FROM loss ORDER BY position";
        self.all(sql, MAX_HEAD_ROWS, |row| {
            Some(LossTally {
                reason: text(row, 0)?,
                count: unsigned(row, 1)?,
                bytes: unsigned(row, 2)?,
                is_incomplete: unsigned(row, 3)? != 0,
                meaning: text(row, 4)?,
            })
        })
    }

    fn live_ages(&mut self) -> rusqlite::Result<Vec<LiveAge>> {
        self.all("SELECT site, born_ns, count, bytes FROM live_age", MAX_ROWS, |row| {
            Some(LiveAge {
                site: id(row, 0)?,
                born_ns: unsigned(row, 1)?,
                count: unsigned(row, 2)?,
                bytes: unsigned(row, 3)?,
            })
        })
    }

    fn sampled_ages(&mut self) -> rusqlite::Result<Vec<SampledAge>> {
        let Some(queries) = self.queries.estimate else { return Ok(Vec::new()) };
        self.all(queries.sampled_ages, MAX_ROWS, |row| {
            Some(SampledAge { site: id(row, 0)?, born_ns: unsigned(row, 1)?, count: unsigned(row, 2)? })
        })
    }

    fn overhead(&mut self) -> rusqlite::Result<Option<Overhead>> {
        self.first("SELECT probe_hits, probe_cpu_ns FROM overhead", |row| {
            Some(Overhead { probe_hits: unsigned(row, 0)?, probe_cpu_ns: nullable(row, 1, unsigned)? })
        })
    }

    fn budget(&mut self) -> rusqlite::Result<Option<Budget>> {
        let Some(queries) = self.queries.estimate else { return Ok(None) };
        self.first(queries.budget, |row| {
            Some(Budget {
                trap_ns: nullable(row, 0, unsigned)?,
                target_cpu_ns: nullable(row, 1, unsigned)?,
                seen_ns: unsigned(row, 2)?,
                window_count: unsigned(row, 3)?,
            })
        })
    }

    fn hints(&mut self) -> rusqlite::Result<Vec<String>> {
        self.all("SELECT sentence FROM hint ORDER BY position", MAX_HEAD_ROWS, |row| text(row, 0))
    }

    fn finish(&mut self) -> rusqlite::Result<Option<Finish>> {
        self.first("SELECT reason, elapsed_ns FROM finish", |row| {
            Some(Finish { reason: EndReason::from_name(&text(row, 0)?)?, elapsed_ns: unsigned(row, 1)? })
        })
    }
}
