//! The books of all processes, and what feeds them.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use tracer_common::abi::{
    MAX_FAULT_LEVEL, OPERATION_MAP, OPERATION_REMAP, OPERATION_UNMAP, PageFault, PageKey, SiteCounters,
};

use super::{
    area::{self, Area},
    book::{Looked, PageBook},
    hooks::FaultHooks,
    order::{Change, Happened, Waiting},
    pagemap::{PAGE_BYTES, PageRun, Pagemap},
    state::FaultState,
};
use crate::{
    attach::maps,
    record::{RecordError, kernel_map},
};

/// A look takes at most this share of the time: the next one is this many times later than the last one took.
const LOOK_SHARE: u32 = 20;
/// Without a way to skip holes, mappings larger than this are not looked at for what was there before.
const MAX_HOLES_PAGES: u64 = (64 << 30) / PAGE_BYTES;

/// The book of a process, and what its last look at everything came to.
#[derive(Debug, Default)]
pub struct Tracked {
    /// Pages.
    pub book: PageBook,
    /// The last look at all mappings; `None` before it.
    pub looked: Option<Looked>,
    /// Resident set at the begin, as the kernel counts it, in bytes.
    pub start_rss_bytes: Option<u64>,
    /// The same at the last look at all mappings.
    pub end_rss_bytes: Option<u64>,
    /// Address space that was not looked at for what was there before.
    pub unseen_bytes: u64,
    /// Whether the process has ended.
    pub has_ended: bool,
}

/// How long events are left for the next time. A program that takes longer to write one stands still with its CPU or its control
/// group: then what is known has to do.
const PATIENCE: Duration = Duration::from_millis(500);

/// What the page tables of a process say.
#[derive(Debug, Default)]
pub struct Scan {
    areas: Vec<Area>,
    ranges: Vec<(u64, u64)>,
    runs: Vec<PageRun>,
    unseen_bytes: u64,
    rss_bytes: Option<u64>,
}

/// The lens.
pub struct FaultLens {
    hooks: FaultHooks,
    faults: MapData,
    state: FaultState,
    max_pages: u64,
    level: u32,
    waiting: Waiting,
    /// Since when events wait for one that is being written.
    waits_since: Option<Instant>,
    alive: BTreeMap<u32, Tracked>,
    ended: Vec<(u32, Tracked)>,
    next_look: Option<Instant>,
}

impl FaultLens {
    /// Attaches the programs. The second part is what cannot be followed.
    ///
    /// # Errors
    /// Why the lens stays off.
    pub fn attach(bpf: &mut Ebpf, max_pages: u32) -> Result<(Self, Option<RecordError>), RecordError> {
        let mut take = |name| bpf.take_map(name).ok_or(RecordError::Object { name });
        let Map::HashMap(faults) = take("FAULTS")? else {
            return Err(RecordError::Object { name: "FAULTS" });
        };
        let Map::Array(state) = take("FAULT_STATE")? else {
            return Err(RecordError::Object { name: "FAULT_STATE" });
        };
        let state = FaultState::map(state)?;
        let (hooks, problem) = FaultHooks::attach(bpf)?;
        let lens = Self {
            hooks,
            faults,
            state,
            max_pages: u64::from(max_pages),
            level: 0,
            waiting: Waiting::default(),
            waits_since: None,
            alive: BTreeMap::new(),
            ended: Vec::new(),
            next_look: None,
        };
        Ok((lens, problem))
    }

    /// Whether the programs run.
    pub fn is_attached(&self) -> bool {
        self.hooks.is_attached()
    }

    /// Takes the programs off.
    pub fn detach(&mut self) {
        self.hooks.detach();
    }

    /// Faults at which the kernel did not run the program.
    ///
    /// # Errors
    /// [`RecordError::System`], [`RecordError::Object`].
    pub fn skipped_runs(&self, bpf: &Ebpf) -> Result<u64, RecordError> {
        self.hooks.skipped_runs(bpf)
    }

