//! Runs the target `soak` for long, or kills, attaches and detaches many times: `cargo xtask soak` starts it as root.
//!
//! `soak run SECONDS RATE CHAOS_MS SEED` or `soak kills ROUNDS CYCLES SEED`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use tracer_tests::{Result, mayhem, soak};

fn say(line: &str) {
    println!("{line}");
}

fn long_run(numbers: &[u64]) -> Result {
    let &[seconds, rate, chaos_ms, seed] = numbers else { bail!("soak run SECONDS RATE CHAOS_MS SEED") };
    let load = soak::Load { rate, chaos: Duration::from_millis(chaos_ms), seed };
    let duration = Duration::from_secs(seconds);
    let plan = soak::Plan { load, duration, pause: Duration::from_secs(60).min(duration / 4) };
    say(&format!(
        "{seconds} s at {rate} pairs/s, a disturbance of each thread every {chaos_ms} ms, seed {seed}"
    ));
    let summary = soak::run(&plan, say)?;
    say(&format!("no difference: {summary}"));
    Ok(())
}

fn kills(numbers: &[u64]) -> Result {
    let &[rounds, cycles, seed] = numbers else { bail!("soak kills ROUNDS CYCLES SEED") };
    let rounds = u32::try_from(rounds)?;
    let load = mayhem::full_load(seed);
    mayhem::kill_offheap(load, rounds, say).context("offheap is killed")?;
    mayhem::kill_target(load, rounds, say).context("the target is killed, and both are")?;
    let cycles = u32::try_from(cycles)?;
    let (before, after) = mayhem::attach_and_detach(load, cycles, say).context("attach and detach")?;
    say(&format!(
        "no difference; untraced pairs per second: {before:.0} before, {after:.0} after {cycles} attachments"
    ));
    Ok(())
}

fn run() -> Result {
    let mut arguments = std::env::args().skip(1);
    let form = arguments.next();
    let numbers = arguments.map(|text| text.parse::<u64>().with_context(|| format!("not a number: {text}")));
    let numbers = numbers.collect::<Result<Vec<u64>>>()?;
    match form.as_deref() {
        Some("run") => long_run(&numbers),
        Some("kills") => kills(&numbers),
        _ => bail!("soak run … or soak kills …"),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}
