//! What was typed. Texts and numbers as clap understands them; what they mean together is in `resolve`.

use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand};

use super::check::CheckArgs;
use super::diff::DiffArgs;
use super::plan::{
    BpfLogLevel, ColorChoice, ExportFormat, GroupKey, LensKey, MemoryClass, ProbeKindKey, ReportFormat,
    Shell, SortKey, TreeKey,
};
use super::quantity::{
    parse_count_in, parse_duration, parse_duration_in, parse_power_of_two_size_in, parse_sample_interval,
    parse_size,
};
use super::rss::RssArgs;

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// Longest prefix of an allocator's functions.
const MAX_PREFIX_BYTES: usize = 256;

/// Parses a word into the value of that name.
macro_rules! choice {
    ($type:ty) => {
        PossibleValuesParser::new(<$type>::NAMES)
            .try_map(|name| <$type>::from_name(&name).ok_or("not one of the possible values"))
    };
}

pub(super) use choice;

/// Finds native and off-heap memory leaks in running processes, from outside, with eBPF.
#[derive(Debug, Parser)]
#[command(
    name = "offheap",
    version,
    about,
    max_term_width = 100,
    after_help = "`offheap PID` records for 30 seconds and prints the report.\n\
                  Exit status: 0 done; 1 failed; 2 usage; 3 done, but data is incomplete;\n\
                  4 `check` found a breach."
)]
pub(super) struct OffheapArgs {
    /// Process to record for 30 seconds and report on
    #[arg(value_name = "PID")]
    pub target: Option<String>,

    /// The same as the argument PID
    #[arg(short = 'p', long = "pid", value_name = "PID")]
    pub pid: Option<String>,

    #[command(flatten)]
    pub allocator: AllocatorArgs,

    #[command(flatten)]
    pub global: GlobalArgs,

    #[command(subcommand)]
    pub command: Option<CommandArgs>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Messages")]
pub(super) struct GlobalArgs {
    /// Say more; up to three times
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,

    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,

    /// When to use colours; NO_COLOR is obeyed
    #[arg(long, value_name = "WHEN", global = true, value_parser = choice!(ColorChoice))]
    pub color: Option<ColorChoice>,

    /// The same as `--color never`
    #[arg(long, global = true, conflicts_with = "color")]
    pub no_color: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Allocators")]
pub(super) struct AllocatorArgs {
    /// Prefix of an allocator's functions: `foo_` for foo_malloc and foo_free; repeatable
    #[arg(long, value_name = "PREFIX", value_parser = parse_prefix)]
    pub allocator_prefix: Vec<String>,

    /// Program or library whose allocator functions to probe even if they do not look like an allocator; repeatable
    #[arg(long, value_name = "PATH")]
    pub object: Vec<PathBuf>,
}

/// A share in percent, as millionths.
fn parse_percent(text: &str) -> Result<u32, String> {
    let percent: Option<f64> = text.trim_end_matches('%').trim_end().parse().ok();
    match percent.filter(|percent| (0.0..=100.0).contains(percent)) {
        Some(percent) => Ok((percent * 1e4).round() as u32),
        None => Err("it is no share between 0 and 100, such as `0.5`".to_owned()),
    }
}

/// A share of CPU time in percent, as millionths.
fn parse_overhead(text: &str) -> Result<NonZeroU32, String> {
    let share = parse_percent(text)?;
    NonZeroU32::new(share)
        .filter(|share| (1_000..=500_000).contains(&share.get()))
        .ok_or_else(|| "it is no share between 0.1 and 50 %, such as `5%`".to_owned())
}

/// A prefix of a symbol's name.
fn parse_prefix(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("it is empty; functions without a prefix are found anyhow".to_owned());
    }
    if text.len() > MAX_PREFIX_BYTES
        || text.contains(|letter: char| letter.is_whitespace() || letter.is_control())
    {
        return Err("it is no part of a symbol's name, such as `foo_`".to_owned());
    }
    Ok(text.to_owned())
}

#[derive(Debug, Subcommand)]
pub(super) enum CommandArgs {
    /// Record a process's allocations into a capture file
    Record(Box<RecordArgs>),
    /// Print which call sites hold unfreed memory
    Report(ReportArgs),
    /// Write a capture in the format of another tool
    Export(ExportArgs),
    /// Show what changed between two captures, or two moments of one
    Diff(DiffArgs),
    /// Say where a process's resident memory lies
    Rss(RssArgs),
    /// Watch the memory of processes, without probes, and say whether it grows
    Watch(super::watch::WatchArgs),

