//! What a pair of malloc and free costs: untraced, with empty probes at the places offheap uses, with offheap, with
//! bpftrace running the obvious script, and with heaptrack.
//!
//! All in one run: in every round each case is attached, measured and detached again, so that a machine that becomes
//! slower does so for all of them. Only what the target itself measures between the tracer's `attached` and
//! its end counts.

mod case;
mod faults;
mod footprint;
mod grid;
mod result;
mod server;
mod servers;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{as_root, output, run as run_command, workspace};
use crate::demo::{build_offheap, target_directory};
use crate::kernel_tests;
use case::{Case, Programs, Subject};
use result::{Measured, Results};

/// Depths of the stack that are measured.
const FRAMES: [u32; 2] = [6, 23];
/// Most rounds of the parts that take long.
const MAX_LONG_ROUNDS: u32 = 3;

/// `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Rounds; every case is attached once in each.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Measure only these parts.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Leave out cases.
    #[arg(long, value_enum)]
    without: Vec<Case>,
    /// Fail if offheap costs more than it may.
    #[arg(long)]
    check: bool,
    /// Do not store the results.
    #[arg(long)]
    dry_run: bool,
    /// Everything is built already: set by this program when it starts itself as root.
    #[arg(long, hide = true)]
    is_built: bool,
}

/// A part of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// A pair of malloc and free, beside other tools.
    Pairs,
    /// A pair in many settings.
    Grid,
    /// The lens on page faults.
    Faults,
    /// Servers under load.
    Servers,
}

impl Arguments {
    fn has(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// What the file of results is marked with if it does not hold everything.
    fn suffix(&self) -> String {
        let names = self.only.iter().filter_map(clap::ValueEnum::to_possible_value);
        names.map(|name| format!("-{}", name.get_name())).collect()
    }
}

/// Measures, prints a table, and stores the results.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.is_built {
        build_offheap()?;
        let tests = kernel_tests::build()?;
        kernel_tests::build_targets(&tests)?;
    }
    if !rustix::process::geteuid().is_root() {
        let this = std::env::current_exe().context("cannot find this program")?;
        return run_command(as_root(&this, &[])?.args(std::env::args_os().skip(1)).arg("--is-built"));
    }
    let programs = Programs {
        offheap: target_directory().join("release/offheap"),
        spin: target_directory().join("test-targets/spin_pairs"),
        spin_grid: target_directory().join("test-targets/spin_grid"),
        spin_pages: target_directory().join("test-targets/spin_pages"),
    };
    let cases: Vec<Case> = Case::ALL
        .into_iter()
        .filter(|case| !arguments.without.contains(case))
        .filter(|case| {
            let is_installed = case.is_installed();
            if !is_installed {
                eprintln!("bench: {} is not installed", case.name());
            }
            is_installed
        })
        .collect();
    let results = measure(&programs, &cases, arguments)?;
    println!("{}", results.table());
    if !arguments.dry_run {
        store(&results, &arguments.suffix())?;
    }
    match results.broken_bars() {
        broken if arguments.check && !broken.is_empty() => bail!("bench: {}", broken.join("; ")),
        broken => {
            for line in broken {
                eprintln!("bench: {line}");
            }
            Ok(())
        }
    }
}

fn measure(programs: &Programs, cases: &[Case], arguments: &Arguments) -> Result<Results> {
    let rounds = arguments.rounds;
    // The other parts take long, and compare neighbouring moments of one process.
    let few = rounds.min(MAX_LONG_ROUNDS);
    Ok(Results {
        date: date()?,
        machine: result::Machine::read()?,
        commit: commit()?,
        rounds,
        measured: if arguments.has(Part::Pairs) {
            measure_pairs(programs, cases, rounds)?
        } else {
            Vec::new()
        },
        grid: if arguments.has(Part::Grid) { grid::measure(programs, few)? } else { Vec::new() },
        faults: if arguments.has(Part::Faults) { faults::measure(programs, rounds)? } else { Vec::new() },
        servers: if arguments.has(Part::Servers) { servers::measure(programs, few)? } else { Vec::new() },
    })
}

fn measure_pairs(programs: &Programs, cases: &[Case], rounds: u32) -> Result<Vec<Measured>> {
    let mut measured: Vec<Measured> = FRAMES
        .iter()
        .flat_map(|&frames| cases.iter().map(move |&case| Measured { frames, case, samples_ns: Vec::new() }))
        .collect();
    let scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
    for round in 1..=rounds {
        for entry in &mut measured {
            let subject = Subject {
                program: &programs.spin,
                arguments: vec![entry.frames.to_string()],
                options: Vec::new(),
                batch_pairs: None,
            };
            let samples = entry
                .case
                .measure(programs, &subject, &scratch.path().join("bench.offheap"))
                .with_context(|| format!("{} with {} frames", entry.case.name(), entry.frames))?;
            eprintln!(
                "bench: round {round}/{rounds}, {} frames, {}: {samples:.0?} ns",
                entry.frames,
                entry.case.name()
            );
            entry.samples_ns.extend(samples);
        }
    }
    Ok(measured)
}

/// The middle of the values; `None` of none.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 { Some(upper) } else { Some((sorted.get(middle - 1)? + upper) / 2.0) }
}

fn date() -> Result<String> {
    Ok(output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?.trim().to_owned())
}

/// Commit of the sources, marked where they were changed since.
fn commit() -> Result<String> {
    let mut git = Command::new("git");
    // Root may look into a repository of another user.
    git.args(["-c", "safe.directory=*", "describe", "--always", "--dirty"]).current_dir(workspace());
    Ok(output(&mut git)?.trim().to_owned())
}

fn store(results: &Results, suffix: &str) -> Result<()> {
    let directory = workspace().join("bench/results");
    std::fs::create_dir_all(&directory).context("cannot create `bench/results`")?;
    let path: PathBuf = directory.join(format!("{}-{}{suffix}.json", results.date, results.machine.kernel));
    std::fs::write(&path, results.json()? + "\n")
        .with_context(|| format!("cannot write `{}`", path.display()))?;
    eprintln!("bench: stored in {}", path.strip_prefix(workspace()).unwrap_or(Path::new(&path)).display());
    Ok(())
}
