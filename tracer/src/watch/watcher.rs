//! Who is watched, and what was seen of each: starts, ends, programs executed, restarts.

use std::time::{Duration, Instant};

use super::pace::Pace;
use super::proc::{self, Gone, Identity};
use super::series::{MAX_SAMPLES, Series, memory_bytes};
use crate::attach::{AttachError, scope::Scope};
use crate::ledger::limit::{self, Limit};
use crate::model::{Ledger, Process, ProcessEnd, ProcessId, RssSample, RuntimeFigure};

/// Samples of all programs together that memory is kept for.
const MAX_ALL_SAMPLES: usize = 262_144;
/// Programs that are remembered, in multiples of the processes that may be watched at one time.
const REMEMBERED: usize = 4;
/// Part of the time that Pss of all programs may take: one hundredth. The mmap lock of the target is held meanwhile.
const PSS_PAUSES: u32 = 100;
/// Part of the time that the ledgers of all programs may take.
const LEDGER_PAUSES: u32 = 100;
/// Part of the time that looking for members of a group may take.
const SCOPE_PAUSES: u32 = 50;
/// Time between two looks at limits.
const LIMIT_PAUSE: Duration = Duration::from_secs(30);
/// The program that the sum over all stands for.
const TOTAL: ProcessId = ProcessId(u32::MAX);

/// Reads the ledger of a process; `None` where it cannot be read.
pub type LedgerSource = fn(u32) -> Option<(Ledger, Vec<RuntimeFigure>)>;

/// Whom to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// These, as the host numbers them.
    Processes(Vec<u32>),
    /// Who is in a control group or container, also who joins later.
    Scope(Scope),
}

/// How and when a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramEnd {
    /// Since the start of the watch.
    pub elapsed_ns: u64,
    /// How.
    pub end: ProcessEnd,
}

/// One program in one process: an exec or a restart begins another one.
#[derive(Clone, Debug)]
pub struct Program {
    /// Who.
    pub process: Process,
    /// Its samples.
    pub series: Series,
    /// `None` while it runs.
    pub end: Option<ProgramEnd>,
    /// The program that ended before and that this one is a new start of.
    pub restart_of: Option<ProcessId>,
    /// What its memory may grow to.
    pub limit: Option<Limit>,
    /// The first and the last ledger.
    pub ledgers: Option<(Ledger, Ledger)>,
    /// Reads that failed although the process was there.
    pub failed_reads: u64,
    identity: Identity,
    pss: Option<Pace>,
    ledger: Pace,
}

/// What became of somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is watched from now on.
    Started(ProcessId),
    /// It has ended.
    Ended(ProcessId, ProcessEnd),
}

/// What one look brought.
#[derive(Debug, Default)]
pub struct Tick {
    /// One sample per running program.
    pub samples: Vec<RssSample>,
    /// What became of whom, in this order.
    pub changes: Vec<Change>,
    /// Ledgers that were due.
    pub ledgers: Vec<Ledger>,
    /// What runtimes said of themselves then.
    pub figures: Vec<RuntimeFigure>,
    /// CPU time that the look took, without what is done more rarely the dearer it is.
    pub cost: Duration,
    /// CPU time of that.
    paced: Duration,
}

/// A watch.
#[derive(Debug)]
pub struct Watch {
    whom: Whom,
    max_processes: usize,
    ledger_source: Option<LedgerSource>,
    programs: Vec<Program>,
    total: Series,
    next_id: u32,
    scope_pace: Pace,
    limits_due: Duration,
    /// Members of a group that were too many to watch.
    pub left_out: usize,
    /// Programs that ended long ago and are not remembered any more.
    pub forgotten: u64,
}

