//! The comparison of two captures, for a person and for programs.

use serde_json::{Value, json};

use super::block::{joined, stack};
use super::escape;
use super::head::{field, line, wrapped};
use super::human::{counted, middle, rate, seconds, size};
use super::json::{frame, safe_text, start};
use super::table::{Paint, TableOptions, warnings};
use super::who;
use crate::model::{Lens, MemoryClass};
use crate::profile::{Diff, DiffHidden, DiffRow, Match, Profile, Side};

/// Rows that a table shows where the user did not say.
pub const DEFAULT_DIFF_ROWS: usize = 10;
const MIN_WIDTH: usize = 60;
/// Names of rebuilt files in one sentence.
const NAMES_LISTED: usize = 6;

/// The comparison as text with a line end, of the `top` largest changes. Every name is escaped.
pub fn diff_table(diff: &Diff<'_>, top: usize, options: &TableOptions<'_>) -> String {
    let width = options.width.max(MIN_WIDTH);
    let paint = Paint::new(options.color);
    let mut text = String::new();
    for (side, profile) in [("before", diff.before), ("after", diff.after)] {
        for warning in warnings(profile) {
            let warning = format!("! {side}: {warning}");
            line(&mut text, &wrapped(&warning, width, "  ", |part| paint.warning(part)));
        }
    }
    for lens in &diff.uncompared {
        let side = if diff.after.has_lens(*lens) { "after" } else { "before" };
        let warning =
            format!("! `{}` was recorded on one side only ({side}): nothing of it is compared", lens.name());
        line(&mut text, &wrapped(&warning, width, "  ", |part| paint.warning(part)));
    }
    head(&mut text, diff, width);
    let changed: Vec<&DiffRow> = diff.rows.iter().filter(|row| row.delta_bytes() != 0).collect();
    for row in changed.iter().take(top) {
        text.push_str(&block(diff, row, width, paint));
        text.push('\n');
    }
    if changed.is_empty() {
        line(&mut text, "No call site holds more or less than before.");
    } else if changed.len() > top {
        let more = counted((changed.len() - top) as u64, "more call site has", "more call sites have");
        line(&mut text, &paint.dim(&format!("{more} changed (--top)")));
    }
    text
}

fn head(text: &mut String, diff: &Diff<'_>, width: usize) {
    for (name, profile, is_before) in [("before", diff.before, true), ("after", diff.after, false)] {
        let held = diff.lenses.iter().map(|lens| {
            let (before, after) = diff.bytes(*lens);
            format!("{} {}", size(if is_before { before } else { after }), said(*lens))
        });
        let held: Vec<String> = held.collect();
        let what =
            format!("{}, at {}: {}", who(profile), seconds(profile.window.elapsed_ns), held.join(", "));
        field(text, name, &what, width);
    }
    let changes: Vec<String> = diff
        .lenses
        .iter()
        .map(|lens| format!("{} {}", signed(diff.delta_bytes(*lens)), said(*lens)))
        .collect();
    field(text, "change", &changes.join(", "), width);
    let count = |test: &dyn Fn(&DiffRow) -> bool| diff.rows.iter().filter(|row| test(row)).count();
    let sites = format!(
        "{} grew, {} shrank, {} unchanged; {} new, {} gone",
        count(&|row| row.delta_bytes() > 0),
        count(&|row| row.delta_bytes() < 0),
        count(&|row| row.delta_bytes() == 0),
        count(&|row| row.before.sites.is_empty()),
        count(&|row| row.after.outstanding_count == 0),
    );
    field(text, "sites", &sites, width);
    let by_names = diff.matched(Match::Names);
    if by_names > 0 {
        field(text, "matched", &matched(diff, by_names), width);
    }
    if !diff.hidden.is_empty() {
        field(text, "hidden", &hidden(diff), width);
    }
    if lengths_differ(diff) {
        let note = "the recordings are not of one length, and each counts what was allocated since it began: \
                    compare rates, or moments of the same age (--at TIME --at TIME)";
        field(text, "note", note, width);
    }
    text.push('\n');
}

/// Whether two recordings of different lengths are compared, by more than a tenth.
fn lengths_differ(diff: &Diff<'_>) -> bool {
    let [before, after] = [diff.before, diff.after];
    let lengths = [before.window.elapsed_ns, after.window.elapsed_ns];
    let (shorter, longer) = (lengths[0].min(lengths[1]), lengths[0].max(lengths[1]));
    before.header.start_realtime_ns != after.header.start_realtime_ns && longer - shorter > longer / 10
}

