//! Why an object has no symbols.

use std::io;
use std::time::Duration;

/// What stood in the way of an object's symbols. Its frames have no names then; nothing else fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SymbolizeError {
    /// The object was never announced.
    #[error("no such object was announced")]
    UnknownObject,
    /// The file could not be opened again.
    #[error("open `{path}`")]
    Open {
        /// Path as the target sees it; hostile input.
        path: String,
        /// Cause.
        source: io::Error,
    },
    /// Not a 64-bit little-endian ELF file.
    #[error("read ELF headers: {0}")]
    NotElf(object::read::Error),
    /// More sections than any linked file has.
    #[error("ELF file with {count} sections, of at most {limit}")]
    TooManySections {
        /// Sections.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// The file grew beyond what is copied into memory.
    #[error("debug information of {bytes} bytes, of at most {limit_bytes}")]
    TooLarge {
        /// Size that was asked for.
        bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// A compressed section cannot be decompressed.
    #[error("decompress a section: {0}")]
    Compressed(String),
    /// The copy in memory could not be made.
    #[error("copy the file into memory")]
    Copy(#[source] io::Error),
    /// The file was cut short after it had been opened.
    #[error("the file was truncated since it was mapped")]
    Truncated,
    /// The symbolizer refused the file.
    #[error("symbolize: {0}")]
    Refused(String),
    /// The symbolizer panicked on the file.
    #[error("symbolize: the file made the parser panic: {0}")]
    Panicked(String),
    /// The symbolizer did not come to an end.
    #[error("symbolize: no answer within {} seconds", .0.as_secs_f64())]
    TimedOut(Duration),
    /// The thread that symbolizes could not be started, or ended.
    #[error("symbolize: no worker thread")]
    NoWorker(#[source] Option<io::Error>),
}
