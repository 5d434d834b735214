//! What every address of the target has meant, epoch by epoch.
//!
//! A stack is a list of addresses; what they mean can change when code is unmapped and other code comes
//! to the same place. An *epoch* is a time in which every address had at most one meaning; its mappings
//! are kept, also after they are gone, since stacks that name them are still to be symbolized.

use std::collections::BTreeMap;

use crate::model::{FrameKind, ObjectId};

/// What lies in an executable mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// A file, or the vDSO.
    Object {
        /// The object.
        id: ObjectId,
        /// Offset within its file of the first byte of the mapping.
        file_offset: u64,
    },
    /// Anonymous memory: made at run time.
    Generated,
}

/// An executable mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeRange {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// What it holds.
    pub code: Code,
}

/// Where a program counter lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Kind of code.
    pub kind: FrameKind,
    /// Object and offset within its file, for native code.
    pub object: Option<(ObjectId, u64)>,
}

/// All epochs of one process.
#[derive(Clone, Debug, Default)]
pub struct AddressSpace {
    epoch: u32,
    epochs: BTreeMap<u32, BTreeMap<u64, CodeRange>>,
}

impl AddressSpace {
    /// Nothing is known yet; epochs are counted from `epoch`.
    pub fn beginning_at(epoch: u32) -> Self {
        Self { epoch, epochs: BTreeMap::new() }
    }

    /// Takes the mappings that there are now, and gives the epoch they belong to.
    pub fn update(&mut self, now: &[CodeRange]) -> u32 {
        let contradicts = self
            .epochs
            .get(&self.epoch)
            .is_some_and(|known| now.iter().any(|range| contradicts(known, range)));
        if contradicts {
            self.epoch += 1;
        }
        let known = self.epochs.entry(self.epoch).or_default();
        for range in now {
            // A mapping that has grown replaces what it covers; the meaning of the addresses is the same.
            let covered: Vec<u64> = known
                .range(range.start..range.end)
                .filter(|(_, old)| old.end <= range.end)
                .map(|(start, _)| *start)
                .collect();
            covered.iter().for_each(|start| {
                known.remove(start);
            });
            if find(known, range.start).is_none_or(|old| old.end < range.end) {
                known.insert(range.start, *range);
            }
        }
        self.epoch
    }

    /// The current epoch.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Starts anew: the process has executed another program.
    pub fn next_program(&mut self) {
        self.epoch += 1;
    }

    /// Where a program counter of a stack of `epoch` lies.
    pub fn place(&self, epoch: u32, pc: u64) -> Place {
        let range = self.epochs.get(&epoch).and_then(|known| find(known, pc));
        match range {
            Some(CodeRange { start, code: Code::Object { id, file_offset }, .. }) => {
                Place { kind: FrameKind::Native, object: Some((id, file_offset.wrapping_add(pc - start))) }
            }
            Some(_) => Place { kind: FrameKind::Jit, object: None },
            None => Place { kind: FrameKind::Unknown, object: None },
        }
    }
}

fn find(known: &BTreeMap<u64, CodeRange>, address: u64) -> Option<CodeRange> {
    known.range(..=address).next_back().map(|(_, range)| *range).filter(|range| address < range.end)
}

/// Whether an address would come to mean something else.
fn contradicts(known: &BTreeMap<u64, CodeRange>, range: &CodeRange) -> bool {
    let before = known.range(..range.start).next_back();
    known.range(range.start..range.end).chain(before).any(|(_, old)| {
        let overlap = old.start < range.end && range.start < old.end;
        overlap
            && match (old.code, range.code) {
                (Code::Generated, Code::Generated) => false,
                (Code::Object { id: old_id, file_offset: old_offset }, Code::Object { id, file_offset }) => {
                    old_id != id
                        || old_offset.wrapping_sub(old.start) != file_offset.wrapping_sub(range.start)
                }
                _ => true,
            }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(start: u64, end: u64, id: u32, file_offset: u64) -> CodeRange {
        CodeRange { start, end, code: Code::Object { id: ObjectId(id), file_offset } }
    }

    fn generated(start: u64, end: u64) -> CodeRange {
        CodeRange { start, end, code: Code::Generated }
    }

    #[test]
    fn an_unmapped_library_keeps_its_meaning() {
        let mut space = AddressSpace::default();
        assert_eq!(space.update(&[object(100, 200, 1, 0x1000), object(300, 400, 2, 0)]), 0);
        assert_eq!(space.update(&[object(100, 200, 1, 0x1000)]), 0);
        assert_eq!(space.place(0, 350), Place { kind: FrameKind::Native, object: Some((ObjectId(2), 50)) });
        assert_eq!(
            space.place(0, 150),
            Place { kind: FrameKind::Native, object: Some((ObjectId(1), 0x1032)) }
        );
    }

    #[test]
    fn another_library_at_the_same_place_begins_an_epoch() {
        let mut space = AddressSpace::default();
        space.update(&[object(100, 200, 1, 0)]);
        assert_eq!(space.update(&[object(150, 250, 2, 0)]), 1);
        assert_eq!(space.place(0, 160).object, Some((ObjectId(1), 60)));
        assert_eq!(space.place(1, 160).object, Some((ObjectId(2), 10)));
        assert_eq!(space.place(1, 120).kind, FrameKind::Unknown);
    }

    #[test]
    fn generated_code_that_grows_splits_or_moves_is_no_new_epoch() {
        let mut space = AddressSpace::default();
        space.update(&[generated(100, 200)]);
        assert_eq!(space.update(&[generated(100, 150)]), 0);
        assert_eq!(space.update(&[generated(80, 300)]), 0);
        for pc in [80, 120, 299] {
            assert_eq!(space.place(0, pc).kind, FrameKind::Jit);
        }
        assert_eq!(space.place(0, 300).kind, FrameKind::Unknown);
        assert_eq!(space.update(&[object(250, 350, 1, 0)]), 1);
    }

    #[test]
    fn the_same_file_at_another_offset_is_other_code() {
        let mut space = AddressSpace::default();
        space.update(&[object(100, 200, 1, 0)]);
        assert_eq!(space.update(&[object(120, 200, 1, 20)]), 0, "a part of the same mapping");
        assert_eq!(space.update(&[object(100, 200, 1, 50)]), 1);
    }
}
