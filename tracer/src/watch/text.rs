//! What a person reads: a line while it runs, and the verdicts at the end.

use std::fmt::Write as _;

use super::outlook::{Outlook, Reach, per_hour, span};
use super::watcher::{Program, Watch};
use super::{Series, outlook};
use crate::model::{Ledger, LedgerRow, ProcessEnd, Target};
use crate::report::{escape, human::size};
use crate::trend::Kind;

/// Programs that are named one by one in the line while it runs.
const LIVE_NAMES: usize = 3;

/// Rows of the ledger that are named.
const LEDGER_ROWS: usize = 3;
/// Growth of a row that is worth a word.
const LEAST_GROWTH_BYTES: u64 = 256 << 10;

/// `node (1234)`.
pub fn name(target: &Target) -> String {
    format!("{} ({})", escape(&target.comm), target.tgid)
}

/// The state of things in one line.
pub fn live_line(watch: &Watch, elapsed_s: f64) -> String {
    let running: Vec<&Program> = watch.programs().iter().filter(|program| program.end.is_none()).collect();
    let mut line = format!("{}:", span(elapsed_s));
    for program in running.iter().take(LIVE_NAMES) {
        let _ = write!(line, " {} {};", name(&program.process.target), live(&program.series));
    }
    if running.len() > LIVE_NAMES {
        let _ = write!(line, " and {} more, together {};", running.len() - LIVE_NAMES, live(watch.total()));
    }
    line.pop();
    line
}

fn live(series: &Series) -> String {
    let Some(last) = series.last() else { return "no sample yet".to_owned() };
    let outlook = outlook(series, None);
    let swap = last.swap_bytes.filter(|bytes| *bytes > 0).map(|bytes| format!(" + {} swapped", size(bytes)));
    let rate =
        outlook.verdict.evidence.slope.map(|slope| format!(", {}", per_hour(slope))).unwrap_or_default();
    let kind = match outlook.verdict.kind {
        Kind::Undetermined => "not enough yet",
        kind => kind.name(),
    };
    format!("RSS {}{}{rate}, {kind}", size(last.rss_bytes), swap.unwrap_or_default())
}

/// The verdict on every program, then on all of them together where there are several.
pub fn verdicts(watch: &Watch) -> String {
    let mut text = String::new();
    for program in watch.programs() {
        let outlook = outlook(&program.series, program.limit.as_ref());
        let _ = writeln!(text, "{}: {}", name(&program.process.target), outlook.sentence());
        for line in life(watch, program).into_iter().chain(details(&outlook)) {
            let _ = writeln!(text, "  {line}");
        }
        if let Some(line) = program.ledgers.as_ref().and_then(|(first, last)| ledger(first, last)) {
            let _ = writeln!(text, "  {line}");
        }
        if program.end.is_none()
            && let Some(next) = next(&outlook, program.process.target.tgid)
        {
            let _ = writeln!(text, "  {next}");
        }
    }
    if watch.programs().len() > 1 {
        let outlook = outlook(watch.total(), None);
        let _ = writeln!(text, "all together: {}", outlook.sentence());
        for line in details(&outlook) {
            let _ = writeln!(text, "  {line}");
        }
    }
    text
}

