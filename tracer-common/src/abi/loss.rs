//! What can be lost or seen beside the bookkeeping, each with a counter of its own.

use super::layout;

/// How often, and how many bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events.
    pub count: u64,
    /// Bytes concerned; 0 where the event has none.
    pub bytes: u64,
}
layout!(Tally, 16, [count: u64, bytes: u64]);

macro_rules! losses {
    ($($variant:ident = $id:literal, $name:literal, $incomplete:literal, $doc:literal;)+) => {
        /// A reason; its code is the index into the tally map. Codes are append-only.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Loss {
            $(#[doc = $doc] $variant = $id,)+
        }
        impl Loss {
            /// Every reason, in order of its code.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// Entries of the tally map.
            pub const COUNT: u32 = Self::ALL.len() as u32;
            /// The name used in reports and captures.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
            /// Whether it makes the result incomplete; the others are observations.
            pub const fn is_incomplete(self) -> bool {
                match self { $(Self::$variant => $incomplete,)+ }
            }
            /// What it means for the numbers, in one sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $doc,)+ }
            }
        }
    };
}

losses! {
    LiveMapFull = 0, "live-map-full", true, "Blocks that were not booked because the live map was full.";
    StackMapFull = 1, "stack-map-full", true, "Allocations whose stack could not be interned because the stack map was full; their bytes are counted without a stack.";
    SiteMapFull = 2, "site-map-full", true, "Allocations whose stack got no site because all sites were taken; their bytes are counted without a stack.";
    StackRingFull = 3, "stack-ring-full", true, "Allocations whose stack did not fit into the event ring; their bytes are counted without a stack.";
    InFlightFull = 4, "in-flight-full", true, "Calls that were not followed because the map of calls in flight was full.";
    NoScratchSlot = 5, "no-scratch-slot", true, "Allocations whose stack was not walked because all scratch slots of the CPU were taken; their bytes are counted without a stack.";
    ResultReadFault = 6, "read-fault", true, "Successful aligned allocations whose result could not be read from the target's memory.";
    MissedRelease = 7, "missed-release", true, "Allocations at an address that was still live: its release was not seen, the old block was booked as freed.";
    AsideRestoreFailed = 8, "restore-failed", true, "Blocks that survived a failed realloc but could not be put back because the live map was full.";
    SizeOverflow = 9, "size-overflow", true, "Calls that returned a block although count times size overflows; not booked.";
    EventRingFull = 10, "event-ring-full", true, "Lifecycle events (exec, unknown code) that did not fit into the event ring.";
    UnknownRelease = 11, "unknown-release", false, "Releases of blocks that were not booked: allocated before the attach, or filtered out.";
    AbandonedCall = 12, "abandoned-call", false, "Allocator calls that were left by longjmp or an exception, and were replaced by the next call of the thread.";
    UnmatchedReturn = 13, "unmatched-return", false, "Returns of calls that were entered before the attach.";
    FailedAllocation = 14, "failed-allocation", false, "Allocator calls that returned no block.";
    FilteredSize = 15, "filtered-size", false, "Allocations outside of the chosen size range.";
    InterningRace = 16, "interning-race", false, "Stacks that two CPUs interned at the same time; one site stays unused.";
    NestedCall = 17, "nested-call", false, "Allocator calls made inside another allocator call; only the outermost is booked.";
    MappingRingFull = 18, "mapping-ring-full", true, "System calls that map or unmap whose record did not fit into the event ring; their bytes are not counted, and the mappings were compared with /proc.";
    FaultMapFull = 19, "fault-map-full", true, "Page faults that were not booked because too many pages waited to be looked at; what they made resident shows as without a stack.";
    FaultRangeLost = 20, "fault-range-lost", true, "Moved or populated ranges whose record did not fit into the event ring; their resident pages show as without a stack.";
    SharerUnseen = 21, "sharer-unseen", true, "Processes that shared the memory of a recorded one (vfork, clone(CLONE_VM)) and ended there: the kernel does not run `uprobe_multi` probes for them, so what they allocated or freed is not in the result; `--probe-kind perf` sees it.";
    SharerExecuted = 22, "sharer-executed", false, "Processes that shared the memory of a recorded one (vfork, posix_spawn) until they executed a program: allocator calls before that, of which there mostly are none, are not in the result; `--probe-kind perf` sees them.";
}
