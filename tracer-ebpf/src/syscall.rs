//! System calls that map and unmap, and the threads that live in what was mapped.
//!
//! The tracepoints fire for every process of the machine: whether the process is traced comes first. The registers
//! come from the task, not from the context: the arguments are still there when a call returns, and a stack walk
//! needs them anyway. An unmapping is announced at entry, a mapping at exit (see `abi::mapping_event`).

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE, task_struct},
    helpers::generated::{bpf_get_current_task_btf, bpf_ringbuf_query, bpf_task_pt_regs},
    programs::{BtfTracePointContext, TracePointContext},
};
use tracer_common::{
    abi::{
        EVENT_MAPPING, EventHeader, LENS_MMAP, Loss, MappingEvent, MappingKind, MappingOrigin,
        OPERATION_BREAK, OPERATION_MAP, OPERATION_REMAP, OPERATION_REMAP_ENTER, OPERATION_REMAP_FAILED,
        OPERATION_SHM_ATTACH, OPERATION_SHM_DETACH, OPERATION_THREAD_EXIT, OPERATION_THREAD_START,
        OPERATION_UNMAP, OPERATION_UNMAP_FAILED, SITE_LOST,
    },
    cookie::Cookie,
};

use crate::{
    book, in_flight,
    intern::{self, Origin},
    map::{EVENTS, PROCESSES},
    task::{self, Registers, system_call},
};

/// A system call returns `-errno`, and no errno is above this (`MAX_ERRNO` in include/linux/err.h).
const MAX_ERRNO: u64 = 4095;
const PAGE_MASK: u64 = 4095;
/// `MREMAP_DONTUNMAP`, include/uapi/linux/mman.h.
const MREMAP_DONTUNMAP: u32 = 4;
/// `CLONE_THREAD`, include/uapi/linux/sched.h.
const CLONE_THREAD: u64 = 0x1_0000;

/// A thread of a traced process, in a system call.
#[derive(Clone, Copy)]
pub struct Caller {
    /// `tgid << 32 | tid`.
    pub pid_tgid: u64,
    /// Whose memory it is.
    pub tgid: u32,
    /// Its registers.
    pub regs: Registers,
}

impl Caller {
    /// `None` if the process is not traced.
    #[inline(always)]
    pub fn current() -> Option<Self> {
        let pid_tgid = task::pid_tgid();
        let tgid = task::memory_owner(pid_tgid);
        PROCESSES.get_ptr(tgid)?;
        // SAFETY: there is a current task, and it has registers: it is a user thread in a system call.
        let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) };
        Some(Self { pid_tgid, tgid, regs: Registers::new(regs as *const _) })
    }

    /// A record with this operation and the time of now.
    #[inline(always)]
    pub fn event(&self, operation: u32) -> MappingEvent {
        MappingEvent {
            header: EventHeader { kind: EVENT_MAPPING, tgid: self.tgid, value: book::now_ns() },
            tid: self.pid_tgid as u32,
            operation,
            site: SITE_LOST,
            ..EMPTY
        }
    }

    /// Adds the site that asks for `bytes`; from inside an allocator call it is one of that allocator.
    #[inline(always)]
    fn locate(&self, ctx: &TracePointContext, event: &mut MappingEvent, origin: MappingOrigin, bytes: u64) {
        let mut origin = origin;
        let mut call_sp = 0;
        if let Some(call) = in_flight::find(self.pid_tgid) {
            // SAFETY: a map value that only this thread's programs write.
            let (active, entry_sp, cookie) = unsafe { ((*call).active, (*call).entry_sp, (*call).cookie) };
            // A call that was left without a return is still active, but not above us.
            if active != 0 && self.regs.sp() < entry_sp {
                origin = origin.in_allocator(Cookie(cookie).allocator());
                call_sp = entry_sp;
            }
        }
        event.origin = origin.0;
        event.site = intern::site_of_stack(
            ctx,
            (self.pid_tgid, self.tgid),
            self.regs.start_in_system_call(),
            Origin { lens: LENS_MMAP, origin: origin.0, call_sp },
            bytes,
        );
    }
}

