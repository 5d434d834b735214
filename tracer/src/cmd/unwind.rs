//! `offheap validate-unwind` and `offheap bench-floor`: for developers.

use std::{io::Write, num::NonZeroU32, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{ExitStatus, record};
use crate::{
    cli::plan::ProbeKindKey,
    model::Machine,
    record::{Attached, Purpose, validate},
};

/// Longest time to wait for samples.
const LIMIT: Duration = Duration::from_secs(60);

/// Compares stacks unwound in the kernel with full DWARF walks; [`ExitStatus::Failed`] unless all are the
/// same.
///
/// # Errors
/// As for a recording.
pub fn run_validate(tgid: NonZeroU32, samples: u32, out: &mut impl Write) -> Result<ExitStatus> {
    ensure!(
        Machine::HOST == Machine::X86_64,
        "there is no full DWARF walk to compare with for {}",
        Machine::HOST.name()
    );
    record::examine(tgid)?;
    let comparison = validate(tgid, samples, LIMIT)?;
    let percent = |part: u32| 100.0 * f64::from(part) / f64::from(comparison.compared.max(1));
    writeln!(
        out,
        "{} stacks compared, {} frames: {} identical ({:.3} %), {} whole ({:.3} %), {} too deep to compare",
        comparison.compared,
        comparison.frames,
        comparison.identical,
        percent(comparison.identical),
        comparison.whole,
        percent(comparison.whole),
        comparison.too_deep,
    )?;
    for (difference, count) in &comparison.differences {
        writeln!(out, "  {count} x {difference}")?;
    }
    let is_good = comparison.compared > 0 && comparison.identical == comparison.compared;
    Ok(if is_good { ExitStatus::Done } else { ExitStatus::Failed })
}

/// Attaches empty programs where a recording would attach its own, until it is interrupted.
///
/// # Errors
/// As for a recording.
pub fn run_floor(tgid: NonZeroU32, probe_kind: ProbeKindKey, err: &mut impl Write) -> Result<ExitStatus> {
    record::examine(tgid)?;
    let attached = Attached::new(tgid, Purpose::Floor, record::probe_choice(probe_kind))?;
    writeln!(
        err,
        "offheap: attached to {tgid} with {} empty probes, until interrupted",
        attached.probe_count()
    )?;
    err.flush()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the event loop")?;
    runtime.block_on(tokio::signal::ctrl_c()).context("wait for the interrupt")?;
    drop(attached);
    Ok(ExitStatus::Done)
}
