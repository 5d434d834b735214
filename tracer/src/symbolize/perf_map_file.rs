//! Where a process's perf map is, and whether it can be believed.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

use super::PerfMap;
use crate::attach::plain_file::reopen;

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
    /// The map is a directory, a device, a FIFO, a symbolic link, or another file's second name.
    #[error("`{path}` of the target is not a regular file of that name alone")]
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

/// Bytes read at one [`PerfMapSource::poll`], so that a map of hundreds of megabytes does not hold a recording
/// up; a runtime writes less than that in a second.
const POLL_BYTES: u64 = 16 << 20;
/// Bytes before the place up to which a map was read, by which a map that was written anew is recognised.
const REMEMBERED_BYTES: usize = 64;

/// An open map, and how far it was read.
#[derive(Debug)]
struct OpenMap {
    file: File,
    device: u64,
    inode: u64,
    offset: u64,
    /// What stood right before `offset`.
    before: Vec<u8>,
}

/// A process's `/tmp/perf-PID.map`, followed as it grows, and held so that it can be read after the process
/// has gone.
///
/// Code is moved and addresses are reused. So a frame is named by the map as it is at the first [`Self::poll`]
/// behind [`Self::seen`] at which the map knows it; what is written later does not change that.
#[derive(Debug)]
pub struct PerfMapSource {
    root: OwnedFd,
    path: PathBuf,
    uid: u32,
    open: Option<OpenMap>,
    map: PerfMap,
    /// Addresses of frames that have no name yet.
    pending: HashSet<u64>,
    names: HashMap<u64, Arc<str>>,
}