const EMPTY: MappingEvent = MappingEvent {
    header: EventHeader { kind: EVENT_MAPPING, tgid: 0, value: 0 },
    address: 0,
    length: 0,
    old_address: 0,
    old_length: 0,
    tid: 0,
    operation: 0,
    protection: 0,
    flags: 0,
    site: SITE_LOST,
    origin: 0,
};

/// Sends a record. Nobody waits for it, so the reader is woken only when the ring fills up; it looks every tick.
#[inline(always)]
fn send(event: &MappingEvent) {
    send_with(event, wakeup(BPF_RB_NO_WAKEUP));
}

#[inline(always)]
fn send_with(event: &MappingEvent, flags: u64) {
    if EVENTS.output::<MappingEvent>(*event, flags).is_err() {
        book::tally(Loss::MappingRingFull, event.length);
    }
}

/// `idle` while the ring is less than a quarter full, then a wake-up. Every record needs this: the kernel wakes by
/// itself only for a record that follows nothing unread.
#[inline(always)]
pub fn wakeup(idle: u32) -> u64 {
    let ring = (&raw const EVENTS).cast_mut().cast();
    // SAFETY: the ring is a map.
    let (unread, bytes) = unsafe {
        (
            bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA)),
            bpf_ringbuf_query(ring, u64::from(BPF_RB_RING_SIZE)),
        )
    };
    u64::from(if unread > bytes >> 2 { BPF_RB_FORCE_WAKEUP } else { idle })
}

#[inline(always)]
pub fn is_error(result: u64) -> bool {
    result >= MAX_ERRNO.wrapping_neg()
}

/// What the kernel refuses before it does anything.
#[inline(always)]
fn is_unmap_refused(address: u64, length: u64) -> bool {
    address & PAGE_MASK != 0 || length == 0
}

/// `munmap` is entered.
#[inline(always)]
pub fn munmap_enter(_ctx: &TracePointContext) {
    let Some(caller) = Caller::current() else { return };
    let [address, length, ..] = caller.regs.system_call_arguments();
    if is_unmap_refused(address, length) {
        return;
    }
    let mut event = caller.event(OPERATION_UNMAP);
    event.address = address;
    event.length = length;
    send(&event);
}

/// `munmap` returns.
#[inline(always)]
pub fn munmap_exit(_ctx: &TracePointContext) {
    let Some(caller) = Caller::current() else { return };
    let [address, length, ..] = caller.regs.system_call_arguments();
    if caller.regs.result() == 0 || is_unmap_refused(address, length) {
        return;
    }
    let mut event = caller.event(OPERATION_UNMAP_FAILED);
    event.address = address;
    event.length = length;
    send(&event);
}

/// `mremap` is entered.
#[inline(always)]
pub fn mremap_enter(_ctx: &TracePointContext) {
    let Some(caller) = Caller::current() else { return };
    let [old_address, old_length, length, flags] = caller.regs.system_call_arguments();
    if is_unmap_refused(old_address, length) {
        return;
    }
    let mut event = caller.event(OPERATION_REMAP_ENTER);
    event.old_address = old_address;
    event.old_length = old_length;
    event.length = length;
    event.flags = flags as u32;
    send(&event);
}

/// What a system call that maps has come to.
enum Outcome {
    /// Nothing.
    Nothing,
    /// Memory, but none that belongs to this stack.
    Moved,
    /// So many bytes that do.
    Added(MappingOrigin, u64),
}

