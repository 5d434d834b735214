//! One file per subcommand: wires the stages, prints, has no logic.

pub mod calibrate;
pub mod check;
pub mod completions;
pub mod demo;
pub mod demo_target;
pub mod diff;
pub mod doctor;
pub mod export;
#[cfg(test)]
mod loss_tests;
pub mod pair_target;
pub mod record;
pub mod report;
pub mod rss;
pub mod unwind;
pub mod verify;
pub mod watch;

/// Exit status of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// Done, and the data is complete.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// Done, but data is missing: losses, an unfinished or a damaged recording.
    Incomplete = 3,
    /// `check` found a breach.
    Breach = 4,
}

impl ExitStatus {
    /// [`ExitStatus::Done`] or [`ExitStatus::Incomplete`].
    pub const fn of(is_complete: bool) -> Self {
        if is_complete { Self::Done } else { Self::Incomplete }
    }
}

impl From<ExitStatus> for std::process::ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status as u8)
    }
}
