//! Places probes, and takes them off again in the opposite order.

use std::{
    collections::HashSet,
    num::NonZeroU32,
    os::fd::{AsRawFd, BorrowedFd},
    path::PathBuf,
};

use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};
use tracer_common::cookie::Cookie;

use super::{
    RecordError,
    load::{Programs, Purpose, uprobe},
};
use crate::attach::AttachError;

/// Probes that are closed at the same time, a thread for each.
const MAX_CLOSING_THREADS: usize = 256;

/// Which of the programs a probe runs. The order is the order of attaching: releases first, so
/// that no release is missed of an allocation that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// A releasing function is entered.
    Release,
    /// An allocating function returns.
    Return,
    /// An allocating function that may throw is about to return: it must not have a return probe.
    Exit,
    /// An allocating function is entered.
    Entry,
}

/// A probe to place.
#[derive(Clone, Debug)]
pub struct Probe<'a> {
    /// The object, held open.
    pub object: BorrowedFd<'a>,
    /// Identity of the object, by which a probe that is placed already is recognised.
    pub object_key: (u64, u64),
    /// Path of the object, for messages.
    pub object_path: &'a str,
    /// Function, for messages.
    pub function: &'a str,
    /// Offset of the probed instruction within the object's file.
    pub file_offset: u64,
    /// Attach cookie.
    pub cookie: Cookie,
    /// What it is for.
    pub role: Role,
}

/// The probes of one process. Dropping them detaches, entries first.
#[derive(Default)]
pub struct Links {
    links: Vec<(Role, UProbeLink)>,
    placed: HashSet<(u64, u64, u64, Role)>,
}

impl Links {
    /// Places those of `probes` that are not there yet, in the order of their roles. Returns how many.
    ///
    /// # Errors
    /// [`RecordError::Attach`]; what was placed before stays until the links are dropped.
    pub fn place(
        &mut self,
        programs: &mut Programs,
        purpose: Purpose,
        tgid: NonZeroU32,
        probes: &[Probe<'_>],
    ) -> Result<usize, RecordError> {
        let mut sorted: Vec<&Probe<'_>> = probes.iter().collect();
        sorted.sort_by_key(|probe| probe.role);
        let [entry, leave, exit, release] = purpose.programs();
        let mut count = 0;
        for probe in sorted {
            if !self.placed.insert((probe.object_key.0, probe.object_key.1, probe.file_offset, probe.role)) {
                continue;
            }
            let program = uprobe(
                &mut programs.bpf,
                match probe.role {
                    Role::Release => release,
                    Role::Return => leave,
                    Role::Exit => exit,
                    Role::Entry => entry,
                },
            )?;
            // Through our own descriptor: the kernel follows the link to the very file that is mapped,
            // also if it was deleted, replaced, or lies in another mount namespace.
            let path = PathBuf::from(format!("/proc/self/fd/{}", probe.object.as_raw_fd()));
            let failed = |source| {
                if is_no_process(&source) {
                    return AttachError::NoProcess { tgid: tgid.get() }.into();
                }
                RecordError::Attach {
                    function: probe.function.to_owned(),
                    object: probe.object_path.to_owned(),
                    source: Box::new(source),
                }
            };
            let point = UProbeAttachPoint {
                location: UProbeAttachLocation::AbsoluteOffset(probe.file_offset),
                cookie: Some(probe.cookie.0),
            };
            let id = program.attach(point, path, UProbeScope::OneProcess(tgid)).map_err(failed)?;
            self.links.push((probe.role, program.take_link(id).map_err(failed)?));
            count += 1;
        }
        Ok(count)
    }

    /// Probes in place.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Takes all probes off: entries, then exits and returns, then releases. Closing one waits until no CPU can be
    /// running its program, some tenths of a second; so those of one role are closed at the same time.
    pub fn detach(&mut self) {
        Self::detach_all([self]);
    }

    /// The same for several processes at once.
    pub fn detach_all<'a>(all: impl IntoIterator<Item = &'a mut Self>) {
        let mut all: Vec<&mut Self> = all.into_iter().collect();
        for role in [Role::Entry, Role::Exit, Role::Return, Role::Release] {
            let mut closing: Vec<UProbeLink> = all
                .iter_mut()
                .flat_map(|links| links.links.extract_if(.., |(of, _)| *of == role).map(|(_, link)| link))
                .collect();
            while !closing.is_empty() {
                let rest = closing.split_off(closing.len().min(MAX_CLOSING_THREADS));
                std::thread::scope(|scope| {
                    for link in std::mem::replace(&mut closing, rest) {
                        scope.spawn(move || drop(link));
                    }
                });
            }
        }
        all.iter_mut().for_each(|links| links.placed.clear());
    }
}

/// Whether the kernel says that the process has gone meanwhile.
fn is_no_process(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|io| io.raw_os_error() == Some(libc::ESRCH)) {
            return true;
        }
        cause = error.source();
    }
    false
}

impl Drop for Links {
    fn drop(&mut self) {
        self.detach();
    }
}
