//! Does a series of memory grow? Pure statistics of one series, without I/O.
//!
//! [`judge`] takes points (seconds, bytes) and gives a [`Verdict`]: a kind, the reason for it, and the figures it rests on.
//! The method is written down in `docs/verdicts.md`, with its error rates, which [`simulation`] measures
//! (`cargo xtask simulate` prints the table anew).

mod dependence;
mod floor;
mod judge;
mod kendall;
mod normal;
mod shape;
pub mod simulation;
mod slope;
#[cfg(test)]
mod tests;
mod verdict;

pub use judge::{judge, theil_sen_interval};
pub use slope::{MIN_POINTS, theil_sen};
pub use verdict::{Evidence, Floors, Kind, Reason, Verdict};

/// Points that slopes over all pairs are computed from, at most; a longer series is thinned. Bounds the cost of a
/// verdict to some milliseconds.
pub const MAX_PAIR_POINTS: usize = 300;
