//! Targets in C, C++ and Rust, without frame pointers.

use anyhow::{Context, ensure};
use tracer_tests::report::MALLOC;
use tracer_tests::{Result, require};

use crate::trace_exactly;

const WHOLE_PERCENT: f64 = 99.5;

#[test]
fn every_function_and_rule() -> Result {
    require!();
    let report = trace_exactly("rules", WHOLE_PERCENT)?;
    let (unknown_releases, _) = report.loss("unknown-release");
    ensure!(
        unknown_releases >= 5,
        "5 blocks of before the attach were released, {unknown_releases} were counted"
    );
    let (failed, _) = report.loss("failed-allocation");
    ensure!(failed >= 7, "7 allocations failed, {failed} were counted");
    ensure!(report.loss("missed-release").0 == 0, "an address seemed to be given out twice");
    Ok(())
}

#[test]
fn functions_of_the_executable() -> Result {
    require!();
    let report = trace_exactly("interposed", WHOLE_PERCENT)?;
    ensure!(report.loss("abandoned-call").0 >= 1, "the call left by longjmp was not counted");
    ensure!(report.loss("nested-call").0 >= 6, "3 calls with 2 allocations inside were not counted");
    Ok(())
}

#[test]
fn cpp_with_exceptions_and_threads() -> Result {
    require!();
    trace_exactly("exceptions", WHOLE_PERCENT).map(drop)
}

#[test]
fn rust() -> Result {
    require!();
    trace_exactly("leak_rust", WHOLE_PERCENT).map(drop)
}

/// The same return address, stack pointer and frame pointer, from different callers: walks that are remembered are not mistaken for
/// each other.
#[test]
fn callers_that_look_alike() -> Result {
    require!();
    trace_exactly("lookalikes", WHOLE_PERCENT).map(drop)
}

#[test]
fn no_leak() -> Result {
    require!();
    let report = trace_exactly("noleak", WHOLE_PERCENT)?;
    ensure!(report.outstanding() == (0, 0), "{:?} outstanding", report.outstanding());
    Ok(())
}

/// No symbols but those of the libraries: the culprit is first, with its object.
#[test]
fn stripped_server() -> Result {
    require!();
    let mut target = tracer_tests::target::Target::start("server_stripped")?;
    let recording = tracer_tests::tracer::Recording::attach(&target, &[])?;
    target.work()?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(tracer_tests::tracer::COMPLETE)?;
    let report = finished.report()?;
    ensure!(report.outstanding() == (160_000, 1000), "{:?} outstanding", report.outstanding());
    let first = report.sites_in(MALLOC).next().context("no sites")?;
    ensure!((first.outstanding_bytes, first.outstanding_count) == (160_000, 1000), "{first:?}");
    let objects: Vec<&str> = first.stack.iter().filter_map(|frame| frame.object.as_deref()).collect();
    ensure!(objects.iter().any(|object| object.ends_with("server_stripped")), "{objects:?}");
    ensure!(report.whole_percent() >= WHOLE_PERCENT, "{:?}", report.completeness.stacks);
    Ok(())
}
