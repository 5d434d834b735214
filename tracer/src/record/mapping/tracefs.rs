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

use super::MappingError;

/// Where tracefs is mounted, if it is.
const MOUNTED: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The root directory of a tracefs.
pub struct Tracefs(OwnedFd);

impl Tracefs {
    /// Opens a tracefs: one of our own, or one that is mounted.
    ///
    /// # Errors
    /// [`MappingError::Tracefs`].
    pub fn open() -> Result<Self, MappingError> {
        detached()
            .or_else(|error| mounted().ok_or(error))
            .map(Self)
            .map_err(|source| MappingError::Tracefs { source })
    }

    /// The number of a tracepoint of system calls.
    ///
    /// # Errors
    /// [`MappingError::NoTracepoint`], [`MappingError::Id`].
    pub fn id(&self, name: &'static str) -> Result<u64, MappingError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => MappingError::NoTracepoint { name },
            _ => MappingError::Id { name, source },
        };
        let path = format!("events/syscalls/{name}/id");
        let file = openat(&self.0, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let mut text = String::new();
        File::from(file.map_err(|errno| failed(errno.into()))?)
            .take(32)
            .read_to_string(&mut text)
            .map_err(failed)?;
        text.trim().parse().map_err(|_| failed(io::ErrorKind::InvalidData.into()))
    }
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
    /// [`MappingError::NotPermitted`], [`MappingError::Event`].
    pub fn attach(name: &'static str, id: u64, program: BorrowedFd<'_>) -> Result<Self, MappingError> {
        let failed = |operation| {
            let source = io::Error::last_os_error();
            match source.kind() {
                io::ErrorKind::PermissionDenied => MappingError::NotPermitted { name },
                _ => MappingError::Event { operation, name, source },
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
