//! Places probes, and takes them off again in the opposite order.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    num::NonZeroU32,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use aya::{
    programs::{
        ProgramError,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
    sys::SyscallError,
};
use tracer_common::{cookie::Cookie, outcome};

use super::{
    RecordError,
    load::{Programs, Purpose, uprobe},
};
use crate::attach::{
    AttachError,
    uprobe_multi::{self, Places},
};

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

impl Role {
    /// The program that runs there.
    const fn program(self, purpose: Purpose) -> &'static str {
        let [entry, leave, exit, release] = purpose.programs();
        match self {
            Self::Release => release,
            Self::Return => leave,
            Self::Exit => exit,
            Self::Entry => entry,
        }
    }
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

impl Probe<'_> {
    /// Whether it stays between windows: it sees releases. Those of functions that resize do.
    pub fn stays(&self) -> bool {
        self.role == Role::Release || outcome::resizes(self.cookie.shape())
    }
}

/// What holds probes in their places; closing it takes them off.
enum Hold {
    /// One probe, by a perf event.
    Perf { _link: UProbeLink },
    /// Many of one file.
    Multi { _link: OwnedFd, probes: usize },
}

impl Hold {
    const fn probes(&self) -> usize {
        match self {
            Self::Perf { .. } => 1,
            Self::Multi { probes, .. } => *probes,
        }
    }
}

/// What makes a place: the object, the offset within it, and what is there.
type PlaceKey = ((u64, u64), u64, Role);

/// Probes that go together.
struct Held {
    role: Role,
    /// Whether they stay between windows: they see releases.
    stays: bool,
    places: Vec<PlaceKey>,
    hold: Hold,
}

/// The probes of one process. Dropping them detaches, entries first.
#[derive(Default)]
pub struct Links {
    holds: Vec<Held>,
    placed: HashSet<PlaceKey>,
}

/// Probes that nobody owns any more: dropping them takes them off, which takes the kernel some tenths of a second.
pub struct Retired(Vec<Held>);

impl Drop for Retired {
    fn drop(&mut self) {
        close_by_role(&mut self.0);
    }
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
        let mut groups = BTreeMap::<_, Vec<&Probe<'_>>>::new();
        for probe in probes {
            if self.placed.insert(key(probe)) {
                groups.entry(order(probe)).or_default().push(probe);
            }
        }
        let before = self.len();
        for ((role, leaves, _), group) in groups {
            let stays = !leaves;
            programs.load_probe(role.program(purpose))?;
            if programs.multi.is_some() {
                let hold = place_group(programs, purpose, tgid, role, &group)?;
                let places = group.into_iter().map(key).collect();
                self.holds.push(Held { role, stays, places, hold });
            } else {
                for probe in group {
                    let hold = place_one(programs, purpose, tgid, probe)?;
                    self.holds.push(Held { role, stays, places: vec![key(probe)], hold });
                }
            }
        }
        Ok(self.len() - before)
    }

    /// Probes in place.
    pub fn len(&self) -> usize {
        self.holds.iter().map(|held| held.hold.probes()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.holds.is_empty()
    }

    /// Takes all probes off: entries, then exits and returns, then releases. Closing one waits until no CPU can be
    /// running its program, some tenths of a second; so those of one role are closed at the same time.
    pub fn detach(&mut self) {
        Self::detach_all([self]);
    }

    /// Takes out the probes that see allocations only: they can be placed again. They are off when the result is dropped.
    pub fn retire_allocations(&mut self) -> Retired {
        let retired: Vec<Held> = self.holds.extract_if(.., |held| !held.stays).collect();
        retired.iter().flat_map(|held| &held.places).for_each(|place| {
            self.placed.remove(place);
        });
        Retired(retired)
    }

    /// The same for several processes at once.
    pub fn detach_all<'a>(all: impl IntoIterator<Item = &'a mut Self>) {
        let mut all: Vec<&mut Self> = all.into_iter().collect();
        let mut holds: Vec<Held> = all.iter_mut().flat_map(|links| links.holds.drain(..)).collect();
        close_by_role(&mut holds);
        all.iter_mut().for_each(|links| links.placed.clear());
    }
}

/// Closes probes: entries, then exits and returns, then releases; those of one role at the same time.
fn close_by_role(holds: &mut Vec<Held>) {
    for role in [Role::Entry, Role::Exit, Role::Return, Role::Release] {
        let mut closing: Vec<Held> = holds.extract_if(.., |held| held.role == role).collect();
        while !closing.is_empty() {
            let rest = closing.split_off(closing.len().min(MAX_CLOSING_THREADS));
            std::thread::scope(|scope| {
                for held in std::mem::replace(&mut closing, rest) {
                    scope.spawn(move || drop(held.hold));
                }
            });
        }
    }
}

/// In which order probes are placed: by role, and within a role those first that release a block and return another. The other
/// way round, a block of `malloc` could go by a `realloc` whose probe is a moment late, and its address would be given out again
/// while it is still booked. Then by object.
fn order(probe: &Probe<'_>) -> (Role, bool, (u64, u64)) {
    (probe.role, !probe.stays(), probe.object_key)
}

