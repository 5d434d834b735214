//! One page with everything, for a browser: no network, no server, no other file.
//!
//! What comes from the target is data in a JSON island, which no browser runs, with everything escaped that could end
//! it. The script builds the page by `textContent` alone, and the policy in the head lets a browser run and
//! load nothing but the script and the styles whose digests it has.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::LazyLock;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::ExportError;
use super::csv::name;
use super::tree::tree;
use crate::capture::thinned;
use crate::model::{Ledger, LedgerClass, Lens, RssSample};
use crate::profile::{Profile, Site};
use crate::report::estimate::notes;
use crate::report::human::{rate, seconds, size};
use crate::report::stack_tree::Names;
use crate::report::{escape, json as report, warnings, who};

const UPLOT: &str = include_str!("html/uplot/uPlot.iife.min.js");
const UPLOT_STYLE: &str = include_str!("html/uplot/uPlot.min.css");
const UPLOT_LICENSE: &str = include_str!("html/uplot/LICENSE");
const SCRIPT: &str = include_str!("html/page.js");
const STYLE: &str = include_str!("html/page.css");

const STYLES: [&str; 2] = [UPLOT_STYLE, STYLE];
const SCRIPTS: [&str; 2] = [UPLOT, SCRIPT];

/// What a browser may run and load: these scripts, these styles, nothing else.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let sources = |parts: &[&str]| parts.iter().map(|part| digest(part)).collect::<Vec<_>>().join(" ");
    format!(
        "default-src 'none'; base-uri 'none'; form-action 'none'; script-src {}; style-src {}",
        sources(&SCRIPTS),
        sources(&STYLES)
    )
});

/// Sites in the table, of each kind.
const SITES_SHOWN: usize = 300;
/// Sites with a line over time, of each kind.
const SITES_DRAWN: usize = 8;

