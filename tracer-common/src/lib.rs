//! What the kernel side and the user side of offheap agree on.
//!
//! * [`abi`]: the layout of every map key, map value and ring-buffer record.
//! * [`func`]: the one table of allocator functions; programs, attach points, tests and docs follow it.
//! * [`cookie`]: how one row of that table travels to the kernel, as an attach cookie.
//! * [`outcome`]: the pure rule of what an entry and its return mean together.
//! * [`row`]: the 4-byte unwind row and its escape rule.
//! * [`sampling`]: which allocations are sampled, and what a sampled one stands for.
//!
//! Nothing here allocates, does I/O or depends on another crate, so that every rule can be tested on
//! the host and used as it stands inside the BPF programs.
#![no_std]
#![deny(missing_docs)]

pub mod abi;
pub mod cookie;
pub mod func;
pub mod outcome;
pub mod row;
pub mod sampling;
