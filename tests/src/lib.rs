//! Harness of the end-to-end tests: builds the targets, runs them and offheap, and compares what offheap
//! reports with what the targets know.
//!
//! * [`bpf`]: what offheap has in the kernel.
//! * [`build`]: targets from their sources in `tests/targets`.
//! * [`confined`]: offheap without the rights of root.
//! * [`lines`]: a child's output with a time limit.
//! * [`target`]: a running target and its handshake.
//! * [`tracer`]: offheap, attached or running a command, and its report.
//! * [`report`]: `offheap report --format json`.
//! * [`watch`]: `offheap watch` and its JSON.
//! * [`gate`]: `offheap check` and what it says.
//! * [`soak`]: a target under load for long runs, and [`mayhem`]: what is done to it and to offheap meanwhile.
//! * [`truth`]: what a target knows, and the exact comparison.
//! * [`require`]: what this machine must have; a skip is reported, or fails.

pub mod bpf;
pub mod build;
pub mod confined;
pub mod gate;
pub mod lines;
pub mod mayhem;
pub mod report;
pub mod require;
pub mod soak;
pub mod target;
pub mod tracer;
pub mod truth;
pub mod watch;

/// What the tests return.
pub type Result<T = ()> = anyhow::Result<T>;
