//! The capture file: SQLite, one file, readable while and after recording.

#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct CaptureError;
