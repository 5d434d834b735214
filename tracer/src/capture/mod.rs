//! The capture file: SQLite, one file, readable while and after recording.
//!
//! [`CaptureWriter`] takes what `record` sees, one transaction per tick; [`Capture::open`] gives it back,
//! bounded and checked, without writing to the file or its directory. The format is described in
//! `docs/capture-format.md`. It is not the kernel ABI: the conversion from one to the other is here.

mod begin;
mod create;
mod error;
#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code))]
pub(crate) mod fixture;
mod head;
mod ledger;
mod memory;
mod moment;
mod open;
mod pace;
mod read;
mod row;
mod schema;
mod series;
mod write;

#[cfg(test)]
mod tests;

pub use create::{CreateError, Owner, create_file};
pub use error::CaptureError;
pub use moment::MomentError;
pub use read::{Budget, Capture, Ended, Finish, Overhead, ProcessRow};
pub use schema::{APPLICATION_ID, FORMAT_VERSION};
pub use series::{MAX_POINTS, Series, thinned};
pub use write::CaptureWriter;

use crate::model::Target;

/// Name of the setting that says how memory was observed: names of lenses, separated by commas. Without it,
/// allocator calls were observed, and mappings if the capture has any.
pub const LENS_SETTING: &str = "lens";

/// Name of the setting that says that allocations were sampled: mean bytes from one to the next. Then counters of allocator
/// calls are estimates. Without it, every allocation was booked.
pub const SAMPLE_SETTING: &str = "sample_bytes";

/// Name of the setting that says what tracing was allowed to cost, in millionths of the target's CPU time. Then allocations were
/// booked in windows of time, and counters of allocator calls are estimates.
pub const MAX_OVERHEAD_SETTING: &str = "max_overhead_millionths";

/// What is known when a recording begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who is traced; the first or root process where there are several.
    pub target: Target,
    /// Wall-clock start, nanoseconds since 1970 (UTC).
    pub start_realtime_ns: u64,
    /// Distance of the samples.
    pub interval_ns: u64,
    /// Settings of the recording, by name, for whoever wants to repeat it.
    pub settings: Vec<(String, String)>,
    /// `uname -r` of the recording machine.
    pub kernel_release: String,
    /// Version of offheap that recorded.
    pub offheap_version: String,
    /// `uname -m` of the recording machine.
    pub machine: String,
}
