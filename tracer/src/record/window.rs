//! Windows: the probes of allocating functions come and go, so that a budget is held.

use std::{
    hash::{BuildHasher as _, RandomState},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tracer_common::abi::window;

use super::{
    RecordError,
    budget::{Controller, Cycle, Next, Spent},
    calibrate::{TrapCosts, trap_costs},
    clock::nanoseconds,
    cost::{self, Cost, CpuTime, Statistics},
    link::Retired,
    session::Session,
};
use crate::{attach::probe_kind::ProbeKind, capture::Budget};

/// Length of a cycle. Placing and removing takes links some tenths of a second, perf events as long for each.
const CYCLE: Duration = Duration::from_secs(2);
const PERF_CYCLE: Duration = Duration::from_secs(16);
/// Time between two looks whether probes are off.
const CLOSING_PAUSE: Duration = Duration::from_millis(10);

/// Where a cycle stands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Before its window.
    Before,
    /// In it.
    Open { since: Instant },
    /// Its probes are being taken off.
    Closing,
    /// After it.
    After,
}

/// What is being held, and how.
pub struct Windows {
    controller: Controller,
    traps: TrapCosts,
    _statistics: Statistics,
    cpu: CpuTime,
    /// Tells a window from all others.
    number: u64,
    phase: Phase,
    /// When the phase ends.
    due: Instant,
    cycle_ns: u64,
    open_ns: u64,
    scale: u16,
    /// How long the window of this cycle has been open so far, in ns.
    was_open_ns: u64,
    cycle_start: Instant,
    closing: Option<JoinHandle<()>>,
    /// Sums at the begin of the cycle, at the opening, and while probes were off.
    at_start: (Spent, f64),
    at_opening: Spent,
    open: Spent,
    at_closed: Spent,
    off: Spent,
    /// Sums of all.
    pub seen_ns: u64,
    /// Windows so far.
    pub count: u64,
}

/// What a recording with a budget has cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Account {
    /// Sums.
    pub cost: Cost,
    /// CPU time of the targets, in ns.
    pub cpu_ns: u64,
    /// How long allocations were seen, in ns.
    pub seen_ns: u64,
    /// Windows.
    pub count: u64,
}

impl Windows {
    /// Measures this machine's traps; nothing is open yet.
    ///
    /// # Errors
    /// [`RecordError::System`], and as for a recording.
    pub fn prepare(share: f64, probe_kind: ProbeKind) -> Result<Self, RecordError> {
        let failed = |source| RecordError::System {
            operation: "have the kernel time the programs, which `--max-overhead` needs (CAP_SYS_ADMIN)",
            source,
        };
        let statistics = Statistics::enable().map_err(failed)?;
        let traps = trap_costs(probe_kind)?;
        log::info!("traps cost {traps:?}");
        let cycle = if probe_kind == ProbeKind::Perf { PERF_CYCLE } else { CYCLE };
        let now = Instant::now();
        Ok(Self {
            controller: Controller::new(share, nanoseconds(cycle)),
            traps,
            _statistics: statistics,
            cpu: CpuTime::default(),
            number: 0,
            phase: Phase::After,
            due: now,
            cycle_ns: 0,
            open_ns: 0,
            scale: 0,
            was_open_ns: 0,
            cycle_start: now,
            closing: None,
            at_start: (Spent::default(), 0.0),
            at_opening: Spent::default(),
            open: Spent::default(),
            at_closed: Spent::default(),
            off: Spent::default(),
            seen_ns: 0,
            count: 0,
        })
    }

    /// When there is something to do.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Whether probes of allocations are to be in place.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open { .. })
    }

    /// Cycles follow each other without a gap: what is late in one is not lost to the next.
    fn begin(&mut self, start: Instant, next: (u64, u64, u16), sums: (Spent, f64)) {
        (self.cycle_ns, self.open_ns, self.scale) = next;
        self.cycle_start = start;
        self.was_open_ns = 0;
        self.at_start = sums;
        self.open = Spent::default();
        self.at_closed = sums.0;
        self.off = Spent::default();
        let room = self.cycle_ns.saturating_sub(self.open_ns);
        let before_ns =
            RandomState::new().hash_one(self.number).checked_rem(room.saturating_add(1)).unwrap_or(0);
        self.due = self.cycle_start + Duration::from_nanos(before_ns);
        if !self.is_open() {
            self.phase = Phase::Before;
        }
    }

    /// Where the cycle ends that had a window of this length: the scale of its blocks was right then.
    fn end_of_cycle(&self) -> Instant {
        let length_ns = self.was_open_ns.saturating_mul(u64::from(self.scale)) / 16;
        self.cycle_start + Duration::from_nanos(length_ns)
    }
}

