//! The recording itself: one loop over ticks, new stacks, new mappings, signals and the target's exit.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{io::unix::AsyncFd, time::MissedTickBehavior};
use tracer_common::abi::{Loss, SiteCounters, Tally};

use super::{
    RecordError,
    clock::{monotonic_ns, nanoseconds, realtime_ns},
    code::CodeTables,
    event::{self, Event},
    link::{Links, Probe, Role},
    live::{self, Amount},
    load::{Limits, LoadOptions, Programs, Purpose},
    mmap_watch::{Changes, MmapWatch},
    naming::name_frames,
    rss,
    stacks::StackBook,
    wait::{Signals, any_readable, clear, until, watched},
};
use crate::{
    attach::{
        AttachError,
        discover::{Allocator, Discoverer},
        target::TargetProcess,
    },
    capture::{CaptureWriter, Header, Owner},
    model::{EndReason, Frame, LossTally, ProcessId, RssSample, Target},
    symbolize::PerfMapSource,
};

/// What to record.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    /// How long; `None`: until the target exits or the user stops.
    pub duration: Option<Duration>,
    /// Time between two samples.
    pub interval: Duration,
    /// The capture file.
    pub output: PathBuf,
    /// Whether an existing file may be replaced.
    pub force: bool,
    /// Smallest size booked, in bytes.
    pub min_size_bytes: u64,
    /// Largest size booked, in bytes.
    pub max_size_bytes: u64,
    /// Bounds of the kernel's maps.
    pub limits: Limits,
    /// Level of the BPF side's log lines.
    pub bpf_log: Option<log::Level>,
    /// Who shall own the capture; `None`: whoever runs this.
    pub owner: Option<Owner>,
}

/// What a live view may show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Since the start.
    pub elapsed: Duration,
    /// Bytes booked and not freed.
    pub outstanding_bytes: u64,
    /// Blocks booked and not freed.
    pub outstanding_count: u64,
    /// Sites seen.
    pub sites: u32,
    /// Resident set now.
    pub rss_bytes: Option<u64>,
    /// Events counted as losses that make the result incomplete.
    pub lost: u64,
}

/// What a recording came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The capture.
    pub output: PathBuf,
    /// Why it ended.
    pub reason: EndReason,
    /// The last state.
    pub progress: Progress,
    /// Allocations and releases seen.
    pub probe_hits: u64,
    /// Sentences for the user.
    pub hints: Vec<String>,
}

/// Growth of RSS without a single probe hit, in bytes, from which the self-test speaks.
const SILENT_GROWTH_BYTES: u64 = 256 << 10;
/// Shortest time between two looks at the mappings.
const REFRESH_PAUSE: Duration = Duration::from_millis(2);
/// Longest, for a target whose mappings change all the time without new code.
const REFRESH_PAUSE_MAX: Duration = Duration::from_millis(100);

/// A recording that has been set up.
pub struct Session {
    tgid: NonZeroU32,
    target: Target,
    options: RecordOptions,
    discoverer: Discoverer,
    perf_map: Option<PerfMapSource>,
    programs: Programs,
    code: CodeTables,
    links: Links,
    watches: Vec<MmapWatch>,
    book: StackBook,
    writer: CaptureWriter,
    last: Vec<SiteCounters>,
    ended: BTreeMap<u32, Amount>,
    execs: u64,
    watch_losses: u64,
    started: Instant,
    start_ns: u64,
    first_rss: Option<RssSample>,
    progress: Progress,
    hints: Vec<String>,
    dirty: bool,
    refresh_pause: Duration,
}

