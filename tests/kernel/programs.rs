//! What the verifier of this kernel says of the BPF programs.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use tracer_tests::tracer::offheap_output;
use tracer_tests::{Result, require};

/// Lines `KERNEL PROGRAM INSTRUCTIONS`, with the first two numbers of the kernel's release.
const BASELINE: &str = include_str!("verified.txt");
/// Instructions that the verifier processes at most (`BPF_COMPLEXITY_LIMIT_INSNS`, include/linux/bpf_verifier.h).
const LIMIT: u64 = 1_000_000;
/// What a program may grow by before the baseline has to be looked at and written anew. Stable updates of a kernel move
/// it, too.
const SLACK_PERCENT: u64 = 15;

/// `6.18` of `6.18.44-fc`.
fn series() -> Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']);
    let (major, minor) = numbers.next().zip(numbers.next()).context("no kernel release")?;
    Ok(format!("{major}.{}", minor.trim()))
}

/// Every program is accepted, with its types, far from the limit, and not much dearer than it was.
#[test]
fn every_program_is_verified() -> Result {
    require!();
    let output = offheap_output(["verify-programs"])?;
    let mut found = BTreeMap::new();
    for line in output.lines() {
        let (program, rest) = line.split_once(' ').context("no name")?;
        let (instructions, _) = rest.split_once(" instructions, ").with_context(|| line.to_owned())?;
        ensure!(rest.ends_with("with types"), "{line}");
        found.insert(program.to_owned(), instructions.parse::<u64>().with_context(|| line.to_owned())?);
    }
    let series = series()?;
    for (program, instructions) in &found {
        println!("{series} {program} {instructions}");
    }
    for wanted in [
        "call_enter",
        "call_return",
        "call_leave_at_exit",
        "release_enter",
        "mapping_exit",
        "page_fault_user",
    ] {
        ensure!(found.contains_key(wanted), "no {wanted} in\n{output}");
    }
    ensure!(found.values().all(|instructions| *instructions < LIMIT / 2), "{found:#?}");
    let mut known = 0;
    for line in BASELINE.lines().filter(|line| !line.starts_with('#')) {
        let [kernel, program, instructions] = line.split(' ').collect::<Vec<_>>()[..] else {
            anyhow::bail!("the baseline has a line `{line}`");
        };
        if kernel != series {
            continue;
        }
        let bound = instructions.parse::<u64>()? * (100 + SLACK_PERCENT) / 100;
        let now = found.get(program).with_context(|| format!("the baseline has {program}"))?;
        ensure!(*now <= bound, "{program} takes {now} instructions, and took {instructions}");
        known += 1;
    }
    ensure!(known == 0 || known == found.len(), "{known} of {} programs are in the baseline", found.len());
    Ok(())
}
