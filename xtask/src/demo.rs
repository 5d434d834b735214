//! Steps that build offheap and run one of its commands as root.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;

use crate::command::{as_root, cargo, run, workspace};

/// `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Demo {
    /// Arguments for `offheap demo`.
    #[arg(last = true)]
    rest: Vec<OsString>,
}

/// `cargo xtask validate-unwind`.
#[derive(clap::Args)]
pub struct ValidateUnwind {
    /// Process to compare stacks of.
    pid: u32,
    /// Further arguments for `offheap validate-unwind`.
    #[arg(last = true)]
    rest: Vec<OsString>,
}

/// Builds offheap in release mode and gives its path.
pub fn build_offheap() -> Result<PathBuf> {
    run(cargo().args(["build", "--release", "--package", "offheap", "--bin", "offheap"]))?;
    Ok(target_directory().join("release/offheap"))
}

/// Where cargo builds.
pub fn target_directory() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace().join(directory),
        None => workspace().join("target"),
    }
}

/// Runs `offheap demo`.
pub fn demo(arguments: &Demo) -> Result<()> {
    let offheap = build_offheap()?;
    run(as_root(&offheap, &[])?.arg("demo").args(&arguments.rest))
}

/// Runs `offheap validate-unwind PID`.
pub fn validate_unwind(arguments: &ValidateUnwind) -> Result<()> {
    let offheap = build_offheap()?;
    let pid = arguments.pid.to_string();
    run(as_root(&offheap, &[])?.args(["validate-unwind", &pid]).args(&arguments.rest))
}
