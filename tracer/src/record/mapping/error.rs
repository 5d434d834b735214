//! Why the lens on mappings is off.

use std::io;

/// Why mappings are not followed. The rest of the recording does not depend on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MappingError {
    /// The numbers of the tracepoints cannot be read.
    #[error(
        "the kernel's list of tracepoints (tracefs) cannot be opened: {source}; CAP_SYS_ADMIN is needed, or tracefs mounted at /sys/kernel/tracing"
    )]
    Tracefs {
        /// Cause.
        source: io::Error,
    },
    /// The kernel does not trace this system call.
    #[error("this kernel has no tracepoint `{name}`: it was built without CONFIG_FTRACE_SYSCALLS")]
    NoTracepoint {
        /// Tracepoint.
        name: &'static str,
    },
    /// The number of a tracepoint could not be read.
    #[error("the number of the tracepoint `{name}` cannot be read: {source}")]
    Id {
        /// Tracepoint.
        name: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The kernel does not let us use tracepoints.
    #[error("not permitted to use the tracepoint `{name}`: CAP_PERFMON is needed")]
    NotPermitted {
        /// Tracepoint.
        name: &'static str,
    },
    /// A perf event could not be opened, or took no program.
    #[error("cannot {operation} the tracepoint `{name}`: {source}")]
    Event {
        /// Operation.
        operation: &'static str,
        /// Tracepoint.
        name: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The kernel refused a program, or the object lacks it.
    #[error("the program for `{name}` cannot be used: {source}")]
    Program {
        /// Tracepoint.
        name: &'static str,
        /// Cause.
        source: Box<aya::programs::ProgramError>,
    },
    /// The kernel's types cannot be read.
    #[error("the kernel's BTF cannot be read: {source}")]
    Btf {
        /// Cause.
        source: Box<aya_obj::btf::BtfError>,
    },
    /// The object in this binary is not the one this code was written for.
    #[error("the BPF object lacks `{name}`")]
    Object {
        /// Program.
        name: &'static str,
    },
}
