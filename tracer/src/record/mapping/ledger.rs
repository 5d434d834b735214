//! Counts what is mapped, by mapping and by site.

use std::collections::{BTreeMap, HashMap};

use tracer_common::abi::{LiveBlock, MappingOrigin, SiteCounters};

use super::{
    facts::SiteFacts,
    ranges::{MappingId, Piece},
};

/// A mapping that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Whose it is.
    pub site: u32,
    /// `CLOCK_MONOTONIC`.
    pub born_ns: u64,
    /// Memory.
    pub accessible_bytes: u64,
    /// `PROT_NONE`.
    pub reserved_bytes: u64,
    /// Threads that began minus threads that ended with their stack in it. The two records of one thread and those
    /// of the next on the same stack can come in any order.
    pub threads: i64,
    /// Whether a thread ever had its stack in it.
    pub had_thread: bool,
    /// A System V segment: where it was attached, and its end.
    pub segment: Option<(u64, u64)>,
}

#[derive(Clone, Debug, Default)]
struct SiteState {
    counters: SiteCounters,
    facts: SiteFacts,
}

/// The mappings of a process and the counters of their sites.
///
/// Bytes count as allocated when they become memory, and as freed when they are unmapped, replaced or made
/// `PROT_NONE`. (All sums saturate: a process can map and unmap 128 TiB as often as it likes.) A *mapping* counts as allocated with its first byte of memory and as freed with its last: cutting one
/// into pieces changes no count.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    next: u64,
    mappings: HashMap<MappingId, Mapping>,
    sites: BTreeMap<u32, SiteState>,
}

impl Ledger {
    /// A new mapping without a byte.
    pub fn open(&mut self, site: u32, born_ns: u64, segment: Option<(u64, u64)>) -> MappingId {
        self.next += 1;
        let id = MappingId(self.next);
        let mapping = Mapping {
            site,
            born_ns,
            accessible_bytes: 0,
            reserved_bytes: 0,
            threads: 0,
            had_thread: false,
            segment,
        };
        self.mappings.insert(id, mapping);
        id
    }

    /// Counts a piece as there.
    pub fn add(&mut self, piece: &Piece) {
        let Some(mapping) = self.mappings.get_mut(&piece.mapping) else { return };
        let site = self.sites.entry(mapping.site).or_default();
        if piece.is_reserved {
            mapping.reserved_bytes = mapping.reserved_bytes.saturating_add(piece.bytes());
            site.facts.reserved_bytes = site.facts.reserved_bytes.saturating_add(piece.bytes());
            return;
        }
        site.counters.allocated_count += u64::from(mapping.accessible_bytes == 0);
        site.counters.allocated_bytes = site.counters.allocated_bytes.saturating_add(piece.bytes());
        mapping.accessible_bytes = mapping.accessible_bytes.saturating_add(piece.bytes());
    }

    /// Counts a piece as gone.
    pub fn remove(&mut self, piece: &Piece) {
        let Some(mapping) = self.mappings.get_mut(&piece.mapping) else { return };
        let site = self.sites.entry(mapping.site).or_default();
        if piece.is_reserved {
            mapping.reserved_bytes = mapping.reserved_bytes.saturating_sub(piece.bytes());
            site.facts.reserved_bytes = site.facts.reserved_bytes.saturating_sub(piece.bytes());
        } else {
            mapping.accessible_bytes = mapping.accessible_bytes.saturating_sub(piece.bytes());
            site.counters.freed_bytes = site.counters.freed_bytes.saturating_add(piece.bytes());
            site.counters.freed_count += u64::from(mapping.accessible_bytes == 0);
        }
        if mapping.accessible_bytes == 0 && mapping.reserved_bytes == 0 {
            self.mappings.remove(&piece.mapping);
        }
    }

