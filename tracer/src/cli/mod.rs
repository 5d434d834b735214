//! What the user typed, and what it resolves to.
//!
//! `args` is what can be typed (clap), `resolve` applies defaults and rules, [`plan`] is the result: plain
//! values that the commands run on.

mod args;
mod capture_name;
pub mod check;
pub mod diff;
mod message;
pub mod plan;
mod quantity;
mod resolve;
mod rss;
mod watch;

#[cfg(test)]
mod tests;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches};

pub use self::capture_name::default_capture_name;
pub use self::resolve::Environment;

use self::args::OffheapArgs;
use self::plan::Invocation;

/// Why there is nothing to run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CliError {
    /// Help or the version was asked for: goes to the standard output, exit status 0. Ends with a line end.
    #[error("{0}")]
    Help(String),
    /// What was typed cannot be done: one line for the standard error after `offheap: `, exit status 2.
    #[error("{0}")]
    Usage(String),
}

/// Understands a command line, whose first word is the program's name.
pub fn parse(
    words: impl IntoIterator<Item = OsString>,
    environment: &Environment,
) -> Result<Invocation, CliError> {
    let words: Vec<_> = words.into_iter().collect();
    let mut command = command();
    command
        .try_get_matches_from_mut(&words)
        .and_then(|matches| OffheapArgs::from_arg_matches(&matches))
        .map_err(|error| message::explain(&error, &command, &words))
        .and_then(|args| resolve::resolve(args, environment).map_err(|reason| message::usage(&reason)))
}

/// The command line's grammar, from which completions and manual pages are made.
pub fn command() -> clap::Command {
    OffheapArgs::command()
}
