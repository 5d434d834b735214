//! `offheap watch`: does memory grow, how fast, and when does it reach the limit? From `/proc` alone, without probes.
//!
//! [`proc`] and [`limit`] read, [`Watch`] keeps who is watched and a bounded series of each, [`outlook`] judges (with
//! [`crate::trend`]), [`text`], [`json`] and [`csv`] print.

pub mod csv;
pub mod json;
pub mod outlook;
mod pace;
pub mod proc;
mod series;
pub mod text;
mod watcher;

pub use outlook::{Outlook, outlook};
pub use series::{MAX_SAMPLES, Series};
pub use watcher::{Change, LedgerSource, Program, ProgramEnd, Tick, Watch, Whom};