/// Writes the page.
pub fn html(profile: &Profile, mut out: impl Write) -> Result<(), ExportError> {
    writeln!(out, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">")?;
    writeln!(out, "<meta http-equiv=\"Content-Security-Policy\" content=\"{}\">", *POLICY)?;
    writeln!(out, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")?;
    writeln!(
        out,
        "<meta name=\"referrer\" content=\"no-referrer\">\n<meta name=\"color-scheme\" content=\"light dark\">"
    )?;
    writeln!(out, "<title>offheap</title>\n<!-- uPlot:\n{UPLOT_LICENSE}-->")?;
    for style in STYLES {
        writeln!(out, "<style>{style}</style>")?;
    }
    writeln!(
        out,
        "</head>\n<body>\n<noscript>This page needs JavaScript; it loads nothing from anywhere.</noscript>"
    )?;
    writeln!(out, "<script type=\"application/json\" id=\"data\">{}</script>", island(&data(profile)))?;
    for script in SCRIPTS {
        writeln!(out, "<script>{script}</script>")?;
    }
    writeln!(out, "</body>\n</html>")?;
    Ok(())
}

/// What a policy calls a script or a style by.
fn digest(content: &str) -> String {
    format!("'sha256-{}'", base64(&Sha256::digest(content.as_bytes())))
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            (0..3).fold(0u32, |bits, index| (bits << 8) | u32::from(chunk.get(index).copied().unwrap_or(0)));
        for index in 0..4 {
            let letter = LETTERS.get((bits >> (18 - 6 * index)) as usize & 63).copied().unwrap_or(b'=');
            text.push(if index <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

/// JSON that can stand in a page: nothing in it can end the island, begin a tag or a comment, or end a line.
fn island(data: &Value) -> String {
    let plain = data.to_string();
    let mut text = String::with_capacity(plain.len() + plain.len() / 16);
    for character in plain.chars() {
        match character {
            // Such characters occur in strings only, where an escape means the same.
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                text.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            _ => text.push(character),
        }
    }
    text
}

fn data(profile: &Profile) -> Value {
    let mut report = report(profile);
    // What is cut here is in the flame graphs and the sums all the same.
    if let Some(sites) = report["sites"].as_array_mut() {
        sites.retain(|site| site["rank"].as_u64().is_some_and(|rank| rank <= SITES_SHOWN as u64));
    }
    escape_all(&mut report);
    let mut names = Names::default();
    let counted =
        tree(profile, profile.sites.iter().filter(|site| Profile::is_counted(site.lens)), &mut names);
    let pages =
        tree(profile, profile.sites.iter().filter(|site| !Profile::is_counted(site.lens)), &mut names);
    json!({
        "title": who(profile),
        "headline": headline(profile),
        "warnings": warnings(profile),
        "notes": notes(profile),
        "duration": seconds(profile.window.elapsed_ns),
        "version": profile.header.offheap_version,
        "report": report,
        "cut": profile.sites.iter().filter(|site| site.rank > SITES_SHOWN).count(),
        "labels": { "sites": profile.sites.iter().filter(|site| site.rank <= SITES_SHOWN).map(|site| escape(&name(profile, site)).into_owned()).collect::<Vec<_>>() },
        "flames": { "names": names.into_names(), "unfreed": counted, "resident": pages },
        "rss": rss(profile),
        "ledger": ledger(profile),
        "lines": lines(profile),
    })
}

/// The most that is known, in one sentence.
fn headline(profile: &Profile) -> String {
    let mut parts = Vec::new();
    if let Some(rss) = profile.rss {
        let change = rss.growth_bytes_per_s.map_or_else(|| "growth unknown (too short)".into(), rate);
        parts.push(format!("RSS {} → {} ({change})", size(rss.start_bytes), size(rss.end_bytes)));
    }
    let mut add = |lens, totals: &crate::profile::Totals, what: &str| {
        if profile.has_lens(lens) {
            parts.push(format!(
                "{} {what} at {} call sites",
                size(totals.outstanding_bytes),
                totals.sites_outstanding
            ));
        }
    };
    add(Lens::Malloc, &profile.totals, "allocated and not freed");
    add(Lens::Mmap, &profile.mapped, "mapped and not unmapped");
    add(Lens::Faults, &profile.resident, "touched and resident");
    parts.join("; ")
}

/// Makes every string visible as it is.
fn escape_all(value: &mut Value) {
    match value {
        Value::String(text) => *text = escape(text).into_owned(),
        Value::Array(values) => values.iter_mut().for_each(escape_all),
        Value::Object(fields) => fields.iter_mut().for_each(|(_, value)| escape_all(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn times(elapsed_ns: impl Iterator<Item = u64>) -> Vec<f64> {
    elapsed_ns.map(|ns| ns as f64 / 1e9).collect()
}

/// RSS of the target over time.
fn rss(profile: &Profile) -> Value {
    let samples: Vec<&RssSample> =
        profile.rss_samples().iter().filter(|sample| is_target(profile, sample.process)).collect();
    let times_ns: Vec<u64> = samples.iter().map(|sample| sample.elapsed_ns).collect();
    let kept: Vec<&RssSample> =
        thinned(&times_ns).into_iter().filter_map(|index| samples.get(index).copied()).collect();
    let column = |name: &str, bytes: &dyn Fn(&RssSample) -> Option<u64>| {
        let values: Vec<Option<u64>> = kept.iter().map(|sample| bytes(sample)).collect();
        // A process that never swapped needs no line that says so.
        values
            .iter()
            .any(|bytes| bytes.is_some_and(|bytes| bytes > 0))
            .then(|| json!({ "name": name, "bytes": values }))
    };
    let columns = [
        column("RSS", &|sample| Some(sample.rss_bytes)),
        column("PSS", &|sample| sample.pss_bytes),
        column("anonymous", &|sample| sample.anonymous_bytes),
        column("swapped out", &|sample| sample.swap_bytes),
    ];
    json!({
        "seconds": times(kept.iter().map(|sample| sample.elapsed_ns)),
        "columns": columns.into_iter().flatten().collect::<Vec<_>>(),
    })
}

fn is_target(profile: &Profile, process: crate::model::ProcessId) -> bool {
    profile.process(process).is_some_and(|row| row.process.target.tgid == profile.header.target.tgid)
}

/// Resident bytes of the target by class over time, the largest class at the end first.
fn ledger(profile: &Profile) -> Value {
    let looks: Vec<&Ledger> =
        profile.ledger_looks().iter().filter(|look| is_target(profile, look.process)).collect();
    let mut classes: BTreeMap<LedgerClass, Vec<u64>> = BTreeMap::new();
    for (index, look) in looks.iter().enumerate() {
        for row in &look.rows {
            let bytes = classes.entry(row.class).or_insert_with(|| vec![0; looks.len()]);
            if let Some(bytes) = bytes.get_mut(index) {
                *bytes = bytes.saturating_add(row.rss_bytes);
            }
        }
    }
    let mut classes: Vec<_> = classes.into_iter().collect();
    classes.sort_by_key(|(class, bytes)| (std::cmp::Reverse(bytes.iter().max().copied()), *class));
    json!({
        "seconds": times(looks.iter().map(|look| look.elapsed_ns)),
        "columns": classes.iter().map(|(class, bytes)| json!({ "name": class.phrase(), "bytes": bytes })).collect::<Vec<_>>(),
    })
}

/// Outstanding bytes of the largest sites over time, by kind.
fn lines(profile: &Profile) -> Value {
    let line = |site: &Site| {
        let name = format!("{}. {}", site.rank, name(profile, site));
        json!({ "name": escape(&name), "bytes": profile.outstanding_series(site) })
    };
    let of = |is_counted: bool| {
        let sites = profile.sites.iter().filter(|site| Profile::is_counted(site.lens) == is_counted);
        sites.filter(|site| site.outstanding_bytes > 0).take(SITES_DRAWN).map(line).collect::<Vec<_>>()
    };
    json!({
        "seconds": times(profile.points_ns().iter().copied()),
        "unfreed": of(true),
        "resident": of(false),
    })
}