    /// Takes a removal back: `before` is the mapping as it was.
    pub fn restore(&mut self, piece: &Piece, before: Mapping) {
        let empty = Mapping { accessible_bytes: 0, reserved_bytes: 0, ..before };
        let mapping = self.mappings.entry(piece.mapping).or_insert(empty);
        let site = self.sites.entry(mapping.site).or_default();
        if piece.is_reserved {
            mapping.reserved_bytes = mapping.reserved_bytes.saturating_add(piece.bytes());
            site.facts.reserved_bytes = site.facts.reserved_bytes.saturating_add(piece.bytes());
            return;
        }
        site.counters.freed_count =
            site.counters.freed_count.saturating_sub(u64::from(mapping.accessible_bytes == 0));
        site.counters.freed_bytes = site.counters.freed_bytes.saturating_sub(piece.bytes());
        mapping.accessible_bytes = mapping.accessible_bytes.saturating_add(piece.bytes());
    }

    /// Counts a piece, which is counted as it says, as the other: memory or reserved.
    pub fn turn(&mut self, piece: &Piece) -> Piece {
        let turned = Piece { is_reserved: !piece.is_reserved, ..*piece };
        // In this order, so that the mapping is never without a byte.
        self.add(&turned);
        self.remove(piece);
        turned
    }

    /// Counts all as gone.
    pub fn clear(&mut self) {
        for (_, mapping) in self.mappings.drain() {
            let site = self.sites.entry(mapping.site).or_default();
            site.counters.freed_bytes = site.counters.freed_bytes.saturating_add(mapping.accessible_bytes);
            site.counters.freed_count += u64::from(mapping.accessible_bytes > 0);
            site.facts.reserved_bytes = site.facts.reserved_bytes.saturating_sub(mapping.reserved_bytes);
        }
    }

    /// A mapping.
    pub fn mapping(&self, id: MappingId) -> Option<&Mapping> {
        self.mappings.get(&id)
    }

    /// Notes that a thread has begun (1) or ended (-1) in a mapping.
    pub fn add_thread(&mut self, id: MappingId, change: i64) {
        if let Some(mapping) = self.mappings.get_mut(&id) {
            mapping.threads += change;
            mapping.had_thread = true;
        }
    }

    /// The facts of a site, to be added to; made with this origin where there are none.
    pub fn facts_mut(&mut self, site: u32, origin: MappingOrigin) -> &mut SiteFacts {
        let state = self.sites.entry(site).or_default();
        if state.facts.kind.is_none() {
            state.facts.kind = origin.kind();
            state.facts.in_allocator = origin.allocator();
        }
        &mut state.facts
    }

    /// The facts of the site of a mapping, to be added to.
    pub fn facts_of(&mut self, id: MappingId) -> Option<&mut SiteFacts> {
        let site = self.mappings.get(&id)?.site;
        self.sites.get_mut(&site).map(|state| &mut state.facts)
    }

    /// Begins a look at all names.
    pub fn begin_look(&mut self) {
        self.sites.values_mut().for_each(|state| state.facts.begin_look());
    }

    /// Totals of every site.
    pub fn sites(&self) -> impl Iterator<Item = (u32, SiteCounters)> {
        self.sites.iter().map(|(site, state)| (*site, state.counters))
    }

    /// Totals of a site; zero for one that has mapped nothing.
    #[cfg(test)]
    pub fn counters(&self, site: u32) -> SiteCounters {
        self.sites.get(&site).map(|state| state.counters).unwrap_or_default()
    }

    /// The facts of every site.
    pub fn facts(&self) -> BTreeMap<u32, SiteFacts> {
        let mut all: BTreeMap<u32, SiteFacts> =
            self.sites.iter().map(|(site, state)| (*site, state.facts.clone())).collect();
        for mapping in self.mappings.values().filter(|mapping| mapping.had_thread) {
            if let Some(facts) = all.get_mut(&mapping.site) {
                if mapping.threads > 0 {
                    facts.running_threads += 1;
                } else {
                    facts.ended_threads += 1;
                }
            }
        }
        all
    }

    /// What is outstanding, as blocks: one for each mapping.
    pub fn blocks(&self) -> impl Iterator<Item = LiveBlock> {
        self.mappings.values().filter(|mapping| mapping.accessible_bytes > 0).map(|mapping| LiveBlock {
            size_bytes: mapping.accessible_bytes,
            born_ns: mapping.born_ns,
            site: mapping.site,
            ..LiveBlock::default()
        })
    }

    /// Whether any range is reserved, so that it may become memory without an event.
    pub fn has_reserved(&self) -> bool {
        self.sites.values().any(|state| state.facts.reserved_bytes > 0)
    }
}