/// A system call that maps returns. One program for all of them: the walk of a stack is what the verifier takes long
/// for, and a program that has it is verified with it.
#[inline(always)]
pub fn mapping_exit(ctx: &TracePointContext) {
    let Some(caller) = Caller::current() else { return };
    let number = caller.regs.system_call();
    let mut event = caller.event(OPERATION_MAP);
    let outcome = match number {
        system_call::MMAP => mapped(&caller, &mut event),
        system_call::MREMAP => remapped(&caller, &mut event),
        system_call::BRK => break_moved(&caller, &mut event),
        system_call::SHMAT => segment_attached(&caller, &mut event),
        _ => Outcome::Nothing,
    };
    match outcome {
        Outcome::Nothing => return,
        Outcome::Moved => {}
        Outcome::Added(origin, bytes) => caller.locate(ctx, &mut event, origin, bytes),
    }
    // The length of a segment has to be read from /proc while it is attached, so the reader is woken.
    let idle = if number == system_call::SHMAT { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    send_with(&event, wakeup(idle));
}

#[inline(always)]
fn mapped(caller: &Caller, event: &mut MappingEvent) -> Outcome {
    let address = caller.regs.result();
    if is_error(address) {
        return Outcome::Nothing;
    }
    let [_, length, protection, flags] = caller.regs.system_call_arguments();
    event.address = address;
    event.length = length;
    event.protection = protection as u32;
    event.flags = flags as u32;
    Outcome::Added(MappingOrigin::of_mmap(event.protection, event.flags), length)
}

#[inline(always)]
fn remapped(caller: &Caller, event: &mut MappingEvent) -> Outcome {
    let [old_address, old_length, length, flags] = caller.regs.system_call_arguments();
    if is_unmap_refused(old_address, length) {
        return Outcome::Nothing;
    }
    let address = caller.regs.result();
    event.operation = OPERATION_REMAP_FAILED;
    event.old_address = old_address;
    event.old_length = old_length;
    event.length = length;
    event.flags = flags as u32;
    if is_error(address) {
        return Outcome::Moved;
    }
    event.operation = OPERATION_REMAP;
    event.address = address;
    // Only what is added belongs to this stack.
    if length <= old_length && event.flags & MREMAP_DONTUNMAP == 0 {
        return Outcome::Moved;
    }
    let added = if length > old_length { length - old_length } else { old_length };
    Outcome::Added(MappingOrigin::new(MappingKind::Remapped), added)
}

/// `brk` returns the break as it is now: what was asked for, if it did that.
#[inline(always)]
fn break_moved(caller: &Caller, event: &mut MappingEvent) -> Outcome {
    let [asked, ..] = caller.regs.system_call_arguments();
    let address = caller.regs.result();
    if asked == 0 || address != asked {
        return Outcome::Nothing;
    }
    event.operation = OPERATION_BREAK;
    event.address = address;
    Outcome::Added(MappingOrigin::new(MappingKind::Break), 0)
}

#[inline(always)]
fn segment_attached(caller: &Caller, event: &mut MappingEvent) -> Outcome {
    let address = caller.regs.result();
    if is_error(address) {
        return Outcome::Nothing;
    }
    event.operation = OPERATION_SHM_ATTACH;
    event.address = address;
    Outcome::Added(MappingOrigin::new(MappingKind::SharedSegment), 0)
}

/// `shmdt` is entered.
#[inline(always)]
pub fn shmdt_enter(_ctx: &TracePointContext) {
    let Some(caller) = Caller::current() else { return };
    let [address, ..] = caller.regs.system_call_arguments();
    let mut event = caller.event(OPERATION_SHM_DETACH);
    event.address = address;
    send(&event);
}

/// A thread ends; its stack pointer says which stack it leaves.
#[inline(always)]
pub fn thread_exit() {
    let Some(caller) = Caller::current() else { return };
    let mut event = caller.event(OPERATION_THREAD_EXIT);
    event.address = caller.regs.sp();
    send(&event);
}

/// A thread has been made; its stack may have been that of another one before.
#[inline(always)]
pub fn thread_start(ctx: &BtfTracePointContext) {
    let pid_tgid = task::pid_tgid();
    let tgid = task::memory_owner(pid_tgid);
    let flags: u64 = ctx.arg(1);
    if PROCESSES.get_ptr(tgid).is_none() || flags & CLONE_THREAD == 0 {
        return;
    }
    let child: *mut task_struct = ctx.arg::<*const task_struct>(0).cast_mut();
    // SAFETY: the tracepoint passes the new task, whose registers are set already.
    let regs = Registers::new(unsafe { bpf_task_pt_regs(child) } as *const _);
    let mut event = MappingEvent {
        header: EventHeader { kind: EVENT_MAPPING, tgid, value: book::now_ns() },
        tid: pid_tgid as u32,
        operation: OPERATION_THREAD_START,
        ..EMPTY
    };
    event.address = regs.sp();
    send(&event);
}
