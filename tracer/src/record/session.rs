//! The recording itself: how it is set up, and its one loop over ticks, new stacks, new mappings, new processes, signals and exits.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    num::NonZeroU32,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use tokio::time::MissedTickBehavior;
use tracer_common::abi::SiteCounters;

use super::{
    RecordError,
    classes::MappingStack,
    clock::{monotonic_ns, nanoseconds},
    code_store::CodeStore,
    cost::Steps,
    fault::{Change, FaultLens},
    intake::REFRESH_PAUSE,
    live::{Ages, Amount, Ends},
    load::{LoadOptions, NEW_TASK, Programs, Purpose},
    losses::OwnLosses,
    mapping::{MappingBook, MappingHooks},
    member::Member,
    memory_look::MemoryLooks,
    mmap_watch::MmapWatch,
    options::{Outcome, Progress, RecordOptions, header},
    rights::{Stage, shed},
    roster::Roster,
    stacks::StackBook,
    wait::{Signals, any_readable, clear, until, watched},
    window::Windows,
};
use crate::{
    attach::{
        AttachError,
        discover::Discoverer,
        feature,
        preflight::{self, Facts},
        probe_kind,
        target::TargetProcess,
        tracepoint::{Tracefs, TracepointError},
    },
    capture::CaptureWriter,
    managed,
    model::{EndReason, Lens, Machine, ProcessEnd},
};

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
    pub(super) hooks: Option<MappingHooks>,
    pub(super) is_without_mappings: bool,
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
    pub(super) watches: Vec<MmapWatch>,
    pub(super) book: StackBook,
    pub(super) memory_looks: MemoryLooks,
    pub(super) last: Vec<SiteCounters>,
    pub(super) ended: BTreeMap<u32, Amount>,
    pub(super) ages: Ages,
    pub(super) first_rss: BTreeMap<u32, u64>,
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
        hints.extend(Machine::HOST.reservation().map(|text| format!("{}: {text}", Machine::HOST.name())));
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
