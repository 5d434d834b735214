//! Creates output files: for their owner alone, never through a link, never over something else.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// User and group that a new file is given to, for instance the user who called `sudo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Why an output file was not created.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CreateError {
    /// Something has that name and `force` is off.
    #[error("`{}` exists: choose another name, or overwrite it with --force", path.display())]
    Exists {
        /// What exists.
        path: PathBuf,
    },
    /// Something that is neither a file nor a link has that name; it is not replaced even by force.
    #[error("`{}` is not a regular file and is not overwritten", path.display())]
    NotAFile {
        /// What exists.
        path: PathBuf,
    },
    /// The directory does not exist.
    #[error("the directory of `{}` does not exist", path.display())]
    NoDirectory {
        /// The file.
        path: PathBuf,
    },
    /// No right to write there.
    #[error("not permitted to create `{}`: choose a directory you may write to", path.display())]
    Denied {
        /// The file.
        path: PathBuf,
    },
    /// Anything else.
    #[error("create `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl CreateError {
    fn of(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::AlreadyExists => Self::Exists { path },
            io::ErrorKind::NotFound => Self::NoDirectory { path },
            io::ErrorKind::PermissionDenied => Self::Denied { path },
            _ => Self::Io { path, source },
        }
    }
}

/// Creates `path` with mode 0600, owned by `owner` where given.
///
/// A file or link of that name is an error, or is unlinked first with `force`; what a link points at is
/// never touched. The new file is never one that somebody else prepared: it is created exclusively.
pub fn create_file(path: &Path, force: bool, owner: Option<Owner>) -> Result<File, CreateError> {
    if force {
        remove(path)?;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
        .map_err(|source| CreateError::of(path, source))?;
    if let Some(Owner { uid, gid }) = owner {
        fchown(&file, Some(uid), Some(gid)).map_err(|source| CreateError::of(path, source))?;
    }
    Ok(file)
}

/// Unlinks a regular file or a symbolic link, if there is one.
pub(super) fn remove(path: &Path) -> Result<(), CreateError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() || found.is_symlink() => {
            fs::remove_file(path).map_err(|source| CreateError::of(path, source))
        }
        Ok(_) => Err(CreateError::NotAFile { path: path.to_path_buf() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(CreateError::of(path, source)),
    }
}

/// `path` with `suffix` at its end, as SQLite names the files beside a database.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn a_new_file_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        let file = create_file(&path, false, None).unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_file_is_replaced_by_force_alone_and_is_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("old");
        let other_name = dir.path().join("hard-link");
        fs::write(&path, "precious").unwrap();
        fs::hard_link(&path, &other_name).unwrap();
        assert!(matches!(create_file(&path, false, None), Err(CreateError::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let file = create_file(&path, true, None).unwrap();
        assert_ne!(file.metadata().unwrap().ino(), fs::metadata(&other_name).unwrap().ino());
        assert_eq!(fs::read(&other_name).unwrap(), b"precious");
    }

    #[test]
    fn links_are_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        let link = dir.path().join("link");
        let dangling = dir.path().join("dangling");
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, &link).unwrap();
        symlink(dir.path().join("nowhere"), &dangling).unwrap();
        assert!(matches!(create_file(&link, false, None), Err(CreateError::Exists { .. })));
        assert!(matches!(create_file(&dangling, false, None), Err(CreateError::Exists { .. })));
        create_file(&link, true, None).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
        assert!(!dir.path().join("nowhere").exists());
    }

    #[test]
    fn directories_and_missing_directories_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(create_file(dir.path(), true, None), Err(CreateError::NotAFile { .. })));
        let nowhere = dir.path().join("no/where");
        assert!(matches!(create_file(&nowhere, false, None), Err(CreateError::NoDirectory { .. })));
    }
}
