//! What can go wrong between attaching and the end of a recording.

use std::io;

/// Errors of the recording stage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The kernel refused the BPF object.
    #[error("cannot load the BPF object: {source}{}", hint(.permission))]
    Load {
        /// True if the kernel answered EPERM.
        permission: bool,
        /// Cause.
        source: aya::EbpfError,
    },
    /// The verifier or the kernel refused a program.
    #[error("the kernel refused program `{program}`: {source}")]
    Program {
        /// Program.
        program: &'static str,
        /// Cause, with the end of the verifier's log.
        source: Box<aya::programs::ProgramError>,
    },
    /// The object in this binary is not the one this code was written for.
    #[error("the BPF object lacks `{name}`: it was built from other sources; run `cargo xtask build-ebpf`")]
    Object {
        /// Map or program.
        name: &'static str,
    },
    /// A map operation failed.
    #[error("cannot {operation} BPF map `{map}`: {source}")]
    Map {
        /// Operation.
        operation: &'static str,
        /// Map.
        map: &'static str,
        /// Cause.
        source: aya::maps::MapError,
    },
    /// A system call on a map failed.
    #[error("cannot {operation} BPF map `{map}`: {source}")]
    MapCall {
        /// Operation.
        operation: &'static str,
        /// Map.
        map: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// A probe could not be placed.
    #[error("cannot attach to `{function}` in `{object}`: {source}")]
    Attach {
        /// Function.
        function: String,
        /// Object.
        object: String,
        /// Cause.
        source: Box<aya::programs::ProgramError>,
    },
    /// A perf event for the target's mappings could not be opened.
    #[error("cannot watch for new mappings on CPU {cpu}: {source}")]
    Watch {
        /// CPU.
        cpu: u32,
        /// Cause.
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {operation}: {source}")]
    System {
        /// Operation.
        operation: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// A tracepoint cannot be used.
    #[error(transparent)]
    Tracepoint(#[from] crate::attach::tracepoint::TracepointError),
    /// Finding allocators failed.
    #[error(transparent)]
    Discover(#[from] crate::attach::AttachError),
    /// Unwind tables failed.
    #[error(transparent)]
    Unwind(#[from] crate::unwind::UnwindError),
    /// The capture could not be written.
    #[error(transparent)]
    Capture(#[from] crate::capture::CaptureError),
}

impl RecordError {
    /// Whether the process is simply not there any more.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Discover(error) if error.is_absent())
    }
}

fn hint(permission: &bool) -> &'static str {
    if *permission { "; run as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE" } else { "" }
}
