//! Gathers from a capture what a verdict on a process rests on.

use std::collections::BTreeMap;

use super::frame::expand;
use super::number::Number;
use super::process_verdict::{JudgedSite, Observed, Points, ProcessVerdict, judge_process};
use super::{Site, SiteKind};
use crate::capture::Capture;
use crate::ledger::SLACK;
use crate::model::{LedgerClass, Lens, ProcessEnd, ProcessId};

/// Processes that are judged, those with most growth first. A verdict costs milliseconds.
const JUDGED: usize = 32;

/// One verdict for each process of the recording, as the last program it ran; the one that matters most comes first.
pub(super) fn judge_processes(
    capture: &Capture,
    lenses: &[Lens],
    sites: &[Site],
    numbers: &[Number<'_>],
) -> Vec<ProcessVerdict> {
    let is_replaced =
        |end: Option<crate::capture::Ended>| end.is_some_and(|ended| ended.how == ProcessEnd::Executed);
    let mut rows: Vec<_> = capture
        .processes
        .iter()
        .filter(|row| !is_replaced(row.ended))
        .map(|row| (row.process.id, memory(capture, row.process.id)))
        .collect();
    let change = |points: &Points| {
        points.first().zip(points.last()).map_or(0.0, |(first, last)| (last.1 - first.1).abs())
    };
    rows.sort_by(|a, b| change(&b.1).total_cmp(&change(&a.1)));
    let mut verdicts: Vec<ProcessVerdict> = rows
        .into_iter()
        .take(JUDGED)
        .map(|(id, memory)| {
            judge_process(&Observed {
                process: id,
                lenses: lenses.to_vec(),
                resident_bytes: memory_at_end(capture, id),
                memory,
                classes: classes(capture, id),
                unfreed: unfreed(capture, numbers, id),
                sites: sites.iter().filter_map(|site| judged(capture, site, id)).collect(),
                retained_bytes: retained_bytes(capture, id),
            })
        })
        .collect();
    verdicts.sort_by(|a, b| weight(b).partial_cmp(&weight(a)).unwrap_or(std::cmp::Ordering::Equal));
    verdicts
}

/// Trouble first, the fastest before the others; then what is not known.
fn weight(verdict: &ProcessVerdict) -> (bool, f64, bool) {
    let growth = verdict.cause().map_or(0.0, |cause| cause.growth_bytes_per_s);
    let is_open = verdict.growth_bytes_per_s().is_some();
    (verdict.kind.is_trouble(), growth, is_open)
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Resident and swapped memory.
fn memory(capture: &Capture, id: ProcessId) -> Points {
    let of = capture.rss.iter().filter(|sample| sample.process == id);
    of.map(|sample| {
        let bytes = sample.rss_bytes.saturating_add(sample.swap_bytes.unwrap_or(0));
        (seconds(sample.elapsed_ns), bytes as f64)
    })
    .collect()
}

fn memory_at_end(capture: &Capture, id: ProcessId) -> Option<u64> {
    capture.rss.iter().rev().find(|sample| sample.process == id).map(|sample| sample.rss_bytes)
}

fn classes(capture: &Capture, id: ProcessId) -> Vec<(LedgerClass, Points)> {
    let looks: Vec<_> = capture.ledgers.iter().filter(|look| look.process == id).collect();
    let mut classes: BTreeMap<LedgerClass, Points> = BTreeMap::new();
    let zeros: Points = looks.iter().map(|look| (seconds(look.elapsed_ns), 0.0)).collect();
    for (index, look) in looks.iter().enumerate() {
        for row in &look.rows {
            let points = classes.entry(row.class).or_insert_with(|| zeros.clone());
            if let Some(point) = points.get_mut(index) {
                point.1 += row.rss_bytes as f64;
            }
        }
    }
    classes.into_iter().collect()
}

/// Blocks that callers hold, whatever the filter.
fn unfreed(capture: &Capture, numbers: &[Number<'_>], id: ProcessId) -> Points {
    let is_wanted = |number: &&Number<'_>| {
        number.lens == Lens::Malloc && number.stack.is_some_and(|stack| stack.process == id)
    };
    let mut bytes = vec![0; capture.series.points_ns.len()];
    for number in numbers.iter().filter(is_wanted) {
        capture.series.add_outstanding(number.number, &mut bytes);
    }
    capture.series.points_ns.iter().zip(bytes).map(|(ns, bytes)| (seconds(*ns), bytes as f64)).collect()
}

/// A judged site of this process. Equal stacks of several processes, merged to one row, count for each with its part.
fn judged(capture: &Capture, site: &Site, id: ProcessId) -> Option<JudgedSite> {
    let verdict = site.verdict.as_ref().filter(|_| site.processes.contains(&id))?;
    let growth_bytes_per_s = verdict.growth_bytes_per_s.unwrap_or(0.0).max(0.0) / site.processes.len() as f64;
    let function = (verdict.kind == SiteKind::Leak)
        .then(|| expand(&site.frames, &capture.frames, &capture.objects).nth(site.culprit))
        .flatten()
        .map(|frame| frame.label());
    Some(JudgedSite { lens: site.lens, class: site.class, kind: verdict.kind, growth_bytes_per_s, function })
}

/// What the last look into the heaps found free.
fn retained_bytes(capture: &Capture, id: ProcessId) -> Option<u64> {
    let is_slack = |figure: &&crate::model::RuntimeFigure| {
        figure.process == id && (figure.source.as_str(), figure.name.as_str()) == SLACK
    };
    capture.figures.iter().rev().find(is_slack)?.bytes
}
