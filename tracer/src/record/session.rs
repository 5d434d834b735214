//! The recording itself: one loop over ticks, new stacks, new mappings, new processes, signals and exits.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    num::NonZeroU32,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use tokio::{io::unix::AsyncFd, time::MissedTickBehavior};
use tracer_common::abi::{Loss, SiteCounters, Tally};

use super::{
    RecordError,
    classes::{MappingStack, Names, class_of, place_of},
    clock::{monotonic_ns, nanoseconds},
    code_store::CodeStore,
    cost::Steps,
    event::{self, Event},
    fault::{Change, FaultLens},
    link::Links,
    live::{self, Ages, Amount, Ends},
    load::{LoadOptions, NEW_TASK, Programs, Purpose},
    losses::{self, OwnLosses},
    mapping::{MappingBook, MappingHooks},
    member::Member,
    memory_look::MemoryLooks,
    mmap_watch::{Changes, MmapWatch},
    naming::name_frames,
    options::{Outcome, Progress, RecordOptions, header},
    rights::{Stage, shed},
    roster::Roster,
    rss,
    stacks::StackBook,
    wait::{Signals, any_readable, clear, until, watched},
    window::Windows,
};
use crate::{
    attach::{
        AttachError,
        absence::Absence,
        discover::Discoverer,
        feature, maps,
        preflight::{self, Facts},
        probe_kind,
        target::TargetProcess,
        tracepoint::{Tracefs, TracepointError},
    },
    capture::CaptureWriter,
    managed,
    model::{EndReason, FrameId, Lens, Location, ProcessEnd, Stack, Target},
};

/// Growth of RSS without a single probe hit, in bytes, from which the self-test speaks.
const SILENT_GROWTH_BYTES: u64 = 256 << 10;
/// Shortest time between two looks at the mappings.
const REFRESH_PAUSE: Duration = Duration::from_millis(2);
/// Longest, for targets whose mappings change all the time without new code.
const REFRESH_PAUSE_MAX: Duration = Duration::from_millis(100);

/// A recording that has been set up.
pub struct Session {
    pub(super) options: RecordOptions,
    pub(super) discoverer: Discoverer,
    /// Names of the allocators that are in the capture, by number.
    pub(super) allocators: BTreeMap<u16, &'static str>,
    /// Stacks of mappings and of page faults.
    pub(super) mapping_stacks: HashMap<u32, MappingStack>,
    pub(super) programs: Programs,
    pub(super) store: CodeStore,
    pub(super) roster: Roster,
    pub(super) writer: CaptureWriter,
    pub(super) losses: OwnLosses,
    pub(super) hints: BTreeSet<String>,
    pub(super) ends: Ends,
    pub(super) started: Instant,
    pub(super) retired_links: Vec<std::thread::JoinHandle<()>>,
    pub(super) refresh_pause: Duration,
    /// The programs that follow mappings; `None` before they are attached, and where that is not possible.
    hooks: Option<MappingHooks>,
    is_without_mappings: bool,
    /// The lens on page faults; `None` before it is attached, and without it.
    pub(super) faults: Option<FaultLens>,
    pub(super) has_no_faults: bool,
    /// What has changed besides faults and is not booked yet.
    pub(super) fault_changes: Vec<Change>,
    pub(super) are_faults_pending: bool,
    /// What the runtimes said at the end.
    pub(super) fault_regions: HashMap<u32, Vec<managed::Region>>,
    /// The windows in which allocations are seen; `None`: all the time.
    pub(super) windows: Option<Windows>,
    /// Whether probes of allocations are to be in place.
    pub(super) windows_are_open: bool,
    /// Which probes are single-stepped.
    pub(super) steps: Steps,
    watches: Vec<MmapWatch>,
    book: StackBook,
    memory_looks: MemoryLooks,
    last: Vec<SiteCounters>,
    ended: BTreeMap<u32, Amount>,
    ages: Ages,
    first_rss: BTreeMap<u32, u64>,
    pub(super) progress: Progress,
    /// Processes at whose surroundings nobody has looked yet.
    pub(super) unexamined: Vec<(NonZeroU32, Facts)>,
}

