//! The capture file as a whole: what is written is what is read, whatever happens in between.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rusqlite::{Connection, OpenFlags};
use tracer_common::abi::SiteCounters;

use super::fixture::{Recording, blocks, leaky};
use super::{Capture, CaptureError, CaptureWriter, CreateError, FORMAT_VERSION, Finish, Overhead};
use crate::model::EndReason;

mod memory;
mod version;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read() {
    let recording = leaky();
    let capture = recording.capture();
    assert_eq!(capture.header, recording.header);
    assert_eq!(capture.skipped_rows, 0);
    assert_eq!(capture.finish, Some(Finish { reason: EndReason::Duration, elapsed_ns: 10_000_000_000 }));
    assert_eq!(capture.overhead, Some(Overhead { probe_hits: 12_345, probe_cpu_ns: Some(40_000_000) }));
    assert_eq!(capture.hints, recording.hints);
    assert_eq!(capture.losses, recording.losses);
    assert_eq!(capture.live_ages, recording.live_ages);
    assert_eq!(capture.live_sizes, recording.live_sizes);
    assert_eq!(capture.rss, recording.rss);
    assert_eq!(capture.objects.len(), recording.objects.len());
    for object in &recording.objects {
        assert_eq!(capture.objects.get(&object.id), Some(object));
    }
    assert_eq!(capture.frames.len(), recording.frames.len());
    for frame in &recording.frames {
        assert_eq!(capture.frames.get(&frame.id), Some(frame));
    }
    assert_eq!(capture.stacks, recording.stacks);
    assert_eq!(capture.series.tick_count, 10);
    assert_eq!(capture.series.last(1), blocks(4096, 2560, 0));
    assert_eq!(capture.series.last(2), blocks(1 << 20, 3, 0));
    assert_eq!(capture.series.last(99), SiteCounters::default());
}

#[test]
fn a_finished_capture_is_one_private_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a b%?#.offheap");
    leaky().write(&path);
    assert_eq!(names(dir.path()), ["a b%?#.offheap"]);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    Capture::open(&path).unwrap();
    assert_eq!(names(dir.path()), ["a b%?#.offheap"], "reading leaves nothing behind");
    let other = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let version: u32 = other.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, FORMAT_VERSION);
}

#[test]
fn a_capture_is_readable_while_it_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("live.offheap");
    let mut writer = CaptureWriter::create(&path, false, &Recording::new().header).unwrap();
    assert_eq!(Capture::open(&path).unwrap().series.tick_count, 0);
    writer.add_samples(1_000_000_000, &[(1, blocks(10, 1, 0))]).unwrap();
    writer.commit().unwrap();
    writer.add_samples(2_000_000_000, &[(1, blocks(10, 2, 0))]).unwrap();
    let other = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    other.execute_batch("BEGIN; SELECT count(*) FROM sample").unwrap_or(());
    let capture = Capture::open(&path).unwrap();
    assert_eq!(capture.finish, None);
    assert_eq!(capture.elapsed_ns(), 1_000_000_000);
    assert_eq!(capture.series.last(1), blocks(10, 1, 0), "what is not committed is not seen");
    writer.commit().unwrap();
    assert_eq!(Capture::open(&path).unwrap().series.last(1), blocks(10, 2, 0));
    drop(other);
    writer.finish(EndReason::Interrupted, 2_500_000_000).unwrap();
    let capture = Capture::open(&path).unwrap();
    assert_eq!(capture.finish, Some(Finish { reason: EndReason::Interrupted, elapsed_ns: 2_500_000_000 }));
    assert_eq!(names(dir.path()), ["live.offheap"]);
}

#[test]
fn a_reader_does_not_hinder_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("read.offheap");
    let mut writer = CaptureWriter::create(&path, false, &Recording::new().header).unwrap();
    writer.add_samples(1, &[(1, blocks(10, 1, 0))]).unwrap();
    writer.commit().unwrap();
    let other = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    other.execute_batch("BEGIN").unwrap();
    let count: i64 = other.query_row("SELECT count(*) FROM tick", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 1);
    writer.finish(EndReason::Duration, 2).unwrap();
    let capture = Capture::open(&path).unwrap();
    assert!(capture.finish.is_some());
    assert_eq!(capture.series.last(1), blocks(10, 1, 0));
}

const CHILD: &str = "OFFHEAP_TEST_KILLED_RECORDER";

/// Not a test of its own: the recorder that `a_killed_recorder_leaves_what_it_committed` kills.
#[test]
fn killed_recorder() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let mut writer = CaptureWriter::create(Path::new(&path), false, &Recording::new().header).unwrap();
    for second in 1..=5 {
        writer.add_samples(second * 1_000_000_000, &[(1, blocks(10, second, 0))]).unwrap();
        writer.commit().unwrap();
    }
    // Larger than SQLite's cache, so that a part of it is already in the log when the end comes.
    for second in 6..=60_000 {
        writer.add_samples(second * 1_000_000_000, &[(1, blocks(10, second, 0))]).unwrap();
    }
    println!("{CHILD} ready");
    std::io::stdin().read_exact(&mut [0]).unwrap();
}

