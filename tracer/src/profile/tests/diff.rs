//! Comparisons: two moments, a restart, a rebuild.

use super::super::{Diff, DiffRow, Match, RuleOrigin, Suppressions};
use super::*;
use crate::capture::fixture::server;
use crate::model::Lens;

fn full(recording: &Recording) -> Profile {
    profile(recording, Filter::default())
}

fn compare<'a>(before: &'a Profile, after: &'a Profile) -> Diff<'a> {
    Diff::new(before, after, &Suppressions::default())
}

/// Bytes of the change, how it was matched, and the function that asked.
fn rows<'a>(diff: &Diff<'a>) -> Vec<(i64, Match, &'a str)> {
    let name = |row: &DiffRow| {
        let (profile, site) = diff.shown(row).unwrap();
        let line = profile.stack(site).nth(site.culprit);
        line.and_then(|line| line.location.function.as_deref()).unwrap_or("")
    };
    diff.rows.iter().map(|row| (row.delta_bytes(), row.matched, name(row))).collect()
}

#[test]
fn a_capture_does_not_differ_from_itself() {
    for recording in [leaky(), server()] {
        let (before, after) = (full(&recording), full(&recording));
        let diff = compare(&before, &after);
        assert!(!diff.rows.is_empty());
        assert!(diff.rows.iter().all(|row| row.matched == Match::Exact && row.delta_bytes() == 0));
        assert!(
            diff.rows.iter().all(|row| row.before.sites == row.after.sites && row.before.sites.len() == 1)
        );
        assert!(diff.rebuilt.is_empty());
    }
}

#[test]
fn two_moments_of_one_recording() {
    let moment = |second: u64| {
        let capture = leaky().capture().at(second * 1_000_000_000).unwrap();
        Profile::new(capture, Filter::default()).unwrap()
    };
    let (before, after) = (moment(2), moment(5));
    let diff = compare(&before, &after);
    let leak = rows(&diff)[0];
    assert_eq!(
        leak,
        (3 << 20, Match::Exact, "leak_scratch(unsigned long)"),
        "256 blocks of 4096 each second"
    );
    assert_eq!((rows(&diff)[1].0, rows(&diff)[1].1), (3 << 20, Match::Alone), "the cache was filled at 3 s");
    assert_eq!(diff.delta_bytes(Lens::Malloc), 6 << 20);
    let back = compare(&after, &before);
    assert_eq!(back.delta_bytes(Lens::Malloc), -(6 << 20));
    let alone: Vec<_> = back.rows.iter().filter(|row| row.after.outstanding_count == 0).collect();
    assert_eq!(alone.len(), 1, "nobody had filled the cache yet");
}

/// The same program in another process, at other addresses.
fn restarted() -> Recording {
    let mut recording = leaky();
    recording.header.target.tgid = 999;
    for frame in &mut recording.frames {
        frame.address = frame.address.wrapping_add(0x1000_0000);
    }
    recording.tick(11, &[(1, blocks(4096, 3000, 0))], 120 * MIB);
    recording
}

#[test]
fn a_restart_is_matched_by_build_id_and_offset() {
    let (before, after) = (full(&leaky()), full(&restarted()));
    let diff = compare(&before, &after);
    assert_eq!(rows(&diff)[0], (440 * 4096, Match::Exact, "leak_scratch(unsigned long)"));
    assert!(diff.rows[1..].iter().all(|row| row.delta_bytes() == 0 && row.matched == Match::Exact));
}

#[test]
fn a_rebuild_is_matched_by_function_names() {
    let mut rebuilt = restarted();
    for object in rebuilt.objects.iter_mut().filter(|object| object.path.ends_with("addon.node")) {
        object.build_id = Some("ff00".into());
    }
    let is_moved = |path: &str| path.ends_with("addon.node") || path.contains("evil");
    let moved = rebuilt.objects.iter().filter(|object| is_moved(&object.path)).map(|object| object.id);
    let moved: Vec<_> = moved.collect();
    for frame in rebuilt.frames.iter_mut().filter(|frame| frame.object.is_some_and(|id| moved.contains(&id)))
    {
        frame.file_offset = frame.file_offset.map(|offset| offset + 0x40);
    }
    let (before, after) = (full(&leaky()), full(&rebuilt));
    let diff = compare(&before, &after);
    assert_eq!(rows(&diff)[0], (440 * 4096, Match::Names, "leak_scratch(unsigned long)"));
    assert_eq!(diff.rebuilt, ["addon.node"]);
    let nameless = diff.rows.iter().filter(|row| row.matched == Match::Alone).count();
    assert_eq!(nameless, 2, "without names and with another offset nothing says that it is the same");
}

#[test]
fn what_one_side_lacks_is_alone() {
    let (before, after) = (full(&clean()), full(&leaky()));
    let diff = compare(&before, &after);
    assert!(diff.rows.iter().all(|row| row.matched == Match::Alone && row.before.sites.is_empty()));
    assert_eq!(diff.delta_bytes(Lens::Malloc), after.totals.outstanding_bytes as i64);
}

