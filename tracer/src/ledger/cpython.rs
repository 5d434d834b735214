//! CPython: pools of its small-object allocator, known by their headers.
//!
//! The table of arenas is a static variable that only interpreters with symbols have, and 3.12 has none. But every arena is
//! divided into pools, each of which begins with a header that agrees with itself: `szidx` says how large its blocks are,
//! `maxnextoffset` is the size of the pool less one block, `nextoffset` is a whole number of blocks behind the header,
//! and `ref.count` is at most the number of blocks (Objects/obmalloc.c; `struct pool_header`). Pools have 16 KiB since
//! 3.10, arenas 1 MiB; before, 4 KiB and 256 KiB.

use super::Told;
use super::claim::{Claims, Use};
use super::context::Context;
use super::smaps::Vma;
use crate::managed::memory::{Memory, is_anonymous};
use crate::model::LedgerClass::ManagedHeap;
use crate::model::Runtime;

const SOURCE: &str = "CPython arenas";
const LABEL: &str = "CPython arena";
const HEADER_BYTES: u64 = 48;
/// Alignment of blocks: 16 since 3.7 (3.6 had 8).
const ALIGNMENT: u64 = 16;
const MAX_SIZE_INDEX: u64 = 32;
/// Pools of one mapping that must be there for it to be believed.
const MIN_POOLS: usize = 4;
/// Pools that are looked at: 256 GiB of them.
const MAX_POOLS: u64 = 1 << 24;

/// What a pool's header says, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pool {
    used_bytes: u64,
    capacity_bytes: u64,
}

/// The pool whose header these bytes are.
fn pool(header: &[u8], pool_bytes: u64) -> Option<Pool> {
    let half = |at: usize| Some(u64::from(u32::from_le_bytes(header.get(at..at + 4)?.try_into().ok()?)));
    let word = |at: usize| Some(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?));
    let (count, free, next_pool, previous) = (half(0)?, word(8)?, word(16)?, word(24)?);
    let (index, next_offset, max_offset) = (half(36)?, half(40)?, half(44)?);
    let block_bytes = (index + 1) * ALIGNMENT;
    let is_pointer = |pointer: u64| pointer.is_multiple_of(8) && pointer < 1 << 47;
    let agrees = index < MAX_SIZE_INDEX
        && max_offset == pool_bytes - block_bytes
        && next_offset >= HEADER_BYTES
        && next_offset <= pool_bytes
        && (next_offset - HEADER_BYTES).is_multiple_of(block_bytes)
        && count <= (next_offset - HEADER_BYTES) / block_bytes
        && [free, next_pool, previous].into_iter().all(is_pointer);
    agrees.then(|| Pool {
        used_bytes: count * block_bytes,
        capacity_bytes: (pool_bytes - HEADER_BYTES) / block_bytes * block_bytes,
    })
}

/// Finds the pools, claims them unless the table of arenas has told, and says how much of them is in use. Whether any
/// was found.
pub(super) fn claim(
    context: &mut Context<'_>,
    vmas: &[Vma],
    runtime: &Runtime,
    is_claimed: bool,
    claims: &mut Claims,
    told: &mut Told,
) -> bool {
    let minor = runtime.version.as_deref().and_then(|version| version.split('.').nth(1)?.parse::<u32>().ok());
    let pool_bytes: u64 = if minor.is_some_and(|minor| minor < 10) { 4 << 10 } else { 16 << 10 };
    let what = Use::new(ManagedHeap, LABEL);
    let memory = context.memory;
    let (mut used_bytes, mut capacity_bytes, mut found_any) = (0, 0, false);
    let mut budget = MAX_POOLS;
    for vma in vmas {
        let entry = &vma.entry;
        if !is_anonymous(entry) || !entry.permissions.starts_with(b"rw") || vma.rss_bytes == 0 {
            continue;
        }
        let Some(presence) = context.presence(entry.start, entry.end) else { continue };
        let mut pools: Vec<(u64, Pool)> = Vec::new();
        let mut at = entry.start.next_multiple_of(pool_bytes);
        while at < entry.end && budget > 0 {
            budget -= 1;
            let mut header = [0; HEADER_BYTES as usize];
            if presence.has(at) && memory.read(at, &mut header) {
                pools.extend(pool(&header, pool_bytes).map(|pool| (at, pool)));
            }
            at += pool_bytes;
        }
        if pools.len() < MIN_POOLS {
            continue;
        }
        found_any = true;
        for (at, pool) in &pools {
            used_bytes += pool.used_bytes;
            capacity_bytes += pool.capacity_bytes;
            if !is_claimed {
                claims.add(*at, (at + pool_bytes).min(entry.end), &what);
            }
        }
    }
    told.add(SOURCE, "blocks in use", found_any.then_some(used_bytes));
    told.add(SOURCE, "room in the pools", found_any.then_some(capacity_bytes));
    found_any
}
