//! What is known of the mappings of one site, for whoever gives them a name.

use std::collections::BTreeMap;

use tracer_common::abi::{MappingKind, MappingOrigin};

/// Names kept of one site, the first ones seen.
const MAX_NAMES: usize = 8;
/// Bytes kept of a name.
const MAX_NAME_BYTES: usize = 256;
/// Lengths kept of one site, the first ones seen.
const MAX_LENGTHS: usize = 8;

/// The name of ranges in `/proc/PID/maps`: `[anon:…]`, `/memfd:… (deleted)`, `/SYSV…`, a path, or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmaName {
    /// As the kernel writes it, cut to 256 bytes; hostile input.
    pub name: Vec<u8>,
    /// Memory of the site under this name at the last look.
    pub bytes: u64,
}

/// Facts of one site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SiteFacts {
    /// What the system call says; `None` for the site of lost stacks.
    pub kind: Option<MappingKind>,
    /// The allocator from whose inside was mapped: its number, 0 if it is not known which. `None`: the program
    /// itself.
    pub in_allocator: Option<u32>,
    /// Up to eight names that its ranges had at any look.
    pub vma_names: Vec<VmaName>,
    /// Up to eight lengths in bytes that were asked for, each with how often.
    pub lengths: BTreeMap<u64, u64>,
    /// Mappings of further lengths.
    pub other_lengths: u64,
    /// Mappings that are there and in which a thread has its stack.
    pub running_threads: u64,
    /// Mappings that are there and in which threads have run, all of which have ended.
    pub ended_threads: u64,
    /// Bytes that are mapped but `PROT_NONE`; not part of what is outstanding.
    pub reserved_bytes: u64,
    /// `PROT_` bits that its memory had, when mapped or at any look.
    pub protection: u32,
}

impl SiteFacts {
    /// Facts of a site of which only the origin is known.
    pub fn new(origin: MappingOrigin) -> Self {
        Self { kind: origin.kind(), in_allocator: origin.allocator(), ..Self::default() }
    }

    /// Notes a length that was asked for.
    pub fn add_length(&mut self, bytes: u64) {
        if let Some(count) = self.lengths.get_mut(&bytes) {
            *count += 1;
        } else if self.lengths.len() < MAX_LENGTHS {
            self.lengths.insert(bytes, 1);
        } else {
            self.other_lengths += 1;
        }
    }

    /// Notes that `bytes` have this name now.
    pub fn add_name(&mut self, name: &[u8], bytes: u64) {
        let name = name.get(..MAX_NAME_BYTES).unwrap_or(name);
        if let Some(known) = self.vma_names.iter_mut().find(|known| known.name == name) {
            known.bytes = known.bytes.saturating_add(bytes);
        } else if self.vma_names.len() < MAX_NAMES {
            self.vma_names.push(VmaName { name: name.to_vec(), bytes });
        }
    }

    /// Begins a new look: no name has bytes yet.
    pub fn begin_look(&mut self) {
        self.vma_names.iter_mut().for_each(|known| known.bytes = 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_target_cannot_fill_the_facts() {
        let mut facts = SiteFacts::new(MappingOrigin::new(MappingKind::Anonymous).in_allocator(3));
        assert_eq!((facts.kind, facts.in_allocator), (Some(MappingKind::Anonymous), Some(3)));
        for number in 0..100u64 {
            facts.add_name(format!("{number}{}", "x".repeat(1000)).as_bytes(), 4096);
            facts.add_length(number);
        }
        facts.add_length(3);
        assert_eq!(facts.vma_names.len(), MAX_NAMES);
        assert!(facts.vma_names.iter().all(|name| name.name.len() == MAX_NAME_BYTES));
        assert_eq!((facts.lengths.len(), facts.other_lengths), (MAX_LENGTHS, 92));
        assert_eq!(facts.lengths.get(&3), Some(&2));
    }

    #[test]
    fn names_are_summed_by_look() {
        let mut facts = SiteFacts::default();
        facts.add_name(b"[anon:v8]", 10);
        facts.add_name(b"[anon:v8]", 5);
        assert_eq!(facts.vma_names, [VmaName { name: b"[anon:v8]".to_vec(), bytes: 15 }]);
        facts.begin_look();
        assert_eq!(facts.vma_names[0].bytes, 0, "the name stays known");
    }
}
