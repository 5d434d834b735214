//! What is said of a whole process: one kind of growth in each of several, recorded together.

use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;
use tracer_tests::build::sources;
use tracer_tests::target::{Target, command};
use tracer_tests::tracer::{COMPLETE, Finished, Recording};
use tracer_tests::{Result, require};

const MIB: f64 = 1_048_576.0;
/// Milliseconds of growth.
const GROWTH_MS: &str = "18000";

fn node(kind: &str) -> Result<Target> {
    let mut node = Command::new("node");
    node.arg(sources().join("growth_node.js")).args([kind, GROWTH_MS]);
    Target::start_command(node)
}

fn grower(kind: &str) -> Result<Target> {
    let mut grower = command("grower")?;
    grower.arg(kind);
    Target::start_command(grower)
}

/// What is said of a process.
fn verdict_on(report: &Value, pid: u32) -> Result<&Value> {
    let processes = report["processes"].as_array().context("no processes")?;
    let process = processes.iter().find(|process| process["pid"] == pid).context("no such process")?;
    Ok(&process["verdict"])
}

/// The cause that decided: class of the ledger, function, bytes per second.
fn cause(verdict: &Value) -> Result<(&str, &str, f64)> {
    let causes = verdict["evidence"]["causes"].as_array().context("no causes")?;
    let first = causes.iter().find(|cause| cause["kind"] == verdict["kind"]);
    let first = first.with_context(|| format!("no cause: {verdict:#}"))?;
    let text = |name: &str| first[name].as_str().unwrap_or_default();
    Ok((text("class"), text("function"), first["growth_bytes_per_s"].as_f64().context("no growth")?))
}

#[test]
fn each_kind_is_told() -> Result {
    require!();
    let mut kept = Target::start("ledger")?;
    kept.ask("holes 128")?;
    let mut steady = [grower("grow")?, grower("level")?];
    let mut nodes = [node("buffers")?, node("heap")?, node("garbage")?];
    let all = steady.iter().chain(&nodes).chain([&kept]);
    let pids: Vec<String> = all.map(|target| target.pid().to_string()).collect();
    let arguments: Vec<&str> = pids.iter().flat_map(|pid| ["-p", pid]).collect();
    let recording = Recording::attach_with(&arguments)?;
    for target in &mut steady {
        target.send("go")?;
    }
    for target in &mut nodes {
        target.send("go")?;
    }
    for target in &mut nodes {
        target.wait_done()?;
    }
    let finished: Finished = recording.stop()?;
    finished.expect_status(COMPLETE)?;
    let report: Value = serde_json::from_str(&finished.report_json(&[])?)?;

    let [grow, level] = &steady;
    let [buffers, heap, garbage] = &nodes;
    let wanted = [
        (grow, "mapping-growth"),
        (level, "no-growth"),
        (buffers, "native-leak"),
        (heap, "managed-heap-growth"),
        (garbage, "undetermined"),
        (&kept, "allocator-retention"),
    ];
    for (target, kind) in wanted {
        let verdict = verdict_on(&report, target.pid())?;
        ensure!(verdict["kind"] == kind, "not {kind}: {verdict:#}");
        ensure!(verdict["next"].as_str().is_some_and(|next| !next.is_empty()), "{verdict:#}");
    }
    let (class, _, growth) = cause(verdict_on(&report, grow.pid())?)?;
    ensure!(class == "mmap" && (growth / (12.5 * MIB) - 1.0).abs() < 0.05, "{class} {growth}");
    let (_, function, growth) = cause(verdict_on(&report, buffers.pid())?)?;
    let is_right = function.starts_with("node::NodeArrayBufferAllocator::");
    ensure!(is_right && (growth / (10.0 * MIB) - 1.0).abs() < 0.05, "{function} {growth}");
    ensure!(cause(verdict_on(&report, heap.pid())?)?.0 == "managed-heap", "{report:#}");
    let retained = verdict_on(&report, kept.pid())?["evidence"]["retained_bytes"].as_f64();
    // One block of 15 is kept, and what lies between has no page of its own.
    ensure!(retained.is_some_and(|bytes| bytes > 100.0 * MIB && bytes < 128.0 * MIB), "{retained:?}");
    // The one of most consequence comes first.
    ensure!(report["verdict"]["pid"] == grow.pid(), "{:#}", report["verdict"]);
    steady.into_iter().chain(nodes).chain([kept]).try_for_each(Target::finish_well)
}
