//! Learns which of the processes have exited, by one descriptor for all of them.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::event::epoll;

/// Exits taken at a time.
const BATCH: usize = 64;

/// An epoll instance over pidfds, which are readable when their process has exited.
pub struct ExitWatch {
    epoll: OwnedFd,
}

impl AsFd for ExitWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl ExitWatch {
    /// Watches nobody yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Watches a process; closing its pidfd ends that.
    pub fn add(&self, tgid: u32, pidfd: BorrowedFd<'_>) -> io::Result<()> {
        let data = epoll::EventData::new_u64(u64::from(tgid));
        Ok(epoll::add(&self.epoll, pidfd, data, epoll::EventFlags::IN)?)
    }

    /// Those that have exited, without waiting. They are told again until their pidfd is closed.
    pub fn exited(&self) -> io::Result<Vec<u32>> {
        let mut events = Vec::with_capacity(BATCH);
        let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(events.iter().filter_map(|event| u32::try_from(event.data.u64()).ok()).collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_told_until_the_descriptor_is_closed() {
        let watch = ExitWatch::new().unwrap();
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pidfd = rustix::process::pidfd_open(
            rustix::process::Pid::from_child(&child),
            rustix::process::PidfdFlags::empty(),
        )
        .unwrap();
        watch.add(child.id(), pidfd.as_fd()).unwrap();
        assert!(watch.exited().unwrap().is_empty());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(watch.exited().unwrap(), [child.id()]);
        drop(pidfd);
        assert!(watch.exited().unwrap().is_empty());
    }
}
