//! `offheap diff`: what changed between two captures.

use std::io::Write;

use anyhow::Context;

use super::ExitStatus;
use super::report::{UNKNOWN_WIDTH, open_at, selected, unless_closed, warn};
use crate::capture::create_file;
use crate::cli::diff::{DiffPlan, DiffSide};
use crate::cli::plan::{DiffFormat, Selection};
use crate::export::{diff_folded, diff_svg};
use crate::profile::{Diff, Profile};
use crate::report::{DEFAULT_DIFF_ROWS, TableOptions, diff_json, diff_table};

/// Writes the comparison to its file, or to `out`. Says on `err` where data is incomplete.
pub fn run(plan: &DiffPlan, out: &mut impl Write, err: &mut impl Write) -> Result<ExitStatus, anyhow::Error> {
    let before = side(&plan.before, &plan.selection)?;
    let after = side(&plan.after, &plan.selection)?;
    let diff = Diff::new(&before, &after);
    // In memory first: a comparison that fails leaves no file, and replaces none.
    let mut bytes = Vec::new();
    match plan.format {
        DiffFormat::Table => {
            let options = TableOptions {
                width: plan.width.map_or(UNKNOWN_WIDTH, usize::from),
                color: plan.color && plan.output.is_none(),
                file: None,
            };
            bytes.extend(diff_table(&diff, plan.top.unwrap_or(DEFAULT_DIFF_ROWS), &options).into_bytes());
        }
        DiffFormat::Json => bytes.extend(diff_json(&diff, plan.top).into_bytes()),
        DiffFormat::Svg => diff_svg(&diff, &mut bytes)?,
        DiffFormat::Folded => diff_folded(&diff, &mut bytes)?,
    }
    match &plan.output {
        Some(path) => create_file(path, plan.force, None)?
            .write_all(&bytes)
            .with_context(|| format!("write `{}`", path.display()))?,
        None => {
            unless_closed(out.write_all(&bytes).and_then(|()| out.flush()))
                .context("write the comparison")?;
        }
    }
    if plan.format != DiffFormat::Table {
        warn(&before, err)?;
        warn(&after, err)?;
    }
    Ok(ExitStatus::of(before.is_complete() && after.is_complete()))
}

fn side(side: &DiffSide, selection: &Selection) -> Result<Profile, anyhow::Error> {
    Ok(Profile::new(open_at(&side.file, side.at)?, selected(selection)?)?)
}
