//! Page faults: who made which page resident.
//!
//! The tracepoints fire for every fault of the machine: whether the process is traced comes first. A fault is noted by
//! its page; what becomes of the page is for user space to see (`/proc/PID/pagemap`), so nothing need be known of how
//! memory is given back.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST, BPF_RB_FORCE_WAKEUP},
    helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    programs::{RawTracePointContext, TracePointContext},
};
use core::ptr;
use tracer_common::abi::{
    EVENT_FAULT_RANGE, EVENT_FAULTS_PENDING, EventHeader, FAULT_FRESH, FAULT_IN_KERNEL, FAULT_LEVEL_KERNEL,
    FAULT_LEVEL_USER, FAULT_ON_PRESENT, FAULT_ON_STACK, FAULT_WRITE, FAULTS_ADDED, FAULTS_TAKEN, LENS_FAULTS,
    Loss, MAX_FAULT_LEVEL, MappingEvent, OPERATION_MAP, OPERATION_REMAP, OPERATION_UNMAP, PageFault, PageKey,
    is_admitted, pending_limit,
};

use crate::{
    atomic, book, in_flight,
    intern::{self, Origin},
    map::{EVENTS, FAULT_STATE, FAULTS, MOVES, PROCESSES, setting},
    scratch,
    syscall::{self, Caller},
    task::{self, Registers, system_call},
    walk::Start,
};

const PAGE_BYTES: u64 = 4096;
const PAGE_SHIFT: u64 = 12;
/// The kernel's EEXIST, negated.
const EEXIST: i32 = -17;
/// A fault from this far below the stack pointer (a probe of a large frame) …
const BELOW_STACK_BYTES: u64 = 64 << 10;
/// … to this far above it is one of the stack, as far as this side can tell.
const ABOVE_STACK_BYTES: u64 = 1 << 20;
/// `MAP_FIXED`, `MAP_LOCKED`, `MAP_POPULATE`, include/uapi/asm-generic/mman-common.h.
const MAP_FIXED: u64 = 0x10;
const MAP_LOCKED: u64 = 0x2000;
const MAP_POPULATE: u64 = 0x8000;
/// `MADV_DONTNEED`.
const MADV_DONTNEED: u64 = 4;
/// `MADV_POPULATE_READ`, `MADV_POPULATE_WRITE`.
const MADV_POPULATE_READ: u64 = 22;
const MADV_POPULATE_WRITE: u64 = 23;

/// A fault of the program itself. Its program counter is the instruction that touches.
#[inline(always)]
pub fn in_user_mode(ctx: &RawTracePointContext) {
    let (pid_tgid, tgid) = current();
    if PROCESSES.get_ptr(tgid).is_some() {
        fault(ctx, (pid_tgid, tgid), (1, 0));
    }
}

/// A fault of the kernel, on an address of the program: in a system call, mostly.
#[inline(always)]
pub fn in_kernel_mode(ctx: &RawTracePointContext) {
    let address: u64 = ctx.arg(0);
    if (address as i64) < 0 {
        return;
    }
    let (pid_tgid, tgid) = current();
    // What the stack walk reads and cannot get is no memory of the target.
    if PROCESSES.get_ptr(tgid).is_some() && !scratch::is_at_work(pid_tgid) {
        fault(ctx, (pid_tgid, tgid), (0, FAULT_IN_KERNEL));
    }
}

#[inline(always)]
fn current() -> (u64, u32) {
    let pid_tgid = task::pid_tgid();
    (pid_tgid, task::memory_owner(pid_tgid))
}

