//! Opens a capture for reading, without writing anything anywhere, and makes sure that it is one.

use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{Access, access};

use super::create::beside;
use super::schema::tables;
use super::{APPLICATION_ID, CaptureError, FORMAT_VERSION};

/// Longest wait for a program that locks the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection inside a read transaction: what it sees does not change while it is recorded on.
/// And the format version of the file.
pub(super) fn open(path: &Path) -> Result<(Connection, u32), CaptureError> {
    let found = locate(path)?;
    let connection = connect(&found).map_err(|error| CaptureError::reading(path, error))?;
    let version = check_identity(path, &connection)?;
    check_tables(path, &connection, version)?;
    Ok((connection, version))
}

/// Resolves links, since SQLite looks for the log beside the file itself, and tells missing, forbidden and
/// unsuitable files apart. The file is not opened: closing it again would drop the locks of a recorder
/// in this very process.
fn locate(path: &Path) -> Result<PathBuf, CaptureError> {
    let owned = || path.to_path_buf();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => CaptureError::Missing { path: owned() },
        io::ErrorKind::PermissionDenied => CaptureError::Denied { path: owned() },
        _ => CaptureError::Read { path: owned(), source: Box::new(error) },
    };
    let found = path.canonicalize().map_err(failed)?;
    if !found.metadata().map_err(failed)?.is_file() {
        return Err(CaptureError::NotACapture { path: owned() });
    }
    access(&found, Access::READ_OK).map_err(|error| failed(error.into()))?;
    Ok(found)
}

fn connect(found: &Path) -> rusqlite::Result<Connection> {
    let mut uri = String::from("file:");
    for byte in found.as_os_str().as_bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                uri.push(char::from(*byte));
            }
            _ => {
                // Writing to a string does not fail.
                let _ = write!(uri, "%{byte:02X}");
            }
        }
    }
    // Without a log nobody is recording, and the file alone is everything. Taken as immutable it needs no
    // lock and no file beside it: finished captures and bare copies open on read-only media.
    let has_log = beside(found, "-wal").symlink_metadata().is_ok();
    uri.push_str(if has_log { "?mode=ro" } else { "?mode=ro&immutable=1" });
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let connection = Connection::open_with_flags(uri, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.execute_batch("BEGIN")?;
    Ok(connection)
}

fn check_identity(path: &Path, connection: &Connection) -> Result<u32, CaptureError> {
    let pragma = |name| {
        connection
            .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
            .map_err(|error| CaptureError::reading(path, error))
    };
    if pragma("application_id")? != i64::from(APPLICATION_ID) {
        return Err(CaptureError::NotACapture { path: path.to_path_buf() });
    }
    match u32::try_from(pragma("user_version")?) {
        Ok(version @ 1..=FORMAT_VERSION) => Ok(version),
        Ok(found @ 1..) => {
            Err(CaptureError::Newer { path: path.to_path_buf(), found, supported: FORMAT_VERSION })
        }
        _ => Err(CaptureError::Damaged { path: path.to_path_buf(), detail: "no format version".into() }),
    }
}

fn check_tables(path: &Path, connection: &Connection, version: u32) -> Result<(), CaptureError> {
    let count = |(name, sql): (&str, &str)| {
        connection.query_row(
            "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ? AND sql = ?",
            [name, sql],
            |row| row.get::<_, i64>(0),
        )
    };
    for table in tables(version) {
        if count(*table).map_err(|error| CaptureError::reading(path, error))? != 1 {
            let detail = format!("no table `{}` as defined by its version", table.0);
            return Err(CaptureError::Damaged { path: path.to_path_buf(), detail });
        }
    }
    Ok(())
}
