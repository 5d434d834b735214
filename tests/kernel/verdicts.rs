//! What is said of sites whose growth is known: all kinds at once in one process, a runtime's heap in another.

use std::collections::HashMap;
use std::process::Command;

use anyhow::{Context, ensure};
use tracer_tests::report::{Report, Site};
use tracer_tests::require::Need;
use tracer_tests::target::Target;
use tracer_tests::tracer::{COMPLETE, Recording};
use tracer_tests::{Result, require};

/// How far a rate may lie beside the truth.
const RATE_ROOM: f64 = 0.05;
const LEAK: &[&str] = &["leak"];
const LEVEL: &[&str] = &["plateau", "warm-up"];
const LEVEL_OR_OPEN: &[&str] = &["plateau", "warm-up", "undetermined"];

/// A site of `growth_cases`.
struct Case {
    function: &'static str,
    /// What may be said after 15 s,
    short: &'static [&'static str],
    /// and after 60 s.
    long: &'static [&'static str],
}

const fn case(function: &'static str, short: &'static [&'static str], long: &'static [&'static str]) -> Case {
    Case { function, short, long }
}

const CASES: &[Case] = &[
    case("steady_leak", LEAK, LEAK),
    // 480 bytes a second under megabytes.
    case("churn_block", LEAK, LEAK),
    case("masked_leak", LEAK, LEAK),
    case("masking_block", LEVEL_OR_OPEN, LEVEL),
    // One of four threads.
    case("worker_block", LEAK, LEAK),
    case("grow_buffer", LEAK, LEAK),
    case("cache_entry", LEVEL_OR_OPEN, LEVEL),
    case("saw_block", &["sawtooth", "plateau", "undetermined"], &["sawtooth"]),
    case("warm_up", LEVEL_OR_OPEN, LEVEL),
    case("fragment", LEVEL_OR_OPEN, LEVEL),
    case("queued_block", LEVEL_OR_OPEN, LEVEL_OR_OPEN),
];

/// The one site whose innermost frame of the program is this function.
fn site<'a>(report: &'a Report, pid: u32, function: &str) -> Result<&'a Site> {
    let is_of = |site: &&Site| site.pid == Some(pid) && site.functions().contains(&function);
    let sites: Vec<&Site> = report.sites.iter().filter(is_of).collect();
    ensure!(sites.len() == 1, "{} sites of {function}", sites.len());
    sites.into_iter().next().context("none")
}

/// Both programs, recorded for so long by one offheap.
fn judged(seconds: u32, kinds: fn(&Case) -> &'static [&'static str]) -> Result {
    let mut cases = Target::start("growth_cases")?;
    let mut run = Command::new("python3");
    run.arg(tracer_tests::build::sources().join("growth_python.py"));
    let mut python = Target::start_command(run)?;
    let (pid, python_pid) = (cases.pid(), python.pid());
    let recording =
        Recording::attach_with(&["-p", &pid.to_string(), "-p", &python_pid.to_string(), "--no-follow"])?;
    let order = format!("run {seconds}");
    python.send(&order)?;
    let truth = cases.ask(&order)?;
    let objects = python.answers()?;
    let finished = recording.stop()?;
    cases.finish_well()?;
    python.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    let mut wrong = Vec::new();
    for case in CASES {
        if let Err(error) = judge(&report, pid, case, kinds(case), &truth) {
            wrong.push(format!("{}: {error:#}", case.function));
        }
    }
    // Nothing but the leaks is called one, whatever it is: the runtime's own memory neither.
    for site in report.sites.iter().filter(|site| site.verdict.as_deref() == Some("leak")) {
        let is_known = |case: &Case| kinds(case) == LEAK && site.functions().contains(&case.function);
        if !CASES.iter().any(is_known) {
            wrong.push(format!("a leak: {:?} {:?} {:?}", site.lens, site.functions(), site.evidence));
        }
    }
    let objects = *objects.get("objects.bytes").context("no answer")?;
    let grown = report.set_aside("managed-heap").0;
    // CPython takes arenas of 1 MiB, pools in them are of one size each.
    let apart = grown.abs_diff(objects) as f64;
    if apart > RATE_ROOM * objects as f64 + f64::from(1 << 20) {
        wrong.push(format!("the heap of Python grew by {objects} bytes, {grown} are set aside"));
    }
    ensure!(wrong.is_empty(), "after {seconds} s:\n{}", wrong.join("\n"));
    Ok(())
}

fn judge(report: &Report, pid: u32, case: &Case, kinds: &[&str], truth: &HashMap<String, u64>) -> Result {
    let site = site(report, pid, case.function)?;
    let said = site.verdict.as_deref().context("no verdict")?;
    let evidence = site.evidence.as_ref().context("no evidence")?;
    ensure!(kinds.contains(&said), "{said} instead of {kinds:?}: {evidence}");
    if said == "undetermined" {
        let more_s = evidence["needed_s"].as_f64().context("it does not say how long to look")?;
        ensure!((1.0..=3600.0).contains(&more_s), "{more_s} s more");
    }
    let fact = |name: &str| truth.get(&format!("{}.{name}", case.function)).map(|number| *number as f64);
    let Some(bytes) = fact("bytes") else { return Ok(()) };
    let first = fact("first_us").zip(fact("first_bytes")).context("no first block")?;
    let seconds = (fact("last_us").context("no last block")? - first.0) / 1e6;
    let true_rate = (bytes - first.1) / seconds;
    let rate = evidence["growth_bytes_per_s"].as_f64().context("no rate")?;
    ensure!(
        (rate / true_rate - 1.0).abs() <= RATE_ROOM,
        "{rate} bytes/s, and {true_rate} in truth: {evidence}"
    );
    Ok(())
}

/// Two recordings at the same time, each of programs of its own.
#[test]
fn sites_whose_growth_is_known() -> Result {
    require!(Need::Program("gcc"), Need::Program("python3"));
    let (long, short) = std::thread::scope(|scope| {
        let long = scope.spawn(|| judged(60, |case| case.long));
        let short = judged(15, |case| case.short);
        (long.join(), short)
    });
    let long = long.map_err(|_| anyhow::anyhow!("the thread has panicked"))?;
    let said = |result: Result| result.err().map(|error| format!("{error:#}"));
    let wrong: Vec<String> = [short, long].into_iter().filter_map(said).collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
