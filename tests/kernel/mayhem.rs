//! What is left, and what is still right, when offheap or its target is killed, stopped, attached and detached under load.
//! `cargo xtask soak --kills` is the long form.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use tracer_tests::bpf::Objects;
use tracer_tests::lines::Lines;
use tracer_tests::mayhem::{attach_and_detach, ensure_untouched, kill_offheap, kill_target, light_load};
use tracer_tests::require::Need;
use tracer_tests::soak::{ensure_right, stop, wait_for_pairs};
use tracer_tests::target::Target;
use tracer_tests::tracer::{COMPLETE, INCOMPLETE, Recording};
use tracer_tests::{Result, require};

fn say(line: &str) {
    eprintln!("{line}");
}

#[test]
fn offheap_is_killed() -> Result {
    require!();
    kill_offheap(light_load(1), 8, say)
}

#[test]
fn the_target_is_killed_and_both_are() -> Result {
    require!();
    kill_target(light_load(2), 6, say)
}

#[test]
fn attached_and_detached_again_and_again() -> Result {
    require!();
    attach_and_detach(light_load(3), 8, say).map(drop)
}

/// offheap stands still for a while, and the rings are large enough: nothing is lost, every number is right.
#[test]
fn offheap_is_stopped_under_load() -> Result {
    require!();
    let mut target = light_load(4).target()?;
    let recording = Recording::attach(&target, &[])?;
    target.order("start")?;
    for _ in 0..3 {
        wait_for_pairs(&mut target, 5000)?;
        recording.pause()?;
        wait_for_pairs(&mut target, 20_000)?;
        recording.resume()?;
    }
    let truth = stop(&mut target)?;
    let finished = recording.stop()?;
    finished.expect_status(COMPLETE)?;
    truth.compare(&finished.report()?)?;
    ensure_untouched(&target)?;
    target.finish_well()
}

/// The same with a ring that is too small: what is lost is counted, and what is said of bytes and blocks is right all the same.
#[test]
fn offheap_is_stopped_and_loses() -> Result {
    require!();
    let mut target = light_load(5).target()?;
    let recording = Recording::attach(&target, &["--stack-ring", "4KiB", "--no-follow"])?;
    recording.pause()?;
    target.order("start")?;
    wait_for_pairs(&mut target, 20_000)?;
    recording.resume()?;
    let truth = stop(&mut target)?;
    let finished = recording.stop()?;
    finished.expect_status(INCOMPLETE)?;
    let report = finished.report()?;
    ensure!(report.loss("stack-ring-full").0 > 0, "{:?}", report.losses());
    // Sites without a stack have the rest; what libraries hold is beside it.
    let (bytes, blocks) = truth.outstanding();
    let (found_bytes, found_blocks) = report.outstanding();
    ensure!(
        found_bytes >= bytes && found_blocks >= blocks && found_bytes - bytes <= 256 << 10,
        "{found_bytes} bytes in {found_blocks} blocks instead of {bytes} in {blocks}: {:?}",
        report.losses()
    );
    ensure_untouched(&target)?;
    target.finish_well()
}

/// A target that stands still can be attached to and left; it goes on as if nothing had been.
#[test]
fn the_target_is_stopped() -> Result {
    require!();
    let mut target = light_load(6).target()?;
    target.signal(libc::SIGSTOP)?;
    let recording = Recording::attach(&target, &["--interval", "100ms"])?;
    target.signal(libc::SIGCONT)?;
    target.order("start")?;
    wait_for_pairs(&mut target, 20_000)?;
    let truth = stop(&mut target)?;
    target.signal(libc::SIGSTOP)?;
    let finished = recording.stop()?;
    finished.expect_status(COMPLETE)?;
    truth.compare(&finished.report()?)?;
    ensure_untouched(&target)?;
    target.signal(libc::SIGCONT)?;

    // Stopped in the middle of its work, wherever that is, and left there.
    target.order("start")?;
    wait_for_pairs(&mut target, 1000)?;
    let recording = Recording::attach(&target, &[])?;
    wait_for_pairs(&mut target, 5000)?;
    target.signal(libc::SIGSTOP)?;
    recording.stop()?.expect_status(COMPLETE)?;
    ensure_untouched(&target)?;
    target.signal(libc::SIGCONT)?;
    wait_for_pairs(&mut target, 20_000)?;
    stop(&mut target)?;
    ensure_right(&mut target, 10_000)?;
    target.finish_well()
}

