//! Where resident memory lies: for a person and for a program.

use std::cmp::Reverse;

use serde_json::{Value, json};

use super::escape;
use super::human::{counted, middle, percent, size};
use crate::ledger::{Reading, headline, ours};
use crate::model::{LedgerClass, LedgerRow, RuntimeFigure};

/// Version of the JSON form.
pub const RSS_SCHEMA: &str = "offheap.rss/1";
/// Rows of one class that a person is shown.
const MAX_ROWS: usize = 6;
/// What is smaller is summed, in bytes, if it is not all that there is of the class.
const SMALL_BYTES: u64 = 64 << 10;

/// How it is shown.
#[derive(Clone, Copy, Debug)]
pub struct RssOptions<'a> {
    /// Process id.
    pub tgid: u32,
    /// Its name; hostile input.
    pub comm: &'a str,
    /// One row per class.
    pub by_class: bool,
    /// Columns.
    pub width: usize,
}

/// One class and its rows, the largest first.
struct Group<'a> {
    class: LedgerClass,
    rss_bytes: u64,
    swap_bytes: u64,
    rows: Vec<&'a LedgerRow>,
}

fn groups(reading: &Reading) -> Vec<Group<'_>> {
    let group = |class: LedgerClass| {
        let mut rows: Vec<&LedgerRow> = reading.ledger.rows.iter().filter(|row| row.class == class).collect();
        rows.sort_by_key(|row| Reverse(row.rss_bytes));
        Group {
            class,
            rss_bytes: rows.iter().map(|row| row.rss_bytes).sum(),
            swap_bytes: rows.iter().map(|row| row.swap_bytes).sum(),
            rows,
        }
    };
    let mut groups: Vec<Group<'_>> = LedgerClass::ALL
        .into_iter()
        .map(group)
        .filter(|group| group.rss_bytes + group.swap_bytes > 0)
        .collect();
    groups.sort_by_key(|group| Reverse(group.rss_bytes));
    groups
}

/// The text for a person.
pub fn rss_text(reading: &Reading, options: &RssOptions<'_>) -> String {
    let mut lines = wrap(&headline(&reading.ledger, size), 0, options.width);
    lines.extend(reading.gaps.iter().flat_map(|gap| wrap(&format!("! {gap}"), 2, options.width)));
    let runtime = reading.runtime.as_ref().map_or_else(String::new, |runtime| {
        format!(", {} {}", runtime.name, runtime.version.as_deref().unwrap_or("(version unknown)"))
    });
    lines.push(String::new());
    let who = format!("Process {} {}{}", options.tgid, escape(options.comm), escape(&runtime));
    lines.push(middle(&who, options.width));
    lines.extend(table(reading, options));
    lines.extend(figures(reading, options));
    if !reading.advice.is_empty() {
        lines.push(String::new());
        lines.push("What to do".to_owned());
        for advice in &reading.advice {
            lines.extend(wrap(&format!("{:>10}  {}", size(advice.bytes), advice.text), 12, options.width));
        }
    }
    lines.iter().flat_map(|line| [line.trim_end(), "\n"]).collect()
}

