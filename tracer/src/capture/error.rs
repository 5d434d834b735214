//! What can go wrong with a capture, one line each.

use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;
use thiserror::Error;

use super::CreateError;

/// Why a capture could not be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The file was not created.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Nothing has that name.
    #[error("no capture at `{}`", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// No right to read it.
    #[error("not permitted to read `{}`: it belongs to the user who recorded it", path.display())]
    Denied {
        /// The file.
        path: PathBuf,
    },
    /// Some other file.
    #[error("`{}` is not an offheap capture", path.display())]
    NotACapture {
        /// The file.
        path: PathBuf,
    },
    /// A capture that cannot be read any more.
    #[error("the capture `{}` is damaged: {detail}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        detail: String,
    },
    /// Written by an offheap that knows more.
    #[error("the capture `{}` has format version {found}, this offheap reads up to {supported}: use a newer offheap", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest one this program reads.
        supported: u32,
    },
    /// Another program keeps it locked.
    #[error("the capture `{}` is locked by another program: try again when that has closed it", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// An unfinished capture whose write-ahead log cannot be used where it is.
    #[error(
        "the unfinished capture `{0}` and its `-wal` file cannot be read together where they are: \
         copy both into a directory you may write to",
        path.display()
    )]
    Unrecovered {
        /// The file.
        path: PathBuf,
    },
    /// Reading failed.
    #[error("read the capture `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What SQLite or the system said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No space left.
    #[error("disk full while recording to `{}`: {kept}", path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// What is in the file.
        kept: String,
    },
    /// Writing failed.
    #[error("write the capture `{}`: {kept}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What is in the file.
        kept: String,
        /// What SQLite said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An earlier write failed; nothing more is written.
    #[error("the capture `{}` was given up after an error", path.display())]
    GivenUp {
        /// The file.
        path: PathBuf,
    },
}

impl CaptureError {
    /// The reader's view of a SQLite error.
    pub(super) fn reading(path: &Path, error: rusqlite::Error) -> Self {
        let path = path.to_path_buf();
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::NotACapture { path },
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged { path, detail: error.to_string() },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy { path },
            Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly) => Self::Unrecovered { path },
            Some(ErrorCode::PermissionDenied) => Self::Denied { path },
            Some(ErrorCode::SystemIoFailure | ErrorCode::OutOfMemory) => {
                Self::Read { path, source: Box::new(error) }
            }
            // The statements are ours: whatever else they stumble over is in the file.
            _ => Self::Damaged { path, detail: error.to_string() },
        }
    }

    /// The writer's view of a SQLite error.
    pub(super) fn writing(path: &Path, kept: String, error: rusqlite::Error) -> Self {
        let path = path.to_path_buf();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::DiskFull { path, kept },
            _ => Self::Write { path, kept, source: Box::new(error) },
        }
    }
}
