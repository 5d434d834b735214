//! What tracing costs the target, measured: the kernel's statistics of our programs, and what the traps cost on this machine.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use super::{
    RecordError,
    budget::Spent,
    calibrate::TrapCosts,
    link::Role,
    load::{Programs, Purpose},
};
use crate::attach::discover::{Allocator, End};

/// `bpf(BPF_ENABLE_STATS)` and its one kind, run time (kernel 5.8), from include/uapi/linux/bpf.h.
const BPF_ENABLE_STATS: libc::c_int = 32;

/// The kernel counts and times the runs of all BPF programs until this is dropped. It takes two readings of a clock for each run.
pub struct Statistics {
    _hold: OwnedFd,
}

impl Statistics {
    /// Switches them on; they stay on while anybody wants them.
    ///
    /// # Errors
    /// Of the system call; it wants CAP_SYS_ADMIN.
    pub fn enable() -> io::Result<Self> {
        // The arm `enable_stats` of `union bpf_attr`: BPF_STATS_RUN_TIME is 0.
        let kind: u32 = 0;
        // SAFETY: the attribute is alive and of the size given.
        let status =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_ENABLE_STATS, &raw const kind, size_of::<u32>()) };
        let fd = i32::try_from(status).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel has just made the descriptor, nobody else knows it.
        Ok(Self { _hold: unsafe { OwnedFd::from_raw_fd(fd) } })
    }
}

/// Runs of one program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// How often.
    pub count: u64,
    /// How long together, in ns.
    pub time_ns: u64,
}

/// Which of the probed instructions the kernel single-steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    entries: (u32, u32),
    releases: (u32, u32),
}

impl Steps {
    /// Adds the functions of an allocator.
    pub fn add(&mut self, allocator: &Allocator) {
        for probed in &allocator.probed {
            let sums =
                if matches!(probed.end, End::Unneeded) { &mut self.releases } else { &mut self.entries };
            sums.0 += u32::from(!probed.placement.is_emulated);
            sums.1 += 1;
        }
    }

    /// Whether most of a role are. Hits are known by program only, so most stand for all.
    const fn is_stepped(&self, role: Role) -> bool {
        let (stepped, all) = match role {
            Role::Release => self.releases,
            Role::Entry | Role::Return | Role::Exit => self.entries,
        };
        stepped * 2 > all
    }
}

/// Sums since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Hits of probes.
    pub hits: u64,
    /// Time of the programs, in ns.
    pub programs_ns: f64,
    /// Time of the traps, in ns.
    pub traps_ns: f64,
    /// Programs and traps of releases alone, in ns.
    pub releases_ns: f64,
}

impl Cost {
    /// Of what the programs have run, by role.
    pub fn of(runs: &[(Role, Runs)], traps: &TrapCosts, steps: &Steps) -> Self {
        let mut cost = Self::default();
        for (role, runs) in runs {
            let trap_ns = runs.count as f64 * traps.of(*role, steps.is_stepped(*role));
            cost.hits = cost.hits.saturating_add(runs.count);
            cost.programs_ns += runs.time_ns as f64;
            cost.traps_ns += trap_ns;
            if *role == Role::Release {
                cost.releases_ns += runs.time_ns as f64 + trap_ns;
            }
        }
        cost
    }
}

/// What the programs of a recording have run while statistics were on.
///
/// # Errors
/// [`RecordError::System`], [`RecordError::Object`].
pub fn runs(programs: &Programs) -> Result<Vec<(Role, Runs)>, RecordError> {
    // The order of `Purpose::programs`.
    let roles = [Role::Entry, Role::Return, Role::Exit, Role::Release];
    let names = Purpose::Trace.programs();
    roles.into_iter().zip(names).map(|(role, name)| Ok((role, programs.runs(name)?))).collect()
}

/// CPU time of processes, with those that have ended.
#[derive(Clone, Debug, Default)]
pub struct CpuTime {
    /// Process → at the first look, at the last one, in ns.
    of: BTreeMap<u32, (u64, u64)>,
}

impl CpuTime {
    /// Looks at those that live.
    pub fn look(&mut self, tgids: impl Iterator<Item = u32>) {
        for tgid in tgids {
            if let Some(now_ns) = cpu_ns(tgid) {
                self.of.entry(tgid).or_insert((now_ns, now_ns)).1 = now_ns;
            }
        }
    }

    /// What they have used since their first look, in ns.
    pub fn total_ns(&self) -> u64 {
        self.of.values().map(|(first, last)| last.saturating_sub(*first)).fold(0, u64::saturating_add)
    }
}

/// CPU time of all threads of a process, by its clock; `None`: it has gone.
fn cpu_ns(tgid: u32) -> Option<u64> {
    let pid = i32::try_from(tgid).ok()?;
    let mut clock: libc::clockid_t = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both are locals that the calls write.
    let status = unsafe {
        match libc::clock_getcpuclockid(pid, &raw mut clock) {
            0 => libc::clock_gettime(clock, &raw mut time),
            error => error,
        }
    };
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec).ok()?, u64::try_from(time.tv_nsec).ok()?);
    (status == 0).then(|| seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
}

/// Sums for the budget.
pub fn spent(wall_ns: u64, cost: &Cost, cpu: &CpuTime) -> Spent {
    Spent {
        wall_ns: wall_ns as f64,
        cost_ns: cost.programs_ns + cost.traps_ns,
        cpu_ns: cpu.total_ns() as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_add_up_by_role() {
        let traps = TrapCosts { emulated_ns: 500.0, stepped_ns: 9_000.0, return_ns: 400.0, exit_ns: 8_000.0 };
        let runs = |count, time_ns| Runs { count, time_ns };
        let rows = [
            (Role::Entry, runs(10, 1_000)),
            (Role::Return, runs(10, 5_000)),
            (Role::Exit, runs(0, 0)),
            (Role::Release, runs(9, 900)),
        ];
        let cost = Cost::of(&rows, &traps, &Steps::default());
        assert_eq!((cost.hits, cost.programs_ns, cost.traps_ns), (29, 6_900.0, 5_000.0 + 4_000.0 + 4_500.0));
        assert_eq!(cost.releases_ns, 900.0 + 4_500.0);
        let stepped = Steps { entries: (1, 3), releases: (2, 3) };
        assert_eq!(Cost::of(&rows, &traps, &stepped).releases_ns, 900.0 + 81_000.0);
    }

    #[test]
    fn the_own_cpu_time_goes_on() {
        let own = std::process::id();
        let mut cpu = CpuTime::default();
        cpu.look([own].into_iter());
        let first = cpu_ns(own);
        while cpu_ns(own) <= first {}
        cpu.look([own, u32::MAX].into_iter());
        assert!(cpu.total_ns() > 0);
    }
}