    /// Gate a canary or a test command: fail where memory leaks or grows too fast
    Check(Box<CheckArgs>),
    /// Show what this kernel and a process allow, and what would be attached
    Doctor(DoctorArgs),
    /// Trace a leaking program that is part of offheap
    Demo(DemoArgs),
    /// Print completions for a shell
    #[command(hide = true)]
    Completions(CompletionsArgs),
    /// Print the manual page of offheap, or of a command
    Man(ManArgs),
    /// The program that `demo` traces
    #[command(hide = true)]
    DemoTarget(DemoTargetArgs),
    /// The program that `doctor --calibrate` traces
    #[command(hide = true)]
    PairTarget,
    /// Attach empty programs where offheap would attach its own, until killed
    #[command(hide = true)]
    BenchFloor(BenchFloorArgs),
    /// Compare stacks unwound in the kernel with full DWARF walks
    #[command(hide = true)]
    ValidateUnwind(ValidateUnwindArgs),
    /// Load every BPF program and tell what the kernel says of it
    #[command(hide = true)]
    VerifyPrograms,
}

/// Record a process's allocations into a capture file.
#[derive(Debug, Args)]
#[command(override_usage = "offheap record [OPTIONS] PID...\n       \
                      offheap record [OPTIONS] --cgroup PATH\n       \
                      offheap record [OPTIONS] --container ID\n       \
                      offheap record [OPTIONS] -- COMMAND [ARGUMENT]...")]
pub(super) struct RecordArgs {
    #[command(flatten)]
    pub recording: RecordingArgs,

    /// How long [default: 30s for a process, a command until it ends]
    #[arg(long, help_heading = "What to record", value_parser = |text: &str| parse_duration_in(text, SECOND..=WEEK))]
    pub duration: Option<Duration>,

    /// Capture file [default: offheap-COMM-PID-DATE-TIME.offheap]
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,

    /// Overwrite an existing file
    #[arg(long, help_heading = "Output")]
    pub force: bool,
}

/// Whom to record, and how: of every command that records.
#[derive(Debug, Args)]
pub(super) struct RecordingArgs {
    /// Processes to record
    #[arg(value_name = "PID", help_heading = "Target")]
    pub targets: Vec<String>,

    /// The same as the argument PID
    #[arg(short = 'p', long = "pid", value_name = "PID", help_heading = "Target", action = ArgAction::Append)]
    pub pids: Vec<String>,

    /// All processes of a control group, as `/proc/PID/cgroup` names it, also those that join it
    #[arg(long, value_name = "PATH", help_heading = "Target")]
    pub cgroup: Option<String>,

    /// All processes of a container: docker, containerd, podman, CRI-O; its id or the beginning of it
    #[arg(long, value_name = "ID", help_heading = "Target", conflicts_with = "cgroup")]
    pub container: Option<String>,

    /// Do not record the children of the processes
    #[arg(long, help_heading = "Target")]
    pub no_follow: bool,

    /// Program to start and record from its first instruction
    #[arg(last = true, value_name = "COMMAND", help_heading = "Target")]
    pub command: Vec<OsString>,

