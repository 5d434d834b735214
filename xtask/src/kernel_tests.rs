//! The end-to-end tests: built as the user, run as root.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::{as_root, cargo, output, run, search_path};

/// Builds the test program and the offheap that it tests, and gives the path of the test program.
///
/// The same selection of packages as for the other tests, and a test in it: so nothing is built again with other features.
pub fn build() -> Result<PathBuf> {
    let arguments = ["build", "--release", "--workspace", "--bin", "offheap", "--test", "kernel"];
    let messages = output(cargo().args(arguments).arg("--message-format=json-render-diagnostics"))?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "kernel")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo does not tell where the kernel tests are")
}

/// Builds the targets, as the user that runs this.
pub fn build_targets(tests: &Path) -> Result<()> {
    run(Command::new(tests).args(["--exact", "targets_build"]))
}

/// Runs every kernel test as root; a skip is a failure. Gives the closing line of the test runner.
pub fn run_all(tests: &Path) -> Result<String> {
    let path = search_path()?;
    let variables: [(&str, &OsStr); 2] = [("OFFHEAP_REQUIRE", "1".as_ref()), ("PATH", &path)];
    let mut command = as_root(tests, &variables)?;
    command.arg("--test-threads=1").stdout(Stdio::piped());
    eprintln!("$ OFFHEAP_REQUIRE=1 {} --test-threads=1", tests.display());
    let mut child = command.spawn().context("cannot run the kernel tests")?;
    let mut closing = None;
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line.context("cannot read the kernel tests' output")?;
        if line.starts_with("test result: ") {
            closing = Some(line);
        } else {
            println!("{line}");
        }
    }
    let status = child.wait().context("cannot wait for the kernel tests")?;
    let closing = closing.context("the kernel tests ended without a result")?;
    if !status.success() {
        bail!("the kernel tests failed ({status}): {closing}");
    }
    Ok(closing)
}
