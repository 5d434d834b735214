//! The result as JUnit XML: one test case for each rule, one for whether everything was seen, and one for the command.

use std::fmt::Write as _;

use super::super::escape;
use super::super::human::seconds;
use super::super::json::start;
use super::{checked, found, notes, plain, shortfall, verdict};
use crate::profile::{Finding, Gate, Offender, Outcome, Shortfall};

/// One test case.
struct Case {
    name: &'static str,
    /// `failure` or `error`, its type and its message; `None` where it passed.
    problem: Option<(&'static str, &'static str, String)>,
    /// What is beside it: the call sites, or what was measured.
    details: String,
}

/// The document with a line end. Every string that comes from the target is escaped twice: as for a terminal, and
/// as XML demands.
pub fn junit(gate: &Gate<'_>) -> String {
    let cases = cases(gate);
    let with = |what: &str| {
        cases.iter().filter(|case| case.problem.as_ref().is_some_and(|problem| problem.0 == what)).count()
    };
    let (tests, failures, errors) = (cases.len(), with("failure"), with("error"));
    let time = gate.profile.window.elapsed_ns as f64 / 1e9;
    let counts =
        format!(r#"tests="{tests}" failures="{failures}" errors="{errors}" skipped="0" time="{time:.3}""#);
    let started = start(gate.profile.header.start_realtime_ns);
    let started = started.map_or_else(String::new, |at| format!(r#" timestamp="{}""#, xml(&at)));
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    // Writing to a string does not fail.
    let _ = writeln!(text, r#"<testsuites name="offheap check" {counts}>"#);
    let _ = writeln!(
        text,
        r#"  <testsuite name="{}" {counts}{started}>"#,
        xml(&format!("offheap check: {}", checked(gate)))
    );
    for case in &cases {
        write_case(&mut text, case, time);
    }
    let mut said = vec![verdict(gate)];
    said.extend(notes(gate));
    let _ = writeln!(text, "    <system-out>{}</system-out>", xml(&said.join("\n")));
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}

fn cases(gate: &Gate<'_>) -> Vec<Case> {
    let mut cases: Vec<Case> = gate.findings.iter().map(|row| of_rule(gate, row)).collect();
    let partial: Vec<String> = gate
        .shortfalls
        .iter()
        .filter(|reason| !matches!(reason, Shortfall::NotJudged(_)))
        .map(|reason| shortfall(gate, *reason))
        .collect();
    cases.push(Case {
        name: "complete",
        problem: (!partial.is_empty()).then(|| ("error", "incomplete", partial.join("; "))),
        details: format!("{} were measured", seconds(gate.profile.window.elapsed_ns)),
    });
    if let Some(status) = gate.run.command_status {
        let failed = (status != 0)
            .then(|| ("error", "command-failed", format!("the command failed with exit status {status}")));
        let details = escape(&gate.profile.header.target.cmdline.join(" ")).into_owned();
        cases.push(Case { name: "command", problem: failed, details });
    }
    cases
}

fn of_rule(gate: &Gate<'_>, finding: &Finding) -> Case {
    let name = finding.rule.name();
    let said = found(gate, finding);
    let breaks = |offender: &&Offender| offender.breaks.contains(&finding.rule);
    let sites =
        || gate.offenders.iter().filter(breaks).map(|row| plain(gate, row)).collect::<Vec<_>>().join("\n");
    match finding.outcome {
        Outcome::Breached => {
            let sites = sites();
            Case { name, details: format!("{said}\n\n{sites}"), problem: Some(("failure", "breach", said)) }
        }
        Outcome::NotJudged => {
            let why = shortfall(gate, Shortfall::NotJudged(finding.rule));
            Case { name, problem: Some(("error", "not-judged", why)), details: said }
        }
        Outcome::NotSure => Case { name, problem: None, details: format!("not sure: {said}") },
        Outcome::Passed => Case { name, problem: None, details: said },
    }
}

fn write_case(text: &mut String, case: &Case, time: f64) {
    let _ = write!(text, r#"    <testcase classname="offheap.check" name="{}" time="{time:.3}">"#, case.name);
    let details = xml(&case.details);
    let _ = match &case.problem {
        Some((what, kind, message)) => {
            write!(text, r#"<{what} type="{kind}" message="{}">{details}</{what}>"#, xml(message))
        }
        None => write!(text, "<system-out>{details}</system-out>"),
    };
    text.push_str("</testcase>\n");
}

/// Text that is safe between tags and in an attribute. XML 1.0 has no place for most control characters, escaped or
/// not, nor for two of Unicode's non-characters.
fn xml(text: &str) -> String {
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&apos;"),
            '\n' => safe.push('\n'),
            '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            other if other.is_control() => safe.push('\u{fffd}'),
            other => safe.push(other),
        }
    }
    safe
}
