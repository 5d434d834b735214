//! The capture file as a whole: what is written is what is read, whatever happens in between.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rusqlite::{Connection, OpenFlags};
use tracer_common::abi::SiteCounters;

use super::fixture::{Recording, blocks, leaky, server};
use super::{
    Capture, CaptureError, CaptureWriter, CreateError, Ended, FORMAT_VERSION, Finish, Overhead, ProcessRow,
};
use crate::model::{EndReason, MemoryClass, Process, ProcessEnd, ProcessId, SiteClass};

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
fn processes_allocators_and_classes_are_read() {
    let recording = server();
    let capture = recording.capture();
    assert_eq!((capture.skipped_rows, capture.header == recording.header), (0, true));
    let target = recording.header.target.clone();
    let mut processes = vec![Process { id: ProcessId(0), parent: None, target, start_ns: 0 }];
    processes.extend(recording.processes.clone());
    let found: Vec<_> = capture.processes.iter().map(|row| row.process.clone()).collect();
    assert_eq!(found, processes);
    let ends: Vec<_> =
        capture.processes.iter().map(|row| row.ended.map(|end| (end.elapsed_ns, end.how))).collect();
    let exited = Some((9_000_000_000, ProcessEnd::Exited));
    assert_eq!(ends, [None, exited, Some((7_000_000_000, ProcessEnd::Executed)), None]);
    assert_eq!(capture.allocators, recording.allocators);
    assert_eq!(capture.stacks, recording.stacks);
    assert_eq!(capture.rss, recording.rss);
    assert_eq!(capture.classes.len(), recording.classes.len());
    for class in &recording.classes {
        assert_eq!(capture.classes.get(&class.site), Some(class));
    }
}

#[test]
fn a_process_is_described_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("anew.offheap");
    let mut writer = CaptureWriter::create(&path, false, &Recording::new().header).unwrap();
    let mut target = Recording::new().header.target;
    target.comm = "renamed".into();
    target.cmdline = vec!["one".into()];
    let process = Process { id: ProcessId(0), parent: None, target, start_ns: 0 };
    writer.end_process(ProcessId(0), 5, ProcessEnd::Exited).unwrap();
    writer.add_process(&process).unwrap();
    writer.end_process(ProcessId(77), 5, ProcessEnd::Exited).unwrap();
    let class = |class| SiteClass { site: 3, class, label: None };
    writer.set_site_class(&class(MemoryClass::Unknown)).unwrap();
    writer.set_site_class(&class(MemoryClass::JitCode)).unwrap();
    writer.finish(EndReason::Duration, 9).unwrap();
    let capture = Capture::open(&path).unwrap();
    assert_eq!(capture.header.target, process.target);
    let ended = Some(Ended { how: ProcessEnd::Exited, elapsed_ns: 5 });
    assert_eq!(capture.processes, [ProcessRow { process, ended }]);
    assert_eq!(capture.classes.get(&3), Some(&class(MemoryClass::JitCode)));
}

#[test]
fn references_that_point_nowhere_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nowhere.offheap");
    let read = |sql: &str| {
        let _ = fs::remove_file(&path);
        server().write(&path);
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        Capture::open(&path).unwrap()
    };
    let capture =
        read("UPDATE process SET parent = 99 WHERE id = 1; UPDATE process SET parent = 2 WHERE id = 2");
    assert_eq!((capture.skipped_rows, capture.processes[1].process.parent), (2, None));
    let capture = read(
        "UPDATE process SET end_reason = NULL WHERE id = 1; UPDATE process SET end_reason = 'x' WHERE id = 2",
    );
    assert_eq!(
        (capture.skipped_rows, capture.processes[1].ended, capture.processes[2].ended),
        (2, None, None)
    );
    let capture = read("UPDATE stack SET allocator = 99 WHERE site = 1");
    assert_eq!((capture.skipped_rows, capture.stacks[0].allocator), (1, None));
    let capture = read("UPDATE stack SET process = 99 WHERE site = 4");
    assert_eq!((capture.skipped_rows, capture.stacks.len()), (1 + 3, 10), "its frames go with it");
    let capture = read("UPDATE site_class SET class = 'gold' WHERE site = 5");
    assert_eq!((capture.skipped_rows, capture.classes.contains_key(&5)), (1, false));
}

