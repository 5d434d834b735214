//! Opens files that a target has named, and only those that are plain files: opening a FIFO blocks, opening a device can do
//! anything, and a link of the target's would be followed with our rights.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

/// Opens a regular file below `root`, whose symbolic links cannot lead out of it, and which is not opened
/// before it is known to be a regular file.
///
/// # Errors
/// Those of the system; [`io::ErrorKind::InvalidInput`] for what is no regular file.
pub(crate) fn open_below(root: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let place = openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    reopen_plain(&File::from(place))
}

/// The same below the root directory that a process sees; `path` is as the process sees it.
pub(crate) fn open_in_root_of(tgid: u32, path: &Path) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(format!("/proc/{tgid}/root"), flags, Mode::empty())?;
    open_below(root.as_fd(), path)
}

/// Opens what a link of the kernel's (`/proc/PID/exe`, `map_files`) leads to. What is no plain file comes as a mere place,
/// which tells its status and cannot be read.
pub(crate) fn open_linked(link: &str) -> io::Result<File> {
    let place = File::from(open(link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?);
    if place.metadata()?.is_file() { reopen(place.as_fd()) } else { Ok(place) }
}

fn reopen_plain(place: &File) -> io::Result<File> {
    if !place.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    reopen(place.as_fd())
}

/// Opens the same file again, for reading and with an offset of its own.
pub(crate) fn reopen(file: BorrowedFd<'_>) -> io::Result<File> {
    File::open(fd_path(file))
}

/// A path that means this descriptor's file, wherever it was and even if it has been deleted.
pub(crate) fn fd_path(file: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read as _;

    use rustix::fs::FileType;

    use super::*;

    #[test]
    fn links_stay_below_the_root_and_only_regular_files_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let root = File::open(directory.path()).unwrap();
        std::fs::write(directory.path().join("inside"), b"inside").unwrap();
        std::os::unix::fs::symlink("/inside", directory.path().join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../../../etc/passwd", directory.path().join("escape")).unwrap();
        rustix::fs::mknodat(&root, "fifo", FileType::Fifo, Mode::RUSR, 0).unwrap();

        let mut text = String::new();
        open_below(root.as_fd(), Path::new("absolute")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        assert_eq!(
            open_below(root.as_fd(), Path::new("escape")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        for not_a_file in ["fifo", "."] {
            let error = open_below(root.as_fd(), Path::new(not_a_file)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{not_a_file}");
        }
    }

    #[test]
    fn what_is_no_plain_file_is_a_place_only() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        // This would wait for a writer if it were opened.
        let mut place = open_linked(fifo.to_str().unwrap()).unwrap();
        assert!(!place.metadata().unwrap().is_file() && place.read(&mut [0]).is_err());
        let mut head = [0; 4];
        open_linked("/proc/self/exe").unwrap().read_exact(&mut head).unwrap();
        assert_eq!(&head, b"\x7fELF");
        assert!(open_in_root_of(std::process::id(), Path::new("/proc/self/exe")).is_err(), "a magic link");
    }
}
