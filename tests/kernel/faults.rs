//! The lens on page faults: pages by function, against what the targets and the kernel's smaps say.

use std::fs;
use std::process::Command;

use anyhow::{Context, ensure};
use tracer_tests::report::{FAULTS, MALLOC, Report, Site};
use tracer_tests::require::Need;
use tracer_tests::target::{Target, command};
use tracer_tests::tracer::{COMPLETE, Finished, Recording};
use tracer_tests::truth::Truth;
use tracer_tests::{Result, require};

const MIB: u64 = 1 << 20;

/// Resident set of a process by its smaps, in bytes.
fn rss(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("no smaps")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).context("no Rss")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().context("not a number")?;
    Ok(kib * 1024)
}

/// A recording of a target from its `ready` to its `truth`, and by how much its smaps grew meanwhile.
struct Traced {
    truth: Truth,
    report: Report,
    finished: Finished,
    grown: i64,
}

/// The target for every way. Its calls are resolved at its start: the dynamic linker's trampoline for the first call of a
/// function keeps its frame in a register that a walk does not follow, and pages that the linker reads there would end at it.
fn every_way_target() -> Result<Target> {
    let mut run = command("faults")?;
    run.env("LD_BIND_NOW", "1");
    Target::start_command(run)
}

impl Traced {
    fn of(mut target: Target, arguments: &[&str]) -> Result<Self> {
        let recording = Recording::attach(&target, &[&["--lens", "faults"], arguments].concat())?;
        let before = rss(target.pid())?;
        let truth = target.work()?;
        let finished = recording.stop()?;
        // Last, since runtimes give memory back in the background.
        let grown = i64::try_from(rss(target.pid())?)? - i64::try_from(before)?;
        target.finish_well()?;
        let report = finished.report()?;
        Ok(Self { truth, report, finished, grown })
    }

    /// Sites, and what belongs to runtimes.
    fn resident(&self) -> u64 {
        self.report.outstanding_in(FAULTS).0 + self.report.set_aside_in(FAULTS, None)
    }

    /// Resident bytes of a class.
    fn of_class(&self, class: &str) -> u64 {
        let is = |site: &&Site| site.class.as_deref() == Some(class);
        let sites: u64 = self.report.sites_in(FAULTS).filter(is).map(|site| site.outstanding_bytes).sum();
        sites + self.report.set_aside_in(FAULTS, Some(class))
    }

    /// What the target says of itself.
    fn said(&self, name: &str) -> Result<u64> {
        let said = self.truth.sites.iter().find(|site| site.function == name);
        Ok(said.with_context(|| format!("the target does not say {name}"))?.outstanding_bytes)
    }

    fn classes(&self) -> Vec<String> {
        let line = |site: &Site| {
            format!("{:?} {:?} {} {:?}", site.class, site.label, site.outstanding_bytes, site.functions())
        };
        self.report.sites_in(FAULTS).take(12).map(line).collect()
    }
}

/// Fails unless `found` is within 5 % of `wanted`.
fn near(what: &str, found: u64, wanted: u64) -> Result {
    eprintln!("{what}: {found} bytes, expected {wanted}");
    ensure!(found.abs_diff(wanted) * 20 <= wanted, "{what}: {found} bytes instead of {wanted}");
    Ok(())
}

/// Every page at its function; and all of them together are the growth of smaps, but for the mebibyte that was there before
/// and has been given back.
#[test]
fn every_way() -> Result {
    require!();
    let traced = Traced::of(every_way_target()?, &[])?;
    traced.finished.expect_status(COMPLETE)?;
    traced.truth.compare(&traced.report)?;
    let grown = u64::try_from(traced.grown)? + MIB;
    near("sum over all sites", traced.resident(), grown)?;
    ensure!(traced.report.loss("unattributed-growth") == (0, 0), "{:?}", traced.report.losses());
    let is = |function: &str, class: &str| {
        let site = traced.report.sites_in(FAULTS).find(|site| site.functions().contains(&function));
        let found = site.with_context(|| format!("{function} is missing"))?.class.as_deref();
        ensure!(found == Some(class), "{function} is {found:?}, not {class}");
        Ok(())
    };
    is("site_touch", "mmap")?;
    is("site_file", "file")?;
    is("site_memfd", "shared-memory")?;
    is("site_stack", "thread-stack")?;
    let broken = || {
        let ends = traced.report.sites_in(FAULTS).map(|site| (site.stack_end.clone(), site.functions()));
        ends.filter(|(end, _)| end.as_deref() != Some("thread-start")).collect::<Vec<_>>()
    };
    ensure!(
        traced.report.whole_percent() > 99.0,
        "{} % whole: {:#?}",
        traced.report.whole_percent(),
        broken()
    );
    Ok(())
}

/// With the lens on allocations beside it, the sums are the same, and an untouched block is seen to be untouched.
#[test]
fn beside_allocations() -> Result {
    require!();
    let mut target = every_way_target()?;
    let recording = Recording::attach(&target, &["--lens", "malloc,faults"])?;
    let truth = target.work()?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    let touched = Truth {
        sites: truth.sites.into_iter().filter(|site| site.function != "site_untouched").collect(),
        ..truth
    };
    touched.compare(&report)?;
    let untouched = report.sites_in(MALLOC).find(|site| site.functions().contains(&"site_untouched"));
    ensure!(untouched.context("the block is missing")?.outstanding_bytes == 64 * MIB, "{untouched:?}");
    let said = finished.errors.iter().find(|line| line.contains("in unfreed blocks"));
    let said = said.context("nothing is said of what is resident")?;
    ensure!(said.contains("of 64") && said.contains("KiB are resident"), "{said}");
    Ok(())
}