    /// Takes the pages that wait out of the kernel's map. The ring has to be emptied before (see `order`).
    ///
    /// # Errors
    /// [`RecordError::MapCall`].
    pub fn take(&mut self) -> Result<(), RecordError> {
        let (mut taken, waiting) = (0, &mut self.waiting);
        kernel_map::take_hash::<PageKey, PageFault>(self.faults.fd().as_fd(), "FAULTS", |key, fault| {
            waiting.add_fault(*key, *fault);
            taken += 1;
        })?;
        self.state.add_taken(taken);
        Ok(())
    }

    /// Books what was taken, and these changes, as far as it happened before `time_ns`: when the ring was about to be
    /// emptied. False if it was left for the next time, since the ring could not be emptied.
    pub fn apply(&mut self, changes: Vec<Change>, time_ns: u64, is_emptied: bool) -> bool {
        self.follow_level(self.state.level());
        self.waiting.add_changes(changes);
        if !is_emptied && self.waits_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
            return false;
        }
        self.waits_since = None;
        for happened in self.waiting.take_before(time_ns) {
            match happened {
                Happened::Fault(key, fault) => self.book_of(key.tgid).fault(key.page, &fault),
                Happened::Change(change) => self.change(&change),
            }
        }
        while self.held() > self.max_pages && self.level < MAX_FAULT_LEVEL {
            self.state.raise(self.level + 1);
            self.follow_level(self.level + 1);
        }
        true
    }

    fn book_of(&mut self, tgid: u32) -> &mut PageBook {
        &mut self.alive.entry(tgid).or_default().book
    }

    fn change(&mut self, change: &Change) {
        let book = self.book_of(change.tgid());
        let Change::Range(event) = change else {
            return book.clear();
        };
        let pages = |bytes: u64| bytes.div_ceil(PAGE_BYTES);
        let (start, old) = (event.address / PAGE_BYTES, event.old_address / PAGE_BYTES);
        match event.operation {
            // Later faults have not been booked yet.
            OPERATION_REMAP => {
                book.move_range((old, pages(event.old_length)), (start, pages(event.length)));
            }
            // Of one that fails, the pages are without a fault from then on.
            OPERATION_UNMAP => book.drop_range(start, start.saturating_add(pages(event.length))),
            OPERATION_MAP => book.populate(start, start.saturating_add(pages(event.length)), event.site),
            _ => {}
        }
    }

    fn held(&self) -> u64 {
        self.alive.values().map(|tracked| tracked.book.held()).sum()
    }

    fn follow_level(&mut self, level: u32) {
        if level > self.level {
            self.level = level;
        }
        for tracked in self.alive.values_mut() {
            tracked.book.sample(self.level);
        }
    }

    /// Whether it is not known yet what was resident before.
    pub fn wants_begin(&self, tgid: u32) -> bool {
        self.alive.get(&tgid).is_none_or(|tracked| tracked.book.start_pages().is_none())
    }

    /// Begins with a process. `scan` was made before the last faults were applied.
    pub fn begin(&mut self, tgid: u32, scan: &Scan) {
        let level = self.level;
        let tracked = self.alive.entry(tgid).or_default();
        tracked.book.sample(level);
        tracked.book.begin(&scan.areas, &scan.runs);
        tracked.start_rss_bytes = scan.rss_bytes;
        tracked.unseen_bytes = scan.unseen_bytes;
    }

    /// Reads all page tables of a process, or those of its blocks.
    ///
    /// # Errors
    /// Reading. A process that has gone has none.
    pub fn scan(&self, tgid: u32, is_whole: bool) -> Result<Scan, RecordError> {
        let failed = |source| RecordError::System { operation: "read the page tables of the target", source };
        // Gone: nothing is there, and its end is on its way.
        let Ok(entries) = maps::read(tgid) else { return Ok(Scan::default()) };
        let Ok(mut pagemap) = Pagemap::open(tgid) else { return Ok(Scan::default()) };
        let areas = area::areas(&entries);
        let mut scan = Scan { rss_bytes: is_whole.then(|| rss_bytes(tgid)).flatten(), ..Scan::default() };
        if is_whole {
            scan.ranges = areas.iter().map(|area| (area.start, area.end)).collect();
        } else {
            scan.ranges = self.alive.get(&tgid).map(|tracked| tracked.book.ranges()).unwrap_or_default();
        }
        for (start, end) in &scan.ranges {
            let first = areas.partition_point(|area| area.end <= *start);
            for area in areas.iter().skip(first).take_while(|area| area.start < *end) {
                let (start, end) = (area.start.max(*start), area.end.min(*end));
                if !pagemap.skips_holes() && end - start > MAX_HOLES_PAGES {
                    scan.unseen_bytes += if is_whole { (end - start) * PAGE_BYTES } else { 0 };
                    continue;
                }
                pagemap.read(start, end, &mut scan.runs).map_err(failed)?;
            }
        }
        scan.areas = areas;
        Ok(scan)
    }

    /// Whether a look is due: looking takes a small share of the time only.
    pub fn is_due(&self) -> bool {
        self.next_look.is_none_or(|at| Instant::now() >= at)
    }

    /// Notes how long a look took.
    pub fn looked_for(&mut self, time: Duration) {
        self.next_look = Some(Instant::now() + time * LOOK_SHARE);
    }

    /// Takes over a scan, which was made before the last faults were applied.
    pub fn look(&mut self, tgid: u32, scan: &Scan, is_whole: bool) {
        let Some(tracked) = self.alive.get_mut(&tgid) else { return };
        if scan.areas.is_empty() {
            return; // it has gone meanwhile: what it was stays
        }
        let looked = tracked.book.look(&scan.areas, &scan.ranges, &scan.runs);
        if is_whole {
            tracked.looked = Some(looked);
            tracked.end_rss_bytes = scan.rss_bytes;
        }
    }

    /// The process has ended.
    pub fn end(&mut self, tgid: u32) {
        if let Some(mut tracked) = self.alive.remove(&tgid) {
            tracked.book.end();
            tracked.has_ended = true;
            self.ended.push((tgid, tracked));
        }
    }

    /// Processes that live, and those that have ended.
    pub fn all(&self) -> impl Iterator<Item = (u32, &Tracked)> {
        let alive = self.alive.iter().map(|(tgid, tracked)| (*tgid, tracked));
        self.ended.iter().map(|(tgid, tracked)| (*tgid, tracked)).chain(alive)
    }

    /// Processes that live.
    pub fn alive(&self) -> Vec<u32> {
        self.alive.keys().copied().collect()
    }

    /// Forgets those of which `is_known` says no: faults of processes that are not recorded after all.
    pub fn retain(&mut self, is_known: impl Fn(u32) -> bool) {
        self.alive.retain(|tgid, _| is_known(*tgid));
    }

    /// Totals of every site.
    pub fn counters(&self) -> HashMap<u32, SiteCounters> {
        let mut all: HashMap<u32, SiteCounters> = HashMap::new();
        for (site, pages) in self.all().flat_map(|(_, tracked)| tracked.book.sites()) {
            let sum = all.entry(site).or_default();
            sum.allocated_bytes += pages.counters.allocated_bytes;
            sum.allocated_count += pages.counters.allocated_count;
            sum.freed_bytes += pages.counters.freed_bytes;
            sum.freed_count += pages.counters.freed_count;
        }
        all
    }
}

/// The resident set, counted page by page: `/proc/PID/smaps_rollup`, where it is there, else the counter of
/// `/proc/PID/statm`, which may be some pages off.
fn rss_bytes(tgid: u32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{tgid}/smaps_rollup")).ok();
    let exact = rollup.as_deref().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("Rss:"))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    });
    exact.or_else(|| {
        let statm = std::fs::read_to_string(format!("/proc/{tgid}/statm")).ok()?;
        statm.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(PAGE_BYTES)
    })
}
