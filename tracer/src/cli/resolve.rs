//! From what was typed to what it means: defaults, and rules that span several arguments.

use std::num::NonZeroU32;
use std::time::Duration;

use super::args::{
    AllocatorArgs, CommandArgs, ExportArgs, GlobalArgs, OffheapArgs, RecordArgs, RecordingArgs, ReportArgs,
    SelectionArgs,
};
use super::diff::diff;
use super::message::not_a_command;
use super::plan::{
    Action, AllocatorSelection, ColorChoice, DEFAULT_MAX_PROCESSES, ExportPlan, Invocation, LensKey, Limits,
    ProbeKindKey, RecordPlan, ReportPlan, RssPlan, Scope, Selection, TargetPlan, Verbosity,
};
use super::rss::RssArgs;

/// How long a process is recorded if nothing is said.
const DEFAULT_DURATION: Duration = Duration::from_secs(30);
/// The kernel's PID_MAX_LIMIT.
const MAX_PID: u32 = 1 << 22;

/// What the arguments' meaning depends on besides themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `NO_COLOR` is set and not empty.
    pub no_color: bool,
    /// The standard output is a terminal.
    pub stdout_is_terminal: bool,
    /// The standard error is a terminal.
    pub stderr_is_terminal: bool,
    /// Columns of the terminal that the standard output is.
    pub terminal_width: Option<u16>,
}

/// Applies defaults and checks rules. An error is one line: what, why, what to do.
pub(super) fn resolve(args: OffheapArgs, environment: &Environment) -> Result<Invocation, String> {
    let OffheapArgs { target, pid, allocator, global, command } = args;
    let selection = allocator_selection(allocator);
    let color_stdout = wants_color(&global, environment.no_color, environment.stdout_is_terminal);
    let color_stderr = wants_color(&global, environment.no_color, environment.stderr_is_terminal);
    let action = match (command, target.or(pid.clone()), pid) {
        (Some(_), Some(given), _) => {
            return Err(format!("`{given}` stands before the command; the process id goes after it"));
        }
        (Some(_), None, _) if selection != AllocatorSelection::default() => {
            return Err("`--allocator-prefix` and `--object` go after the command".into());
        }
        (None, Some(target), pid) => Action::Record(quick_record(&target, pid.as_deref(), selection)?),
        (None, None, _) => {
            return Err(
                "nothing to do; give a process id, as in `offheap 1234`, or a command (`offheap --help` \
                        lists them)"
                    .into(),
            );
        }
        (Some(command), None, _) => resolve_command(command, color_stdout, environment.terminal_width)?,
    };
    Ok(Invocation { verbosity: verbosity(&global), color_stdout, color_stderr, action })
}

fn resolve_command(command: CommandArgs, color: bool, width: Option<u16>) -> Result<Action, String> {
    Ok(match command {
        CommandArgs::Record(args) => Action::Record(record(*args)?),
        CommandArgs::Report(args) => Action::Report(report(args, color, width)?),
        CommandArgs::Export(ExportArgs { file, format, output, force, selection: only }) => {
            let output = output.filter(|path| path.as_os_str() != "-");
            Action::Export(ExportPlan { file, format, selection: selection(only)?, output, force })
        }
        CommandArgs::Diff(args) => Action::Diff(diff(args, color, width)?),
        CommandArgs::Rss(args) => Action::Rss(rss(args, width)?),
        CommandArgs::Watch(args) => Action::Watch(super::watch::resolve(args)?),
        CommandArgs::Check(args) => Action::Check(Box::new(super::check::resolve(*args, color, width)?)),
        CommandArgs::Doctor(args) => {
            let tgid = match (args.target, args.pid) {
                (None, None) => None,
                (target, pid) => Some(one_pid(target.as_deref(), pid.as_deref())?),
            };
            let selection = allocator_selection(args.allocator);
            Action::Doctor { tgid, selection, calibrates: args.calibrate }
        }
        CommandArgs::Demo(args) => Action::Demo { output_directory: args.output },
        CommandArgs::Completions(args) => Action::Completions { shell: args.shell },
        CommandArgs::Man(args) => Action::Man { command: args.command },
        CommandArgs::DemoTarget(args) => Action::DemoTarget { duration: args.duration },
        CommandArgs::PairTarget => Action::PairTarget,
        CommandArgs::BenchFloor(args) => {
            Action::BenchFloor { tgid: parse_pid(&args.target)?, probe_kind: args.probe_kind }
        }
        CommandArgs::VerifyPrograms => Action::VerifyPrograms,
        CommandArgs::ValidateUnwind(args) => {
            Action::ValidateUnwind { tgid: parse_pid(&args.target)?, samples: args.samples }
        }
    })
}

