//! Feeds the parsers with what a hostile target could write. libFuzzer and the stable compiler do it; nothing else need be
//! installed (`fuzz/instrument` says how).
//!
//! What is found on the way is kept under cargo's target directory and makes a later run begin where this one ended;
//! the corpora in `fuzz/corpus` are the small part of it that is in the repository. An input that breaks something goes
//! there by hand, under a name that says what it breaks: from then on a unit test feeds it.

use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::command::{cargo, output, run as run_command, workspace};

const PACKAGE: &str = "offheap-fuzz";
/// Fuzz targets, and the longest input of each in bytes: those of `tracer/src/fuzz.rs`, where a test compares them.
const TARGETS: [(&str, u32); 6] = [
    ("cfi", 4096),
    ("elf", 32 << 10),
    ("perf-map", 4096),
    ("capture", 4096),
    ("proc", 4096),
    ("suppressions", 1024),
];
/// Longest time for one input, in seconds; most take less than a millisecond.
const INPUT_SECONDS: u32 = 20;
/// Most memory, in MiB.
const MEMORY_MIB: u32 = 2048;
/// Largest input that goes into a corpus of the repository, in bytes, and most of them for one target.
const MAX_KEPT_BYTES: u64 = 4096;
const MAX_KEPT: usize = 40;

/// `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How long each target is fed.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Put the smallest inputs that reach what has been reached into the corpora of the repository.
    #[arg(long)]
    keep: bool,
    /// Only these.
    #[arg(value_parser = TARGETS.map(|(name, _)| name))]
    targets: Vec<String>,
}

/// Builds the fuzzer and runs it, target by target.
pub fn run(arguments: &Arguments) -> Result<()> {
    let fuzzer = build()?;
    let is_wanted =
        |name: &str| arguments.targets.is_empty() || arguments.targets.iter().any(|wanted| wanted == name);
    let wanted: Vec<_> = TARGETS.into_iter().filter(|(name, _)| is_wanted(name)).collect();
    let at_once = thread::available_parallelism().map_or(1, NonZero::get);
    for some in wanted.chunks(at_once) {
        thread::scope(|scope| {
            let fed: Vec<_> = some
                .iter()
                .map(|&(target, max_bytes)| {
                    let fuzzer = &fuzzer;
                    scope.spawn(move || Folders::new(fuzzer, target)?.feed(arguments.seconds, max_bytes))
                })
                .collect();
            fed.into_iter().try_for_each(|thread| {
                thread.join().map_err(|_| anyhow!("a thread that ran the fuzzer has panicked"))?
            })
        })?;
    }
    if arguments.keep {
        wanted.iter().try_for_each(|(target, _)| Folders::new(&fuzzer, target)?.keep())?;
    }
    Ok(())
}

/// A part of the test command: what is in the corpora, and what a few seconds find beyond.
pub fn run_briefly() -> Result<()> {
    run(&Arguments { seconds: 20, keep: false, targets: Vec::new() })
}

/// Builds the program that holds all targets, and gives its path. Dependencies are those of the release build.
fn build() -> Result<PathBuf> {
    let wrapper = workspace().join("fuzz/instrument");
    let arguments = ["build", "--release", "--package", PACKAGE, "--features", "libfuzzer"];
    let mut command = cargo();
    command.env("RUSTC_WORKSPACE_WRAPPER", wrapper).args(arguments);
    let messages = output(command.arg("--message-format=json-render-diagnostics"))?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter(|message| message["target"]["name"] == PACKAGE)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo does not tell where the fuzzer is")
}

/// Where inputs of one target lie.
struct Folders<'a> {
    fuzzer: &'a Path,
    target: &'static str,
    /// In the repository.
    corpus: PathBuf,
    /// What was found on this machine.
    found: PathBuf,
    /// What breaks something.
    broken: PathBuf,
}

impl<'a> Folders<'a> {
    fn new(fuzzer: &'a Path, target: &'static str) -> Result<Self> {
        let work = fuzzer.parent().context("the fuzzer has no directory")?.join("fuzz-work");
        let folder = |kind: &str| {
            let folder = work.join(kind).join(target);
            fs::create_dir_all(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
            anyhow::Ok(folder)
        };
        let corpus = workspace().join("fuzz/corpus").join(target);
        fs::create_dir_all(&corpus).with_context(|| format!("cannot create `{}`", corpus.display()))?;
        Ok(Self { fuzzer, target, corpus, found: folder("found")?, broken: folder("broken")? })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.fuzzer);
        command.env("OFFHEAP_FUZZ_TARGET", self.target);
        command.arg(format!("-timeout={INPUT_SECONDS}")).arg(format!("-rss_limit_mb={MEMORY_MIB}"));
        command.arg(format!("-artifact_prefix={}/", self.broken.display())).arg("-print_final_stats=1");
        command
    }

    fn feed(&self, seconds: u32, max_bytes: u32) -> Result<()> {
        eprintln!("== fuzz {}: {seconds} s", self.target);
        let mut command = self.command();
        command.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={max_bytes}"));
        command.args(["-verbosity=0", "-len_control=20"]).arg(&self.found).arg(&self.corpus);
        let fed = run_command(&mut command);
        fed.with_context(|| format!("`{}` is in `{}`", self.target, self.broken.display()))
    }

    /// Merges what was found into the repository's corpus, small inputs first.
    fn keep(&self) -> Result<()> {
        let merged = tempfile::tempdir().context("cannot make a directory")?;
        let mut command = self.command();
        command.args(["-merge=1", "-verbosity=0"]).arg(merged.path()).arg(&self.corpus).arg(&self.found);
        run_command(&mut command)?;
        let mut inputs: Vec<(u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(merged.path())? {
            let entry = entry?;
            inputs.push((entry.metadata()?.len(), entry.path()));
        }
        ensure!(!inputs.is_empty(), "nothing reaches anything in {}", self.target);
        inputs.sort();
        // Spread over all sizes: the smallest alone reach little.
        let small = inputs.into_iter().filter(|(bytes, _)| *bytes <= MAX_KEPT_BYTES).collect::<Vec<_>>();
        let step = small.len().div_ceil(MAX_KEPT).max(1);
        for (_, path) in small.iter().step_by(step) {
            let Some(name) = path.file_name() else { bail!("`{}` has no name", path.display()) };
            fs::copy(path, self.corpus.join(name)).context("cannot copy an input")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_are_those_of_the_library() -> Result<()> {
        let source = fs::read_to_string(workspace().join("tracer/src/fuzz.rs"))?;
        let lines: Vec<&str> = source.lines().filter(|line| line.contains("Target { name: ")).collect();
        ensure!(lines.len() == TARGETS.len(), "{lines:?}");
        for ((name, max_bytes), line) in TARGETS.iter().zip(lines) {
            let length = if max_bytes % 1024 == 0 && *max_bytes > 4096 {
                format!("max_bytes: {} << 10", max_bytes >> 10)
            } else {
                format!("max_bytes: {max_bytes}")
            };
            ensure!(line.contains(&format!("\"{name}\"")) && line.contains(&length), "{name}: {line}");
        }
        Ok(())
    }
}