impl Session {
    /// Reads the target's mappings, builds the tables and loads the programs. Nothing is attached yet.
    ///
    /// # Errors
    /// Everything that can stand in the way of a recording.
    pub fn prepare(process: &TargetProcess, options: RecordOptions) -> Result<Self, RecordError> {
        let target = process.target.clone();
        let tgid = NonZeroU32::new(target.tgid).ok_or(AttachError::NoProcess { tgid: 0 })?;
        let watches = MmapWatch::open_all()?;
        let mut code = CodeTables::new();
        code.survey(tgid)?;
        let load = LoadOptions {
            limits: options.limits,
            tables: code.sizes(),
            min_size_bytes: options.min_size_bytes,
            max_size_bytes: options.max_size_bytes,
            bpf_log: options.bpf_log,
            validate: false,
        };
        let programs = Programs::load(&load, Purpose::Trace)?;
        let header = header(&target, &options);
        let writer = CaptureWriter::create_for(&options.output, options.force, options.owner, &header)?;
        let inner_tgid = target.inner_tgid.unwrap_or(target.tgid);
        let mut hints = Vec::new();
        let perf_map = match PerfMapSource::open(target.tgid, inner_tgid, process.uid) {
            Ok(source) => Some(source),
            Err(error) => {
                hints.push(format!("no names from the perf map: {error}"));
                None
            }
        };
        Ok(Self {
            tgid,
            target,
            discoverer: Discoverer::default(),
            perf_map,
            last: vec![SiteCounters::default(); options.limits.max_sites as usize],
            options,
            programs,
            code,
            links: Links::default(),
            watches,
            book: StackBook::default(),
            writer,
            ended: BTreeMap::new(),
            execs: 0,
            watch_losses: 0,
            started: Instant::now(),
            start_ns: monotonic_ns(),
            first_rss: None,
            progress: Progress::default(),
            hints,
            dirty: false,
            refresh_pause: REFRESH_PAUSE,
        })
    }

    /// Brings the kernel's tables and the probes up to what is mapped now. Tables come before probes.
    /// Returns the number of probes that were added.
    ///
    /// # Errors
    /// Everything that can stand in the way; a process that has exited meanwhile is one of them.
    pub fn synchronize(&mut self) -> Result<usize, RecordError> {
        let changed = self.code.survey(self.tgid)?;
        // Without a free chunk for the new set the old one stays until those of replaced sets come back.
        let is_published = self.code.publish(&mut self.programs, self.tgid)?;
        for object in self.code.take_new_objects() {
            self.writer.add_object(&object)?;
        }
        self.hints.extend(self.code.take_problems());
        self.refresh_pause = if changed && is_published {
            REFRESH_PAUSE
        } else {
            (self.refresh_pause * 2).min(REFRESH_PAUSE_MAX)
        };
        self.dirty |= !is_published;
        if !changed && !self.links.is_empty() {
            return Ok(0);
        }
        let allocators = self.discoverer.discover(self.tgid.get())?;
        let probes: Vec<Probe<'_>> = allocators.iter().flat_map(|allocator| probes_of(allocator)).collect();
        self.links.place(&mut self.programs, Purpose::Trace, self.tgid, &probes)
    }

    /// Refuses to go on without an allocator.
    ///
    /// # Errors
    /// [`AttachError::NoAllocator`].
    pub fn require_probes(&self) -> Result<(), RecordError> {
        if !self.links.is_empty() {
            return Ok(());
        }
        let is_go = self.target.runtime.as_ref().is_some_and(|runtime| runtime.name == "go");
        Err(RecordError::Discover(AttachError::NoAllocator {
            tgid: self.tgid.get(),
            comm: self.target.comm.clone(),
            hint: if is_go {
                "it is a Go program without C code; Go's own heap does not go through malloc and cannot have \
                 return probes: use Go's pprof"
            } else {
                "none of its files defines malloc; a static program must not be stripped of its symbols"
            },
        }))
    }

    /// The process has executed another program before the recording began: nothing of the old one counts.
    pub fn next_program(&mut self, process: &TargetProcess) {
        self.target = process.target.clone();
        self.code.next_program();
    }

    /// Probes in place.
    pub fn probe_count(&self) -> usize {
        self.links.len()
    }

