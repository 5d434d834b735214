//! The lens on mappings: which call site has mapped what is mapped.
//!
//! The kernel's programs send one record per system call that maps or unmaps ([`hooks`] attaches them); the
//! [`MappingBook`] of the process keeps the ranges and counts them by site. There is one book per process.
//!
//! [`hooks`]: MappingHooks

mod audit;
mod book;
mod error;
mod facts;
mod hooks;
mod ledger;
mod look;
mod ranges;
#[cfg(test)]
mod tests;

pub use book::{BookTallies, MappingBook};
pub use error::MappingError;
pub use facts::{SiteFacts, VmaName};
pub use hooks::MappingHooks;

/// Where the break of a process is: the end of its `[heap]`, or where that will begin. `None` if the process is gone.
pub fn read_break(tgid: u32) -> Option<u64> {
    let heap = crate::attach::maps::read(tgid).ok()?.into_iter().rev().find(|entry| entry.name == b"[heap]");
    if let Some(heap) = heap {
        return Some(heap.end);
    }
    let process = procfs::process::Process::new(i32::try_from(tgid).ok()?).ok()?;
    process.stat().ok()?.start_brk.filter(|address| *address > 0)
}
