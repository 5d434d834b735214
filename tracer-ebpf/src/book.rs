//! Booking: live blocks, site counters, losses.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use tracer_common::{
    abi::{LIFETIME_BUCKETS, LiveBlock, LiveKey, Loss, SITE_LOST, lifetime_bucket},
    sampling::{self, Weight},
};

use crate::{
    atomic,
    block::{self, Refused},
    map::{self, EXECS, LIFETIMES, SITES, TALLIES, setting},
};

/// Counts a loss or an observation.
#[inline(always)]
pub fn tally(loss: Loss, bytes: u64) {
    if let Some(tally) = TALLIES.get_ptr_mut(loss as u32) {
        // SAFETY: a map value.
        unsafe {
            atomic::add(&raw mut (*tally).count, 1);
            if bytes != 0 {
                atomic::add(&raw mut (*tally).bytes, bytes);
            }
        }
    }
}

/// Counts a loss of a stack and gives the site that stands for it.
#[inline(always)]
pub fn lost(loss: Loss, bytes: u64) -> u32 {
    tally(loss, bytes);
    SITE_LOST
}

/// Nanoseconds on `CLOCK_MONOTONIC`. (The coarse clock would do, but programs of this type may not read it.)
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: the helper has no arguments and cannot fail.
    unsafe { bpf_ktime_get_ns() }
}

/// What a block adds to the counters of its site. The same at its birth and at its end.
#[inline(always)]
fn weight(block: &LiveBlock) -> Weight {
    if !map::is_estimate() {
        return Weight { bytes: block.size_bytes, count: 1 };
    }
    sampling::weight(setting!(sample_bytes), block.size_bytes, block.scale)
}

/// Books a new block. The order matters: what is not in the live map is not counted either, or it could
/// never be counted as freed.
#[inline(always)]
pub fn allocation(key: LiveKey, block: LiveBlock) {
    let is_booked = match block::insert(key, &block) {
        Ok(()) => true,
        // Its release came after the end of the recording, and so does this.
        Err(Refused::Exists) if map::has_stopped() => return,
        Err(Refused::Exists) => {
            // Rule 3: its release was missed.
            if let Some(old) = block::get(key) {
                if !died_by_exec(key.tgid, old.born_ns) {
                    tally(Loss::MissedRelease, old.size_bytes);
                }
                freed(&old);
            }
            block::replace(key, &block).is_ok()
        }
        Err(Refused::Full) => false,
    };
    if !is_booked {
        return tally(Loss::LiveMapFull, block.size_bytes);
    }
    if let Some(site) = SITES.get_ptr_mut(block.site) {
        let weight = weight(&block);
        // SAFETY: a map value.
        unsafe {
            atomic::add(&raw mut (*site).allocated_bytes, weight.bytes);
            atomic::add(&raw mut (*site).allocated_count, weight.count);
        }
    }
}

#[inline(always)]
fn died_by_exec(tgid: u32, born_ns: u64) -> bool {
    // SAFETY: a map value.
    EXECS.get_ptr(tgid).is_some_and(|exec_ns| born_ns < unsafe { *exec_ns })
}

/// Counts a block as freed.
#[inline(always)]
pub fn freed(block: &LiveBlock) {
    if let Some(site) = SITES.get_ptr_mut(block.site) {
        let weight = weight(block);
        // SAFETY: a map value.
        unsafe {
            atomic::add(&raw mut (*site).freed_bytes, weight.bytes);
            atomic::add(&raw mut (*site).freed_count, weight.count);
        }
    }
}

/// Counts a block as freed that the program has released just now. Lifetimes are of the blocks that were seen, unweighted.
#[inline(always)]
pub fn released(block: &LiveBlock) {
    freed(block);
    let Some(lifetimes) = LIFETIMES.get_ptr_mut(block.site) else { return };
    let bucket = lifetime_bucket(now_ns().saturating_sub(block.born_ns)) as usize;
    if bucket < LIFETIME_BUCKETS {
        // SAFETY: a map value; the index is within the array.
        unsafe { atomic::add((&raw mut (*lifetimes).counts).cast::<u64>().add(bucket), 1) };
    }
}

/// Counts the release of a block that is not booked. In estimates most of them were not sampled, and those from before the
/// attach cannot be told from these: they are not counted then.
#[inline(always)]
pub fn unknown_release() {
    if !map::is_estimate() {
        tally(Loss::UnknownRelease, 0);
    }
}

/// Puts a block back that had been set aside.
#[inline(always)]
pub fn restore(key: LiveKey, block: LiveBlock) {
    let loss = match block::insert(key, &block) {
        Ok(()) => return,
        // It can no longer be seen to be freed; book it as freed, and say so.
        Err(Refused::Full) => Loss::AsideRestoreFailed,
        // Another one has its address: its release was missed.
        Err(Refused::Exists) => Loss::MissedRelease,
    };
    tally(loss, block.size_bytes);
    freed(&block);
}
