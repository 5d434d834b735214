//! Processes that begin, become another program, and end, and threads that end.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, BPF_NOEXIST, BPF_RB_FORCE_WAKEUP},
    helpers::generated::bpf_probe_read_kernel,
    programs::{RawTracePointContext, TracePointContext},
};
use aya_log_ebpf::info;
use tracer_common::abi::{EVENT_EXEC, EVENT_FORK, EventHeader, FORK_EXECUTED, Loss, Process};

use crate::{
    atomic, book, in_flight,
    map::{EVENTS, EXECS, OWNERS, PROCESSES, SETS_ENDED, SHARER_COUNT, setting},
    syscall, task,
};

/// The kernel's CLONE_VM and CLONE_THREAD, include/uapi/linux/sched.h.
const CLONE_VM: u64 = 0x100;
const CLONE_THREAD: u64 = 0x1_0000;
/// `pid` is the first field of the record of `task_newtask`, behind the common ones.
const PID_OFFSET: usize = 8;

/// A traced process has made a new task. It has not run yet: nothing of it is missed in the kernel.
#[inline(always)]
pub fn new_task(ctx: &TracePointContext) {
    let pid_tgid = task::pid_tgid();
    let parent = task::memory_owner(pid_tgid);
    let Some(process) = PROCESSES.get_ptr(parent) else { return };
    let (mut child, mut flags) = (0u32, 0u64);
    let record = ctx.as_ptr().cast::<u8>();
    let flags_offset = setting!(clone_flags_offset) as usize;
    // SAFETY: the destinations are locals of these sizes; the sources lie in the record, and the helper checks them.
    unsafe {
        if bpf_probe_read_kernel((&raw mut child).cast(), 4, record.wrapping_add(PID_OFFSET).cast()) != 0
            || bpf_probe_read_kernel((&raw mut flags).cast(), 8, record.wrapping_add(flags_offset).cast())
                != 0
        {
            return;
        }
    }
    if flags & CLONE_THREAD != 0 {
        return;
    }
    if flags & CLONE_VM != 0 {
        if OWNERS.insert(child, parent, u64::from(BPF_NOEXIST)).is_ok() {
            add_sharers(1);
        }
        return;
    }
    if setting!(follow) == 0 {
        return;
    }
    // The child's memory is laid out as the parent's. User space replaces the set, or takes it away.
    // SAFETY: a map value.
    let process = unsafe { &*process };
    let _ = PROCESSES.insert(child, process, u64::from(BPF_ANY));
    sets_changed();
    announce(child, u64::from(process.epoch) << 32 | u64::from(parent));
}

/// Forgets the call that the thread was in and whose memory its process has shared, and tells which stack it leaves.
#[inline(always)]
pub fn thread_exit() {
    let pid_tgid = task::pid_tgid();
    in_flight::forget(pid_tgid);
    syscall::thread_exit();
    let tgid = task::tgid_of(pid_tgid);
    if pid_tgid as u32 == tgid {
        forget_owner(tgid, Loss::SharerUnseen);
    }
}

/// Ends the records of a traced process: the address space is new.
#[inline(always)]
pub fn process_exec(ctx: &RawTracePointContext) {
    let pid_tgid = task::pid_tgid();
    let tgid = task::tgid_of(pid_tgid);
    let owner = task::memory_owner(pid_tgid);
    if owner != tgid {
        in_flight::forget(pid_tgid);
        forget_owner(tgid, Loss::SharerExecuted);
        if setting!(follow) != 0 && PROCESSES.get_ptr(owner).is_some() {
            let _ = PROCESSES.insert(tgid, &Process::EMPTY, u64::from(BPF_ANY));
            sets_changed();
            announce(tgid, FORK_EXECUTED | u64::from(owner));
        }
        return;
    }
    let Some(process) = PROCESSES.get_ptr_mut(tgid) else { return };
    in_flight::forget(pid_tgid);
    let now_ns = book::now_ns();
    let _ = EXECS.insert(tgid, now_ns, u64::from(BPF_ANY));
    // Until user space has read the new mappings, stacks end at once rather than follow the old tables. The other
    // threads of the process are gone by now: nobody else reads the set.
    // SAFETY: a map value.
    unsafe {
        (*process).generation = 0;
        (*process).chunk_count = 0;
        (*process).refresh = 0;
        (*process).epoch += 1;
    }
    sets_changed();
    info!(ctx, "process {} executes a new program", tgid);
    if EVENTS
        .output::<EventHeader>(
            EventHeader { kind: EVENT_EXEC, tgid, value: now_ns },
            u64::from(BPF_RB_FORCE_WAKEUP),
        )
        .is_err()
    {
        book::tally(Loss::EventRingFull, 0);
    }
}

/// Walks that were made before are not to be trusted any more.
#[inline(always)]
fn sets_changed() {
    // SAFETY: a map value.
    unsafe { atomic::add(SETS_ENDED.as_ptr(), 1) };
}

#[inline(always)]
fn announce(child: u32, value: u64) {
    let event = EventHeader { kind: EVENT_FORK, tgid: child, value };
    if EVENTS.output::<EventHeader>(event, u64::from(BPF_RB_FORCE_WAKEUP)).is_err() {
        book::tally(Loss::EventRingFull, 0);
    }
}

#[inline(always)]
fn forget_owner(tgid: u32, loss: Loss) {
    if OWNERS.remove(tgid).is_ok() {
        add_sharers(-1);
        if setting!(sharers_unseen) != 0 {
            book::tally(loss, 0);
        }
    }
}

#[inline(always)]
fn add_sharers(difference: i32) {
    // SAFETY: a map value.
    unsafe { atomic::fetch_add(SHARER_COUNT.as_ptr(), difference as u32) };
}
