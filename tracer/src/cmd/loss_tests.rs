//! The loss ledger as a whole: every reason reaches every output, and stands in the documentation with its test.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tracer_common::abi::{Loss, Tally};

use super::ExitStatus;
use crate::capture::fixture::clean;
use crate::export::html;
use crate::model::LossTally;
use crate::record::losses::{OwnLosses, rows};
use crate::report::tests::profile;
use crate::report::{TableOptions, json, table};

/// Every reason of kernel and user space, at zero.
fn ledger() -> Vec<LossTally> {
    let tallies: Vec<_> = Loss::ALL.iter().map(|loss| (*loss, Tally::default())).collect();
    rows(&tallies, &OwnLosses::default())
}

#[test]
fn every_reason_reaches_every_output() {
    let plain = TableOptions { width: 100, color: false, file: Some("leak.offheap") };
    for (index, reason) in ledger().iter().enumerate() {
        let mut recording = clean();
        recording.losses = ledger();
        recording.losses[index].count = 7;
        let profile = profile(&recording);
        let (name, is_incomplete) = (&reason.reason, reason.is_incomplete);
        assert_eq!(profile.is_complete(), !is_incomplete, "{name}");
        let status = ExitStatus::of(profile.is_complete());
        assert_eq!(status, if is_incomplete { ExitStatus::Incomplete } else { ExitStatus::Done }, "{name}");

        let line = format!("incomplete: {name} (7 times");
        assert_eq!(table(&profile, &plain).contains(&line), is_incomplete, "{name} in the table");
        let json = json(&profile);
        assert_eq!(json["completeness"]["complete"], !is_incomplete, "{name}");
        let losses = json["completeness"]["losses"].as_array().unwrap();
        let found: Vec<_> = losses.iter().filter(|loss| loss["count"] != 0).collect();
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert_eq!(
            (&found[0]["reason"], &found[0]["incomplete"]),
            (&name.as_str().into(), &is_incomplete.into())
        );
        let mut page = Vec::new();
        html(&profile, &mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        assert_eq!(page.contains(&line), is_incomplete, "{name} in the page");
        let row = format!("\"reason\":\"{name}\",\"count\":7,\"bytes\":0,\"incomplete\":{is_incomplete}");
        assert!(page.contains(&row), "{name} in the table of the page");
    }
}

/// What one side counts never shows as something else.
#[test]
fn every_count_has_a_row_of_its_own() {
    let mut number = 100;
    let mut next = || {
        number += 1;
        number
    };
    let kernel: Vec<_> =
        Loss::ALL.iter().map(|loss| (*loss, Tally { count: next(), bytes: next() })).collect();
    let mut own = OwnLosses {
        mapping_events: next(),
        unfollowed: next(),
        short_lived: next(),
        skipped_runs: next(),
        skipped_mapping_runs: next(),
        without_mappings: next(),
        without_allocator: next(),
        over_budget: next(),
        ..OwnLosses::default()
    };
    own.faults.without_faults = next();
    own.faults.skipped_runs = next();
    own.faults.unattributed_bytes = next() << 12;
    own.faults.unseen_bytes = next() << 12;
    let books = &mut own.mappings;
    let tallies = [
        &mut books.unknown_unmap,
        &mut books.healed,
        &mut books.full,
        &mut books.unseen_segment,
        &mut books.unaccounted,
    ];
    for tally in tallies {
        *tally = Tally { count: next(), bytes: next() };
    }
    let found: BTreeMap<String, u64> =
        rows(&kernel, &own).into_iter().map(|row| (row.reason, row.count)).collect();
    for (loss, tally) in &kernel {
        assert_eq!(found[loss.name()], tally.count, "{}", loss.name());
    }
    for (name, count) in [
        ("mapping-event-lost", own.mapping_events),
        ("process-limit", own.unfollowed),
        ("short-lived-child", own.short_lived),
        ("program-skipped", own.skipped_runs),
        ("mapping-program-skipped", own.skipped_mapping_runs),
        ("no-mappings", own.without_mappings),
        ("no-allocator", own.without_allocator),
        ("over-budget", own.over_budget),
        ("no-faults", own.faults.without_faults),
        ("fault-skipped", own.faults.skipped_runs),
        ("unattributed-growth", own.faults.unattributed_bytes >> 12),
        ("unseen-before", own.faults.unseen_bytes >> 12),
        ("unknown-unmap", own.mappings.unknown_unmap.count),
        ("mapping-healed", own.mappings.healed.count),
        ("mapping-book-full", own.mappings.full.count),
        ("segment-unseen", own.mappings.unseen_segment.count),
        ("mapping-unaccounted", own.mappings.unaccounted.count),
    ] {
        assert_eq!(found[name], count, "{name}");
    }
    assert_eq!(found.len(), kernel.len() + 17, "two reasons share a name, or one is not tested here");
}

/// A row of a table of docs/losses.md.
struct Documented {
    is_incomplete: bool,
    test: String,
}

/// Rows of docs/losses.md by their reason.
fn documented(root: &Path) -> BTreeMap<String, Documented> {
    let text = fs::read_to_string(root.join("docs/losses.md")).unwrap();
    let mut rows = BTreeMap::new();
    let mut is_incomplete = None;
    for line in text.lines() {
        match line {
            "## Makes the result incomplete" => is_incomplete = Some(true),
            "## Observations" => is_incomplete = Some(false),
            _ if line.starts_with("## ") => is_incomplete = None,
            _ => {}
        }
        let Some(is_incomplete) = is_incomplete.filter(|_| line.starts_with("| `")) else { continue };
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{line}");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "{line}");
        let reason = cells[0].trim_matches('`').to_owned();
        let test = cells[4].split('`').nth(1).unwrap_or_default().to_owned();
        let is_first = rows.insert(reason.clone(), Documented { is_incomplete, test }).is_none();
        assert!(is_first, "{reason} stands there twice");
    }
    rows
}

/// All sources of a folder.
fn sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &fs::read_to_string(path).unwrap();
        }
    }
    text
}

#[test]
fn every_reason_is_documented_with_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut documented = documented(root);
    let unit_tests = sources(&root.join("tracer/src"));
    for reason in ledger() {
        let name = &reason.reason;
        let row = documented.remove(name).unwrap_or_else(|| panic!("docs/losses.md has no row `{name}`"));
        assert_eq!(row.is_incomplete, reason.is_incomplete, "{name} is in the wrong table");
        let (function, text) = match row.test.split_once("::") {
            Some((module, function)) => {
                (function, fs::read_to_string(root.join(format!("tests/kernel/{module}.rs"))).unwrap())
            }
            None => (row.test.as_str(), unit_tests.clone()),
        };
        assert!(
            text.contains(&format!("#[test]\nfn {function}()")),
            "{name}: there is no test `{}`",
            row.test
        );
    }
    assert!(documented.is_empty(), "no such reasons: {:?}", documented.keys());
}
