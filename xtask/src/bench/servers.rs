//! What real servers lose under load: throughput and the slowest hundredth of the answers, with each lens and each peer.
//!
//! A tracer that attaches is measured against the same process just before. What has to start the server itself (heaptrack,
//! valgrind) is measured against the untraced ones of the same run.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::case::{self, Programs, Tracer};
use super::footprint::{self, Footprint};
use super::median;
use super::server::{Answered, Running, Server};
use crate::command::find_program;

/// Seconds of one measurement.
const SECONDS: u32 = 4;
const WARM_UP_SECONDS: u32 = 2;
/// Between the attachment and the measurement: what it costs in the long run is of interest, and a budget takes two seconds to
/// find out.
const SETTLE_SECONDS: u32 = 3;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tool {
    /// `offheap record` with these options.
    Offheap { name: &'static str, options: &'static [&'static str], bar: Option<f64> },
    /// bpftrace with the script.
    Bpftrace,
    /// heaptrack, preloaded.
    Heaptrack,
    /// valgrind's massif, for scale.
    Massif,
}

const TOOLS: [Tool; 7] = [
    Tool::Offheap { name: "offheap, lens malloc and mmap", options: &[], bar: None },
    Tool::Offheap { name: "offheap, lens mmap", options: &["--lens", "mmap"], bar: None },
    Tool::Offheap { name: "offheap, lens faults", options: &["--lens", "faults"], bar: Some(0.98) },
    Tool::Offheap { name: "offheap, --max-overhead 5%", options: &["--max-overhead", "5%"], bar: Some(0.95) },
    Tool::Bpftrace,
    Tool::Heaptrack,
    Tool::Massif,
];

impl Tool {
    const fn name(self) -> &'static str {
        match self {
            Self::Offheap { name, .. } => name,
            Self::Bpftrace => "bpftrace script",
            Self::Heaptrack => "heaptrack",
            Self::Massif => "valgrind massif",
        }
    }

    fn is_installed(self) -> bool {
        let program = match self {
            Self::Offheap { .. } => return true,
            Self::Bpftrace => "bpftrace",
            Self::Heaptrack => "heaptrack",
            Self::Massif => "valgrind",
        };
        find_program(program).is_some()
    }

    /// What the server is started by.
    fn wrapper(self, directory: &Path) -> Result<Vec<String>> {
        let file = |name: &str| directory.join(name).display().to_string();
        let program = |name: &str| -> Result<String> {
            Ok(find_program(name).with_context(|| format!("no {name}"))?.display().to_string())
        };
        Ok(match self {
            Self::Offheap { .. } | Self::Bpftrace => Vec::new(),
            Self::Heaptrack => vec![program("heaptrack")?, "--raw".to_owned(), "-o".to_owned(), file("heap")],
            Self::Massif => {
                vec![
                    program("valgrind")?,
                    "--tool=massif".to_owned(),
                    // The interpreter may be a script that executes another one.
                    "--trace-children=yes".to_owned(),
                    format!("--massif-out-file={}.%p", file("massif")),
                ]
            }
        })
    }

    fn tracer(self, programs: &Programs, pid: u32, directory: &Path) -> Result<Option<Command>> {
        Ok(match self {
            Self::Offheap { options, .. } => {
                let mut command = Command::new(&programs.offheap);
                command.args(["record", "-p", &pid.to_string(), "--duration", "600s"]).args(options);
                command.arg("-o").arg(directory.join("server.offheap"));
                Some(command)
            }
            Self::Bpftrace => Some(case::bpftrace(pid, directory)?),
            Self::Heaptrack | Self::Massif => None,
        })
    }
}

/// Samples of one tool on one server.
pub struct Measured {
    server: Server,
    tool: Tool,
    untraced: Vec<Answered>,
    traced: Vec<Answered>,
    footprints: Vec<Footprint>,
}

/// Measures every tool on every server that is installed.
pub fn measure(programs: &Programs, rounds: u32) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for server in Server::ALL {
        if let Some(missing) = server.missing() {
            eprintln!("bench: {} is left out: {missing} is not installed", server.name());
            continue;
        }
        let tools = TOOLS.into_iter().filter(|tool| tool.is_installed());
        all.extend(tools.map(|tool| Measured {
            server,
            tool,
            untraced: Vec::new(),
            traced: Vec::new(),
            footprints: Vec::new(),
        }));
    }
    for round in 1..=rounds {
        for one in &mut all {
            let what = format!("{}, {}", one.server.name(), one.tool.name());
            // One tool that does not work on a server is a gap in the table, not the end of the bench.
            match one.round(programs) {
                Ok(()) => eprintln!(
                    "bench: round {round}/{rounds}, {what}: {:.0?}/s",
                    one.traced.last().map(|last| last.per_second)
                ),
                Err(error) => eprintln!("bench: round {round}/{rounds}, {what}: {error:#}"),
            }
        }
    }
    Ok(all)
}

