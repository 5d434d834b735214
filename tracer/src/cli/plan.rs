//! What is to be done, in plain values: every default applied, every rule checked, nothing of clap in it.

use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use super::check::CheckPlan;
use super::diff::DiffPlan;

pub use crate::{
    attach::{scope::Scope, selection::Selection as AllocatorSelection},
    record::Limits,
};

pub use crate::model::MemoryClass;

/// Declares an enumeration that is written as one word on the command line.
macro_rules! choices {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every word, in the order of declaration.
            pub const NAMES: &'static [&'static str] = &[$($word),+];

            /// The word.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// What the word means.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($word => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

choices! {
    /// How much the BPF programs say.
    BpfLogLevel {
        /// What goes wrong.
        Error = "error",
        /// And what is odd.
        Warn = "warn",
        /// And what happens rarely.
        Info = "info",
        /// And what happens often.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

choices! {
    /// How probes are placed.
    ProbeKindKey {
        /// Links for many places where they work (kernel 6.6), else perf events.
        Auto = "auto",
        /// Links for many places.
        Multi = "multi",
        /// A perf event for each place.
        Perf = "perf",
    }
}

choices! {
    /// Form of a report.
    ReportFormat {
        /// For a person.
        Table = "table",
        /// For a program.
        Json = "json",
    }
}

choices! {
    /// Which sites come first.
    SortKey {
        /// Leaks, by how sure and how fast they are; then the rest by bytes.
        Verdict = "verdict",
        /// Those that hold most unfreed bytes.
        Outstanding = "outstanding",
        /// Those that grow fastest.
        Growth = "growth",
        /// Those that hold most unfreed blocks.
        Count = "count",
    }
}

choices! {
    /// What sites are summed by.
    GroupKey {
        /// Nothing: one row per stack.
        Site = "site",
        /// The process.
        Process = "process",
        /// The executable of the process.
        Executable = "executable",
        /// The allocator.
        Allocator = "allocator",
        /// What the memory is.
        Class = "class",
        /// The function that asked for it.
        Function = "function",
        /// The file of that function.
        Object = "object",
        /// The start routine of the thread.
        Thread = "thread",
        /// The requested size, in powers of two.
        SizeClass = "size-class",
    }
}

choices! {
    /// Which end of the stacks a tree begins with.
    TreeKey {
        /// The start of the thread.
        TopDown = "top-down",
        /// The function that asked for the memory.
        BottomUp = "bottom-up",
    }
}

choices! {
    /// How memory was observed.
    LensKey {
        /// Allocator calls.
        Malloc = "malloc",
        /// Mappings.
        Mmap = "mmap",
        /// Page faults: resident memory.
        Faults = "faults",
    }
}

choices! {
    /// Form of the ledger of resident memory.
    RssFormat {
        /// For a person.
        Text = "text",
        /// For a program.
        Json = "json",
    }
}

choices! {
    /// What resident memory is summed by.
    LedgerKey {
        /// The class of memory.
        Class = "class",
        /// Class and name.
        Label = "label",
    }
}

choices! {
    /// Form of an export.
    ExportFormat {
        /// One line per stack, for other tools.
        Folded = "folded",
        /// A flame graph.
        Svg = "svg",
        /// For `go tool pprof` and whatever else reads its format.
        Pprof = "pprof",
        /// For speedscope.
        Speedscope = "speedscope",
        /// What was measured over time, as comma-separated values.
        Csv = "csv",
        /// One page with everything, for a browser; it needs no network.
        Html = "html",
        /// The report for programs.
        Json = "json",
    }
}

choices! {
    /// Form of a comparison.
    DiffFormat {
        /// For a person.
        Table = "table",
        /// For a program.
        Json = "json",
        /// A flame graph.
        Svg = "svg",
        /// One line per stack, with the bytes before and after.
        Folded = "folded",
    }
}

choices! {
    /// Form of what `watch` prints.
    WatchFormat {
        /// For a person.
        Text = "text",
        /// For a program.
        Json = "json",
        /// Every sample.
        Csv = "csv",
    }
}

choices! {
    /// Form of what `check` says.
    CheckFormat {
        /// For a person.
        Text = "text",
        /// For a program.
        Json = "json",
        /// For test runners and what shows their results.
        Junit = "junit",
        /// Commands for a workflow of GitHub Actions.
        Github = "github",
    }
}

choices! {
    /// Whether to use colours.
    ColorChoice {
        /// On a terminal, unless NO_COLOR is set.
        Auto = "auto",
        /// Also into files and pipes.
        Always = "always",
        /// Not at all.
        Never = "never",
    }
}

choices! {
    /// A shell that completions can be made for.
    Shell {
        /// GNU Bash.
        Bash = "bash",
        /// Z shell.
        Zsh = "zsh",
        /// fish.
        Fish = "fish",
    }
}

/// Everything that one call of the program is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// How much is said on the standard error.
    pub verbosity: Verbosity,
    /// Colours on the standard output.
    pub color_stdout: bool,
    /// Colours on the standard error.
    pub color_stderr: bool,
    /// The command.
    pub action: Action,
}

/// How much is said on the standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors only.
    Quiet,
    /// Progress, and what the user must know.
    Normal,
    /// And what was decided, and why.
    Verbose,
    /// And every step.
    Debug,
    /// Everything.
    Trace,
}

