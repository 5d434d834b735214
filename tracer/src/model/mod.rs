//! Plain types that the stages hand to each other. No I/O, no rules.

mod allocator;
mod frame;
mod ledger;
mod machine;
mod memory_class;
mod process;
mod recording;
mod target;

pub use allocator::{Allocator, AllocatorId};
pub use frame::{Frame, FrameId, FrameKind, Location, Object, ObjectId, Stack};
pub use ledger::{Ledger, LedgerClass, LedgerRow, MemoryLimit, RuntimeFigure};
pub use machine::Machine;
pub use memory_class::{MemoryClass, SiteClass};
pub use process::{Process, ProcessEnd, ProcessId};
pub use recording::{
    EndReason, Lens, Lifetime, LiveAge, LiveSize, LossTally, RssSample, SampledAge, SiteSample, StackEnd,
};
pub use target::{Runtime, Target};
