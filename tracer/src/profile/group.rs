//! Sites summed by what they have in common.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::totals::{Totals, growth};
use super::{By, Filter, Site, Sort};
use crate::capture::Capture;
use crate::model::{AllocatorId, Lens, MemoryClass, Process, ProcessId};

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
    /// than three samples.
    pub growth_bytes_per_s: Option<f64>,
    numbers: Vec<u32>,
}

impl Group {
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
    let mut index: HashMap<GroupKey, usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    let known = Names::new(capture);
    for site in sites {
        let Some(key) = known.key(filter.by, site) else { continue };
        let at = *index.entry(key.clone()).or_insert(groups.len());
        if groups.get(at).is_none() {
            let (unfreed, mapped, resident) = Default::default();
            groups.push(Group {
                rank: 0,
                key,
                unfreed,
                mapped,
                resident,
                growth_bytes_per_s: None,
                numbers: Vec::new(),
            });
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
    order(&mut groups, capture, filter);
    let outstanding = groups.iter().filter(|group| group.outstanding().1 > 0).count();
    groups.truncate(filter.top.unwrap_or(usize::MAX));
    (groups, outstanding)
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
    for group in groups.iter_mut().take(kept) {
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
    processes: HashMap<ProcessId, &'a Process>,
    allocators: HashMap<AllocatorId, &'a str>,
}

impl<'a> Names<'a> {
    fn new(capture: &'a Capture) -> Self {
        Self {
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
            By::Site => return None,
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
        })
    }
}
