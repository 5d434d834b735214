//! The target `soak` under load: for long runs, and as the load under which offheap is killed, stopped, attached and detached.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::Result;
use crate::build;
use crate::report::{MALLOC, Report};
use crate::target::Target;
use crate::tracer::{COMPLETE, Recording};
use crate::truth::Truth;

/// Bytes that libraries of the target may hold at the end beside its call sites: stacks of threads that are kept, names of
/// libraries.
const STRANGERS_BYTES: u64 = 256 << 10;
/// What offheap's resident memory may grow by after the first tenth of a run, beside what new call sites take.
const FLAT_BYTES: u64 = 8 << 20;
/// What one call site takes in offheap: its frames and addresses, counters, series and its piece of the mapped arrays.
const SITE_BYTES: u64 = 2 << 10;

/// How the target works.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Pairs of allocation and release per second, of all threads; 0: as many as it can.
    pub rate: u64,
    /// Mean time between two disturbances of a thread; zero: none.
    pub chaos: Duration,
    /// What its random numbers come from.
    pub seed: u64,
}

/// What the target says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Pairs since the begin.
    pub pairs: u64,
    /// Bytes that are live.
    pub live_bytes: u64,
    /// Blocks that are live.
    pub live_count: u64,
    /// Children it has made.
    pub children: u64,
    /// Libraries it has loaded and unloaded.
    pub libraries: u64,
    /// Threads it has made and joined.
    pub threads: u64,
    /// Exceptions it has thrown.
    pub exceptions: u64,
}

impl Load {
    /// Starts a target; it does not work yet.
    pub fn target(&self) -> Result<Target> {
        let mut command = Command::new(build::target("soak")?);
        command.arg(self.rate.to_string()).arg(self.chaos.as_millis().to_string());
        command.arg(self.seed.to_string()).arg(build::target("soak_plugin")?);
        Target::start_command(command)
    }
}

/// What a target under load says of itself.
pub fn count(target: &mut Target) -> Result<Counted> {
    let answers = target.ask("count")?;
    let get = |name: &str| answers.get(name).copied().with_context(|| format!("no {name} in {answers:?}"));
    Ok(Counted {
        pairs: get("pairs")?,
        live_bytes: get("live_bytes")?,
        live_count: get("live_count")?,
        children: get("children")?,
        libraries: get("libraries")?,
        threads: get("threads")?,
        exceptions: get("exceptions")?,
    })
}

/// Waits until the target has done more pairs than it had.
pub fn wait_for_pairs(target: &mut Target, pairs: u64) -> Result<Counted> {
    let deadline = Instant::now() + crate::lines::PATIENCE;
    let wanted = count(target)?.pairs + pairs;
    loop {
        let now = count(target)?;
        if now.pairs >= wanted {
            return Ok(now);
        }
        ensure!(Instant::now() < deadline, "the target does not go on: {now:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Ends the load and gives what must be reported.
pub fn stop(target: &mut Target) -> Result<Truth> {
    target.order("stop")?;
    target.send("truth")?;
    target.truth()
}

/// One epoch of load under a fresh recording: every number must be right.
pub fn ensure_right(target: &mut Target, pairs: u64) -> Result {
    target.order("clear")?;
    let recording = Recording::attach(target, &[])?;
    target.order("start")?;
    wait_for_pairs(target, pairs)?;
    let truth = stop(target)?;
    let finished = recording.stop()?;
    finished.expect_status(COMPLETE)?;
    truth.compare(&finished.report()?)
}

/// A run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The load.
    pub load: Load,
    /// How long.
    pub duration: Duration,
    /// Time between two lines.
    pub pause: Duration,
}

/// What a run has shown. Numbers that are wrong are an error.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// What the target has done.
    pub counted: Counted,
    /// Pairs per second.
    pub rate: f64,
    /// Resident memory of offheap after the first tenth, in bytes.
    pub early_rss_bytes: u64,
    /// The same at the end.
    pub late_rss_bytes: u64,
    /// Call sites that came after the first tenth.
    pub new_sites: u64,
    /// Bytes of the capture.
    pub capture_bytes: u64,
    /// Bytes that libraries of the target still held.
    pub strangers_bytes: u64,
}

/// Resident memory of a process, in bytes.
fn rss_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("offheap has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no resident memory")?;
    let kib = line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
    Ok(kib.context("not a number")? << 10)
}

