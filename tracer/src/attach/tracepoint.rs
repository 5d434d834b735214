//! Tracepoints through perf events, with a tracefs that is mounted nowhere.
//!
//! The number of a tracepoint stands in tracefs, which many containers and minimal systems do not mount. We make a
//! mount of our own that is attached to no directory, so that nobody else sees it, and that goes with its descriptor.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use perf_event_open_sys::{bindings, ioctls, perf_event_open};
use rustix::{
    fs::{Mode, OFlags, open, openat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

/// Why a tracepoint cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TracepointError {
    /// The numbers of the tracepoints cannot be read.
    #[error(
        "the kernel's list of tracepoints (tracefs) cannot be opened: {source}; CAP_SYS_ADMIN is needed, or tracefs \
         mounted at /sys/kernel/tracing"
    )]
    Tracefs {
        /// Cause.
        source: io::Error,
    },
    /// The kernel does not have it.
    #[error("this kernel has no tracepoint `{name}`{}", hint(name))]
    NoTracepoint {
        /// Tracepoint, with its group.
        name: &'static str,
    },
    /// What tracefs says of it could not be read.
    #[error("what tracefs says of the tracepoint `{name}` cannot be read: {source}")]
    Description {
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
}

fn hint(name: &str) -> &'static str {
    if name.starts_with("syscalls/") { ": it was built without CONFIG_FTRACE_SYSCALLS" } else { "" }
}

/// Where tracefs is mounted, if it is.
const MOUNTED: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Longest description of a tracepoint.
const MAX_DESCRIPTION_BYTES: u64 = 64 << 10;

/// The root directory of a tracefs.
pub struct Tracefs(OwnedFd);

impl Tracefs {
    /// Opens a tracefs: one of our own, or one that is mounted.
    ///
    /// # Errors
    /// [`TracepointError::Tracefs`].
    pub fn open() -> Result<Self, TracepointError> {
        detached()
            .or_else(|error| mounted().ok_or(error))
            .map(Self)
            .map_err(|source| TracepointError::Tracefs { source })
    }

    /// The number of a tracepoint, which is named with its group: `syscalls/sys_enter_mmap`.
    ///
    /// # Errors
    /// [`TracepointError::NoTracepoint`], [`TracepointError::Description`].
    pub fn id(&self, name: &'static str) -> Result<u64, TracepointError> {
        let text = self.read(name, "id")?;
        text.trim()
            .parse()
            .map_err(|_| TracepointError::Description { name, source: io::ErrorKind::InvalidData.into() })
    }

    /// Where a field stands in the record of a tracepoint, in bytes; `None` if it has no such field.
    ///
    /// # Errors
    /// [`TracepointError::NoTracepoint`], [`TracepointError::Description`].
    pub fn field_offset(&self, name: &'static str, field: &str) -> Result<Option<u32>, TracepointError> {
        Ok(offset_in(&self.read(name, "format")?, field))
    }

    fn read(&self, name: &'static str, file: &str) -> Result<String, TracepointError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => TracepointError::NoTracepoint { name },
            _ => TracepointError::Description { name, source },
        };
        let path = format!("events/{name}/{file}");
        let file = openat(&self.0, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let mut text = String::new();
        File::from(file.map_err(|errno| failed(errno.into()))?)
            .take(MAX_DESCRIPTION_BYTES)
            .read_to_string(&mut text)
            .map_err(failed)?;
        Ok(text)
    }
}

/// Finds `\tfield:u64 clone_flags;\toffset:32;\tsize:8;…`.
fn offset_in(format: &str, field: &str) -> Option<u32> {
    format.lines().find_map(|line| {
        let mut parts = line.trim().strip_prefix("field:")?.split(';');
        let declared = parts.next()?.split(' ').next_back()?;
        let name = declared.split('[').next()?;
        let offset = parts.find_map(|part| part.trim().strip_prefix("offset:"))?;
        (name == field).then(|| offset.parse().ok())?
    })
}

fn detached() -> io::Result<OwnedFd> {
    let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?)
}

fn mounted() -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    MOUNTED.into_iter().find_map(|path| {
        let root = open(path, flags, Mode::empty()).ok()?;
        // The directory is there without a mount, too.
        openat(&root, "events", flags, Mode::empty()).ok().map(|_| root)
    })
}

/// A program on a tracepoint. Dropping it takes the program off.
#[derive(Debug)]
pub struct Hook {
    _event: OwnedFd,
}

impl Hook {
    /// Attaches a program to the tracepoint with this number.
    ///
    /// One event is enough: a program on a tracepoint runs for every task on every CPU, wherever its event is
    /// (`perf_syscall_enter` in kernel/trace/trace_syscalls.c runs the programs before it looks at the events of its
    /// CPU). The event itself stays disabled, so it costs nothing.
    ///
    /// # Errors
    /// [`TracepointError::NotPermitted`], [`TracepointError::Event`].
    pub fn attach(name: &'static str, id: u64, program: BorrowedFd<'_>) -> Result<Self, TracepointError> {
        let failed = |operation| {
            let source = io::Error::last_os_error();
            match source.kind() {
                io::ErrorKind::PermissionDenied => TracepointError::NotPermitted { name },
                _ => TracepointError::Event { operation, name, source },
            }
        };
        let cpu = aya::util::online_cpus().ok().and_then(|cpus| cpus.first().copied()).unwrap_or(0);
        let mut attr = bindings::perf_event_attr {
            type_: bindings::PERF_TYPE_TRACEPOINT,
            size: u32::try_from(size_of::<bindings::perf_event_attr>()).unwrap_or(0),
            config: id,
            ..Default::default()
        };
        attr.set_disabled(1);
        let cpu = i32::try_from(cpu).unwrap_or(0);
        // SAFETY: `attr` is alive and complete.
        let fd =
            unsafe { perf_event_open(&raw mut attr, -1, cpu, -1, bindings::PERF_FLAG_FD_CLOEXEC.into()) };
        if fd < 0 {
            return Err(failed("open an event for"));
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        let program = u32::try_from(program.as_raw_fd()).unwrap_or(u32::MAX);
        // SAFETY: both descriptors are open.
        if unsafe { ioctls::SET_BPF(event.as_fd().as_raw_fd(), program) } < 0 {
            return Err(failed("attach to"));
        }
        Ok(Self { _event: event })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_names() {
        let format = "name: task_newtask\nID: 205\nformat:\n\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
                      \tfield:pid_t pid;\toffset:8;\tsize:4;\tsigned:1;\n\tfield:char comm[16];\toffset:12;\tsize:16;\n\
                      \tfield:u64 clone_flags;\toffset:32;\tsize:8;\tsigned:0;\n";
        assert_eq!(offset_in(format, "clone_flags"), Some(32));
        assert_eq!((offset_in(format, "pid"), offset_in(format, "comm")), (Some(8), Some(12)));
        assert_eq!((offset_in(format, "flags"), offset_in("field:", "x")), (None, None));
    }
}
