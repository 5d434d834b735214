//! An allocator, and where the probes of its functions go.

use std::{collections::BTreeSet, sync::Arc};

use tracer_common::cookie::Cookie;

use super::{
    code::Code,
    exits::{Exits, exits},
    group::Group,
    object::ObjectFile,
    placement::{Placement, place},
    resolve::{Definition, Skipped},
};

/// Identity of an object: device and inode.
pub type ObjectKey = (u64, u64);

/// How the end of a function is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It need not be: all is known at entry.
    Unneeded,
    /// By a return probe.
    Return,
    /// By probes at its exits, because an exception may leave it.
    Exits(Exits),
}

/// A function that is to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// What is defined, and where.
    pub definition: Definition,
    /// On which instruction.
    pub placement: Placement,
    /// How its end is seen.
    pub end: End,
    /// Attach cookie.
    pub cookie: Cookie,
}

impl Probed {
    /// Offset of the probed instruction in the file.
    pub fn file_offset(&self) -> u64 {
        self.definition.file_offset + self.placement.offset
    }
}

/// An allocator: functions of one object that belong together.
#[derive(Debug)]
pub struct Allocator {
    /// Its number within the recording, from 1; the same in every process that has mapped the object.
    pub number: u16,
    /// What it is, such as `jemalloc`; `custom` if nothing tells.
    pub name: &'static str,
    /// What its functions' names begin with, in the order in which prefixes are tried; never empty.
    pub prefixes: Vec<Arc<str>>,
    /// Identity of the object.
    pub key: ObjectKey,
    /// The object.
    pub file: Arc<ObjectFile>,
    /// Functions to probe.
    pub probed: Vec<Probed>,
    /// Functions that are left alone.
    pub skipped: Vec<Skipped>,
}

impl Allocator {
    /// Whether it has a function that allocates; one that only frees is not an allocator.
    pub fn allocates(&self) -> bool {
        self.probed.iter().any(|probed| probed.definition.function.shape.returns_block())
    }

    /// The prefix that stands for it.
    pub fn prefix(&self) -> &str {
        self.prefixes.first().map_or("", |prefix| prefix)
    }
}

/// An object that defines functions of the table, but no allocator.
#[derive(Clone, Debug)]
pub struct PassedOver {
    /// The object.
    pub file: Arc<ObjectFile>,
    /// Its functions, and why they are left alone.
    pub skipped: Vec<Skipped>,
}

/// Decides for each function of an allocator where its probes go.
pub(super) fn place_all(group: Group, code: &Code<'_>, number: u16) -> (Vec<Probed>, Vec<Skipped>) {
    let mut skipped = group.skipped;
    let probed_at: BTreeSet<u64> = group.found.iter().map(|definition| definition.address).collect();
    let mut probed = Vec::new();
    for definition in group.found {
        match place_one(&definition, code, &probed_at) {
            Ok((placement, end)) => {
                let cookie = Cookie::new(definition.function, placement.pushed_bytes, number);
                let cookie = if matches!(end, End::Exits(_)) { cookie.left_at_exit() } else { cookie };
                probed.push(Probed { definition, placement, end, cookie });
            }
            Err(reason) => skipped
                .extend(definition.names.into_iter().map(|name| Skipped { name, reason: reason.clone() })),
        }
    }
    (probed, skipped)
}

fn place_one(
    definition: &Definition,
    code: &Code<'_>,
    probed_at: &BTreeSet<u64>,
) -> Result<(Placement, End), String> {
    let end = if !definition.function.shape.returns_block() {
        End::Unneeded
    } else if !definition.may_throw {
        End::Return
    } else {
        let exits = exits(code, definition.address, |address| probed_at.contains(&address));
        if exits.file_offsets.is_empty() {
            let why = exits.gaps.first().map_or("it never returns", |gap| gap);
            return Err(format!(
                "an exception may leave it, so that it cannot have a return probe, and none of its exits was \
                 found: {why}"
            ));
        }
        End::Exits(exits)
    };
    let placement = place(code.machine(), definition.function, &definition.body)
        .ok_or("the kernel refuses to probe any of its first instructions")?;
    Ok((placement, end))
}