/// How it began and ended, where that is worth a line.
fn life(watch: &Watch, program: &Program) -> Option<String> {
    let seconds = |ns: u64| span(ns as f64 / 1e9);
    let mut parts = Vec::new();
    if let Some(before) = program.restart_of {
        let pid = watch.program(before).map(|before| format!(" of {}", before.process.target.tgid));
        let at = seconds(program.process.start_ns);
        parts.push(format!("a restart{}, seen after {at}", pid.unwrap_or_default()));
    } else if program.process.parent.is_some() {
        parts.push(format!("executed after {}", seconds(program.process.start_ns)));
    } else if program.process.start_ns > 0 {
        parts.push(format!("seen first after {}", seconds(program.process.start_ns)));
    }
    if let Some(end) = program.end {
        let what = match end.end {
            ProcessEnd::Exited => "ended",
            ProcessEnd::Executed => "executed another program",
        };
        parts.push(format!("{what} after {}", seconds(end.elapsed_ns)));
    }
    if program.failed_reads > 0 {
        parts.push(format!("{} reads failed", program.failed_reads));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn details(outlook: &Outlook) -> Vec<String> {
    let mut lines = Vec::new();
    let evidence = &outlook.verdict.evidence;
    if let Some((first, last)) = outlook.first.zip(outlook.last) {
        let mut line = format!(
            "RSS {} to {} in {}, {} samples",
            size(first.rss_bytes),
            size(last.rss_bytes),
            span(evidence.span_s),
            evidence.samples
        );
        let pss = outlook.last_pss.and_then(|sample| sample.pss_bytes);
        for (name, bytes) in [("swap", last.swap_bytes), ("PSS", pss)] {
            if let Some(bytes) = bytes.filter(|bytes| *bytes > 0) {
                let _ = write!(line, "; {name} {}", size(bytes));
            }
        }
        lines.push(line);
    }
    if let Some(slope) = evidence.slope {
        let what = if evidence.cycles.is_some() { "floor" } else { "slope" };
        let mut line = format!("{what} {}", per_hour(slope));
        if let Some((low, high)) = evidence.interval {
            let _ = write!(line, " (95 %: {} to {})", per_hour(low), per_hour(high));
        }
        // The surer of the two tests: each knows series that the other does not.
        let tests = [(evidence.trend_p, "Mann–Kendall"), (evidence.drift_p, "mean step")];
        let tests = tests.into_iter().filter_map(|(p, test)| Some((p?, test)));
        if let Some((p, test)) =
            tests.min_by(|a, b| a.0.total_cmp(&b.0)).filter(|_| evidence.cycles.is_none())
        {
            let _ = write!(line, ", {test} {}", probability(p));
        }
        if let Some(cycles) = evidence.cycles {
            let _ = write!(line, ", {cycles} cycles");
        }
        let parts: Vec<String> = outlook
            .parts
            .iter()
            .filter_map(|(name, slope)| Some((name, (*slope)?)))
            .filter(|(_, part)| part.abs() >= 0.05 * slope.abs() && part.abs() * evidence.span_s >= 4096.0)
            .map(|(name, part)| format!("{name} {}", per_hour(part)))
            .collect();
        if !parts.is_empty() {
            let _ = write!(line, "; of it {}", parts.join(", "));
        }
        lines.push(line);
    }
    lines.extend(doubling(outlook).filter(|_| outlook.verdict.kind.is_growth()));
    lines.extend(outlook.reach.as_ref().map(reach));
    lines
}

fn doubling(outlook: &Outlook) -> Option<String> {
    let evidence = &outlook.verdict.evidence;
    let mut parts = Vec::new();
    if let Some(seconds) = evidence.doubling_s {
        parts.push(format!("doubles in {}", span(seconds)));
    }
    if !evidence.doublings_s.is_empty() {
        let times: Vec<String> = evidence.doublings_s.iter().map(|seconds| span(*seconds)).collect();
        let equal = match evidence.doubled_in_equal_times {
            Some(true) => ", in equal times: in proportion to itself",
            Some(false) => ", not in equal times",
            None => "",
        };
        parts.push(format!("has doubled in {}{equal}", times.join(", then ")));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn reach(reach: &Reach) -> String {
    let limit = &reach.limit;
    let percent = reach.used_bytes as f64 / limit.limit_bytes.max(1) as f64 * 100.0;
    let mut line =
        format!("limit {} ({}), {percent:.0} % in use", size(limit.limit_bytes), escape(&limit.source));
    for mark in &reach.marks {
        match (mark.is_passed, mark.in_s) {
            (true, _) => {
                let _ = write!(line, "; over {} %", mark.percent);
            }
            (false, Some(seconds)) => {
                let _ = write!(line, "; {} % in {}", mark.percent, span(seconds));
            }
            (false, None) => {}
        }
    }
    if let Some(seconds) = reach.full_s {
        let _ = write!(line, "; full in {}", span(seconds));
        match reach.full_between_s {
            Some((soonest, Some(latest))) if span(soonest) != span(latest) => {
                let _ = write!(line, " ({} to {})", span(soonest), span(latest));
            }
            Some((soonest, None)) => {
                let _ = write!(line, " (at the soonest {})", span(soonest));
            }
            _ => {}
        }
    }
    line
}

fn next(outlook: &Outlook, tgid: u32) -> Option<String> {
    outlook.verdict.kind.is_growth().then(|| {
        format!("next: `offheap {tgid}` finds the call sites that allocate what is not freed (as root)")
    })
}

/// The classes of memory that grew most between two ledgers.
fn ledger(first: &Ledger, last: &Ledger) -> Option<String> {
    let mut grown: Vec<(u64, &LedgerRow)> = last
        .rows
        .iter()
        .map(|row| {
            let before = first.rows.iter().find(|old| old.class == row.class && old.label == row.label);
            (row.rss_bytes.saturating_sub(before.map_or(0, |row| row.rss_bytes)), row)
        })
        .filter(|(bytes, _)| *bytes >= LEAST_GROWTH_BYTES)
        .collect();
    grown.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    let parts: Vec<String> = grown
        .into_iter()
        .take(LEDGER_ROWS)
        .map(|(bytes, row)| {
            let label = row.label.as_deref().map(|label| format!(" {}", escape(label))).unwrap_or_default();
            format!("{}{label} +{}", row.class.phrase(), size(bytes))
        })
        .collect();
    (!parts.is_empty()).then(|| format!("grown: {}", parts.join(", ")))
}

fn probability(p: f64) -> String {
    if p < 0.0001 { "p < 0.0001".to_owned() } else { format!("p = {p:.4}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LedgerClass, ProcessId};

    #[test]
    fn what_grew_is_named_largest_first() {
        let row = |class, label: Option<&str>, rss_bytes| LedgerRow {
            class,
            label: label.map(str::to_owned),
            mapping_count: 1,
            size_bytes: rss_bytes,
            rss_bytes,
            pss_bytes: None,
            swap_bytes: 0,
        };
        let of = |rows: Vec<LedgerRow>| Ledger { process: ProcessId(0), elapsed_ns: 0, rss_bytes: 0, rows };
        let first = of(vec![row(LedgerClass::Mmap, None, 1 << 20), row(LedgerClass::Kernel, None, 9)]);
        let last = of(vec![
            row(LedgerClass::Mmap, None, 3 << 20),
            row(LedgerClass::Kernel, None, 10),
            row(LedgerClass::ManagedHeap, Some("V8\nheap"), 4 << 20),
        ]);
        let line = ledger(&first, &last);
        assert_eq!(
            line.as_deref(),
            Some("grown: garbage-collected heap V8\\nheap +4.0 MiB, anonymous mappings +2.0 MiB")
        );
        assert_eq!(ledger(&last, &last), None);
    }
}
