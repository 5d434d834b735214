//! Both ways to place probes, each forced, give the same numbers.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use tracer_tests::report::{MALLOC, Report};
use tracer_tests::target::{Target, command};
use tracer_tests::tracer::{COMPLETE, FAILED, INCOMPLETE, Recording, offheap, offheap_output};
use tracer_tests::{Result, require};

use crate::trace_target;

const WHOLE_PERCENT: f64 = 99.5;

/// What `doctor` says of the kind.
fn doctor() -> Result<String> {
    let found = offheap_output(["doctor"])?;
    let line = found.lines().find(|line| line.contains("probe kind")).context("no line on the probe kind")?;
    Ok(line.to_owned())
}

/// The kinds that work here.
fn kinds() -> Result<Vec<&'static str>> {
    Ok(if doctor()?.contains("uprobe_multi, ") { vec!["perf", "multi"] } else { vec!["perf"] })
}

/// Allocated and outstanding bytes and blocks by allocator function and call site.
fn numbers(report: &Report) -> BTreeMap<Vec<&str>, (u64, u64, u64, u64)> {
    let mut numbers = BTreeMap::new();
    for site in report.sites_in(MALLOC) {
        let mut functions = site.functions();
        functions.retain(|function| function.starts_with("site_") || function.starts_with("main"));
        let sums: &mut (u64, u64, u64, u64) = numbers.entry(functions).or_default();
        sums.0 += site.allocated_bytes;
        sums.1 += site.allocated_count;
        sums.2 += site.outstanding_bytes;
        sums.3 += site.outstanding_count;
    }
    numbers.retain(|functions, _| !functions.is_empty());
    numbers
}

#[test]
fn both_kinds_give_the_same_numbers() -> Result {
    require!();
    for name in ["rules", "exceptions", "interposed"] {
        let reports = kinds()?
            .into_iter()
            .map(|kind| trace_target(Target::start(name)?, &["--probe-kind", kind], WHOLE_PERCENT))
            .collect::<Result<Vec<_>>>()?;
        let [first, rest @ ..] = &reports[..] else { anyhow::bail!("no kind works") };
        let wanted = numbers(first);
        ensure!(wanted.len() > 1, "{wanted:?}");
        for report in rest {
            ensure!(numbers(report) == wanted, "{name}: {:#?} and {wanted:#?}", numbers(report));
        }
    }
    Ok(())
}

/// The kind that was asked for, or that the kernel has, stands in the capture.
#[test]
fn the_kind_is_named() -> Result {
    require!();
    let has_multi = kinds()?.contains(&"multi");
    for (kind, wanted) in [("auto", if has_multi { "uprobe_multi" } else { "perf" }), ("perf", "perf")] {
        let mut target = Target::start("puppet")?;
        let recording = Recording::attach(&target, &["-v", "--probe-kind", kind, "--lens", "malloc"])?;
        target.order("leak 3 30")?;
        let finished = recording.stop()?;
        target.finish_well()?;
        finished.expect_status(COMPLETE)?;
        ensure!(finished.report()?.outstanding() == (90, 3), "{kind}");
        let said = format!("probes are {wanted}");
        ensure!(finished.errors.iter().any(|line| line.contains(&said)), "{kind}: {:#?}", finished.errors);
    }
    if !has_multi {
        let target = Target::start("puppet")?;
        let pid = target.pid().to_string();
        let output = offheap(["record", "--probe-kind", "multi", "--duration", "1s", "-p", &pid])?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(FAILED) && text.contains("no uprobe_multi links"), "{text}");
    }
    Ok(())
}

/// Where the kernel runs the programs of a link for the target's threads only, what a child does in the target's memory
/// is not seen, and that is said.
#[test]
fn a_child_that_shares_the_memory_is_seen_or_counted() -> Result {
    require!();
    let is_blind = doctor()?.contains("counted as not seen");
    for kind in kinds()? {
        let mut target = Target::start("family")?;
        let recording = Recording::attach(&target, &["--probe-kind", kind])?;
        target.order("sharing 6 60")?;
        target.order("leak 2 20")?;
        let finished = recording.stop()?;
        target.finish_well()?;
        let is_unseen = is_blind && kind == "multi";
        finished.expect_status(if is_unseen { INCOMPLETE } else { COMPLETE })?;
        let report = finished.report()?;
        let wanted = if is_unseen { (40, 2) } else { (400, 8) };
        ensure!(report.outstanding() == wanted, "{kind}: {:?}", report.outstanding());
        ensure!(report.loss("sharer-unseen").0 == u64::from(is_unseen), "{kind}: {:?}", report.losses());
    }
    Ok(())
}

/// Allocations made by threads that are not the first one, in a child, and in the child's new program.
#[test]
fn children_are_followed_by_both_kinds() -> Result {
    require!();
    for kind in kinds()? {
        let mut target = Target::start("family")?;
        let mut recording = Recording::attach(&target, &["-v", "--probe-kind", kind])?;
        let child = target.order_child()?;
        recording.wait_until_said(&format!("probes in process {child}"))?;
        target.order("to 0 leak 5 100")?;
        target.order("leak 3 10")?;
        let finished = recording.stop()?;
        target.finish_well()?;
        finished.expect_status(COMPLETE)?;
        let report = finished.report()?;
        let of = |pid| {
            let sites = report.sites_in(MALLOC).filter(|site| site.pid == Some(pid));
            sites.fold((0, 0), |sum, site| (sum.0 + site.outstanding_bytes, sum.1 + site.outstanding_count))
        };
        ensure!(of(child) == (500, 5), "{kind}: {:#?}", report.sites);
    }
    Ok(())
}

/// C++ on jemalloc: probes on `ret` instructions, many of them.
#[test]
fn probes_at_exits_by_both_kinds() -> Result {
    const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";
    require!(tracer_tests::require::Need::File(LIBRARY));
    for kind in kinds()? {
        let mut command = command("new_forms")?;
        command.env("LD_PRELOAD", LIBRARY);
        trace_target(Target::start_command(command)?, &["--probe-kind", kind], WHOLE_PERCENT)?;
    }
    Ok(())
}
