//! The lens on page faults: which call stack has made resident what is resident.
//!
//! The kernel's programs note the last fault of each page; the [`book`] of a process says, by what the page tables say
//! at each look, which of them are resident. So nothing need be seen of how memory is given back.

mod advice;
mod area;
mod book;
mod chunk;
mod classes;
mod hooks;
mod lens;
mod order;
mod pagemap;
mod range;
mod resident;
mod state;
mod summary;
mod wiring;

pub use lens::FaultLens;
pub use order::Change;
pub use wiring::FaultLosses;

/// Pages that can be in the books before they are sampled: 64 GiB of growth, for 100 MB of our own memory.
pub const DEFAULT_MAX_PAGES: u32 = 1 << 24;
/// Most pages that wait in the kernel: 2 GiB of growth between two looks, for 50 MB of kernel memory.
pub const MAX_PENDING: u32 = 1 << 19;
