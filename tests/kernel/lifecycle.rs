//! How recordings begin and end, and that nothing is left in the target.

use std::io::Write;

use anyhow::ensure;
use tracer_tests::target::Target;
use tracer_tests::tracer::{COMPLETE, Recording};
use tracer_tests::truth::Truth;
use tracer_tests::{Result, build, require};

#[test]
fn command_from_its_first_instruction() -> Result {
    require!();
    let program = build::target("startup")?;
    let (recording, mut input, mut output) = Recording::launch(&[program.as_os_str(), "7".as_ref()])?;
    input.write_all(b"\n")?;
    let truth = Truth::parse(&output.wait_for("`truth`", |line| line.starts_with("truth "))?)?;
    drop(input);
    let finished = recording.finish()?;
    finished.expect_status(7)?;
    let report = finished.report()?;
    truth.compare(&report)?;
    let constructor = report.sites.iter().find(|site| site.functions().contains(&"site_constructor"));
    ensure!(
        constructor.is_some_and(|site| site.stack_end.as_deref() == Some("thread-start")),
        "{constructor:?}"
    );
    Ok(())
}

#[test]
fn target_exits_while_it_is_recorded() -> Result {
    require!();
    let mut target = Target::start("puppet")?;
    let recording = Recording::attach(&target, &[])?;
    target.order("leak 12 34")?;
    target.send("exit 5")?;
    ensure!(target.wait()?.code() == Some(5), "the target did not end as it was told");
    let finished = recording.finish()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    ensure!(report.outstanding() == (12 * 34, 12), "{:?}", report.sites);
    ensure!(
        report.sites.iter().any(|site| site.functions().first() == Some(&"site_leak")),
        "{:?}",
        report.sites
    );
    Ok(())
}

#[test]
fn nothing_is_left_after_a_recording() -> Result {
    require!();
    let mut target = Target::start("puppet")?;
    let recording = Recording::attach(&target, &[])?;
    let (memory, file) = target.text("libc")?;
    ensure!(memory != file, "no breakpoint in the C library while it is traced: this test proves nothing");
    target.order("leak 1 1")?;
    recording.stop()?.expect_status(COMPLETE)?;
    ensure_untouched(&target)?;
    target.order("leak 10 10")?;
    target.finish_well()
}

#[test]
fn killed_on_the_spot() -> Result {
    require!();
    let mut target = Target::start("puppet")?;
    let recording = Recording::attach(&target, &[])?;
    target.order("leak 100 100")?;
    recording.kill()?;
    target.order("balance 1000 100")?;
    ensure_untouched(&target)?;

    // A new trace knows nothing of the old one.
    let recording = Recording::attach(&target, &[])?;
    target.order("leak 7 70")?;
    let finished = recording.stop()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    ensure!(report.outstanding() == (490, 7), "{:?}", report.sites);
    target.finish_well()
}

/// Two recordings of one target at the same time see the same.
#[test]
fn two_at_the_same_time() -> Result {
    require!();
    let mut target = Target::start("puppet")?;
    let first = Recording::attach(&target, &[])?;
    let second = Recording::attach(&target, &[])?;
    target.order("leak 9 90")?;
    for recording in [first, second] {
        let finished = recording.stop()?;
        finished.expect_status(COMPLETE)?;
        ensure!(finished.report()?.outstanding() == (810, 9), "{:?}", finished.report()?.sites);
    }
    target.finish_well()
}

/// The text of the C library in memory equals its file.
fn ensure_untouched(target: &Target) -> Result {
    let (memory, file) = target.text("libc")?;
    let differing = memory.iter().zip(&file).position(|(memory, file)| memory != file);
    ensure!(
        differing.is_none() && memory.len() == file.len(),
        "the text differs from the file at {differing:#x?}"
    );
    Ok(())
}
