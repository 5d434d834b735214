//! Executable mappings and unwind tables, as the programs look them up.
//!
//! pc → [`Process`] (by tgid) → [`MappingChunk`] → [`Mapping`] → [`PageChunk`] (one entry per KiB of
//! ELF address space) → [`RowChunk`] → a 4-byte row ([`crate::row`]).

use super::layout;

/// Mappings in one chunk; the last used chunk is padded with `start == u64::MAX`.
pub const CHUNK_MAPPINGS: usize = 64;
/// Chunks one process can have: 2,048 executable mappings.
pub const PROCESS_CHUNKS: usize = 32;
/// log2 of the bytes one page entry covers.
pub const PAGE_SHIFT: u32 = 10;
/// Bytes of ELF address space one page entry covers.
pub const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;
/// Page entries per map value.
pub const PAGES_PER_CHUNK: usize = 512;
/// Rows per map value; the rows of one page never straddle two chunks.
pub const ROWS_PER_CHUNK: usize = 1024;

/// A file with an unwind table.
pub const MAPPING_FILE: u32 = 1;
/// Code without a table: frame-pointer steps (JIT, files without CFI).
pub const MAPPING_FRAME_POINTER: u32 = 2;
/// CPython's perf trampolines: `sub $8,%rsp; call *%rcx; add $8,%rsp; ret`, so CFA = rsp + 16.
pub const MAPPING_TRAMPOLINE: u32 = 3;
/// The `[uprobes]` page: the stack runs through another tracer's return probe.
pub const MAPPING_RETURN_PROBE: u32 = 4;
/// A file whose table does not exist (not built yet, unreadable, over the limit).
pub const MAPPING_NO_TABLE: u32 = 5;

/// One executable mapping.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Runtime address minus ELF virtual address, wrapping.
    pub bias: u64,
    /// Index of the page entry of ELF virtual address 0.
    pub page_base: u32,
    /// One of the `MAPPING_` constants.
    pub kind: u32,
}
layout!(Mapping, 32, [start: u64, end: u64, bias: u64, page_base: u32, kind: u32]);

impl Mapping {
    /// Padding behind the last mapping of a chunk.
    pub const NONE: Self = Self { start: u64::MAX, end: 0, bias: 0, page_base: 0, kind: 0 };
}

/// Mappings sorted by `start`.
pub type MappingChunk = [Mapping; CHUNK_MAPPINGS];

/// Page entries: `len:16 | start:16 | chunk:32`, from the high bits; 0 = no unwind information.
pub type PageChunk = [u64; PAGES_PER_CHUNK];

/// Rows ([`crate::row::Row`]).
pub type RowChunk = [u32; ROWS_PER_CHUNK];

/// The mapping set of one process, replaced as a whole when it changes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Changes with every replacement; voids the rule cache. Unique over all processes.
    pub generation: u32,
    /// Changes when an address range came to mean other code; part of the stack's identity.
    pub epoch: u32,
    /// Chunks used.
    pub chunk_count: u32,
    /// Set to 1 by the unwinder when it meets an unknown pc, so that one refresh is asked for once.
    pub refresh: u32,
    /// Start of the first mapping of each chunk, `u64::MAX` behind the last.
    pub top: [u64; PROCESS_CHUNKS],
    /// Index of each chunk.
    pub chunk: [u32; PROCESS_CHUNKS],
}
impl Process {
    /// No mappings: every stack ends at once, and asks for a refresh. No set of user space has generation 0.
    pub const EMPTY: Self = Self {
        generation: 0,
        epoch: 0,
        chunk_count: 0,
        refresh: 0,
        top: [u64::MAX; PROCESS_CHUNKS],
        chunk: [0; PROCESS_CHUNKS],
    };
}
layout!(Process, 16 + 12 * PROCESS_CHUNKS, [generation: u32, epoch: u32, chunk_count: u32, refresh: u32, top: [u64; PROCESS_CHUNKS], chunk: [u32; PROCESS_CHUNKS]]);

/// CFA = stack pointer + `cfa_offset`.
pub const ESCAPE_BASE_STACK_POINTER: u32 = 0;
/// CFA = frame pointer + `cfa_offset`.
pub const ESCAPE_BASE_FRAME_POINTER: u32 = 1;
/// Go's `asmcgocall`, which called C on the thread's stack. The low half of `cfa_offset` is where the goroutine
/// is saved, from the stack pointer, the high half where the depth of its stack is, both in bytes;
/// CFA = upper end of the goroutine's stack (the second word of the goroutine) - depth + added bytes.
pub const ESCAPE_BASE_GO_SWITCH: u32 = 2;
/// The bits of the base.
pub const ESCAPE_BASE_MASK: u32 = 0xf;
/// Flag beside the base: CFA is what stands in memory at base + offset (realigned frames).
pub const ESCAPE_DEREFERENCE: u32 = 0x10;
/// Flag beside the base: the caller's frame is on another stack, which may lie below.
pub const ESCAPE_OTHER_STACK: u32 = 0x20;
/// Where the added bytes begin in `cfa_base`: they are added to the CFA last of all.
pub const ESCAPE_ADDED_SHIFT: u32 = 16;
/// The caller's frame pointer is unchanged.
pub const ESCAPE_FP_SAME: u32 = 0;
/// The caller's frame pointer was saved at CFA + `fp_offset`.
pub const ESCAPE_FP_AT_CFA: u32 = 1;
/// The caller's frame pointer was saved at frame pointer + `fp_offset`.
pub const ESCAPE_FP_AT_FP: u32 = 2;

/// The bits of `ESCAPE_FP_*`.
pub const ESCAPE_FP_MASK: u32 = 0xffff;
/// aarch64: where the place of the return address begins in `fp_rule`, in eighths below the CFA; 0: in the link register.
pub const ESCAPE_LINK_SHIFT: u32 = 16;

/// A rule that does not fit into a row. On x86-64 the return address is always at CFA - 8.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EscapeRule {
    /// `ESCAPE_BASE_*`, with [`ESCAPE_DEREFERENCE`], [`ESCAPE_OTHER_STACK`] or without; added bytes in the high half.
    pub cfa_base: u32,
    /// Bytes.
    pub cfa_offset: i32,
    /// `ESCAPE_FP_*`.
    pub fp_rule: u32,
    /// Bytes.
    pub fp_offset: i32,
}
layout!(EscapeRule, 16, [cfa_base: u32, cfa_offset: i32, fp_rule: u32, fp_offset: i32]);

/// Entries of the rule cache of one scratch slot, a power of two; a slot must stay below the 32 KiB that a
/// per-CPU map value can have.
pub const RULE_CACHE_ENTRIES: usize = 2048;

/// A cached lookup, exact: pc (48 bits), generation (26 bits) and rule (22 bits). It belongs to whoever has
/// claimed the slot, so no two programs write it at the same time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCacheEntry {
    /// Low half of the pc.
    pub pc_low: u32,
    /// Bits 32 to 47 of the pc, and above them 16 bits of the generation.
    pub pc_high: u32,
    /// The rule, and above it 10 further bits of the generation.
    pub rule: u32,
}
layout!(RuleCacheEntry, 12, [pc_low: u32, pc_high: u32, rule: u32]);
