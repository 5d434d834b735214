//! Live blocks: buckets of eight, and a hash map for what finds no place in its own.

use core::ptr;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use tracer_common::abi::{
    BUCKET_PLACES, Bucket, LiveBlock, LiveKey, PLACE_EMPTY, PLACE_WRITTEN, Place, home_of,
};

use crate::{
    atomic,
    map::{BUCKETS, HAS_SPILLED, SPILLED, setting},
};

/// The kernel's EEXIST, negated.
const EEXIST: i32 = -17;
/// Times that an insertion looks again because another CPU took the place that it had found.
const TRIES: u32 = 4;

/// What `find_place` gives: `PLACE_FOUND | index`, `PLACE_FREE | index`, or `NO_PLACE`.
const PLACE_FOUND: u32 = 0;
const PLACE_FREE: u32 = 1 << 8;
const NO_PLACE: u32 = 1 << 9;

/// Why a block was not inserted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There is one at that address.
    Exists,
    /// There is no room.
    Full,
}

/// Looks for a block in a bucket; else for a place where it can be inserted. A global function of its own: the verifier looks at
/// it once. Scalars only, each one used.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_place(bucket: u32, home: u32, tgid: u32, low: u32, high: u32) -> u32 {
    let address = u64::from(high) << 32 | u64::from(low);
    let Some(bucket) = BUCKETS.get_ptr(bucket) else { return NO_PLACE };
    let mut index = 0;
    while index < BUCKET_PLACES {
        if is_at(bucket, index, tgid, address) {
            return PLACE_FOUND | index as u32;
        }
        index += 1;
    }
    let home = home as usize & (BUCKET_PLACES - 1);
    if address_at(bucket, home) == PLACE_EMPTY {
        return PLACE_FREE | home as u32;
    }
    let mut index = 0;
    while index < BUCKET_PLACES {
        if address_at(bucket, index) == PLACE_EMPTY {
            return PLACE_FREE | index as u32;
        }
        index += 1;
    }
    NO_PLACE
}

#[inline(always)]
fn is_at(bucket: *const Bucket, index: usize, tgid: u32, address: u64) -> bool {
    address_at(bucket, index) == address
        // SAFETY: in bounds of a map value, which other CPUs and user space write.
        && unsafe { ptr::read_volatile(&raw const (*place_of(bucket, index)).tgid) } == tgid
}

#[inline(always)]
fn address_at(bucket: *const Bucket, index: usize) -> u64 {
    // SAFETY: as in `is_at`; callers keep the index below `BUCKET_PLACES`.
    unsafe { ptr::read_volatile((&raw const (*bucket).addresses).cast::<u64>().add(index)) }
}

#[inline(always)]
fn place_of(bucket: *const Bucket, index: usize) -> *const Place {
    // SAFETY: callers keep the index below `BUCKET_PLACES`.
    unsafe { (&raw const (*bucket).places).cast::<Place>().add(index) }
}

/// A place of a bucket, found or free.
#[derive(Clone, Copy)]
struct Spot {
    address: *mut u64,
    place: *mut Place,
    is_free: bool,
}

/// Looks a block up in its bucket; `None` where it is not there and the bucket is full. One that is expected there is mostly in
/// its home, which is seen without a call.
#[inline(always)]
fn spot(key: LiveKey, is_expected: bool) -> Option<Spot> {
    let count = setting!(buckets);
    if count == 0 {
        return None;
    }
    let home = home_of(key, count);
    let bucket = BUCKETS.get_ptr_mut(home.bucket)?;
    let found = if is_expected && is_at(bucket, home.place as usize, key.tgid, key.address) {
        PLACE_FOUND | home.place
    } else {
        let (low, high) = (key.address as u32, (key.address >> 32) as u32);
        find_place(home.bucket, home.place, key.tgid, low, high)
    };
    if found & NO_PLACE != 0 {
        return None;
    }
    let index = found as usize & (BUCKET_PLACES - 1);
    // SAFETY: the mask keeps the index inside of the map value.
    let address = unsafe { (&raw mut (*bucket).addresses).cast::<u64>().add(index) };
    Some(Spot { address, place: place_of(bucket, index).cast_mut(), is_free: found & PLACE_FREE != 0 })
}

#[inline(always)]
fn has_spilled() -> bool {
    HAS_SPILLED.load() != 0
}

/// The block at an address.
#[inline(always)]
pub fn get(key: LiveKey) -> Option<LiveBlock> {
    if let Some(spot) = spot(key, true).filter(|spot| !spot.is_free) {
        // SAFETY: a map value.
        return Some(unsafe { (*spot.place).block });
    }
    if !has_spilled() {
        return None;
    }
    // SAFETY: a map value.
    SPILLED.get_ptr(key).map(|block| unsafe { *block })
}

/// Takes a block out. Whoever gets it owns it: two releases of one address cannot both count.
#[inline(always)]
pub fn take(key: LiveKey) -> Option<LiveBlock> {
    if let Some(spot) = spot(key, true).filter(|spot| !spot.is_free) {
        // SAFETY: a map value; copied before the place is given away, another CPU may use it at once.
        let block = unsafe { (*spot.place).block };
        // SAFETY: a map value.
        return unsafe { atomic::claim(spot.address, key.address, PLACE_EMPTY) }.then_some(block);
    }
    if !has_spilled() {
        return None;
    }
    let block = SPILLED.get_ptr(key)?;
    // SAFETY: a map value; copied before the entry is deleted, another CPU may reuse it at once.
    let block = unsafe { *block };
    SPILLED.remove(key).ok()?;
    Some(block)
}

/// Inserts a block where there is none.
#[inline(always)]
pub fn insert(key: LiveKey, block: &LiveBlock) -> Result<(), Refused> {
    if has_spilled() && SPILLED.get_ptr(key).is_some() {
        return Err(Refused::Exists);
    }
    let mut tries = 0;
    while tries < TRIES {
        let Some(spot) = spot(key, false) else { break };
        if !spot.is_free {
            return Err(Refused::Exists);
        }
        // SAFETY: map values; the place is this program's own while its address is `PLACE_WRITTEN`.
        unsafe {
            if atomic::claim(spot.address, PLACE_EMPTY, PLACE_WRITTEN) {
                (*spot.place).block = *block;
                (*spot.place).tgid = key.tgid;
                atomic::publish(spot.address, key.address);
                return Ok(());
            }
        }
        tries += 1;
    }
    spill(key, block)
}

#[inline(always)]
fn spill(key: LiveKey, block: &LiveBlock) -> Result<(), Refused> {
    // Before the block is there, so that nobody misses it.
    HAS_SPILLED.store(1);
    match SPILLED.insert(key, block, u64::from(BPF_NOEXIST)) {
        Ok(()) => Ok(()),
        Err(EEXIST) => Err(Refused::Exists),
        Err(_) => Err(Refused::Full),
    }
}

/// Inserts a block in the place of one that is there.
#[inline(always)]
pub fn replace(key: LiveKey, block: &LiveBlock) -> Result<(), Refused> {
    if let Some(spot) = spot(key, true).filter(|spot| !spot.is_free) {
        // SAFETY: map values; as in `insert`.
        unsafe {
            if atomic::claim(spot.address, key.address, PLACE_WRITTEN) {
                (*spot.place).block = *block;
                atomic::publish(spot.address, key.address);
                return Ok(());
            }
        }
    }
    SPILLED.insert(key, block, u64::from(BPF_ANY)).map_err(|_| Refused::Full)
}
