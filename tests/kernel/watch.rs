//! `offheap watch`: what memory does by a known schedule is what is said of it.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;
use tracer_tests::target::{Target, command};
use tracer_tests::tracer::{COMPLETE, FAILED, offheap, program};
use tracer_tests::watch::{MemoryGroup, Watch};
use tracer_tests::{Result, build, require};

const MIB: f64 = 1_048_576.0;
const NOBODY: u32 = 65_534;

/// What `grower` does, what must be said of it, and its slope in bytes per second.
const KINDS: [(&str, &[&str], Option<f64>); 7] = [
    ("grow", &["growing"], Some(12.5 * MIB)),
    ("warm", &["warm-up"], None),
    ("cache", &["warm-up", "plateau"], None),
    ("saw", &["sawtooth-level"], Some(0.0)),
    ("saw-leak", &["sawtooth-rising"], Some(0.625 * MIB)),
    ("shrink", &["shrinking"], Some(-2500.0 * 1024.0)),
    ("level", &["level"], Some(0.0)),
];

fn grower(kind: &str) -> Result<Target> {
    let mut grower = command("grower")?;
    grower.arg(kind);
    Target::start_command(grower)
}

fn slope(program: &Value) -> Option<f64> {
    Some(program["verdict"]["slope_bytes_per_hour"].as_f64()? / 3600.0)
}

/// All of them side by side: each has its kind, and its slope within 5 %.
#[test]
fn kinds_and_slopes() -> Result {
    require!();
    let mut targets = KINDS.iter().map(|(kind, ..)| grower(kind)).collect::<Result<Vec<_>>>()?;
    let pids: Vec<String> = targets.iter().map(|target| target.pid().to_string()).collect();
    for target in &mut targets {
        target.send("go")?;
    }
    // Thirteen cycles of a saw, and half of the floor of the next one: so it does not matter who of the two is some hundredths late.
    // With ten, the growth of the saw that leaks was just about certain: one run in some said that it is not.
    let fixed = ["--interval", "100ms", "--duration", "31700ms"].map(str::to_owned);
    let watched = Watch::start(fixed.iter().chain(&pids))?.finish()?;
    watched.expect_status(COMPLETE)?;
    for (target, (kind, wanted, slope_wanted)) in targets.into_iter().zip(KINDS) {
        let program = watched.program(target.pid())?;
        let said = program["verdict"]["kind"].as_str().unwrap_or_default();
        ensure!(wanted.contains(&said), "{kind} is said to be {said}: {program:#}");
        if let Some(wanted) = slope_wanted {
            let found = slope(program).context("no slope")?;
            // Of what does not grow, the interval has 0 in it: on a busy machine there are few samples of a saw.
            let end = |key: &str| Some(program["verdict"][key].as_f64()? / 3600.0);
            let interval = end("slope_low_bytes_per_hour").zip(end("slope_high_bytes_per_hour"));
            let (low, high) = interval.context("no interval")?;
            let is_right = if wanted == 0.0 {
                low <= 0.0 && high >= 0.0
            } else {
                (found - wanted).abs() <= 0.05 * wanted.abs()
            };
            ensure!(is_right, "{kind}: {found} ({low} to {high}) instead of {wanted}: {program:#}");
        }
        let is_growth = ["growing", "sawtooth-rising"].contains(&said);
        let limit = &program["limit"];
        ensure!(limit["full_in_s"].is_number() == is_growth, "{kind}: {limit:#}");
        ensure!(limit["limit_bytes"].as_u64() > Some(0) && !limit["used_bytes"].is_null(), "{limit:#}");
        if let (true, Some(rate)) = (is_growth, slope(program)) {
            let left =
                limit["limit_bytes"].as_f64().zip(limit["used_bytes"].as_f64()).map(|(all, used)| all - used);
            let seconds = left.context("no limit")? / rate;
            let said = limit["full_in_s"].as_f64().context("no time")?;
            ensure!((said / seconds - 1.0).abs() < 0.001, "{said} s instead of {seconds}");
        }
        ensure!(program["last"]["pss_bytes"].is_null() || program["last"]["pss_bytes"].as_u64() > Some(0));
        target.finish_well()?;
    }
    Ok(())
}

