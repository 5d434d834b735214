//! Begins a capture: the connection, the tables, the header, the processes.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};

use super::schema::tables;
use super::{APPLICATION_ID, FORMAT_VERSION, Header};
use crate::model::{Process, ProcessId};

/// Longest wait for a reader that locks the file at the end.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// SQLite's integers have a sign; counters that large do not occur.
pub(super) fn stored(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The connection of a recorder to the empty file that it has created.
pub(super) fn open(path: &Path) -> rusqlite::Result<Connection> {
    // SQLITE_OPEN_NOFOLLOW refuses a link in any directory of the path too: resolve those first.
    let absolute = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            parent.canonicalize().map_or_else(|_| path.to_path_buf(), |parent| parent.join(name))
        }
        _ => path.to_path_buf(),
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let connection = Connection::open_with_flags(absolute, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// Tables and header go into the file itself, before the write-ahead log is switched on: so the file
/// alone is a capture from its first commit.
pub(super) fn write_header(connection: &Connection, header: &Header) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "user_version", FORMAT_VERSION)?;
    for (_, sql) in tables(FORMAT_VERSION) {
        connection.execute_batch(sql)?;
    }
    connection.execute(
        "INSERT INTO recording VALUES(?, ?, ?, ?, ?)",
        params![
            stored(header.start_realtime_ns),
            stored(header.interval_ns),
            header.kernel_release,
            header.offheap_version,
            header.machine
        ],
    )?;
    let target = header.target.clone();
    write_process(connection, &Process { id: ProcessId(0), parent: None, target, start_ns: 0 })?;
    for (name, value) in &header.settings {
        connection.execute("INSERT INTO setting(name, value) VALUES(?, ?)", params![name, value])?;
    }
    connection.execute_batch("COMMIT")?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    // Every commit goes on into the file, so that it is nearly complete even without its log.
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 1, |_| Ok(()))
}

/// Writes a process and its command line, in place of what was written before; how it ended stays.
pub(super) fn write_process(connection: &Connection, process: &Process) -> rusqlite::Result<()> {
    let (target, id) = (&process.target, process.id.0);
    let runtime = target.runtime.as_ref();
    connection
        .prepare_cached(
            "INSERT INTO process VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL) ON CONFLICT(id) DO UPDATE SET \
             parent = excluded.parent, tgid = excluded.tgid, inner_tgid = excluded.inner_tgid, \
             comm = excluded.comm, exe = excluded.exe, runtime_name = excluded.runtime_name, \
             runtime_version = excluded.runtime_version, start_ns = excluded.start_ns",
        )?
        .execute(params![
            id,
            process.parent.map(|parent| parent.0),
            target.tgid,
            target.inner_tgid,
            target.comm,
            target.exe,
            runtime.map(|runtime| &runtime.name),
            runtime.and_then(|runtime| runtime.version.as_ref()),
            stored(process.start_ns)
        ])?;
    connection.prepare_cached("DELETE FROM process_argument WHERE process = ?")?.execute([id])?;
    let mut insert = connection.prepare_cached("INSERT INTO process_argument VALUES(?, ?, ?)")?;
    for (position, argument) in (0u32..).zip(&target.cmdline) {
        insert.execute(params![id, position, argument])?;
    }
    Ok(())
}
