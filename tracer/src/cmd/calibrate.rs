//! `offheap doctor --calibrate`: what traps cost on this machine.

use std::env;
use std::io::{BufRead as _, BufReader, Write};
use std::num::NonZeroU32;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};

use crate::attach::probe_kind::{self, ProbeChoice};
use crate::record::{Attached, Purpose, trap_costs};
use crate::report::human::count;

/// Pairs of one batch, untraced and traced, and batches of which the fastest counts.
const UNTRACED_PAIRS: u32 = 1_000_000;
const TRACED_PAIRS: u32 = 5_000;
const BATCHES: usize = 15;

/// Measures and prints.
///
/// # Errors
/// As for a recording.
pub fn run(out: &mut impl Write) -> Result<()> {
    let kind = probe_kind::choose(ProbeChoice::Auto, true)?;
    let traps = trap_costs(kind)?;
    let ns = |value: f64| format!("{:>8} ns", count(value.round() as u64));
    writeln!(out, "\nTraps on this machine ({} probes, empty programs)", kind.name())?;
    writeln!(out, "  {}  entry probe, instruction emulated by the kernel", ns(traps.emulated_ns))?;
    writeln!(
        out,
        "  {}  entry probe, instruction single-stepped (`slow` in the tables)",
        ns(traps.stepped_ns)
    )?;
    writeln!(out, "  {}  return probe, beside one at the entry", ns(traps.return_ns))?;
    writeln!(out, "  {}  exit probe (`ret`, single-stepped)", ns(traps.exit_ns))?;
    let mut child = PairTarget::start()?;
    let untraced = child.least_ns(UNTRACED_PAIRS)?;
    let mut traced = |purpose| {
        let attached = Attached::new(child.pid()?, purpose, ProbeChoice::Auto)?;
        let time_ns = child.least_ns(TRACED_PAIRS)?;
        drop(attached);
        Ok::<f64, anyhow::Error>(time_ns)
    };
    let (empty, whole) = (traced(Purpose::Floor)?, traced(Purpose::Trace)?);
    writeln!(out, "\nA pair of malloc and free, with a stack of 6 frames")?;
    writeln!(out, "  {}  untraced", ns(untraced))?;
    writeln!(out, "  {}  with empty programs at malloc and free: the traps", ns(empty))?;
    writeln!(out, "  {}  recorded", ns(whole))?;
    writeln!(
        out,
        "  10,000 pairs a second take {:.1} % of a CPU while they are recorded; `--sample` saves at most {:.1} of it",
        (whole - untraced).max(0.0) / 1e3,
        (whole - empty).max(0.0) / 1e3
    )?;
    child.finish()
}

/// The child that works.
struct PairTarget {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl PairTarget {
    fn start() -> Result<Self> {
        let program = env::current_exe().context("find the own program")?;
        let mut command = Command::new(program);
        command.arg("pair-target").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start the program to be measured")?;
        let input = child.stdin.take().context("no input pipe")?;
        let output = BufReader::new(child.stdout.take().context("no output pipe")?);
        let mut target = Self { child, input, output };
        target.answer()?;
        Ok(target)
    }

    fn pid(&self) -> Result<NonZeroU32> {
        NonZeroU32::new(self.child.id()).context("not a process id")
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        let got = self.output.read_line(&mut line).context("read from the program to be measured")?;
        anyhow::ensure!(got > 0, "the program to be measured has ended");
        Ok(line)
    }

    fn least_ns(&mut self, pairs: u32) -> Result<f64> {
        let mut times = Vec::new();
        // One more to warm up.
        for _ in 0..=BATCHES {
            writeln!(self.input, "{pairs}").and_then(|()| self.input.flush()).context("order pairs")?;
            times.push(self.answer()?.trim().parse::<f64>().context("not a time")?);
        }
        times.remove(0);
        times.into_iter().reduce(f64::min).context("no times")
    }

    fn finish(mut self) -> Result<()> {
        drop(self.input);
        self.child.wait().context("wait for the program to be measured").map(drop)
    }
}
