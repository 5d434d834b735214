//! Runs a recording: loads the programs, attaches, reads back, ends.

mod address_space;
mod check;
mod classes;
pub(crate) mod clock;
mod code_store;
mod error;
mod event;
mod exit_watch;
mod fault;
mod follow;
mod kernel_map;
mod link;
mod live;
mod load;
mod losses;
mod mapping;
mod member;
mod memory_look;
mod mmap_watch;
mod multi;
mod naming;
mod options;
mod probe;
mod process_code;
mod rights;
mod roster;
mod rss;
mod session;
mod stacks;
pub(crate) mod wait;

pub use check::{Attached, Comparison, validate};
pub use error::RecordError;
pub use load::{Limits, LoadOptions, Programs, Purpose, TableSizes, Verification};
pub use mapping::{BookTallies, MappingBook, MappingError, MappingHooks, SiteFacts, VmaName};
pub use options::{Outcome, Progress, RecordOptions};
pub use session::Session;
