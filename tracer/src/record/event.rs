//! Decodes the records of the event ring. Copies from length-checked slices; unknown kinds are counted.

use tracer_common::abi::{
    EVENT_EXEC, EVENT_FAULT_RANGE, EVENT_FAULTS_PENDING, EVENT_FORK, EVENT_MAPPING, EVENT_REFRESH,
    EVENT_STACK, EventHeader, FORK_EXECUTED, LENS_FAULTS, LENS_MMAP, MAX_FRAMES, MappingEvent, StackEnd,
    StackEvent, read,
};

use crate::model::{AllocatorId, Lens};

/// A decoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A stack that was seen for the first time.
    Stack {
        /// Process.
        tgid: u32,
        /// Its site.
        site: u32,
        /// Address-space epoch of its frames.
        epoch: u32,
        /// Why it ends.
        end: StackEnd,
        /// `LENS_` constant.
        lens: u32,
        /// See [`StackEvent::origin`].
        origin: u32,
        /// Innermost first.
        frames: Vec<u64>,
    },
    /// A traced process has a child with memory of its own.
    Fork {
        /// The child.
        tgid: u32,
        /// Its parent.
        parent: u32,
        /// Address-space epoch in which the child begins.
        epoch: u32,
        /// Whether it has executed a program already.
        has_executed: bool,
    },
    /// The process has mapped or unmapped something.
    Mapping(MappingEvent),
    /// Pages have moved, or were made resident without faults.
    FaultRange(MappingEvent),
    /// Many faults wait.
    FaultsPending,
    /// The process has executed a new program.
    Exec {
        /// Process.
        tgid: u32,
        /// `CLOCK_MONOTONIC`.
        time_ns: u64,
    },
    /// The unwinder met a pc in no known mapping.
    Refresh {
        /// Process.
        tgid: u32,
    },
}

/// Decodes one record; `None` if it is none of ours.
pub fn decode(bytes: &[u8]) -> Option<Event> {
    let header: EventHeader = read(bytes)?;
    match header.kind {
        EVENT_EXEC => Some(Event::Exec { tgid: header.tgid, time_ns: header.value }),
        EVENT_FORK => Some(Event::Fork {
            tgid: header.tgid,
            parent: header.value as u32,
            epoch: ((header.value & !FORK_EXECUTED) >> 32) as u32,
            has_executed: header.value & FORK_EXECUTED != 0,
        }),
        EVENT_MAPPING => read(bytes).map(Event::Mapping),
        EVENT_FAULT_RANGE => read(bytes).map(Event::FaultRange),
        EVENT_FAULTS_PENDING => Some(Event::FaultsPending),
        EVENT_REFRESH => Some(Event::Refresh { tgid: header.tgid }),
        EVENT_STACK => {
            let word = |offset: usize| bytes.get(offset..).and_then(read::<u32>);
            let count = word(24)? as usize;
            let end = StackEnd::from_code(u8::try_from(word(28)?).ok()?)?;
            if count > MAX_FRAMES {
                return None;
            }
            let body = bytes.get(StackEvent::HEAD_BYTES..)?.get(..count * 8)?;
            let frames = body.chunks_exact(8).filter_map(read::<u64>).collect();
            Some(Event::Stack {
                tgid: header.tgid,
                site: word(16)?,
                epoch: word(20)?,
                end,
                lens: word(32)?,
                origin: word(36)?,
                frames,
            })
        }
        _ => None,
    }
}

/// What the two fields of a stack event mean.
pub fn lens_and_allocator(lens: u32, origin: u32) -> (Lens, Option<AllocatorId>) {
    let (lens, number) = match lens {
        LENS_MMAP => (Lens::Mmap, origin >> 16),
        LENS_FAULTS => (Lens::Faults, 0),
        _ => (Lens::Malloc, origin),
    };
    (lens, (number != 0).then_some(AllocatorId(number)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stack_bytes(frames: &[u64], end: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [EVENT_STACK, 7] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(0x1234u64.to_le_bytes());
        for word in [3, 5, u32::try_from(frames.len()).unwrap(), end, LENS_MMAP, 9] {
            bytes.extend(word.to_le_bytes());
        }
        frames.iter().for_each(|frame| bytes.extend(frame.to_le_bytes()));
        bytes
    }

    #[test]
    fn a_stack_is_decoded_by_the_layout_of_the_abi() {
        assert_eq!(std::mem::offset_of!(StackEvent, site), 16);
        assert_eq!(std::mem::offset_of!(StackEvent, epoch), 20);
        assert_eq!(std::mem::offset_of!(StackEvent, frame_count), 24);
        assert_eq!(std::mem::offset_of!(StackEvent, end), 28);
        assert_eq!(std::mem::offset_of!(StackEvent, lens), 32);
        assert_eq!(std::mem::offset_of!(StackEvent, origin), 36);
        let event = decode(&stack_bytes(&[10, 20], StackEnd::ThreadStart as u32)).unwrap();
        let frames = vec![10, 20];
        let end = StackEnd::ThreadStart;
        let wanted = Event::Stack { tgid: 7, site: 3, epoch: 5, end, lens: LENS_MMAP, origin: 9, frames };
        assert_eq!(event, wanted);
    }

    #[test]
    fn a_short_or_unknown_record_is_refused() {
        let whole = stack_bytes(&[10, 20], 1);
        for length in 0..whole.len() {
            assert_eq!(decode(&whole[..length]), None, "cut at {length}");
        }
        assert_eq!(decode(&stack_bytes(&[10], 200)), None);
        assert_eq!(decode(&[9; 16]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let _ = decode(&bytes);
        }
    }
}
