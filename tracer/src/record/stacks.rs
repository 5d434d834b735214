//! Turns the kernel's stacks into frames with an identity of their own.

use std::collections::HashMap;

use super::address_space::{AddressSpace, Place};
use tracer_common::abi::FRAME_INTERRUPTED;

use crate::model::{Frame, FrameId, FrameKind, Lens, ProcessId, Stack, StackEnd};

/// What is known of a frame besides what the capture holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Origin {
    epoch: u32,
    is_return_address: bool,
}

/// All stacks and frames of a recording.
#[derive(Debug, Default)]
pub struct StackBook {
    ids: HashMap<(u32, u32, u64), FrameId>,
    frames: Vec<Frame>,
    origins: Vec<Origin>,
}

/// What a stack has added.
#[derive(Debug)]
pub struct Added {
    /// The stack.
    pub stack: Stack,
    /// Frames that were not known before.
    pub frames: Vec<Frame>,
}

impl StackBook {
    /// Adds a stack as the kernel has sent it.
    pub fn add(
        &mut self,
        space: &AddressSpace,
        (tgid, epoch): (u32, u32),
        site: u32,
        pcs: &[u64],
        end: StackEnd,
    ) -> Added {
        let mut new = Vec::new();
        let frames = pcs
            .iter()
            .map(|pc| {
                *self.ids.entry((tgid, epoch, *pc)).or_insert_with(|| {
                    let id = FrameId(u32::try_from(self.frames.len()).unwrap_or(u32::MAX));
                    let address = *pc & !FRAME_INTERRUPTED;
                    let Place { kind, object } = space.place(epoch, address);
                    let frame = Frame {
                        id,
                        address,
                        object: object.map(|(object, _)| object),
                        file_offset: object.map(|(_, offset)| offset),
                        kind,
                        locations: Vec::new(),
                    };
                    new.push(frame.clone());
                    self.frames.push(frame);
                    self.origins.push(Origin { epoch, is_return_address: *pc == address });
                    id
                })
            })
            .collect();
        let stack = Stack { site, process: ProcessId(0), lens: Lens::Malloc, allocator: None, frames, end };
        Added { stack, frames: new }
    }

    /// All frames, each with whether its address is a return address.
    pub fn frames(&self) -> impl Iterator<Item = (&Frame, bool)> {
        self.frames.iter().zip(self.origins.iter().map(|origin| origin.is_return_address))
    }

    /// Sets the kind of a frame, and gives it as it is now.
    pub fn set_kind(&mut self, id: FrameId, kind: FrameKind) -> Option<&Frame> {
        let frame = self.frames.get_mut(id.0 as usize)?;
        frame.kind = kind;
        Some(frame)
    }

    /// Looks again for the frames that were in no known mapping when they came, and returns those that
    /// have a place now.
    pub fn place_unknown(&mut self, space: &AddressSpace) -> Vec<Frame> {
        let mut placed = Vec::new();
        for (frame, origin) in self.frames.iter_mut().zip(&self.origins) {
            if frame.kind != FrameKind::Unknown {
                continue;
            }
            let Place { kind, object } = space.place(origin.epoch, frame.address);
            if kind != frame.kind {
                frame.kind = kind;
                frame.object = object.map(|(object, _)| object);
                frame.file_offset = object.map(|(_, offset)| offset);
                placed.push(frame.clone());
            }
        }
        placed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::ObjectId,
        record::address_space::{Code, CodeRange},
    };

    #[test]
    fn frames_are_shared_and_late_mappings_are_found() {
        let mut space = AddressSpace::default();
        let range = |start, end, id| CodeRange {
            start,
            end,
            code: Code::Object { id: ObjectId(id), file_offset: 0 },
        };
        space.update(&[range(100, 200, 1)]);
        let mut book = StackBook::default();
        let first = book.add(&space, (7, 0), 1, &[110, 350], StackEnd::NoMapping);
        assert_eq!(first.frames.len(), 2);
        assert_eq!(first.frames[1].kind, FrameKind::Unknown);
        let second = book.add(&space, (7, 0), 2, &[120, 110], StackEnd::ThreadStart);
        assert_eq!(second.frames.len(), 1, "pc 110 is known");
        assert_eq!(second.stack.frames[1], first.stack.frames[0]);
        assert!(book.place_unknown(&space).is_empty());
        space.update(&[range(100, 200, 1), range(300, 400, 2)]);
        let placed = book.place_unknown(&space);
        assert_eq!(placed.len(), 1);
        assert_eq!((placed[0].object, placed[0].file_offset), (Some(ObjectId(2)), Some(50)));
    }
}
