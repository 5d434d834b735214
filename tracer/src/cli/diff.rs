//! `offheap diff`: what was typed, and what it means.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};

use super::args::{SelectionArgs, choice};
use super::plan::{DiffFormat, Selection};
use super::quantity::{parse_count_in, parse_duration};
use super::resolve::selection;

/// Show what changed between two captures, or between two moments of one.
#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// Capture file
    pub before: PathBuf,

    /// Capture file to compare it with; the same process, a later run of it, or a newer build
    pub after: Option<PathBuf>,

    /// Moment since the start of the recording: given twice, before and after; once, before, and after is the end
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub at: Vec<Duration>,

    /// Table for a person, JSON for a program, flame graph (red grew, blue shrank), or its lines
    #[arg(short, long, default_value = "table", value_parser = choice!(DiffFormat))]
    pub format: DiffFormat,

    /// Call sites to show [default: the largest changes in a table, all else]
    #[arg(long, value_name = "N", value_parser = |text: &str| parse_count_in(text, 1..=10_000_000))]
    pub top: Option<u32>,

    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Overwrite an existing file
    #[arg(long)]
    pub force: bool,

    #[command(flatten)]
    pub selection: SelectionArgs,
}

/// One side of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffSide {
    /// The capture.
    pub file: PathBuf,
    /// Which moment since the start; `None`: the end.
    pub at: Option<Duration>,
}

/// A comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffPlan {
    /// Before.
    pub before: DiffSide,
    /// After.
    pub after: DiffSide,
    /// Form.
    pub format: DiffFormat,
    /// Rows; `None`: those that one reads in the table, all else.
    pub top: Option<usize>,
    /// File that is written; `None`: the standard output.
    pub output: Option<PathBuf>,
    /// Whether an existing file is overwritten.
    pub force: bool,
    /// Which sites.
    pub selection: Selection,
    /// Colours.
    pub color: bool,
    /// Columns of the terminal; `None`: no terminal.
    pub width: Option<u16>,
}

pub(super) fn diff(args: DiffArgs, color: bool, width: Option<u16>) -> Result<DiffPlan, String> {
    let (first, second) = match *args.at.as_slice() {
        [] if args.after.is_none() => {
            return Err(
                "one capture and no moment; give a second capture, or `--at TIME` once or twice".into()
            );
        }
        [] => (None, None),
        [first] if args.after.is_none() => (Some(first), None),
        [_] => {
            return Err(
                "two captures and one moment; give `--at` twice, for before and after, or not at all".into(),
            );
        }
        [first, second] => (Some(first), Some(second)),
        _ => return Err("more than two moments; give `--at` once or twice".into()),
    };
    let after = args.after.unwrap_or_else(|| args.before.clone());
    // The later one may come first: a flame graph shows what is gone only so.
    if after == args.before && first == second {
        return Err("both sides are the same moment of one capture; give two that differ".into());
    }
    Ok(DiffPlan {
        before: DiffSide { file: args.before, at: first },
        after: DiffSide { file: after, at: second },
        format: args.format,
        top: args.top.map(|top| top as usize),
        output: args.output,
        force: args.force,
        selection: selection(args.selection)?,
        color,
        width,
    })
}
