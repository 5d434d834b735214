//! offheap: finds native and off-heap memory leaks in a running process, from outside, with eBPF.
//!
//! The modules in the order of the data's way; each imports from those before it only:
//!
//! ```text
//! model → trend → attach → unwind → symbolize → managed → ledger → capture → record → profile → report, export → watch → cli → cmd
//! ```

pub mod model;

pub mod trend;

pub mod attach;
pub mod unwind;

pub mod symbolize;

pub mod managed;

pub mod ledger;

pub mod capture;
pub mod record;

pub mod profile;

pub mod export;
pub mod report;

pub mod watch;

pub mod cli;
pub mod cmd;

#[cfg(any(test, fuzzing))]
pub mod fuzz;
