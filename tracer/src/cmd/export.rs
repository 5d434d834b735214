//! `offheap export`: writes a capture in another tool's format.

use std::io::Write;

use anyhow::Context;

use super::ExitStatus;
use super::report::{selected, unless_closed, warn};
use crate::capture::{Capture, create_file};
use crate::cli::plan::{ExportFormat, ExportPlan};
use crate::export::{csv, folded, html, pprof, speedscope, svg};
use crate::profile::Profile;
use crate::report::json_text;

/// Writes the export to its file, or to `out`. Says on `err` where data is incomplete.
pub fn run(
    plan: &ExportPlan,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Result<ExitStatus, anyhow::Error> {
    let profile = Profile::new(Capture::open(&plan.file)?, selected(&plan.selection)?)?;
    // In memory first: an export that fails leaves no file, and replaces none.
    let mut bytes = Vec::new();
    match plan.format {
        ExportFormat::Folded => folded(&profile, &mut bytes)?,
        ExportFormat::Svg => svg(&profile, &mut bytes)?,
        ExportFormat::Pprof => pprof(&profile, &mut bytes)?,
        ExportFormat::Speedscope => speedscope(&profile, &mut bytes)?,
        ExportFormat::Csv => csv(&profile, &mut bytes)?,
        ExportFormat::Html => html(&profile, &mut bytes)?,
        ExportFormat::Json => bytes.extend(json_text(&profile).into_bytes()),
    }
    match &plan.output {
        Some(path) => create_file(path, plan.force, None)?
            .write_all(&bytes)
            .with_context(|| format!("write `{}`", path.display()))?,
        None => {
            unless_closed(out.write_all(&bytes).and_then(|()| out.flush())).context("write the export")?
        }
    }
    warn(&profile, err)?;
    Ok(ExitStatus::of(profile.is_complete()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::capture::fixture::{clean, leaky};
    use crate::cli::plan::Selection;

    #[test]
    fn exports_go_to_a_private_file_or_to_standard_output() {
        let dir = tempfile::tempdir().unwrap();
        let (file, output) = (dir.path().join("x.offheap"), dir.path().join("x.svg"));
        leaky().write(&file);
        let (format, selection) = (ExportFormat::Svg, Selection::default());
        let mut plan = ExportPlan { file, format, selection, output: Some(output.clone()), force: false };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        assert_eq!(run(&plan, &mut out, &mut err).unwrap(), ExitStatus::Incomplete);
        assert!(out.is_empty());
        assert_eq!(String::from_utf8(err.clone()).unwrap(), "offheap: data incomplete: stack-ring-full\n");
        assert_eq!(fs::metadata(&output).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(fs::read_to_string(&output).unwrap().contains("<svg"));
        assert!(run(&plan, &mut out, &mut err).is_err(), "not replaced");
        plan.force = true;
        plan.format = ExportFormat::Folded;
        run(&plan, &mut out, &mut err).unwrap();
        assert!(fs::read_to_string(&output).unwrap().starts_with("__libc_start_main;main;"));
        plan.output = None;
        run(&plan, &mut out, &mut err).unwrap();
        assert_eq!(out, fs::read(&output).unwrap());
    }

    #[test]
    fn every_format_goes_to_a_private_file_and_never_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.offheap");
        let victim = dir.path().join("victim");
        leaky().write(&file);
        fs::write(&victim, "precious").unwrap();
        let starts: [(ExportFormat, &[u8]); 7] = [
            (ExportFormat::Folded, b"__libc_start_main;main;"),
            (ExportFormat::Svg, b"<?xml"),
            (ExportFormat::Pprof, &[0x1f, 0x8b]),
            (ExportFormat::Speedscope, b"{\"$schema\""),
            (ExportFormat::Csv, b"seconds,"),
            (ExportFormat::Html, b"<!doctype html>"),
            (ExportFormat::Json, b"{\n  \"schema\": \"offheap.report/1\""),
        ];
        for (index, (format, start)) in starts.into_iter().enumerate() {
            let output = dir.path().join(format!("out-{index}"));
            std::os::unix::fs::symlink(&victim, &output).unwrap();
            let selection = Selection::default();
            let mut plan = ExportPlan {
                file: file.clone(),
                format,
                selection,
                output: Some(output.clone()),
                force: false,
            };
            assert!(run(&plan, &mut Vec::new(), &mut Vec::new()).is_err(), "{format:?}");
            plan.force = true;
            run(&plan, &mut Vec::new(), &mut Vec::new()).unwrap();
            assert_eq!(fs::symlink_metadata(&output).unwrap().permissions().mode() & 0o777, 0o600);
            let bytes = fs::read(&output).unwrap();
            assert!(bytes.starts_with(start), "{format:?}: {:?}", bytes.get(..40));
            assert_eq!(fs::read(&victim).unwrap(), b"precious");
        }
    }

    #[test]
    fn a_graph_of_nothing_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let (file, output) = (dir.path().join("x.offheap"), dir.path().join("x.svg"));
        clean().write(&file);
        let (format, selection) = (ExportFormat::Svg, Selection::default());
        let plan = ExportPlan { file, format, selection, output: Some(output.clone()), force: true };
        assert!(run(&plan, &mut Vec::new(), &mut Vec::new()).is_err());
        assert!(!output.exists());
    }
}
