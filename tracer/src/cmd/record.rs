//! `offheap record`, and `offheap PID`.

use std::{
    ffi::OsString,
    io::{IsTerminal, Write},
    num::NonZeroU32,
    os::fd::OwnedFd,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use super::ExitStatus;
use crate::{
    attach::{
        feature,
        launch::{Invoker, Launch, Launched, Stop},
        target::{self, TargetProcess},
    },
    capture::Owner,
    cli::{
        default_capture_name,
        plan::{BpfLogLevel, RecordPlan, TargetPlan, Verbosity},
    },
    record::{Outcome, Progress, RecordOptions, Session},
};

/// What came of it.
#[derive(Debug)]
pub struct Recorded {
    /// The recording; `None` if the command ended before there was anything to record.
    pub outcome: Option<Outcome>,
    /// Exit status of the command, if one was started.
    pub command_status: Option<i32>,
}

/// Records, and writes to `err` what the user must know.
///
/// # Errors
/// What stood in the way; a capture that was begun is kept.
pub fn run(plan: &RecordPlan, verbosity: Verbosity, err: &mut dyn Write) -> Result<Recorded> {
    feature::require_tracing()?;
    match &plan.target {
        TargetPlan::Pid(tgid) => {
            let process = target::examine(tgid.get())?;
            let owner = Invoker::from_environment()?.as_ref().map(owner_of);
            let mut session = Session::prepare(&process, options(plan, &process, owner))?;
            session.synchronize()?;
            session.require_probes()?;
            let outcome = record(session, process, plan.duration, verbosity, err)?;
            Ok(Recorded { outcome: Some(outcome), command_status: None })
        }
        TargetPlan::Command(command) => run_command(plan, command, verbosity, err),
    }
}

/// Starts the command, attaches while it is stopped, records until it ends or the time is up, and passes
/// its exit status on.
fn run_command(
    plan: &RecordPlan,
    command: &[OsString],
    verbosity: Verbosity,
    err: &mut dyn Write,
) -> Result<Recorded> {
    let invoker = Invoker::from_environment()?;
    let owner = invoker.as_ref().map(owner_of);
    let mut launched = Launch::start(command, invoker)?;
    let prepared = attach_while_stopped(plan, owner, &mut launched)?;
    let Some((session, process)) = prepared else {
        let status = launched.wait().context("wait for the command")?;
        writeln!(err, "offheap: the command ended before it allocated anything")?;
        return Ok(Recorded { outcome: None, command_status: Some(status.exit_code()) });
    };
    let outcome = record(session, process, plan.duration, verbosity, err)?;
    let status = launched.wait().context("wait for the command")?;
    Ok(Recorded { outcome: Some(outcome), command_status: Some(status.exit_code()) })
}

/// A capture that is made through `sudo` belongs to whoever called it, so that `report` needs no `sudo`.
fn owner_of(invoker: &Invoker) -> Owner {
    Owner { uid: invoker.uid, gid: invoker.gid }
}

fn attach_while_stopped(
    plan: &RecordPlan,
    owner: Option<Owner>,
    launched: &mut Launched,
) -> Result<Option<(Session, TargetProcess)>> {
    let mut prepared: Option<(Session, TargetProcess)> = None;
    loop {
        match launched.next_stop()? {
            Stop::Exec => {
                // A script's interpreter may execute another program: the last one counts.
                let process = target::examine(launched.pid())?;
                let session = match prepared.take() {
                    Some((mut session, _)) => {
                        session.next_program(&process);
                        session
                    }
                    None => Session::prepare(&process, options(plan, &process, owner))?,
                };
                let (session, _) = prepared.insert((session, process));
                session.synchronize()?;
            }
            Stop::NewCode => {
                if let Some((session, _)) = &mut prepared {
                    session.synchronize()?;
                }
            }
            Stop::Started => {
                if let Some((session, _)) = &mut prepared {
                    session.synchronize()?;
                    session.require_probes()?;
                }
                return Ok(prepared);
            }
            Stop::Exited(_) => return Ok(prepared),
        }
    }
}

pub(super) fn options(plan: &RecordPlan, process: &TargetProcess, owner: Option<Owner>) -> RecordOptions {
    RecordOptions {
        duration: plan.duration,
        interval: plan.interval,
        output: plan.output.clone().unwrap_or_else(|| default_name(process)),
        force: plan.force,
        min_size_bytes: plan.min_size_bytes,
        max_size_bytes: plan.max_size_bytes,
        limits: plan.limits,
        selection: plan.selection.clone(),
        bpf_log: plan.bpf_log.map(log_level),
        owner,
    }
}

fn default_name(process: &TargetProcess) -> PathBuf {
    default_capture_name(&process.target.comm, process.target.tgid, jiff::Timestamp::now())
}

fn log_level(level: BpfLogLevel) -> log::Level {
    match level {
        BpfLogLevel::Error => log::Level::Error,
        BpfLogLevel::Warn => log::Level::Warn,
        BpfLogLevel::Info => log::Level::Info,
        BpfLogLevel::Debug => log::Level::Debug,
        BpfLogLevel::Trace => log::Level::Trace,
    }
}

fn record(
    session: Session,
    process: TargetProcess,
    duration: Option<Duration>,
    verbosity: Verbosity,
    err: &mut dyn Write,
) -> Result<Outcome> {
    let TargetProcess { target, exit, .. } = process;
    let bar = progress_bar(verbosity);
    let attached = format!(
        "offheap: attached to {} ({}) with {} probes; {}",
        crate::report::escape(&target.comm),
        target.tgid,
        session.probe_count(),
        match duration {
            Some(duration) =>
                format!("recording for {}, Ctrl-C ends it", humantime::format_duration(duration)),
            None => "recording until it exits, or Ctrl-C".to_owned(),
        }
    );
    let ready = || {
        if verbosity > Verbosity::Quiet {
            // Nobody to tell if the standard error is closed; the recording goes on.
            let _ = writeln!(err, "{attached}").and_then(|()| err.flush());
        }
    };
    let outcome = block_on(session, exit, std::future::pending(), ready, |progress| {
        if let Some(bar) = &bar {
            bar.set_message(describe(progress, duration));
            bar.tick();
        }
    })?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(outcome)
}

/// Runs the recording's loop on this thread.
pub(super) fn block_on(
    session: Session,
    exit: OwnedFd,
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(),
    show: impl FnMut(&Progress),
) -> Result<Outcome> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the event loop")?;
    Ok(runtime.block_on(session.run(exit, stop, ready, show))?)
}

