//! The BPF programs: entry points only, each one call into the module that does the work.
//!
//! One program per *shape*, not per function: the attach cookie says which function fired
//! (`tracer_common::cookie`).
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "BPF has no stable compare-and-exchange; see `atomic`")]

mod atomic;
mod block;
mod book;
mod call;
#[cfg(bpf_target_arch = "x86_64")]
mod escape;
mod fault;
mod in_flight;
mod intern;
mod lifecycle;
mod machine;
mod map;
mod release;
mod scratch;
mod syscall;
mod task;
mod trail;
#[cfg(bpf_target_arch = "x86_64")]
mod validate;
mod variable;
mod walk;

// Registers and frames differ; `cargo xtask build-ebpf` makes an object for each.
#[cfg(not(any(bpf_target_arch = "x86_64", bpf_target_arch = "aarch64")))]
compile_error!("no programs for this architecture");

use aya_ebpf::{
    macros::{btf_tracepoint, raw_tracepoint, tracepoint, uprobe, uretprobe},
    programs::{
        BtfTracePointContext, ProbeContext, RawTracePointContext, RetProbeContext, TracePointContext,
    },
};

/// An allocating function is entered.
#[uprobe]
pub fn call_enter(ctx: ProbeContext) -> u32 {
    map::forbid_private_stack(&ctx);
    call::enter(&ctx);
    0
}

/// An allocating function returns: the allocation is booked here.
#[uretprobe]
pub fn call_return(ctx: RetProbeContext) -> u32 {
    map::forbid_private_stack(&ctx);
    call::leave(&ctx);
    0
}

/// An allocating function that may throw is at one of its exits: the allocation is booked here.
#[uprobe]
pub fn call_leave_at_exit(ctx: ProbeContext) -> u32 {
    map::forbid_private_stack(&ctx);
    call::leave_at_exit(&ctx);
    0
}

/// A releasing function is entered: the release is booked here.
#[uprobe]
pub fn release_enter(ctx: ProbeContext) -> u32 {
    map::forbid_private_stack(&ctx);
    release::enter(&ctx);
    0
}

/// A thread exits: its call in flight goes with it.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn thread_exit(_ctx: RawTracePointContext) -> i32 {
    lifecycle::thread_exit();
    0
}

/// A process makes a child, or a thread. (A program of this type runs with preemption disabled, and never twice on one
/// CPU: `trace_call_bpf` in kernel/trace/bpf_trace.c. It may have a private stack.)
#[tracepoint]
pub fn new_task(ctx: TracePointContext) -> u32 {
    lifecycle::new_task(&ctx);
    1
}

/// A process executes a new program: its blocks and mappings are gone.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    lifecycle::process_exec(&ctx);
    0
}

/// A thread is made.
#[btf_tracepoint(function = "task_newtask")]
pub fn thread_start(ctx: BtfTracePointContext) -> i32 {
    syscall::thread_start(&ctx);
    0
}

/// A page is touched that cannot be used as it is. (Raw tracepoints: no record is made, and other processes pay for two
/// lookups only.)
#[raw_tracepoint(tracepoint = "page_fault_user")]
pub fn page_fault_user(ctx: RawTracePointContext) -> i32 {
    fault::in_user_mode(&ctx);
    0
}

/// The same by the kernel, mostly in a system call.
#[raw_tracepoint(tracepoint = "page_fault_kernel")]
pub fn page_fault_kernel(ctx: RawTracePointContext) -> i32 {
    fault::in_kernel_mode(&ctx);
    0
}

/// Programs on system calls, by the name of the tracepoint. They give 1: with 0 the kernel would keep the hit from
/// everybody else's perf events (`perf_syscall_enter` in kernel/trace/trace_syscalls.c).
macro_rules! system_calls {
    ($($(#[$doc:meta])* $name:ident = $work:expr;)+) => {
        $($(#[$doc])*
        #[tracepoint]
        pub fn $name(ctx: TracePointContext) -> u32 {
            $work(&ctx);
            1
        })+
    };
}

system_calls! {
    /// A mapping was made, has moved (or not), or the break has moved.
    mapping_exit = syscall::mapping_exit;
    /// A range is about to go.
    sys_enter_munmap = syscall::munmap_enter;
    /// It is still there if that failed.
    sys_exit_munmap = syscall::munmap_exit;
    /// A range is about to move.
    sys_enter_mremap = syscall::mremap_enter;
    /// A segment is about to go.
    sys_enter_shmdt = syscall::shmdt_enter;
    /// Resident pages have moved, or pages are resident without a fault.
    fault_range_exit = fault::range_exit;
    /// Pages are about to go.
    fault_enter_munmap = fault::munmap_enter;
    /// The same.
    fault_enter_madvise = fault::madvise_enter;
}

/// Does nothing, at the same places: the floor that the benchmark compares with.
#[uprobe]
pub fn floor_enter(_ctx: ProbeContext) -> u32 {
    0
}

/// Does nothing, at the same places.
#[uretprobe]
pub fn floor_return(_ctx: RetProbeContext) -> u32 {
    0
}

/// Emits the walked stack together with registers and raw stack, for comparison in user space. There is no full walk of
/// aarch64 to compare with.
#[cfg(bpf_target_arch = "x86_64")]
#[uretprobe]
pub fn validate_return(ctx: RetProbeContext) -> u32 {
    map::forbid_private_stack(&ctx);
    validate::leave(&ctx);
    0
}

/// The kernel refuses programs that can panic; this only has to exist.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel's helpers require it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
