//! What `report` and `export` print.

use std::ffi::OsStr;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tracer_tests::target::Target;
use tracer_tests::tracer::{COMPLETE, Finished, Recording, offheap, offheap_output};
use tracer_tests::{Result, require};

fn record(orders: &[&str]) -> Result<Finished> {
    let mut target = Target::start("puppet")?;
    let recording = Recording::attach(&target, &[])?;
    for order in orders {
        target.order(order)?;
    }
    let finished = recording.stop()?;
    finished.expect_status(COMPLETE)?;
    target.finish_well()?;
    Ok(finished)
}

/// Every field of the schema is there, and of its type; `null` is what was not measured.
#[test]
fn json_schema() -> Result {
    require!();
    let finished = record(&["leak 10 100", "stacks 3 50"])?;
    let report: Value = serde_json::from_str(&finished.report_json(&["--lens", "malloc"])?)?;
    let present = |pointer: &str, accepted: fn(&Value) -> bool| -> Result {
        let value = report.pointer(pointer).with_context(|| format!("no {pointer} in {report:#}"))?;
        ensure!(accepted(value), "{pointer} is {value}");
        Ok(())
    };
    ensure!(report["schema"] == "offheap.report/1", "{}", report["schema"]);
    for text in [
        "/target/comm",
        "/processes/0/comm",
        "/processes/0/state",
        "/sites/0/class",
        "/filter/by",
        "/window/start",
        "/sites/0/lens",
        "/sites/0/stack_end",
        "/sites/0/stack/0/function",
        "/sites/0/stack/0/object",
        "/sites/0/stack/0/file",
        "/sites/0/stack/0/kind",
        "/sites/0/stack/0/offset",
    ] {
        present(text, Value::is_string)?;
    }
    for count in [
        "/target/pid",
        "/processes/0/pid",
        "/processes/0/outstanding_bytes",
        "/processes/0/outstanding_count",
        "/processes/0/rss/start_bytes",
        "/sites/0/pid",
        "/completeness/stacks/total",
        "/completeness/stacks/whole",
        "/rss/start_bytes",
        "/rss/end_bytes",
        "/sites/0/rank",
        "/sites/0/outstanding_bytes",
        "/sites/0/outstanding_count",
        "/sites/0/allocated_bytes",
        "/sites/0/allocated_count",
        "/sites/0/freed_bytes",
        "/sites/0/freed_count",
        "/sites/0/stack/0/line",
    ] {
        present(count, Value::is_u64)?;
    }
    present("/window/seconds", Value::is_f64)?;
    present("/completeness/complete", Value::is_boolean)?;
    present("/sites/0/stack/0/inlined", Value::is_boolean)?;
    for list in [
        "/target/cmdline",
        "/completeness/losses",
        "/sites",
        "/sites/0/stack",
        "/processes",
        "/allocators",
        "/groups",
        "/mappings",
    ] {
        present(list, Value::is_array)?;
    }
    for perhaps_null in [
        "/target/runtime",
        "/overhead",
        "/rss/ledger",
        "/verdict",
        "/sites/0/verdict",
        "/sites/0/label",
        "/sites/0/allocator",
        "/totals/mapped",
        "/sites/0/growth_bytes_per_s",
        "/sites/0/resident_bytes",
        "/sites/0/stack/0/build_id",
    ] {
        present(perhaps_null, |_| true)?;
    }
    ensure!(report["sites"][0]["pid"] == report["target"]["pid"], "{}", report["sites"][0]);
    let first = &report["sites"][0]["stack"][0];
    ensure!(first["function"] == "site_leak", "{first}");
    ensure!(first["file"].as_str().is_some_and(|file| file.ends_with("puppet.c")), "{first}");
    Ok(())
}

#[test]
fn folded_sums_equal_the_report() -> Result {
    require!();
    let finished = record(&["leak 10 100", "stacks 30 50", "balance 10 10"])?;
    let report = finished.report()?;
    let (bytes, _) = report.outstanding();
    ensure!(bytes == 2500, "{bytes} bytes outstanding");
    let capture = finished.capture();
    let options = ["--format", "folded", "--lens", "malloc"].map(OsStr::new);
    let folded = offheap_output([OsStr::new("export"), capture.as_os_str()].into_iter().chain(options))?;
    let mut sum = 0;
    for line in folded.lines() {
        let (stack, value) = line.rsplit_once(' ').with_context(|| format!("not folded: {line}"))?;
        ensure!(!stack.is_empty(), "no stack: {line}");
        sum += value.parse::<u64>().with_context(|| format!("no number: {line}"))?;
    }
    ensure!(sum == bytes, "{sum} bytes in\n{folded}");
    Ok(())
}

#[test]
fn flame_graph_is_svg() -> Result {
    require!();
    let finished = record(&["leak 10 100"])?;
    let capture = finished.capture();
    let svg =
        offheap_output([OsStr::new("export"), capture.as_os_str(), "--format".as_ref(), "svg".as_ref()])?;
    ensure!(svg.contains("<svg") && svg.contains("site_leak"), "{svg}");
    Ok(())
}

/// Time must pass here: age is what is tested.
#[test]
fn min_age_leaves_out_young_blocks() -> Result {
    require!();
    let mut target = Target::start("puppet")?;
    let recording = Recording::attach(&target, &[])?;
    target.order("leak 10 100")?;
    std::thread::sleep(Duration::from_secs(6));
    target.order("stacks 1 5000")?;
    let finished = recording.stop()?;
    finished.expect_status(COMPLETE)?;
    ensure!(finished.report()?.outstanding() == (6000, 11), "{:?}", finished.report()?.sites);
    let old = finished.report_with(&["--min-age", "3s"])?;
    ensure!(old.outstanding() == (1000, 10), "{:?}", old.sites);
    let process = old.processes_of(target.pid());
    let held = process.first().map(|process| (process.outstanding_bytes, process.outstanding_count));
    ensure!(held == Some((1000, 10)), "{:?}", old.processes);
    target.finish_well()
}

#[test]
fn table_names_the_culprit_first() -> Result {
    require!();
    let finished = record(&["leak 10 100000", "stacks 1 10"])?;
    let capture = finished.capture();
    let table = offheap_output([OsStr::new("report"), capture.as_os_str()])?;
    let culprit = table.find("site_leak").with_context(|| table.clone())?;
    ensure!(table.find("site_stacks").is_none_or(|other| culprit < other), "{table}");
    ensure!(table.contains("puppet.c:"), "no source line in\n{table}");
    ensure!(!table.contains('\x1b'), "colours in a pipe");
    Ok(())
}

/// The groups of one process are its sites' sums, and a process that is not there is an error that names those
/// that are.
#[test]
fn groups_and_filters() -> Result {
    require!();
    let finished = record(&["leak 10 100", "stacks 3 50"])?;
    let report = finished.report()?;
    let process = report.processes.first().context("no process")?;
    let pid = process.pid.to_string();
    for by in ["process", "executable", "allocator", "class"] {
        let grouped = finished.report_with(&["--by", by, "--process", &pid, "--lens", "malloc"])?;
        let sums: Vec<_> =
            grouped.groups.iter().map(|group| (group.outstanding_bytes, group.outstanding_count)).collect();
        ensure!(sums == [(1150, 13)], "by {by}: {:?}", grouped.groups);
    }
    let capture = finished.capture();
    let refused = offheap([OsStr::new("report"), capture.as_os_str(), "--process".as_ref(), "1".as_ref()])?;
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && message.contains(&pid), "{message}");
    Ok(())
}
