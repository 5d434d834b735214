//! The unwinder: tables made from .eh_frame, one global function per two frames.
//!
//! Verifier: `step_two` is a global function (scalar arguments, all of them used), so it is looked at
//! once however many frames the caller's bounded loop asks for. Binary searches read their arrays
//! through masked pointers with volatile reads; otherwise LLVM drops the masks, or the verifier follows
//! every path of the search and gives up at a million instructions.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use core::{ffi::c_void, ptr};
use tracer_common::{
    abi::{
        CHUNK_MAPPINGS, MAPPING_FILE, MAPPING_FRAME_POINTER, MAPPING_RETURN_PROBE, MAPPING_TRAMPOLINE,
        MAX_FRAMES, Mapping, PAGE_SHIFT, PAGES_PER_CHUNK, PROCESS_CHUNKS, ROWS_PER_CHUNK, RULE_CACHE_ENTRIES,
        RuleCacheEntry, SLOTS_PER_CPU, StackEnd, TRAIL_WORDS, WINDOW_BYTES,
    },
    row,
};

use crate::{
    machine::{self, step},
    map::{MAPPINGS, PAGES, PROCESSES, ROWS, SLOTS},
    scratch::{NO_WINDOW, Slot},
    trail::Word,
};

/// A failed lookup is `FAILED | StackEnd`; rules have 22 bits.
const FAILED: u32 = 1 << 31;
/// `fp_from`: the frame pointer is that of the start.
const FP_AT_START: u64 = 0;
/// `fp_from`: the walk has used the frame pointer.
#[cfg(bpf_target_arch = "x86_64")]
const FP_NOTED: u64 = 1;
const HASH_SEED: u64 = 0xcbf2_9ce4_8422_2325;
const HASH_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Where a walk begins.
#[derive(Clone, Copy)]
pub struct Start {
    /// Program counter: a return address, or the one behind a `syscall` instruction.
    pub pc: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub fp: u64,
    /// 1: the program counter is the instruction itself, and no return address.
    pub leaf: u32,
    /// What the link register holds, if that is a return address; 0: it is not known to.
    #[cfg(bpf_target_arch = "aarch64")]
    pub link: u64,
}

/// Walks the stack from `start`; afterwards `slot.event` holds it. The first pc is looked up as a return
/// address, unless it is a leaf's.
#[inline(always)]
pub fn walk(slot: *mut Slot, index: u32, tgid: u32, start: Start) {
    // SAFETY: `slot` is the claimed map value of `index`.
    let state = unsafe { &mut *slot };
    state.pc = start.pc;
    state.sp = start.sp;
    state.fp = start.fp;
    state.hash = HASH_SEED;
    state.leaf = start.leaf;
    #[cfg(bpf_target_arch = "aarch64")]
    {
        state.link = start.link;
    }
    state.window_start = NO_WINDOW;
    state.word_count = 0;
    state.fp_from = FP_AT_START;
    state.uses_start_fp = u32::from(!machine::TRACKS_FRAME_POINTER);
    state.event.frame_count = 0;
    state.event.end = StackEnd::Truncated as u32;
    state.generation = 0;
    state.epoch = 0;
    if let Some(process) = PROCESSES.get_ptr(tgid) {
        // SAFETY: a map value; a replaced one stays readable, its generation tells (see `mapping_of`).
        unsafe {
            state.generation = (*process).generation;
            state.epoch = (*process).epoch;
        }
    }
    walk_frames(tgid, index);
    // The end is part of the identity: the same frames can end whole or broken.
    state.hash = mix(state.hash, u64::from(state.event.end));
}

/// One step of the hash that identifies a stack.
#[inline(always)]
pub fn mix(hash: u64, value: u64) -> u64 {
    let hash = (hash ^ value).wrapping_mul(HASH_FACTOR);
    hash ^ (hash >> 29)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_frames(tgid: u32, index: u32) -> u32 {
    let mut frame = 0;
    while frame < MAX_FRAMES {
        if step_two(tgid, index) != 0 {
            return 0;
        }
        frame += 2;
    }
    1
}

/// Stores the current frame and its caller and goes on to the next; 1 when the stack ends. Two at a time: the
/// call and the lookup of the slot cost a fifth of a frame.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn step_two(tgid: u32, index: u32) -> u32 {
    let Some(slot) = SLOTS.get_ptr_mut(index & (SLOTS_PER_CPU - 1)) else { return 1 };
    // SAFETY: a map value, claimed by this program.
    let state = unsafe { &mut *slot };
    match step(state, tgid).and_then(|()| step(state, tgid)) {
        Ok(()) => 0,
        Err(end) => {
            state.event.end = end as u32;
            1
        }
    }
}

