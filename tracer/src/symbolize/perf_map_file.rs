//! Where a process's perf map is, and whether it can be believed.

use std::fs::File;
use std::io::{self, BufReader, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

use super::PerfMap;
use super::debug_file::reopen;

/// Why a perf map is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PerfMapError {
    /// The target's root directory cannot be opened.
    #[error("open `/proc/{tgid}/root`")]
    Root {
        /// The target.
        tgid: u32,
        /// Cause.
        source: io::Error,
    },
    /// The map is there but cannot be opened: not permitted, or a symbolic link.
    #[error("open `{path}` of the target")]
    Open {
        /// Path in the target's root.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The map is a directory, a device, a FIFO.
    #[error("`{path}` of the target is not a regular file")]
    NotRegular {
        /// Path in the target's root.
        path: PathBuf,
    },
    /// Anyone can put a file into `/tmp`; only the target's own or root's counts.
    #[error("`{path}` belongs to user {owner}, neither to the target's ({wanted}) nor to root")]
    NotOwned {
        /// Path in the target's root.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The target's user.
        wanted: u32,
    },
    /// The map cannot be read.
    #[error("read `{path}` of the target")]
    Read {
        /// Path in the target's root.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// A process's `/tmp/perf-PID.map`, held so that it can be read after the process has gone.
#[derive(Debug)]
pub struct PerfMapSource {
    root: OwnedFd,
    path: PathBuf,
    uid: u32,
    file: Option<File>,
}

impl PerfMapSource {
    /// Opens the map of a process, which is named after the process id that the process itself sees
    /// (`inner_tgid`), in the root that it sees. It is no error if there is none yet: a JVM writes it on
    /// request.
    pub fn open(tgid: u32, inner_tgid: u32, uid: u32) -> Result<Self, PerfMapError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(format!("/proc/{tgid}/root"), flags, Mode::empty())
            .map_err(|error| PerfMapError::Root { tgid, source: error.into() })?;
        let mut source = Self { root, path: format!("/tmp/perf-{inner_tgid}.map").into(), uid, file: None };
        source.file = source.open_file()?;
        Ok(source)
    }

    fn open_file(&self) -> Result<Option<File>, PerfMapError> {
        let error = |source: io::Error| PerfMapError::Open { path: self.path.clone(), source };
        // /tmp itself may be a link inside the root; the map may not.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let place = match openat2(&self.root, &self.path, flags, Mode::empty(), resolve) {
            Ok(place) => File::from(place),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(error(errno.into())),
        };
        let status = place.metadata().map_err(error)?;
        if !status.is_file() {
            return Err(PerfMapError::NotRegular { path: self.path.clone() });
        }
        if ![self.uid, 0].contains(&status.uid()) {
            let path = self.path.clone();
            return Err(PerfMapError::NotOwned { path, owner: status.uid(), wanted: self.uid });
        }
        reopen(place.as_fd()).map(Some).map_err(error)
    }

    /// Reads the map as it is now; `None` if there still is none.
    pub fn read(&mut self) -> Result<Option<PerfMap>, PerfMapError> {
        if self.file.is_none() {
            self.file = self.open_file()?;
        }
        let Some(file) = &mut self.file else { return Ok(None) };
        file.seek(SeekFrom::Start(0))
            .and_then(|_| PerfMap::parse(BufReader::with_capacity(1 << 16, &*file)))
            .map(Some)
            .map_err(|source| PerfMapError::Read { path: self.path.clone(), source })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::fs;

    use super::*;

    /// A number that no process has (beyond the largest pid_max), so that no file of a real one is met.
    fn unused_id(test: u32) -> u32 {
        u32::MAX - test * 100_000 - std::process::id() % 100_000
    }

    fn open(id: u32) -> Result<PerfMapSource, PerfMapError> {
        PerfMapSource::open(std::process::id(), id, rustix::process::getuid().as_raw())
    }

    #[test]
    fn a_map_that_appears_later_is_read_and_survives_its_removal() {
        let id = unused_id(0);
        let path = format!("/tmp/perf-{id}.map");
        let mut source = open(id).unwrap();
        assert!(source.read().unwrap().is_none());
        fs::write(&path, "1000 10 first\n").unwrap();
        assert_eq!(source.read().unwrap().unwrap().find(0x1000), Some("first"));
        fs::write(&path, "1000 10 first\n2000 10 second\n").unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(source.read().unwrap().unwrap().find(0x2000), Some("second"));
    }

    #[test]
    fn links_and_things_that_are_no_files_are_refused() {
        let (link, fifo) = (unused_id(1), unused_id(2));
        let (link_path, fifo_path) = (format!("/tmp/perf-{link}.map"), format!("/tmp/perf-{fifo}.map"));
        std::os::unix::fs::symlink("/etc/passwd", &link_path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &fifo_path, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        let errors = [open(link).unwrap_err(), open(fifo).unwrap_err()];
        fs::remove_file(link_path).unwrap();
        fs::remove_file(fifo_path).unwrap();
        assert!(errors.iter().all(|error| matches!(error, PerfMapError::NotRegular { .. })), "{errors:?}");
    }

    #[test]
    fn a_map_of_another_user_is_refused() {
        let id = unused_id(3);
        let path = format!("/tmp/perf-{id}.map");
        fs::write(&path, "1000 10 planted\n").unwrap();
        let owner = fs::metadata(&path).unwrap().uid();
        let outcome = if owner == 0 {
            std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
            open(id)
        } else {
            PerfMapSource::open(std::process::id(), id, owner + 1)
        };
        fs::remove_file(&path).unwrap();
        assert!(matches!(outcome, Err(PerfMapError::NotOwned { .. })), "{outcome:?}");
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(matches!(PerfMapSource::open(u32::MAX, 1, 0), Err(PerfMapError::Root { .. })));
    }
}
