//! Sentences of a gate that every format uses. Names in them are escaped.

use super::super::escape;
use super::super::human::{count, counted, seconds, size};
use super::{culprit, grown};
use crate::profile::{
    Comparison, Finding, Gate, GateRule, GateVerdict, Growth, Match, Measure, Outcome, RateUnit, Shortfall,
    Standing,
};
use crate::trend::Reason;

/// Bytes per second in another unit of time, with a sign.
pub(super) fn per(bytes_per_s: f64, unit: RateUnit) -> String {
    let amount = bytes_per_s * unit.seconds();
    let bytes = amount.abs().round() as u64;
    match (bytes, amount < 0.0) {
        (0, _) => format!("0 B/{}", unit.name()),
        (_, true) => format!("-{}/{}", size(bytes), unit.name()),
        (_, false) => format!("+{}/{}", size(bytes), unit.name()),
    }
}

/// The first line of all.
pub(super) fn verdict(gate: &Gate<'_>) -> String {
    let of = |outcome| gate.findings.iter().filter(move |finding| finding.outcome == outcome);
    let said = |outcome| of(outcome).map(|finding| short(gate, finding)).collect::<Vec<_>>().join("; ");
    let not_sure: Vec<&str> = of(Outcome::NotSure).map(|finding| finding.rule.name()).collect();
    let mut line = match gate.verdict() {
        GateVerdict::Breached => format!("BREACH: {}", said(Outcome::Breached)),
        GateVerdict::CommandFailed => "FAILED: no rule is broken in what was seen".to_owned(),
        GateVerdict::Incomplete => "INCOMPLETE: no rule is broken in what was seen".to_owned(),
        GateVerdict::Passed => format!("passed: {}", said(Outcome::Passed)),
    };
    if !not_sure.is_empty() {
        line.push_str(if line.ends_with(": ") { "" } else { "; " });
        line.push_str(&format!("not sure of {}", not_sure.join(" and ")));
    }
    if let Some(status) = gate.run.command_status.filter(|status| *status != 0) {
        line.push_str(&format!("; the command failed with exit status {status}"));
    }
    let is_open = |reason: &&Shortfall| matches!(reason, Shortfall::NotJudged(_));
    let partial = gate.shortfalls.iter().filter(|reason| !is_open(reason));
    for reason in partial.map(|reason| shortfall(gate, *reason)) {
        line.push_str(&format!("; {reason}"));
    }
    let open: Vec<&str> = of(Outcome::NotJudged).map(|finding| finding.rule.name()).collect();
    if !open.is_empty() {
        let seconds = seconds(gate.profile.window.elapsed_ns);
        line.push_str(&format!("; {} not judged in {seconds}", open.join(" and ")));
    }
    line
}

/// A finding in a few words; of leaks with the first one's name.
fn short(gate: &Gate<'_>, finding: &Finding) -> String {
    let what = match &finding.measure {
        Measure::Growth(growth) => growth_in_short(finding, growth),
        _ => found(gate, finding),
    };
    let first = gate.offenders.first().filter(|first| first.breaks.contains(&finding.rule));
    let site = first.and_then(|first| gate.site(first.site));
    match site.filter(|_| finding.rule == GateRule::LeakSites) {
        Some(site) => format!("{what}: {} {}", culprit(gate, site), grown(gate, site)),
        None => what,
    }
}

/// What was found for a rule, beside what is allowed.
pub(super) fn found(gate: &Gate<'_>, finding: &Finding) -> String {
    match &finding.measure {
        Measure::LeakSites { found, known, slow, allowed } => {
            let mut text = match (finding.outcome, found) {
                (Outcome::NotJudged, _) => "too little was seen to call anything a leak".to_owned(),
                (_, 0) => "no call site leaks".to_owned(),
                _ => counted(*found as u64, "call site leaks", "call sites leak"),
            };
            if *known > 0 {
                text.push_str(&format!(" besides {} known from the baseline", count(*known as u64)));
            }
            if let Some(least) = gate.rules.min_leak_rate.filter(|_| *slow > 0) {
                let slow = counted(*slow as u64, "leak", "leaks");
                text.push_str(&format!(" besides {slow} below {}/{}", size(least.bytes), least.unit.name()));
            }
            if *found > 0 || *allowed > 0 {
                text.push_str(&format!(", {} allowed", count(u64::from(*allowed))));
            }
            text
        }
        Measure::Growth(growth) => grows(finding, growth),
        Measure::Unfreed { found_bytes: None, .. } => "allocator calls were not recorded".to_owned(),
        Measure::Unfreed { found_bytes: Some(bytes), allowed_bytes } => {
            let than = if gate.diff.is_some() { " more than in the baseline" } else { "" };
            format!("{}{than} unfreed at the end, {} allowed", size(*bytes), size(*allowed_bytes))
        }
    }
}

