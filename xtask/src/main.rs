//! Every developer and CI step of offheap, as `cargo xtask STEP`.

mod bench;
mod command;
mod demo;
mod ebpf;
mod fuzz;
mod kernel_tests;
mod setup;
mod simulate;
mod soak;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Developer and CI steps of offheap.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    step: Step,
}

#[derive(Subcommand)]
enum Step {
    /// Install what building and testing need (Debian packages and bpf-linker).
    Setup,
    /// Build the BPF object and its digest; `--check` only compares them with the sources.
    BuildEbpf(ebpf::Arguments),
    /// Run every test: set up, build, lint, unit tests, other kernels in QEMU, this kernel as root.
    Test(test::Arguments),
    /// Run the kernel tests on Debian's kernels in QEMU.
    Vm(vm::Arguments),
    /// Feed the parsers with what a hostile target could write (libFuzzer).
    Fuzz(fuzz::Arguments),
    /// Measure what tracing costs, beside empty probes and other tools, as root.
    Bench(bench::Arguments),
    /// Measure how often the verdicts on memory series are wrong, on made-up series.
    Simulate(simulate::Arguments),
    /// Trace a target under load for long, against its own count; or kill both again and again; as root.
    Soak(soak::Arguments),
    /// Build offheap and run its demo, as root.
    Demo(demo::Demo),
    /// Compare the in-kernel unwinder with a full DWARF walk on a running process, as root.
    ValidateUnwind(demo::ValidateUnwind),
}

fn run(step: &Step) -> Result<()> {
    match step {
        Step::Setup => setup::install_missing(),
        Step::BuildEbpf(arguments) => ebpf::run_step(arguments),
        Step::Test(arguments) => test::run_steps(arguments),
        Step::Vm(arguments) => vm::run(arguments),
        Step::Fuzz(arguments) => fuzz::run(arguments),
        Step::Bench(arguments) => bench::run(arguments),
        Step::Simulate(arguments) => simulate::run(arguments),
        Step::Soak(arguments) => soak::run(arguments),
        Step::Demo(arguments) => demo::demo(arguments),
        Step::ValidateUnwind(arguments) => demo::validate_unwind(arguments),
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse().step) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