#[inline(always)]
fn fault(ctx: &RawTracePointContext, (pid_tgid, tgid): (u64, u32), (leaf, flags): (u32, u32)) {
    let address: u64 = ctx.arg(0);
    let error: u64 = ctx.arg(2);
    // The upper half is the kernel's.
    if (address as i64) < 0 {
        return;
    }
    let page = address >> PAGE_SHIFT;
    let level = level();
    if !is_admitted(page, level) {
        return;
    }
    // SAFETY: there is a current task, and it has registers: those at its entry into the kernel.
    let regs = Registers::new(unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const _);
    let start = Start { leaf, ..regs.start_in_system_call() };
    let site = locate(ctx, (pid_tgid, tgid), start, PAGE_BYTES);
    let mut flags = flags | error as u32 & (FAULT_ON_PRESENT | FAULT_WRITE);
    if flags & FAULT_ON_PRESENT == 0 {
        flags |= FAULT_FRESH;
    }
    if address.wrapping_sub(start.sp.wrapping_sub(BELOW_STACK_BYTES)) < BELOW_STACK_BYTES + ABOVE_STACK_BYTES
    {
        flags |= FAULT_ON_STACK;
    }
    let key = PageKey { tgid, moves: MOVES.load(), page };
    note(key, PageFault { time_ns: book::now_ns(), site, flags }, level);
}

/// The site of the stack; from inside an allocator call, whose return address may be our trampoline, it ends there.
#[inline(always)]
fn locate<C: aya_ebpf::EbpfContext>(ctx: &C, (pid_tgid, tgid): (u64, u32), start: Start, bytes: u64) -> u32 {
    let mut call_sp = 0;
    if let Some(call) = in_flight::find(pid_tgid) {
        // SAFETY: a map value that only this thread's programs write.
        let (active, entry_sp) = unsafe { ((*call).active, (*call).entry_sp) };
        if active != 0 && start.sp < entry_sp {
            call_sp = entry_sp;
        }
    }
    intern::site_of_stack(
        ctx,
        (pid_tgid, tgid),
        start,
        Origin { lens: LENS_FAULTS, origin: 0, call_sp },
        bytes,
    )
}

#[inline(always)]
fn note(key: PageKey, fault: PageFault, level: u32) {
    match FAULTS.insert(key, fault, u64::from(BPF_NOEXIST)) {
        Ok(()) => added(key.tgid, level),
        Err(EEXIST) => {
            // SAFETY: a map value; what another fault of the page has just written is as good.
            let was_fresh = FAULTS.get_ptr(key).map_or(0, |old| unsafe { (*old).flags } & FAULT_FRESH);
            let fault = PageFault { flags: fault.flags | was_fresh, ..fault };
            if FAULTS.insert(key, fault, u64::from(BPF_ANY)).is_err() {
                book::tally(Loss::FaultMapFull, PAGE_BYTES);
            }
        }
        Err(_) => book::tally(Loss::FaultMapFull, PAGE_BYTES),
    }
}

/// Counts a page that waits, wakes user space when they are many, and goes to the next level when they are too many.
#[inline(always)]
fn added(tgid: u32, level: u32) {
    let Some(added) = FAULT_STATE.get_ptr_mut(FAULTS_ADDED) else { return };
    // SAFETY: a map value.
    let added = unsafe {
        atomic::add(added, 1);
        ptr::read_volatile(added)
    };
    // User space takes out a page before it counts it as taken.
    let pending = (added.wrapping_sub(state(FAULTS_TAKEN)) as i64).max(0) as u64;
    let capacity = setting!(fault_capacity);
    let quarter = u64::from(capacity >> 2);
    if quarter != 0 && pending >= quarter && pending & 1023 == 0 {
        let event = EventHeader { kind: EVENT_FAULTS_PENDING, tgid, value: pending };
        // It looks every tick anyway.
        let _ = EVENTS.output::<EventHeader>(event, u64::from(BPF_RB_FORCE_WAKEUP));
    }
    if pending > pending_limit(capacity, level) && level < MAX_FAULT_LEVEL {
        if let Some(wanted) = FAULT_STATE.get_ptr_mut(FAULT_LEVEL_KERNEL) {
            let next = u64::from(level) + 1;
            // SAFETY: a map value. Another CPU writes the same or the next one.
            unsafe {
                if ptr::read_volatile(wanted) < next {
                    ptr::write_volatile(wanted, next);
                }
            }
        }
    }
}

