//! A short soak: four threads at a high rate, with forks, other programs, libraries, threads and exceptions at random moments.
//! `cargo xtask soak` is the long form.

use std::time::Duration;

use anyhow::ensure;
use tracer_tests::soak::{Load, Plan, run};
use tracer_tests::{Result, require};

#[test]
fn every_block_is_known() -> Result {
    require!();
    let load = Load { rate: 100_000, chaos: Duration::from_millis(200), seed: 20_261_121 };
    let plan = Plan { load, duration: Duration::from_secs(10), pause: Duration::from_secs(60) };
    let summary = run(&plan, |line| eprintln!("{line}"))?;
    eprintln!("{summary}");
    let counted = summary.counted;
    ensure!(
        counted.children > 0 && counted.libraries > 0 && counted.threads > 0 && counted.exceptions > 0,
        "nothing was disturbed: {counted:?}"
    );
    Ok(())
}
