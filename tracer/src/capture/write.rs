//! Writes a capture while it is recorded.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, Params, params};

use super::begin::{open, stored, write_header, write_process};
use super::create::{beside, remove};
use super::memory::Written;
use super::{Budget, CaptureError, CreateError, Header, Owner, create_file};
use crate::model::{
    Allocator, EndReason, Frame, FrameId, LiveAge, LiveSize, Location, LossTally, Object, Process,
    ProcessEnd, ProcessId, SampledAge, SiteClass, Stack,
};

/// Files that SQLite keeps beside a database while it is written.
const SIDE_FILES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// An open capture. Calls are collected in a transaction until [`CaptureWriter::commit`].
///
/// Dropped without [`CaptureWriter::finish`], it leaves a valid capture, marked unfinished, with
/// everything up to the last commit. After an error nothing more is written.
pub struct CaptureWriter {
    path: PathBuf,
    pub(super) connection: Connection,
    strings: HashMap<String, i64>,
    pub(super) written: Written,
    pub(super) elapsed_ns: u64,
    committed_ns: Option<u64>,
    gave_up: bool,
}

impl CaptureWriter {
    /// Creates the file (see [`create_file`]), its tables and the header.
    pub fn create(path: &Path, force: bool, header: &Header) -> Result<Self, CaptureError> {
        Self::create_for(path, force, None, header)
    }

    /// Like [`CaptureWriter::create`]; the file belongs to `owner`.
    pub fn create_for(
        path: &Path,
        force: bool,
        owner: Option<Owner>,
        header: &Header,
    ) -> Result<Self, CaptureError> {
        for suffix in SIDE_FILES {
            // A log that an earlier capture of this name left behind would be taken for ours.
            let side = beside(path, suffix);
            if force {
                remove(&side)?;
            } else if side.symlink_metadata().is_ok() {
                return Err(CreateError::Exists { path: side }.into());
            }
        }
        // Closed at once: closing any descriptor of a file later would drop the locks SQLite has on it.
        drop(create_file(path, force, owner)?);
        let failed = |error| CaptureError::writing(path, "nothing is recorded yet".into(), error);
        let connection = open(path).map_err(failed)?;
        write_header(&connection, header).map_err(failed)?;
        Ok(Self {
            path: path.to_path_buf(),
            connection,
            strings: HashMap::new(),
            written: Written::new(),
            elapsed_ns: 0,
            committed_ns: None,
            gave_up: false,
        })
    }

    /// Adds a file that frames lie in. An id that is there already is left as it is.
    pub fn add_object(&mut self, object: &Object) -> Result<(), CaptureError> {
        self.run(
            "INSERT OR IGNORE INTO object VALUES(?, ?, ?)",
            params![object.id.0, object.path, object.build_id],
        )
    }

    /// Says anew what a frame is, when it became known later than the frame.
    pub fn update_frame(&mut self, frame: &Frame) -> Result<(), CaptureError> {
        self.run(
            "UPDATE frame SET object = ?, file_offset = ?, kind = ? WHERE id = ?",
            params![
                frame.object.map(|object| object.0),
                frame.file_offset.map(u64::cast_signed),
                frame.kind.name(),
                frame.id.0
            ],
        )
    }

    /// Adds a frame, and its locations if it has any. An id that is there already is left as it is.
    pub fn add_frame(&mut self, frame: &Frame) -> Result<(), CaptureError> {
        self.run(
            "INSERT OR IGNORE INTO frame VALUES(?, ?, ?, ?, ?)",
            params![
                frame.id.0,
                frame.address.cast_signed(),
                frame.object.map(|object| object.0),
                frame.file_offset.map(u64::cast_signed),
                frame.kind.name()
            ],
        )?;
        if frame.locations.is_empty() { Ok(()) } else { self.set_locations(frame.id, &frame.locations) }
    }

    /// Adds a process, or says anew what is known about it; how it ended stays. The first one, with the
    /// header's target, is in the file from the begin.
    pub fn add_process(&mut self, process: &Process) -> Result<(), CaptureError> {
        self.check_usable()?;
        let done = begin(&self.connection).and_then(|()| write_process(&self.connection, process));
        self.checked(done)
    }

    /// Says that a process has ended, and how. Nothing happens for an id that was not added.
    pub fn end_process(
        &mut self,
        process: ProcessId,
        elapsed_ns: u64,
        end: ProcessEnd,
    ) -> Result<(), CaptureError> {
        self.written.forget(process);
        self.run(
            "UPDATE process SET end_ns = ?, end_reason = ? WHERE id = ?",
            params![stored(elapsed_ns), end.name(), process.0],
        )
    }