fn key(probe: &Probe<'_>) -> PlaceKey {
    (probe.object_key, probe.file_offset, probe.role)
}

/// Places a probe by a perf event.
fn place_one(
    programs: &mut Programs,
    purpose: Purpose,
    tgid: NonZeroU32,
    probe: &Probe<'_>,
) -> Result<Hold, RecordError> {
    let program = uprobe(&mut programs.bpf, probe.role.program(purpose))?;
    // Through our own descriptor: the kernel follows the link to the very file that is mapped,
    // also if it was deleted, replaced, or lies in another mount namespace.
    let path = PathBuf::from(format!("/proc/self/fd/{}", probe.object.as_raw_fd()));
    let failed = |source| refused(tgid, probe, source);
    let point = UProbeAttachPoint {
        location: UProbeAttachLocation::AbsoluteOffset(probe.file_offset),
        cookie: Some(probe.cookie.0),
    };
    let id = program.attach(point, path, UProbeScope::OneProcess(tgid)).map_err(failed)?;
    Ok(Hold::Perf { _link: program.take_link(id).map_err(failed)? })
}

/// Places the probes of one role in one object by one link. If the kernel refuses them, it does not say which: then they are
/// tried one by one, so that the function can be named. (Perf events would be refused at the same place by the same code,
/// `uprobe_register` in kernel/events/uprobes.c.)
fn place_group(
    programs: &Programs,
    purpose: Purpose,
    tgid: NonZeroU32,
    role: Role,
    group: &[&Probe<'_>],
) -> Result<Hold, RecordError> {
    let name = role.program(purpose);
    let program = programs.multi.as_ref().and_then(|programs| programs.get(name));
    let program = program.ok_or(RecordError::Object { name })?;
    let [first, ..] = group else { return Err(RecordError::Object { name }) };
    let link = |probes: &[&Probe<'_>]| {
        let offsets: Vec<u64> = probes.iter().map(|probe| probe.file_offset).collect();
        let cookies: Vec<u64> = probes.iter().map(|probe| probe.cookie.0).collect();
        let places = Places {
            file: first.object,
            tgid: tgid.get(),
            at_return: role == Role::Return,
            offsets: &offsets,
            cookies: &cookies,
        };
        uprobe_multi::link(program, &places)
    };
    let source = match link(group) {
        Ok(held) => return Ok(Hold::Multi { _link: held, probes: group.len() }),
        Err(source) => source,
    };
    let (culprit, source) =
        first_refused(group, |probe| link(&[probe]).map(drop)).unwrap_or((*first, source));
    let source = SyscallError { call: "bpf_link_create", io_error: source };
    Err(refused(tgid, culprit, source.into()))
}

/// The first of several that fails alone, and how.
fn first_refused<'a, T>(
    group: &[&'a T],
    attempt: impl Fn(&'a T) -> io::Result<()>,
) -> Option<(&'a T, io::Error)> {
    group.iter().find_map(|one| attempt(one).err().map(|source| (*one, source)))
}

fn refused(tgid: NonZeroU32, probe: &Probe<'_>, source: ProgramError) -> RecordError {
    if is_no_process(&source) {
        return AttachError::NoProcess { tgid: tgid.get() }.into();
    }
    RecordError::Attach {
        function: probe.function.to_owned(),
        object: probe.object_path.to_owned(),
        source: Box::new(source),
    }
}

/// Whether the kernel says that the process has gone meanwhile.
fn is_no_process(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|io| io.raw_os_error() == Some(libc::ESRCH)) {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_is_refused_is_found() {
        let places = [1u64, 2, 3, 4];
        let group: Vec<&u64> = places.iter().collect();
        let refuse_three = |place: &u64| match place {
            3 => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            _ => Ok(()),
        };
        let (place, source) = first_refused(&group, refuse_three).unwrap();
        assert_eq!((*place, source.raw_os_error()), (3, Some(libc::EINVAL)));
        assert!(first_refused(&group, |_| Ok(())).is_none());
    }

    #[test]
    fn what_releases_comes_first() {
        let object = std::fs::File::open("/dev/null").unwrap();
        let probe = |function: &'static str| Probe {
            object: std::os::fd::AsFd::as_fd(&object),
            object_key: (0, 0),
            object_path: "",
            function,
            file_offset: 0,
            cookie: Cookie::new(tracer_common::func::by_name(function).unwrap(), 0, 0),
            role: Role::Entry,
        };
        let probes = ["malloc", "calloc", "realloc", "posix_memalign", "reallocarray", "xallocx"].map(probe);
        let mut group: Vec<&Probe<'_>> = probes.iter().collect();
        group.sort_by_key(|probe| order(probe));
        let order: Vec<&str> = group.iter().map(|probe| probe.function).collect();
        assert_eq!(order, ["realloc", "reallocarray", "xallocx", "malloc", "calloc", "posix_memalign"]);
    }

    #[test]
    fn a_process_that_has_gone_is_known_by_the_cause() {
        let error = |code| {
            let io_error = io::Error::from_raw_os_error(code);
            ProgramError::from(SyscallError { call: "bpf_link_create", io_error })
        };
        assert!(is_no_process(&error(libc::ESRCH)) && !is_no_process(&error(libc::EINVAL)));
    }
}
