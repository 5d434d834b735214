//! What a gate says: for a person here, for machines in the modules below.

mod github;
mod json;
mod junit;
mod sentence;
#[cfg(test)]
mod tests;

use super::block::{joined, stack};
use super::evidence::evidence;
use super::head::{field, hidden, line, wrapped};
use super::human::{counted, middle, seconds, size};
use super::table::{Paint, TableOptions, warnings};
use super::{escape, who};
use crate::model::Lens;
use crate::profile::{Gate, GateRule, GateVerdict, Match, Offender, Outcome, Site};

pub use github::github;
pub use json::{CHECK_SCHEMA, check_json};
pub use junit::junit;

use sentence::{baseline, found, per, shortfall, verdict};

const MIN_WIDTH: usize = 60;
/// Call sites that are shown to a person.
const SITES_SHOWN: usize = 20;
/// Call sites of which nobody can tell, that are named.
const OPEN_SHOWN: usize = 3;
/// Lines of the ledger that are named where resident memory grows.
const LEDGER_SHOWN: usize = 3;

/// The result for a person, with a line end; the verdict is the first line. Every name is escaped.
pub fn check_text(gate: &Gate<'_>, options: &TableOptions<'_>) -> String {
    let width = options.width.max(MIN_WIDTH);
    let paint = Paint::new(options.color);
    let mut text = String::new();
    let is_bad = gate.verdict() != GateVerdict::Passed;
    let color = |part: &str| if is_bad { paint.warning(part) } else { paint.bold(part) };
    line(&mut text, &wrapped(&verdict(gate), width, "  ", color));
    for warning in warnings(gate.profile) {
        line(&mut text, &wrapped(&format!("! {warning}"), width, "  ", |part| paint.warning(part)));
    }
    head(&mut text, gate, width);
    text.push('\n');
    for (number, offender) in (1..).zip(gate.offenders.iter().take(SITES_SHOWN)) {
        text.push_str(&block(gate, number, offender, width, paint));
        text.push('\n');
    }
    let more = gate.offenders.len().saturating_sub(SITES_SHOWN);
    if more > 0 {
        let more = counted(more as u64, "more call site", "more call sites");
        line(&mut text, &paint.dim(&format!("{more} (--format json has all)")));
    }
    text
}

fn head(text: &mut String, gate: &Gate<'_>, width: usize) {
    field(text, "checked", &checked(gate), width);
    for finding in &gate.findings {
        let what = format!("{}: {}: {}", finding.rule.name(), said(finding.outcome), found(gate, finding));
        field(text, "rule", &what, width);
    }
    for reason in &gate.shortfalls {
        field(text, "partial", &shortfall(gate, *reason), width);
    }
    if let Some(what) = matched(gate) {
        field(text, "baseline", &what, width);
    }
    if !gate.profile.suppressed.is_empty() {
        field(text, "hidden", &hidden(gate.profile), width);
    }
    for note in notes(gate) {
        field(text, "note", &note, width);
    }
}

/// Whom, and for how long.
fn checked(gate: &Gate<'_>) -> String {
    let warm_up = match gate.run.warm_up_ns {
        0 => String::new(),
        warm_up_ns => format!(", after {} of warm-up", seconds(warm_up_ns)),
    };
    format!("{}, {}{warm_up}", who(gate.profile), seconds(gate.profile.window.elapsed_ns))
}

/// What a person reads of an outcome.
const fn said(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::NotSure => "not sure, no breach",
        Outcome::NotJudged => "NOT JUDGED",
        Outcome::Breached => "BREACH",
    }
}

/// How the call sites of the baseline were found again.
fn matched(gate: &Gate<'_>) -> Option<String> {
    let diff = gate.diff.as_ref()?;
    let matched = |how| diff.matched(how) as u64;
    let mut parts =
        vec![format!("{} matched by code", counted(matched(Match::Exact), "call site", "call sites"))];
    if matched(Match::Names) > 0 {
        parts.push(format!("{} by function names, since files differ", matched(Match::Names)));
    }
    let only =
        |test: &dyn Fn(&crate::profile::DiffRow) -> bool| diff.rows.iter().filter(|row| test(row)).count();
    parts.push(format!("{} new", only(&|row| row.before.sites.is_empty())));
    parts.push(format!("{} gone", only(&|row| row.after.sites.is_empty())));
    let missing = if diff.before.is_complete() { "" } else { "; its data is incomplete" };
    Some(format!(
        "{}{missing}; up to {} % worse counts as the same",
        parts.join(", "),
        gate.rules.tolerance_percent
    ))
}