impl Watch {
    /// Begins with those that are there now.
    ///
    /// # Errors
    /// [`AttachError`]: a process that is not there, is a thread or a kernel thread, or a group without a process.
    pub fn new(
        whom: Whom,
        max_processes: usize,
        ledger_source: Option<LedgerSource>,
    ) -> Result<Self, AttachError> {
        let mut watch = Self {
            max_processes: max_processes.max(1),
            ledger_source,
            programs: Vec::new(),
            total: Series::default(),
            next_id: 0,
            scope_pace: Pace::new(SCOPE_PAUSES),
            limits_due: Duration::ZERO,
            left_out: 0,
            forgotten: 0,
            whom,
        };
        match watch.whom.clone() {
            Whom::Processes(tgids) => {
                for tgid in tgids {
                    let identity = examine(tgid)?;
                    watch.start(tgid, identity, 0, None);
                }
            }
            Whom::Scope(scope) => watch.look_for_members(&scope, Duration::ZERO, &mut Tick::default())?,
        }
        Ok(watch)
    }

    /// Every program that is remembered, in the order in which they began.
    pub fn programs(&self) -> &[Program] {
        &self.programs
    }

    /// A program.
    pub fn program(&self, id: ProcessId) -> Option<&Program> {
        let index = self.programs.binary_search_by_key(&id, |program| program.process.id).ok()?;
        self.programs.get(index)
    }

    /// The memory of all programs together. Pages that they share are counted more than once.
    pub fn total(&self) -> &Series {
        &self.total
    }

    /// How many run.
    pub fn running(&self) -> usize {
        self.programs.iter().filter(|program| program.end.is_none()).count()
    }

    /// Whether there is nobody left to watch, and nobody can join.
    pub fn is_over(&self) -> bool {
        self.can_end() && self.running() == 0
    }

    /// Whether nobody can join.
    pub fn can_end(&self) -> bool {
        matches!(self.whom, Whom::Processes(_))
    }

    /// Reads that failed although the process was there.
    pub fn failed_reads(&self) -> u64 {
        self.programs.iter().map(|program| program.failed_reads).sum()
    }

    /// Looks at everybody once. `now` is since the start of the watch.
    ///
    /// # Errors
    /// [`AttachError`] if `/proc` cannot be listed.
    pub fn tick(&mut self, now: Duration) -> Result<Tick, AttachError> {
        let begin = cpu_time();
        let mut tick = Tick::default();
        if let Whom::Scope(scope) = &self.whom
            && self.scope_pace.is_due(now)
        {
            let scope = scope.clone();
            self.look_for_members(&scope, now, &mut tick)?;
            let took = cpu_time().saturating_sub(begin);
            self.scope_pace.done(now, took);
            tick.paced += took;
        }
        let elapsed_ns = nanoseconds(now);
        // Programs that begin in this look are at the end and get their first sample, too.
        let mut index = 0;
        while index < self.programs.len() {
            self.look_at(index, now, &mut tick);
            index += 1;
        }
        if let Some(sum) = sum(&tick.samples, elapsed_ns) {
            self.total.push(sum);
        }
        if now >= self.limits_due {
            self.limits_due = now + LIMIT_PAUSE;
            self.refresh_limits();
        }
        self.forget();
        tick.cost = cpu_time().saturating_sub(begin).saturating_sub(tick.paced);
        Ok(tick)
    }

    /// Reads the limits of those that run again.
    pub fn refresh_limits(&mut self) {
        for program in self.programs.iter_mut().filter(|program| program.end.is_none()) {
            let found = limit::of_process(program.process.target.tgid, &limit::read_file);
            program.limit = found.or(program.limit.take());
        }
    }

