//! What the lens on page faults costs: an allocating program, one that touches pages, and programs that are not traced.
//!
//! Each workload is one process that is measured before, while and after offheap is attached, so that a ratio compares
//! neighbouring moments of the same memory and the same code.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::case::{Programs, Target, Tracer};
use super::median;

/// Batches of each state in a round; one before them warms up.
const BATCHES: usize = 3;

/// One workload.
struct Workload {
    name: &'static str,
    /// What is counted.
    unit: &'static str,
    /// The program's argument; of `spin_pairs` where it is a number, else of `spin_pages`.
    argument: &'static str,
    count: u64,
    /// Whether this process is traced; else another one is, which does nothing.
    is_traced: bool,
    /// Highest allowed ratio.
    bar: Option<f64>,
}

const WORKLOADS: [Workload; 4] = [
    Workload {
        name: "malloc and free, traced",
        unit: "pair",
        argument: "6",
        count: 10_000_000,
        is_traced: true,
        bar: Some(1.02),
    },
    Workload {
        name: "touching pages, traced",
        unit: "page",
        argument: "touch",
        count: 200_000,
        is_traced: true,
        bar: Some(1.5),
    },
    Workload {
        name: "touching pages, another process",
        unit: "page",
        argument: "touch",
        count: 200_000,
        is_traced: false,
        bar: None,
    },
    Workload {
        name: "getppid, another process",
        unit: "call",
        argument: "call",
        count: 2_000_000,
        is_traced: false,
        bar: None,
    },
];

/// Samples of one workload.
pub struct Measured {
    workload: &'static Workload,
    untraced_ns: Vec<f64>,
    traced_ns: Vec<f64>,
    ratios: Vec<f64>,
}

/// Measures every workload.
pub fn measure(programs: &Programs, rounds: u32) -> Result<Vec<Measured>> {
    let mut all: Vec<Measured> = WORKLOADS
        .iter()
        .map(|workload| Measured {
            workload,
            untraced_ns: Vec::new(),
            traced_ns: Vec::new(),
            ratios: Vec::new(),
        })
        .collect();
    for round in 1..=rounds {
        for one in &mut all {
            one.round(programs).with_context(|| one.workload.name)?;
            eprintln!(
                "bench: round {round}/{rounds}, lens faults, {}: × {:.3}",
                one.workload.name,
                one.ratios.last().copied().unwrap_or(f64::NAN)
            );
        }
    }
    Ok(all)
}

impl Measured {
    fn round(&mut self, programs: &Programs) -> Result<()> {
        let Workload { argument, count, is_traced, .. } = *self.workload;
        let program = if argument.parse::<u32>().is_ok() { &programs.spin } else { &programs.spin_pages };
        let mut target = Target::start(Command::new(program).arg(argument))?;
        let idle = Target::start(Command::new(&programs.spin_pages).arg("call"))?;
        let pid = if is_traced { target.pid() } else { idle.pid() };
        let scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
        target.batch(count)?;
        let batches =
            |target: &mut Target| (0..BATCHES).map(|_| target.batch(count)).collect::<Result<Vec<f64>>>();
        let mut untraced = batches(&mut target)?;
        let mut command = Command::new(&programs.offheap);
        command.args(["record", "-p", &pid.to_string(), "--lens", "faults", "--duration", "600s", "-o"]);
        let tracer = Tracer::attach(command.arg(scratch.path().join("bench.offheap")))?;
        let traced = batches(&mut target);
        tracer.detach()?;
        untraced.extend(batches(&mut target)?);
        let traced = traced?;
        self.ratios.extend(median(&traced).zip(median(&untraced)).map(|(with, without)| with / without));
        self.untraced_ns.extend(untraced);
        self.traced_ns.extend(traced);
        target.finish()?;
        idle.finish()
    }

    fn ratio(&self) -> Option<f64> {
        median(&self.ratios)
    }
}

/// A markdown table.
pub fn table(all: &[Measured]) -> String {
    let mut table = "lens faults: median ns, and median ratio of the rounds\n\n\
                     | workload | per | untraced | with the lens | ratio |\n|---|---|---:|---:|---:|\n"
        .to_owned();
    for one in all {
        let ns = |values: &[f64]| median(values).map_or("–".to_owned(), |ns| format!("{ns:.1}"));
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} |",
            one.workload.name,
            one.workload.unit,
            ns(&one.untraced_ns),
            ns(&one.traced_ns),
            one.ratio().map_or("–".to_owned(), |ratio| format!("{ratio:.3}"))
        );
    }
    table
}

/// What is stored.
pub fn json(all: &[Measured]) -> Value {
    let rows = all.iter().map(|one| {
        json!({
            "workload": one.workload.name,
            "unit": one.workload.unit,
            "untraced_median_ns": median(&one.untraced_ns),
            "traced_median_ns": median(&one.traced_ns),
            "ratio": one.ratio(),
            "ratios": one.ratios,
        })
    });
    rows.collect()
}

/// Bars that are not kept.
pub fn broken_bars(all: &[Measured]) -> Vec<String> {
    let broken = all.iter().filter_map(|one| {
        let (ratio, bar) = one.ratio().zip(one.workload.bar)?;
        (ratio > bar).then(|| format!("lens faults, {}: × {ratio:.3}, more than {bar}", one.workload.name))
    });
    broken.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_have_bars() {
        let measured = |workload, ratios: &[f64]| Measured {
            workload,
            untraced_ns: vec![100.0],
            traced_ns: vec![103.0],
            ratios: ratios.to_vec(),
        };
        let [pairs, _, other, _] = &WORKLOADS;
        let all = [measured(pairs, &[1.01, 1.03, 1.2]), measured(other, &[3.0, 5.0])];
        assert_eq!(broken_bars(&all).len(), 1);
        assert!(table(&all).contains("| malloc and free, traced | pair | 100.0 | 103.0 | 1.030 |"));
        assert_eq!(json(&all)[1]["ratio"], 4.0);
    }
}
