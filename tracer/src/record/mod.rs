//! Runs a recording: loads the programs, attaches, reads back, ends.

mod address_space;
pub mod code;
mod error;
mod event;
pub mod kernel_map;
pub mod link;
mod live;
mod load;
mod mmap_watch;
mod rss;
mod stacks;

pub use error::RecordError;
pub use load::{Limits, LoadOptions, Programs, Purpose, TableSizes, Verification};