fn rss(args: RssArgs, width: Option<u16>) -> Result<RssPlan, String> {
    Ok(RssPlan {
        tgid: one_pid(args.target.as_deref(), args.pid.as_deref())?,
        by: args.by,
        format: args.format,
        is_quick: args.quick,
        runs_jcmd: args.jcmd,
        out: args.out,
        force: args.force,
        width,
    })
}

fn report(args: ReportArgs, color: bool, width: Option<u16>) -> Result<ReportPlan, String> {
    Ok(ReportPlan {
        file: args.file,
        format: args.format,
        top: args.top.map(|top| top as usize),
        min_age: args.min_age,
        at: args.at,
        sort: args.sort,
        by: args.by,
        tree: args.tree.map(|tree| (tree, args.tree_min_percent)),
        merges_processes: args.merge_processes,
        selection: selection(args.selection)?,
        color,
        width,
    })
}

pub(super) fn selection(args: SelectionArgs) -> Result<Selection, String> {
    let process = args.process.as_deref().map(parse_pid).transpose()?;
    Ok(Selection {
        lens: args.lens,
        process,
        class: args.class,
        allocator: args.allocator,
        suppressions: args.suppressions.suppressions,
        has_built_in_suppressions: !args.suppressions.no_built_in_suppressions,
    })
}

fn verbosity(global: &GlobalArgs) -> Verbosity {
    match (global.quiet, global.verbose) {
        (true, _) => Verbosity::Quiet,
        (false, 0) => Verbosity::Normal,
        (false, 1) => Verbosity::Verbose,
        (false, 2) => Verbosity::Debug,
        (false, _) => Verbosity::Trace,
    }
}

/// What was typed wins over the environment.
fn wants_color(global: &GlobalArgs, no_color: bool, is_terminal: bool) -> bool {
    match (global.no_color, global.color) {
        (true, _) | (_, Some(ColorChoice::Never)) => false,
        (_, Some(ColorChoice::Always)) => true,
        (_, Some(ColorChoice::Auto) | None) => is_terminal && !no_color,
    }
}

fn allocator_selection(args: AllocatorArgs) -> AllocatorSelection {
    AllocatorSelection { prefixes: args.allocator_prefix, objects: args.object }
}

fn quick_record(
    target: &str,
    pid: Option<&str>,
    selection: AllocatorSelection,
) -> Result<RecordPlan, String> {
    let tgid = match pid {
        Some(pid) if pid != target => one_pid(Some(target), Some(pid))?,
        Some(pid) => parse_pid(pid)?,
        None if !target.starts_with(|first: char| first.is_ascii_digit()) => {
            return Err(not_a_command(target));
        }
        None => parse_pid(target)?,
    };
    Ok(RecordPlan {
        target: TargetPlan::Processes(vec![tgid]),
        duration: Some(DEFAULT_DURATION),
        interval: Duration::from_secs(1),
        output: None,
        force: false,
        min_size_bytes: 0,
        max_size_bytes: u64::MAX,
        limits: Limits::DEFAULT,
        lenses: vec![LensKey::Malloc, LensKey::Mmap],
        follow: true,
        max_processes: DEFAULT_MAX_PROCESSES,
        selection,
        bpf_log: None,
        probe_kind: ProbeKindKey::Auto,
        sample_bytes: None,
        max_overhead: None,
        then_report: true,
    })
}

fn record(args: RecordArgs) -> Result<RecordPlan, String> {
    let plan = recording(args.recording, "record", args.duration, DEFAULT_DURATION)?;
    Ok(RecordPlan { output: args.output, force: args.force, ..plan })
}

