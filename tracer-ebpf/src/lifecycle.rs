//! Threads that end and processes that become another program.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_RB_FORCE_WAKEUP},
    programs::RawTracePointContext,
};
use aya_log_ebpf::info;
use tracer_common::abi::{EVENT_EXEC, EventHeader, Loss};

use crate::{
    book,
    map::{CALLS, EVENTS, EXECS, PROCESSES},
    syscall, task,
};

/// Forgets the call that the thread was in, and tells which stack it leaves.
#[inline(always)]
pub fn thread_exit() {
    let _ = CALLS.remove(task::pid_tgid());
    syscall::thread_exit();
}

/// Ends the records of a traced process: the address space is new.
#[inline(always)]
pub fn process_exec(ctx: &RawTracePointContext) {
    let pid_tgid = task::pid_tgid();
    let tgid = task::tgid_of(pid_tgid);
    if PROCESSES.get_ptr(tgid).is_none() {
        return;
    }
    let _ = CALLS.remove(pid_tgid);
    let now_ns = book::now_ns();
    let _ = EXECS.insert(tgid, now_ns, u64::from(BPF_ANY));
    // Until user space has read the new mappings, stacks end at once rather than follow the old tables.
    let _ = PROCESSES.remove(tgid);
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