    /// Time between two points of the series
    #[arg(
        long,
        default_value = "1s",
        help_heading = "What to record",
        value_parser = |text: &str| parse_duration_in(text, Duration::from_millis(100)..=Duration::from_secs(60))
    )]
    pub interval: Duration,

    /// Smallest allocation to book, such as 64B
    #[arg(long, value_name = "SIZE", help_heading = "What to record", value_parser = parse_size)]
    pub min_size: Option<u64>,

    /// Largest allocation to book, such as 16MiB
    #[arg(long, value_name = "SIZE", help_heading = "What to record", value_parser = parse_size)]
    pub max_size: Option<u64>,

    /// Book one allocation in so many bytes on average, such as 64KiB: results are estimates, with their standard error
    #[arg(long, value_name = "BYTES", help_heading = "What to record", value_parser = parse_sample_interval)]
    pub sample: Option<NonZeroU64>,

    /// Most that tracing may cost, in percent of the target's CPU time: allocations are booked in windows of time
    #[arg(long, value_name = "PERCENT", help_heading = "What to record", value_parser = parse_overhead)]
    pub max_overhead: Option<NonZeroU32>,

    #[command(flatten)]
    pub allocator: AllocatorArgs,

    /// What to look at: allocator calls, mappings, page faults (what becomes resident)
    #[arg(long, value_delimiter = ',', default_value = "malloc,mmap", help_heading = "What to record", value_parser = choice!(LensKey))]
    pub lens: Vec<LensKey>,

    /// Blocks that can be live at one time [default: 1048576]
    #[arg(long, value_name = "N", help_heading = "Limits", value_parser = |text: &str| parse_count_in(text, 1..=100_000_000))]
    pub max_live_blocks: Option<u32>,

    /// Distinct stacks that can be kept [default: 65536]
    #[arg(long, value_name = "N", help_heading = "Limits", value_parser = |text: &str| parse_count_in(text, 2..=4_000_000))]
    pub max_sites: Option<u32>,

    /// Threads that can be inside an allocator at one time [default: 16384]
    #[arg(long, value_name = "N", help_heading = "Limits", value_parser = |text: &str| parse_count_in(text, 1..=4_194_304))]
    pub max_threads: Option<u32>,

    /// Ring in which new stacks travel, a power of two [default: 8MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits", value_parser = |text: &str| parse_power_of_two_size_in(text, 4 << 10..=256 << 20))]
    pub stack_ring: Option<u32>,

    /// Touched pages that can be kept before one block in two, four, … is [default: 16777216]
    #[arg(long, value_name = "N", help_heading = "Limits", value_parser = |text: &str| parse_count_in(text, 4096..=1_000_000_000))]
    pub max_fault_pages: Option<u32>,

    /// Processes that can be recorded at one time
    #[arg(long, value_name = "N", default_value = "256", help_heading = "Limits", value_parser = |text: &str| parse_count_in(text, 1..=1000))]
    pub max_processes: u32,

    /// Log lines of the BPF programs
    #[arg(long, value_name = "LEVEL", help_heading = "BPF", value_parser = choice!(BpfLogLevel))]
    pub bpf_log: Option<BpfLogLevel>,

    /// How probes are placed: one link for many places (kernel 6.6), or a perf event for each
    #[arg(long, value_name = "KIND", default_value = "auto", help_heading = "BPF", value_parser = choice!(ProbeKindKey))]
    pub probe_kind: ProbeKindKey,
}

/// Print which call sites hold unfreed memory.
#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// Capture file
    pub file: PathBuf,

    /// Table for a person, JSON for a program
    #[arg(short, long, default_value = "table", value_parser = choice!(ReportFormat))]
    pub format: ReportFormat,

    /// Sites to show [default: the largest in a table, all in JSON]
    #[arg(long, value_name = "N", value_parser = |text: &str| parse_count_in(text, 1..=10_000_000))]
    pub top: Option<u32>,

    /// Count only blocks that were at least this old at the end
    #[arg(long, value_name = "AGE", value_parser = parse_duration)]
    pub min_age: Option<Duration>,

    /// The state at this time since the start, instead of the end
    #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with = "min_age")]
    pub at: Option<Duration>,

    /// What comes first: leaks, most bytes, fastest growth, most blocks
    #[arg(long, value_name = "KEY", default_value = "verdict", value_parser = choice!(SortKey))]
    pub sort: SortKey,

    /// Sum by what sites have in common: the culprit's function or object, the thread's start routine (not its id), the
    /// block's size (powers of two)
    #[arg(long, value_name = "KEY", default_value = "site", value_parser = choice!(GroupKey))]
    pub by: GroupKey,

    /// Show call sites as a tree: from the start of the threads down, or from the functions that asked for memory up
    #[arg(long, value_name = "DIRECTION", value_parser = choice!(TreeKey), conflicts_with_all = ["by", "top"])]
    pub tree: Option<TreeKey>,

    /// Least share of a branch of the tree; what is left out is counted
    #[arg(long, value_name = "PERCENT", default_value = "1", requires = "tree", value_parser = parse_percent)]
    pub tree_min_percent: u32,

    /// Show equal stacks of processes of one executable as one site
    #[arg(long, conflicts_with = "by")]
    pub merge_processes: bool,

    #[command(flatten)]
    pub selection: SelectionArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Selection")]
