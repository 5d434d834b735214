//! Runs a recording: loads the programs, attaches, reads back, ends.

mod address_space;
mod check;
mod clock;
mod code;
mod error;
mod event;
mod kernel_map;
mod link;
mod live;
mod load;
mod mapping;
mod mmap_watch;
mod naming;
mod rss;
mod session;
mod stacks;
mod wait;

pub use check::{Attached, Comparison, validate};
pub use error::RecordError;
pub use load::{Limits, LoadOptions, Programs, Purpose, TableSizes, Verification};
pub use mapping::{BookTallies, MappingBook, MappingError, MappingHooks, SiteFacts, VmaName};
pub use session::{Outcome, Progress, RecordOptions, Session};
