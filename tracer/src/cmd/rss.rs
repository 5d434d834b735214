//! `offheap rss`: where a process's resident memory lies.

use std::io::Write;

use anyhow::{Context as _, Result};

use super::ExitStatus;
use super::report::unless_closed;
use crate::cli::plan::{LedgerKey, RssFormat, RssPlan};
use crate::ledger::{Depth, LedgerReader};
use crate::model::ProcessId;
use crate::report::{RssOptions, rss_json, rss_text};

/// Columns of the table where the output is no terminal.
const UNKNOWN_WIDTH: usize = 120;

/// Reads the ledger and prints it. What could not be looked at stands in it, and in the status.
///
/// # Errors
/// A process that cannot be looked at says why.
pub fn run(plan: &RssPlan, out: &mut impl Write, _err: &mut impl Write) -> Result<ExitStatus> {
    let depth = if plan.is_quick { Depth::Ranges } else { Depth::Heaps };
    let reading = LedgerReader::new(plan.tgid.get()).read(ProcessId(0), 0, depth)?;
    let options = RssOptions {
        tgid: plan.tgid.get(),
        by_class: plan.by == LedgerKey::Class,
        width: plan.width.map_or(UNKNOWN_WIDTH, usize::from),
    };
    let text = match plan.format {
        RssFormat::Text => rss_text(&reading, &options),
        RssFormat::Json => rss_json(&reading, &options),
    };
    unless_closed(out.write_all(text.as_bytes()).and_then(|()| out.flush())).context("write the ledger")?;
    Ok(ExitStatus::of(reading.gaps.is_empty()))
}
