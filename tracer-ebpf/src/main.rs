//! The BPF programs: entry points only, each one call into the module that does the work.
//!
//! One program per *shape*, not per function: the attach cookie says which function fired
//! (`tracer_common::cookie`).
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "BPF has no stable compare-and-exchange; see `atomic`")]

mod atomic;
mod book;
mod call;
mod escape;
mod intern;
mod lifecycle;
mod map;
mod release;
mod scratch;
mod task;
mod validate;
mod walk;

use aya_ebpf::{
    macros::{raw_tracepoint, uprobe, uretprobe},
    programs::{ProbeContext, RawTracePointContext, RetProbeContext},
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

/// A process executes a new program: its blocks and mappings are gone.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    lifecycle::process_exec(&ctx);
    0
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

/// Emits the walked stack together with registers and raw stack, for comparison in user space.
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