/// Too short a look is no verdict, and says how much longer to look.
#[test]
fn not_enough_yet() -> Result {
    require!();
    let mut target = grower("grow")?;
    target.send("go")?;
    let watched =
        Watch::start(["--interval", "50ms", "--duration", "2s", &target.pid().to_string()])?.finish()?;
    watched.expect_status(COMPLETE)?;
    let verdict = &watched.program(target.pid())?["verdict"];
    ensure!(verdict["kind"] == "undetermined" && verdict["reason"] == "too-short", "{verdict:#}");
    let more = verdict["watch_s_more"].as_f64().context("no time")?;
    ensure!((7.5..=8.5).contains(&more), "{more}");
    target.finish_well()
}

#[test]
fn the_end_of_the_process_is_the_end_of_the_watch() -> Result {
    require!();
    let mut target = Target::start("puppet")?;
    let directory = tempfile::tempdir()?;
    let capture = directory.path().join("watch.offheap");
    let out = capture.to_str().context("not text")?;
    // Longer than anybody waits: the exit itself is noticed.
    let arguments = ["--interval", "600s", "--out", out];
    let watch = Watch::start(arguments.into_iter().chain([target.pid().to_string().as_str()]))?;
    target.send("exit 5")?;
    ensure!(target.wait()?.code() == Some(5), "the target did not end as it was told");
    let watched = watch.finish()?;
    watched.expect_status(COMPLETE)?;
    ensure!(watched.json["window"]["end"] == "target-exited", "{:#}", watched.json);
    let program = watched.program(target.pid())?;
    ensure!(program["state"] == "exited" && program["end_s"].is_number(), "{program:#}");
    ensure!(program["verdict"]["kind"] == "undetermined", "{program:#}");
    // The capture is one that `report` reads.
    let report = offheap(["report", "--format", "json", out])?;
    ensure!(report.status.code() == Some(COMPLETE), "{}", String::from_utf8_lossy(&report.stderr));
    let report: Value = serde_json::from_slice(&report.stdout)?;
    ensure!(report["rss"]["start_bytes"].as_u64() > Some(0), "{report:#}");
    ensure!(report["sites"].as_array().is_some_and(Vec::is_empty), "{report:#}");
    Ok(())
}

#[test]
fn an_exec_begins_another_program() -> Result {
    require!();
    let mut target = Target::start("family")?;
    let pid = target.pid();
    let mut watch = Watch::start(["--interval", "50ms", &pid.to_string()])?;
    target.order_anew("exec")?;
    watch.wait_until_said("executed")?;
    // A fork is another process, which nobody asked for.
    let child = target.order_child()?;
    let watched = watch.stop()?;
    watched.expect_status(COMPLETE)?;
    let programs = watched.programs(pid);
    let states: Vec<&Value> = programs.iter().map(|program| &program["state"]).collect();
    ensure!(states == ["executed", "running"], "{:#}", watched.json);
    ensure!(programs[1]["executed_from"] == programs[0]["id"], "{:#}", watched.json);
    ensure!(watched.programs(child).is_empty(), "{:#}", watched.json);
    target.finish_well()
}

