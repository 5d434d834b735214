//! The result for programs: schema `offheap.check/1`, described by `docs/check-schema.json`.

use serde_json::{Value, json};

use super::super::json as report;
use super::{baseline, found, notes, shortfall, verdict};
use crate::model::EndReason;
use crate::profile::{Comparison, DiffRow, Finding, Gate, Growth, Match, Measure, Offender, Shortfall};

/// Name and version of the schema.
pub const CHECK_SCHEMA: &str = "offheap.check/1";

/// The result as text with a line end. A field that was not measured is null.
pub fn check_json(gate: &Gate<'_>, exit_status: u8) -> String {
    report::safe_text(&document(gate, exit_status))
}

pub(super) fn document(gate: &Gate<'_>, exit_status: u8) -> Value {
    let profile = gate.profile;
    json!({
        "schema": CHECK_SCHEMA,
        "verdict": gate.verdict().name(),
        "exit_status": exit_status,
        "sentence": verdict(gate),
        "target": report::target(&profile.header.target),
        "command_status": gate.run.command_status,
        "window": {
            "start": report::start(profile.header.start_realtime_ns),
            "warm_up_s": report::seconds(gate.run.warm_up_ns),
            "seconds": report::seconds(profile.window.elapsed_ns),
            "end": profile.window.end.map(EndReason::name),
            "points": profile.window.point_count,
        },
        "completeness": report::completeness(profile),
        "shortfalls": gate.shortfalls.iter().map(|reason| json!({
            "reason": reason_name(*reason),
            "rule": match reason {
                Shortfall::NotJudged(rule) => Some(rule.name()),
                _ => None,
            },
            "sentence": shortfall(gate, *reason),
        })).collect::<Vec<_>>(),
        "rules": gate.findings.iter().map(|row| finding(gate, row)).collect::<Vec<_>>(),
        "totals": report::totals(profile),
        "baseline": compared(gate),
        "suppressed": report::suppressed(profile),
        "offenders": gate.offenders.iter().filter_map(|row| offender(gate, row)).collect::<Vec<_>>(),
        "undetermined": gate.undetermined.iter().filter_map(|index| {
            Some(report::site(profile, gate.site(*index)?))
        }).collect::<Vec<_>>(),
        "notes": notes(gate),
        "hints": profile.hints,
    })
}

const fn reason_name(reason: Shortfall) -> &'static str {
    match reason {
        Shortfall::DataMissing => "data-missing",
        Shortfall::Interrupted => "interrupted",
        Shortfall::EndedEarly => "ended-early",
        Shortfall::NotJudged(_) => "not-judged",
    }
}

fn finding(gate: &Gate<'_>, finding: &Finding) -> Value {
    let mut value = json!({
        "rule": finding.rule.name(),
        "outcome": finding.outcome.name(),
        "sentence": found(gate, finding),
        "leak_sites": null,
        "growth": null,
        "unfreed": null,
    });
    let (name, measure) = match &finding.measure {
        Measure::LeakSites { found, known, slow, allowed } => {
            ("leak_sites", json!({ "found": found, "known": known, "slow": slow, "allowed": allowed }))
        }
        Measure::Growth(measure) => ("growth", growth(measure)),
        Measure::Unfreed { found_bytes, allowed_bytes } => {
            ("unfreed", json!({ "found_bytes": found_bytes, "allowed_bytes": allowed_bytes }))
        }
    };
    value[name] = measure;
    value
}

fn growth(growth: &Growth) -> Value {
    let slope = growth.slope();
    let interval = slope.and_then(|slope| slope.1);
    json!({
        "bytes_per_s": slope.map(|slope| slope.0),
        "low_bytes_per_s": interval.map(|interval| interval.0),
        "high_bytes_per_s": interval.map(|interval| interval.1),
        "limit_bytes_per_s": growth.limit.bytes_per_s(),
        "allowed_bytes_per_s": growth.allowed_bytes_per_s,
        "baseline_bytes_per_s": growth.baseline_bytes_per_s,
        "series": growth.trend.as_ref().map(|trend| trend.kind.name()),
        "reason": growth.trend.as_ref().map(|trend| trend.reason.name()),
        "samples": growth.trend.as_ref().map_or(0, |trend| trend.evidence.samples),
        "needed_s": growth.trend.as_ref().and_then(|trend| trend.needed_s),
    })
}

fn compared(gate: &Gate<'_>) -> Option<Value> {
    let diff = gate.diff.as_ref()?;
    let count = |test: &dyn Fn(&DiffRow) -> bool| diff.rows.iter().filter(|row| test(row)).count();
    Some(json!({
        "start": report::start(diff.before.header.start_realtime_ns),
        "seconds": report::seconds(diff.before.window.elapsed_ns),
        "complete": diff.before.is_complete(),
        "tolerance_percent": gate.rules.tolerance_percent,
        "matched": {
            "exact": diff.matched(Match::Exact),
            "names": diff.matched(Match::Names),
        },
        "new": count(&|row| row.before.sites.is_empty()),
        "gone": count(&|row| row.after.sites.is_empty()),
        "rebuilt": diff.rebuilt,
    }))
}

fn offender(gate: &Gate<'_>, offender: &Offender) -> Option<Value> {
    let comparison = |comparison: &Comparison| {
        json!({
            "standing": comparison.standing.name(),
            "matched": comparison.matched.name(),
            "before_bytes": comparison.before_bytes,
            "before_bytes_per_s": comparison.before_bytes_per_s,
            "sentence": baseline(gate, comparison),
        })
    };
    Some(json!({
        "breaks": offender.breaks.iter().map(|rule| rule.name()).collect::<Vec<_>>(),
        "baseline": offender.comparison.as_ref().map(comparison),
        "site": report::site(gate.profile, gate.site(offender.site)?),
    }))
}