impl PerfMapSource {
    /// Opens the map of a process, which is named after the process id that the process itself sees
    /// (`inner_tgid`), in the root that it sees. It is no error if there is none yet: a JVM writes it on
    /// request.
    ///
    /// # Errors
    /// The root cannot be opened, or a map is there that cannot be believed.
    pub fn open(tgid: u32, inner_tgid: u32, uid: u32) -> Result<Self, PerfMapError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(format!("/proc/{tgid}/root"), flags, Mode::empty())
            .map_err(|error| PerfMapError::Root { tgid, source: error.into() })?;
        let mut source = Self {
            root,
            path: format!("/tmp/perf-{inner_tgid}.map").into(),
            uid,
            open: None,
            map: PerfMap::default(),
            pending: HashSet::new(),
            names: HashMap::new(),
        };
        source.follow()?;
        Ok(source)
    }

    /// Announces a frame in code that was made at run time, by its return address.
    pub fn seen(&mut self, address: u64) {
        if !self.names.contains_key(&address) {
            self.pending.insert(address);
        }
    }

    /// Reads what was written since the last time, at most 16 MiB, and names the frames that were announced. To be
    /// called at every tick: where nothing has changed it costs a few system calls.
    ///
    /// # Errors
    /// The map cannot be opened, believed or read. The next call tries again.
    pub fn poll(&mut self) -> Result<(), PerfMapError> {
        self.read(POLL_BYTES, false)
    }

    /// Reads all the rest, when the recording ends.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub fn finish(&mut self) -> Result<(), PerfMapError> {
        self.read(u64::MAX, true)
    }

    /// The name of the code before a return address.
    pub fn name_of(&self, address: u64) -> Option<&str> {
        self.names.get(&address).map(|name| &**name).or_else(|| self.map.find(address.saturating_sub(1)))
    }

    /// Whether there is a map at all.
    pub fn exists(&self) -> bool {
        self.open.is_some()
    }

    fn read(&mut self, max_bytes: u64, is_last: bool) -> Result<(), PerfMapError> {
        let outcome = self.follow().and_then(|()| self.read_on(max_bytes, is_last));
        let map = &self.map;
        let names = &mut self.names;
        self.pending.retain(|&address| match map.find_shared(address.saturating_sub(1)) {
            Some(name) => {
                names.insert(address, name);
                false
            }
            None => true,
        });
        outcome
    }

    /// Opens the map if there is another one than before.
    fn follow(&mut self) -> Result<(), PerfMapError> {
        let Some((file, device, inode)) = self.open_file()? else { return Ok(()) };
        if self.open.as_ref().is_some_and(|open| (open.device, open.inode) == (device, inode)) {
            return Ok(());
        }
        let file =
            reopen(file.as_fd()).map_err(|source| PerfMapError::Open { path: self.path.clone(), source })?;
        self.open = Some(OpenMap { file, device, inode, offset: 0, before: Vec::new() });
        Ok(())
    }

    fn read_on(&mut self, max_bytes: u64, is_last: bool) -> Result<(), PerfMapError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let error = |source| PerfMapError::Read { path: self.path.clone(), source };
        let size_bytes = open.file.metadata().map_err(error)?.len();
        // A JVM writes its map anew at every request. What the old one said stays where the new one says nothing.
        let mut before = vec![0; open.before.len()];
        let begin = open.offset.saturating_sub(before.len() as u64);
        if size_bytes < open.offset
            || open.file.read_exact_at(&mut before, begin).is_err()
            || before != open.before
        {
            open.offset = 0;
            open.before.clear();
        }
        if size_bytes == open.offset {
            return Ok(());
        }
        open.file.seek(SeekFrom::Start(open.offset)).map_err(error)?;
        let used =
            self.map.add(BufReader::with_capacity(1 << 16, &open.file), max_bytes, is_last).map_err(error)?;
        open.offset += used;
        open.before.resize(usize::try_from(open.offset).unwrap_or(usize::MAX).min(REMEMBERED_BYTES), 0);
        let begin = open.offset - open.before.len() as u64;
        if open.file.read_exact_at(&mut open.before, begin).is_err() {
            // It was cut short under us: the next time begins at its start.
            open.before = vec![0];
        }
        Ok(())
    }

    /// The place of the map, its device and its inode.
    fn open_file(&self) -> Result<Option<(File, u64, u64)>, PerfMapError> {
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
        // A hard link may be one to a file that only root may read.
        if !status.is_file() || status.nlink() > 1 {
            return Err(PerfMapError::NotRegular { path: self.path.clone() });
        }
        if ![self.uid, 0].contains(&status.uid()) {
            let path = self.path.clone();
            return Err(PerfMapError::NotOwned { path, owner: status.uid(), wanted: self.uid });
        }
        Ok(Some((place, status.dev(), status.ino())))
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

    /// A map that is removed at the end of a test.
    struct Map {
        path: String,
        source: PerfMapSource,
    }

    impl Map {
        fn new(test: u32) -> Self {
            let id = unused_id(test);
            Self { path: format!("/tmp/perf-{id}.map"), source: open(id).unwrap() }
        }

        fn write(&self, text: &str) {
            fs::write(&self.path, text).unwrap();
        }

        /// Names as they are after a poll.
        fn names<const N: usize>(&mut self, addresses: [u64; N]) -> [Option<&str>; N] {
            self.source.poll().unwrap();
            addresses.map(|address| self.source.name_of(address))
        }
    }

    impl Drop for Map {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.path);
        }
    }

    #[test]
    fn a_map_that_appears_later_is_read_and_survives_its_removal() {
        let mut map = Map::new(0);
        assert_eq!(map.names([0x1008]), [None]);
        assert!(!map.source.exists());
        map.write("1000 10 first\n");
        assert_eq!(map.names([0x1008]), [Some("first")]);
        map.write("1000 10 first\n2000 10 second");
        fs::remove_file(&map.path).unwrap();
        assert_eq!(map.names([0x2008]), [None], "its line has no end yet");
        map.source.finish().unwrap();
        assert_eq!(map.source.name_of(0x2008), Some("second"));
    }

    #[test]
    fn only_what_is_new_is_read() {
        let mut map = Map::new(4);
        let mut text = String::new();
        for line in 0..100u64 {
            text += &format!("{:x} 10 f{line}\n", 0x1000 + line * 0x10);
            map.write(&text);
            assert!(map.names([0x1000 + line * 0x10 + 1])[0].is_some());
            // A line that was read twice would be counted twice.
            assert_eq!(map.source.map.line_count(), line + 1);
        }
    }

    #[test]
    fn a_frame_keeps_the_name_of_its_time() {
        let mut map = Map::new(5);
        map.source.seen(0x1008);
        map.write("1000 10 early\n");
        assert_eq!(map.names([0x1008]), [Some("early")]);
        map.source.seen(0x1009);
        map.write("1000 10 early\n1000 10 late\n");
        assert_eq!(map.names([0x1008, 0x1009, 0x100a]), [Some("early"), Some("late"), Some("late")]);
        // A frame without a name keeps waiting for one.
        map.source.seen(0x3008);
        assert_eq!(map.names([0x3008]), [None]);
        map.write("1000 10 early\n1000 10 late\n3000 10 slow\n");
        assert_eq!(map.names([0x3008]), [Some("slow")]);
    }

    #[test]
    fn a_map_that_is_written_anew_is_read_from_its_start() {
        let mut map = Map::new(6);
        map.write("1000 10 one\n2000 10 two\n");
        assert_eq!(map.names([0x1008, 0x2008]), [Some("one"), Some("two")]);
        // Shorter, of the same size, longer; the first and the second in place, the third is another file.
        map.write("1000 10 eins\n");
        assert_eq!(map.names([0x1008, 0x2008]), [Some("eins"), Some("two")]);
        map.write("1000 10 neun\n");
        assert_eq!(map.names([0x1008]), [Some("neun")]);
        let other = format!("{}.new", map.path);
        fs::write(&other, "2000 10 zwei\n3000 10 drei\n").unwrap();
        fs::rename(&other, &map.path).unwrap();
        assert_eq!(map.names([0x1008, 0x2008, 0x3008]), [Some("neun"), Some("zwei"), Some("drei")]);
    }

    #[test]
    fn links_and_things_that_are_no_files_are_refused() {
        let (link, fifo) = (unused_id(1), unused_id(2));
        let (link_path, fifo_path) = (format!("/tmp/perf-{link}.map"), format!("/tmp/perf-{fifo}.map"));
        std::os::unix::fs::symlink("/etc/passwd", &link_path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &fifo_path, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        let (linked, second) = (unused_id(7), unused_id(8));
        let (linked_path, second_path) =
            (format!("/tmp/perf-{linked}.map"), format!("/tmp/perf-{second}.map"));
        fs::write(&linked_path, "1000 10 secret\n").unwrap();
        fs::hard_link(&linked_path, &second_path).unwrap();
        let errors = [open(link).unwrap_err(), open(fifo).unwrap_err(), open(second).unwrap_err()];
        fs::remove_file(linked_path).unwrap();
        fs::remove_file(second_path).unwrap();
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
