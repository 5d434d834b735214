//! What a pair costs by depth of the stack, by threads, by live blocks, and by the number of distinct stacks.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::case::{Case, Programs, Subject};
use super::median;

/// What is attached. Other tools are compared in the simplest setting only.
const CASES: [Case; 3] = [Case::Untraced, Case::EmptyProbes, Case::Offheap];

/// One setting, the arguments of `spin_grid`.
struct Setting {
    name: &'static str,
    frames: u64,
    threads: u64,
    live: u64,
    stacks: u64,
    is_cross: bool,
    /// Pairs of one batch under a tracer.
    pairs: u64,
}

/// The one that the others differ from in one thing each.
const PLAIN: Setting =
    Setting { name: "6 frames", frames: 6, threads: 1, live: 0, stacks: 1, is_cross: false, pairs: 120_000 };

const SETTINGS: [Setting; 14] = [
    PLAIN,
    Setting { name: "20 frames", frames: 20, ..PLAIN },
    Setting { name: "100 frames", frames: 100, pairs: 60_000, ..PLAIN },
    Setting { name: "2 threads", threads: 2, pairs: 240_000, ..PLAIN },
    Setting { name: "4 threads", threads: 4, pairs: 240_000, ..PLAIN },
    Setting { name: "2 threads, each frees the other's", threads: 2, is_cross: true, ..PLAIN },
    Setting { name: "1 k live blocks", live: 1_000, ..PLAIN },
    Setting { name: "1 M live blocks", live: 1_000_000, ..PLAIN },
    Setting { name: "10 M live blocks", live: 10_000_000, ..PLAIN },
    // Of the same depth, to be compared with each other.
    Setting { name: "22 frames, 10 stacks", stacks: 10, ..PLAIN },
    Setting { name: "22 frames, 1 k stacks", stacks: 1_000, ..PLAIN },
    Setting { name: "22 frames, 50 k stacks", stacks: 50_000, ..PLAIN },
    Setting { name: "22 frames, 50 k stacks, 1 M live blocks", stacks: 50_000, live: 1_000_000, ..PLAIN },
    Setting { name: "22 frames, 10 stacks, 2 threads", stacks: 10, threads: 2, pairs: 240_000, ..PLAIN },
];

/// Samples of one setting.
pub struct Measured {
    setting: &'static Setting,
    /// By case, in the order of [`CASES`]: ns per pair, one per batch.
    samples_ns: [Vec<f64>; CASES.len()],
    /// Live blocks in the last capture; as many as there were, or the bench fails.
    outstanding_blocks: Option<u64>,
}

/// Measures every setting.
pub fn measure(programs: &Programs, rounds: u32) -> Result<Vec<Measured>> {
    let mut all: Vec<Measured> = SETTINGS
        .iter()
        .map(|setting| Measured { setting, samples_ns: Default::default(), outstanding_blocks: None })
        .collect();
    for round in 1..=rounds {
        for one in &mut all {
            one.round(programs).with_context(|| one.setting.name)?;
            let ratio = one.ratio().map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
            eprintln!("bench: round {round}/{rounds}, {}: × {ratio} the empty probes", one.setting.name);
        }
    }
    Ok(all)
}

impl Measured {
    fn round(&mut self, programs: &Programs) -> Result<()> {
        let Setting { frames, threads, live, stacks, is_cross, pairs, .. } = *self.setting;
        let scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
        let capture = scratch.path().join("grid.offheap");
        let blocks = (live + live / 10 + 1024).max(1 << 20);
        let subject = Subject {
            program: &programs.spin_grid,
            arguments: [frames, threads, live, stacks, u64::from(is_cross)].map(|n| n.to_string()).to_vec(),
            options: ["--max-live-blocks", &blocks.to_string(), "--max-sites", "262144", "--lens", "malloc"]
                .map(str::to_owned)
                .to_vec(),
            batch_pairs: Some((if is_cross { pairs } else { pairs * 30 }, pairs)),
        };
        for (case, samples) in CASES.iter().zip(&mut self.samples_ns) {
            samples.extend(case.measure(programs, &subject, &capture).with_context(|| case.name())?);
        }
        let outstanding = outstanding_blocks(&programs.offheap, &capture)?;
        if outstanding != live {
            bail!("offheap has {outstanding} live blocks in its capture, and there are {live}");
        }
        self.outstanding_blocks = Some(outstanding);
        Ok(())
    }

    fn median_ns(&self, case: Case) -> Option<f64> {
        let (_, samples) = CASES.iter().zip(&self.samples_ns).find(|(of, _)| **of == case)?;
        median(samples)
    }

    /// offheap over the empty probes.
    fn ratio(&self) -> Option<f64> {
        Some(self.median_ns(Case::Offheap)? / self.median_ns(Case::EmptyProbes)?)
    }
}

/// Blocks in a capture that were allocated by the function `allocate` and are live.
fn outstanding_blocks(offheap: &Path, capture: &Path) -> Result<u64> {
    let mut command = Command::new(offheap);
    command.args(["report", "--format", "json"]).arg(capture).stderr(Stdio::inherit());
    let output = command.output().context("cannot run offheap report")?;
    let report: Value = serde_json::from_slice(&output.stdout).context("the report is not JSON")?;
    let sites = report["sites"].as_array().context("the report has no sites")?;
    let is_ours = |site: &&Value| {
        let frames = site["stack"].as_array().into_iter().flatten();
        frames.into_iter().any(|frame| frame["function"] == "allocate")
    };
    Ok(sites.iter().filter(is_ours).filter_map(|site| site["outstanding_count"].as_u64()).sum())
}

/// A markdown table.
pub fn table(all: &[Measured]) -> String {
    let mut table = "median ns per pair, of all threads together\n\n\
                     | setting | untraced | empty probes | offheap | × empty probes | + ns |\n\
                     |---|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for one in all {
        let ns = |case| one.median_ns(case).map_or("–".to_owned(), |ns| format!("{ns:.0}"));
        let added = one.median_ns(Case::Offheap).zip(one.median_ns(Case::EmptyProbes));
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} |",
            one.setting.name,
            ns(Case::Untraced),
            ns(Case::EmptyProbes),
            ns(Case::Offheap),
            one.ratio().map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
            added.map_or("–".to_owned(), |(with, floor)| format!("{:.0}", with - floor)),
        );
    }
    table
}

/// What is stored.
pub fn json(all: &[Measured]) -> Value {
    let rows = all.iter().map(|one| {
        let Setting { name, frames, threads, live, stacks, is_cross, .. } = *one.setting;
        json!({
            "setting": name,
            "frames": frames,
            "threads": threads,
            "live_blocks": live,
            "distinct_stacks": stacks,
            "frees_of_another_thread": is_cross,
            "untraced_median_ns": one.median_ns(Case::Untraced),
            "empty_probes_median_ns": one.median_ns(Case::EmptyProbes),
            "offheap_median_ns": one.median_ns(Case::Offheap),
            "ratio_to_empty_probes": one.ratio(),
            "outstanding_blocks": one.outstanding_blocks,
        })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_and_what_is_added() {
        let [plain, ..] = &SETTINGS;
        let all = [Measured {
            setting: plain,
            samples_ns: [vec![10.0], vec![1000.0], vec![1500.0, 1400.0, 1700.0]],
            outstanding_blocks: Some(0),
        }];
        assert!(table(&all).contains("| 6 frames | 10 | 1000 | 1500 | 1.50 | 500 |"));
        assert_eq!(json(&all)[0]["ratio_to_empty_probes"], 1.5);
    }
}
