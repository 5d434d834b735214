//! Long runs under load: `tests/src/soak.rs` and `tests/src/mayhem.rs`, started as root.

use anyhow::{Context, Result, bail};

use crate::command::{as_root, cargo, run as run_command};
use crate::demo::{build_offheap, target_directory};
use crate::kernel_tests;

/// `cargo xtask soak`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How long: `90s`, `10m`, `1h`.
    #[arg(long, default_value = "1h", value_parser = seconds)]
    duration: u64,
    /// Pairs of allocation and release per second, of all four threads together.
    #[arg(long, default_value_t = 200_000)]
    rate: u64,
    /// Mean time in milliseconds between two disturbances (fork, exec, library, threads) of one thread.
    #[arg(long, default_value_t = 3000)]
    chaos_ms: u64,
    /// What all random numbers come from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Instead: kill offheap, the target and both at random moments, and attach and detach again and again.
    #[arg(long)]
    kills: bool,
    /// Kills of each kind.
    #[arg(long, default_value_t = 200)]
    rounds: u32,
    /// Attachments.
    #[arg(long, default_value_t = 500)]
    cycles: u32,
}

/// Seconds of `90s`, `10m` or `1h`.
fn seconds(text: &str) -> Result<u64> {
    let unit = text.chars().next_back().context("empty")?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => bail!("not a duration such as 90s, 10m or 1h"),
    };
    let number: u64 = text.trim_end_matches(unit).parse().context("not a whole number")?;
    number.checked_mul(factor).filter(|seconds| *seconds >= 10).context("at least 10 s")
}

/// Builds what is needed and runs it.
pub fn run(arguments: &Arguments) -> Result<()> {
    build_offheap()?;
    kernel_tests::build_targets(&kernel_tests::build()?)?;
    run_command(cargo().args(["build", "--release", "--package", "tracer-tests", "--bin", "soak"]))?;
    let numbers = if arguments.kills {
        vec![u64::from(arguments.rounds), u64::from(arguments.cycles), arguments.seed]
    } else {
        vec![arguments.duration, arguments.rate, arguments.chaos_ms, arguments.seed]
    };
    let mut command = as_root(&target_directory().join("release/soak"), &[])?;
    command.arg(if arguments.kills { "kills" } else { "run" });
    run_command(command.args(numbers.iter().map(u64::to_string)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(seconds("90s").unwrap(), 90);
        assert_eq!(seconds("10m").unwrap(), 600);
        assert_eq!(seconds("1h").unwrap(), 3600);
        for wrong in ["", "h", "10", "1d", "5s", "-1h", "1.5h"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