/// A command, ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// `offheap record`, `offheap PID`.
    Record(RecordPlan),
    /// `offheap report`.
    Report(ReportPlan),
    /// `offheap export`.
    Export(ExportPlan),
    /// `offheap diff`.
    Diff(DiffPlan),
    /// `offheap rss`.
    Rss(RssPlan),
    /// `offheap watch`.
    Watch(WatchPlan),
    /// `offheap check`.
    Check(Box<CheckPlan>),
    /// `offheap doctor`.
    Doctor {
        /// The process that is looked at, if any.
        tgid: Option<NonZeroU32>,
        /// What is looked for besides the usual.
        selection: AllocatorSelection,
        /// Whether traps are measured.
        calibrates: bool,
    },
    /// `offheap demo`.
    Demo {
        /// Where the flame graph and the capture go.
        output_directory: PathBuf,
    },
    /// `offheap completions`.
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// `offheap man`.
    Man {
        /// The command whose page it is; without, the program's.
        command: Option<String>,
    },
    /// `offheap demo-target`.
    DemoTarget {
        /// How long the program works once it has been told to go.
        duration: Duration,
    },
    /// `offheap pair-target`.
    PairTarget,
    /// `offheap bench-floor`.
    BenchFloor {
        /// The process.
        tgid: NonZeroU32,
        /// How probes are placed.
        probe_kind: ProbeKindKey,
    },
    /// `offheap verify-programs`.
    VerifyPrograms,
    /// `offheap validate-unwind`.
    ValidateUnwind {
        /// The process.
        tgid: NonZeroU32,
        /// Stacks that are compared.
        samples: u32,
    },
}

/// Processes that are recorded at one time if nothing is said.
pub const DEFAULT_MAX_PROCESSES: u32 = 256;

/// Whom to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPlan {
    /// Running processes; never empty.
    Processes(Vec<NonZeroU32>),
    /// Those of a control group or container.
    Scope(Scope),
    /// A program that is started for the recording, with its arguments. Never empty.
    Command(Vec<OsString>),
}