impl Session {
    /// Reads the mappings of the processes, builds the tables and loads the programs. Nothing is attached yet.
    ///
    /// # Errors
    /// Everything that can stand in the way of a recording.
    pub fn prepare(processes: Vec<TargetProcess>, mut options: RecordOptions) -> Result<Self, RecordError> {
        let system = |operation| move |source| RecordError::System { operation, source };
        let watches = MmapWatch::open_all()?;
        let mut store = CodeStore::new();
        let mut roster = Roster::new().map_err(system("watch for exits"))?;
        let mut members = Vec::new();
        let mut hints = BTreeSet::new();
        let release = feature::release_text();
        hints.extend(
            preflight::kernel_faults(&release).iter().map(|fault| format!("kernel {release}: {fault}")),
        );
        let mut unexamined = Vec::new();
        for process in processes {
            let facts = process.facts;
            preflight::require_survival(process.target.tgid, facts)?;
            let mut member = super::follow::root(process, &mut roster, &mut hints)?;
            member.code.survey(&mut store)?;
            unexamined.push((member.tgid, facts));
            members.push(member);
        }
        let new_tasks = new_tasks();
        let probe_kind = probe_kind::choose(options.probe_choice(), options.follow && new_tasks.is_ok())?;
        let load = LoadOptions {
            limits: options.limits_of_lenses(),
            tables: store.sizes(),
            min_size_bytes: options.min_size_bytes,
            max_size_bytes: options.max_size_bytes,
            bpf_log: options.bpf_log,
            follow: options.follow,
            clone_flags_offset: new_tasks.as_ref().map_or(0, |(_, offset)| *offset),
            validate: false,
            probe_kind,
            weighing: options.weighing(),
        };
        let mut programs = Programs::load(&load, Purpose::Trace)?;
        let share = options.max_overhead.map(|share| f64::from(share.get()) / 1e6);
        let windows = share.map(|share| Windows::prepare(share, probe_kind)).transpose()?;
        // Without it, blocks that a vfork child allocates are missed, and children are not followed.
        let watched = new_tasks.and_then(|(tracefs, _)| programs.watch_new_tasks(&tracefs));
        if let Err(error) = watched {
            hints.insert(format!("child processes are not recorded: {error}"));
            options.follow = false;
        }
        let first: &Member = members.first().ok_or(AttachError::NoProcess { tgid: 0 })?;
        let header = header(first.program().target.clone(), &options, probe_kind);
        let mut writer = CaptureWriter::create_for(&options.output, options.force, options.owner, &header)?;
        for member in members {
            writer.add_process(&super::follow::row(&member, None, 0))?;
            roster.add(member).map_err(system("watch for exits"))?;
        }
        let lenses = options.lenses.clone();
        let weighing = options.weighing();
        Ok(Self {
            discoverer: Discoverer::new(options.selection.clone()),
            allocators: BTreeMap::new(),
            mapping_stacks: HashMap::new(),
            last: vec![SiteCounters::default(); options.limits.max_sites as usize],
            options,
            programs,
            store,
            roster,
            hooks: None,
            is_without_mappings: !lenses.contains(&Lens::Mmap),
            faults: None,
            has_no_faults: false,
            fault_changes: Vec::new(),
            are_faults_pending: false,
            fault_regions: HashMap::new(),
            windows,
            windows_are_open: true,
            steps: Steps::default(),
            watches,
            book: StackBook::default(),
            writer,
            memory_looks: MemoryLooks::default(),
            ended: BTreeMap::new(),
            ages: Ages::new(monotonic_ns(), weighing),
            ends: Ends::default(),
            losses: OwnLosses::default(),
            started: Instant::now(),
            first_rss: BTreeMap::new(),
            progress: Progress::default(),
            unexamined,
            hints,
            retired_links: Vec::new(),
            refresh_pause: REFRESH_PAUSE,
        })
    }

    /// Probes in place.
    pub fn probe_count(&self) -> usize {
        self.roster.alive().map(|member| member.links.len()).sum()
    }