fn progress_bar(verbosity: Verbosity) -> Option<ProgressBar> {
    if verbosity == Verbosity::Quiet || !std::io::stderr().is_terminal() {
        return None;
    }
    let style = ProgressStyle::with_template("{spinner} {wide_msg}").ok()?;
    Some(ProgressBar::new_spinner().with_style(style))
}

fn describe(progress: &Progress, duration: Option<Duration>) -> String {
    let size = |bytes| humansize::format_size(bytes, humansize::BINARY);
    let seconds = progress.elapsed.as_secs();
    let time = match duration {
        Some(duration) => format!("{seconds} of {} s", duration.as_secs()),
        None => format!("{seconds} s"),
    };
    let rss = progress.rss_bytes.map_or(String::new(), |bytes| format!(", RSS {}", size(bytes)));
    let lost = if progress.lost > 0 { format!(", {} LOST", progress.lost) } else { String::new() };
    format!(
        "{time}: {} in {} blocks from {} stacks outstanding{rss}{lost}",
        size(progress.outstanding_bytes),
        progress.outstanding_count,
        progress.sites,
    )
}

/// Tells what was written, and what to do next.
///
/// # Errors
/// Writing to `err`.
pub fn conclude(recorded: &Recorded, verbosity: Verbosity, err: &mut dyn Write) -> Result<ExitStatus> {
    let Some(outcome) = &recorded.outcome else { return Ok(ExitStatus::Done) };
    if verbosity > Verbosity::Quiet {
        let file = outcome.output.display().to_string();
        let file = crate::report::escape(&file);
        writeln!(
            err,
            "offheap: wrote {file} ({}, {})",
            outcome.reason.name(),
            describe(&outcome.progress, None)
        )?;
        for hint in &outcome.hints {
            writeln!(err, "offheap: note: {}", crate::report::escape(hint))?;
        }
    }
    Ok(if outcome.progress.lost > 0 { ExitStatus::Incomplete } else { ExitStatus::Done })
}

/// A process id, for the commands that take one and are no recording.
pub(super) fn examine(tgid: NonZeroU32) -> Result<TargetProcess> {
    feature::require_tracing()?;
    Ok(target::examine(tgid.get())?)
}
