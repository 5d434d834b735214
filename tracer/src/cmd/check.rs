//! `offheap check`: records, and says whether that passes.

use std::env;
use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::ExitStatus;
use super::record::{self, Recorded, owner_of};
use super::report::{UNKNOWN_WIDTH, nanoseconds, selected, unless_closed};
use crate::attach::launch::Invoker;
use crate::capture::{Capture, create_file};
use crate::cli::check::CheckPlan;
use crate::cli::plan::{CheckFormat, LensKey, RecordPlan, Verbosity};
use crate::model::Lens;
use crate::profile::{Filter, Gate, GateVerdict, Profile, Run, Sort};
use crate::report::{TableOptions, check_json, check_text, escape, github, junit};

/// Records, judges, and writes the result.
///
/// # Errors
/// What stood in the way of a result.
pub fn run(
    plan: &CheckPlan,
    verbosity: Verbosity,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Result<ExitStatus> {
    let filter = Filter { sort: Sort::Verdict, ..selected(&plan.selection)? };
    // What cannot be read or written is said before minutes have passed.
    let baseline = plan.baseline.as_deref().map(|file| baseline(plan, file, &filter)).transpose()?;
    if let Some(path) = plan.output.as_deref().filter(|_| !plan.record.force) {
        ensure!(
            fs::symlink_metadata(path).is_err(),
            "`{}` exists; `--force` overwrites it",
            escape(&path.display().to_string())
        );
    }
    if plan.is_default_duration && verbosity > Verbosity::Quiet {
        let measured = humantime::format_duration(plan.measured.unwrap_or_default());
        writeln!(
            err,
            "offheap: no --duration: measuring for {measured}; what grows slowly under noise takes longer to tell"
        )?;
    }
    let room = Room::new(plan.record.output.as_deref())?;
    let record = RecordPlan { output: Some(room.file.clone()), ..plan.record.clone() };
    let recorded = record::run(&record, verbosity, err)?;
    let Some(profile) = profile(plan, &recorded, filter)? else {
        bail!(
            "the command ended with exit status {} before it allocated anything, so nothing was checked",
            recorded.command_status.unwrap_or_default()
        );
    };
    conclude(plan, &recorded, verbosity, err)?;
    let run = Run { command_status: recorded.command_status, warm_up_ns: nanoseconds(plan.warm_up) };
    let gate = Gate::new(&profile, baseline.as_ref(), plan.rules, run);
    let status = status(&gate);
    print(plan, &gate, status, out)?;
    Ok(status)
}

/// The exit status of a result.
fn status(gate: &Gate<'_>) -> ExitStatus {
    match gate.verdict() {
        GateVerdict::Passed => ExitStatus::Done,
        GateVerdict::Breached => ExitStatus::Breach,
        GateVerdict::CommandFailed => ExitStatus::Failed,
        GateVerdict::Incomplete => ExitStatus::Incomplete,
    }
}

/// The capture to compare with, without the same time at its beginning.
fn baseline(plan: &CheckPlan, file: &Path, filter: &Filter) -> Result<Profile> {
    let capture = Capture::open(file)?.since(nanoseconds(plan.warm_up));
    let profile = Profile::new(capture, filter.clone())?;
    for (key, lens) in
        [(LensKey::Malloc, Lens::Malloc), (LensKey::Mmap, Lens::Mmap), (LensKey::Faults, Lens::Faults)]
    {
        ensure!(
            !plan.record.lenses.contains(&key) || profile.has_lens(lens),
            "the baseline `{}` was recorded without the lens {name}, so everything it would show were new; record both \
             with the same `--lens`",
            escape(&file.display().to_string()),
            name = key.name()
        );
    }
    Ok(profile)
}

/// What was recorded after the warm-up; `None` where nothing was recorded at all.
fn profile(plan: &CheckPlan, recorded: &Recorded, filter: Filter) -> Result<Option<Profile>> {
    let Some(outcome) = &recorded.outcome else { return Ok(None) };
    let capture = Capture::open(&outcome.output)?.since(nanoseconds(plan.warm_up));
    Ok(Some(Profile::new(capture, filter)?))
}

/// Tells of the capture, if it is kept, and what the recorder had to say.
fn conclude(plan: &CheckPlan, recorded: &Recorded, verbosity: Verbosity, err: &mut impl Write) -> Result<()> {
    if verbosity == Verbosity::Quiet {
        return Ok(());
    }
    if plan.record.output.is_some() {
        record::conclude(recorded, verbosity, err)?;
    } else if let Some(outcome) = &recorded.outcome {
        record::write_hints(outcome, err)?;
    }
    Ok(())
}

fn print(plan: &CheckPlan, gate: &Gate<'_>, status: ExitStatus, out: &mut impl Write) -> Result<()> {
    let text = |color| {
        let width = plan.width.map_or(UNKNOWN_WIDTH, usize::from);
        check_text(gate, &TableOptions { width, color, file: None })
    };
    let result = match plan.format {
        CheckFormat::Text => text(plan.color && plan.output.is_none()),
        CheckFormat::Json => check_json(gate, status as u8),
        CheckFormat::Junit => junit(gate),
        CheckFormat::Github => {
            let roots: Vec<PathBuf> = env::var_os("GITHUB_WORKSPACE")
                .map(PathBuf::from)
                .into_iter()
                .chain(env::current_dir())
                .collect();
            github(gate, &roots.iter().map(PathBuf::as_path).collect::<Vec<_>>())
        }
    };
    let shown = match &plan.output {
        Some(path) => {
            // Whoever called `sudo` is to read it, too.
            let owner = Invoker::from_environment()?.as_ref().map(owner_of);
            create_file(path, plan.record.force, owner)?
                .write_all(result.as_bytes())
                .with_context(|| format!("write `{}`", path.display()))?;
            text(plan.color)
        }
        None => result,
    };
    unless_closed(out.write_all(shown.as_bytes()).and_then(|()| out.flush())).context("write the result")
}

/// Where the recording lies: in the file where it is kept, or in a directory of its own that goes with this value.
struct Room {
    file: PathBuf,
    directory: Option<PathBuf>,
}

impl Room {
    fn new(kept: Option<&Path>) -> io::Result<Self> {
        if let Some(file) = kept {
            return Ok(Self { file: file.to_owned(), directory: None });
        }
        // Root takes no directory from the environment: its owner could put another in the place of this one. A
        // directory that is there already is an error: nobody else can have made this one.
        let is_root = rustix::process::geteuid().is_root();
        let parent = if is_root { PathBuf::from("/tmp") } else { env::temp_dir() };
        let now = jiff::Timestamp::now().as_nanosecond();
        let name = format!("offheap-check-{}-{now}", std::process::id());
        let directory = parent.join(name);
        DirBuilder::new().mode(0o700).create(&directory)?;
        Ok(Self { file: directory.join("check.offheap"), directory: Some(directory) })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            // What cannot be removed is left to whoever cleans the directory for temporary files.
            let _ = fs::remove_dir_all(directory);
        }
    }
}
