//! Plain types that the stages hand to each other. No I/O, no rules.

mod frame;
mod memory_class;
mod recording;
mod target;

pub use frame::{Frame, FrameId, FrameKind, Location, Object, ObjectId, Stack};
pub use memory_class::MemoryClass;
pub use recording::{EndReason, Lens, LiveAge, LossTally, RssSample, SiteSample, StackEnd};
pub use target::{Runtime, Target};