impl Session {
    /// Begins the first window, where there are any.
    pub(super) fn start_windows(&mut self) -> Result<(), RecordError> {
        let Some(mut windows) = self.windows.take() else { return Ok(()) };
        windows.cpu.look(self.roster.alive().map(|member| member.tgid.get()));
        let sums = self.sums(&windows)?;
        if let Next::Window { cycle_ns, open_ns, scale } = windows.controller.first() {
            windows.begin(Instant::now(), (cycle_ns, open_ns, scale), sums);
        }
        // The probes are in place.
        let opened = self.open_window(&mut windows, sums.0);
        self.windows = Some(windows);
        opened
    }

    /// Does what is due; a sentence if the budget cannot be held.
    pub(super) fn turn_window(&mut self) -> Result<Option<String>, RecordError> {
        let Some(mut windows) = self.windows.take() else { return Ok(None) };
        let turned = self.turn(&mut windows);
        self.windows = Some(windows);
        turned
    }

    fn turn(&mut self, windows: &mut Windows) -> Result<Option<String>, RecordError> {
        windows.cpu.look(self.roster.alive().map(|member| member.tgid.get()));
        let sums = self.sums(windows)?;
        match windows.phase {
            Phase::Before => {
                // Probes first: what is counted as seen is seen.
                self.windows_are_open = true;
                self.place_allocations()?;
                let off = sums.0.since(&windows.at_closed);
                add(&mut windows.off, &off);
                self.open_window(windows, sums.0)?;
            }
            Phase::Open { since } => {
                let open_ns = nanoseconds(since.elapsed());
                windows.was_open_ns = open_ns;
                windows.seen_ns = windows.seen_ns.saturating_add(open_ns);
                if windows.open_ns >= windows.cycle_ns {
                    return self.next_cycle(windows, sums);
                }
                self.close_window(windows)?;
            }
            Phase::Closing => {
                if windows.closing.as_ref().is_some_and(|thread| !thread.is_finished()) {
                    windows.due = Instant::now() + CLOSING_PAUSE;
                    return Ok(None);
                }
                windows.closing = None;
                windows.open = sums.0.since(&windows.at_opening);
                windows.at_closed = sums.0;
                windows.phase = Phase::After;
                windows.due = windows.end_of_cycle();
            }
            Phase::After => {
                let off = sums.0.since(&windows.at_closed);
                add(&mut windows.off, &off);
                return self.next_cycle(windows, sums);
            }
        }
        Ok(None)
    }

    /// Judges the cycle that has ended, and begins the next.
    fn next_cycle(
        &mut self,
        windows: &mut Windows,
        sums: (Spent, f64),
    ) -> Result<Option<String>, RecordError> {
        let all = sums.0.since(&windows.at_start.0);
        let is_whole = windows.is_open();
        let (open, base) = if is_whole {
            (all, Spent { cost_ns: sums.1 - windows.at_start.1, ..all })
        } else {
            (windows.open, windows.off)
        };
        let last = Cycle {
            all,
            open_ns: windows.was_open_ns as f64,
            open_span_ns: open.wall_ns,
            open_cost_ns: open.cost_ns,
            base,
        };
        let next = windows.controller.next(&last, &sums.0);
        log::debug!("cycle {last:?}, next {next:?}");
        match next {
            Next::Window { cycle_ns, open_ns, scale } => {
                let goes_on = is_whole && open_ns >= cycle_ns;
                if is_whole && !goes_on {
                    let closed = Instant::now();
                    self.close_window(windows)?;
                    // They go on costing until they are off.
                    windows.wait_for_close();
                    let sums = self.sums(windows)?;
                    windows.phase = Phase::Before;
                    windows.begin(closed, (cycle_ns, open_ns, scale), sums);
                    return Ok(None);
                }
                let start = if is_whole { Instant::now() } else { windows.end_of_cycle() };
                windows.begin(start, (cycle_ns, open_ns, scale), sums);
                if goes_on {
                    windows.phase = Phase::Open { since: windows.cycle_start };
                    windows.due = windows.cycle_start + Duration::from_nanos(open_ns);
                    windows.at_opening = sums.0;
                }
                Ok(None)
            }
            Next::GiveUp { base_share, open_share } => Ok(Some(format!(
                "the budget of `--max-overhead` cannot be held: the probes of releases and resizes, which must stay, cost {:.1} % \
                 of the target's CPU time, and all probes {:.1} %; the probes were taken off. `--lens faults` costs next to \
                 nothing",
                base_share * 100.0,
                open_share * 100.0
            ))),
        }
    }

