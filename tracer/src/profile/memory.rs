//! Where the resident memory of processes lies, what their runtimes say, and what limits them.

use std::collections::{BTreeMap, HashMap};

use crate::capture::{Capture, thinned};
use crate::model::{Ledger, LedgerClass, LedgerRow, MemoryLimit, ProcessId, RuntimeFigure};
use crate::trend::theil_sen;

/// Points of a growth: its cost is their square, for every line of a ledger.
const MAX_POINTS: usize = 100;

/// Where the memory of one process lay at the first and at the last look.
#[derive(Clone, Debug, PartialEq)]
pub struct LedgerSummary {
    /// Looks that were kept.
    pub looks: usize,
    /// Sum of Rss over smaps at the first look.
    pub start_bytes: u64,
    /// Sum of Rss over smaps at the last look; `end_bytes` of the lines add up to it.
    pub end_bytes: u64,
    /// Robust slope of the sum; `None` for fewer than three looks.
    pub growth_bytes_per_s: Option<f64>,
    /// Classes and labels of both looks and of those between, the largest at the end first.
    pub lines: Vec<LedgerLine>,
}

/// One class and label.
#[derive(Clone, Debug, PartialEq)]
pub struct LedgerLine {
    /// As it was at the last look; zeros where it had gone by then.
    pub row: LedgerRow,
    /// Resident at the first look.
    pub start_bytes: u64,
    /// Robust slope of the resident bytes; `None` for fewer than three looks.
    pub growth_bytes_per_s: Option<f64>,
}

/// A figure of a runtime over the recording.
#[derive(Clone, Debug, PartialEq)]
pub struct FigureSummary {
    /// Whose, and its last value.
    pub last: RuntimeFigure,
    /// The first value that could be read; `None` where none could.
    pub start_bytes: Option<u64>,
}

/// By process, the first look first.
pub(super) fn ledgers(capture: &Capture) -> HashMap<ProcessId, LedgerSummary> {
    let mut looks: HashMap<ProcessId, Vec<&Ledger>> = HashMap::new();
    for ledger in &capture.ledgers {
        looks.entry(ledger.process).or_default().push(ledger);
    }
    looks.into_iter().filter_map(|(process, looks)| Some((process, summary(&looks)?))).collect()
}

fn summary(looks: &[&Ledger]) -> Option<LedgerSummary> {
    let (first, last) = (looks.first()?, looks.last()?);
    let times_ns: Vec<u64> = looks.iter().map(|look| look.elapsed_ns).collect();
    let kept = thinned(&times_ns);
    let step = kept.len().div_ceil(MAX_POINTS).max(1);
    let points: Vec<&Ledger> =
        kept.iter().step_by(step).filter_map(|index| looks.get(*index).copied()).collect();
    let times_s: Vec<f64> = points.iter().map(|look| look.elapsed_ns as f64 / 1e9).collect();
    let slope = |bytes: &[u64]| {
        theil_sen(&times_s.iter().zip(bytes).map(|(s, bytes)| (*s, *bytes as f64)).collect::<Vec<_>>())
    };
    let mut series: BTreeMap<(LedgerClass, Option<&str>), Vec<u64>> = BTreeMap::new();
    for row in looks.iter().flat_map(|look| &look.rows) {
        series.entry((row.class, row.label.as_deref())).or_insert_with(|| vec![0; points.len()]);
    }
    for (index, look) in points.iter().enumerate() {
        for row in &look.rows {
            let bytes = series.get_mut(&(row.class, row.label.as_deref()));
            if let Some(bytes) = bytes.and_then(|bytes| bytes.get_mut(index)) {
                *bytes = bytes.saturating_add(row.rss_bytes);
            }
        }
    }
    let mut lines: Vec<LedgerLine> = series
        .into_iter()
        .map(|((class, label), bytes)| LedgerLine {
            row: sum(last, class, label),
            start_bytes: sum(first, class, label).rss_bytes,
            growth_bytes_per_s: slope(&bytes),
        })
        .collect();
    lines.sort_by_key(|line| std::cmp::Reverse((line.row.rss_bytes, line.start_bytes)));
    let totals: Vec<u64> = points.iter().map(|look| look.rss_bytes).collect();
    Some(LedgerSummary {
        looks: looks.len(),
        start_bytes: first.rss_bytes,
        end_bytes: last.rss_bytes,
        growth_bytes_per_s: slope(&totals),
        lines,
    })
}