    /// Starts the clock, and records until the duration has passed, `exit` (a pidfd of the target) is readable,
    /// `stop` is done or a signal comes. `ready` is called when the loop stands, `show` after each sample.
    ///
    /// # Errors
    /// What was recorded until then is in the capture.
    pub async fn run(
        mut self,
        exit: OwnedFd,
        stop: impl Future<Output = ()>,
        ready: impl FnOnce(),
        mut show: impl FnMut(&Progress),
    ) -> Result<Outcome, RecordError> {
        let system = |operation| move |source| RecordError::System { operation, source };
        self.start_clock()?;
        let exit = watched(exit).map_err(system("wait for the target"))?;
        let events =
            self.programs.events.as_fd().try_clone_to_owned().map_err(system("poll the event ring"))?;
        let events = watched(events).map_err(system("poll the event ring"))?;
        let watches = self.watch_fds().map_err(system("poll the mapping events"))?;
        let mut stop = std::pin::pin!(stop);
        let mut signals = Signals::new().map_err(system("handle signals"))?;
        let mut tick = tokio::time::interval(self.options.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        ready();
        let deadline = self.options.duration.map(|duration| tokio::time::Instant::now() + duration);
        let reason = loop {
            let pause = self.refresh_pause;
            tokio::select! {
                biased;
                () = signals.any() => break EndReason::Interrupted,
                () = &mut stop => break EndReason::Interrupted,
                _ = exit.readable() => break EndReason::TargetExited,
                () = until(deadline) => break EndReason::Duration,
                guard = events.readable() => {
                    clear(guard);
                    self.drain_events()?;
                }
                () = any_readable(&watches) => self.drain_watches(),
                () = tokio::time::sleep(pause), if self.dirty => self.refresh()?,
                _ = tick.tick() => {
                    self.sample(self.started.elapsed())?;
                    show(&self.progress);
                }
            }
        };
        self.finish(reason)
    }

    fn start_clock(&mut self) -> Result<(), RecordError> {
        self.started = Instant::now();
        self.start_ns = monotonic_ns();
        self.sample(Duration::ZERO)
    }

    fn watch_fds(&self) -> std::io::Result<Vec<AsyncFd<OwnedFd>>> {
        self.watches.iter().map(|watch| watched(watch.as_fd().try_clone_to_owned()?)).collect()
    }

    /// Reads the mapping events of all CPUs.
    fn drain_watches(&mut self) {
        let mut changes = Changes::default();
        self.watches.iter_mut().for_each(|watch| watch.drain(&mut changes));
        self.watch_losses += changes.lost;
        self.dirty |= changes.lost > 0 || changes.tgids.contains(&self.tgid.get());
    }

    fn refresh(&mut self) -> Result<(), RecordError> {
        self.dirty = false;
        match self.synchronize() {
            Ok(_) => Ok(()),
            // The exit is seen by the loop; the state until then is still good.
            Err(RecordError::Discover(error)) if error.is_absent() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes everything out of the event ring.
    fn drain_events(&mut self) -> Result<(), RecordError> {
        self.programs.flush_log();
        let mut events = Vec::new();
        while let Some(item) = self.programs.events.next() {
            events.extend(event::decode(&item));
        }
        for event in events {
            match event {
                Event::Stack { tgid, site, epoch, end, frames, .. } => {
                    let added = self.book.add(self.code.space(), (tgid, epoch), site, &frames, end);
                    for frame in &added.frames {
                        self.writer.add_frame(frame)?;
                    }
                    self.writer.add_stack(&added.stack)?;
                }
                Event::Refresh { tgid } => self.dirty |= tgid == self.tgid.get(),
                Event::Exec { tgid, time_ns } => self.end_program(tgid, time_ns)?,
            }
        }
        Ok(())
    }

    /// Exec ends all records of a process.
    fn end_program(&mut self, tgid: u32, time_ns: u64) -> Result<(), RecordError> {
        for (site, amount) in live::end_by_exec(self.programs.live.fd().as_fd(), tgid, time_ns)? {
            let sum = self.ended.entry(site).or_default();
            sum.bytes = sum.bytes.saturating_add(amount.bytes);
            sum.count += amount.count;
        }
        self.execs += 1;
        self.code.next_program();
        self.dirty = true;
        Ok(())
    }

    /// One line of every series.
    fn sample(&mut self, elapsed: Duration) -> Result<(), RecordError> {
        self.drain_events()?;
        let elapsed_ns = nanoseconds(elapsed);
        self.progress = Progress { elapsed, ..Progress::default() };
        let site_count = self.programs.site_count.get(&0, 0).map_err(|source| RecordError::Map {
            operation: "read",
            map: "SITE_COUNT",
            source,
        })?;
        self.progress.sites = site_count.min(self.options.limits.max_sites - 1);
        let mut changed = Vec::new();
        for site in 0..=self.progress.sites {
            let Some(mut now) = self.programs.sites.get(site) else { break };
            if let Some(ended) = self.ended.get(&site) {
                now.freed_bytes = now.freed_bytes.saturating_add(ended.bytes);
                now.freed_count = now.freed_count.saturating_add(ended.count);
            }
            self.progress.outstanding_bytes += now.allocated_bytes.saturating_sub(now.freed_bytes);
            self.progress.outstanding_count += now.allocated_count.saturating_sub(now.freed_count);
            let last = &mut self.last[site as usize];
            if *last != now {
                *last = now;
                changed.push((site, now));
            }
        }
        self.writer.add_samples(elapsed_ns, &changed)?;
        if let Some(sample) = rss::sample(ProcessId(0), self.tgid.get(), elapsed_ns) {
            self.writer.add_rss(&sample)?;
            self.progress.rss_bytes = Some(sample.rss_bytes);
            self.first_rss.get_or_insert(sample);
        }
        let tallies = self.programs.tallies()?;
        let losses = self.loss_rows(&tallies)?;
        self.progress.lost = losses.iter().filter(|loss| loss.is_incomplete).map(|loss| loss.count).sum();
        self.writer.set_losses(&losses)?;
        self.writer.set_overhead(self.probe_hits(&tallies), None)?;
        self.writer.commit()?;
        Ok(())
    }

    fn loss_rows(&self, tallies: &[(Loss, Tally)]) -> Result<Vec<LossTally>, RecordError> {
        let own = |reason: &str, count, is_incomplete, meaning: &str| LossTally {
            reason: reason.to_owned(),
            count,
            bytes: 0,
            is_incomplete,
            meaning: meaning.to_owned(),
        };
        let kernel = tallies.iter().map(|(loss, tally)| LossTally {
            bytes: tally.bytes,
            ..own(loss.name(), tally.count, loss.is_incomplete(), loss.meaning())
        });
        Ok(kernel
            .chain([
                own(
                    "program-skipped",
                    self.programs.skipped_runs(Purpose::Trace)?,
                    true,
                    "Probe hits at which the kernel did not run the program, because it was running on that CPU \
                     already, preempted in the middle: calls that were not booked, or releases that were missed.",
                ),
                own(
                    "mapping-event-lost",
                    self.watch_losses,
                    false,
                    "Mapping events that the kernel could not deliver; the mappings were read again each time.",
                ),
            ])
            .collect())
    }

    /// Probe hits: two per booked allocation, one per release, and those that booked nothing.
    fn probe_hits(&self, tallies: &[(Loss, Tally)]) -> u64 {
        let booked: u64 = self.last.iter().map(|site| 2 * site.allocated_count + site.freed_count).sum();
        let beside: u64 = tallies
            .iter()
            .map(|(loss, tally)| match loss {
                Loss::UnknownRelease | Loss::UnmatchedReturn | Loss::InFlightFull => tally.count,
                Loss::FailedAllocation | Loss::FilteredSize | Loss::NestedCall | Loss::LiveMapFull => {
                    2 * tally.count
                }
                _ => 0,
            })
            .sum();
        booked + beside
    }

    /// Takes the probes off, reads what is left, names the frames, closes the capture.
    fn finish(mut self, reason: EndReason) -> Result<Outcome, RecordError> {
        // Taken before the probes go, which takes a while: what is read afterwards is the state of now.
        let elapsed = self.started.elapsed();
        self.links.detach();
        if self.dirty && reason != EndReason::TargetExited {
            self.refresh()?;
        }
        self.sample(elapsed)?;
        let ages = live::read_ages(self.programs.live.fd().as_fd(), self.start_ns)?;
        self.writer.add_live_ages(&ages)?;
        for object in self.code.take_new_objects() {
            self.writer.add_object(&object)?;
        }
        self.name_frames()?;
        let probe_hits = self.probe_hits(&self.programs.tallies()?);
        self.hints.extend(self.silence(probe_hits));
        for hint in &self.hints {
            self.writer.add_hint(hint)?;
        }
        self.writer.finish(reason, nanoseconds(elapsed))?;
        Ok(Outcome {
            output: self.options.output,
            reason,
            progress: self.progress,
            probe_hits,
            hints: self.hints,
        })
    }

    fn name_frames(&mut self) -> Result<(), RecordError> {
        let placed: Vec<Frame> = self.book.place_unknown(self.code.space());
        for frame in &placed {
            self.writer.update_frame(frame)?;
        }
        let naming = name_frames(&self.book, &self.code, &self.target, self.perf_map.as_mut());
        for (frame, locations) in &naming.locations {
            self.writer.set_locations(*frame, locations)?;
        }
        for (id, kind) in naming.kinds {
            if let Some(frame) = self.book.set_kind(id, kind) {
                self.writer.update_frame(frame)?;
            }
        }
        self.hints.extend(naming.hints);
        Ok(())
    }

    /// The self-test: memory that moves while no probe fires means that the allocator was not found.
    fn silence(&self, probe_hits: u64) -> Option<String> {
        let (first, last) = (self.first_rss?.rss_bytes, self.progress.rss_bytes?);
        (probe_hits == 0 && first.abs_diff(last) >= SILENT_GROWTH_BYTES).then(|| {
            format!(
                "RSS moved by {} KiB and no probe fired: the program allocates by other means than the functions \
                 that were probed (see `offheap doctor {}`)",
                first.abs_diff(last) / 1024,
                self.tgid
            )
        })
    }
}

fn header(target: &Target, options: &RecordOptions) -> Header {
    let limits = options.limits;
    let settings = [
        ("interval_ns", options.interval.as_nanos().to_string()),
        ("min_size_bytes", options.min_size_bytes.to_string()),
        ("max_size_bytes", options.max_size_bytes.to_string()),
        ("max_live_blocks", limits.max_live_blocks.to_string()),
        ("max_sites", limits.max_sites.to_string()),
        ("max_threads", limits.max_threads.to_string()),
        ("stack_ring_bytes", limits.stack_ring_bytes.to_string()),
    ];
    let system = rustix::system::uname();
    Header {
        target: target.clone(),
        start_realtime_ns: realtime_ns(),
        interval_ns: nanoseconds(options.interval),
        settings: settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        kernel_release: system.release().to_string_lossy().into_owned(),
        offheap_version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: system.machine().to_string_lossy().into_owned(),
    }
}

/// The probes that an allocator's functions need: one at entry, and one at the return where a block is
/// returned, both at the same place.
pub(super) fn probes_of(allocator: &Allocator) -> impl Iterator<Item = Probe<'_>> {
    allocator.probed.iter().flat_map(move |probed| {
        let function = probed.definition.function;
        let roles: &[Role] =
            if function.shape.returns_block() { &[Role::Return, Role::Entry] } else { &[Role::Release] };
        roles.iter().map(move |role| Probe {
            object: allocator.file.file().as_fd(),
            object_key: allocator.key,
            object_path: allocator.file.path(),
            function: function.name,
            file_offset: probed.file_offset(),
            cookie: probed.cookie,
            role: *role,
        })
    })
}
