//! `offheap record`, and `offheap PID`.

use std::{
    ffi::OsString,
    io::{IsTerminal, Write},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use super::ExitStatus;
use crate::{
    attach::{
        feature,
        launch::{Invoker, Launch, Launched, Stop},
        probe_kind::ProbeChoice,
        target::{self, TargetProcess},
    },
    capture::Owner,
    cli::{
        default_capture_name,
        plan::{BpfLogLevel, LensKey, ProbeKindKey, RecordPlan, Scope, TargetPlan, Verbosity},
    },
    model::{Lens, Machine},
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
    ensure!(
        Machine::HOST == Machine::X86_64 || !plan.lenses.contains(&LensKey::Faults),
        "page faults can be recorded on x86-64 only: the kernel has no tracepoint for them on {}",
        Machine::HOST.name()
    );
    if let Some(reservation) = Machine::HOST.reservation() {
        writeln!(err, "offheap: {}: {reservation}", Machine::HOST.name())?;
    }
    let processes = match &plan.target {
        TargetPlan::Processes(tgids) => {
            tgids.iter().map(|tgid| Ok(target::examine(tgid.get())?)).collect::<Result<Vec<_>>>()?
        }
        TargetPlan::Scope(scope) => processes_of(scope, plan.max_processes)?,
        TargetPlan::Command(command) => return run_command(plan, command, verbosity, err),
    };
    let owner = Invoker::from_environment()?.as_ref().map(owner_of);
    let options = options(plan, &processes, owner);
    let names = names_of(&processes);
    let mut session = Session::prepare(processes, options)?;
    session.synchronize()?;
    session.require_probes()?;
    let outcome = record(session, &names, plan.duration, verbosity, err)?;
    Ok(Recorded { outcome: Some(outcome), command_status: None })
}

/// Those of a group that can be traced; one that cannot is left out only if another can.
fn processes_of(scope: &Scope, max_processes: u32) -> Result<Vec<TargetProcess>> {
    let members = scope.members()?;
    ensure!(
        !members.is_empty(),
        "there is no process in the {}: it may have ended; `offheap record` sees what /proc of this pid namespace shows",
        scope.describe()
    );
    let mut refused = None;
    let mut processes = Vec::new();
    for tgid in members.into_iter().take(max_processes as usize) {
        match target::examine(tgid) {
            Ok(process) => processes.push(process),
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        Some(error) if processes.is_empty() => Err(error.into()),
        _ => Ok(processes),
    }
}

/// `node (1234)`, or how many there are.
fn names_of(processes: &[TargetProcess]) -> String {
    match processes {
        [one] => format!("{} ({})", crate::report::escape(&one.target.comm), one.target.tgid),
        several => format!("{} processes", several.len()),
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
    let Some((session, names)) = prepared else {
        let status = launched.wait().context("wait for the command")?;
        writeln!(err, "offheap: the command ended before it allocated anything")?;
        return Ok(Recorded { outcome: None, command_status: Some(status.exit_code()) });
    };
    let outcome = record(session, &names, plan.duration, verbosity, err)?;
    let status = launched.wait().context("wait for the command")?;
    Ok(Recorded { outcome: Some(outcome), command_status: Some(status.exit_code()) })
}

/// A capture that is made through `sudo` belongs to whoever called it, so that `report` needs no `sudo`.
pub(super) fn owner_of(invoker: &Invoker) -> Owner {
    Owner { uid: invoker.uid, gid: invoker.gid }
}

fn attach_while_stopped(
    plan: &RecordPlan,
    owner: Option<Owner>,
    launched: &mut Launched,
) -> Result<Option<(Session, String)>> {
    let mut prepared: Option<(Session, String)> = None;
    loop {
        match launched.next_stop()? {
            Stop::Exec => {
                // A script's interpreter may execute another program: the last one counts.
                let process = target::examine(launched.pid())?;
                let names = names_of(std::slice::from_ref(&process));
                let session = match prepared.take() {
                    Some((mut session, _)) => {
                        session.next_program(&process)?;
                        session
                    }
                    None => {
                        let processes = vec![process];
                        let options = options(plan, &processes, owner);
                        Session::prepare(processes, options)?
                    }
                };
                let (session, _) = prepared.insert((session, names));
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

pub(super) fn options(plan: &RecordPlan, processes: &[TargetProcess], owner: Option<Owner>) -> RecordOptions {
    RecordOptions {
        duration: plan.duration,
        interval: plan.interval,
        output: plan.output.clone().unwrap_or_else(|| default_name(processes)),
        force: plan.force,
        min_size_bytes: plan.min_size_bytes,
        max_size_bytes: plan.max_size_bytes,
        limits: plan.limits,
        selection: plan.selection.clone(),
        bpf_log: plan.bpf_log.map(log_level),
        owner,
        lenses: plan.lenses.iter().map(|lens| lens_of(*lens)).collect(),
        follow: plan.follow,
        max_processes: plan.max_processes,
        probe_choice: probe_choice(plan.probe_kind),
        scope: match &plan.target {
            TargetPlan::Scope(scope) => Some(scope.clone()),
            _ => None,
        },
        sample_bytes: plan.sample_bytes,
        max_overhead: plan.max_overhead,
    }
}

fn lens_of(lens: LensKey) -> Lens {
    match lens {
        LensKey::Malloc => Lens::Malloc,
        LensKey::Mmap => Lens::Mmap,
        LensKey::Faults => Lens::Faults,
    }
}

fn default_name(processes: &[TargetProcess]) -> PathBuf {
    let (comm, tgid) =
        processes.first().map_or(("", 0), |process| (process.target.comm.as_str(), process.target.tgid));
    default_capture_name(comm, tgid, jiff::Timestamp::now())
}

/// What was asked for on the command line.
pub(super) const fn probe_choice(key: ProbeKindKey) -> ProbeChoice {
    match key {
        ProbeKindKey::Auto => ProbeChoice::Auto,
        ProbeKindKey::Multi => ProbeChoice::Multi,
        ProbeKindKey::Perf => ProbeChoice::Perf,
    }
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
    names: &str,
    duration: Option<Duration>,
    verbosity: Verbosity,
    err: &mut dyn Write,
) -> Result<Outcome> {
    let bar = progress_bar(verbosity);
    let attached = format!(
        "offheap: attached to {names} with {} probes; {}",
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
    let outcome = block_on(session, std::future::pending(), ready, |progress| {
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
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(),
    show: impl FnMut(&Progress),
) -> Result<Outcome> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the event loop")?;
    Ok(runtime.block_on(session.run(stop, ready, show))?)
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
    let processes = match progress.processes {
        0 | 1 => String::new(),
        several => format!(" of {several} processes"),
    };
    let rss = progress.rss_bytes.map_or(String::new(), |bytes| format!(", RSS {}", size(bytes)));
    let lost = if progress.lost > 0 { format!(", {} LOST", progress.lost) } else { String::new() };
    format!(
        "{time}: {} in {} blocks from {} stacks{processes} outstanding{rss}{lost}",
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
        write_hints(outcome, err)?;
    }
    Ok(if outcome.progress.lost > 0 { ExitStatus::Incomplete } else { ExitStatus::Done })
}

/// What the recorder had to say.
pub(super) fn write_hints(outcome: &Outcome, err: &mut dyn Write) -> std::io::Result<()> {
    outcome.hints.iter().try_for_each(|hint| writeln!(err, "offheap: note: {}", crate::report::escape(hint)))
}

/// A process id, for the commands that take one and are no recording.
pub(super) fn examine(tgid: NonZeroU32) -> Result<TargetProcess> {
    feature::require_tracing()?;
    Ok(target::examine(tgid.get())?)
}