    /// Adds an allocator. An id that is there already is left as it is.
    pub fn add_allocator(&mut self, allocator: &Allocator) -> Result<(), CaptureError> {
        self.run(
            "INSERT OR IGNORE INTO allocator VALUES(?, ?, ?, ?, ?)",
            params![allocator.id.0, allocator.name, allocator.prefix, allocator.path, allocator.build_id],
        )
    }

    /// Says what the memory of a site is, in place of what was said before. Without it, it is an allocation for
    /// the lens `malloc` and unknown for the lens `mmap`.
    pub fn set_site_class(&mut self, class: &SiteClass) -> Result<(), CaptureError> {
        self.run(
            "INSERT OR REPLACE INTO site_class VALUES(?, ?, ?)",
            params![class.site, class.class.name(), class.label],
        )
    }

    /// Adds the stack of a site; its process is added before. Site numbers are unique within a capture,
    /// whatever the lens and the process.
    pub fn add_stack(&mut self, stack: &Stack) -> Result<(), CaptureError> {
        self.run(
            "INSERT OR IGNORE INTO stack VALUES(?, ?, ?, ?, ?)",
            params![
                stack.site,
                stack.process.0,
                stack.lens.name(),
                stack.allocator.map(|allocator| allocator.0),
                stack.end.name()
            ],
        )?;
        for (position, frame) in (0u32..).zip(&stack.frames) {
            self.run(
                "INSERT OR IGNORE INTO stack_frame VALUES(?, ?, ?)",
                params![stack.site, position, frame.0],
            )?;
        }
        Ok(())
    }

    /// Replaces the loss ledger.
    pub fn set_losses(&mut self, losses: &[LossTally]) -> Result<(), CaptureError> {
        self.run("DELETE FROM loss", [])?;
        for loss in losses {
            self.run(
                "INSERT INTO loss(reason, count, bytes, is_incomplete, meaning) VALUES(?, ?, ?, ?, ?)",
                params![
                    loss.reason,
                    stored(loss.count),
                    stored(loss.bytes),
                    loss.is_incomplete,
                    loss.meaning
                ],
            )?;
        }
        Ok(())
    }

    /// Replaces what is known about a frame.
    pub fn set_locations(&mut self, frame: FrameId, locations: &[Location]) -> Result<(), CaptureError> {
        self.run("DELETE FROM location WHERE frame = ?", params![frame.0])?;
        for (position, location) in (0u32..).zip(locations) {
            let function = self.intern(location.function.as_deref())?;
            let file = self.intern(location.file.as_deref())?;
            self.run(
                "INSERT INTO location VALUES(?, ?, ?, ?, ?, ?)",
                params![frame.0, position, function, file, location.line, location.inlined],
            )?;
        }
        Ok(())
    }

    /// Adds blocks that were live at the end.
    pub fn add_live_ages(&mut self, ages: &[LiveAge]) -> Result<(), CaptureError> {
        for age in ages {
            self.run(
                "INSERT INTO live_age VALUES(?, ?, ?, ?)",
                params![age.site, stored(age.born_ns), stored(age.count), stored(age.bytes)],
            )?;
        }
        Ok(())
    }

    /// Adds how many blocks that were live at the end were seen, where these stand for others.
    pub fn add_sampled_ages(&mut self, ages: &[SampledAge]) -> Result<(), CaptureError> {
        for age in ages {
            self.run(
                "INSERT INTO sampled_age VALUES(?, ?, ?)",
                params![age.site, stored(age.born_ns), stored(age.count)],
            )?;
        }
        Ok(())
    }

    /// Adds blocks of allocators that were live at the end, by size: each site and bucket once.
    pub fn add_live_sizes(&mut self, sizes: &[LiveSize]) -> Result<(), CaptureError> {
        for size in sizes {
            self.run(
                "INSERT INTO live_size VALUES(?, ?, ?, ?)",
                params![size.site, size.bucket, stored(size.count), stored(size.bytes)],
            )?;
        }
        Ok(())
    }

    /// Replaces what the tracing itself did: program runs so far, and their CPU time where it was measured.
    pub fn set_overhead(&mut self, probe_hits: u64, probe_cpu_ns: Option<u64>) -> Result<(), CaptureError> {
        self.run("DELETE FROM overhead", [])?;
        self.run("INSERT INTO overhead VALUES(?, ?)", params![stored(probe_hits), probe_cpu_ns.map(stored)])
    }

    /// Replaces what a recording with a budget has cost so far.
    pub fn set_budget(&mut self, budget: &Budget) -> Result<(), CaptureError> {
        self.run("DELETE FROM budget", [])?;
        let Budget { trap_ns, target_cpu_ns, seen_ns, window_count } = *budget;
        self.run(
            "INSERT INTO budget VALUES(?, ?, ?, ?)",
            params![trap_ns.map(stored), target_cpu_ns.map(stored), stored(seen_ns), stored(window_count)],
        )
    }