#[inline(always)]
fn state(element: u32) -> u64 {
    // SAFETY: a map value, written by one side.
    FAULT_STATE.get_ptr(element).map_or(0, |value| unsafe { ptr::read_volatile(value) })
}

#[inline(always)]
fn level() -> u32 {
    let (kernel, user) = (state(FAULT_LEVEL_KERNEL), state(FAULT_LEVEL_USER));
    (if kernel > user { kernel } else { user }) as u32
}

#[inline(always)]
fn send(mut event: MappingEvent) {
    event.header.kind = EVENT_FAULT_RANGE;
    if EVENTS.output::<MappingEvent>(event, syscall::wakeup(0)).is_err() {
        book::tally(Loss::FaultRangeLost, event.length);
    }
}

/// A system call returns that moves pages, or makes them resident without a fault. One program for all of them, as in
/// `syscall::mapping_exit`.
#[inline(always)]
pub fn range_exit(ctx: &TracePointContext) {
    let Some(caller) = Caller::current() else { return };
    let populated = match caller.regs.system_call() {
        system_call::MREMAP => return moved(&caller),
        system_call::MMAP => mapped(&caller),
        system_call::MADVISE => advised(&caller),
        _ => None,
    };
    let Some((address, length)) = populated else { return };
    let mut event = caller.event(OPERATION_MAP);
    event.address = address;
    event.length = length;
    event.site = locate(ctx, (caller.pid_tgid, caller.tgid), caller.regs.start_in_system_call(), length);
    send(event);
}

/// After `mremap` the page tables have moved, and no page faults at its new place.
#[inline(always)]
fn moved(caller: &Caller) {
    let [old_address, old_length, length, _] = caller.regs.system_call_arguments();
    let address = caller.regs.result();
    if syscall::is_error(address) {
        return;
    }
    if address == old_address {
        if length < old_length {
            gone(caller, address.wrapping_add(length), old_length.wrapping_sub(length));
        }
        return;
    }
    let mut event = caller.event(OPERATION_REMAP);
    event.address = address;
    event.length = length;
    event.old_address = old_address;
    event.old_length = old_length;
    // Before the thread can touch the old place again: what it touched there until now keeps its record.
    // SAFETY: a variable that all sides change atomically.
    unsafe { atomic::fetch_add(MOVES.as_ptr(), 1) };
    send(event);
}

/// After `mmap` with some flags, all of it is resident now.
#[inline(always)]
fn mapped(caller: &Caller) -> Option<(u64, u64)> {
    let [_, length, _, flags] = caller.regs.system_call_arguments();
    let address = caller.regs.result();
    if syscall::is_error(address) {
        return None;
    }
    if flags & MAP_FIXED != 0 {
        gone(caller, address, length);
    }
    (flags & (MAP_LOCKED | MAP_POPULATE) != 0).then_some((address, length))
}

/// The same after `madvise` with some advice.
#[inline(always)]
fn advised(caller: &Caller) -> Option<(u64, u64)> {
    let [address, length, advice, _] = caller.regs.system_call_arguments();
    let is_populating = advice == MADV_POPULATE_READ || advice == MADV_POPULATE_WRITE;
    (is_populating && caller.regs.result() == 0).then_some((address, length))
}

/// `munmap` is entered. What has gone is seen by a look, too; but not if something else is made resident there before,
/// without a fault for each page.
#[inline(always)]
pub fn munmap_enter(_ctx: &TracePointContext) {
    let Some(caller) = Caller::current() else { return };
    let [address, length, ..] = caller.regs.system_call_arguments();
    gone(&caller, address, length);
}

/// `madvise` is entered: the same for one advice.
#[inline(always)]
pub fn madvise_enter(_ctx: &TracePointContext) {
    let Some(caller) = Caller::current() else { return };
    let [address, length, advice, _] = caller.regs.system_call_arguments();
    if advice == MADV_DONTNEED {
        gone(&caller, address, length);
    }
}

#[inline(always)]
fn gone(caller: &Caller, address: u64, length: u64) {
    let mut event = caller.event(OPERATION_UNMAP);
    event.address = address;
    event.length = length;
    send(event);
}
