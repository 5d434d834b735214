//! Records of the event ring. There is no event per allocation: a stack is sent once, when it is first seen.

use super::{MAX_FRAMES, layout};

/// A stack seen for the first time: [`StackEvent`], cut after its last frame.
pub const EVENT_STACK: u32 = 1;
/// The process has executed a new program: [`EventHeader`] alone, `value` is the time in ns.
pub const EVENT_EXEC: u32 = 2;
/// A traced process has a child with memory of its own: [`EventHeader`] alone, `tgid` is the child, `value` the
/// parent's process id, with the epoch in which the child begins from bit 32 on, and [`FORK_EXECUTED`]. For a child that had shared its parent's memory, at its exec.
pub const EVENT_FORK: u32 = 5;
/// Set in the value of an [`EVENT_FORK`] whose child has executed a program already.
pub const FORK_EXECUTED: u64 = 1 << 63;
/// The unwinder met a program counter in no known mapping: [`EventHeader`] alone, `value` is that pc.
pub const EVENT_REFRESH: u32 = 3;

/// The site is one of allocator calls; its bytes are counted by the kernel's programs.
pub const LENS_MALLOC: u32 = 0;
/// The site is one of mappings; its bytes are counted by user space.
pub const LENS_MMAP: u32 = 1;
/// The site is one of page faults; its resident bytes are counted by user space.
pub const LENS_FAULTS: u32 = 2;

/// Set in a program counter that is not a return address: a signal interrupted the code right there.
/// User addresses never have this bit.
pub const FRAME_INTERRUPTED: u64 = 1 << 63;

/// Begins every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventHeader {
    /// One of the `EVENT_` constants.
    pub kind: u32,
    /// Process id.
    pub tgid: u32,
    /// Depends on the kind.
    pub value: u64,
}
layout!(EventHeader, 16, [kind: u32, tgid: u32, value: u64]);

/// An interned stack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StackEvent {
    /// `value` is the stack hash.
    pub header: EventHeader,
    /// Index into the site counters.
    pub site: u32,
    /// Address-space epoch in which the frames are valid.
    pub epoch: u32,
    /// Frames that follow.
    pub frame_count: u32,
    /// [`super::StackEnd`] code.
    pub end: u32,
    /// [`LENS_MALLOC`], [`LENS_MMAP`] or [`LENS_FAULTS`].
    pub lens: u32,
    /// What tells sites with the same stack apart. [`LENS_MALLOC`]: the allocator's number, as in the attach
    /// cookie. [`LENS_MMAP`]: what kind of mapping, and the number of the allocator that asked for it.
    pub origin: u32,
    /// Program counters, innermost first: return addresses, except those with [`FRAME_INTERRUPTED`].
    pub frames: [u64; MAX_FRAMES],
}
layout!(StackEvent, 40 + 8 * MAX_FRAMES, [header: EventHeader, site: u32, epoch: u32, frame_count: u32, end: u32, lens: u32, origin: u32, frames: [u64; MAX_FRAMES]]);

impl StackEvent {
    /// Bytes before the first frame.
    pub const HEAD_BYTES: usize = 40;
}

/// Pages of raw stack in a [`Validation`].
pub const VALIDATION_PAGES: usize = 14;

/// One sample of the validate mode.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Validation {
    /// Registers in DWARF order, the instruction pointer as register 16.
    pub registers: [u64; 17],
    /// Process id.
    pub tgid: u32,
    /// Frames that follow.
    pub frame_count: u32,
    /// [`super::StackEnd`] code.
    pub end: u32,
    /// Bytes of stack that follow.
    pub stack_bytes: u32,
    /// What the kernel side has walked.
    pub frames: [u64; MAX_FRAMES],
    /// The stack, from the stack pointer up.
    pub stack: [[u8; 4096]; VALIDATION_PAGES],
}
layout!(Validation, 17 * 8 + 16 + 8 * MAX_FRAMES + 4096 * VALIDATION_PAGES, [registers: [u64; 17], tgid: u32, frame_count: u32, end: u32, stack_bytes: u32, frames: [u64; MAX_FRAMES], stack: [[u8; 4096]; VALIDATION_PAGES]]);