/// A recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordPlan {
    /// Whom.
    pub target: TargetPlan,
    /// How long; `None`: until the target ends or the user stops it.
    pub duration: Option<Duration>,
    /// Time between two points of the series.
    pub interval: Duration,
    /// The capture file; `None`: the recorder chooses, see [`super::default_capture_name`].
    pub output: Option<PathBuf>,
    /// Whether an existing file is overwritten.
    pub force: bool,
    /// Smallest allocation that is booked.
    pub min_size_bytes: u64,
    /// Largest allocation that is booked.
    pub max_size_bytes: u64,
    /// Bounds of the kernel's tables.
    pub limits: Limits,
    /// What is looked at; never empty, nothing twice.
    pub lenses: Vec<LensKey>,
    /// Whether children are recorded too.
    pub follow: bool,
    /// Most processes at one time.
    pub max_processes: u32,
    /// What is looked for besides the usual allocators.
    pub selection: AllocatorSelection,
    /// Log of the BPF programs; `None`: compiled out.
    pub bpf_log: Option<BpfLogLevel>,
    /// How probes are placed.
    pub probe_kind: ProbeKindKey,
    /// Mean bytes from one sampled allocation to the next; `None`: all are booked.
    pub sample_bytes: Option<NonZeroU64>,
    /// Most that tracing may cost, in millionths of the target's CPU time; `None`: whatever it costs.
    pub max_overhead: Option<NonZeroU32>,
    /// Whether the report follows.
    pub then_report: bool,
}

/// A watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchPlan {
    /// Whom; never a command.
    pub target: TargetPlan,
    /// How long; `None`: until the target ends or the user stops it.
    pub duration: Option<Duration>,
    /// Time between two samples.
    pub interval: Duration,
    /// Whether that time grows with the length of the watch.
    pub adapts: bool,
    /// Most processes at one time.
    pub max_processes: u32,
    /// Form of the output.
    pub format: WatchFormat,
    /// The capture file, if one is written.
    pub output: Option<PathBuf>,
    /// Whether an existing file is overwritten.
    pub force: bool,
}

/// Which sites are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Only those seen so.
    pub lens: Option<LensKey>,
    /// Only those of this process, as the host sees it.
    pub process: Option<NonZeroU32>,
    /// Only those of this class.
    pub class: Option<MemoryClass>,
    /// Only those of the allocators of this name.
    pub allocator: Option<String>,
    /// Files of rules that hide sites.
    pub suppressions: Vec<PathBuf>,
    /// Whether the rules of this program hide sites too.
    pub has_built_in_suppressions: bool,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            lens: None,
            process: None,
            class: None,
            allocator: None,
            suppressions: Vec::new(),
            has_built_in_suppressions: true,
        }
    }
}

/// A report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportPlan {
    /// The capture.
    pub file: PathBuf,
    /// Table or JSON.
    pub format: ReportFormat,
    /// Sites that are shown; `None`: all in JSON, as many as one reads in the table.
    pub top: Option<usize>,
    /// Only blocks that were this old at the end; `None`: all, and no ages are needed.
    pub min_age: Option<Duration>,
    /// Which moment since the start; `None`: the end.
    pub at: Option<Duration>,
    /// Order of the sites.
    pub sort: SortKey,
    /// What sites are summed by.
    pub by: GroupKey,
    /// Show a tree, and the least share of a branch in millionths; `None`: a list.
    pub tree: Option<(TreeKey, u32)>,
    /// Whether equal stacks of processes of one executable are one row.
    pub merges_processes: bool,
    /// Which sites.
    pub selection: Selection,
    /// Colours.
    pub color: bool,
    /// Columns of the terminal; `None`: no terminal.
    pub width: Option<u16>,
}

/// A look at where resident memory lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RssPlan {
    /// The process.
    pub tgid: NonZeroU32,
    /// What is summed.
    pub by: LedgerKey,
    /// Text or JSON.
    pub format: RssFormat,
    /// Whether heaps are left alone.
    pub is_quick: bool,
    /// Whether `jcmd` is run.
    pub runs_jcmd: bool,
    /// File that is written; `None`: the standard output.
    pub out: Option<PathBuf>,
    /// Whether an existing file is overwritten.
    pub force: bool,
    /// Columns of the terminal; `None`: no terminal.
    pub width: Option<u16>,
}

/// An export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportPlan {
    /// The capture.
    pub file: PathBuf,
    /// Form.
    pub format: ExportFormat,
    /// Which sites.
    pub selection: Selection,
    /// File that is written; `None`: the standard output.
    pub output: Option<PathBuf>,
    /// Whether an existing file is overwritten.
    pub force: bool,
}
