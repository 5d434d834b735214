//! Why there is no ledger.

use std::io;

/// Errors of the ledger.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// What heaps and stacks look like in memory is known of other machines only.
    #[error("resident memory is divided on x86-64 only, not on {machine} (experimental)")]
    UnknownMachine {
        /// Name of this machine.
        machine: &'static str,
    },
    /// There is no such process, or it has ended while it was looked at.
    #[error("there is no process {tgid}: it may have exited; `pgrep NAME` finds the pid")]
    NoProcess {
        /// Process id.
        tgid: u32,
    },
    /// A zombie or a kernel thread.
    #[error("process {tgid} has no memory: it has exited and waits for its parent, or is a kernel thread")]
    NoMemory {
        /// Process id.
        tgid: u32,
    },
    /// The process belongs to somebody else.
    #[error(
        "not permitted to read the mappings of process {tgid}: run as its owner, as root, or with CAP_SYS_PTRACE"
    )]
    NotPermitted {
        /// Process id.
        tgid: u32,
    },
    /// A file of /proc cannot be read.
    #[error("cannot read {path}")]
    Proc {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl LedgerError {
    /// What an error at a file of the process means.
    pub(super) fn of(tgid: u32, path: &str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Self::NoProcess { tgid },
            Some(libc::EACCES | libc::EPERM) => Self::NotPermitted { tgid },
            _ => Self::Proc { path: path.to_owned(), source },
        }
    }
}