/// One library with two functions; the second only where `both`. Offsets and build as given.
fn library(build: Option<&str>, path: &str, shift: u64, names: &[&str]) -> Recording {
    let mut recording = Recording::new();
    let object = recording.object(path, build);
    for (site, name) in (1..).zip(names) {
        let frame = recording.frame(object, 0x100 * u64::from(site) + shift, at(name, "x.c", site));
        recording.stack(site, StackEnd::ThreadStart, &[frame]);
    }
    for second in 1..=5 {
        let sample = |site| (site, blocks(10 * u64::from(site), 7, 0));
        let samples: Vec<_> = (1..=names.len() as u32).map(sample).collect();
        recording.tick(second, &samples, MIB);
    }
    recording
}

/// Where the build is the same, another offset is another call site, whatever the names.
#[test]
fn names_do_not_match_within_one_build() {
    let old = full(&library(Some("aa"), "/srv/app", 0, &["work", "work"]));
    let new = full(&library(Some("aa"), "/srv/app", 0x10, &["work", "work"]));
    let diff = compare(&old, &new);
    assert_eq!((diff.matched(Match::Alone), diff.rows.len()), (4, 4), "{:?}", diff.rows);
    let new = full(&library(Some("bb"), "/srv/app (deleted)", 0x10, &["work.part.0", "work"]));
    let diff = compare(&old, &new);
    let [row] = diff.rows.as_slice() else { panic!("{:?}", diff.rows) };
    assert_eq!((row.matched, row.before.sites.len(), row.after.sites.len()), (Match::Names, 2, 2));
    assert_eq!(diff.rebuilt, ["app"]);
}

/// Without a build id, the same offset is the same place only if the same function is there.
#[test]
fn files_without_build_ids_are_told_apart_by_their_functions() {
    let old = full(&library(None, "/srv/lib.so.1", 0, &["grow", "shrink"]));
    let same = full(&library(None, "/srv/lib.so.1", 0, &["grow", "shrink"]));
    assert_eq!(compare(&old, &same).matched(Match::Exact), 2);
    let new = full(&library(None, "/srv/lib.so.2", 0, &["other", "grow"]));
    let diff = compare(&old, &new);
    let mut found = rows(&diff);
    found.sort_unstable_by_key(|row| row.0);
    assert_eq!(
        found,
        [(-140, Match::Alone, "shrink"), (70, Match::Names, "grow"), (70, Match::Alone, "other")]
    );
}

/// What only one side has observed has not come and not gone.
#[test]
fn lenses_of_one_side_are_not_compared() {
    let (mut only_blocks, both) = (server(), full(&server()));
    only_blocks.header.settings.retain(|(name, _)| name != crate::capture::LENS_SETTING);
    only_blocks.header.settings.push((crate::capture::LENS_SETTING.to_owned(), "malloc".to_owned()));
    let before = full(&only_blocks);
    let diff = compare(&before, &both);
    assert_eq!(
        (diff.lenses.as_slice(), diff.uncompared.as_slice()),
        (&[Lens::Malloc][..], &[Lens::Mmap][..])
    );
    assert!(diff.rows.iter().all(|row| row.lens == Lens::Malloc && row.delta_bytes() == 0));
}

/// A site that a moment is too short to judge is hidden on both sides or on none.
#[test]
fn suppressions_hide_rows_and_not_sides() {
    let mut recording = Recording::new();
    let libc = recording.object("/usr/lib/libc.so.6", Some("cc33"));
    let buffer = recording.frame(libc, 0x10, at("_IO_file_doallocate", "filedoalloc.c", 77));
    let leak = recording.frame(libc, 0x20, at("work", "work.c", 1));
    recording.stack(1, StackEnd::ThreadStart, &[buffer]);
    recording.stack(2, StackEnd::ThreadStart, &[leak]);
    for second in 1..=10 {
        recording.tick(second, &[(1, blocks(4096, 1, 0)), (2, blocks(100, second, 0))], MIB);
    }
    let moment = |second: u64| {
        let capture = recording.capture().at(second * 1_000_000_000).unwrap();
        Profile::new(capture, Filter::default()).unwrap()
    };
    let (before, after) = (moment(2), moment(10));
    let diff = Diff::new(&before, &after, &Suppressions::built_in());
    assert_eq!(rows(&diff), [(800, Match::Exact, "work")]);
    let [hidden] = diff.hidden.as_slice() else { panic!("{:?}", diff.hidden) };
    assert_eq!((hidden.rows, hidden.before_bytes, hidden.after_bytes), (1, 4096, 4096));
    assert_eq!(hidden.rule.origin, RuleOrigin::BuiltIn);
    let mut rules = Suppressions::default();
    rules.add_file("leak:^work$").unwrap();
    let diff = Diff::new(&before, &after, &rules);
    assert_eq!(rows(&diff), [(0, Match::Exact, "_IO_file_doallocate")]);
    assert_eq!((diff.hidden[0].before_bytes, diff.hidden[0].after_bytes), (200, 1000));
}