/// What a look says of a class and label; zeros where it has none.
fn sum(look: &Ledger, class: LedgerClass, label: Option<&str>) -> LedgerRow {
    let is_same = |row: &&LedgerRow| row.class == class && row.label.as_deref() == label;
    let mut rows = look.rows.iter().filter(is_same);
    let empty = LedgerRow {
        class,
        label: label.map(str::to_owned),
        mapping_count: 0,
        size_bytes: 0,
        rss_bytes: 0,
        pss_bytes: None,
        swap_bytes: 0,
    };
    let Some(first) = rows.next() else { return empty };
    rows.fold(first.clone(), |sum, row| LedgerRow {
        mapping_count: sum.mapping_count.saturating_add(row.mapping_count),
        size_bytes: sum.size_bytes.saturating_add(row.size_bytes),
        rss_bytes: sum.rss_bytes.saturating_add(row.rss_bytes),
        pss_bytes: sum.pss_bytes.zip(row.pss_bytes).map(|(a, b)| a.saturating_add(b)),
        swap_bytes: sum.swap_bytes.saturating_add(row.swap_bytes),
        ..sum
    })
}

/// The last value of every figure, in the order in which they were seen first.
pub(super) fn figures(capture: &Capture) -> Vec<FigureSummary> {
    let mut index: HashMap<(ProcessId, &str, &str), usize> = HashMap::new();
    let mut figures: Vec<FigureSummary> = Vec::new();
    for figure in &capture.figures {
        let key = (figure.process, figure.source.as_str(), figure.name.as_str());
        let at = *index.entry(key).or_insert(figures.len());
        match figures.get_mut(at) {
            Some(known) => {
                known.start_bytes = known.start_bytes.or(figure.bytes);
                known.last = figure.clone();
            }
            None => figures.push(FigureSummary { last: figure.clone(), start_bytes: figure.bytes }),
        }
    }
    figures
}

/// The last of every limit, the one with the least room first.
pub(super) fn limits(capture: &Capture) -> Vec<MemoryLimit> {
    let mut last: BTreeMap<(ProcessId, &str), &MemoryLimit> = BTreeMap::new();
    for limit in &capture.limits {
        last.insert((limit.process, limit.source.as_str()), limit);
    }
    let mut limits: Vec<MemoryLimit> = last.into_values().cloned().collect();
    limits.sort_by_key(|limit| limit.limit_bytes.saturating_sub(limit.used_bytes.unwrap_or(0)));
    limits
}

/// What looks into memory that the tracer cannot see into: for a heap with a collector, by its label and the
/// name of the runtime.
pub fn advice(class: &str, label: Option<&str>, runtime: Option<&str>) -> Option<&'static str> {
    const ADVICE: [(&[&str], &str); 6] = [
        (&["v8", "node"], "take two heap snapshots and compare them: node --heapsnapshot-signal=SIGUSR2"),
        (&["jvm", "java"], "compare two of: jcmd PID GC.class_histogram"),
        (&["cpython", "python"], "look at Python objects: tracemalloc, or memray attach PID"),
        (&["go"], "look at the Go heap: go tool pprof http://HOST/debug/pprof/heap"),
        (&[".net", "dotnet"], "look at the .NET heap: dotnet-gcdump collect -p PID"),
        (&["luajit", "lua"], "count what Lua holds: collectgarbage(\"count\")"),
    ];
    match class {
        "managed-heap" => {
            let words: Vec<String> = [label, runtime]
                .into_iter()
                .flatten()
                .flat_map(|name| name.split(|letter: char| !letter.is_alphanumeric() && letter != '.'))
                .map(str::to_lowercase)
                .collect();
            let named =
                ADVICE.iter().find(|(names, _)| words.iter().any(|word| names.contains(&word.as_str())));
            Some(named.map_or("look at it with the heap profiler of its runtime", |(_, advice)| advice))
        }
        "allocator-slack" => {
            Some("free inside the allocator: malloc_trim, or fewer arenas (MALLOC_ARENA_MAX), gives it back")
        }
        _ => None,
    }
}