impl Measured {
    fn round(&mut self, programs: &Programs) -> Result<()> {
        let directory = tempfile::tempdir().context("cannot create a temporary directory")?;
        let running = self.server.start(&self.tool.wrapper(directory.path())?, directory.path())?;
        running.load(WARM_UP_SECONDS)?;
        let Some(mut command) = self.tool.tracer(programs, running.pid(), directory.path())? else {
            self.traced.push(running.load(SECONDS)?);
            return Ok(());
        };
        let untraced = running.load(SECONDS)?;
        let start = Instant::now();
        let tracer = Tracer::attach(&mut command)?;
        let attach_ms = start.elapsed().as_secs_f64() * 1e3;
        running.load(SETTLE_SECONDS)?;
        let traced = running.load(SECONDS);
        let (peak_rss_bytes, maps_bytes) = footprint::memory(tracer.pid());
        let programs_share = match self.tool {
            Tool::Offheap { .. } => footprint::programs_share(tracer.pid(), running.pid(), || {
                running.load(SETTLE_SECONDS).map(drop)
            })?,
            _ => None,
        };
        let seconds = start.elapsed().as_secs_f64();
        let end = Instant::now();
        tracer.detach()?;
        self.untraced.push(untraced);
        self.traced.push(traced?);
        let capture = fs::metadata(directory.path().join("server.offheap"));
        self.footprints.push(Footprint {
            attach_ms,
            detach_ms: end.elapsed().as_secs_f64() * 1e3,
            peak_rss_bytes,
            maps_bytes,
            programs_share,
            capture_bytes: capture.ok().map(|data| data.len()),
            seconds,
        });
        still_answers(&running)
    }

    fn per_second(of: &[Answered]) -> Option<f64> {
        median(&of.iter().map(|said| said.per_second).collect::<Vec<_>>())
    }

    fn p99_ms(of: &[Answered]) -> Option<f64> {
        median(&of.iter().map(|said| said.p99_ms).collect::<Vec<_>>())
    }

    /// The untraced measurements it is compared with: its own, or all of that server.
    fn reference(&self, all: &[Self]) -> Vec<Answered> {
        let is_same = |other: &&Self| {
            other.server == self.server && (self.untraced.is_empty() || other.tool == self.tool)
        };
        all.iter().filter(is_same).flat_map(|other| other.untraced.iter().copied()).collect()
    }

    /// Throughput over that of the untraced server. Of neighbouring moments where there are such.
    fn throughput_ratio(&self, all: &[Self]) -> Option<f64> {
        if self.untraced.is_empty() {
            return Some(Self::per_second(&self.traced)? / Self::per_second(&self.reference(all))?);
        }
        let pairs = self.traced.iter().zip(&self.untraced);
        median(&pairs.map(|(with, without)| with.per_second / without.per_second).collect::<Vec<_>>())
    }

    fn median_of(&self, value: impl Fn(&Footprint) -> f64) -> Option<f64> {
        median(&self.footprints.iter().map(value).collect::<Vec<_>>())
    }

    /// Of what was known each time.
    fn median_bytes(&self, value: impl Fn(&Footprint) -> Option<u64>) -> Option<f64> {
        median(&self.footprints.iter().filter_map(value).map(|bytes| bytes as f64).collect::<Vec<_>>())
    }

    fn programs_share(&self) -> Option<f64> {
        median(&self.footprints.iter().filter_map(|of| of.programs_share).collect::<Vec<_>>())
    }
}

/// A server that a tracer has broken is worth more than its figures.
fn still_answers(running: &Running) -> Result<()> {
    running.load(1).map(drop).context("the server does not answer after the tracer has gone")
}

