//! `offheap report`: prints what a capture says.

use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::ExitStatus;
use crate::capture::Capture;
use crate::cli::plan::{GroupKey, LensKey, ReportFormat, ReportPlan, Selection, SortKey, TreeKey};
use crate::model::Lens;
use crate::profile::{By, Direction, Filter, Profile, Sort, Suppressions, TreeView};
use crate::report::{DEFAULT_TABLE_SITES, TableOptions, escape, json_text, table};

/// Columns of the table where the output is no terminal.
pub(super) const UNKNOWN_WIDTH: usize = 120;

/// Writes the report to `out`. That data is incomplete stands in the report, in the status, and beside
/// JSON on `err` too. A reader that closes `out` early is no error.
pub fn run(
    plan: &ReportPlan,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Result<ExitStatus, anyhow::Error> {
    let default_top = match plan.format {
        ReportFormat::Table => Some(DEFAULT_TABLE_SITES),
        ReportFormat::Json => None,
    };
    let sort = match plan.sort {
        SortKey::Verdict => Sort::Verdict,
        SortKey::Outstanding => Sort::Outstanding,
        SortKey::Growth => Sort::Growth,
        SortKey::Count => Sort::Count,
    };
    let by = match plan.by {
        GroupKey::Site => By::Site,
        GroupKey::Process => By::Process,
        GroupKey::Executable => By::Executable,
        GroupKey::Allocator => By::Allocator,
        GroupKey::Class => By::Class,
        GroupKey::Function => By::Function,
        GroupKey::Object => By::Object,
        GroupKey::Thread => By::Thread,
        GroupKey::SizeClass => By::SizeClass,
    };
    let tree = plan.tree.map(|(key, least_ppm)| {
        let direction = match key {
            TreeKey::TopDown => Direction::TopDown,
            TreeKey::BottomUp => Direction::BottomUp,
        };
        TreeView { direction, least_ppm }
    });
    let filter = Filter {
        min_age_ns: plan.min_age.map(nanoseconds),
        sort,
        by,
        top: if tree.is_some() { None } else { plan.top.or(default_top) },
        tree,
        merges_processes: plan.merges_processes,
        ..selected(&plan.selection)?
    };
    let capture = open_at(&plan.file, plan.at)?;
    let profile = Profile::new(capture, filter)?;
    let text = match plan.format {
        ReportFormat::Table => {
            let file = plan.file.to_string_lossy();
            table(
                &profile,
                &TableOptions {
                    width: plan.width.map_or(UNKNOWN_WIDTH, usize::from),
                    color: plan.color,
                    file: Some(&file),
                },
            )
        }
        ReportFormat::Json => {
            warn(&profile, err)?;
            json_text(&profile)
        }
    };
    unless_closed(out.write_all(text.as_bytes()).and_then(|()| out.flush())).context("write the report")?;
    Ok(ExitStatus::of(profile.is_complete()))
}

/// A capture as it stood at a moment; without one, at its end.
pub(super) fn open_at(file: &Path, at: Option<Duration>) -> Result<Capture, anyhow::Error> {
    let capture = Capture::open(file)?;
    Ok(match at {
        Some(at) => capture.at(nanoseconds(at)).with_context(|| format!("`{}`", file.display()))?,
        None => capture,
    })
}

/// A filter that takes what was selected, and everything of it.
///
/// # Errors
/// A file of rules that cannot be read, or is none.
pub(super) fn selected(selection: &Selection) -> Result<Filter, anyhow::Error> {
    let lens = selection.lens.map(|lens| match lens {
        LensKey::Malloc => Lens::Malloc,
        LensKey::Mmap => Lens::Mmap,
        LensKey::Faults => Lens::Faults,
    });
    let tgid = selection.process.map(NonZeroU32::get);
    Ok(Filter {
        lens,
        tgid,
        class: selection.class,
        allocator: selection.allocator.clone(),
        suppressions: suppressions(selection)?,
        ..Filter::default()
    })
}

/// Largest file of rules, in bytes.
const MAX_RULES_BYTES: u64 = 4 << 20;

fn suppressions(selection: &Selection) -> Result<Suppressions, anyhow::Error> {
    let mut rules =
        if selection.has_built_in_suppressions { Suppressions::built_in() } else { Suppressions::default() };
    for path in &selection.suppressions {
        let place = || format!("read suppressions from `{}`", path.display());
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MAX_RULES_BYTES + 1).read_to_string(&mut text));
        let length = read.with_context(place)?;
        anyhow::ensure!(
            length as u64 <= MAX_RULES_BYTES,
            "`{}` is longer than {MAX_RULES_BYTES} bytes: it is no file of suppressions",
            path.display()
        );
        rules.add_file(&text).with_context(place)?;
    }
    Ok(rules)
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// One line on `err` where data is incomplete.
pub(super) fn warn(profile: &Profile, err: &mut impl Write) -> io::Result<()> {
    match incomplete(profile) {
        Some(reasons) => writeln!(err, "offheap: data incomplete: {reasons}"),
        None => Ok(()),
    }
}

/// What is missing, in a few words; `None` where nothing is.
pub(super) fn incomplete(profile: &Profile) -> Option<String> {
    if profile.is_complete() {
        return None;
    }
    let completeness = &profile.completeness;
    let mut reasons: Vec<_> =
        completeness.incomplete_losses().map(|loss| escape(&loss.reason).into_owned()).collect();
    if !completeness.is_finished {
        reasons.insert(0, "unfinished recording".into());
    }
    if completeness.skipped_rows > 0 {
        reasons.push("damaged rows".into());
    }
    Some(reasons.join(", "))
}

/// `head` and the like close a pipe when they have enough.
pub(super) fn unless_closed(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::capture::fixture::{Recording, clean, leaky};

    fn report(recording: &Recording, format: ReportFormat) -> (ExitStatus, String, String) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.offheap");
        recording.write(&file);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let plan = ReportPlan {
            file,
            format,
            top: None,
            min_age: None,
            at: None,
            sort: SortKey::Outstanding,
            by: GroupKey::Site,
            tree: None,
            merges_processes: false,
            selection: Selection::default(),
            color: false,
            width: Some(100),
        };
        let status = run(&plan, &mut out, &mut err).unwrap();
        (status, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn the_status_tells_whether_data_is_missing() {
        let mut unfinished = clean();
        unfinished.finish = None;
        for format in [ReportFormat::Table, ReportFormat::Json] {
            assert_eq!(report(&clean(), format).0, ExitStatus::Done);
            assert_eq!(report(&leaky(), format).0, ExitStatus::Incomplete);
            assert_eq!(report(&unfinished, format).0, ExitStatus::Incomplete);
        }
        assert!(report(&unfinished, ReportFormat::Table).1.starts_with("! unfinished"));
        let (_, _, err) = report(&leaky(), ReportFormat::Json);
        assert_eq!(err, "offheap: data incomplete: stack-ring-full\n");
        assert_eq!(report(&clean(), ReportFormat::Json).2, "");
    }

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        assert!(unless_closed(Closed.write_all(b"x")).is_ok());
        assert!(unless_closed(Err(io::ErrorKind::StorageFull.into())).is_err());
    }
}