/// One 8-byte word of the user stack, through the window, noted for the trail; sets `fault` when it cannot be read.
#[inline(always)]
pub fn read_stack(state: &mut Slot, address: u64) -> u64 {
    let value = peek(state, address);
    note(state, address, value);
    value
}

#[inline(always)]
fn note(state: &mut Slot, address: u64, value: u64) {
    let at = state.word_count as usize;
    if at < TRAIL_WORDS {
        // SAFETY: in bounds; the mask tells the verifier so.
        unsafe { *state.words.as_mut_ptr().add(at & (TRAIL_WORDS - 1)) = Word { address, value } };
    }
    state.word_count = at as u32 + 1;
}

/// Loads what may be the caller's frame pointer. Most functions use that register for anything, so it is noted when the
/// walk uses it only.
#[inline(always)]
#[cfg(bpf_target_arch = "x86_64")]
pub fn load_frame_pointer(state: &mut Slot, address: u64) {
    state.fp = peek(state, address);
    state.fp_from = address;
}

/// The frame pointer, to go on from.
#[inline(always)]
#[cfg(bpf_target_arch = "x86_64")]
pub fn frame_pointer(state: &mut Slot) -> u64 {
    match state.fp_from {
        FP_AT_START => state.uses_start_fp = 1,
        FP_NOTED => {}
        address => note(state, address, state.fp),
    }
    state.fp_from = FP_NOTED;
    state.fp
}

/// The same as [`read_stack`], not noted.
#[inline(always)]
pub fn peek(state: &mut Slot, address: u64) -> u64 {
    let distance = address.wrapping_sub(state.window_start);
    if distance < WINDOW_BYTES as u64 {
        // SAFETY: the mask keeps the index inside of the window.
        return unsafe {
            ptr::read_volatile(state.window.as_ptr().add((distance >> 3) as usize & (WINDOW_BYTES / 8 - 1)))
        };
    }
    state.window_start = address;
    // SAFETY: the destination is the window, of that size.
    if unsafe {
        bpf_probe_read_user(state.window.as_mut_ptr().cast(), WINDOW_BYTES as u32, address as *const c_void)
    } != 0
    {
        // Less than a window is left below the end of the stack.
        state.window_start = NO_WINDOW;
        // SAFETY: as above, with 8 bytes.
        if unsafe { bpf_probe_read_user(state.window.as_mut_ptr().cast(), 8, address as *const c_void) } != 0
        {
            state.fault = 1;
            return 0;
        }
    }
    // SAFETY: in bounds.
    unsafe { ptr::read_volatile(state.window.as_ptr()) }
}

/// The rule for a program counter.
#[inline(always)]
pub fn cached_rule(state: &mut Slot, tgid: u32, pc: u64) -> Result<u32, StackEnd> {
    let index = (pc.wrapping_mul(HASH_FACTOR) >> 40) as usize & (RULE_CACHE_ENTRIES - 1);
    // SAFETY: the mask keeps the index inside.
    let entry = unsafe { &mut *state.cache.as_mut_ptr().add(index) };
    let generation = state.generation;
    let pc_low = pc as u32;
    let pc_high = (pc >> 32) as u32 | (generation << 16);
    let above_rule = (generation >> 16) << 22;
    if entry.pc_low == pc_low && entry.pc_high == pc_high && entry.rule & !row::RULE_MASK == above_rule {
        return Ok(entry.rule & row::RULE_MASK);
    }
    let rule = find_rule(tgid, generation, pc);
    if rule & FAILED != 0 {
        return Err(match rule & 0xff {
            code if code == StackEnd::NoProcess as u32 => StackEnd::NoProcess,
            code if code == StackEnd::NoTable as u32 => StackEnd::NoTable,
            code if code == StackEnd::ForeignReturnProbe as u32 => StackEnd::ForeignReturnProbe,
            _ => StackEnd::NoMapping,
        });
    }
    // SAFETY: as above; the entry is computed again, since the search has clobbered the registers.
    let entry = unsafe { &mut *state.cache.as_mut_ptr().add(index) };
    *entry = RuleCacheEntry { pc_low, pc_high, rule: rule | above_rule };
    Ok(rule)
}

const fn failed(end: StackEnd) -> u32 {
    FAILED | end as u32
}

