//! Which part of a capture is looked at, and in which order.

use thiserror::Error;

use super::number::Number;
use super::{Site, Suppressions};
use crate::capture::Capture;
use crate::model::{AllocatorId, Lens, MemoryClass, ProcessId};

/// What the sites are ranked by, the largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// Leaks first, by how sure and how fast they are; then the rest by bytes.
    Verdict,
    /// Bytes that were not freed.
    #[default]
    Outstanding,
    /// Bytes per second by which they grow.
    Growth,
    /// Blocks that were not freed.
    Count,
}

impl Sort {
    /// Every order.
    pub const ALL: [Self; 4] = [Self::Verdict, Self::Outstanding, Self::Growth, Self::Count];

    /// The name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Verdict => "verdict",
            Self::Outstanding => "outstanding",
            Self::Growth => "growth",
            Self::Count => "count",
        }
    }
}

/// What sites are summed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// Nothing: one row per stack.
    #[default]
    Site,
    /// The process.
    Process,
    /// The executable of the process.
    Executable,
    /// The name of the allocator.
    Allocator,
    /// What the memory is.
    Class,
    /// The culprit: the first function of the stack that is not a wrapper.
    Function,
    /// The file that the culprit lies in.
    Object,
    /// The start routine of the thread: not the thread, since many run the same.
    Thread,
    /// The size that was requested, in powers of two.
    SizeClass,
}

impl By {
    /// Every grouping.
    pub const ALL: [Self; 9] = [
        Self::Site,
        Self::Process,
        Self::Executable,
        Self::Allocator,
        Self::Class,
        Self::Function,
        Self::Object,
        Self::Thread,
        Self::SizeClass,
    ];

    /// The name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Process => "process",
            Self::Executable => "executable",
            Self::Allocator => "allocator",
            Self::Class => "class",
            Self::Function => "function",
            Self::Object => "object",
            Self::Thread => "thread",
            Self::SizeClass => "size-class",
        }
    }
}

/// Which end of the stacks a tree begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The start of the thread.
    TopDown,
    /// The culprit.
    BottomUp,
}

impl Direction {
    /// The name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TopDown => "top-down",
            Self::BottomUp => "bottom-up",
        }
    }
}

/// The call sites as a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeView {
    /// Which end it begins with.
    pub direction: Direction,
    /// Least share of the whole that a branch must have, in millionths.
    pub least_ppm: u32,
}

/// Which part of a capture is looked at, and in which order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Show the sites as a tree, instead of one by one.
    pub tree: Option<TreeView>,
    /// Only blocks at least this old count as outstanding.
    pub min_age_ns: Option<u64>,
    /// Order of the sites and groups.
    pub sort: Sort,
    /// Sites and groups to keep; all without it.
    pub top: Option<usize>,
    /// What sites are summed by.
    pub by: By,
    /// Only sites seen so.
    pub lens: Option<Lens>,
    /// Only sites of the process with this id, as the host sees it.
    pub tgid: Option<u32>,
    /// Only sites of the allocators with this name, whatever the case of its letters.
    pub allocator: Option<String>,
    /// Only sites of this class, also of one that is set aside otherwise; without it, those that can be leaks.
    pub class: Option<MemoryClass>,
    /// What is known to be no leak.
    pub suppressions: Suppressions,
    /// Whether equal stacks of processes of one executable are one row.
    pub merges_processes: bool,
}

/// Why there is no profile.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProfileError {
    /// The age of the blocks is not in the capture.
    #[error(
        "a minimum age needs the live blocks, which are read at the end of a recording: this one was \
         interrupted before; leave the age out"
    )]
    NoAges,
    /// Sizes are known of all live blocks together.
    #[error("sizes are not kept by age: leave out the minimum age, or the size class")]
    NoSizesByAge,
    /// The process is not in the capture.
    #[error("process {tgid} is not in the capture; it has {known}")]
    NoProcess {
        /// As the host sees it.
        tgid: u32,
        /// Those that are; already safe to print.
        known: String,
    },
    /// The allocator is not in the capture.
    #[error("no allocator of this name is in the capture; it has {known}")]
    NoAllocator {
        /// Those that are; hostile input.
        known: String,
    },
}

/// Names listed in an error.
const NAMES_LISTED: usize = 8;

/// A filter against the ids of one capture.
pub(super) struct Selection {
    lens: Option<Lens>,
    processes: Option<Vec<ProcessId>>,
    allocators: Option<Vec<AllocatorId>>,
}

impl Selection {
    /// Looks the names up.
    pub(super) fn new(filter: &Filter, capture: &Capture) -> Result<Self, ProfileError> {
        Ok(Self {
            lens: filter.lens,
            processes: filter.tgid.map(|tgid| processes(capture, tgid)).transpose()?,
            allocators: filter.allocator.as_deref().map(|name| allocators(capture, name)).transpose()?,
        })
    }

    /// Whether a site is looked at. Of a lost stack neither process nor allocator is known.
    fn takes(&self, lens: Lens, processes: &[ProcessId], allocator: Option<AllocatorId>) -> bool {
        self.lens.is_none_or(|wanted| wanted == lens)
            && self
                .processes
                .as_ref()
                .is_none_or(|wanted| processes.iter().any(|process| wanted.contains(process)))
            && self
                .allocators
                .as_ref()
                .is_none_or(|wanted| allocator.is_some_and(|allocator| wanted.contains(&allocator)))
    }

    pub(super) fn takes_number(&self, number: &Number<'_>) -> bool {
        let stack = number.stack;
        let process = stack.map(|stack| stack.process);
        self.takes(number.lens, process.as_slice(), stack.and_then(|stack| stack.allocator))
    }

    pub(super) fn takes_site(&self, site: &Site) -> bool {
        self.takes(site.lens, &site.processes, site.allocator)
    }
}

fn processes(capture: &Capture, tgid: u32) -> Result<Vec<ProcessId>, ProfileError> {
    let all = || capture.processes.iter().map(|row| &row.process);
    let found: Vec<_> =
        all().filter(|process| process.target.tgid == tgid).map(|process| process.id).collect();
    if found.is_empty() {
        let known = listed(all().map(|process| process.target.tgid.to_string()));
        return Err(ProfileError::NoProcess { tgid, known });
    }
    Ok(found)
}

fn allocators(capture: &Capture, name: &str) -> Result<Vec<AllocatorId>, ProfileError> {
    let all = || capture.allocators.iter();
    let found: Vec<_> =
        all().filter(|allocator| allocator.name.eq_ignore_ascii_case(name)).map(|found| found.id).collect();
    if found.is_empty() {
        let known = listed(all().map(|allocator| format!("`{}`", allocator.name)));
        return Err(ProfileError::NoAllocator { known });
    }
    Ok(found)
}

fn listed(names: impl Iterator<Item = String>) -> String {
    let mut distinct: Vec<String> = Vec::new();
    for name in names {
        if !distinct.contains(&name) {
            if distinct.len() == NAMES_LISTED {
                distinct.push("…".into());
                break;
            }
            distinct.push(name);
        }
    }
    if distinct.is_empty() { "none".into() } else { distinct.join(", ") }
}