    /// Records until the duration has passed, the processes that were asked for have exited, `stop` is done or a
    /// signal comes. `ready` is called when the loop stands, `show` after each sample.
    ///
    /// Before it begins, and once more before names are looked for, this thread gives away the rights that are not
    /// needed any more, for good.
    ///
    /// # Errors
    /// What was recorded until then is in the capture.
    pub async fn run(
        mut self,
        stop: impl Future<Output = ()>,
        ready: impl FnOnce(),
        mut show: impl FnMut(&Progress),
    ) -> Result<Outcome, RecordError> {
        let system = |operation| move |source| RecordError::System { operation, source };
        shed(Stage::Recording);
        self.start_clock()?;
        let copy = |fd: std::os::fd::BorrowedFd<'_>| watched(fd.try_clone_to_owned()?);
        let exits = copy(self.roster.exit_fd()).map_err(system("wait for the target"))?;
        let events = copy(self.programs.events.as_fd()).map_err(system("poll the event ring"))?;
        let watches = self.watch_fds().map_err(system("poll the mapping events"))?;
        let mut stop = std::pin::pin!(stop);
        let mut signals = Signals::new().map_err(system("handle signals"))?;
        let mut tick = tokio::time::interval(self.options.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        self.start_windows()?;
        ready();
        let deadline = self.options.duration.map(|duration| tokio::time::Instant::now() + duration);
        let reason = loop {
            let pause = self.refresh_pause;
            let window_due: Option<tokio::time::Instant> =
                self.windows.as_ref().map(|windows| windows.due().into());
            let is_dirty = self.roster.alive().any(|member| member.is_dirty);
            tokio::select! {
                biased;
                () = signals.any() => break EndReason::Interrupted,
                () = &mut stop => break EndReason::Interrupted,
                guard = exits.readable() => {
                    clear(guard);
                    self.end_processes()?;
                    if !self.goes_on() {
                        break EndReason::TargetExited;
                    }
                }
                () = until(deadline) => break EndReason::Duration,
                () = until(window_due) => {
                    if let Some(why) = self.turn_window()? {
                        self.losses.over_budget = 1;
                        self.hints.insert(why);
                        break EndReason::OverBudget;
                    }
                }
                guard = events.readable() => {
                    clear(guard);
                    self.drain_events()?;
                    if self.hooks.is_some() {
                        self.look(MappingBook::wants_look_now, None)?;
                    }
                    self.begin_faults()?;
                    if std::mem::take(&mut self.are_faults_pending) {
                        self.settle_faults()?;
                    }
                }
                () = any_readable(&watches) => self.drain_watches(),
                () = tokio::time::sleep(pause), if is_dirty => self.refresh()?,
                _ = tick.tick() => {
                    self.join_scope()?;
                    // Whether or not there was a wake-up: none comes from a ring that is full.
                    self.drain_watches();
                    self.sample(self.started.elapsed(), false)?;
                    show(&self.progress);
                }
            }
        };
        self.finish(reason)
    }

    /// A recording of processes ends with them; one of a group ends when nobody is left in it.
    fn goes_on(&self) -> bool {
        if self.options.scope.is_some() { self.roster.len() > 0 } else { self.roster.has_root() }
    }

    fn start_clock(&mut self) -> Result<(), RecordError> {
        self.started = Instant::now();
        self.ages = Ages::new(monotonic_ns(), self.options.weighing());
        self.sample(Duration::ZERO, false)
    }

    fn watch_fds(&self) -> std::io::Result<Vec<AsyncFd<OwnedFd>>> {
        self.watches.iter().map(|watch| watched(watch.as_fd().try_clone_to_owned()?)).collect()
    }

    /// Reads the mapping events of all CPUs.
    pub(super) fn drain_watches(&mut self) {
        let mut changes = Changes::default();
        self.watches.iter_mut().for_each(|watch| watch.drain(&mut changes));
        self.losses.mapping_events += changes.lost;
        for member in self.roster.alive_mut() {
            member.is_dirty |= changes.lost > 0 || changes.tgids.contains(&member.tgid.get());
        }
    }

    /// Looks again at the processes whose mappings have changed.
    fn refresh(&mut self) -> Result<(), RecordError> {
        let dirty: Vec<NonZeroU32> =
            self.roster.alive().filter(|member| member.is_dirty).map(|member| member.tgid).collect();
        for tgid in dirty {
            match self.synchronize_one(tgid) {
                Ok(_) => {}
                // The exit is seen by the loop; the state until then is still good.
                Err(error) if error.is_absent() => self.doubt_absence(tgid.get()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Adapts the pause between two looks: short after a change, longer the longer nothing was new.
    pub(super) fn adapt_pause(&mut self, changed: bool) {
        self.refresh_pause =
            if changed { REFRESH_PAUSE } else { (self.refresh_pause * 2).min(REFRESH_PAUSE_MAX) };
    }

    /// Takes everything out of the event ring.
    pub(super) fn drain_events(&mut self) -> Result<(), RecordError> {
        self.programs.flush_log();
        let mut events = Vec::new();
        while let Some(item) = self.programs.events.next() {
            events.extend(event::decode(&item));
        }
        let mut new = Vec::new();
        for event in events {
            match event {
                Event::Stack { tgid, site, epoch, end, lens, origin, frames } => {
                    let Some(member) = self.roster.find(tgid) else { continue };
                    let program = member.program_of_epoch(epoch).id;
                    let (lens, allocator) = event::lens_and_allocator(lens, origin);
                    let added = self.book.add(
                        member.code.space(),
                        (program, epoch),
                        (site, lens, allocator),
                        &frames,
                        end,
                    );
                    for frame in &added.frames {
                        self.writer.add_frame(frame)?;
                    }
                    self.roster.announce(program, &added.frames);
                    self.writer.add_stack(&added.stack)?;
                    if lens != Lens::Malloc {
                        let Stack { process, allocator, frames, .. } = added.stack;
                        self.mapping_stacks.insert(site, MappingStack { process, allocator, frames });
                    }
                }
                Event::Mapping(event) => {
                    if let Some(member) = self.roster.get_mut(event.header.tgid) {
                        member.mappings.apply(&event);
                    }
                }
                Event::FaultRange(event) => self.fault_changes.push(Change::Range(event)),
                Event::FaultsPending => self.are_faults_pending = true,
                Event::Refresh { tgid } => {
                    if let Some(member) = self.roster.get_mut(tgid) {
                        member.is_dirty = true;
                    }
                }
                Event::Fork { tgid, parent, epoch, has_executed } => {
                    if self.follow((tgid, parent), epoch, has_executed)? {
                        new.push(tgid);
                    }
                }
                Event::Exec { tgid, time_ns } => {
                    self.fault_changes.push(Change::Exec { tgid, time_ns });
                    self.next_program_of(tgid, time_ns)?;
                }
            }
        }
        // Probes of new processes do not wait for the next look.
        for tgid in new.into_iter().filter_map(NonZeroU32::new) {
            match self.synchronize_one(tgid) {
                Ok(_) => {}
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Attaches the programs that follow mappings, once.
    pub(super) fn follow_mappings(&mut self) {
        if self.hooks.is_some() || self.is_without_mappings {
            return;
        }
        match MappingHooks::attach(&mut self.programs.bpf) {
            Ok(hooks) => self.hooks = Some(hooks),
            Err(error) => {
                self.hints.insert(format!("mappings are not recorded: {error}"));
                self.losses.without_mappings = 1;
                self.is_without_mappings = true;
            }
        }
    }

    /// Whether mappings are recorded.
    pub(super) fn follows_mappings(&self) -> bool {
        self.hooks.is_some()
    }

    /// Compares the books that want it with what the kernel says. The ring is emptied before and behind.
    fn look_at_mappings(&mut self, wants: impl Fn(&MappingBook) -> bool) -> Result<(), RecordError> {
        let Some(hooks) = &self.hooks else { return Ok(()) };
        let skipped = hooks.skipped_runs(&self.programs.bpf)?;
        let has_skipped = skipped > self.losses.skipped_mapping_runs;
        self.losses.skipped_mapping_runs = skipped;
        self.look(|book| has_skipped || wants(book), Some(has_skipped))
    }

    /// The same; `has_skipped` is `None` where nobody has asked the kernel.
    fn look(
        &mut self,
        wants: impl Fn(&MappingBook) -> bool,
        has_skipped: Option<bool>,
    ) -> Result<(), RecordError> {
        let wanting = self.roster.alive().filter(|member| wants(&member.mappings));
        let wanting = wanting.map(|member| member.tgid.get());
        let wanting: Vec<u32> = wanting.collect();
        for tgid in wanting {
            self.drain_events()?;
            if let Some(member) = self.roster.get_mut(tgid) {
                member.mappings.begin_look();
            }
            // A process that has just ended says nothing: what it had mapped stays in the book.
            let entries = maps::read(tgid).unwrap_or_default();
            self.drain_events()?;
            if let Some(member) = self.roster.get_mut(tgid) {
                member.mappings.reconcile(&entries, has_skipped);
            }
        }
        Ok(())
    }

    /// Names frames of code that was made at run time while the map still says what they were.
    fn poll_perf_maps(&mut self) {
        for program in self.roster.alive_mut().filter_map(|member| member.programs.last_mut()) {
            // What cannot be read now is tried again, and told of at the end.
            let _ = program.perf_map.as_mut().map(crate::symbolize::PerfMapSource::poll);
        }
    }

    /// Asks the runtimes of those that live which ranges are theirs, for what they have mapped.
    fn ask_runtimes(&mut self) {
        let maps_something = |member: &&mut Member| member.mappings.sites().next().is_some();
        for member in self.roster.alive_mut().filter(maps_something) {
            let Some(runtime) = &member.program().target.runtime else { continue };
            let tgid = member.tgid.get();
            member.regions =
                maps::read(tgid).ok().and_then(|entries| managed::regions(tgid, runtime, &entries));
        }
    }

    /// One line of every series.
    fn sample(&mut self, elapsed: Duration, is_last: bool) -> Result<(), RecordError> {
        self.drain_events()?;
        self.look_at_mappings(MappingBook::wants_look)?;
        if self.faults.as_ref().is_some_and(FaultLens::is_attached) {
            self.look_at_faults(false)?;
        }
        self.poll_perf_maps();
        self.ends.purge(self.programs.live.fd().as_fd(), &mut self.ended, &mut self.ages)?;
        let elapsed_ns = nanoseconds(elapsed);
        self.progress = Progress {
            elapsed,
            processes: u32::try_from(self.roster.len()).unwrap_or(u32::MAX),
            sites: self.programs.site_count()?.min(self.options.limits.max_sites - 1),
            rss_bytes: self.progress.rss_bytes,
            ..Progress::default()
        };
        let mapped: HashMap<u32, SiteCounters> =
            self.roster.all().flat_map(|member| member.mappings.sites()).collect();
        let touched = self.faults.as_ref().map(FaultLens::counters).unwrap_or_default();
        let weighing = self.options.weighing();
        let mut changed = Vec::new();
        for site in 0..=self.progress.sites {
            let Some(now) = self.programs.sites.get(site) else { break };
            let mut now = weighing.counters(now);
            if let Some(ended) = self.ended.get(&site) {
                now.freed_bytes = now.freed_bytes.saturating_add(ended.bytes);
                now.freed_count = now.freed_count.saturating_add(ended.count());
            }
            self.progress.outstanding_bytes += now.allocated_bytes.saturating_sub(now.freed_bytes);
            self.progress.outstanding_count += now.allocated_count.saturating_sub(now.freed_count);
            if let Some(mapped) = mapped.get(&site) {
                now = *mapped;
            }
            if let Some(touched) = touched.get(&site) {
                // That of lost stacks belongs to all lenses.
                now.allocated_bytes += touched.allocated_bytes;
                now.allocated_count += touched.allocated_count;
                now.freed_bytes += touched.freed_bytes;
                now.freed_count += touched.freed_count;
            }
            let last = &mut self.last[site as usize];
            if *last != now {
                *last = now;
                changed.push((site, now));
            }
        }
        self.writer.add_samples(elapsed_ns, &changed)?;
        if !is_last {
            self.look_at_memory(elapsed, false)?;
        }
        let mut tallies = self.programs.tallies()?;
        // What was not sampled cannot be told from it: it is not known, and not 0.
        tallies.retain(|(loss, _)| *loss != Loss::UnknownRelease || !weighing.is_estimate());
        let losses = losses::rows(&tallies, &self.own_losses()?);
        self.progress.lost = losses.iter().filter(|loss| loss.is_incomplete).map(|loss| loss.count).sum();
        self.writer.set_losses(&losses)?;
        let account = self.account()?;
        let hits = account.map_or_else(|| self.probe_hits(&tallies), |account| account.cost.hits);
        self.writer.set_overhead(hits, account.map(|account| account.cost.programs_ns as u64))?;
        if let Some(account) = account {
            self.writer.set_budget(&account.into())?;
        }
        self.writer.commit()?;
        Ok(())
    }

    /// Resident memory, and where it lies if that is due.
    fn look_at_memory(&mut self, elapsed: Duration, is_last: bool) -> Result<(), RecordError> {
        self.progress.rss_bytes = None;
        self.sample_rss(nanoseconds(elapsed))?;
        if is_last || self.memory_looks.is_due(elapsed) {
            let running = self.running();
            self.memory_looks.look(&running, elapsed, &mut self.writer)?;
        }
        Ok(())
    }

    /// Programs that run, with their processes.
    fn running(&self) -> Vec<(u32, crate::model::ProcessId)> {
        self.roster.alive().map(|member| (member.tgid.get(), member.program().id)).collect()
    }

    fn own_losses(&self) -> Result<OwnLosses, RecordError> {
        let mut own = self.losses;
        own.skipped_runs = self.programs.skipped_runs(Purpose::Trace)?;
        own.faults = self.fault_losses()?;
        for member in self.roster.all() {
            own.mappings.add(&member.mappings.tallies());
            // Go's own memory comes from mappings only.
            own.without_allocator += u64::from(member.absence.is_some_and(|why| why != Absence::Go));
        }
        Ok(own)
    }

    fn probe_hits(&self, tallies: &[(Loss, Tally)]) -> u64 {
        let mut mapped: HashSet<u32> =
            self.roster.all().flat_map(|member| member.mappings.sites().map(|(site, _)| site)).collect();
        mapped.extend(self.faults.iter().flat_map(|lens| lens.counters().into_keys()));
        let calls =
            self.last.iter().zip(0..).filter(|(_, site)| !mapped.contains(site)).map(|(last, _)| last);
        losses::probe_hits(tallies, calls)
    }

    fn sample_rss(&mut self, elapsed_ns: u64) -> Result<(), RecordError> {
        for member in self.roster.alive() {
            let tgid = member.tgid.get();
            if let Some(sample) = rss::sample(tgid, member.program().id, elapsed_ns) {
                self.writer.add_rss(&sample)?;
                *self.progress.rss_bytes.get_or_insert(0) += sample.rss_bytes;
                self.first_rss.entry(tgid).or_insert(sample.rss_bytes);
            }
        }
        Ok(())
    }

    /// Takes the probes off, reads what is left, names the frames, closes the capture.
    fn finish(mut self, reason: EndReason) -> Result<Outcome, RecordError> {
        // Before the probes go, which takes a while: all that is read is the state of now.
        self.programs.stop()?;
        self.end_windows();
        let elapsed = self.started.elapsed();
        self.look_at_memory(elapsed, true)?;
        self.look_at_mappings(|_| true)?;
        self.ask_runtimes();
        self.ask_runtimes_of_faults();
        self.finish_faults()?;
        if let Some(hooks) = &mut self.hooks {
            hooks.detach();
        }
        Links::detach_all(self.roster.all_mut().map(|member| &mut member.links));
        // Nobody is followed any more.
        self.options.follow = false;
        self.refresh()?;
        self.sample(elapsed, true)?;
        let running = self.running();
        self.memory_looks.look_into_heaps(&running, elapsed, &mut self.writer)?;
        live::read_ages(self.programs.live.fd().as_fd(), &mut self.ages)?;
        for member in self.roster.all() {
            member.mappings.add_ages(&mut self.ages);
        }
        let ages = std::mem::replace(&mut self.ages, Ages::new(0, self.options.weighing()));
        self.writer.add_sampled_ages(&ages.sampled())?;
        let (ages, sizes) = ages.into_rows();
        self.writer.add_live_ages(&ages)?;
        self.writer.add_live_sizes(&sizes)?;
        self.writer.add_lifetimes(&live::lifetimes(&self.programs.lifetimes, self.progress.sites))?;
        for object in self.store.take_new_objects() {
            self.writer.add_object(&object)?;
        }
        self.hints.extend(self.store.take_problems());
        // The target's files are parsed from here on, and nothing else of it is read.
        shed(Stage::Naming);
        self.name_frames()?;
        let probe_hits = match self.account()? {
            Some(account) => account.cost.hits,
            None => self.probe_hits(&self.programs.tallies()?),
        };
        self.hints.extend(self.silence(probe_hits));
        for member in self.roster.all() {
            self.hints.extend(member.absence.map(|why| {
                let Target { comm, tgid, .. } = &member.program().target;
                format!(
                    "no allocator was found in process {tgid} (`{comm}`), so only its mappings are here: {}; `--lens \
                     faults` shows by call stack what becomes resident, without an allocator",
                    why.hint()
                )
            }));
        }
        for hint in &self.hints {
            self.writer.add_hint(hint)?;
        }
        self.writer.finish(reason, nanoseconds(elapsed))?;
        for thread in self.retired_links.drain(..) {
            // Detaching cannot fail; a panic there has been printed.
            let _ = thread.join();
        }
        Ok(Outcome {
            output: self.options.output,
            reason,
            progress: self.progress,
            probe_hits,
            hints: self.hints.into_iter().collect(),
        })
    }

    fn name_frames(&mut self) -> Result<(), RecordError> {
        let roster = &self.roster;
        let placed = self.book.place_unknown(|process| roster.space_of(process));
        for frame in &placed {
            self.writer.update_frame(frame)?;
        }
        let programs = self.roster.all_mut().flat_map(|member| &mut member.programs);
        let naming = name_frames(&self.book, &self.store, programs);
        for (frame, locations) in &naming.locations {
            self.writer.set_locations(*frame, locations)?;
        }
        for (id, kind) in naming.kinds {
            if let Some(frame) = self.book.set_kind(id, kind) {
                self.writer.update_frame(frame)?;
            }
        }
        self.hints.extend(naming.hints);
        let locations = naming.locations.iter().map(|(frame, found)| (*frame, found.as_slice())).collect();
        self.classify_mappings(&locations)?;
        self.classify_faults(&locations)
    }

    /// Says of every site of mappings what they are.
    fn classify_mappings(&mut self, locations: &HashMap<FrameId, &[Location]>) -> Result<(), RecordError> {
        let objects = self.book.frames().filter_map(|(frame, ..)| Some((frame.id, frame.object?))).collect();
        let names =
            Names { locations, objects: &objects, paths: &self.store.paths(), allocators: &self.allocators };
        for member in self.roster.all() {
            let ranges = member.mappings.ranges_by_site();
            for (site, facts) in member.mappings.facts() {
                let stack = self.mapping_stacks.get(&site);
                let program = member
                    .programs
                    .iter()
                    .find(|program| stack.is_some_and(|stack| stack.process == program.id))
                    .unwrap_or_else(|| member.program());
                let runtime = program.target.runtime.as_ref();
                let ranges = ranges.get(&site).map_or(&[][..], Vec::as_slice);
                let place = place_of(member.regions.as_deref(), ranges);
                self.writer.set_site_class(&class_of(site, &facts, stack, &names, runtime, place))?;
            }
        }
        Ok(())
    }

    /// The self-test: memory that moves while no probe fires means that the allocator was not found.
    fn silence(&self, probe_hits: u64) -> Option<String> {
        let (tgid, first) = self.first_rss.first_key_value()?;
        let moved = first.abs_diff(self.progress.rss_bytes?);
        let has_probes = self.options.lenses.contains(&Lens::Malloc);
        (has_probes && self.first_rss.len() == 1 && probe_hits == 0 && moved >= SILENT_GROWTH_BYTES).then(|| {
            format!(
                "RSS moved by {} KiB and no probe fired: the program allocates by other means than the functions \
                 that were probed (see `offheap doctor {tgid}`)",
                moved / 1024,
            )
        })
    }

    /// Notes the end of a process in the capture.
    pub(super) fn write_end(
        &mut self,
        row: crate::model::ProcessId,
        end: ProcessEnd,
    ) -> Result<(), RecordError> {
        Ok(self.writer.end_process(row, nanoseconds(self.started.elapsed()), end)?)
    }
}

/// What is needed to follow new processes: a tracefs, and where the tracepoint's record has the flags of the clone.
fn new_tasks() -> Result<(Tracefs, u32), RecordError> {
    let tracefs = Tracefs::open()?;
    let offset = tracefs.field_offset(NEW_TASK, "clone_flags")?;
    Ok((tracefs, offset.ok_or(TracepointError::NoTracepoint { name: NEW_TASK })?))
}
