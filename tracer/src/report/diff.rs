//! The comparison of two captures, for a person and for programs.

use serde_json::{Value, json};

use super::block::{joined, stack};
use super::escape;
use super::head::{field, line, wrapped};
use super::human::{counted, middle, rate, seconds, size};
use super::json::frame;
use super::table::{Paint, TableOptions, warnings};
use super::who;
use crate::model::Lens;
use crate::profile::{Diff, DiffRow, Match, Profile, Side};

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
    for (name, profile) in [("before", diff.before), ("after", diff.after)] {
        let held: Vec<String> = lenses(diff).map(|lens| amount(profile, lens)).collect();
        let what =
            format!("{}, at {}: {}", who(profile), seconds(profile.window.elapsed_ns), held.join(", "));
        field(text, name, &what, width);
    }
    let changes: Vec<String> =
        lenses(diff).map(|lens| format!("{} {}", signed(diff.delta_bytes(lens)), said(lens))).collect();
    field(text, "change", &changes.join(", "), width);
    let count = |test: &dyn Fn(&DiffRow) -> bool| diff.rows.iter().filter(|row| test(row)).count();
    let sites = format!(
        "{} grew, {} shrank, {} unchanged; {} new, {} gone",
        count(&|row| row.delta_bytes() > 0),
        count(&|row| row.delta_bytes() < 0),
        count(&|row| row.delta_bytes() == 0),
        count(&|row| row.before.sites.is_empty()),
        count(&|row| row.after.sites.is_empty()),
    );
    field(text, "sites", &sites, width);
    let by_names = diff.matched(Match::Names);
    if by_names > 0 {
        field(text, "matched", &matched(diff, by_names), width);
    }
    text.push('\n');
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

/// The lenses that both sides have: what only one has observed cannot be compared.
fn lenses<'a>(diff: &'a Diff<'_>) -> impl Iterator<Item = Lens> + 'a {
    let wanted = |lens: &Lens| diff.after.filter.lens.is_none_or(|only| only == *lens);
    Lens::ALL
        .into_iter()
        .filter(wanted)
        .filter(|lens| diff.before.has_lens(*lens) && diff.after.has_lens(*lens))
}

const fn said(lens: Lens) -> &'static str {
    match lens {
        Lens::Malloc => "unfreed",
        Lens::Mmap => "mapped",
        Lens::Faults => "resident",
    }
}

fn amount(profile: &Profile, lens: Lens) -> String {
    let totals = match lens {
        Lens::Malloc => &profile.totals,
        Lens::Mmap => &profile.mapped,
        Lens::Faults => &profile.resident,
    };
    format!("{} {}", size(totals.outstanding_bytes), said(lens))
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

/// How fast it grows now.
fn grown(row: &DiffRow) -> String {
    row.after.growth_bytes_per_s.map_or_else(String::new, |growth| format!(", now {}", rate(growth)))
}

/// The comparison for programs: `docs/json.md` says what the fields mean.
pub fn diff_json(diff: &Diff<'_>, top: Option<usize>) -> String {
    let rows: Vec<Value> =
        diff.rows.iter().take(top.unwrap_or(usize::MAX)).map(|row| row_json(diff, row)).collect();
    let deltas = |lens: Lens| lenses(diff).any(|known| known == lens).then(|| diff.delta_bytes(lens));
    let value = json!({
        "schema": "offheap.diff/1",
        "before": side_json(diff.before),
        "after": side_json(diff.after),
        "delta_bytes": {
            "malloc": deltas(Lens::Malloc),
            "mmap": deltas(Lens::Mmap),
            "faults": deltas(Lens::Faults),
        },
        "matched": {
            "exact": diff.matched(Match::Exact),
            "names": diff.matched(Match::Names),
            "alone": diff.matched(Match::Alone),
        },
        "rebuilt": diff.rebuilt,
        "rows": rows,
    });
    format!("{value:#}\n")
}

fn side_json(profile: &Profile) -> Value {
    let target = &profile.header.target;
    json!({
        "pid": target.tgid,
        "comm": target.comm,
        "start_realtime_ns": profile.header.start_realtime_ns,
        "elapsed_s": profile.window.elapsed_ns as f64 / 1e9,
        "complete": profile.is_complete(),
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
