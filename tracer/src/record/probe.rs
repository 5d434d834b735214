//! The probes that the functions of an allocator need.

use std::os::fd::AsFd;

use super::link::{Probe, Role};
use crate::attach::discover::Allocator;

/// One at entry, and one at the return where a block is returned, both at the same place.
pub(super) fn probes_of(allocator: &Allocator) -> impl Iterator<Item = Probe<'_>> {
    allocator.probed.iter().flat_map(move |probed| {
        let function = probed.definition.function;
        let roles: &[Role] =
            if function.shape.returns_block() { &[Role::Return, Role::Entry] } else { &[Role::Release] };
        roles.iter().map(move |role| Probe {
            object: allocator.file.file().as_fd(),
            object_key: allocator.key,
            object_path: allocator.file.path(),
            function: function.name,
            file_offset: probed.file_offset(),
            cookie: probed.cookie,
            role: *role,
        })
    })
}
