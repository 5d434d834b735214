//! Why a command could not be started.

use std::io;

use super::{ExitStatus, tracee::PtraceError};

/// Errors of starting a command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// No command was given.
    #[error("no command was given: `offheap record -- COMMAND`")]
    NoCommand,
    /// An argument, or a variable, holds a zero byte.
    #[error("{what} holds a zero byte and cannot be passed to a command")]
    ZeroByte {
        /// Which.
        what: String,
    },
    /// What `sudo` says of its caller is not usable; going on as root would surprise.
    #[error("`{variable}` is `{value}`, which is no id: unset `SUDO_UID` to run the command as root")]
    Invoker {
        /// Variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// No file of that name.
    #[error("command `{command}` was not found{place}")]
    NotFound {
        /// As it was typed.
        command: String,
        /// Where it was looked for: ` in PATH` or nothing.
        place: &'static str,
    },
    /// The file is there; the interpreter or dynamic loader that it names is not.
    #[error("`{path}` names an interpreter (`#!` line or dynamic loader) that does not exist")]
    NoInterpreter {
        /// File.
        path: String,
    },
    /// The file is there, and the user has no right to run it.
    #[error(
        "not permitted to execute `{path}`: it needs execute permission (`chmod +x`) for the user it runs as"
    )]
    NotExecutable {
        /// File.
        path: String,
    },
    /// The kernel refused the file for another reason.
    #[error("cannot execute `{path}`: {source}")]
    Exec {
        /// File.
        path: String,
        /// Cause.
        source: io::Error,
    },
    /// A step that the child takes before it becomes the command.
    #[error("cannot {step} for the command: {source}")]
    Prepare {
        /// Step.
        step: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The child was ended, by a signal for instance, before it became the command.
    #[error("the command was ended before it began: {status}")]
    Ended {
        /// How.
        status: ExitStatus,
    },
    /// The kernel lets nobody trace the new process, or not us.
    #[error(
        "not permitted to trace the command: run as root, or with CAP_SYS_PTRACE (`kernel.yama.ptrace_scope`)"
    )]
    NotPermitted,
    /// Called from another thread than the one that started the command.
    #[error("the start of a command can be followed only by the thread that started it")]
    OtherThread,
    /// Another system call failed.
    #[error("cannot {operation}: {source}")]
    System {
        /// Operation and object.
        operation: &'static str,
        /// Cause.
        source: io::Error,
    },
}

impl LaunchError {
    /// The exit status that shells give such a failure: 127 for a command that is not there, 126 for one that
    /// cannot be run, `None` where the fault is not the command's.
    pub fn shell_code(&self) -> Option<i32> {
        match self {
            Self::NotFound { .. } | Self::NoInterpreter { .. } => Some(127),
            Self::NotExecutable { .. } | Self::Exec { .. } => Some(126),
            _ => None,
        }
    }

    /// For `map_err`: the operation that failed.
    pub(super) fn system(operation: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::System { operation, source }
    }
}

impl From<PtraceError> for LaunchError {
    fn from(error: PtraceError) -> Self {
        match error.source.raw_os_error() {
            Some(libc::EPERM) => Self::NotPermitted,
            _ => Self::System { operation: error.operation, source: error.source },
        }
    }
}