/// What suppressions have taken out of everything else.
fn hidden(diff: &Diff<'_>) -> String {
    let rows: usize = diff.hidden.iter().map(|sum| sum.rows).sum();
    let sum = |get: fn(&DiffHidden) -> u64| diff.hidden.iter().map(get).fold(0, u64::saturating_add);
    let mut rules: Vec<String> = diff
        .hidden
        .iter()
        .take(NAMES_LISTED)
        .map(|sum| format!("{} ({})", escape(&sum.rule.pattern), sum.rule.origin.name()))
        .collect();
    if diff.hidden.len() > NAMES_LISTED {
        rules.push("…".to_owned());
    }
    format!(
        "{} → {} at {}, suppressed by {}",
        size(sum(|sum| sum.before_bytes)),
        size(sum(|sum| sum.after_bytes)),
        counted(rows as u64, "call site", "call sites"),
        rules.join(", ")
    )
}

fn matched(diff: &Diff<'_>, by_names: usize) -> String {
    let mut names: Vec<String> =
        diff.rebuilt.iter().take(NAMES_LISTED).map(|name| escape(name).into_owned()).collect();
    if diff.rebuilt.len() > NAMES_LISTED {
        names.push("…".to_owned());
    }
    let exact = diff.matched(Match::Exact);
    let why = if names.is_empty() { String::new() } else { format!(": {} differ", names.join(", ")) };
    format!("{exact} by build id and offset, {by_names} by function names{why}")
}

const fn said(lens: Lens) -> &'static str {
    match lens {
        Lens::Malloc => "unfreed",
        Lens::Mmap => "mapped",
        Lens::Faults => "resident",
    }
}

/// `+1.0 MiB`.
fn signed(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "+" };
    format!("{sign}{}", size(bytes.unsigned_abs()))
}

fn block(diff: &Diff<'_>, row: &DiffRow, width: usize, paint: Paint) -> String {
    let (one, many) = match row.lens {
        Lens::Malloc => ("block", "blocks"),
        Lens::Mmap => ("mapping", "mappings"),
        Lens::Faults => ("page", "pages"),
    };
    let sign = if row.delta_count() < 0 { "-" } else { "+" };
    let numbers = format!(
        "{:>3}. {:>11}  {} → {}, {sign}{}{}",
        row.rank,
        signed(row.delta_bytes()),
        held(&row.before),
        held(&row.after),
        counted(row.delta_count().unsigned_abs(), one, many),
        grown(row),
    );
    let numbers = middle(&numbers, width);
    let numbers = if row.delta_bytes() < 0 { paint.dim(&numbers) } else { paint.bold(&numbers) };
    let mut lines = vec![numbers];
    if let Some((profile, site)) = diff.shown(row) {
        let several = row.before.sites.len().max(row.after.sites.len());
        if several > 1 {
            let note = format!("{several} call sites with these function names");
            lines.push(format!("     {}", paint.dim(&note)));
        }
        lines.extend(stack(profile, site, 0, width, paint));
    }
    joined(&lines)
}

fn held(side: &Side) -> String {
    if side.sites.is_empty() { "not seen".to_owned() } else { size(side.outstanding_bytes) }
}

/// How fast it grew, and grows now.
fn grown(row: &DiffRow) -> String {
    let known = |side: &Side| side.growth_bytes_per_s.map(rate);
    match (known(&row.before), known(&row.after)) {
        (None, None) => String::new(),
        (None, Some(now)) => format!(", now {now}"),
        (Some(then), None) => format!(", was {then}"),
        (Some(then), Some(now)) if then == now => format!(", {now} as before"),
        (Some(then), Some(now)) => format!(", {now} after {then}"),
    }
}

/// The comparison for programs, with a line end: schema `offheap.diff/1`, described by `docs/diff-schema.json`. Of the
/// `top` largest changes. What a terminal would act on is escaped as JSON can.
pub fn diff_json(diff: &Diff<'_>, top: Option<usize>) -> String {
    safe_text(&diff_value(diff, top))
}

fn diff_value(diff: &Diff<'_>, top: Option<usize>) -> Value {
    let rows: Vec<Value> =
        diff.rows.iter().take(top.unwrap_or(usize::MAX)).map(|row| row_json(diff, row)).collect();
    let by_lens = |of: &dyn Fn(Lens) -> Value| {
        let value = |lens: Lens| if diff.lenses.contains(&lens) { of(lens) } else { Value::Null };
        json!({
            "malloc": value(Lens::Malloc),
            "mmap": value(Lens::Mmap),
            "faults": value(Lens::Faults),
        })
    };
    let filter = &diff.after.filter;
    json!({
        "schema": "offheap.diff/1",
        "before": side_json(diff.before, by_lens(&|lens| diff.bytes(lens).0.into())),
        "after": side_json(diff.after, by_lens(&|lens| diff.bytes(lens).1.into())),
        "delta_bytes": by_lens(&|lens| diff.delta_bytes(lens).into()),
        "uncompared": diff.uncompared.iter().map(|lens| lens.name()).collect::<Vec<_>>(),
        "filter": {
            "top": top,
            "lens": filter.lens.map(Lens::name),
            "pid": filter.tgid,
            "allocator": filter.allocator,
            "class": filter.class.map(MemoryClass::name),
        },
        "matched": {
            "exact": diff.matched(Match::Exact),
            "names": diff.matched(Match::Names),
            "alone": diff.matched(Match::Alone),
        },
        "rebuilt": diff.rebuilt,
        "suppressed": diff.hidden.iter().map(|sum| json!({
            "pattern": sum.rule.pattern,
            "origin": sum.rule.origin.name(),
            "rows": sum.rows,
            "before_bytes": sum.before_bytes,
            "after_bytes": sum.after_bytes,
        })).collect::<Vec<_>>(),
        "rows": rows,
    })
}

