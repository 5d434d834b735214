//! What differs between the processors: registers, the numbers of system calls, and how a frame leads to its caller.

#[cfg(bpf_target_arch = "aarch64")]
mod aarch64;
#[cfg(bpf_target_arch = "x86_64")]
mod x86_64;

#[cfg(bpf_target_arch = "aarch64")]
pub use aarch64::{
    RETURN_POPS_BYTES, Registers, TRACKS_FRAME_POINTER, may_still_run, return_address, step, system_call,
};
#[cfg(bpf_target_arch = "x86_64")]
pub use x86_64::{
    RETURN_POPS_BYTES, Registers, TRACKS_FRAME_POINTER, may_still_run, return_address, step, system_call,
};
