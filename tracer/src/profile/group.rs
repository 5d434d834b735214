//! Sites summed by what they have in common.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::frame::expand;
use super::thread_start::thread_start;
use super::totals::{Totals, growth};
use super::{By, Filter, Site, SiteFrame, Sort, size_class};
use crate::capture::Capture;
use crate::model::{AllocatorId, Lens, MemoryClass, Process, ProcessId, StackEnd};

/// What the sites of a group have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GroupKey {
    /// The process.
    Process(ProcessId),
    /// The executable, as the target sees it: hostile input. Where it is not known, the name of the process.
    Executable(String),
    /// The name of the allocator.
    Allocator(String),
    /// Blocks of an allocator that is not known.
    NoAllocator,
    /// Mappings, which the program asked the kernel for without an allocator.
    Mapped,
    /// What the memory is.
    Class(MemoryClass),
    /// The function that asked for the memory.
    Function {
        /// Its name, or where it is: hostile input.
        name: String,
        /// Path of its file; `None` for code without one.
        object: Option<String>,
    },
    /// Path of the file that the function lies in: hostile input.
    Object(String),
    /// Code without a file: what kind of it.
    NoObject(&'static str),
    /// The start routine of the thread.
    Thread {
        /// Its name, or where it is: hostile input.
        name: String,
        /// Path of its file; `None` for code without one.
        object: Option<String>,
    },
    /// The stack does not reach the start of its thread.
    NoThread,
    /// Requested sizes of as many bits: see [`crate::model::LiveSize`].
    SizeClass(u8),
    /// Blocks whose size is not known.
    NoSize,
    /// The stack was lost: nobody knows.
    Lost,
}

/// Sums of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// From 1, in the order of the filter.
    pub rank: usize,
    /// What they have in common.
    pub key: GroupKey,
    /// Blocks. The growth is not given.
    pub unfreed: Totals,
    /// Mappings that can be leaks. The growth is not given.
    pub mapped: Totals,
    /// Resident pages by who touched them. The growth is not given.
    pub resident: Totals,
    /// Robust slope of blocks and mappings together, or of resident pages where it has nothing else; `None` for fewer
    /// than three samples, and for size classes, which are known at the end only.
    pub growth_bytes_per_s: Option<f64>,
    pub(super) numbers: Vec<u32>,
}

impl Group {
    /// One that has nothing.
    pub(super) fn new(key: GroupKey) -> Self {
        let (unfreed, mapped, resident) = Default::default();
        Self { rank: 0, key, unfreed, mapped, resident, growth_bytes_per_s: None, numbers: Vec::new() }
    }

    /// Blocks and mappings together, or resident pages where it has nothing else: bytes and count.
    pub fn outstanding(&self) -> (u64, u64) {
        if self.unfreed.sites + self.mapped.sites == 0 {
            return (self.resident.outstanding_bytes, self.resident.outstanding_count);
        }
        (
            self.unfreed.outstanding_bytes.saturating_add(self.mapped.outstanding_bytes),
            self.unfreed.outstanding_count.saturating_add(self.mapped.outstanding_count),
        )
    }
}

/// The groups in order, those that the filter keeps, and how many there are with something outstanding; none
/// where sites are not grouped.
pub(super) fn fold(capture: &Capture, sites: &[Site], filter: &Filter) -> (Vec<Group>, usize) {
    let mut groups = match filter.by {
        By::SizeClass => size_class::fold(capture, sites),
        _ => by_key(capture, sites, filter.by),
    };
    order(&mut groups, capture, filter);
    let outstanding = groups.iter().filter(|group| group.outstanding().1 > 0).count();
    groups.truncate(filter.top.unwrap_or(usize::MAX));
    (groups, outstanding)
}

/// One group for every key that a site has.
fn by_key(capture: &Capture, sites: &[Site], by: By) -> Vec<Group> {
    let mut index: HashMap<GroupKey, usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    let known = Names::new(capture);
    for site in sites {
        let Some(key) = known.key(by, site) else { continue };
        let at = *index.entry(key.clone()).or_insert(groups.len());
        if groups.get(at).is_none() {
            groups.push(Group::new(key));
        }
        let Some(group) = groups.get_mut(at) else { continue };
        match site.lens {
            Lens::Malloc => group.unfreed.add(site),
            Lens::Mmap => group.mapped.add(site),
            Lens::Faults => group.resident.add(site),
        }
        // Sites of pages come after all others.
        if site.lens != Lens::Faults || group.unfreed.sites + group.mapped.sites == 0 {
            group.numbers.extend_from_slice(&site.numbers);
        }
    }
    groups
}

