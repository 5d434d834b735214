//! Where resident memory lies: the ledger, what runtimes say themselves, and limits.

use super::escape;
use super::grid::Column;
use super::head::{line, wrapped};
use super::human::{percent, size};
use super::section::{described, more, section};
use super::table::{Paint, growth};
use crate::model::{LedgerRow, Lens, MemoryLimit};
use crate::profile::{LedgerLine, ProcessKind, ProcessVerdict, Profile, advice};

/// Lines of a ledger, and figures.
const ROWS_SHOWN: usize = 12;
/// Least width of a name.
const NAME_WIDTH: usize = 16;

/// Where the memory of the target lies, where that was looked at.
pub(super) fn ledger(profile: &Profile, width: usize, paint: Paint) -> String {
    let Some(ledger) = profile.ledger() else { return String::new() };
    // What has gone and had not been there at the begin says nothing.
    let lines: Vec<&LedgerLine> =
        ledger.lines.iter().filter(|line| line.row.rss_bytes > 0 || line.start_bytes > 0).collect();
    // The largest and, where these are small, those that changed most.
    let change =
        |index: &usize| lines.get(*index).map_or(0, |line| line.row.rss_bytes.abs_diff(line.start_bytes));
    let mut changed_most: Vec<usize> = (0..lines.len()).filter(|index| change(index) > 0).collect();
    changed_most.sort_by_key(|index| std::cmp::Reverse(change(index)));
    let mut indices: Vec<usize> = changed_most.into_iter().take(ROWS_SHOWN / 3).collect();
    for index in 0..lines.len() {
        if indices.len() < ROWS_SHOWN && !indices.contains(&index) {
            indices.push(index);
        }
    }
    indices.sort_unstable();
    let shown: Vec<&LedgerLine> = indices.iter().filter_map(|index| lines.get(*index).copied()).collect();
    let hidden = lines.len() - shown.len();
    let column =
        |cell: &dyn Fn(&LedgerLine) -> String| shown.iter().map(|line| cell(line)).collect::<Vec<_>>();
    let mut columns = vec![
        Column::number("RSS", column(&|line| size(line.row.rss_bytes))),
        Column::number("share", column(&|line| percent(line.row.rss_bytes, ledger.end_bytes))).dispensable(2),
    ];
    if ledger.looks > 1 {
        columns.push(Column::number("change", column(&|line| changed(line.start_bytes, line.row.rss_bytes))));
        columns.push(Column::word("growth", column(&|line| growth(line.growth_bytes_per_s))).dispensable(1));
    }
    if shown.iter().any(|line| line.row.swap_bytes > 0) {
        columns.push(Column::number("swapped", column(&|line| size(line.row.swap_bytes))).dispensable(3));
    }
    columns.push(Column::name("", NAME_WIDTH, column(&|line| named(&line.row))));
    let title = format!("Where RSS lies: {} in all", size(ledger.end_bytes));
    section(&title, columns, more(hidden, "smaller line", "smaller lines"), width, paint)
}

/// Class and label, safe to print.
fn named(row: &LedgerRow) -> String {
    match &row.label {
        Some(label) => format!("{}: {}", row.class.phrase(), escape(label)),
        None => row.class.phrase().into(),
    }
}

/// What to do about what grew most, if it is a heap with a collector or free inside an allocator; safe to print.
fn advised(profile: &Profile) -> Option<String> {
    let runtime = profile.header.target.runtime.as_ref().map(|runtime| runtime.name.as_str());
    let grown = |line: &&LedgerLine| line.row.rss_bytes.saturating_sub(line.start_bytes);
    let most = profile.ledger().and_then(|ledger| ledger.lines.iter().max_by_key(grown));
    let (what, class, label, bytes) = match most {
        Some(line) => (named(&line.row), line.row.class.name(), line.row.label.as_deref(), grown(&line)),
        None => {
            let row = profile.set_aside.iter().find(|row| row.lens == Lens::Faults)?;
            let label = row.label.as_deref();
            (described(row.class, label.into_iter()), row.class.name(), label, row.outstanding.bytes)
        }
    };
    let advice = advice(class, label, runtime).filter(|_| bytes > 0)?;
    Some(format!("{what} grew by {}, which is not a native leak by itself: {advice}", size(bytes)))
}