fn table(reading: &Reading, options: &RssOptions<'_>) -> Vec<String> {
    let has_swap = reading.ledger.rows.iter().any(|row| row.swap_bytes > 0);
    let line = |rss: &str, share: &str, swap: u64, what: &str| {
        let swap = match (has_swap, swap) {
            (false, _) => String::new(),
            (true, 0) => format!("{:>12}", ""),
            (true, swap) => format!("{:>12}", size(swap)),
        };
        let head = format!("{rss:>12}{share:>9}{swap}  ");
        let room = options.width.saturating_sub(head.chars().count());
        format!("{head}{}", middle(&escape(what), room))
    };
    let swap_title = if has_swap { format!("{:>12}", "swapped") } else { String::new() };
    let mut lines = vec![format!("{:>12}{:>9}{swap_title}", "resident", "share")];
    for group in groups(reading) {
        let share = percent(group.rss_bytes, reading.ledger.rss_bytes.max(1));
        let only = (group.rows.len() == 1)
            .then(|| group.rows.first().and_then(|row| row.label.as_deref()))
            .flatten();
        let name = match only.filter(|_| !options.by_class) {
            Some(label) => format!("{}: {label}", group.class.phrase()),
            None => group.class.phrase().to_owned(),
        };
        lines.push(line(&size(group.rss_bytes), &share, group.swap_bytes, &name));
        let is_small = |row: &LedgerRow| row.rss_bytes + row.swap_bytes < SMALL_BYTES;
        let shown = group.rows.iter().take(MAX_ROWS).take_while(|row| !is_small(row)).count();
        if options.by_class || group.rows.len() < 2 || shown == 0 {
            continue;
        }
        let (shown, rest) = group.rows.split_at_checked(shown).unwrap_or_default();
        for row in shown {
            let label = row.label.as_deref().unwrap_or("without a name");
            lines.push(line(&size(row.rss_bytes), "", row.swap_bytes, &format!("  {label}")));
        }
        let rest_bytes: u64 = rest.iter().map(|row| row.rss_bytes).sum();
        let rest_swap: u64 = rest.iter().map(|row| row.swap_bytes).sum();
        if rest_bytes + rest_swap > 0 {
            let others = counted(rest.len() as u64, "other", "others");
            lines.push(line(&size(rest_bytes), "", rest_swap, &format!("  {others}")));
        }
    }
    let swap: u64 = reading.ledger.rows.iter().map(|row| row.swap_bytes).sum();
    lines.push(line(&size(reading.ledger.rss_bytes), "100 %", swap, "all: the sum of Rss in smaps"));
    lines
}

/// What runtime and allocator say, beside what is resident of it.
fn figures(reading: &Reading, options: &RssOptions<'_>) -> Vec<String> {
    if reading.figures.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![String::new(), "In their own words".to_owned()];
    lines.push(format!("{:>12}{:>12}", "they say", "resident"));
    for figure in &reading.figures {
        let RuntimeFigure { source, name, bytes, .. } = figure;
        let said = bytes.map_or_else(|| "not known".to_owned(), size);
        let resident = ours(&reading.ledger, source, name).map_or_else(String::new, size);
        let line = format!("{said:>12}{resident:>12}  {}: {}", escape(source), escape(name));
        lines.push(middle(&line, options.width));
    }
    lines
}