/// The recording that a command does, which is called `word`. `default` is how long processes are recorded where
/// nothing is said. Nothing is said about its file.
pub(super) fn recording(
    args: RecordingArgs,
    word: &str,
    duration: Option<Duration>,
    default: Duration,
) -> Result<RecordPlan, String> {
    let (min_size_bytes, max_size_bytes) = (args.min_size.unwrap_or(0), args.max_size.unwrap_or(u64::MAX));
    if min_size_bytes > max_size_bytes {
        return Err(
            "`--min-size` is above `--max-size`, so that nothing would be booked; exchange them".into()
        );
    }
    if args.sample.is_some() && !args.lens.contains(&LensKey::Malloc) {
        return Err(
            "`--sample` is of allocator calls, and the lens `malloc` is not asked for; leave one of them"
                .into(),
        );
    }
    if args.max_overhead.is_some() && !args.lens.contains(&LensKey::Malloc) {
        return Err(
            "`--max-overhead` is of the probes on the allocator, and the lens `malloc` is not asked for; leave one of them"
                .into(),
        );
    }
    let target = record_target(&args, word)?;
    let default_duration = (!matches!(target, TargetPlan::Command(_))).then_some(default);
    let duration = duration.or(default_duration);
    if duration.is_some_and(|duration| duration < args.interval) {
        return Err(
            "`--interval` is longer than `--duration`, so that there would be no series; shorten it".into()
        );
    }
    let limits = Limits::DEFAULT;
    Ok(RecordPlan {
        target,
        duration,
        interval: args.interval,
        output: None,
        force: false,
        min_size_bytes,
        max_size_bytes,
        limits: Limits {
            max_live_blocks: args.max_live_blocks.unwrap_or(limits.max_live_blocks),
            max_sites: args.max_sites.unwrap_or(limits.max_sites),
            max_threads: args.max_threads.unwrap_or(limits.max_threads),
            stack_ring_bytes: args.stack_ring.unwrap_or(limits.stack_ring_bytes),
            max_fault_pages: args.max_fault_pages.unwrap_or(limits.max_fault_pages),
        },
        lenses: lenses(&args.lens),
        follow: !args.no_follow,
        max_processes: args.max_processes,
        selection: allocator_selection(args.allocator),
        bpf_log: args.bpf_log,
        probe_kind: args.probe_kind,
        sample_bytes: args.sample,
        max_overhead: args.max_overhead,
        then_report: false,
    })
}

/// Each once, in their own order.
fn lenses(given: &[LensKey]) -> Vec<LensKey> {
    [LensKey::Malloc, LensKey::Mmap, LensKey::Faults]
        .into_iter()
        .filter(|lens| given.contains(lens))
        .collect()
}

fn record_target(args: &RecordingArgs, word: &str) -> Result<TargetPlan, String> {
    let pids: Vec<&str> = args.targets.iter().chain(&args.pids).map(String::as_str).collect();
    let scope = match (&args.cgroup, &args.container) {
        (Some(path), _) => Some(Scope::cgroup(path)?),
        (None, Some(id)) => Some(Scope::container(id)?),
        (None, None) => None,
    };
    match (pids.is_empty(), scope, args.command.is_empty()) {
        (true, None, true) => Err(format!(
            "nothing to {word}; give a process id, as in `offheap {word} 1234`, or a command, as in `offheap {word} -- ls \
             -l`"
        )),
        (true, None, false) => Ok(TargetPlan::Command(args.command.clone())),
        (true, Some(scope), true) => Ok(TargetPlan::Scope(scope)),
        (false, None, true) => processes(&args.targets, &pids),
        (false, None, false) => Err(format!("a process id and a command; {word} one of them at a time")),
        (_, Some(scope), _) => {
            Err(format!("the {} and something else; {word} one of them at a time", scope.describe()))
        }
    }
}

pub(super) fn processes(targets: &[String], pids: &[&str]) -> Result<TargetPlan, String> {
    if let Some(target) =
        targets.iter().find(|target| !target.starts_with(|first: char| first.is_ascii_digit()))
    {
        return Err(format!("`{target}` is not a process id; to start a command, put `--` before it"));
    }
    let mut processes = Vec::new();
    for pid in pids {
        let pid = parse_pid(pid)?;
        if processes.contains(&pid) {
            return Err(format!("process id `{pid}` is given twice; give it once"));
        }
        processes.push(pid);
    }
    Ok(TargetPlan::Processes(processes))
}

fn one_pid(target: Option<&str>, pid: Option<&str>) -> Result<NonZeroU32, String> {
    match (target, pid) {
        (Some(target), Some(pid)) => {
            Err(format!("two process ids, `{target}` and `{pid}`; give one, with or without `-p`"))
        }
        (Some(pid), None) | (None, Some(pid)) => parse_pid(pid),
        (None, None) => Err("no process id; give one, with or without `-p`".into()),
    }
}

fn parse_pid(text: &str) -> Result<NonZeroU32, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number {
        return Err(format!("`{text}` is not a process id; give a number, as `ps` or `pidof` print it"));
    }
    text.parse()
        .ok()
        .filter(|pid: &NonZeroU32| pid.get() <= MAX_PID)
        .ok_or_else(|| format!("there is no process id `{text}`; they go from 1 to {MAX_PID}"))
}
