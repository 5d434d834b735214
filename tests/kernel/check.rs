//! `offheap check`: what it says of targets that leak, or do not, at a rate that is a function of time.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::Value;
use tracer_tests::gate::{Gate, Judged};
use tracer_tests::target::{Target, command};
use tracer_tests::tracer::{COMPLETE, FAILED, INCOMPLETE, USAGE, offheap};
use tracer_tests::{Result, build, require};

/// A rule is broken.
const BREACH: i32 = 4;
/// What `worker` keeps at `site_leak`: 512 bytes every 20 ms.
const LEAK_BYTES_PER_S: f64 = 25_600.0;
/// The same at `site_second_leak`.
const SECOND_LEAK_BYTES_PER_S: f64 = 12_800.0;
/// What it holds from the beginning.
const CACHE_BYTES: u64 = 64 * 1024;

fn worker(kind: &str) -> Result<Target> {
    let mut worker = command("worker")?;
    worker.arg(kind);
    Target::start_command(worker)
}

/// Checks a worker that begins when the probes are in place. The capture is kept.
fn check(kind: &str, capture: &Path, more: &[&str]) -> Result<(Gate, Target)> {
    let mut target = worker(kind)?;
    let pid = target.pid().to_string();
    let fixed = ["--interval", "200ms", "--duration", "12s", "--warm-up", "1s", "--format", "json", &pid];
    let fixed = fixed.iter().chain(more).map(OsString::from);
    let capture = [OsString::from("--capture"), capture.into()];
    let mut gate = Gate::start(fixed.chain(capture))?;
    gate.wait_until_attached()?;
    target.send("go")?;
    Ok((gate, target))
}

fn conclude((gate, target): (Gate, Target), status: i32) -> Result<Judged> {
    let judged = gate.finish()?;
    target.finish_well()?;
    judged.expect_status(status)?;
    ensure!(judged.json()?["exit_status"] == status, "{}", judged.output);
    Ok(judged)
}

fn within_5_percent(found: &Value, wanted: f64) -> Result {
    let found = found.as_f64().with_context(|| format!("not a number: {found}"))?;
    ensure!((found - wanted).abs() <= 0.05 * wanted, "{found} instead of {wanted}");
    Ok(())
}

/// A leak is named with its rate; what does not leak passes; a baseline excuses what it has and nothing else.
#[test]
fn leaks_and_baselines() -> Result {
    require!();
    let directory = tempfile::tempdir()?;
    let capture = |name: &str| directory.path().join(name);
    let rules = ["--max-leak-sites", "0", "--max-growth", "512KiB/min", "--max-rss-growth", "1GiB/s"];
    let (level, leak) =
        (check("level", &capture("level"), &rules)?, check("leak", &capture("leak"), &rules)?);
    let level = conclude(level, COMPLETE)?;
    ensure!(level.json()?["verdict"] == "passed" && level.culprits()?.is_empty(), "{}", level.output);
    let leak = conclude(leak, BREACH)?;
    let json = leak.json()?;
    ensure!(leak.culprits()? == ["site_leak"], "{}", leak.output);
    ensure!(json["offenders"][0]["breaks"] == serde_json::json!(["leak-sites", "growth"]), "{json:#}");
    ensure!(json["window"]["warm_up_s"] == 1.0, "{json:#}");
    within_5_percent(&json["offenders"][0]["site"]["evidence"]["growth_bytes_per_s"], LEAK_BYTES_PER_S)?;
    within_5_percent(&json["rules"][1]["growth"]["bytes_per_s"], LEAK_BYTES_PER_S)?;

    let against = |kind: &str, before: &str, after: &str| {
        let before = capture(before);
        let before = before.to_str().context("not UTF-8")?;
        check(kind, &capture(after), &["--baseline", before])
    };
    let (new, known, second) =
        (against("leak", "level", "a")?, against("leak", "leak", "b")?, against("both", "leak", "c")?);
    let new = conclude(new, BREACH)?;
    ensure!(new.culprits()? == ["site_leak"], "{}", new.output);
    let standing = new.json()?["offenders"][0]["baseline"]["standing"].clone();
    ensure!(standing == "new", "{standing}");
    let known = conclude(known, COMPLETE)?.json()?;
    let leaks = &known["rules"][0]["leak_sites"];
    ensure!(leaks["found"] == 0 && leaks["known"] == 1, "{known:#}");
    ensure!(known["baseline"]["matched"]["exact"].as_u64() >= Some(1), "{known:#}");
    let second = conclude(second, BREACH)?;
    ensure!(second.culprits()? == ["site_second_leak"], "{}", second.output);
    let json = second.json()?;
    within_5_percent(&json["offenders"][0]["site"]["evidence"]["growth_bytes_per_s"], SECOND_LEAK_BYTES_PER_S)
}

/// Runs a worker under the gate to its end.
fn run(options: &[&str], work: &[&str]) -> Result<Judged> {
    let program: PathBuf = build::target("worker")?;
    let options = options.iter().map(OsString::from).chain([OsString::from("--"), program.into()]);
    Gate::start(options.chain(work.iter().map(OsString::from)))?.finish()
}