#[inline(always)]
fn find_rule(tgid: u32, generation: u32, pc: u64) -> u32 {
    let mapping = match mapping_of(tgid, generation, pc) {
        Ok(mapping) => mapping,
        Err(end) => return failed(end),
    };
    // SAFETY: a map value.
    let mapping = unsafe { *mapping };
    match mapping.kind {
        MAPPING_FILE => table_rule(mapping.page_base, pc.wrapping_sub(mapping.bias)),
        MAPPING_FRAME_POINTER => row::rule(row::KIND_FRAME_POINTER, 0, 0),
        MAPPING_TRAMPOLINE => row::rule(row::KIND_TRAMPOLINE, 0, 0),
        MAPPING_RETURN_PROBE => failed(StackEnd::ForeignReturnProbe),
        _ => failed(StackEnd::NoTable),
    }
}

#[inline(always)]
fn mapping_of(tgid: u32, generation: u32, pc: u64) -> Result<*const Mapping, StackEnd> {
    let Some(process) = PROCESSES.get_ptr(tgid) else { return Err(StackEnd::NoProcess) };
    // SAFETY: a map value.
    let process = unsafe { &*process };
    let top = process.top.as_ptr();
    let (mut low, mut high) = (0u32, process.chunk_count);
    let mut round = 0;
    while round < 6 {
        if low >= high {
            break;
        }
        let middle = (low + high) >> 1;
        // SAFETY: masked.
        if unsafe { ptr::read_volatile(top.add(middle as usize & (PROCESS_CHUNKS - 1))) } <= pc {
            low = middle + 1;
        } else {
            high = middle;
        }
        round += 1;
    }
    if low == 0 {
        return Err(StackEnd::NoMapping);
    }
    // SAFETY: masked.
    let chunk =
        unsafe { ptr::read_volatile(process.chunk.as_ptr().add((low as usize - 1) & (PROCESS_CHUNKS - 1))) };
    let Some(mappings) = MAPPINGS.get_ptr(chunk) else { return Err(StackEnd::NoMapping) };
    let mappings = mappings as *const Mapping;
    let (mut low, mut high) = (0u32, CHUNK_MAPPINGS as u32);
    let mut round = 0;
    while round < 7 {
        if low >= high {
            break;
        }
        let middle = (low + high) >> 1;
        // SAFETY: masked.
        let start = unsafe {
            ptr::read_volatile(&raw const (*mappings.add(middle as usize & (CHUNK_MAPPINGS - 1))).start)
        };
        if start <= pc {
            low = middle + 1;
        } else {
            high = middle;
        }
        round += 1;
    }
    if low == 0 {
        return Err(StackEnd::NoMapping);
    }
    // SAFETY: masked.
    let mapping = unsafe { mappings.add((low as usize - 1) & (CHUNK_MAPPINGS - 1)) };
    // SAFETY: a map value. The set may have been replaced under us and its memory be in use again: then
    // the generation differs, and the stack ends here rather than wrong.
    unsafe {
        if pc >= (*mapping).end || ptr::read_volatile(&raw const process.generation) != generation {
            return Err(StackEnd::NoMapping);
        }
    }
    Ok(mapping)
}

#[inline(always)]
fn table_rule(page_base: u32, address: u64) -> u32 {
    let frame_pointer = row::rule(row::KIND_FRAME_POINTER, 0, 0);
    let page = page_base.wrapping_add((address >> PAGE_SHIFT) as u32);
    let Some(pages) = PAGES.get_ptr(page / PAGES_PER_CHUNK as u32) else { return failed(StackEnd::NoTable) };
    // SAFETY: masked.
    let entry = unsafe { *(pages as *const u64).add(page as usize & (PAGES_PER_CHUNK - 1)) };
    let (length, start, chunk) = ((entry >> 48) as u32, (entry >> 32) as u32 & 0xffff, entry as u32);
    if length == 0 {
        return frame_pointer;
    }
    let Some(rows) = ROWS.get_ptr(chunk) else { return failed(StackEnd::NoTable) };
    let rows = rows as *const u32;
    let offset = address as u32 & 0x3ff;
    let (mut low, mut high) = (start, start + length);
    let mut round = 0;
    while round < 11 {
        if low >= high {
            break;
        }
        let middle = (low + high) >> 1;
        // SAFETY: masked.
        let row = unsafe { ptr::read_volatile(rows.add(middle as usize & (ROWS_PER_CHUNK - 1))) };
        if row::page_offset(row) <= offset {
            low = middle + 1;
        } else {
            high = middle;
        }
        round += 1;
    }
    if low <= start {
        return frame_pointer;
    }
    // SAFETY: masked.
    unsafe { ptr::read_volatile(rows.add((low as usize - 1) & (ROWS_PER_CHUNK - 1))) & row::RULE_MASK }
}
