//! Runs a recording: loads the programs, attaches, reads back, ends.

mod address_space;
mod error;
mod event;
mod kernel_map;
mod link;
mod live;
mod load;
mod mmap_watch;
mod rss;
mod stacks;

pub use error::RecordError;
pub use load::{Limits, LoadOptions, Programs, Purpose, TableSizes, Verification};
