//! Figures of a run: minimum, median, ratios to the empty probes, and what offheap may cost.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{case::Case, faults, grid, median, servers};

/// Stack depth and the highest allowed ratio of offheap to the empty probes.
const BARS: [(u32, f64); 2] = [(6, 1.4), (23, 1.9)];
/// How many times faster than the bpftrace script offheap must be.
const BPFTRACE_BAR: f64 = 6.0;

/// Where it was measured.
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    cpu: String,
    cpu_count: usize,
}

impl Machine {
    /// This machine.
    pub fn read() -> Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("no kernel release")?;
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("no CPU information")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            kernel: kernel.trim().to_owned(),
            cpu: model.map_or("unknown", |(_, model)| model).to_owned(),
            cpu_count: std::thread::available_parallelism().context("no CPU count")?.get(),
        })
    }
}

/// Samples of one case at one depth.
pub struct Measured {
    /// Frames of the stack.
    pub frames: u32,
    /// What was attached.
    pub case: Case,
    /// Mean ns per pair, one per batch.
    pub samples_ns: Vec<f64>,
}

impl Measured {
    fn min_ns(&self) -> Option<f64> {
        self.samples_ns.iter().copied().min_by(f64::total_cmp)
    }

    fn median_ns(&self) -> Option<f64> {
        median(&self.samples_ns)
    }
}

/// A run.
pub struct Results {
    /// Day, UTC.
    pub date: String,
    /// Where.
    pub machine: Machine,
    /// Of which sources.
    pub commit: String,
    /// How often each case was attached.
    pub rounds: u32,
    /// Every case at every depth.
    pub measured: Vec<Measured>,
    /// A pair in many settings.
    pub grid: Vec<grid::Measured>,
    /// The lens on page faults.
    pub faults: Vec<faults::Measured>,
    /// Servers under load.
    pub servers: Vec<servers::Measured>,
}

impl Results {
    fn median_ns(&self, frames: u32, case: Case) -> Option<f64> {
        self.measured.iter().find(|entry| entry.frames == frames && entry.case == case)?.median_ns()
    }

    /// Median of `case` over that of the empty probes.
    fn ratio(&self, frames: u32, case: Case) -> Option<f64> {
        Some(self.median_ns(frames, case)? / self.median_ns(frames, Case::EmptyProbes)?)
    }

    /// A markdown table.
    pub fn table(&self) -> String {
        let mut table = format!(
            "ns per pair of malloc and free, {} rounds; {}, {} CPUs, {}, {}, {}\n\n\
             | frames | attached | min | median | × empty probes |\n|---:|---|---:|---:|---:|\n",
            self.rounds,
            self.machine.kernel,
            self.machine.cpu_count,
            self.machine.cpu,
            self.date,
            self.commit
        );
        let number = |value: Option<f64>, decimals| {
            value.map_or("–".to_owned(), |value| format!("{value:.decimals$}"))
        };
        for entry in &self.measured {
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "| {} | {} | {} | {} | {} |",
                entry.frames,
                entry.case.name(),
                number(entry.min_ns(), 0),
                number(entry.median_ns(), 0),
                number(self.ratio(entry.frames, entry.case), 2)
            );
        }
        for (is_there, part) in [
            (!self.grid.is_empty(), grid::table(&self.grid)),
            (!self.faults.is_empty(), faults::table(&self.faults)),
            (!self.servers.is_empty(), servers::table(&self.servers)),
        ] {
            if is_there {
                table += &format!("\n{part}");
            }
        }
        table
    }

    /// What is stored.
    pub fn json(&self) -> Result<String> {
        let measured: Vec<Value> = self
            .measured
            .iter()
            .map(|entry| {
                json!({
                    "frames": entry.frames,
                    "case": entry.case.name(),
                    "min_ns": entry.min_ns(),
                    "median_ns": entry.median_ns(),
                    "ratio_to_empty_probes": self.ratio(entry.frames, entry.case),
                    "samples_ns": entry.samples_ns,
                })
            })
            .collect();
        let results = json!({
            "schema": "offheap.bench/2",
            "date": self.date,
            "commit": self.commit,
            "kernel": self.machine.kernel,
            "cpu": self.machine.cpu,
            "cpu_count": self.machine.cpu_count,
            "rounds": self.rounds,
            "measured": measured,
            "grid": grid::json(&self.grid),
            "lens_faults": faults::json(&self.faults),
            "servers": servers::json(&self.servers),
        });
        serde_json::to_string_pretty(&results).context("cannot encode the results")
    }

    /// Bars that offheap does not keep; one that could not be measured counts as broken only if its cases ran.
    pub fn broken_bars(&self) -> Vec<String> {
        let mut broken = faults::broken_bars(&self.faults);
        broken.extend(servers::broken_bars(&self.servers));
        for (frames, bar) in BARS {
            if let Some(ratio) = self.ratio(frames, Case::Offheap)
                && ratio > bar
            {
                broken.push(format!("{ratio:.2} × the empty probes with {frames} frames, more than {bar}"));
            }
            let peers = self.median_ns(frames, Case::Bpftrace).zip(self.median_ns(frames, Case::Offheap));
            if let Some((bpftrace, offheap)) = peers
                && bpftrace / offheap < BPFTRACE_BAR
            {
                let times = bpftrace / offheap;
                broken.push(format!(
                    "only {times:.1} × faster than bpftrace with {frames} frames, not {BPFTRACE_BAR}"
                ));
            }
        }
        broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(offheap_ns: f64) -> Results {
        let entry = |case, samples_ns: &[f64]| Measured { frames: 6, case, samples_ns: samples_ns.to_vec() };
        Results {
            date: "2026-01-02".to_owned(),
            machine: Machine { kernel: "6.1".to_owned(), cpu: "x".to_owned(), cpu_count: 2 },
            commit: "abc".to_owned(),
            rounds: 1,
            grid: Vec::new(),
            faults: Vec::new(),
            servers: Vec::new(),
            measured: vec![
                entry(Case::EmptyProbes, &[1000.0, 3000.0, 900.0]),
                entry(Case::Offheap, &[offheap_ns]),
                entry(Case::Bpftrace, &[12_000.0, 14_000.0]),
            ],
        }
    }

    #[test]
    fn medians_and_ratios() {
        let results = results(1400.0);
        assert_eq!(results.median_ns(6, Case::EmptyProbes), Some(1000.0));
        assert_eq!(results.median_ns(6, Case::Bpftrace), Some(13_000.0));
        assert_eq!(results.ratio(6, Case::Offheap), Some(1.4));
        assert_eq!(results.ratio(23, Case::Offheap), None);
        assert!(results.table().contains("| 6 | offheap | 1400 | 1400 | 1.40 |"));
    }

    #[test]
    fn bars() {
        assert!(results(1400.0).broken_bars().is_empty());
        assert_eq!(results(1401.0).broken_bars().len(), 1);
        assert_eq!(results(2200.0).broken_bars().len(), 2, "too near to bpftrace as well");
    }
}
