//! Tables of every version: what each holds, and what the reader makes of nonsense in any column.

use std::fs;

use rusqlite::Connection;

use super::super::fixture::{Recording, budgeted, leaky, resident, sampled, server};
use super::super::schema::tables;
use super::super::{Capture, CaptureError, CaptureWriter, Ended, FORMAT_VERSION, ProcessRow};
use crate::model::{EndReason, MemoryClass, Process, ProcessEnd, ProcessId, SiteClass};

/// [`leaky`] as the last offheap of version 1 wrote it.
const VERSION_1: &[u8] = include_bytes!("../golden/version-1.capture");
/// [`server`] as the last offheap of version 2 wrote it.
const VERSION_2: &[u8] = include_bytes!("../golden/version-2.capture");

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
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.offheap");
    fs::write(&path, VERSION_1).unwrap();
    let capture = Capture::open(&path);
    let (capture, mut now) = (capture.unwrap(), leaky().capture());
    // Reasons that were not known then.
    now.losses.truncate(capture.losses.len());
    assert_eq!(capture.losses.len(), 18);
    assert_eq!(capture.skipped_rows, 0);
    assert_eq!((&capture.header, &capture.processes), (&now.header, &now.processes));
    assert_eq!((&capture.stacks, &capture.rss), (&now.stacks, &now.rss));
    assert_eq!((&capture.series, &capture.live_ages), (&now.series, &now.live_ages));
    assert_eq!((&capture.frames, &capture.objects), (&now.frames, &now.objects));
    assert_eq!((&capture.losses, capture.finish, capture.overhead), (&now.losses, now.finish, now.overhead));
    assert!(capture.allocators.is_empty() && capture.classes.is_empty());
}

/// What version 4 added is missing in them, and nothing else.
#[test]
fn captures_of_version_3_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.offheap");
    sampled().write(&path);
    let sql = "DROP TABLE sampled_age; DROP TABLE budget; PRAGMA user_version = 3";
    Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    let (capture, now) = (Capture::open(&path).unwrap(), sampled().capture());
    assert_eq!((capture.skipped_rows, &capture.live_ages), (0, &now.live_ages));
    assert_eq!((&capture.header, &capture.series), (&now.header, &now.series));
    assert!(capture.sampled_ages.is_empty() && capture.budget.is_none());
}

#[test]
fn blocks_that_were_seen_and_budgets_are_read() {
    let (recording, capture) = (sampled(), sampled().capture());
    assert_eq!((capture.skipped_rows, &capture.sampled_ages), (0, &recording.sampled_ages));
    assert_eq!(capture.budget, None);
    let (recording, capture) = (budgeted(), budgeted().capture());
    assert_eq!((capture.skipped_rows, capture.budget), (0, recording.budget));
    assert_eq!(capture.finish.map(|finish| finish.reason), Some(EndReason::OverBudget));
    let late = budgeted().capture().since(3_000_000_000);
    assert!(late.budget.is_none(), "it is of the whole recording");
    assert!(
        late.sampled_ages.iter().all(|age| late.live_ages.iter().any(|live| live.born_ns == age.born_ns))
    );
}

#[test]
fn captures_of_version_2_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.offheap");
    fs::write(&path, VERSION_2).unwrap();
    let (capture, mut now) = (Capture::open(&path).unwrap(), server().capture());
    now.losses.truncate(capture.losses.len());
    assert!(capture.losses.len() > 18, "{}", capture.losses.len());
    assert_eq!(capture.skipped_rows, 0);
    assert_eq!((&capture.header, &capture.processes), (&now.header, &now.processes));
    assert_eq!((&capture.allocators, &capture.classes), (&now.allocators, &now.classes));
    assert_eq!((&capture.stacks, &capture.rss), (&now.stacks, &now.rss));
    assert_eq!((&capture.series, &capture.live_ages), (&now.series, &now.live_ages));
    assert_eq!((&capture.frames, &capture.objects), (&now.frames, &now.objects));
    assert_eq!((&capture.losses, capture.finish, capture.overhead), (&now.losses, now.finish, now.overhead));
    assert!(capture.ledgers.is_empty() && capture.figures.is_empty() && capture.limits.is_empty());
    assert!(capture.residents.is_empty() && capture.lifetimes.is_empty());
}

#[test]
fn a_version_has_its_own_tables_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let old = VERSION_1;
    let path = dir.path().join("mixed.offheap");
    let open = |sql: &str| {
        fs::write(&path, old).unwrap();
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        Capture::open(&path)
    };
    assert!(matches!(open("PRAGMA user_version = 2"), Err(CaptureError::Damaged { .. })));
    assert!(matches!(open("PRAGMA user_version = 3"), Err(CaptureError::Damaged { .. })));
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
fn every_hostile_value_in_every_column_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole.offheap");
    let memory = dir.path().join("memory.offheap");
    let first = dir.path().join("first.offheap");
    let second = dir.path().join("second.offheap");
    let path = dir.path().join("hostile.offheap");
    server().write(&whole);
    resident().write(&memory);
    fs::write(&first, VERSION_1).unwrap();
    fs::write(&second, VERSION_2).unwrap();
    let captures = [(1, &first), (2, &second), (FORMAT_VERSION, &whole), (FORMAT_VERSION, &memory)];
    let hostile = ["-1", "0", "4294967295", "9223372036854775807", "-9223372036854775808", "1.5"];
    let hostile = hostile.iter().chain(&["'x'", "x'ff00fe'", "CAST(x'ffc328' AS TEXT)", "NULL"]);
    let (mut tried, mut noticed) = (0, 0);
    for value in hostile {
        let tables = |(version, whole)| tables(version).map(move |(table, _)| (table, whole));
        for (table, whole) in captures.into_iter().flat_map(tables) {
            fs::copy(whole, &path).unwrap();
            let connection = Connection::open(&path).unwrap();
            connection.pragma_update(None, "synchronous", "OFF").unwrap();
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
    assert!(tried > 700 && noticed > 250, "{tried} tried, {noticed} noticed");
}
