//! Blocks summed by the size that was requested.
//!
//! The size of a block is in the kernel's map of live blocks only, which is read once, when the probes have been taken
//! off. What that look has not found of a site (there was none, or the map had lost blocks) is of unknown size.

use std::collections::{BTreeMap, HashMap};

use super::group::{Group, GroupKey};
use super::number::Outstanding;
use super::{Profile, Site};
use crate::capture::Capture;
use crate::model::{Lens, LiveSize};

/// Groups of all sites: blocks by size; mappings and pages as what they are.
pub(super) fn fold(capture: &Capture, sites: &[Site]) -> Vec<Group> {
    let mut sizes: HashMap<u32, Vec<&LiveSize>> = HashMap::new();
    for size in &capture.live_sizes {
        sizes.entry(size.site).or_default().push(size);
    }
    let mut groups: BTreeMap<GroupKey, Group> = BTreeMap::new();
    for site in sites {
        match site.lens {
            Lens::Malloc => split(site, &sizes, &mut groups),
            Lens::Mmap => of(&mut groups, GroupKey::Mapped).mapped.add(site),
            Lens::Faults => of(&mut groups, GroupKey::Mapped).resident.add(site),
        }
    }
    groups.into_values().collect()
}

fn of(groups: &mut BTreeMap<GroupKey, Group>, key: GroupKey) -> &mut Group {
    groups.entry(key.clone()).or_insert_with(|| Group::new(key))
}

/// Adds the blocks of a site to the groups of their sizes.
fn split(site: &Site, sizes: &HashMap<u32, Vec<&LiveSize>>, groups: &mut BTreeMap<GroupKey, Group>) {
    let mut left = Outstanding { bytes: site.outstanding_bytes, count: site.outstanding_count };
    let mut found: BTreeMap<u8, Outstanding> = BTreeMap::new();
    for size in site.numbers.iter().filter_map(|number| sizes.get(number)).flatten() {
        // Never more than the site holds: a file may say anything.
        let part = Outstanding { bytes: size.bytes.min(left.bytes), count: size.count.min(left.count) };
        left = Outstanding { bytes: left.bytes - part.bytes, count: left.count - part.count };
        found.entry(size.bucket).or_default().add(part);
    }
    let found = found.into_iter().map(|(bucket, part)| (GroupKey::SizeClass(bucket), part));
    let nothing = Outstanding::default();
    for (key, part) in found.chain([(GroupKey::NoSize, left)]).filter(|(_, part)| *part != nothing) {
        let unfreed = &mut of(groups, key).unfreed;
        unfreed.sites += 1;
        unfreed.sites_outstanding += 1;
        unfreed.outstanding_bytes = unfreed.outstanding_bytes.saturating_add(part.bytes);
        unfreed.outstanding_count = unfreed.outstanding_count.saturating_add(part.count);
    }
}

impl Profile {
    /// Why the sizes of blocks are not known, where they are not; for the groups by size.
    pub fn why_no_sizes(&self) -> Option<&'static str> {
        self.groups.iter().any(|group| group.key == GroupKey::NoSize).then_some(
            if self.window.end.is_none() {
                "the recording was interrupted before its end, when sizes are read"
            } else if self.is_earlier_moment {
                "sizes are read at the end of a recording, and this is an earlier moment"
            } else if !self.has_sizes {
                "the capture was written before sizes were kept"
            } else {
                "the blocks were not in the map of live blocks when it was read"
            },
        )
    }
}
