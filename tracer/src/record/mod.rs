//! Runs a recording: loads the programs, attaches, reads back, ends.

mod error;
mod event;
mod kernel_map;
mod load;
mod mmap_watch;

pub use error::RecordError;
pub use load::{Limits, LoadOptions, Programs, Purpose, TableSizes, Verification};