pub(super) struct SelectionArgs {
    /// Only allocator calls, or only mappings
    #[arg(long, value_parser = choice!(LensKey))]
    pub lens: Option<LensKey>,

    /// Only this process
    #[arg(long, value_name = "PID")]
    pub process: Option<String>,

    /// Only memory of this class; running threads' stacks, arenas, collected heaps, code and runtimes are listed only so
    #[arg(long, value_parser = choice!(MemoryClass))]
    pub class: Option<MemoryClass>,

    /// Only this allocator, such as jemalloc
    #[arg(long, value_name = "NAME")]
    pub allocator: Option<String>,

    #[command(flatten)]
    pub suppressions: SuppressionArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Selection")]
pub(super) struct SuppressionArgs {
    /// Hide call sites that match a line `leak:PATTERN` of this file; may be repeated
    #[arg(long, value_name = "FILE")]
    pub suppressions: Vec<PathBuf>,

    /// Show also what the C library allocates once and keeps
    #[arg(long)]
    pub no_built_in_suppressions: bool,
}

/// Write a capture in the format of another tool.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// Capture file
    pub file: PathBuf,

    /// Form: a page for browsers, a flame graph, or the format of another tool
    #[arg(short, long, value_parser = choice!(ExportFormat))]
    pub format: ExportFormat,

    /// File to write; `-` is standard output [default: -]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Overwrite an existing file
    #[arg(long)]
    pub force: bool,

    #[command(flatten)]
    pub selection: SelectionArgs,
}

/// Show what this kernel and a process allow, and what would be attached.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Process to look at
    #[arg(value_name = "PID")]
    pub target: Option<String>,

    /// Measure what traps cost on this machine, on offheap itself; takes some seconds
    #[arg(long)]
    pub calibrate: bool,

    /// The same as the argument PID
    #[arg(short = 'p', long = "pid", value_name = "PID")]
    pub pid: Option<String>,

    #[command(flatten)]
    pub allocator: AllocatorArgs,
}

/// Trace a leaking program that is part of offheap: record, report, flame graph, and a check of the answer.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Directory for the capture and the flame graph
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub output: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// Shell
    #[arg(value_parser = choice!(Shell))]
    pub shell: Shell,
}

/// Print the manual page of offheap, or of a command.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Command
    pub command: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct DemoTargetArgs {
    /// How long to work
    #[arg(long, default_value = "10s", value_parser = |text: &str| parse_duration_in(text, Duration::from_millis(10)..=WEEK))]
    pub duration: Duration,
}

#[derive(Debug, Args)]
pub(super) struct BenchFloorArgs {
    /// Process
    #[arg(value_name = "PID")]
    pub target: String,

    /// How probes are placed
    #[arg(long, value_name = "KIND", default_value = "auto", value_parser = choice!(ProbeKindKey))]
    pub probe_kind: ProbeKindKey,
}

#[derive(Debug, Args)]
pub(super) struct ValidateUnwindArgs {
    /// Process
    #[arg(value_name = "PID")]
    pub target: String,

    /// Stacks to compare
    #[arg(long, value_name = "N", default_value = "1000", value_parser = |text: &str| parse_count_in(text, 1..=10_000_000))]
    pub samples: u32,
}
