//! The `offheap` program.

use std::{
    env,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use offheap::{
    cli::{
        self, CliError, Environment,
        plan::{
            Action, GroupKey, Invocation, RecordPlan, ReportFormat, ReportPlan, Selection, SortKey, Verbosity,
        },
    },
    cmd::{self, ExitStatus},
};

fn main() -> ExitCode {
    let environment = Environment {
        no_color: env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()),
        stdout_is_terminal: io::stdout().is_terminal(),
        stderr_is_terminal: io::stderr().is_terminal(),
        terminal_width: rustix::termios::tcgetwinsize(io::stdout())
            .ok()
            .map(|size| size.ws_col)
            .filter(|columns| *columns > 0),
    };
    let invocation = match cli::parse(env::args_os(), &environment) {
        Ok(invocation) => invocation,
        Err(CliError::Help(text)) => {
            let _ = io::stdout().write_all(text.as_bytes());
            return ExitStatus::Done.into();
        }
        Err(CliError::Usage(line)) => {
            eprintln!("offheap: {line}");
            return ExitStatus::Usage.into();
        }
    };
    start_log(&invocation);
    match run(&invocation, environment.terminal_width) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("offheap: {}", one_line(&error));
            ExitStatus::Failed.into()
        }
    }
}

fn start_log(invocation: &Invocation) {
    let bpf = match &invocation.action {
        Action::Record(RecordPlan { bpf_log: Some(_), .. }) => log::LevelFilter::Trace,
        Action::Check(plan) if plan.record.bpf_log.is_some() => log::LevelFilter::Trace,
        _ => log::LevelFilter::Off,
    };
    let own = match invocation.verbosity {
        Verbosity::Quiet | Verbosity::Normal => log::LevelFilter::Off,
        Verbosity::Verbose => log::LevelFilter::Info,
        Verbosity::Debug => log::LevelFilter::Debug,
        Verbosity::Trace => log::LevelFilter::Trace,
    };
    // The BPF side's lines have the name of its crate, which is this one's.
    env_logger::Builder::new().filter_level(own).filter_module("offheap", own.max(bpf)).init();
}

fn run(invocation: &Invocation, width: Option<u16>) -> anyhow::Result<ExitCode> {
    let (out, err) = (&mut io::stdout().lock(), &mut io::stderr());
    let status = match &invocation.action {
        Action::Record(plan) => return record(plan, invocation, width, out, err),
        Action::Report(plan) => cmd::report::run(plan, out, err)?,
        Action::Export(plan) => cmd::export::run(plan, out, err)?,
        Action::Diff(plan) => cmd::diff::run(plan, out, err)?,
        Action::Rss(plan) => cmd::rss::run(plan, out, err)?,
        Action::Watch(plan) => cmd::watch::run(plan, invocation.verbosity, out, err)?,
        Action::Check(plan) => cmd::check::run(plan, invocation.verbosity, out, err)?,
        Action::Doctor { tgid, selection, calibrates } => {
            cmd::doctor::run(*tgid, selection, *calibrates, out)?
        }
        Action::Demo { output_directory } => {
            cmd::demo::run(output_directory, invocation.color_stdout, width, out, err)?
        }
        Action::Completions { shell } => {
            cmd::completions::print_completions(*shell, out)?;
            ExitStatus::Done
        }
        Action::Man { command } => {
            cmd::completions::print_man(command.as_deref(), out)?;
            ExitStatus::Done
        }
        Action::DemoTarget { duration } => {
            cmd::demo_target::run(*duration, &mut io::stdin().lock(), out)?;
            ExitStatus::Done
        }
        Action::PairTarget => {
            cmd::pair_target::run(&mut io::stdin().lock(), out)?;
            ExitStatus::Done
        }
        Action::BenchFloor { tgid, probe_kind } => cmd::unwind::run_floor(*tgid, *probe_kind, err)?,
        Action::VerifyPrograms => cmd::verify::run(out)?,
        Action::ValidateUnwind { tgid, samples } => cmd::unwind::run_validate(*tgid, *samples, out)?,
    };
    Ok(status.into())
}

/// Records; then reports, or says what to do next. A command's exit status is passed on.
fn record(
    plan: &RecordPlan,
    invocation: &Invocation,
    width: Option<u16>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let recorded = cmd::record::run(plan, invocation.verbosity, err)?;
    let status = cmd::record::conclude(&recorded, invocation.verbosity, err)?;
    let Some(outcome) = &recorded.outcome else { return Ok(command_code(&recorded, status)) };
    if plan.then_report {
        let plan = ReportPlan {
            file: outcome.output.clone(),
            format: ReportFormat::Table,
            top: None,
            min_age: None,
            at: None,
            sort: SortKey::Verdict,
            by: GroupKey::Site,
            tree: None,
            merges_processes: false,
            selection: Selection::default(),
            color: invocation.color_stdout,
            width,
        };
        cmd::report::run(&plan, out, err)?;
    } else if invocation.verbosity > Verbosity::Quiet {
        let file = outcome.output.display().to_string();
        writeln!(err, "offheap: next: offheap report {}", offheap::report::escape(&file))?;
    }
    Ok(command_code(&recorded, status))
}

/// The status of the command, if one was started and failed; else our own.
fn command_code(recorded: &cmd::record::Recorded, status: ExitStatus) -> ExitCode {
    match recorded.command_status {
        Some(code) if code != 0 => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        _ => status.into(),
    }
}

/// The chain of causes on one line; a cause that its effect repeats is left out.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    let lines: Vec<&str> = line.lines().map(str::trim).filter(|part| !part.is_empty()).collect();
    offheap::report::escape(&lines.join("; ")).into_owned()
}