    /// Adds a sentence for the user, for instance a switch of the runtime that would name more frames.
    pub fn add_hint(&mut self, sentence: &str) -> Result<(), CaptureError> {
        self.run("INSERT INTO hint(sentence) VALUES(?)", params![sentence])
    }

    /// Ends the transaction: what was added so far survives whatever happens to this process.
    pub fn commit(&mut self) -> Result<(), CaptureError> {
        self.check_usable()?;
        if !self.connection.is_autocommit() {
            let done = self.connection.execute_batch("COMMIT");
            self.checked(done)?;
        }
        self.committed_ns = Some(self.elapsed_ns);
        Ok(())
    }

    /// Marks the recording as finished, commits, and leaves one file.
    pub fn finish(mut self, reason: EndReason, elapsed_ns: u64) -> Result<(), CaptureError> {
        self.run("INSERT INTO finish VALUES(?, ?)", params![reason.name(), stored(elapsed_ns)])?;
        self.elapsed_ns = elapsed_ns;
        self.commit()?;
        self.connection.flush_prepared_statement_cache();
        match self.connection.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(())) {
            Ok(()) => Ok(()),
            // Somebody reads at this moment. Everything is in, and the last one to close tidies up.
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => Ok(()),
            Err(error) => self.checked(Err(error)),
        }
    }

    /// Id of a string, which is stored when it is seen first.
    pub(super) fn intern(&mut self, value: Option<&str>) -> Result<Option<i64>, CaptureError> {
        let Some(value) = value else { return Ok(None) };
        if let Some(id) = self.strings.get(value) {
            return Ok(Some(*id));
        }
        self.run("INSERT INTO string(value) VALUES(?)", params![value])?;
        let id = self.connection.last_insert_rowid();
        self.strings.insert(value.to_owned(), id);
        Ok(Some(id))
    }

    fn check_usable(&self) -> Result<(), CaptureError> {
        if self.gave_up { Err(CaptureError::GivenUp { path: self.path.clone() }) } else { Ok(()) }
    }

    /// Runs a statement inside the current transaction.
    pub(super) fn run(&mut self, sql: &str, values: impl Params) -> Result<(), CaptureError> {
        self.check_usable()?;
        let done = begin(&self.connection)
            .and_then(|()| self.connection.prepare_cached(sql)?.execute(values).map(|_| ()));
        self.checked(done)
    }

    fn checked(&mut self, done: rusqlite::Result<()>) -> Result<(), CaptureError> {
        done.map_err(|error| {
            self.gave_up = true;
            if !self.connection.is_autocommit() {
                // May fail as the write did; the transaction then ends with the connection.
                let _ = self.connection.execute_batch("ROLLBACK");
            }
            CaptureError::writing(&self.path, self.kept(), error)
        })
    }

    fn kept(&self) -> String {
        match self.committed_ns {
            Some(committed_ns) => {
                let seconds = Duration::from_nanos(committed_ns).as_secs_f64();
                format!("everything up to {seconds:.1} s is kept, as an unfinished recording")
            }
            None => "nothing is recorded yet".into(),
        }
    }
}

fn begin(connection: &Connection) -> rusqlite::Result<()> {
    if connection.is_autocommit() { connection.execute_batch("BEGIN IMMEDIATE") } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::capture::Capture;
    use crate::capture::fixture::{Recording, blocks};

    #[test]
    fn a_full_disk_keeps_what_was_committed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("full.offheap");
        let mut writer = CaptureWriter::create(&path, false, &Recording::new().header).unwrap();
        let pages: u32 = writer.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        writer.connection.pragma_update_and_check(None, "max_page_count", pages + 4, |_| Ok(())).unwrap();
        let error = (1..)
            .find_map(|second: u64| {
                let samples: Vec<_> = (0..100).map(|site| (site, blocks(10, second, 0))).collect();
                let added = writer.add_samples(second * 1_000_000_000, &samples);
                added.and_then(|()| writer.commit()).err()
            })
            .unwrap();
        let kept_ns = writer.committed_ns.unwrap();
        assert!(matches!(error, CaptureError::DiskFull { .. }), "{error:?}");
        let sentence = format!("everything up to {}.0 s is kept", kept_ns / 1_000_000_000);
        assert!(error.to_string().contains(&sentence), "{error}");
        assert!(matches!(writer.commit(), Err(CaptureError::GivenUp { .. })));
        assert!(matches!(writer.finish(EndReason::Duration, 1), Err(CaptureError::GivenUp { .. })));
        let capture = Capture::open(&path).unwrap();
        assert_eq!((capture.finish, capture.skipped_rows), (None, 0));
        assert_eq!(capture.elapsed_ns(), kept_ns);
        assert_eq!(capture.series.last(99), blocks(10, kept_ns / 1_000_000_000, 0));
    }
}