/// What runtimes and allocators say about themselves, where that was read.
pub(super) fn figures(profile: &Profile, width: usize, paint: Paint) -> String {
    if profile.figures.is_empty() {
        return String::new();
    }
    let shown: Vec<_> = profile.figures.iter().take(ROWS_SHOWN).collect();
    let value = |bytes: Option<u64>| bytes.map_or_else(|| "not readable".into(), size);
    let change = |start: Option<u64>, end: Option<u64>| {
        start.zip(end).map(|(start, end)| changed(start, end)).unwrap_or_default()
    };
    let several = profile.processes.len() > 1;
    let mut columns = vec![
        Column::number("now", shown.iter().map(|row| value(row.last.bytes)).collect()),
        Column::number("change", shown.iter().map(|row| change(row.start_bytes, row.last.bytes)).collect()),
        Column::name("", NAME_WIDTH, shown.iter().map(|row| escape(&row.last.name).into_owned()).collect()),
        Column::name(
            "from",
            NAME_WIDTH,
            shown.iter().map(|row| escape(&row.last.source).into_owned()).collect(),
        )
        .dispensable(1),
    ];
    if several {
        let pid = |id| profile.process(id).map(|row| row.process.target.tgid.to_string()).unwrap_or_default();
        columns.insert(0, Column::number("pid", shown.iter().map(|row| pid(row.last.process)).collect()));
    }
    let hidden = profile.figures.len() - shown.len();
    section(
        "What the runtime says itself",
        columns,
        more(hidden, "more figure", "more figures"),
        width,
        paint,
    )
}

/// `+1.0 MiB`; safe for any two sizes.
fn changed(start: u64, end: u64) -> String {
    match end.cmp(&start) {
        std::cmp::Ordering::Less => format!("-{}", size(start - end)),
        std::cmp::Ordering::Equal => "0 B".into(),
        std::cmp::Ordering::Greater => format!("+{}", size(end - start)),
    }
}

/// The limit with the least room; safe to print.
pub(super) fn limit(limit: &MemoryLimit) -> String {
    let source = escape(&limit.source);
    match limit.used_bytes {
        Some(used) => format!(
            "{} of {} used ({}), {source}",
            size(used),
            size(limit.limit_bytes),
            percent(used, limit.limit_bytes)
        ),
        None => format!("{}, {source}", size(limit.limit_bytes)),
    }
}

/// How much of the growth of RSS the pages account for, where both are known.
pub(super) fn accounted(profile: &Profile) -> Option<String> {
    let rss = profile.rss?;
    let seen = profile.touched_bytes;
    if profile.filter.lens.is_some_and(|lens| lens != Lens::Faults) || profile.filter.tgid.is_some() {
        return None;
    }
    let grew = changed(rss.start_bytes, rss.end_bytes);
    let net = rss.end_bytes.saturating_sub(rss.start_bytes);
    let rest = match seen.cmp(&net) {
        std::cmp::Ordering::Greater => {
            format!("the other {} took the place of memory that has gone", size(seen - net))
        }
        std::cmp::Ordering::Equal => "these pages are all of it".into(),
        std::cmp::Ordering::Less => format!("{} of that was not seen by call stack", size(net - seen)),
    };
    Some(format!("{} with the runtime's; RSS changed by {grew}: {rest}", size(seen)))
}

/// Writes the advice, unless the verdict on the process has it.
pub(super) fn write_advice(text: &mut String, profile: &Profile, width: usize) {
    let is_said = |verdict: &ProcessVerdict| {
        matches!(verdict.kind, ProcessKind::ManagedHeapGrowth | ProcessKind::AllocatorRetention)
    };
    if profile.verdicts.first().is_some_and(is_said) {
        return;
    }
    if let Some(sentence) = advised(profile) {
        line(text, &wrapped(&format!("hint: {sentence}"), width, "      ", str::to_owned));
    }
}
