//! The table of live blocks: an array of buckets, each a cache line of addresses with the blocks behind it.
//!
//! A hash map of the kernel costs some 200 ns for the insertion and the deletion of a block; a bucket costs a compare-and-exchange
//! each. What finds no place in its bucket goes into a hash map beside the table.

use super::{LiveBlock, LiveKey, layout};

/// Places in a bucket: their addresses fill one cache line.
pub const BUCKET_PLACES: usize = 8;
/// Address of a place that is empty.
pub const PLACE_EMPTY: u64 = 0;
/// Address of a place that is being written. No block is there: the first page of an address space is never mapped.
pub const PLACE_WRITTEN: u64 = 1;

/// One place of a bucket. Valid where the bucket has its address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The block.
    pub block: LiveBlock,
    /// Whose it is.
    pub tgid: u32,
    /// Zero.
    pub reserved: u32,
}
layout!(Place, 32, [block: LiveBlock, tgid: u32, reserved: u32]);

/// Blocks whose addresses have the same hash.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Addresses of the blocks in `places`, [`PLACE_EMPTY`], or [`PLACE_WRITTEN`]. Who exchanges an address for
    /// [`PLACE_EMPTY`] owns the block.
    pub addresses: [u64; BUCKET_PLACES],
    /// The blocks.
    pub places: [Place; BUCKET_PLACES],
}
layout!(Bucket, 320, [addresses: [u64; BUCKET_PLACES], places: [Place; BUCKET_PLACES]]);

/// Where a block is looked for first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// Its bucket: it is in no other.
    pub bucket: u32,
    /// The place that it takes if it is free; below [`BUCKET_PLACES`].
    pub place: u32,
}

/// The bucket of a block, of `count` ones, and its place there. (Two rounds of multiplying and shifting, and the upper half of a
/// product in the place of a remainder: Lemire, ACM Transactions on Modeling and Computer Simulation 29 (2019) 3. The place is
/// made of bits that the bucket does not depend on.)
#[inline(always)]
pub const fn home_of(key: LiveKey, count: u32) -> Home {
    let mixed = (key.address ^ (key.tgid as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let bucket = (((mixed >> 32) * count as u64) >> 32) as u32;
    Home { bucket, place: mixed as u32 & (BUCKET_PLACES as u32 - 1) }
}

/// How much room live blocks are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// Buckets; 0: all blocks are in the hash map.
    pub buckets: u32,
    /// Entries of the hash map.
    pub spilled: u32,
}

impl TableSize {
    /// Below, the limit is kept to the block, by the hash map alone.
    const SMALLEST: u32 = 1 << 14;

    /// Room for `blocks` live blocks, at least. With three places for two blocks, 5.3 fall into a bucket on average, and 3.3 % of all
    /// find no place there (the sum over k of (k − 8) times the Poisson probability of k); there is room for twice as many.
    pub const fn for_blocks(blocks: u32) -> Self {
        if blocks < Self::SMALLEST {
            return Self { buckets: 0, spilled: blocks };
        }
        let buckets = (blocks as u64 * 3).div_ceil(2 * BUCKET_PLACES as u64);
        Self { buckets: buckets as u32, spilled: blocks / 15 }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;

    /// Blocks of `stride` bytes side by side, in two processes that have the same addresses: how many find no place.
    fn spilled(blocks: u32, stride: u64) -> u32 {
        let size = TableSize::for_blocks(blocks);
        let mut buckets = vec![0usize; size.buckets as usize];
        let mut spilled = 0;
        for index in 0..blocks {
            let address = 0x7f12_3456_0010 + u64::from(index / 2) * stride;
            let key = LiveKey { tgid: 4000 + index % 2, reserved: 0, address };
            let filled = &mut buckets[home_of(key, size.buckets).bucket as usize];
            if *filled == BUCKET_PLACES { spilled += 1 } else { *filled += 1 }
        }
        spilled
    }

    #[test]
    fn there_is_room_for_what_was_promised() {
        for stride in [8, 16, 32, 48, 112, 4096, 4112, 1 << 20, 3 << 20] {
            for blocks in [1 << 14, 1 << 18, 1_000_003] {
                let (spilled, room) = (spilled(blocks, stride), TableSize::for_blocks(blocks).spilled);
                assert!(spilled < room, "{spilled} of {blocks} blocks of {stride} bytes, room for {room}");
            }
        }
    }

    #[test]
    fn small_limits_are_exact() {
        assert_eq!(TableSize::for_blocks(5), TableSize { buckets: 0, spilled: 5 });
        assert_eq!(TableSize::for_blocks(1 << 20), TableSize { buckets: 196_608, spilled: 69_905 });
    }

    #[test]
    fn every_address_has_a_bucket() {
        for address in [0, 1, 16, u64::MAX] {
            for count in [1, 2, 3, 196_608, u32::MAX] {
                let key = LiveKey { tgid: u32::MAX, reserved: 0, address };
                let home = home_of(key, count);
                assert!(home.bucket < count && (home.place as usize) < BUCKET_PLACES);
            }
        }
    }
}
