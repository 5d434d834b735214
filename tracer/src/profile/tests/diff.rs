//! Comparisons: two moments, a restart, a rebuild.

use super::super::{Diff, DiffRow, Match};
use super::*;
use crate::capture::fixture::server;
use crate::model::Lens;

fn full(recording: &Recording) -> Profile {
    profile(recording, Filter::default())
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
        let diff = Diff::new(&before, &after);
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
    let diff = Diff::new(&before, &after);
    let leak = rows(&diff)[0];
    assert_eq!(
        leak,
        (3 << 20, Match::Exact, "leak_scratch(unsigned long)"),
        "256 blocks of 4096 each second"
    );
    assert_eq!((rows(&diff)[1].0, rows(&diff)[1].1), (3 << 20, Match::Alone), "the cache was filled at 3 s");
    assert_eq!(diff.delta_bytes(Lens::Malloc), 6 << 20);
    let back = Diff::new(&after, &before);
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
    let diff = Diff::new(&before, &after);
    assert_eq!(rows(&diff)[0], (440 * 4096, Match::Exact, "leak_scratch(unsigned long)"));
    assert!(diff.rows[1..].iter().all(|row| row.delta_bytes() == 0 && row.matched == Match::Exact));
}

#[test]
fn a_rebuild_is_matched_by_function_names() {
    let mut rebuilt = restarted();
    for object in rebuilt.objects.iter_mut().filter(|object| object.path.ends_with("addon.node")) {
        object.build_id = Some("ff00".into());
    }
    for frame in &mut rebuilt.frames {
        frame.file_offset = frame.file_offset.map(|offset| offset + 0x40);
    }
    let (before, after) = (full(&leaky()), full(&rebuilt));
    let diff = Diff::new(&before, &after);
    assert_eq!(rows(&diff)[0], (440 * 4096, Match::Names, "leak_scratch(unsigned long)"));
    assert_eq!(diff.rebuilt, ["addon.node"]);
    let nameless = diff.rows.iter().filter(|row| row.matched == Match::Alone).count();
    assert_eq!(nameless, 2, "without names and with another offset nothing says that it is the same");
}

#[test]
fn what_one_side_lacks_is_alone() {
    let (before, after) = (full(&clean()), full(&leaky()));
    let diff = Diff::new(&before, &after);
    assert!(diff.rows.iter().all(|row| row.matched == Match::Alone && row.before.sites.is_empty()));
    assert_eq!(diff.delta_bytes(Lens::Malloc), after.totals.outstanding_bytes as i64);
}