    fn look_at(&mut self, index: usize, now: Duration, tick: &mut Tick) {
        let elapsed_ns = nanoseconds(now);
        let sharers = u32::try_from(self.running()).unwrap_or(u32::MAX);
        let Some(program) = self.programs.get_mut(index).filter(|program| program.end.is_none()) else {
            return;
        };
        let (tgid, id) = (program.process.target.tgid, program.process.id);
        let sample = proc::sample(tgid, id, elapsed_ns);
        // Afterwards, so that a sample is not of the program that came after.
        let (end, successor) = match (sample, proc::identity(tgid)) {
            (Ok(sample), Ok(identity)) if identity == program.identity => {
                return program.take(sample, now, sharers, self.ledger_source, tick);
            }
            (Err(Gone::Unreadable(_)), Ok(_)) | (_, Err(Gone::Unreadable(_))) => {
                program.failed_reads += 1;
                return;
            }
            (Ok(sample), Ok(identity)) if identity.is_same_process(&program.identity) => {
                if !program.identity.has_executed(&identity) {
                    program.identity = identity;
                    return program.take(sample, now, sharers, self.ledger_source, tick);
                }
                (ProcessEnd::Executed, Some(identity))
            }
            (Ok(_), Ok(identity)) => (ProcessEnd::Exited, Some(identity)),
            (Err(Gone::Exited), Ok(identity)) if !identity.is_same_process(&program.identity) => {
                (ProcessEnd::Exited, Some(identity))
            }
            (_, _) => (ProcessEnd::Exited, None),
        };
        program.end = Some(ProgramEnd { elapsed_ns, end });
        tick.changes.push(Change::Ended(id, end));
        if let Some(identity) = successor {
            let parent = (end == ProcessEnd::Executed).then_some(id);
            let new = self.start(tgid, identity, elapsed_ns, parent);
            if end == ProcessEnd::Executed && !self.can_end() {
                // A supervisor's child joins the group before it executes the program.
                self.recognise_restart();
            } else if end == ProcessEnd::Exited
                && let Some(program) = self.programs.last_mut()
            {
                program.restart_of = Some(id);
            }
            tick.changes.push(Change::Started(new));
        }
    }

    fn look_for_members(&mut self, scope: &Scope, now: Duration, tick: &mut Tick) -> Result<(), AttachError> {
        let elapsed_ns = nanoseconds(now);
        self.left_out = 0;
        for tgid in scope.members()? {
            let is_known = |program: &Program| program.end.is_none() && program.process.target.tgid == tgid;
            if self.programs.iter().any(is_known) {
                continue;
            }
            if self.running() >= self.max_processes {
                self.left_out += 1;
                continue;
            }
            // Kernel threads, and who has gone meanwhile.
            let Ok(identity) = examine(tgid) else { continue };
            let id = self.start(tgid, identity, elapsed_ns, None);
            self.recognise_restart();
            tick.changes.push(Change::Started(id));
        }
        Ok(())
    }

    /// The newest program may be a new start of one that has ended: the same command line under another process id.
    fn recognise_restart(&mut self) {
        let Some((newest, others)) = self.programs.split_last_mut() else { return };
        let taken: Vec<ProcessId> = others.iter().filter_map(|program| program.restart_of).collect();
        let target = &newest.process.target;
        newest.restart_of = others
            .iter()
            .rev()
            .filter(|other| other.end.is_some_and(|end| end.end == ProcessEnd::Exited))
            .find(|other| {
                let before = &other.process.target;
                !taken.contains(&other.process.id)
                    && (&before.comm, &before.cmdline, &before.exe)
                        == (&target.comm, &target.cmdline, &target.exe)
            })
            .map(|other| other.process.id);
    }

    fn start(
        &mut self,
        tgid: u32,
        identity: Identity,
        start_ns: u64,
        parent: Option<ProcessId>,
    ) -> ProcessId {
        let id = ProcessId(self.next_id);
        self.next_id += 1;
        let capacity = (MAX_ALL_SAMPLES / (REMEMBERED * self.max_processes)).clamp(256, MAX_SAMPLES);
        self.programs.push(Program {
            process: Process { id, parent, target: proc::target(tgid), start_ns },
            series: Series::with_capacity(capacity),
            end: None,
            restart_of: None,
            limit: limit::of_process(tgid, &limit::read_file),
            ledgers: None,
            failed_reads: 0,
            identity,
            pss: Some(Pace::new(PSS_PAUSES)),
            ledger: Pace::new(LEDGER_PAUSES),
        });
        id
    }

    /// Drops programs that ended first where there are too many.
    fn forget(&mut self) {
        let mut excess = self.programs.len().saturating_sub(REMEMBERED * self.max_processes);
        if excess > 0 {
            let forgotten = &mut self.forgotten;
            self.programs.retain(|program| {
                let drops = excess > 0 && program.end.is_some();
                if drops {
                    excess -= 1;
                    *forgotten += 1;
                }
                !drops
            });
        }
    }
}