/// What a command has not freed at its end is limited to the byte; a command that fails is not forgotten.
#[test]
fn commands_that_run_to_their_end() -> Result {
    require!();
    let left = CACHE_BYTES + 100 * 512;
    let unfreed =
        |limit: u64, work: &[&str]| run(&["--format", "json", "--max-unfreed", &format!("{limit}B")], work);
    let judged = unfreed(left - 1, &["leak", "2000"])?;
    judged.expect_status(BREACH)?;
    ensure!(judged.json()?["rules"][0]["unfreed"]["found_bytes"] == left, "{}", judged.output);
    ensure!(judged.culprits()? == ["site_cache", "site_leak"], "{}", judged.output);
    let judged = unfreed(left, &["leak", "2000"])?;
    judged.expect_status(COMPLETE)?;
    ensure!(judged.json()?["command_status"] == 0, "{}", judged.output);

    let judged = run(&["--max-unfreed", "1MiB"], &["level", "100", "7"])?;
    judged.expect_status(FAILED)?;
    let first = judged.output.lines().next().unwrap_or_default();
    ensure!(first.starts_with("FAILED") && first.contains("exit status 7"), "{}", judged.output);
    // Both: the breach decides, the failure is said.
    let judged = run(&["--max-unfreed", "0B"], &["level", "100", "7"])?;
    judged.expect_status(BREACH)?;
    let head = judged.output.split("checked").next().unwrap_or_default().replace("\n ", "");
    ensure!(head.starts_with("BREACH") && head.contains("exit status 7"), "{}", judged.output);
    // Nothing can be told of leaks in a tenth of a second: that is no pass.
    let judged = run(&[], &["level", "100"])?;
    judged.expect_status(INCOMPLETE)?;
    ensure!(
        judged.output.starts_with("INCOMPLETE") && judged.output.contains("--max-unfreed"),
        "{}",
        judged.output
    );
    Ok(())
}

/// Each format has what its reader looks for; a result in a file leaves the text for the log.
#[test]
fn formats() -> Result {
    require!();
    let work = ["leak", "400"];
    let github = run(&["--format", "github", "--max-unfreed", "0B"], &work)?;
    github.expect_status(BREACH)?;
    ensure!(github.output.lines().all(|line| line.starts_with("::error ")), "{}", github.output);
    let named = |line: &&str| line.contains("worker.c,line=") && line.contains("site_cache");
    ensure!(github.output.lines().any(|line| named(&line)), "{}", github.output);

    let directory = tempfile::tempdir()?;
    let file = directory.path().join("result.xml");
    let path = file.to_str().context("not UTF-8")?;
    let options = ["--format", "junit", "--max-unfreed", "0B", "--max-growth", "1MiB/min", "--out", path];
    let junit = run(&options, &work)?;
    junit.expect_status(BREACH)?;
    ensure!(junit.output.starts_with("BREACH") && junit.output.contains("site_cache"), "{}", junit.output);
    let xml = std::fs::read_to_string(&file)?;
    let count = |part: &str| xml.matches(part).count();
    ensure!(xml.starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites "), "{xml}");
    ensure!(count("<testcase ") == 5 && count("</testcase>") == 5, "{xml}");
    ensure!(xml.contains("tests=\"5\" failures=\"1\" errors=\"2\" skipped=\"0\""), "{xml}");
    ensure!(count("<failure ") == 1 && count("</failure>") == 1 && xml.contains("site_cache"), "{xml}");
    // The file is not overwritten, and that is said before anything is run.
    let again = run(&options, &["level", "100", "9"])?;
    again.expect_status(FAILED)?;
    ensure!(again.output.is_empty() && again.errors.concat().contains("--force"), "{:?}", again.errors);
    Ok(())
}

/// A process that ends early has not passed, and nothing of the recording is left.
#[test]
fn ends_early() -> Result {
    require!();
    let mut target = worker("level")?;
    let pid = target.pid().to_string();
    let mut gate = Gate::start(["--duration", "30s", &pid])?;
    let leftover = format!("offheap-check-{}-", gate.pid());
    let is_left = || -> Result<bool> {
        let mut names = std::fs::read_dir("/tmp")?.filter_map(std::result::Result::ok);
        Ok(names.any(|entry| entry.file_name().to_string_lossy().starts_with(&leftover)))
    };
    gate.wait_until_attached()?;
    ensure!(is_left()?, "the recording is not where this test looks for it");
    target.send("go")?;
    target.finish_well()?;
    let judged = gate.finish()?;
    judged.expect_status(INCOMPLETE)?;
    ensure!(judged.output.contains("before the time was up"), "{}", judged.output);
    ensure!(!is_left()?, "the recording is left");
    Ok(())
}

/// What cannot be compared is refused at once.
#[test]
fn refusals() -> Result {
    require!();
    let status = |arguments: &[&str]| Ok::<_, anyhow::Error>(offheap(arguments)?.status.code());
    ensure!(status(&["check", "--duration", "2s", "1"])? == Some(USAGE), "too short");
    ensure!(status(&["check", "--baseline", "/nonexistent", "1"])? == Some(FAILED), "no baseline");
    let directory = tempfile::tempdir()?;
    let capture = directory.path().join("malloc.offheap");
    let capture = capture.to_str().context("not UTF-8")?;
    run(&["--lens", "malloc", "--max-unfreed", "1GiB", "--capture", capture], &["level", "100"])?
        .expect_status(COMPLETE)?;
    let judged = run(&["--baseline", capture], &["level", "100"])?;
    judged.expect_status(FAILED)?;
    ensure!(judged.errors.concat().contains("without the lens mmap"), "{:?}", judged.errors);
    Ok(())
}
