//! Atomic operations on map memory. Uprobe programs are preemptible since kernel 6.0, so even
//! per-CPU values are shared.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

/// Adds to a counter.
///
/// # Safety
/// `counter` points into a map value and is aligned.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, value) };
}

/// Adds to a counter and returns what it was.
///
/// # Safety
/// `counter` points into a map value and is aligned.
#[inline(always)]
pub unsafe fn fetch_add(counter: *mut u32, value: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(counter, value) }
}

/// Writes `new` where `old` stands; true if it did.
///
/// # Safety
/// `place` points into a map value and is aligned.
#[inline(always)]
pub unsafe fn claim(place: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(place, old, new).1 }
}

/// Writes `new` where `old` stands; true if it did.
///
/// # Safety
/// `place` points into a map value and is aligned.
#[inline(always)]
pub unsafe fn claim32(place: *mut u32, old: u32, new: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe { atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(place, old, new).1 }
}

/// Writes a value behind everything that was written before.
///
/// # Safety
/// `place` points into a map value and is aligned.
#[inline(always)]
pub unsafe fn publish(place: *mut u64, value: u64) {
    // A store is that on x86-64 already; elsewhere the kernel makes an exchange a full barrier.
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(bpf_target_arch = "x86_64")]
        core::ptr::write_volatile(place, value);
        #[cfg(not(bpf_target_arch = "x86_64"))]
        core::intrinsics::atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(place, value);
    }
}