fn side_json(profile: &Profile, outstanding_bytes: Value) -> Value {
    let target = &profile.header.target;
    json!({
        "pid": target.tgid,
        "comm": target.comm,
        "exe": target.exe,
        "start": start(profile.header.start_realtime_ns),
        "seconds": profile.window.elapsed_ns as f64 / 1e9,
        "complete": profile.is_complete(),
        "outstanding_bytes": outstanding_bytes,
    })
}

fn row_json(diff: &Diff<'_>, row: &DiffRow) -> Value {
    let side = |side: &Side| {
        (!side.sites.is_empty()).then(|| {
            json!({
                "sites": side.sites.len(),
                "outstanding_bytes": side.outstanding_bytes,
                "outstanding_count": side.outstanding_count,
                "growth_bytes_per_s": side.growth_bytes_per_s,
            })
        })
    };
    let shown = diff.shown(row);
    json!({
        "rank": row.rank,
        "lens": row.lens.name(),
        "class": shown.map(|(_, site)| site.class.name()),
        "matched": row.matched.name(),
        "delta_bytes": row.delta_bytes(),
        "delta_count": row.delta_count(),
        "before": side(&row.before),
        "after": side(&row.after),
        "culprit": shown.and_then(|(_, site)| (!site.frames.is_empty()).then_some(site.culprit)),
        "stack": shown.map(|(profile, site)| profile.stack(site).map(|line| frame(&line)).collect::<Vec<_>>()),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::capture::fixture::{clean, leaky, resident, server};
    use crate::profile::{Filter, Suppressions};
    use crate::report::tests::{assert_golden, profile};

    fn moment(second: u64) -> Profile {
        Profile::new(leaky().capture().at(second * 1_000_000_000).unwrap(), Filter::default()).unwrap()
    }

    fn rules() -> Suppressions {
        let mut rules = Suppressions::built_in();
        rules.add_file("leak:Cache::remember").unwrap();
        rules
    }

    #[test]
    fn comparisons_match_their_schema() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/diff-schema.json");
        let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let schema = jsonschema::draft202012::new(&schema).unwrap();
        let sides = [moment(2), moment(9), profile(&clean()), profile(&server()), profile(&resident())];
        for before in &sides {
            for after in &sides {
                let diff = Diff::new(before, after, &rules());
                for top in [None, Some(1)] {
                    let value = diff_value(&diff, top);
                    let error = schema.iter_errors(&value).next();
                    assert!(error.is_none(), "{:?}", error.map(|error| error.to_string()));
                    let text = diff_json(&diff, top);
                    assert!(!text.contains(['\u{1b}', '\u{202e}']), "safe on a terminal");
                    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
                    for (field, spoil) in [("schema", json!("x")), ("rows", json!({})), ("extra", json!(1))] {
                        let mut spoiled = value.clone();
                        spoiled[field] = spoil;
                        assert!(!schema.is_valid(&spoiled), "{field}");
                    }
                }
            }
        }
    }

    #[test]
    fn golden_comparisons() {
        let options = TableOptions { width: 100, color: false, file: None };
        let text = |before: &Profile, after: &Profile, rules: &Suppressions| {
            let text = diff_table(&Diff::new(before, after, rules), 3, &options);
            for line in text.lines() {
                assert!(line.chars().count() <= 100 && !line.contains(escape::is_deceptive), "{line:?}");
            }
            text
        };
        let none = Suppressions::default();
        let mut later = leaky();
        later.header.start_realtime_ns += 3600 * 1_000_000_000;
        later.finish = None;
        let (clean, leaky, server) = (profile(&clean()), profile(&leaky()), profile(&server()));
        let texts = [
            text(&moment(2), &moment(9), &none),
            text(&moment(9), &moment(2), &rules()),
            text(&moment(2), &profile(&later), &none),
            text(&leaky, &leaky, &none),
            text(&clean, &server, &none),
        ];
        assert_golden("report/golden/diff.txt", &texts.join("=====\n"));
    }
}
