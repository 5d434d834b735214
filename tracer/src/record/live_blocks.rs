//! The kernel's table of live blocks, read where it lies.

use std::{
    os::fd::AsFd as _,
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::MapData;
use tracer_common::abi::{
    BUCKET_PLACES, Bucket, LiveBlock, LiveKey, PLACE_EMPTY, PLACE_WRITTEN, Place, TableSize, home_of,
};

use super::{
    RecordError,
    kernel_map::{self, MappedArray},
};

/// The live blocks: buckets that both sides write, and a hash map for what found no place there.
pub struct LiveBlocks {
    buckets: Option<MappedArray<Bucket>>,
    spilled: MapData,
}

impl LiveBlocks {
    /// Maps the buckets.
    ///
    /// # Errors
    /// [`RecordError::MapCall`].
    pub fn new(buckets: &MapData, size: TableSize, spilled: MapData) -> Result<Self, RecordError> {
        let map = || MappedArray::map_shared(buckets.fd(), "BUCKETS", size.buckets);
        Ok(Self { buckets: (size.buckets > 0).then(map).transpose()?, spilled })
    }

    /// Hands every block to `visit`. Blocks that come and go meanwhile may be seen or not.
    ///
    /// # Errors
    /// [`RecordError::MapCall`].
    pub fn read(&self, mut visit: impl FnMut(&LiveKey, &LiveBlock)) -> Result<(), RecordError> {
        let buckets = self.buckets.iter().flat_map(|buckets| {
            (0..buckets.count()).filter_map(|index| buckets.place(u32::try_from(index).ok()?))
        });
        for bucket in buckets {
            // SAFETY: a bucket of the mapping, which lives as long as `self`; both sides write it by atomic operations.
            unsafe { read_bucket(bucket, &mut visit) };
        }
        kernel_map::read_hash(self.spilled.fd().as_fd(), "SPILLED", visit)
    }

    /// Deletes a block; false if there was none.
    ///
    /// # Errors
    /// [`RecordError::MapCall`].
    pub fn delete(&self, key: &LiveKey) -> Result<bool, RecordError> {
        let bucket = self.buckets.as_ref().and_then(|buckets| {
            let count = u32::try_from(buckets.count()).ok()?;
            buckets.place(home_of(*key, count).bucket)
        });
        // SAFETY: as in `read`.
        if bucket.is_some_and(|bucket| unsafe { delete_from_bucket(bucket, key) }) {
            return Ok(true);
        }
        kernel_map::delete(self.spilled.fd().as_fd(), "SPILLED", key)
    }
}

/// The address that says whether a place is taken, and the place.
///
/// # Safety
/// `bucket` points to a bucket that lives for `'a` and whose addresses are written by atomic operations only.
unsafe fn places<'a>(bucket: *mut Bucket) -> impl Iterator<Item = (&'a AtomicU64, *const Place)> {
    (0..BUCKET_PLACES).map(move |index| {
        // SAFETY: in bounds; alignment is that of `Bucket`; the rest is the caller's promise.
        unsafe {
            let address = (&raw mut (*bucket).addresses).cast::<u64>().add(index);
            (AtomicU64::from_ptr(address), (&raw const (*bucket).places).cast::<Place>().add(index))
        }
    })
}

/// # Safety
/// That of [`places`].
unsafe fn read_bucket(bucket: *mut Bucket, visit: &mut impl FnMut(&LiveKey, &LiveBlock)) {
    // SAFETY: the caller's promise.
    for (address, place) in unsafe { places(bucket) } {
        let before = address.load(Ordering::Acquire);
        if matches!(before, PLACE_EMPTY | PLACE_WRITTEN) {
            continue;
        }
        // SAFETY: plain data, which the kernel may write meanwhile; then it is not used.
        let Place { block, tgid, .. } = unsafe { ptr::read_volatile(place) };
        std::sync::atomic::fence(Ordering::Acquire);
        // A block that went and another one that came to the same address in between would be mixed: one of them, or both,
        // are gone by now, and what is read while the target runs is a look, not a sum.
        if address.load(Ordering::Relaxed) == before {
            visit(&LiveKey { tgid, reserved: 0, address: before }, &block);
        }
    }
}

/// # Safety
/// That of [`places`].
unsafe fn delete_from_bucket(bucket: *mut Bucket, key: &LiveKey) -> bool {
    // SAFETY: the caller's promise.
    unsafe { places(bucket) }.any(|(address, place)| {
        address.load(Ordering::Acquire) == key.address
            // SAFETY: as in `read_bucket`.
            && unsafe { ptr::read_volatile(&raw const (*place).tgid) } == key.tgid
            && address
                .compare_exchange(key.address, PLACE_EMPTY, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(bucket: &mut Bucket, index: usize, address: u64, tgid: u32) {
        bucket.addresses[index] = address;
        bucket.places[index] = Place {
            block: LiveBlock { size_bytes: address * 10, ..LiveBlock::default() },
            tgid,
            reserved: 0,
        };
    }

    fn read(bucket: &mut Bucket) -> Vec<(u32, u64, u64)> {
        let mut found = Vec::new();
        // SAFETY: a bucket that nobody else uses.
        unsafe {
            read_bucket(bucket, &mut |key, block| found.push((key.tgid, key.address, block.size_bytes)));
        }
        found
    }

    #[test]
    fn blocks_are_read_and_deleted_by_process_and_address() {
        let mut bucket = Bucket::default();
        place(&mut bucket, 1, 0x10, 7);
        place(&mut bucket, 2, PLACE_WRITTEN, 7);
        place(&mut bucket, 5, 0x10, 8);
        place(&mut bucket, 7, 0x20, 8);
        assert_eq!(read(&mut bucket), [(7, 0x10, 0xa0), (8, 0x10, 0xa0), (8, 0x20, 0x140)]);
        let key = |tgid, address| LiveKey { tgid, reserved: 0, address };
        for (key, is_there) in [(key(8, 0x10), true), (key(8, 0x10), false), (key(9, 0x20), false)] {
            // SAFETY: as above.
            assert_eq!(unsafe { delete_from_bucket(&mut bucket, &key) }, is_there, "{key:?}");
        }
        assert_eq!(read(&mut bucket), [(7, 0x10, 0xa0), (8, 0x20, 0x140)]);
    }
}
