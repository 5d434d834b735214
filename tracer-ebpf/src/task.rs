//! The current task. Its registers are in `machine`.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;

pub use crate::machine::{Registers, system_call};
use crate::map::{OWNERS, SHARER_COUNT};

/// `tgid << 32 | tid` of the current thread.
#[inline(always)]
pub fn pid_tgid() -> u64 {
    // SAFETY: the helper has no arguments and cannot fail.
    unsafe { bpf_get_current_pid_tgid() }
}

/// tgid of a [`pid_tgid`].
#[inline(always)]
pub fn tgid_of(pid_tgid: u64) -> u32 {
    (pid_tgid >> 32) as u32
}

/// The process whose memory the current thread works on: its own, or that of its parent after vfork.
#[inline(always)]
pub fn memory_owner(pid_tgid: u64) -> u32 {
    let tgid = tgid_of(pid_tgid);
    if SHARER_COUNT.load() == 0 {
        return tgid;
    }
    // SAFETY: a map value.
    OWNERS.get_ptr(tgid).map_or(tgid, |owner| unsafe { *owner })
}