/// A process of a group ends, and the same command begins again under another process id. The group has a limit.
#[test]
fn a_restart_in_a_group_with_a_limit() -> Result {
    require!();
    let name = format!("offheap-test-{}", std::process::id());
    let Some(group) = MemoryGroup::create(&name, 1 << 30)? else {
        eprintln!("skipped: no memory controller in which a group can be made");
        return Ok(());
    };
    let mut grower = command("grower")?;
    grower.arg("grow");
    let mut first = Target::start_command(group.command(&grower))?;
    let mut watch = Watch::start(["--interval", "50ms", "--cgroup", &group.path])?;
    first.send("go")?;
    let old = first.pid();
    first.finish_well()?;
    watch.wait_until_said("exited")?;
    let mut second = Target::start_command(group.command(&grower))?;
    let new = second.pid();
    watch.wait_until_said("is a restart")?;
    let watched = watch.stop()?;
    watched.expect_status(COMPLETE)?;
    ensure!(watched.program(old)?["state"] == "exited", "{:#}", watched.json);
    // It may have been seen while it was still a shell.
    let program = watched.programs(new).pop().context("it was not seen")?;
    ensure!(program["restart_of_pid"] == old && program["state"] == "running", "{program:#}");
    let limit = &program["limit"];
    ensure!(limit["limit_bytes"] == 1u64 << 30, "{limit:#}");
    ensure!(limit["source"].as_str().is_some_and(|source| source.ends_with(&group.path)), "{limit:#}");
    let used = limit["used_bytes"].as_u64().context("no usage")?;
    ensure!((8 << 20..1 << 30).contains(&used), "{limit:#}");
    ensure!(limit["marks"][0]["bytes"] == (1u64 << 30) * 70 / 100, "{limit:#}");
    second.send("go")?;
    second.finish_well()
}

/// Nothing but one's own `/proc` is needed, and what may not be read of others is null.
#[test]
fn an_ordinary_user() -> Result {
    require!();
    let directory = tempfile::tempdir()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
    let copy = directory.path().join("offheap");
    std::fs::copy(program()?, &copy)?;
    let grower_copy = directory.path().join("grower");
    std::fs::copy(build::target("grower")?, &grower_copy)?;
    let mut own = Command::new(&grower_copy);
    own.arg("level").uid(NOBODY).gid(NOBODY);
    let mut own = Target::start_command(own)?;
    let mut other = grower("level")?;
    let mut command = Command::new(&copy);
    command.uid(NOBODY).gid(NOBODY);
    let pids = [own.pid().to_string(), other.pid().to_string()];
    let watched = Watch::start_command(command, ["--interval", "50ms", &pids[0], &pids[1]])?.stop()?;
    watched.expect_status(COMPLETE)?;
    let (of_own, of_other) = (watched.program(own.pid())?, watched.program(other.pid())?);
    for program in [of_own, of_other] {
        ensure!(program["last"]["rss_bytes"].as_u64() > Some(8 << 20), "{program:#}");
        ensure!(program["last"]["anonymous_bytes"].as_u64() > Some(8 << 20), "{program:#}");
    }
    ensure!(of_own["first"]["pss_bytes"].as_u64() > Some(8 << 20), "{of_own:#}");
    ensure!(of_other["first"]["pss_bytes"].is_null() && of_other["exe"].is_null(), "{of_other:#}");
    own.send("go")?;
    other.send("go")?;
    own.finish_well()?;
    other.finish_well()
}

#[test]
fn who_cannot_be_watched_is_told_why() -> Result {
    require!();
    let mut zombie = Command::new("true").spawn()?;
    let pid = i32::try_from(zombie.id())?;
    // SAFETY: plain system call on a child that is not reaped; NULL is allowed for what is not asked for.
    let waited = unsafe {
        libc::waitid(libc::P_PID, pid.cast_unsigned(), &mut std::mem::zeroed(), libc::WEXITED | libc::WNOWAIT)
    };
    ensure!(waited == 0, "cannot wait for the child");
    for (arguments, words) in [
        (vec!["4194303".to_owned()], "no process 4194303"),
        (vec!["2".to_owned()], "kernel thread"),
        (vec![pid.to_string()], "zombie"),
        (vec!["--cgroup".to_owned(), "/no/such/group".to_owned()], "no process in the control group"),
    ] {
        let output = offheap(["watch".to_owned()].iter().chain(&arguments))?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(FAILED) && text.contains(words), "{arguments:?}: {text}");
    }
    zombie.wait()?;
    Ok(())
}
