//! What a recording is asked to do, what it shows meanwhile, and what it came to.

use std::{
    num::{NonZeroU32, NonZeroU64},
    path::PathBuf,
    time::Duration,
};

use super::{
    clock::{nanoseconds, realtime_ns},
    load::Limits,
    weighing::Weighing,
};
use crate::{
    attach::{
        probe_kind::{ProbeChoice, ProbeKind},
        scope::Scope,
        selection::Selection,
    },
    capture::{Header, LENS_SETTING, MAX_OVERHEAD_SETTING, Owner, SAMPLE_SETTING},
    model::{EndReason, Lens, Target},
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
    /// Prefixes and objects that the user adds to the allocators that are looked for.
    pub selection: Selection,
    /// Level of the BPF side's log lines.
    pub bpf_log: Option<log::Level>,
    /// Who shall own the capture; `None`: whoever runs this.
    pub owner: Option<Owner>,
    /// What is looked at.
    pub lenses: Vec<Lens>,
    /// Whether children are recorded too.
    pub follow: bool,
    /// Most processes that are recorded at the same time.
    pub max_processes: u32,
    /// How probes are placed.
    pub probe_choice: ProbeChoice,
    /// Processes that join this are recorded too.
    pub scope: Option<Scope>,
    /// Mean bytes from one sampled allocation to the next; `None`: all are booked.
    pub sample_bytes: Option<NonZeroU64>,
    /// Most that tracing may cost, in millionths of the target's CPU time; `None`: whatever it costs.
    pub max_overhead: Option<NonZeroU32>,
}

impl RecordOptions {
    /// How probes are placed; where there are none, nothing need be tried.
    pub(super) fn probe_choice(&self) -> ProbeChoice {
        if self.lenses.contains(&Lens::Malloc) { self.probe_choice } else { ProbeChoice::Perf }
    }

    /// What blocks count for.
    pub(super) fn weighing(&self) -> Weighing {
        Weighing {
            sample_bytes: self.sample_bytes.map_or(0, NonZeroU64::get),
            has_windows: self.max_overhead.is_some(),
        }
    }

    /// The bounds, with as little as can be for what is not looked at.
    pub(super) fn limits_of_lenses(&self) -> Limits {
        let has = |lens| self.lenses.contains(&lens);
        let mut limits = self.limits;
        if !has(Lens::Malloc) {
            limits.max_live_blocks = 1;
        }
        if !has(Lens::Faults) {
            limits.max_fault_pages = 0;
        }
        limits
    }
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
    /// Processes that are recorded now.
    pub processes: u32,
    /// Their resident sets now, summed; pages they share count for each of them.
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

/// What is known at the begin; `target` is the first process.
pub(super) fn header(target: Target, options: &RecordOptions, probe_kind: ProbeKind) -> Header {
    let limits = options.limits;
    let lenses: Vec<&str> = options.lenses.iter().map(|lens| lens.name()).collect();
    let mut settings = vec![
        (LENS_SETTING, lenses.join(",")),
        ("interval_ns", options.interval.as_nanos().to_string()),
        ("min_size_bytes", options.min_size_bytes.to_string()),
        ("max_size_bytes", options.max_size_bytes.to_string()),
        ("max_live_blocks", limits.max_live_blocks.to_string()),
        ("max_sites", limits.max_sites.to_string()),
        ("max_threads", limits.max_threads.to_string()),
        ("stack_ring_bytes", limits.stack_ring_bytes.to_string()),
        ("max_fault_pages", limits.max_fault_pages.to_string()),
        ("follow", u8::from(options.follow).to_string()),
        ("probe_kind", probe_kind.name().to_owned()),
        ("max_processes", options.max_processes.to_string()),
    ];
    settings.extend(options.sample_bytes.map(|bytes| (SAMPLE_SETTING, bytes.to_string())));
    settings.extend(options.max_overhead.map(|share| (MAX_OVERHEAD_SETTING, share.to_string())));
    let system = rustix::system::uname();
    Header {
        target,
        start_realtime_ns: realtime_ns(),
        interval_ns: nanoseconds(options.interval),
        settings: settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        kernel_release: system.release().to_string_lossy().into_owned(),
        offheap_version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: system.machine().to_string_lossy().into_owned(),
    }
}
