//! What a recording consists of besides stacks.

use tracer_common::abi::SiteCounters;
pub use tracer_common::abi::StackEnd;

use super::ProcessId;

/// How memory was observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lens {
    /// Allocator calls.
    Malloc,
    /// Mappings that the process asked the kernel for.
    Mmap,
    /// Pages that the kernel gave to the process when it touched them: resident memory.
    Faults,
}

impl Lens {
    /// Every lens.
    pub const ALL: [Self; 3] = [Self::Malloc, Self::Mmap, Self::Faults];

    /// The name used in reports and captures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malloc => "malloc",
            Self::Mmap => "mmap",
            Self::Faults => "faults",
        }
    }

    /// The lens with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|lens| lens.name() == name)
    }
}

/// Counters of one site at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiteSample {
    /// Since the start of the recording.
    pub elapsed_ns: u64,
    /// Site.
    pub site: u32,
    /// Totals since the start of the recording.
    pub counters: SiteCounters,
}

/// Memory of a process at one moment, from `/proc/PID/status`. A field that could not be read is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RssSample {
    /// Whose memory.
    pub process: ProcessId,
    /// Since the start of the recording.
    pub elapsed_ns: u64,
    /// VmRSS.
    pub rss_bytes: u64,
    /// RssAnon.
    pub anonymous_bytes: Option<u64>,
    /// RssFile.
    pub file_bytes: Option<u64>,
    /// RssShmem.
    pub shared_bytes: Option<u64>,
    /// VmSwap.
    pub swap_bytes: Option<u64>,
    /// Pss of smaps_rollup; `None` where it was not asked for, too.
    pub pss_bytes: Option<u64>,
}

/// Blocks of one site that were live at the end of the recording, by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveAge {
    /// Site.
    pub site: u32,
    /// Time of birth since the start of the recording, rounded down to [`LiveAge::RESOLUTION_NS`].
    pub born_ns: u64,
    /// Blocks.
    pub count: u64,
    /// Bytes requested.
    pub bytes: u64,
}

impl LiveAge {
    /// Width of a birth bucket.
    pub const RESOLUTION_NS: u64 = 100_000_000;
}

/// Blocks of a [`LiveAge`] that were seen, where only some are and stand for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampledAge {
    /// Site.
    pub site: u32,
    /// As [`LiveAge::born_ns`].
    pub born_ns: u64,
    /// Blocks that were seen.
    pub count: u64,
}

/// Lifetimes of the freed blocks of one site that were seen, in powers of two; totals since the start of the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Site that the blocks came from.
    pub site: u32,
    /// `floor(log2(lifetime in nanoseconds))`: below [`Lifetime::BUCKETS`].
    pub bucket: u8,
    /// Blocks.
    pub count: u64,
}

impl Lifetime {
    /// Buckets of nanoseconds in 64 bits.
    pub const BUCKETS: u8 = 64;
}

/// Blocks of one site that were live at the end of the recording, by the size that was requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveSize {
    /// Site.
    pub site: u32,
    /// See [`LiveSize::bucket_of`]: at most [`LiveSize::LAST_BUCKET`].
    pub bucket: u8,
    /// Blocks.
    pub count: u64,
    /// Bytes requested.
    pub bytes: u64,
}

impl LiveSize {
    /// The bucket of the largest sizes.
    pub const LAST_BUCKET: u8 = 64;

    /// The bits that a size takes: 0 for none, n for 2^(n-1) to 2^n - 1 bytes.
    pub const fn bucket_of(size_bytes: u64) -> u8 {
        (u64::BITS - size_bytes.leading_zeros()) as u8
    }

    /// Least and largest size of a bucket, in bytes.
    pub const fn sizes(bucket: u8) -> (u64, u64) {
        match bucket {
            0 => (0, 0),
            1..=63 => (1 << (bucket - 1), (1 << bucket) - 1),
            _ => (1 << 63, u64::MAX),
        }
    }
}

/// One line of the loss ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossTally {
    /// Stable name, for instance `live-map-full`.
    pub reason: String,
    /// Events.
    pub count: u64,
    /// Bytes, where the reason has bytes.
    pub bytes: u64,
    /// Whether a count above zero makes the result incomplete.
    pub is_incomplete: bool,
    /// What it means, in one sentence.
    pub meaning: String,
}

/// Why a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The requested duration passed.
    Duration,
    /// The user stopped it.
    Interrupted,
    /// The target exited.
    TargetExited,
    /// What tracing was allowed to cost could not be held.
    OverBudget,
}

impl EndReason {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Duration, Self::Interrupted, Self::TargetExited, Self::OverBudget];

    /// The name used in captures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Duration => "duration",
            Self::Interrupted => "interrupted",
            Self::TargetExited => "target-exited",
            Self::OverBudget => "over-budget",
        }
    }

    /// The reason with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}
