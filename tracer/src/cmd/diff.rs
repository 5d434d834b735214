//! `offheap diff`: what changed between two captures.

use std::io::Write;

use anyhow::Context;

use super::ExitStatus;
use super::report::{UNKNOWN_WIDTH, incomplete, open_at, selected, unless_closed};
use crate::capture::create_file;
use crate::cli::diff::{DiffPlan, DiffSide};
use crate::cli::plan::DiffFormat;
use crate::export::{diff_folded, diff_svg};
use crate::profile::{Diff, Filter, Profile};
use crate::report::{DEFAULT_DIFF_ROWS, TableOptions, diff_json, diff_table};

/// Writes the comparison to its file, or to `out`. Says on `err` where data is incomplete.
pub fn run(plan: &DiffPlan, out: &mut impl Write, err: &mut impl Write) -> Result<ExitStatus, anyhow::Error> {
    let mut filter = selected(&plan.selection)?;
    // What is hidden is decided by both sides together.
    let suppressions = std::mem::take(&mut filter.suppressions);
    let before = side(&plan.before, &filter)?;
    let after = side(&plan.after, &filter)?;
    let diff = Diff::new(&before, &after, &suppressions);
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
        for (name, profile) in [("before", &before), ("after", &after)] {
            if let Some(reasons) = incomplete(profile) {
                writeln!(err, "offheap: {name}: data incomplete: {reasons}")?;
            }
        }
    }
    Ok(ExitStatus::of(before.is_complete() && after.is_complete()))
}

fn side(side: &DiffSide, filter: &Filter) -> Result<Profile, anyhow::Error> {
    Ok(Profile::new(open_at(&side.file, side.at)?, filter.clone())?)
}