#[test]
fn captures_of_version_1_are_read() {
    let capture = Capture::open(Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/capture/golden/version-1.capture"
    )));
    let (capture, now) = (capture.unwrap(), leaky().capture());
    assert_eq!(capture.skipped_rows, 0);
    assert_eq!((&capture.header, &capture.processes), (&now.header, &now.processes));
    assert_eq!((&capture.stacks, &capture.rss), (&now.stacks, &now.rss));
    assert_eq!((&capture.series, &capture.live_ages), (&now.series, &now.live_ages));
    assert_eq!((&capture.frames, &capture.objects), (&now.frames, &now.objects));
    assert_eq!((&capture.losses, capture.finish, capture.overhead), (&now.losses, now.finish, now.overhead));
    assert!(capture.allocators.is_empty() && capture.classes.is_empty());
}

#[test]
fn a_version_has_its_own_tables_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let old = include_bytes!("golden/version-1.capture");
    let path = dir.path().join("mixed.offheap");
    let open = |sql: &str| {
        fs::write(&path, old).unwrap();
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        Capture::open(&path)
    };
    assert!(matches!(open("PRAGMA user_version = 2"), Err(CaptureError::Damaged { .. })));
    assert!(matches!(open("ALTER TABLE rss ADD COLUMN process INTEGER"), Err(CaptureError::Damaged { .. })));
    assert!(matches!(open("DELETE FROM target"), Err(CaptureError::Damaged { .. })));
    let capture = open("INSERT INTO target SELECT * FROM target").unwrap();
    assert_eq!((capture.skipped_rows, capture.processes.len()), (1, 1), "one target");
    let capture = open("UPDATE stack SET tgid = 1 WHERE site = 4").unwrap();
    assert_eq!(
        (capture.skipped_rows, capture.stacks.len()),
        (2, 3),
        "a stack of somebody else, and its frame"
    );
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
    assert!(error.to_string().contains("version 7") && error.to_string().contains("up to 2"), "{error}");
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
fn every_hostile_value_in_every_column_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole.offheap");
    let path = dir.path().join("hostile.offheap");
    server().write(&whole);
    let hostile = ["-1", "0", "4294967295", "9223372036854775807", "-9223372036854775808", "1.5"];
    let hostile = hostile.iter().chain(&["'x'", "x'ff00fe'", "CAST(x'ffc328' AS TEXT)", "NULL"]);
    let (mut tried, mut noticed) = (0, 0);
    for value in hostile {
        for (table, _) in super::schema::tables(FORMAT_VERSION) {
            fs::copy(&whole, &path).unwrap();
            let connection = Connection::open(&path).unwrap();
            let columns: Vec<String> = connection
                .prepare(&format!("SELECT name FROM pragma_table_info('{table}')"))
                .unwrap()
                .query_map([], |row| row.get(0))
                .unwrap()
                .map(Result::unwrap)
                .collect();
            for column in columns {
                // Refused where it would break a constraint; a key of several rows changes in one of them.
                let changed = connection
                    .execute(&format!("UPDATE OR IGNORE {table} SET {column} = {value}"), [])
                    .unwrap_or(0);
                if changed > 0 {
                    tried += 1;
                    let read = Capture::open(&path);
                    noticed += usize::from(read.map_or(true, |capture| capture.skipped_rows > 0));
                }
            }
        }
    }
    assert!(tried > 300 && noticed > 100, "{tried} tried, {noticed} noticed");
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
fn every_loss_and_stack_end_is_documented() {
    let page = include_str!("../../../docs/accuracy.md");
    for loss in tracer_common::abi::Loss::ALL {
        let section = if loss.is_incomplete() { "| loss |" } else { "| tally |" };
        let table = page.split(section).nth(1).unwrap().split("\n\n").next().unwrap();
        assert!(table.contains(&format!("| `{}` |", loss.name())), "{} is not documented", loss.name());
    }
    for end in crate::model::StackEnd::ALL {
        assert!(page.contains(&format!("| `{}` |", end.name())), "{} is not documented", end.name());
    }
}