impl Program {
    /// Books a sample, with what else is due. `sharers` programs share the time that this may take.
    fn take(
        &mut self,
        mut sample: RssSample,
        now: Duration,
        sharers: u32,
        ledgers: Option<LedgerSource>,
        tick: &mut Tick,
    ) {
        let tgid = self.process.target.tgid;
        let before = cpu_time();
        if let Some(pace) = self.pss.as_mut().filter(|pace| pace.is_due(now)) {
            let begin = Instant::now();
            match proc::pss(tgid) {
                Ok(pss_bytes) => {
                    sample.pss_bytes = pss_bytes;
                    pace.done(now, begin.elapsed().saturating_mul(sharers));
                }
                // Without the right to read it there is no use in trying again.
                Err(_) => self.pss = None,
            }
        }
        if let Some(source) = ledgers
            && self.ledger.is_due(now)
        {
            let begin = Instant::now();
            if let Some((ledger, figures)) = source(tgid) {
                let (process, elapsed_ns) = (sample.process, sample.elapsed_ns);
                let ledger = Ledger { process, elapsed_ns, ..ledger };
                tick.figures.extend(figures.into_iter().map(|figure| RuntimeFigure {
                    process,
                    elapsed_ns,
                    ..figure
                }));
                let first = self.ledgers.take().map_or_else(|| ledger.clone(), |(first, _)| first);
                self.ledgers = Some((first, ledger.clone()));
                tick.ledgers.push(ledger);
            }
            self.ledger.done(now, begin.elapsed().saturating_mul(sharers));
        }
        tick.paced += cpu_time().saturating_sub(before);
        self.series.push(sample);
        tick.samples.push(sample);
    }

    /// The last time it was seen.
    pub fn last_seen_ns(&self) -> u64 {
        self.series.last().map_or(self.process.start_ns, |sample| sample.elapsed_ns)
    }
}

/// Refuses what is no process with memory of its own.
fn examine(tgid: u32) -> Result<Identity, AttachError> {
    let status = limit::read_file(std::path::Path::new(&format!("/proc/{tgid}/status"))).unwrap_or_default();
    let leader = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse::<u32>().ok());
    if let Some(leader) = leader.filter(|leader| *leader != tgid) {
        return Err(AttachError::Thread { tid: tgid, tgid: leader });
    }
    let is_zombie = status.lines().any(|line| line.starts_with("State:\tZ"));
    match (proc::identity(tgid), proc::sample(tgid, TOTAL, 0)) {
        (Ok(identity), Ok(_)) => Ok(identity),
        (Ok(_), Err(Gone::Exited)) => Err(AttachError::KernelThread { tgid, comm: proc::target(tgid).comm }),
        (Err(Gone::Exited), _) if is_zombie => Err(AttachError::Zombie { tgid }),
        (Err(Gone::Exited), _) => Err(AttachError::NoProcess { tgid }),
        (Err(Gone::Unreadable(number)), _) | (_, Err(Gone::Unreadable(number))) => Err(AttachError::Proc {
            path: format!("/proc/{tgid}/status"),
            source: std::io::Error::from_raw_os_error(number),
        }),
    }
}

/// All of a look together; parts that one of them does not know are not known.
fn sum(samples: &[RssSample], elapsed_ns: u64) -> Option<RssSample> {
    let first = samples.first()?;
    let add = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
    let start = RssSample { process: TOTAL, elapsed_ns, ..*first };
    Some(samples.iter().skip(1).fold(start, |sum, sample| RssSample {
        rss_bytes: sum.rss_bytes.saturating_add(sample.rss_bytes),
        anonymous_bytes: add(sum.anonymous_bytes, sample.anonymous_bytes),
        file_bytes: add(sum.file_bytes, sample.file_bytes),
        shared_bytes: add(sum.shared_bytes, sample.shared_bytes),
        swap_bytes: add(sum.swap_bytes, sample.swap_bytes),
        pss_bytes: add(sum.pss_bytes, sample.pss_bytes),
        ..sum
    }))
}

/// CPU time of this thread: on a busy machine the time on the wall says little about the cost.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Whole nanoseconds; 584 years fit.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What is judged of a series: seconds and bytes.
pub fn memory_points(series: &Series) -> Vec<(f64, f64)> {
    series.points(|sample| Some(memory_bytes(sample)))
}