/// Breaks a text into lines; those behind the first are indented.
fn wrap(text: &str, indent: usize, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    // What stands before the first word stays.
    let lead = text.chars().take_while(|letter| *letter == ' ').count();
    let mut line = " ".repeat(lead);
    let mut is_empty = true;
    for word in text.trim_start().split(' ') {
        let needed = line.chars().count() + usize::from(!is_empty) + word.chars().count();
        if needed > width && !is_empty {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(&escape(word));
        is_empty = false;
    }
    lines.push(line);
    lines
}

/// The JSON form, `docs/rss.md`.
pub fn rss_json(reading: &Reading, options: &RssOptions<'_>) -> Value {
    let ledger = &reading.ledger;
    let rows: Vec<Value> = match options.by_class {
        true => groups(reading).iter().map(|group| row(group.class, None, &group.rows)).collect(),
        false => ledger.rows.iter().map(|of| row(of.class, of.label.as_deref(), &[of])).collect(),
    };
    let figure = |figure: &RuntimeFigure| {
        json!({
            "source": figure.source,
            "name": figure.name,
            "bytes": figure.bytes,
            "resident_bytes": ours(ledger, &figure.source, &figure.name),
        })
    };
    json!({
        "schema": RSS_SCHEMA,
        "target": {
            "pid": options.tgid,
            "comm": options.comm,
            "runtime": reading.runtime.as_ref().map(|runtime| json!({
                "name": runtime.name, "version": runtime.version,
            })),
        },
        "summary": headline(ledger, size),
        "complete": reading.gaps.is_empty(),
        "gaps": reading.gaps,
        "rss_bytes": ledger.rss_bytes,
        "ledger": rows,
        "figures": reading.figures.iter().map(figure).collect::<Vec<_>>(),
        "advice": reading.advice.iter().map(|advice| json!({
            "kind": advice.kind, "bytes": advice.bytes, "text": advice.text,
        })).collect::<Vec<_>>(),
    })
}

/// One entry of the ledger. At one moment nothing grows: that field is for the ledger of a recording.
fn row(class: LedgerClass, label: Option<&str>, rows: &[&LedgerRow]) -> Value {
    let sum = |of: fn(&LedgerRow) -> u64| rows.iter().map(|row| of(row)).sum::<u64>();
    let pss: Option<u64> = rows.iter().map(|row| row.pss_bytes).sum();
    json!({
        "class": class.name(),
        "label": label,
        "bytes": sum(|row| row.rss_bytes),
        "growth_bytes_per_s": null,
        "size_bytes": sum(|row| row.size_bytes),
        "pss_bytes": pss,
        "swap_bytes": sum(|row| row.swap_bytes),
        "mappings": sum(|row| row.mapping_count),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ledger::Advice;
    use crate::model::{Ledger, ProcessId, Runtime};

    fn reading() -> Reading {
        let row = |class, label: &str, kib: u64| LedgerRow {
            class,
            label: Some(label.to_owned()),
            mapping_count: 2,
            size_bytes: kib << 11,
            rss_bytes: kib << 10,
            pss_bytes: Some(kib << 9),
            swap_bytes: 0,
        };
        let rows = vec![
            row(LedgerClass::File, "/a\u{1b}[2J", 700),
            row(LedgerClass::File, "/b", 60),
            row(LedgerClass::File, "/c", 40),
            row(LedgerClass::ManagedHeap, "V8 heap", 2048),
        ];
        let rss_bytes = rows.iter().map(|row| row.rss_bytes).sum();
        let process = ProcessId(0);
        let figure = |name: &str, bytes| RuntimeFigure {
            process,
            elapsed_ns: 0,
            source: "CPython arenas".into(),
            name: name.into(),
            bytes,
        };
        Reading {
            ledger: Ledger { process, elapsed_ns: 0, rss_bytes, rows },
            figures: vec![figure("room in the pools", Some(5 << 20)), figure("blocks in use", None)],
            runtime: Some(Runtime { name: "node".into(), version: None }),
            gaps: vec!["something was not seen".into()],
            advice: vec![Advice { kind: "managed-heap", bytes: 2 << 20, text: "is large. ".repeat(20) }],
        }
    }

    fn options(by_class: bool) -> RssOptions<'static> {
        RssOptions { tgid: 7, comm: "no\nde", by_class, width: 80 }
    }

    #[test]
    fn the_text_reads_well() {
        let text = rss_text(&reading(), &options(false));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let expected = "RSS (2.8 MiB) exceeds the V8 heap (2.0 MiB resident) by 800.0 KiB, of which:\n\
                        800.0 KiB files.\n\
                        ! something was not seen\n\
                        \n\
                        Process 7 no\\nde, node (version unknown)\n\
                        \x20   resident    share\n\
                        \x20    2.0 MiB   71.9 %  garbage-collected heap: V8 heap\n\
                        \x20  800.0 KiB   28.1 %  files\n\
                        \x20  700.0 KiB             /a\\x1b[2J\n\
                        \x20  100.0 KiB             2 others\n\
                        \x20    2.8 MiB    100 %  all: the sum of Rss in smaps\n\
                        \n\
                        In their own words\n\
                        \x20   they say    resident\n\
                        \x20    5.0 MiB     2.0 MiB  CPython arenas: room in the pools\n\
                        \x20  not known              CPython arenas: blocks in use\n";
        assert!(text.starts_with(expected), "{text}");
        let by_class = rss_text(&reading(), &options(true));
        assert!(!by_class.contains("V8 heap\n") && by_class.contains("28.1 %  files\n"), "{by_class}");
    }

    #[test]
    fn json_adds_up() {
        for by_class in [false, true] {
            let value = rss_json(&reading(), &options(by_class));
            let rows = value["ledger"].as_array().unwrap();
            assert_eq!(rows.len(), if by_class { 2 } else { 4 });
            let sum: u64 = rows.iter().map(|row| row["bytes"].as_u64().unwrap()).sum();
            assert_eq!(value["rss_bytes"], sum);
            assert_eq!((&value["complete"], &value["figures"][1]["bytes"]), (&json!(false), &Value::Null));
            assert!(rows.iter().all(|row| row["growth_bytes_per_s"].is_null()));
        }
    }
}