/// What is no breach and worth to know.
pub(super) fn notes(gate: &Gate<'_>) -> Vec<String> {
    let profile = gate.profile;
    let mut notes = Vec::new();
    if !gate.undetermined.is_empty() {
        let sites = counted(gate.undetermined.len() as u64, "call site grows", "call sites grow");
        let named: Vec<String> = gate
            .undetermined
            .iter()
            .filter_map(|index| gate.site(*index))
            .take(OPEN_SHOWN)
            .map(|site| format!("{} ({})", culprit(gate, site), grown(gate, site)))
            .collect();
        let needed =
            gate.undetermined.iter().filter_map(|index| gate.site(*index)?.verdict.as_ref()?.needed_s());
        let needed = needed.fold(0.0, f64::max);
        let how_long = if needed > 0.0 {
            format!("; measure for {} more to know", seconds((needed.clamp(1.0, 1e6).ceil() * 1e9) as u64))
        } else {
            String::new()
        };
        let more = if gate.undetermined.len() > OPEN_SHOWN { ", …" } else { "" };
        notes.push(format!("{sites} and may leak, or not: {}{more}{how_long}", named.join(", ")));
    }
    let is_open =
        |rule| gate.findings.iter().any(|finding| finding.rule == rule && finding.outcome != Outcome::Passed);
    if is_open(GateRule::RssGrowth) {
        notes.extend(ledger(gate));
    }
    let asks_unfreed = gate.findings.iter().any(|finding| finding.rule == GateRule::Unfreed);
    if gate.run.command_status.is_some() && !asks_unfreed && profile.totals.outstanding_count > 0 {
        notes.push(format!(
            "{} in {} not freed at the end, which no rule limits (--max-unfreed)",
            size(profile.totals.outstanding_bytes),
            counted(profile.totals.outstanding_count, "block was", "blocks were"),
        ));
    }
    notes
}

/// Where resident memory grows most.
fn ledger(gate: &Gate<'_>) -> Option<String> {
    let mut lines: Vec<_> = gate
        .profile
        .ledger()?
        .lines
        .iter()
        .filter_map(|line| Some((line.growth_bytes_per_s.filter(|rate| *rate > 0.0)?, line)))
        .collect();
    lines.sort_by(|a, b| b.0.total_cmp(&a.0));
    let named: Vec<String> = lines
        .into_iter()
        .take(LEDGER_SHOWN)
        .map(|(rate, line)| {
            let label =
                line.row.label.as_deref().map(|label| format!(" {}", escape(label))).unwrap_or_default();
            format!("{}{label} {}", line.row.class.name(), per(rate, gate.unit()))
        })
        .collect();
    (!named.is_empty()).then(|| format!("resident memory grows in {}", named.join(", ")))
}

/// The function that asked for the memory, safe to print.
fn culprit(gate: &Gate<'_>, site: &Site) -> String {
    if site.is_lost {
        return "stack lost".to_owned();
    }
    let line = gate.profile.stack(site).nth(site.culprit);
    line.map_or_else(|| "no stack".to_owned(), |line| escape(&line.label()).into_owned())
}

/// How fast a site grows, in the limit's unit; empty where that is not known.
fn grown(gate: &Gate<'_>, site: &Site) -> String {
    let leak = site.verdict.as_ref().and_then(|verdict| verdict.growth_bytes_per_s);
    let rate = leak.or(site.growth_bytes_per_s);
    rate.map_or_else(String::new, |rate| per(rate, gate.unit()))
}

/// What a site holds and does, on one line.
fn numbers(gate: &Gate<'_>, offender: &Offender, site: &Site) -> String {
    let (one, many) = match site.lens {
        Lens::Malloc => ("block", "blocks"),
        Lens::Mmap => ("mapping", "mappings"),
        Lens::Faults => ("page", "pages"),
    };
    let kind = site.verdict.as_ref().filter(|verdict| !verdict.is_too_short());
    let grown = grown(gate, site);
    format!(
        "{}: {}{}{} in {}{}",
        offender.breaks.iter().map(|rule| rule.name()).collect::<Vec<_>>().join(", "),
        grown,
        if grown.is_empty() { "" } else { ", " },
        size(site.outstanding_bytes),
        counted(site.outstanding_count, one, many),
        kind.map_or_else(String::new, |verdict| format!(", {}", verdict.kind.name())),
    )
}

/// Numbers, evidence, the baseline, in plain lines.
fn facts(gate: &Gate<'_>, offender: &Offender, site: &Site) -> Vec<String> {
    let mut facts = vec![numbers(gate, offender, site)];
    let verdict = site.verdict.as_ref().filter(|verdict| !verdict.is_too_short());
    facts.extend(verdict.map(evidence).filter(|evidence| !evidence.is_empty()));
    facts.extend(offender.comparison.as_ref().map(|comparison| baseline(gate, comparison)));
    facts
}

fn block(gate: &Gate<'_>, number: usize, offender: &Offender, width: usize, paint: Paint) -> String {
    let Some(site) = gate.site(offender.site) else { return String::new() };
    let mut facts = facts(gate, offender, site).into_iter();
    let first = facts.next().unwrap_or_default();
    let mut lines = vec![paint.warning(&middle(&format!("{number:>3}. {first}"), width))];
    lines.extend(facts.map(|fact| wrapped(&format!("     {fact}"), width, "     ", |part| paint.dim(part))));
    lines.extend(stack(gate.profile, site, 0, width, paint));
    joined(&lines)
}

/// The lines of an offender without colours, for formats that have a place for text.
fn plain(gate: &Gate<'_>, offender: &Offender) -> String {
    const WIDTH: usize = 160;
    let Some(site) = gate.site(offender.site) else { return String::new() };
    let mut lines = facts(gate, offender, site);
    lines.extend(stack(gate.profile, site, 0, WIDTH, Paint::new(false)));
    joined(&lines)
}