/// Whose growth it is.
const fn sum_of(rule: GateRule) -> &'static str {
    match rule {
        GateRule::RssGrowth => "resident memory",
        _ => "unfreed and mapped memory",
    }
}

/// Without the interval and the baseline.
fn growth_in_short(finding: &Finding, growth: &Growth) -> String {
    let unit = growth.limit.unit;
    let slope = growth.slope().map_or_else(String::new, |slope| format!(" {}", per(slope.0, unit)));
    format!("{}{slope}, {}/{} allowed", sum_of(finding.rule), size(growth.limit.bytes), unit.name())
}

fn grows(finding: &Finding, growth: &Growth) -> String {
    let what = sum_of(finding.rule);
    let unit = growth.limit.unit;
    let Some((slope, interval)) = growth.slope() else {
        let needed = growth.trend.as_ref().and_then(|trend| trend.needed_s);
        let needed = needed.map_or_else(String::new, |needed_s| {
            format!(", measure for {} more", seconds((needed_s.clamp(1.0, 1e9).ceil() * 1e9) as u64))
        });
        return format!("too few samples of {what}{needed}");
    };
    let interval = match interval {
        Some((low, high)) => format!("95 % interval {} to {}", per(low, unit), per(high, unit)),
        None => "interval unknown".to_owned(),
    };
    let known = match growth.baseline_bytes_per_s {
        Some(before) => format!(" beside {} of the baseline", per(before, unit)),
        None => String::new(),
    };
    let why = match (finding.outcome, &growth.trend) {
        (Outcome::NotSure, Some(trend)) => {
            format!(": {}", unsure(growth, interval_is_above(growth), trend.reason))
        }
        _ => String::new(),
    };
    format!(
        "{what} {} ({interval}), {}/{} allowed{known}{why}",
        per(slope, unit),
        size(growth.limit.bytes),
        unit.name()
    )
}

fn interval_is_above(growth: &Growth) -> bool {
    growth.slope().and_then(|slope| slope.1).is_some_and(|(low, _)| low > growth.allowed_bytes_per_s)
}

/// Why growth above the limit is no breach.
fn unsure(growth: &Growth, is_above: bool, reason: Reason) -> String {
    if !is_above {
        "the interval includes the limit, measure for longer".to_owned()
    } else if growth.goes_on() {
        reason.phrase().to_owned()
    } else {
        format!("{}; leave the beginning out with --warm-up, or measure for longer", reason.phrase())
    }
}

/// Why a result is partial.
pub(super) fn shortfall(gate: &Gate<'_>, shortfall: Shortfall) -> String {
    let window = seconds(gate.profile.window.elapsed_ns);
    match shortfall {
        Shortfall::DataMissing => {
            let completeness = &gate.profile.completeness;
            let mut reasons: Vec<String> =
                completeness.incomplete_losses().map(|loss| escape(&loss.reason).into_owned()).collect();
            if !completeness.is_finished {
                reasons.push("unfinished recording".to_owned());
            }
            if completeness.skipped_rows > 0 {
                reasons.push("damaged rows".to_owned());
            }
            format!("data is missing: {}", reasons.join(", "))
        }
        Shortfall::Interrupted => format!("it was interrupted after {window}"),
        Shortfall::EndedEarly => format!("the processes ended after {window}, before the time was up"),
        Shortfall::NotJudged(GateRule::Unfreed) => {
            "unfreed was not judged: record allocator calls (--lens malloc)".to_owned()
        }
        Shortfall::NotJudged(rule) => {
            let unfreed = match gate.run.command_status {
                Some(_) => "; for short commands there is --max-unfreed",
                None => "",
            };
            format!("{} was not judged: {window} were measured, which is too short{unfreed}", rule.name())
        }
    }
}

/// A call site beside the baseline's.
pub(super) fn baseline(gate: &Gate<'_>, comparison: &Comparison) -> String {
    let held = comparison.before_bytes.map_or_else(String::new, |bytes| format!("it held {}", size(bytes)));
    let grew = comparison.before_bytes_per_s.map(|rate| format!(" and grew by {}", per(rate, gate.unit())));
    let then = format!("{held}{}", grew.unwrap_or_default());
    let how = match comparison.matched {
        Match::Exact => ", matched by code",
        Match::Names => ", matched by function names",
        Match::Alone => "",
    };
    match comparison.standing {
        Standing::New => "not in the baseline".to_owned(),
        Standing::Faster => format!("it grows faster than in the baseline, where {then}{how}"),
        Standing::More => format!("it holds more than in the baseline, where {then}{how}"),
        Standing::Known => format!("known from the baseline, where {then}{how}"),
    }
}
