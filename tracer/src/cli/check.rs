//! `offheap check`: what was typed, and what it means.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};

use super::args::{RecordingArgs, SECOND, SuppressionArgs, WEEK, choice};
use super::plan::{CheckFormat, RecordPlan, Selection, TargetPlan};
use super::quantity::{parse_count_in, parse_duration_in, parse_percent_in, parse_rate, parse_size};
use super::resolve::recording;
use crate::profile::{Rate, Rules};
use crate::trend::Floors;

/// How long a process is measured if nothing is said: at 30 s and less, much that is noisy stays open.
const DEFAULT_DURATION: Duration = Duration::from_secs(60);

/// Gate a canary or a test command: fail where memory leaks or grows too fast.
#[derive(Debug, Args)]
#[command(
    override_usage = "offheap check [OPTIONS] PID...\n       \
                      offheap check [OPTIONS] --cgroup PATH\n       \
                      offheap check [OPTIONS] --container ID\n       \
                      offheap check [OPTIONS] -- COMMAND [ARGUMENT]...",
    after_help = "Exit status: 0 passed; 4 a rule is broken; 3 no rule is broken, but data is missing or too little was\n\
                  seen; 1 failed, or the command did; 2 usage. Without a rule, `--max-leak-sites 0` is the rule."
)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    pub recording: RecordingArgs,

    /// How long to measure, after the warm-up [default: 1m for a process, a command until it ends]
    #[arg(long, help_heading = "What to record", value_parser = |text: &str| parse_duration_in(text, SECOND..=WEEK))]
    pub duration: Option<Duration>,

    /// Do not judge what happens in this time from the start
    #[arg(long, value_name = "TIME", help_heading = "What to record", value_parser = |text: &str| parse_duration_in(text, SECOND..=WEEK))]
    pub warm_up: Option<Duration>,

    /// Call sites that may leak
    #[arg(long, value_name = "N", help_heading = "Rules", value_parser = |text: &str| parse_count_in(text, 0..=1_000_000))]
    pub max_leak_sites: Option<u32>,

    /// Leaks that are slower do not count for --max-leak-sites, such as 10KiB/min
    #[arg(long, value_name = "RATE", help_heading = "Rules", value_parser = parse_rate)]
    pub min_leak_rate: Option<Rate>,

    /// How fast what is not freed, and resident memory, may grow, such as 1MiB/min, 64KiB/s, 10MB/h
    #[arg(long, value_name = "RATE", help_heading = "Rules", value_parser = parse_rate)]
    pub max_growth: Option<Rate>,

    /// How fast resident memory may grow [default: as --max-growth]
    #[arg(long, value_name = "RATE", help_heading = "Rules", value_parser = parse_rate)]
    pub max_rss_growth: Option<Rate>,

    /// How much may be allocated and not freed at the end, such as 64KiB: for commands that run to their end
    #[arg(long, value_name = "SIZE", help_heading = "Rules", value_parser = parse_size)]
    pub max_unfreed: Option<u64>,

    /// Capture to compare with: only what is new or worse than there counts
    #[arg(long, value_name = "CAPTURE", help_heading = "Rules")]
    pub baseline: Option<PathBuf>,

    /// How much worse than the baseline is still the same
    #[arg(long, value_name = "PERCENT", default_value = "25%", help_heading = "Rules", value_parser = |text: &str| parse_percent_in(text, 0..=1000))]
    pub tolerance: u32,

    #[command(flatten)]
    pub suppressions: SuppressionArgs,

    /// Text for a person, JSON for a program, JUnit for a test runner, commands for GitHub Actions
    #[arg(short, long, default_value = "text", help_heading = "Output", value_parser = choice!(CheckFormat))]
    pub format: CheckFormat,

    /// File for the result; the text then goes to the standard output [default: standard output]
    #[arg(short, long, visible_alias = "out", value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,

    /// Keep the recording in this capture file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub capture: Option<PathBuf>,

    /// Overwrite existing files
    #[arg(long, help_heading = "Output")]
    pub force: bool,
}

/// A gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckPlan {
    /// The recording, with the warm-up in its duration. Its file is the one that is kept; `None`: none is.
    pub record: RecordPlan,
    /// How long is measured after the warm-up; `None`: until the command ends.
    pub measured: Option<Duration>,
    /// Whether that is what was typed.
    pub is_default_duration: bool,
    /// Time from the start that is not judged.
    pub warm_up: Duration,
    /// What must hold; at least one rule.
    pub rules: Rules,
    /// What it is compared with.
    pub baseline: Option<PathBuf>,
    /// What is hidden.
    pub selection: Selection,
    /// Form of the result.
    pub format: CheckFormat,
    /// File for the result; `None`: the standard output.
    pub output: Option<PathBuf>,
    /// Colours.
    pub color: bool,
    /// Columns of the terminal; `None`: no terminal.
    pub width: Option<u16>,
}

/// Applies defaults and checks rules.
pub(super) fn resolve(args: CheckArgs, color: bool, width: Option<u16>) -> Result<CheckPlan, String> {
    let rules = rules(&args);
    let mut record = recording(args.recording, "check", args.duration, DEFAULT_DURATION)?;
    let measured = record.duration;
    if let Some(measured) = measured.filter(|_| rules.needs_series()) {
        long_enough(measured, record.interval)?;
    }
    let warm_up = args.warm_up.unwrap_or_default();
    record.duration = measured.map(|measured| measured.saturating_add(warm_up));
    (record.output, record.force) = (args.capture, args.force);
    if args.output.is_some() && args.output == record.output {
        return Err("`--output` and `--capture` name the same file; give two".into());
    }
    Ok(CheckPlan {
        is_default_duration: args.duration.is_none() && !matches!(record.target, TargetPlan::Command(_)),
        record,
        measured,
        warm_up,
        rules,
        baseline: args.baseline,
        selection: Selection {
            suppressions: args.suppressions.suppressions,
            has_built_in_suppressions: !args.suppressions.no_built_in_suppressions,
            ..Selection::default()
        },
        format: args.format,
        output: args.output.filter(|path| path.as_os_str() != "-"),
        color,
        width,
    })
}

/// What is not asked for is no rule; if nothing is, nothing may leak.
fn rules(args: &CheckArgs) -> Rules {
    let rules = Rules {
        // Whoever says which leaks count wants none of them.
        max_leak_sites: args.max_leak_sites.or(args.min_leak_rate.map(|_| 0)),
        min_leak_rate: args.min_leak_rate,
        max_growth: args.max_growth,
        max_rss_growth: args.max_rss_growth.or(args.max_growth),
        max_unfreed_bytes: args.max_unfreed,
        tolerance_percent: args.tolerance,
    };
    if rules.is_empty() { Rules { max_leak_sites: Some(0), ..rules } } else { rules }
}

/// Below this, nothing is judged: it is better to know that before.
fn long_enough(measured: Duration, interval: Duration) -> Result<(), String> {
    let steps = u32::try_from(Floors::EXACT.samples.saturating_sub(1)).unwrap_or(u32::MAX);
    let least = Duration::from_secs_f64(Floors::EXACT.span_s).max(interval.saturating_mul(steps));
    if measured >= least {
        return Ok(());
    }
    Err(format!(
        "`--duration` is too short to tell leaks and growth: they need {} samples, at least {} here; lengthen it",
        Floors::EXACT.samples,
        humantime::format_duration(least)
    ))
}