fn order(groups: &mut [Group], capture: &Capture, filter: &Filter) {
    let kept = filter.top.filter(|_| filter.sort != Sort::Growth).unwrap_or(usize::MAX);
    let sort = |groups: &mut [Group]| {
        groups.sort_by(|a, b| {
            let growth = |group: &Group| group.growth_bytes_per_s.unwrap_or(f64::NEG_INFINITY);
            let first = match filter.sort {
                Sort::Outstanding | Sort::Verdict => std::cmp::Ordering::Equal,
                Sort::Growth => growth(b).total_cmp(&growth(a)),
                Sort::Count => b.outstanding().1.cmp(&a.outstanding().1),
            };
            let size = |group: &Group| Reverse(group.outstanding());
            first.then_with(|| size(a).cmp(&size(b))).then_with(|| a.key.cmp(&b.key))
        });
    };
    if filter.sort != Sort::Growth {
        sort(groups);
    }
    // Over time, the bytes of a site are known, and not of which sizes they were.
    let with_series = groups.iter_mut().take(kept).filter(|group| !group.numbers.is_empty());
    for group in with_series {
        group.growth_bytes_per_s = growth(&capture.series, &group.numbers);
    }
    if filter.sort == Sort::Growth {
        sort(groups);
    }
    for (rank, group) in (1..).zip(groups) {
        group.rank = rank;
    }
}

/// Names by id.
struct Names<'a> {
    capture: &'a Capture,
    processes: HashMap<ProcessId, &'a Process>,
    allocators: HashMap<AllocatorId, &'a str>,
}

impl<'a> Names<'a> {
    fn new(capture: &'a Capture) -> Self {
        Self {
            capture,
            processes: capture.processes.iter().map(|row| (row.process.id, &row.process)).collect(),
            allocators: capture
                .allocators
                .iter()
                .map(|allocator| (allocator.id, allocator.name.as_str()))
                .collect(),
        }
    }

    fn key(&self, by: By, site: &Site) -> Option<GroupKey> {
        let process = site.processes.first();
        Some(match by {
            By::Site | By::SizeClass => return None,
            By::Class => GroupKey::Class(site.class),
            _ if site.is_lost => GroupKey::Lost,
            By::Process => process.map_or(GroupKey::Lost, |process| GroupKey::Process(*process)),
            By::Executable => match process.and_then(|process| self.processes.get(process)) {
                Some(process) => {
                    let target = &process.target;
                    GroupKey::Executable(target.exe.clone().unwrap_or_else(|| target.comm.clone()))
                }
                None => GroupKey::Lost,
            },
            By::Allocator => match (site.allocator.and_then(|id| self.allocators.get(&id)), site.lens) {
                (Some(name), _) => GroupKey::Allocator((*name).to_owned()),
                (None, Lens::Malloc) => GroupKey::NoAllocator,
                (None, Lens::Mmap | Lens::Faults) => GroupKey::Mapped,
            },
            By::Function => self.culprit(site).map_or(GroupKey::Lost, |culprit| GroupKey::Function {
                name: culprit.label(),
                object: culprit.object.map(|object| object.path.clone()),
            }),
            By::Object => self.culprit(site).map_or(GroupKey::Lost, |culprit| match culprit.object {
                Some(object) => GroupKey::Object(object.path.clone()),
                None => GroupKey::NoObject(culprit.frame.kind.name()),
            }),
            By::Thread => {
                let stack: Vec<_> = self.stack(site).collect();
                match thread_start(&stack).filter(|_| site.end == StackEnd::ThreadStart) {
                    Some(start) => GroupKey::Thread {
                        name: start.label(),
                        object: start.object.map(|object| object.path.clone()),
                    },
                    None => GroupKey::NoThread,
                }
            }
        })
    }

    fn stack<'s>(&'s self, site: &'s Site) -> impl Iterator<Item = SiteFrame<'s>> {
        expand(&site.frames, &self.capture.frames, &self.capture.objects)
    }

    fn culprit<'s>(&'s self, site: &'s Site) -> Option<SiteFrame<'s>> {
        self.stack(site).nth(site.culprit)
    }
}