/// Two recordings of one target under load; one is killed in the middle, the other is right to the end.
#[test]
fn two_at_once_and_one_is_killed() -> Result {
    require!();
    let mut target = light_load(7).target()?;
    let first = Recording::attach(&target, &[])?;
    let second = Recording::attach(&target, &[])?;
    let objects = Objects::of(second.pid())?;
    target.order("start")?;
    wait_for_pairs(&mut target, 10_000)?;
    second.kill()?;
    objects.ensure_gone()?;
    wait_for_pairs(&mut target, 20_000)?;
    let third = Recording::attach(&target, &[])?;
    wait_for_pairs(&mut target, 5000)?;
    third.stop()?.expect_status(COMPLETE)?;
    let truth = stop(&mut target)?;
    let finished = first.stop()?;
    finished.expect_status(COMPLETE)?;
    truth.compare(&finished.report()?)?;
    ensure_untouched(&target)?;
    target.finish_well()
}

/// bpftrace on the same functions, attached before and detached after offheap, or the other way round: both count every call.
#[test]
fn bpftrace_on_the_same_functions() -> Result {
    require!(Need::Program("bpftrace"));
    for bpftrace_is_first in [true, false] {
        let mut target = Target::start("puppet")?;
        let pid = target.pid();
        let libc = library(pid, "libc")?;
        let script = format!(
            "uprobe:{libc}:malloc /pid == {pid}/ {{ @calls = count(); }}\n\
             uretprobe:{libc}:malloc /pid == {pid}/ {{ @returns = count(); }}\n\
             uprobe:{libc}:free /pid == {pid}/ {{ @frees = count(); }}\n\
             interval:s:1 {{ printf(\"attached\\n\"); }}\n"
        );
        let mut recording = None;
        if !bpftrace_is_first {
            recording = Some(Recording::attach(&target, &[])?);
        }
        let mut other = Bpftrace::start(pid, &script)?;
        let recording = match recording {
            Some(recording) => recording,
            None => Recording::attach(&target, &[])?,
        };
        target.order("leak 500 64")?;
        target.order("balance 300 32")?;
        let counts = if bpftrace_is_first {
            let finished = recording.stop()?;
            check_counts(&finished)?;
            other.finish()?
        } else {
            let counts = other.finish()?;
            // It has taken its probes off the same places; ours must still be there.
            target.order("leak 0 0")?;
            check_counts(&recording.stop()?)?;
            counts
        };
        for (name, wanted) in [("calls", 800), ("returns", 800), ("frees", 300)] {
            let line = format!("@{name}: {wanted}");
            ensure!(counts.contains(&line), "no `{line}` in {counts:#?}");
        }
        ensure_untouched(&target)?;
        target.order("leak 10 10")?;
        target.finish_well()?;
    }
    Ok(())
}

fn check_counts(finished: &tracer_tests::tracer::Finished) -> Result {
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    ensure!(report.outstanding() == (32_000, 500), "{:?}", report.sites);
    let allocated: u64 = report.sites_in("malloc").map(|site| site.allocated_count).sum();
    ensure!(allocated == 800, "{allocated} allocations instead of 800: {:?}", report.sites);
    let balance = report.sites_in("malloc").find(|site| site.functions().contains(&"site_balance"));
    ensure!(
        balance.is_some_and(|site| (site.allocated_count, site.freed_count) == (300, 300)),
        "{balance:?}"
    );
    Ok(())
}

/// Path of a library that a process has mapped.
fn library(pid: u32, prefix: &str) -> Result<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let is_it =
        |path: &&str| path.rsplit('/').next().is_some_and(|name| name.starts_with(prefix) && name != *path);
    Ok(maps.split_whitespace().find(is_it).context("the library is not mapped")?.to_owned())
}

/// bpftrace while it runs. It is killed when the value is dropped.
struct Bpftrace {
    child: std::process::Child,
    output: Option<Lines>,
}

impl Bpftrace {
    /// Starts a script on a process; it says `attached` when it is.
    fn start(pid: u32, script: &str) -> Result<Self> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(script.as_bytes())?;
        let mut command = Command::new("bpftrace");
        // The predicates are needed all the same: `-p` of some versions lets in other processes.
        command
            .args(["-q", "-p", &pid.to_string()])
            .arg(file.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().context("cannot start bpftrace")?;
        let mut output = Lines::new("bpftrace", child.stdout.take().context("no output pipe")?);
        output.wait_for("`attached`", |line| line == "attached")?;
        Ok(Self { child, output: Some(output) })
    }

    /// Ends it as Ctrl-C does, and gives what it has printed.
    fn finish(&mut self) -> Result<Vec<String>> {
        let pid = i32::try_from(self.child.id()).context("not a process id")?;
        // SAFETY: the child has not been waited for, so the id is still its own.
        ensure!(unsafe { libc::kill(pid, libc::SIGINT) } == 0, "cannot signal bpftrace");
        let lines = self.output.take().context("bpftrace has ended")?.rest();
        self.child.wait().context("cannot wait for bpftrace")?;
        Ok(lines)
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
