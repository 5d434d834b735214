//! Where the call of a thread is kept: in the place of its tid, or in a hash map if another thread has that.

use core::ptr;

use aya_ebpf::bindings::BPF_NOEXIST;
use tracer_common::abi::{CALL_NONE, CallInFlight, CallPlace, LiveBlock};

use crate::{
    atomic,
    map::{CALL_PLACES, CALLS, setting},
};

/// Not a constant: that would be made on the stack, at every call.
static EMPTY: CallInFlight = CallInFlight {
    entry_sp: 0,
    cookie: 0,
    size_bytes: 0,
    pointer: 0,
    limit_bytes: 0,
    return_address: 0,
    aside: LiveBlock { size_bytes: 0, born_ns: 0, site: 0, function: 0, reserved: 0, scale: 0 },
    active: CALL_NONE,
    has_aside: 0,
    until_sample_bytes: 0,
    window: 0,
};

/// The place of a thread, and whether it has it.
#[inline(always)]
fn place(pid_tgid: u64) -> Option<(*mut CallPlace, bool)> {
    let places = setting!(call_places);
    if places == 0 {
        return None;
    }
    let place = CALL_PLACES.get_ptr_mut(pid_tgid as u32 & (places - 1))?;
    // SAFETY: a map value.
    let owner = unsafe { ptr::read_volatile(&raw const (*place).owner) };
    Some((place, owner == pid_tgid))
}

/// The call of a thread that has entered one before. Only that thread's programs touch it.
#[inline(always)]
pub fn find(pid_tgid: u64) -> Option<*mut CallInFlight> {
    if let Some((place, true)) = place(pid_tgid) {
        // SAFETY: a map value.
        return Some(unsafe { &raw mut (*place).call });
    }
    CALLS.get_ptr_mut(pid_tgid)
}

/// The call of a thread that enters its first one; `None` if there is no room for it.
#[inline(always)]
pub fn begin(pid_tgid: u64) -> Option<*mut CallInFlight> {
    if let Some((place, _)) = place(pid_tgid) {
        // SAFETY: a map value; once it is claimed, it is this thread's own.
        unsafe {
            if atomic::claim(&raw mut (*place).owner, 0, pid_tgid) {
                (*place).call.active = CALL_NONE;
                (*place).call.has_aside = 0;
                return Some(&raw mut (*place).call);
            }
        }
    }
    CALLS.insert(pid_tgid, &EMPTY, u64::from(BPF_NOEXIST)).ok()?;
    CALLS.get_ptr_mut(pid_tgid)
}

/// Forgets the call of a thread.
#[inline(always)]
pub fn forget(pid_tgid: u64) {
    if let Some((place, true)) = place(pid_tgid) {
        // SAFETY: a map value; nobody else takes the place before this.
        return unsafe { ptr::write_volatile(&raw mut (*place).owner, 0) };
    }
    let _ = CALLS.remove(pid_tgid);
}
