//! Everything that is tested, in one command: the steps CI runs, in order, up to the first that fails.

use std::time::Instant;

use anyhow::{Context, Result};
use clap::ValueEnum as _;

use crate::command::{cargo, run, search_path};
use crate::{ebpf, fuzz, kernel_tests, setup, vm};

/// `cargo xtask test`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only this step.
    #[arg(long, value_enum)]
    only: Option<Step>,
    /// Leave out the virtual machines.
    #[arg(long)]
    no_vm: bool,
}

/// One step. The kernel tests come last, so that their closing line ends the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// Install what is missing.
    Setup,
    /// Build the BPF object from its sources.
    BuildEbpf,
    /// Formatting.
    Fmt,
    /// Lints.
    Clippy,
    /// Tests that need no root.
    Unit,
    /// The parsers, fed by libFuzzer for a minute.
    Fuzz,
    /// Kernel tests on other kernels, in QEMU.
    Vm,
    /// Kernel tests on this kernel, as root.
    Kernel,
}

impl Step {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Runs the step; gives the closing line where a test runner has one.
    fn run(self) -> Result<Option<String>> {
        match self {
            Self::Setup => setup::install_missing()?,
            Self::BuildEbpf => ebpf::run_step(&ebpf::Arguments::default())?,
            Self::Fmt => run(cargo().args(["fmt", "--all", "--check"]))?,
            Self::Clippy => {
                run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
            }
            Self::Unit => {
                // One selection of packages in all of these: another one has other features of the same dependencies, and
                // builds them all again.
                let test = || {
                    let mut command = cargo();
                    command.args(["test", "--release", "--workspace"]);
                    command
                };
                run(test().env("PATH", search_path()?))?;
                // Those that start commands as another user. As anybody else they would fail, not be skipped.
                if rustix::process::geteuid().is_root() {
                    run(test().args(["--lib", "attach::launch", "--", "--ignored"]))?;
                } else {
                    eprintln!("not root: the two tests that change users are left out");
                }
            }
            Self::Fuzz => fuzz::run_briefly()?,
            Self::Vm => vm::run(&vm::Arguments::default())?,
            Self::Kernel => {
                let tests = kernel_tests::build()?;
                kernel_tests::build_targets(&tests)?;
                return kernel_tests::run_all(&tests).map(Some);
            }
        }
        Ok(None)
    }
}

/// Runs the steps.
pub fn run_steps(arguments: &Arguments) -> Result<()> {
    let mut times = Vec::new();
    let mut closing = None;
    for &step in Step::value_variants() {
        if arguments.only.is_some_and(|only| only != step) || (arguments.no_vm && step == Step::Vm) {
            continue;
        }
        let name = step.name();
        eprintln!("== {name}");
        let start = Instant::now();
        closing = step.run().with_context(|| format!("step {name} failed"))?;
        times.push(format!("{name} {:.1} s", start.elapsed().as_secs_f64()));
    }
    eprintln!("== done: {}", times.join(", "));
    if let Some(closing) = closing {
        println!("{closing}");
    }
    Ok(())
}
