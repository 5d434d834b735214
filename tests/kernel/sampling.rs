//! Sampled recordings and budgets: estimates lie near the truth, and what was released is gone to the last byte.

use anyhow::{Context, ensure};
use serde_json::Value;
use tracer_tests::target::Target;
use tracer_tests::tracer::{COMPLETE, INCOMPLETE, Recording, offheap_output};
use tracer_tests::{Result, require};

const INTERVAL: f64 = 65_536.0;
/// How many standard errors an estimate may lie beside the truth: beyond five lies one normal number in two million.
const ERRORS: f64 = 5.0;

/// Sums over the sites with this function in their stack.
fn sum(report: &Value, function: &str, field: &str) -> Result<f64> {
    let sites = report["sites"].as_array().context("no sites")?;
    let is_of = |site: &&Value| {
        let frames = site["stack"].as_array().map_or(&[][..], Vec::as_slice);
        site["lens"] == "malloc" && frames.iter().any(|frame| frame["function"] == function)
    };
    Ok(sites.iter().filter(is_of).filter_map(|site| site[field].as_f64()).sum())
}

/// Fails unless the estimate lies near `truth`, whose variance is `variance`.
fn near(report: &Value, function: &str, field: &str, truth: f64, variance: f64) -> Result {
    let (found, error) = (sum(report, function, field)?, variance.sqrt());
    ensure!((found - truth).abs() <= ERRORS * error, "{function}: {field} is {found} for {truth} ± {error}");
    Ok(())
}

/// Variances of the estimated bytes and blocks of `count` blocks of `bytes`.
fn variances(count: f64, bytes: f64) -> (f64, f64) {
    let each = count / (bytes / INTERVAL).exp_m1();
    (each * bytes * bytes, each)
}

#[test]
fn sums_lie_within_the_stated_error() -> Result {
    require!();
    let mut target = Target::start("puppet")?;
    let recording = Recording::attach(&target, &["--sample", "64KiB", "--lens", "malloc"])?;
    for order in ["leak 300000 100", "regrow 2000 5000", "balance 100000 1000", "resize 3000 700"] {
        target.order(order)?;
    }
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let report: Value = serde_json::from_str(&finished.report_json(&[])?)?;
    ensure!(report["estimate"]["sample_bytes"] == 65_536.0, "{}", report["estimate"]);
    for (function, count, bytes) in [("site_leak", 3e5, 100.0), ("site_regrow", 2e3, 15_000.0)] {
        let (of_bytes, of_count) = variances(count, bytes);
        near(&report, function, "outstanding_bytes", count * bytes, of_bytes)?;
        near(&report, function, "outstanding_count", count, of_count)?;
    }
    // What the report states of itself: estimated from the sample, so near the true one.
    let stated = sum(&report, "site_leak", "outstanding_bytes_error")?;
    let exact = variances(3e5, 100.0).0.sqrt();
    ensure!((stated / exact - 1.0).abs() < 0.2, "the stated error is {stated}, the exact one {exact}");
    // Pairing is exact: what was sampled at its birth is known at its end, also when a resize is its end.
    for function in ["site_balance", "site_resize"] {
        for field in ["outstanding_bytes", "outstanding_count"] {
            let left = sum(&report, function, field)?;
            ensure!(left == 0.0, "{function}: {left} of {field}");
        }
    }
    near(&report, "site_balance", "allocated_bytes", 1e8, variances(1e5, 1000.0).0)?;
    near(&report, "site_balance", "freed_count", 1e5, variances(1e5, 1000.0).1)?;
    // Releases of blocks that were not sampled are no unknown ones: the report has no such number at all.
    let losses = report["completeness"]["losses"].as_array().context("no losses")?;
    ensure!(losses.iter().all(|loss| loss["reason"] != "unknown-release"), "{losses:?}");
    Ok(())
}

/// An interval far below every block samples all of them, and then the estimates are the truth.
#[test]
fn large_blocks_are_all_sampled() -> Result {
    require!();
    let mut target = Target::start("puppet")?;
    let recording = Recording::attach(&target, &["--sample", "4KiB", "--lens", "malloc"])?;
    for order in ["leak 50 131072", "balance 20 200000"] {
        target.order(order)?;
    }
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    ensure!(report.outstanding() == (50 * 131_072, 50), "{:?}", report.sites);
    Ok(())
}

/// At a steady pace, a part of the time tells of all of it. Releases are seen all the time: what windows have seen born is seen to
/// end, by `free` and by `realloc`.
#[test]
fn a_budget_is_held() -> Result {
    require!();
    const BUDGET_PERCENT: f64 = 7.0;
    let mut target = Target::start("paced")?;
    let recording = Recording::attach(&target, &["--max-overhead", "7%", "--lens", "malloc"])?;
    let truth = target.ask("9000")?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let report: Value = serde_json::from_str(&finished.report_json(&[])?)?;
    let windows = &report["estimate"]["windows"];
    let seen = windows["seen_percent"].as_f64().context("no share of the time")?;
    let kept = *truth.get("kept").context("no truth")? as f64;
    let found = sum(&report, "site_kept", "outstanding_count")?;
    ensure!((0.4..2.0).contains(&(found / kept)), "{found} for {kept} blocks, {windows}");
    for field in ["outstanding_bytes", "outstanding_count"] {
        let left = sum(&report, "site_churn", field)?;
        ensure!(left == 0.0, "{left} of {field}, {windows}");
    }
    let cost = &report["overhead"];
    let share = cost["target_percent"].as_f64().context("no cost")?;
    ensure!(share > 0.0 && share < 1.5 * BUDGET_PERCENT, "{cost}, {windows}");
    ensure!(seen > 1.0 && cost["probe_hits_per_s"].as_f64() > Some(100.0), "{cost}, {windows}");
    Ok(())
}

/// A program that does nothing but allocate and release cannot be held to a thousandth of its time.
#[test]
fn a_budget_that_cannot_be_held_ends_the_recording() -> Result {
    require!();
    let mut target = Target::start("puppet")?;
    let recording = Recording::attach(&target, &["--max-overhead", "0.1%", "--lens", "malloc"])?;
    target.send("balance 30000000 100")?;
    let finished = recording.finish()?;
    target.wait_done()?;
    target.finish_well()?;
    finished.expect_status(INCOMPLETE)?;
    let report: Value = serde_json::from_str(&finished.report_json(&[])?)?;
    ensure!(report["window"]["end"] == "over-budget", "{}", report["window"]);
    let hints = report["hints"].to_string();
    ensure!(hints.contains("cannot be held"), "{hints}");
    Ok(())
}

/// Traps cost something, and single-stepped ones more than emulated ones.
#[test]
fn traps_are_measured() -> Result {
    require!();
    let text = offheap_output(["doctor", "--calibrate"])?;
    let cost = |what: &str| -> Result<f64> {
        let line =
            text.lines().find(|line| line.contains(what)).with_context(|| format!("no {what}: {text}"))?;
        let (number, _) = line.trim().split_once(" ns").with_context(|| line.to_owned())?;
        Ok(number.replace(',', "").parse()?)
    };
    let [entry, stepped, exit] = [cost("emulated")?, cost("(`slow`")?, cost("exit probe")?];
    ensure!(entry > 10.0 && cost("return probe")? > 10.0 && stepped > entry && exit > entry, "{text}");
    let [untraced, empty, recorded] =
        [cost("untraced")?, cost("with empty programs at")?, cost("ns  recorded")?];
    ensure!(untraced < empty && untraced < recorded, "{text}");
    Ok(())
}