#[test]
fn a_killed_recorder_leaves_what_it_committed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("killed.offheap");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "capture::tests::killed_recorder", "--nocapture"])
        .env(CHILD, &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("ready")), "the recorder ended early");
    child.kill().unwrap();
    child.wait().unwrap();
    let left = names(dir.path());
    assert!(left.contains(&"killed.offheap-wal".to_string()), "{left:?}");

    let capture = Capture::open(&path).unwrap();
    assert_eq!((capture.finish, capture.skipped_rows), (None, 0));
    assert_eq!((capture.series.tick_count, capture.series.last(1)), (5, blocks(10, 5, 0)));
    assert_eq!(names(dir.path()), left, "reading changes nothing");

    let alone = dir.path().join("alone.offheap");
    fs::copy(&path, &alone).unwrap();
    let capture = Capture::open(&alone).unwrap();
    assert_eq!(capture.series.last(1), blocks(10, 5, 0), "the file is as good without its log");
}

#[test]
fn a_name_that_is_taken_is_refused_also_for_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("taken.offheap");
    let header = Recording::new().header;
    fs::write(dir.path().join("taken.offheap-wal"), "left over").unwrap();
    let refused = CaptureWriter::create(&path, false, &header).err().unwrap();
    assert!(matches!(refused, CaptureError::Create(CreateError::Exists { .. })), "{refused}");
    assert!(!path.exists());
    fs::write(&path, "precious").unwrap();
    assert!(CaptureWriter::create(&path, false, &header).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    CaptureWriter::create(&path, true, &header).unwrap().finish(EndReason::Duration, 1).unwrap();
    assert_eq!(names(dir.path()), ["taken.offheap"]);
    Capture::open(&path).unwrap();
}

#[test]
fn missing_and_unsuitable_files_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let open = |path: &Path| Capture::open(path).err().unwrap();
    assert!(matches!(open(&path), CaptureError::Missing { .. }));
    assert!(matches!(open(dir.path()), CaptureError::NotACapture { .. }));
    fs::write(&path, "").unwrap();
    assert!(matches!(open(&path), CaptureError::NotACapture { .. }));
    fs::write(&path, "main;foo 12\n".repeat(1000)).unwrap();
    assert!(matches!(open(&path), CaptureError::NotACapture { .. }));
    fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
    assert!(matches!(open(&path), CaptureError::NotACapture { .. }));
}

#[test]
fn a_forbidden_file_is_denied() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret.offheap");
    leaky().write(&path);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    let error = std::thread::spawn(move || {
        if rustix::process::geteuid().is_root() {
            // SAFETY: plain system call; unlike the C library's wrapper it changes this thread only.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
            assert_eq!(changed, 0);
        }
        Capture::open(&path).err().unwrap()
    })
    .join()
    .unwrap();
    assert!(matches!(error, CaptureError::Denied { .. }), "{error}");
}

#[test]
fn a_newer_version_names_both() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.offheap");
    leaky().write(&path);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 7).unwrap();
    let error = Capture::open(&path).err().unwrap();
    assert!(matches!(error, CaptureError::Newer { found: 7, supported: FORMAT_VERSION, .. }));
    assert!(error.to_string().contains("version 7") && error.to_string().contains("up to 4"), "{error}");
}

#[test]
fn damage_is_an_error_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole.offheap");
    leaky().write(&whole);
    let damaged = |change: &dyn Fn(&Path)| {
        let path = dir.path().join("damaged.offheap");
        fs::copy(&whole, &path).unwrap();
        change(&path);
        let error = Capture::open(&path).err().unwrap();
        assert!(matches!(error, CaptureError::Damaged { .. }), "{error:?}");
    };
    let sql =
        |sql: &'static str| move |path: &Path| Connection::open(path).unwrap().execute_batch(sql).unwrap();
    damaged(&|path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    });
    damaged(&sql("DROP TABLE stack"));
    damaged(&sql("DELETE FROM process"));
    damaged(&sql("PRAGMA user_version = 0"));
    // A view could make the reader compute for ever.
    damaged(&sql("DROP TABLE finish; CREATE VIEW finish AS WITH RECURSIVE n(reason, elapsed_ns) AS \
         (SELECT 'x', 1 UNION ALL SELECT reason, elapsed_ns + 1 FROM n) SELECT * FROM n"));
}

#[test]
fn a_locked_capture_is_busy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("locked.offheap");
    let writer = CaptureWriter::create(&path, false, &Recording::new().header).unwrap();
    drop(writer);
    let other = Connection::open(&path).unwrap();
    other
        .execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; BEGIN; INSERT INTO tick(elapsed_ns) VALUES(1); COMMIT",
        )
        .unwrap();
    let error = Capture::open(&path).err().unwrap();
    assert!(matches!(error, CaptureError::Busy { .. }), "{error:?}");
}

#[test]
fn the_documented_query_works() {
    let page = include_str!("../../../docs/capture-format.md");
    let sql = page.split("```sql").nth(1).unwrap().split("```").next().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sql.offheap");
    leaky().write(&path);
    let connection = Connection::open(&path).unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    let rows: Vec<(i64, i64, Option<String>)> = rows.map(Result::unwrap).collect();
    assert_eq!(rows.len(), 5);
    assert_eq!(rows[0], (2560 * 4096, 2560, Some("leak_scratch(unsigned long)".into())));
    for (table, _) in super::schema::tables(FORMAT_VERSION) {
        assert!(page.contains(&format!("| `{table}` |")), "{table} is not documented");
    }
}

#[test]
fn every_stack_end_is_documented() {
    let page = include_str!("../../../docs/accuracy.md");
    for end in crate::model::StackEnd::ALL {
        assert!(page.contains(&format!("| `{}` |", end.name())), "{} is not documented", end.name());
    }
}
