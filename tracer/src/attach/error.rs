//! Why a process cannot be traced.

use std::io;

/// Errors of the attach stage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// There is no such process.
    #[error("there is no process {tgid}: it may have exited; `pgrep NAME` finds the pid")]
    NoProcess {
        /// Process id.
        tgid: u32,
    },
    /// It has exited and waits for its parent.
    #[error("process {tgid} has exited and only waits for its parent (zombie)")]
    Zombie {
        /// Process id.
        tgid: u32,
    },
    /// A kernel thread has no user memory.
    #[error("process {tgid} (`{comm}`) is a kernel thread: it has no user memory to trace")]
    KernelThread {
        /// Process id.
        tgid: u32,
        /// Its name.
        comm: String,
    },
    /// A thread id that is not its process's id.
    #[error("{tid} is a thread of process {tgid}: trace the process, `offheap {tgid}`")]
    Thread {
        /// Thread id.
        tid: u32,
        /// Process id.
        tgid: u32,
    },
    /// Not a 64-bit program of this machine.
    #[error("process {tgid} runs `{exe}`, which is {what}: only 64-bit {} programs can be traced", crate::model::Machine::HOST.name())]
    WrongMachine {
        /// Process id.
        tgid: u32,
        /// Executable.
        exe: String,
        /// What it is.
        what: &'static str,
    },
    /// A program with a language runtime, on a machine where none has been tried.
    #[error(
        "process {tgid} runs {runtime}: on aarch64 offheap is experimental, and knows programs without a language runtime \
         only"
    )]
    UntriedRuntime {
        /// Process id.
        tgid: u32,
        /// Name of the runtime.
        runtime: String,
    },
    /// The kernel does not let us.
    #[error("not permitted to {operation}: run as root, or with {capability}")]
    NotPermitted {
        /// Operation.
        operation: String,
        /// What is needed.
        capability: &'static str,
    },
    /// The kernel is too old.
    #[error("kernel {release} is too old: offheap needs {}", super::feature::Release::NEEDED)]
    OldKernel {
        /// `uname -r`.
        release: String,
    },
    /// Something that the kernel must have is not there.
    #[error("this kernel has no {what}: {hint}")]
    Unsupported {
        /// What.
        what: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// Links for many uprobes were asked for and cannot be used.
    #[error("no uprobe_multi links: {reason}; without `--probe-kind multi` perf events are used instead")]
    NoMulti {
        /// Why.
        reason: String,
    },
    /// A return probe would kill the target.
    #[error(
        "process {tgid} has a seccomp filter, and kernel {release} kills such a process at its first return \
         probe: update the kernel (fixed in 6.12.14, 6.13.3 and 6.14), or run it without the filter"
    )]
    Seccomp {
        /// Process id.
        tgid: u32,
        /// `uname -r`.
        release: String,
    },
    /// No object of the process defines an allocator function.
    #[error(
        "no allocator was found in process {tgid} (`{comm}`): {hint}; `offheap record --lens faults` needs none: it shows \
         by call stack what becomes resident"
    )]
    NoAllocator {
        /// Process id.
        tgid: u32,
        /// Its name.
        comm: String,
        /// Why that may be.
        hint: &'static str,
    },
    /// A file that is mapped cannot be opened.
    #[error("cannot open `{path}` of process {tgid}: {source}")]
    Object {
        /// Process id.
        tgid: u32,
        /// Path as the target sees it.
        path: String,
        /// Cause.
        source: io::Error,
    },
    /// A file is larger than anything that is read.
    #[error("`{path}` has {bytes} bytes, more than the {limit} that are read")]
    TooLarge {
        /// Path as the target sees it.
        path: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A file under /proc cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Proc {
        /// Path.
        path: String,
        /// Cause.
        source: io::Error,
    },
}

impl AttachError {
    /// Reading `/proc/TGID/...` failed.
    pub(super) fn proc(tgid: u32, path: String, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => {
                Self::NotPermitted { operation: format!("read `{path}`"), capability: "CAP_SYS_PTRACE" }
            }
            // ESRCH: the process went away after the file was opened.
            io::ErrorKind::NotFound => Self::NoProcess { tgid },
            _ if source.raw_os_error() == Some(libc::ESRCH) => Self::NoProcess { tgid },
            _ => Self::Proc { path, source },
        }
    }

    /// Whether it means that the process is gone.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::NoProcess { .. } | Self::Zombie { .. })
    }
}