    fn open_window(&mut self, windows: &mut Windows, sums: Spent) -> Result<(), RecordError> {
        windows.number += 1;
        windows.count += 1;
        windows.at_opening = sums;
        self.programs.set_window(window(windows.number, windows.scale))?;
        let now = Instant::now();
        windows.phase = Phase::Open { since: now };
        self.windows_are_open = true;
        windows.due = now + Duration::from_nanos(windows.open_ns);
        Ok(())
    }

    fn close_window(&mut self, windows: &mut Windows) -> Result<(), RecordError> {
        windows.number += 1;
        self.programs.set_window(window(windows.number, 0))?;
        self.windows_are_open = false;
        let retired: Vec<Retired> =
            self.roster.alive_mut().map(|member| member.links.retire_allocations()).collect();
        windows.closing = Some(std::thread::spawn(move || drop(retired)));
        windows.phase = Phase::Closing;
        windows.due = Instant::now() + CLOSING_PAUSE;
        Ok(())
    }

    /// Sums so far, and of releases alone.
    fn sums(&self, windows: &Windows) -> Result<(Spent, f64), RecordError> {
        let cost = self.cost(windows)?;
        Ok((cost::spent(nanoseconds(self.started.elapsed()), &cost, &windows.cpu), cost.releases_ns))
    }

    fn cost(&self, windows: &Windows) -> Result<Cost, RecordError> {
        Ok(Cost::of(&cost::runs(&self.programs)?, &windows.traps, &self.steps))
    }

    /// The recording ends: nothing is seen any more.
    pub(super) fn end_windows(&mut self) {
        let Some(windows) = &mut self.windows else { return };
        if let Phase::Open { since } = windows.phase {
            windows.seen_ns = windows.seen_ns.saturating_add(nanoseconds(since.elapsed()));
        }
        windows.phase = Phase::After;
    }

    /// What was spent so far; `None` without a budget.
    pub(super) fn account(&mut self) -> Result<Option<Account>, RecordError> {
        let Some(mut windows) = self.windows.take() else { return Ok(None) };
        windows.cpu.look(self.roster.alive().map(|member| member.tgid.get()));
        let cost = self.cost(&windows);
        let open_ns = match windows.phase {
            Phase::Open { since } => nanoseconds(since.elapsed()),
            _ => 0,
        };
        let account = cost.map(|cost| Account {
            cost,
            cpu_ns: windows.cpu.total_ns(),
            seen_ns: windows.seen_ns.saturating_add(open_ns),
            count: windows.count,
        });
        self.windows = Some(windows);
        account.map(Some)
    }
}

impl From<Account> for Budget {
    fn from(account: Account) -> Self {
        Self {
            trap_ns: Some(account.cost.traps_ns as u64),
            target_cpu_ns: Some(account.cpu_ns),
            seen_ns: account.seen_ns,
            window_count: account.count,
        }
    }
}

impl Windows {
    fn wait_for_close(&mut self) {
        if let Some(thread) = self.closing.take() {
            // Detaching cannot fail; a panic there has been printed.
            let _ = thread.join();
        }
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        self.wait_for_close();
    }
}

fn add(sum: &mut Spent, more: &Spent) {
    sum.wall_ns += more.wall_ns;
    sum.cost_ns += more.cost_ns;
    sum.cpu_ns += more.cpu_ns;
}
