//! offheap and its target are killed, stopped, attached and detached at random moments, under load. Nothing may be left, the
//! target may not fail, and the next recording must be right.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::Result;
use crate::bpf::Objects;
use crate::soak::{Load, count, ensure_right, stop, wait_for_pairs};
use crate::target::Target;
use crate::tracer::{COMPLETE, INCOMPLETE, Recording};

/// The load of the long forms: as much as it can, with disturbances.
pub fn full_load(seed: u64) -> Load {
    Load { rate: 0, chaos: Duration::from_millis(150), seed }
}

/// That of the short ones, which leaves a machine with two CPUs something for offheap.
pub fn light_load(seed: u64) -> Load {
    Load { rate: 40_000, ..full_load(seed) }
}

/// Random numbers (SplitMix64, Steele et al. 2014).
pub struct Random(pub u64);

impl Random {
    /// Below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit.max(1)
    }

    /// Lets a random time go by: that is what a random moment is.
    fn moment(&mut self, longest: Duration) {
        let longest = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        std::thread::sleep(Duration::from_micros(self.below(longest)));
    }
}

/// Longest time until a kill: of preparing, attaching and recording, each has its share.
const LONGEST: Duration = Duration::from_millis(1500);

/// The text of every probed library in memory equals its file: no breakpoint is left.
pub fn ensure_untouched(target: &Target) -> Result {
    for prefix in ["libc", "libstdc++"] {
        let Ok((memory, file)) = target.text(prefix) else { continue };
        let differing = memory.iter().zip(&file).position(|(memory, file)| memory != file);
        ensure!(
            differing.is_none() && memory.len() == file.len(),
            "the text of {prefix} differs from the file at {differing:#x?}"
        );
    }
    Ok(())
}

/// The same, once the kernel has taken them off: of a process that was killed it does so in its own time.
fn wait_until_untouched(target: &Target) -> Result {
    let deadline = Instant::now() + crate::lines::PATIENCE;
    while let Err(error) = ensure_untouched(target) {
        ensure!(Instant::now() < deadline, "{error:#}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// SIGKILL of offheap, `rounds` times.
pub fn kill_offheap(load: Load, rounds: u32, mut say: impl FnMut(&str)) -> Result {
    let mut random = Random(load.seed);
    let mut target = load.target()?;
    target.order("start")?;
    let mut attached = 0;
    for round in 1..=rounds {
        let recording = Recording::begin(&target, &[])?;
        random.moment(LONGEST);
        let objects = Objects::of(recording.pid()).unwrap_or_default();
        recording.kill()?;
        wait_until_untouched(&target)?;
        if !objects.programs.is_empty() && !objects.maps.is_empty() {
            attached += 1;
            objects.ensure_gone()?;
        }
        wait_for_pairs(&mut target, 1000)?;
        if round % 20 == 0 || round == rounds {
            say(&format!(
                "offheap killed {round} times, {attached} with programs in the kernel: nothing left"
            ));
        }
    }
    ensure!(attached > 0, "offheap never had a program in the kernel: this proves nothing");
    stop(&mut target)?;
    ensure_right(&mut target, 20_000)?;
    target.finish_well()
}

/// SIGKILL of the target, or of both, `rounds` times in turn: offheap ends by itself, and its capture is good.
pub fn kill_target(load: Load, rounds: u32, mut say: impl FnMut(&str)) -> Result {
    let mut random = Random(load.seed);
    for round in 1..=rounds {
        let mut target = Load { seed: load.seed + u64::from(round), ..load }.target()?;
        target.order("start")?;
        let mut recording = Recording::begin(&target, &[])?;
        let kills_both = round % 2 == 0;
        let waits = random.below(4) > 0;
        if waits {
            recording.wait_until_said("attached")?;
        }
        random.moment(LONGEST / 3);
        let objects = Objects::of(recording.pid()).unwrap_or_default();
        target.kill()?;
        if kills_both {
            recording.kill()?;
        } else {
            let finished = recording.finish()?;
            let status = finished.status.code().context("offheap was killed, or crashed")?;
            // Before the attach there is nothing to record; and a process that dies may take a record with it.
            let is_fine =
                status == COMPLETE || status == INCOMPLETE || (!waits && status == crate::tracer::FAILED);
            ensure!(is_fine, "offheap ended with {status}: {:#?}", finished.errors);
            if waits {
                let report = finished.report()?;
                let pairs: u64 = report.sites.iter().map(|site| site.allocated_count).sum();
                ensure!(pairs > 0, "nothing was recorded: {:?}", report.losses());
            }
        }
        if !objects.programs.is_empty() && !objects.maps.is_empty() {
            objects.ensure_gone()?;
        }
        if round % 20 == 0 || round == rounds {
            say(&format!("target killed {round} times, {} with offheap at once: nothing left", round / 2));
        }
    }
    Ok(())
}

/// Attach and detach, `rounds` times. Gives the pairs per second before and after.
pub fn attach_and_detach(load: Load, rounds: u32, mut say: impl FnMut(&str)) -> Result<(f64, f64)> {
    let mut target = load.target()?;
    target.order("start")?;
    let before = throughput(&load, &mut target)?;
    for round in 1..=rounds {
        let recording = Recording::attach(&target, &[])?;
        let objects = Objects::of(recording.pid())?;
        objects.ensure_there()?;
        wait_for_pairs(&mut target, 500)?;
        let finished = recording.stop()?;
        finished.expect_status(COMPLETE)?;
        // offheap says it has ended: so nothing is left at this very moment, not only later.
        ensure_untouched(&target)?;
        objects.ensure_gone()?;
        let report = finished.report()?;
        ensure!(
            report.sites.iter().map(|site| site.allocated_count).sum::<u64>() > 0,
            "nothing was recorded"
        );
        if round % 20 == 0 || round == rounds {
            say(&format!("attached and detached {round} times: nothing left"));
        }
    }
    let after = throughput(&load, &mut target)?;
    stop(&mut target)?;
    ensure_right(&mut target, 20_000)?;
    target.finish_well()?;
    Ok((before, after))
}

/// Pairs per second.
fn throughput(load: &Load, target: &mut Target) -> Result<f64> {
    let (begun, before) = (Instant::now(), count(target)?.pairs);
    let now = wait_for_pairs(target, if load.rate == 0 { 5_000_000 } else { load.rate / 4 })?;
    Ok((now.pairs - before) as f64 / begun.elapsed().as_secs_f64())
}