/// Call sites in the capture as it stands.
fn sites(recording: &Recording) -> Result<u64> {
    recording
        .wait_for_report(&["--top", "1"], |report| Ok(report["completeness"]["stacks"]["total"].as_u64()))
}

/// Runs it, and says a line from time to time.
///
/// # Errors
/// The target fails, a number differs from what the target has counted, something was lost, or offheap's memory grows.
pub fn run(plan: &Plan, mut say: impl FnMut(&str)) -> Result<Summary> {
    let mut target = plan.load.target()?;
    let recording = Recording::attach(&target, &["--max-sites", "262144"])?;
    let begun = Instant::now();
    target.order("start")?;
    let mut early = None;
    let mut next_line = begun + plan.pause;
    while begun.elapsed() < plan.duration {
        let rest = plan.duration.saturating_sub(begun.elapsed());
        std::thread::sleep(rest.min(Duration::from_millis(500)));
        if early.is_none() && begun.elapsed() >= plan.duration / 10 {
            early = Some((rss_bytes(recording.pid())?, sites(&recording)?));
        }
        if Instant::now() >= next_line {
            next_line += plan.pause;
            say(&line(begun.elapsed(), &count(&mut target)?, &recording)?);
        }
    }
    let elapsed = begun.elapsed();
    let (early_rss_bytes, early_sites) = early.context("too short a run")?;
    let truth = stop(&mut target)?;
    let counted = count(&mut target)?;
    let late_rss_bytes = rss_bytes(recording.pid())?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    truth.compare(&report)?;
    let (bytes, blocks) = truth.outstanding();
    ensure!(
        (bytes, blocks) == (counted.live_bytes, counted.live_count),
        "{counted:?}, but {bytes} in {blocks}"
    );
    let summary = Summary {
        counted,
        rate: counted.pairs as f64 / elapsed.as_secs_f64(),
        early_rss_bytes,
        late_rss_bytes,
        new_sites: report.completeness.stacks.total.saturating_sub(early_sites),
        capture_bytes: fs::metadata(finished.capture())?.len(),
        strangers_bytes: strangers_bytes(&report, &truth)?,
    };
    ensure!(summary.strangers_bytes <= STRANGERS_BYTES, "{summary:?}");
    let allowed = early_rss_bytes + FLAT_BYTES + summary.new_sites * SITE_BYTES;
    ensure!(late_rss_bytes <= allowed, "offheap's memory grows: {summary:?}");
    Ok(summary)
}

/// Outstanding bytes of the target's process that are not at its call sites.
fn strangers_bytes(report: &Report, truth: &Truth) -> Result<u64> {
    let pid = report.processes.first().context("no process")?.pid;
    let of_target = report.sites_in(MALLOC).filter(|site| site.pid == Some(pid));
    let all: u64 = of_target.map(|site| site.outstanding_bytes).sum();
    all.checked_sub(truth.outstanding().0).context("less is outstanding than the target counts")
}

fn line(elapsed: Duration, counted: &Counted, recording: &Recording) -> Result<String> {
    let Counted { pairs, live_bytes, live_count, children, libraries, threads, exceptions } = *counted;
    let seconds = elapsed.as_secs_f64();
    let rss_kib = rss_bytes(recording.pid())? >> 10;
    let capture_kib = fs::metadata(recording.capture()?)?.len() >> 10;
    Ok(format!(
        "{seconds:.0} s: {pairs} pairs ({:.0}/s), {live_bytes} bytes live in {live_count} blocks, {children} children, \
         {libraries} libraries, {threads} threads, {exceptions} exceptions; {} sites, offheap RSS {rss_kib} KiB, capture \
         {capture_kib} KiB",
        pairs as f64 / seconds,
        sites(recording)?,
    ))
}

impl std::fmt::Display for Summary {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counted { pairs, live_bytes, live_count, children, libraries, threads, exceptions } =
            self.counted;
        write!(
            out,
            "{pairs} pairs ({:.0}/s), {children} children, {libraries} libraries, {threads} threads, {exceptions} exceptions; at \
             the end {live_bytes} bytes in {live_count} blocks, as the target counts, by every call site; offheap RSS {} KiB, \
             then {} KiB with {} more sites; capture {} KiB; {} bytes of libraries",
            self.rate,
            self.early_rss_bytes >> 10,
            self.late_rss_bytes >> 10,
            self.new_sites,
            self.capture_bytes >> 10,
            self.strangers_bytes,
        )
    }
}