/// A markdown table of the servers, and one of what offheap itself takes.
pub fn table(all: &[Measured]) -> String {
    let mut table = "servers under load: medians; throughput as a ratio of the untraced one\n\n\
                     | server | tool | requests/s untraced | requests/s | ratio | p99 untraced, ms | p99, ms |\n\
                     |---|---|---:|---:|---:|---:|---:|\n"
        .to_owned();
    let number = |value: Option<f64>, decimals: usize| {
        value.map_or("–".to_owned(), |value| format!("{value:.decimals$}"))
    };
    for one in all {
        let reference = one.reference(all);
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} | {} |",
            one.server.name(),
            one.tool.name(),
            number(Measured::per_second(&reference), 0),
            number(Measured::per_second(&one.traced), 0),
            number(one.throughput_ratio(all), 3),
            number(Measured::p99_ms(&reference), 2),
            number(Measured::p99_ms(&one.traced), 2),
        );
    }
    table += "\n| server | tool | attach, ms | detach, ms | offheap peak RSS, MiB | BPF maps, MiB | capture, KiB | after, s | \
              programs, % of the server's CPU time |\n\
              |---|---|---:|---:|---:|---:|---:|---:|---:|\n";
    for one in all.iter().filter(|one| !one.footprints.is_empty()) {
        let mib = |value: Option<f64>| number(value.map(|bytes| bytes / 1_048_576.0), 0);
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            one.server.name(),
            one.tool.name(),
            number(one.median_of(|of| of.attach_ms), 0),
            number(one.median_of(|of| of.detach_ms), 0),
            mib(one.median_bytes(|of| of.peak_rss_bytes)),
            mib(one.median_bytes(|of| of.maps_bytes)),
            number(one.median_bytes(|of| of.capture_bytes).map(|bytes| bytes / 1024.0), 0),
            number(one.median_of(|of| of.seconds), 0),
            number(one.programs_share().map(|share| share * 100.0), 2),
        );
    }
    table
}

/// What is stored.
pub fn json(all: &[Measured]) -> Value {
    let rows = all.iter().map(|one| {
        let reference = one.reference(all);
        json!({
            "server": one.server.name(),
            "tool": one.tool.name(),
            "untraced_requests_per_second": Measured::per_second(&reference),
            "requests_per_second": Measured::per_second(&one.traced),
            "throughput_ratio": one.throughput_ratio(all),
            "untraced_p99_ms": Measured::p99_ms(&reference),
            "p99_ms": Measured::p99_ms(&one.traced),
            "attach_ms": one.median_of(|of| of.attach_ms),
            "detach_ms": one.median_of(|of| of.detach_ms),
            "peak_rss_bytes": one.median_bytes(|of| of.peak_rss_bytes),
            "maps_bytes": one.median_bytes(|of| of.maps_bytes),
            "capture_bytes": one.median_bytes(|of| of.capture_bytes),
            "recorded_seconds": one.median_of(|of| of.seconds),
            "programs_share": one.programs_share(),
            "requests_per_second_all": one.traced.iter().map(|said| said.per_second).collect::<Vec<_>>(),
        })
    });
    rows.collect()
}

/// Bars that are not kept.
pub fn broken_bars(all: &[Measured]) -> Vec<String> {
    let broken = all.iter().filter_map(|one| {
        let Tool::Offheap { bar: Some(bar), .. } = one.tool else { return None };
        let ratio = one.throughput_ratio(all)?;
        (ratio < bar).then(|| {
            format!(
                "{}, {}: {ratio:.3} of the untraced throughput, less than {bar}",
                one.server.name(),
                one.tool.name()
            )
        })
    });
    broken.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(per_second: f64) -> Answered {
        Answered { per_second, p99_ms: 1.0 }
    }

    #[test]
    fn a_wrapper_is_compared_with_all_untraced_ones() {
        let [_, _, faults, _, _, heaptrack, _] = TOOLS;
        let measured = |tool, untraced: &[f64], traced: &[f64]| Measured {
            server: Server::Nginx,
            tool,
            untraced: untraced.iter().copied().map(said).collect(),
            traced: traced.iter().copied().map(said).collect(),
            footprints: Vec::new(),
        };
        let all = [measured(faults, &[1000.0, 500.0], &[900.0, 500.0]), measured(heaptrack, &[], &[300.0])];
        let [faults, heaptrack] = &all;
        assert_eq!(faults.throughput_ratio(&all), Some(0.95));
        assert_eq!(heaptrack.throughput_ratio(&all), Some(0.4));
        assert_eq!(broken_bars(&all).len(), 1);
        assert!(table(&all).contains("| nginx | heaptrack | 750 | 300 | 0.400 |"), "{}", table(&all));
    }
}