/// Copies on write count where they are made, in the child and in the parent.
#[test]
fn fork_and_copies() -> Result {
    require!();
    let mut run = command("faults_family")?;
    run.arg("fork");
    let traced = Traced::of(Target::start_command(run)?, &[])?;
    traced.finished.expect_status(COMPLETE)?;
    traced.truth.compare(&traced.report)?;
    ensure!(traced.report.processes.len() == 2, "{:?}", traced.report.processes);
    // Two of the mebibytes that the child copies were there before the recording, the third before the child.
    let child = traced.report.processes.get(1).context("no child")?.pid;
    let is_said = |line: &String| line.contains(&format!("process {child} ")) && line.contains("; 3.0");
    ensure!(
        traced.finished.errors.iter().any(is_said),
        "the child's copies are not told apart: {:#?}",
        traced.finished.errors
    );
    Ok(())
}

/// What the old program had is gone; what the new one touches is its own.
#[test]
fn exec() -> Result {
    require!();
    let mut run = command("faults_family")?;
    run.arg("exec");
    let mut target = Target::start_command(run)?;
    let mut recording = Recording::attach(&target, &["-v", "--lens", "faults"])?;
    target.order_anew("go")?;
    recording.wait_until_said("runs another program")?;
    let truth = target.work()?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    truth.compare(&finished.report()?)
}

/// No names, no allocator, no dynamic linker: the sum is the growth all the same.
#[test]
fn stripped_static() -> Result {
    require!();
    let traced = Traced::of(Target::start("faults_stripped")?, &[])?;
    traced.finished.expect_status(COMPLETE)?;
    near("sum over all sites", traced.resident(), u64::try_from(traced.grown)? + MIB)
}

/// Four times more pages than are kept: sums are estimates, within four times the error that is stated, and said to be so.
#[test]
fn more_pages_than_are_kept() -> Result {
    require!();
    let traced = Traced::of(Target::start("faults_many")?, &["--max-fault-pages", "65536"])?;
    traced.finished.expect_status(COMPLETE)?;
    let said = traced.finished.errors.iter().find(|line| line.contains("the standard error of all"));
    let said = said.context("nothing is said of the sample")?;
    let error =
        said.split("resident is ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    let error = error.with_context(|| format!("no error in `{said}`"))? * MIB as f64;
    let of = |function: &str| -> u64 {
        let is = |site: &&Site| site.functions().contains(&function);
        traced.report.sites_in(FAULTS).filter(is).map(|site| site.outstanding_bytes).sum()
    };
    let (quarter, rest) = (of("site_quarter"), of("site_rest"));
    eprintln!("{said}\n{quarter} and {rest} bytes");
    ensure!(error > 0.0 && error < 256.0 * MIB as f64, "{said}");
    ensure!(((quarter + rest) as f64 - 1024.0 * MIB as f64).abs() < 4.0 * error, "{quarter} + {rest}");
    ensure!((quarter as f64 - 256.0 * MIB as f64).abs() < 4.0 * error, "{quarter}");
    ensure!((rest as f64 - 768.0 * MIB as f64).abs() < 4.0 * error, "{rest}");
    Ok(())
}

/// V8's heap is one thing, buffers are another.
#[test]
fn node() -> Result {
    require!(Need::Program("node"));
    let mut run = Command::new("node");
    run.arg("--expose-gc").arg(tracer_tests::build::sources().join("faults_node.js"));
    let traced = Traced::of(Target::start_command(run)?, &[])?;
    for line in traced.classes() {
        eprintln!("{line}");
    }
    let said = traced.finished.errors.iter().find(|line| line.contains("V8 heap of process"));
    let said = said.with_context(|| format!("no word of the heap: {:#?}", traced.finished.errors))?;
    eprintln!("{said}");
    let grown = said.split("grew by ").nth(1).and_then(|rest| rest.split(" MiB").next()?.parse::<f64>().ok());
    let grown = grown.with_context(|| format!("no figure in `{said}`"))? * MIB as f64;
    near("heap", grown as u64, traced.said("heap")?)?;
    near("sites of the heap", traced.of_class("managed-heap"), traced.said("heap")?)?;
    near("sum over all sites", traced.resident(), u64::try_from(traced.grown)?)?;
    let outside = traced.of_class("mmap") + traced.of_class("allocator-arena") + traced.of_class("brk-heap");
    ensure!(outside >= traced.said("buffers")?, "{outside} bytes outside of the heap");
    ensure!(said.contains("heap snapshots"), "no advice: {said}");
    Ok(())
}

/// The Java heap.
#[test]
fn java() -> Result {
    require!(Need::Program("java"), Need::Program("javac"));
    let traced = Traced::of(Target::start("FaultsJava")?, &[])?;
    for line in traced.classes() {
        eprintln!("{line}");
    }
    near("heap", traced.of_class("managed-heap"), traced.said("heap")?)?;
    near("sum over all sites", traced.resident(), u64::try_from(traced.grown)?)?;
    ensure!(traced.finished.errors.iter().any(|line| line.contains("jcmd")), "{:#?}", traced.finished.errors);
    Ok(())
}

/// CPython's objects.
#[test]
fn python() -> Result {
    require!(Need::Program("python3"));
    let mut run = Command::new("python3");
    run.arg(tracer_tests::build::sources().join("faults_python.py"));
    let traced = Traced::of(Target::start_command(run)?, &[])?;
    for line in traced.classes() {
        eprintln!("{line}");
    }
    near("sum over all sites", traced.resident(), traced.said("rss")?)
}
