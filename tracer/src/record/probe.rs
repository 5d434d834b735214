//! Which probes the functions of an allocator need.

use std::os::fd::AsFd;

use super::link::{Probe, Role};
use crate::attach::discover::{Allocator, End};

/// The probes of an allocator: one at the entry of each function, and where a block is returned one that sees
/// the end: a return probe at the same place, or one at each exit.
pub(super) fn probes_of(allocator: &Allocator) -> impl Iterator<Item = Probe<'_>> {
    allocator.probed.iter().flat_map(move |probed| {
        let at = |role, file_offset| Probe {
            object: allocator.file.file().as_fd(),
            object_key: allocator.key,
            object_path: allocator.file.path(),
            function: &probed.definition.symbol,
            file_offset,
            cookie: probed.cookie,
            role,
        };
        let (entry, ends) = match &probed.end {
            End::Unneeded => (Role::Release, Vec::new()),
            End::Return => (Role::Entry, vec![at(Role::Return, probed.file_offset())]),
            End::Exits(exits) => {
                (Role::Entry, exits.file_offsets.iter().map(|exit| at(Role::Exit, *exit)).collect())
            }
        };
        ends.into_iter().chain([at(entry, probed.file_offset())])
    })
}
