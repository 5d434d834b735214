//! Every bound that is hit is counted, and changes the exit status.

use anyhow::ensure;
use tracer_tests::report::Report;
use tracer_tests::target::Target;
use tracer_tests::tracer::{COMPLETE, INCOMPLETE, Recording};
use tracer_tests::{Result, require};

/// Records a puppet that carries out `orders`.
fn record(arguments: &[&str], orders: &[&str], status: i32) -> Result<Report> {
    let mut target = Target::start("puppet")?;
    let recording = Recording::attach(&target, arguments)?;
    for order in orders {
        target.order(order)?;
    }
    let finished = recording.stop()?;
    finished.expect_status(status)?;
    target.finish_well()?;
    finished.report()
}

#[test]
fn live_map_full() -> Result {
    require!();
    let report = record(&["--max-live-blocks", "10"], &["leak 50 100"], INCOMPLETE)?;
    ensure!(!report.completeness.complete, "said to be complete");
    ensure!(report.loss("live-map-full") == (40, 4000), "{:?}", report.completeness.losses);
    ensure!(report.outstanding() == (1000, 10), "{:?}", report.sites);
    Ok(())
}

/// The bytes of stacks that got no site are exact; only where they come from is lost.
#[test]
fn site_map_full() -> Result {
    require!();
    let report = record(&["--max-sites", "8"], &["stacks 40 100"], INCOMPLETE)?;
    let (lost, lost_bytes) = report.loss("site-map-full");
    ensure!(lost >= 32 && lost_bytes == lost * 100, "{:?}", report.completeness.losses);
    ensure!(report.outstanding() == (4000, 40), "{:?}", report.outstanding());
    let unknown: u64 =
        report.sites.iter().filter(|site| site.stack.is_empty()).map(|site| site.outstanding_count).sum();
    ensure!(unknown == lost, "{unknown} blocks without a stack, {lost} lost");
    Ok(())
}

#[test]
fn sizes_outside_the_range() -> Result {
    require!();
    let range = ["--min-size", "50B", "--max-size", "200B"];
    let report = record(&range, &["leak 3 49", "leak 4 50", "leak 5 200", "leak 6 201"], COMPLETE)?;
    ensure!(report.outstanding() == (1200, 9), "{:?}", report.sites);
    ensure!(report.loss("filtered-size").0 == 9, "{:?}", report.losses());
    Ok(())
}
