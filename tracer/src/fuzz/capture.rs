//! Captures: a file that somebody sends, or one that is right but for some values.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};

use super::is_printable;
use crate::capture::{Capture, fixture};
use crate::export::{csv, folded, html, pprof, speedscope, svg};
use crate::profile::{By, Direction, Filter, Profile, Suppressions, TreeView};
use crate::report::{TableOptions, json_text, table};

/// Most values that are changed.
const MAX_CHANGES: usize = 24;
/// Integers at which arithmetic goes wrong.
const EXTREMES: [i64; 8] = [0, -1, 1, i64::MAX, i64::MIN, 1 << 32, i64::MAX - 1, 1 << 62];

/// A database is taken as it is; anything else is a list of changes to a good one.
pub(super) fn run(bytes: &[u8]) {
    let Some(file) = ScratchFile::new() else { return };
    if bytes.starts_with(b"SQLite") {
        if fs::write(&file.0, bytes).is_err() {
            return;
        }
    } else if change(&file.0, bytes).is_none() {
        return;
    }
    let Ok(capture) = Capture::open(&file.0) else { return };
    let filters = [
        Filter { by: By::Function, suppressions: Suppressions::built_in(), ..Filter::default() },
        Filter { min_age_ns: Some(1 << 30), top: Some(3), ..Filter::default() },
        Filter {
            tree: Some(TreeView { direction: Direction::BottomUp, least_ppm: 1000 }),
            by: By::SizeClass,
            merges_processes: true,
            ..Filter::default()
        },
    ];
    for filter in filters {
        if let Ok(profile) = Profile::new(capture.clone(), filter) {
            show(&profile);
        }
    }
}

/// Everything that is made of a profile.
fn show(profile: &Profile) {
    for width in [60, 120] {
        is_printable(&table(profile, &TableOptions { width, color: false, file: None }));
    }
    is_printable(&json_text(profile));
    let mut text = Vec::new();
    let _ = folded(profile, &mut text);
    is_printable(&String::from_utf8_lossy(&text));
    let mut sink = std::io::sink();
    let _ = (csv(profile, &mut sink), html(profile, &mut sink), pprof(profile, &mut sink));
    let _ = (speedscope(profile, &mut sink), svg(profile, &mut sink));
}

/// A file in memory, in a directory of this process alone.
struct ScratchFile(PathBuf);

impl ScratchFile {
    fn new() -> Option<Self> {
        static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let made = DIRECTORY.get_or_init(|| {
            let memory = Path::new("/dev/shm");
            let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
            let path = base.join(format!("offheap-fuzz-{}", std::process::id()));
            // An earlier process of this number may have left it.
            let _ = fs::remove_dir_all(&path);
            fs::DirBuilder::new().mode(0o700).create(&path).ok().map(|()| path)
        });
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Some(Self(made.as_ref()?.join(format!("{number}.offheap"))))
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A good capture, and the columns of its tables.
struct Base {
    file: Vec<u8>,
    columns: Vec<(String, String)>,
}

fn bases() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| {
        let recordings = [fixture::resident(), fixture::server(), fixture::leaky(), fixture::watched()];
        recordings.iter().filter_map(base_of).collect()
    })
}

fn base_of(recording: &fixture::Recording) -> Option<Base> {
    let path = ScratchFile::new()?;
    recording.write(&path.0);
    let connection = Connection::open_with_flags(&path.0, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
    let sql = "SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c WHERE t.type = 'table' ORDER BY 1, 2";
    let mut statement = connection.prepare(sql).ok()?;
    let columns = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).ok()?;
    let columns = columns.flatten().collect();
    Some(Base { file: fs::read(&path.0).ok()?, columns })
}

/// Writes a good capture with the changes that the bytes ask for: column, row, value.
fn change(path: &Path, bytes: &[u8]) -> Option<()> {
    let mut input = Input(bytes);
    let bases = bases();
    let base = bases.get(usize::from(input.byte()?) % bases.len().max(1))?;
    fs::write(path, &base.file).ok()?;
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).ok()?;
    connection.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN").ok()?;
    for _ in 0..MAX_CHANGES {
        let Some(index) = input.byte() else { break };
        let Some((table, column)) = base.columns.get(usize::from(index) % base.columns.len().max(1)) else {
            break;
        };
        let Some(row) = input.byte() else { break };
        let wanted = format!("{column} IS (SELECT {column} FROM {table} LIMIT 1 OFFSET {})", row >> 1);
        // A value that the table does not take is passed over.
        let _ = match input.value() {
            Some(value) if row & 1 == 0 => connection
                .execute(&format!("UPDATE OR IGNORE {table} SET {column} = ? WHERE {wanted}"), [value]),
            Some(value) => connection.execute(&format!("UPDATE OR IGNORE {table} SET {column} = ?"), [value]),
            None => connection.execute(&format!("DELETE FROM {table} WHERE {wanted}"), []),
        };
    }
    connection.execute_batch("COMMIT").ok()
}

/// Bytes that are taken one after the other.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn word(&mut self) -> i64 {
        (0..8).fold(0, |word, _| word << 8 | i64::from(self.byte().unwrap_or(0)))
    }

    fn take(&mut self) -> Vec<u8> {
        let length = usize::from(self.byte().unwrap_or(0)).min(self.0.len());
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken.to_vec()
    }

    /// `None`: the row is to go.
    fn value(&mut self) -> Option<Value> {
        Some(match self.byte()? % 8 {
            0 => Value::Null,
            1 => Value::Integer(self.word()),
            2 => Value::Real(f64::from_bits(self.word().cast_unsigned())),
            3 => Value::Text(String::from_utf8_lossy(&self.take()).into_owned()),
            4 => Value::Blob(self.take()),
            5 => Value::Integer(i64::from(self.byte()?)),
            6 => Value::Integer(*EXTREMES.get(usize::from(self.byte()?) % EXTREMES.len())?),
            _ => return None,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Changes arrive in the file, and an empty list leaves a good capture.
    #[test]
    fn what_is_asked_for_is_changed() {
        let file = ScratchFile::new().unwrap();
        change(&file.0, &[0]).unwrap();
        assert_eq!(Capture::open(&file.0).unwrap().skipped_rows, 0);
        let place = |(table, column): &(String, String)| table == "stack" && column == "lens";
        let index = u8::try_from(bases()[0].columns.iter().position(place).unwrap()).unwrap();
        change(&file.0, &[0, index, 1, 3, 2, b'x', b'y']).unwrap();
        let capture = Capture::open(&file.0).unwrap();
        assert!(capture.skipped_rows > 0 && capture.stacks.is_empty());
    }
}
