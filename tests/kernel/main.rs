//! offheap on the running kernel, against the ground truth of its targets.
//!
//! Root and a release build of offheap are needed; `cargo xtask test` provides both. The modules `native`,
//! `lifecycle`, `errors`, `losses`, `output` and `processes` also run in virtual machines with other kernels
//! (`cargo xtask vm`), `runtime` needs the language runtimes of this machine.

mod allocators;
mod check;
mod diff;
mod errors;
mod faults;
mod hostile;
mod ledger;
mod lifecycle;
mod losses;
mod losses_elsewhere;
mod managed;
mod mappings;
mod mayhem;
mod native;
mod old_kernel;
mod output;
mod probe_kinds;
mod process_verdicts;
mod processes;
mod programs;
mod runtime;
mod sampling;
mod soak;
mod verdicts;
mod views;
mod watch;

use anyhow::ensure;
use tracer_tests::report::Report;
use tracer_tests::target::Target;
use tracer_tests::tracer::{COMPLETE, Recording};
use tracer_tests::{Result, build};

/// Traces a target from its `ready` to its `truth`, and compares: every number equal, at least `whole_percent` of the
/// stacks whole, nothing lost, the target unharmed.
fn trace_exactly(name: &str, whole_percent: f64) -> Result<Report> {
    trace_target(Target::start(name)?, &[], whole_percent)
}

/// The same for a target that runs already, with further arguments of offheap.
fn trace_target(mut target: Target, arguments: &[&str], whole_percent: f64) -> Result<Report> {
    let recording = Recording::attach(&target, arguments)?;
    let truth = target.work()?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    // The target has gone: the capture must hold everything that is needed.
    let report = finished.report()?;
    truth.compare(&report)?;
    ensure!(report.completeness.complete, "incomplete: {:?}", report.losses());
    let (total, whole) = (report.completeness.stacks.total, report.completeness.stacks.whole);
    ensure!(total > 0, "no stacks");
    let ends: Vec<_> =
        report.sites.iter().map(|site| (site.stack_end.as_deref(), site.functions())).collect();
    ensure!(report.whole_percent() >= whole_percent, "{whole} of {total} stacks are whole: {ends:#?}");
    Ok(report)
}

/// Needs no root: `cargo xtask test` runs it first, so that nothing under cargo's directory belongs to root.
#[test]
fn targets_build() -> Result {
    build::all_targets().map(drop)
}
