//! The pure rules of pairing: what a call means, given what was seen at its entry and at its return.

use crate::cookie::{
    SHAPE_ALIGNED_OUT, SHAPE_RESIZE, SHAPE_RESIZE_ARRAY, SHAPE_RESIZE_IN_PLACE, SHAPE_RESIZE_OR_FREE,
};

/// Size of a request whose count times size does not fit 64 bits.
pub const OVERFLOW: u64 = u64::MAX;

/// Bytes requested by a call with a count and a size, [`OVERFLOW`] where they do not fit.
///
/// By 32-bit halves: the BPF target has no 128-bit multiplication, and LLVM makes one of every check
/// that compares with a quotient.
#[inline(always)]
pub const fn array_bytes(count: u64, size: u64) -> u64 {
    let (count_high, count_low) = (count >> 32, count & 0xffff_ffff);
    let (size_high, size_low) = (size >> 32, size & 0xffff_ffff);
    if count_high != 0 && size_high != 0 {
        return OVERFLOW;
    }
    // At most one of the two products is not zero.
    let cross = count_high * size_low + count_low * size_high;
    if cross >> 32 != 0 {
        return OVERFLOW;
    }
    let low = count_low * size_low;
    let product = low.wrapping_add(cross << 32);
    if product < low { OVERFLOW } else { product }
}

/// Whether the call in flight at `outer_sp` still stands when a call is entered at `entry_sp`.
///
/// The stack grows down: a call made inside another one has its return address below. A call that is
/// entered at or above the outer one's stack pointer proves that the outer one was left without a
/// return (longjmp, exception) or was left by a jump (tail call): it is replaced.
#[inline(always)]
pub const fn is_nested(outer_sp: u64, entry_sp: u64) -> bool {
    entry_sp < outer_sp
}

/// Whether a return with this stack pointer belongs to the call that was entered at `entry_sp`: the
/// return has popped the return address (8 bytes on x86-64; 0 on aarch64, where it is in a register).
#[inline(always)]
pub const fn is_return_of(entry_sp: u64, return_sp: u64, popped_bytes: u64) -> bool {
    return_sp == entry_sp.wrapping_add(popped_bytes)
}

/// What becomes of the block that a resize had set aside.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aside {
    /// The call was no resize, or had no block.
    Keep = 0,
    /// The old block is gone: book it as freed.
    Drop = 1,
    /// The call failed, the old block is still live.
    Restore = 2,
}

/// What to do with the old block of a resize that returned `result`.
///
/// `realloc(p, n)` with n > 0 that returns NULL has failed and `p` lives. `realloc(p, 0)` that returns
/// NULL has freed `p` (glibc); other allocators return a block: the returned pointer decides.
#[inline(always)]
pub const fn aside(shape: u64, size_bytes: u64, result: u64) -> Aside {
    if shape == SHAPE_RESIZE_OR_FREE {
        Aside::Drop
    } else if shape != SHAPE_RESIZE && shape != SHAPE_RESIZE_ARRAY {
        Aside::Keep
    } else if result != 0 || size_bytes == 0 {
        Aside::Drop
    } else {
        Aside::Restore
    }
}

/// Whether a call of this shape has an old block.
#[inline(always)]
pub const fn resizes(shape: u64) -> bool {
    shape == SHAPE_RESIZE
        || shape == SHAPE_RESIZE_ARRAY
        || shape == SHAPE_RESIZE_OR_FREE
        || shape == SHAPE_RESIZE_IN_PLACE
}

/// Bytes that a block counts with after `xallocx(block, size, extra)` returned its `real` size, where `limit` is size plus
/// extra; `None`: it was not resized.
///
/// How many of the extra bytes it has got is not said; it cannot be more than the real size, nor more than was asked for.
#[inline(always)]
pub const fn in_place_bytes(size_bytes: u64, limit_bytes: u64, real_bytes: u64) -> Option<u64> {
    if real_bytes < size_bytes {
        None
    } else if real_bytes < limit_bytes {
        Some(real_bytes)
    } else {
        Some(limit_bytes)
    }
}

/// Whether the address of the block has to be read from `*out` rather than from the return value.
///
/// `posix_memalign` returns 0 for success; `*out` is only defined then.
#[inline(always)]
pub const fn reads_result(shape: u64, returned: u64) -> bool {
    // The return value is an `int`: the upper half of the register is not defined.
    shape == SHAPE_ALIGNED_OUT && returned as u32 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cookie::{SHAPE_ALLOCATE, SHAPE_ALLOCATE_ARRAY};

    #[test]
    fn products_are_exact_or_overflow() {
        let cases = [
            (0, 0),
            (0, u64::MAX),
            (u64::MAX, 0),
            (1, u64::MAX),
            (3, 5),
            (u64::MAX, 2),
            (1 << 32, 1 << 31),
            (1 << 32, 1 << 32),
            (u64::from(u32::MAX), u64::from(u32::MAX)),
            (1 << 33, (1 << 31) - 1),
            (u64::MAX / 3, 3),
            (u64::MAX / 3 + 1, 3),
        ];
        for (count, size) in cases {
            let expected = u64::try_from(u128::from(count) * u128::from(size)).unwrap_or(OVERFLOW);
            assert_eq!(array_bytes(count, size), expected, "{count} x {size}");
        }
    }

    #[test]
    fn only_deeper_calls_are_nested() {
        assert!(is_nested(1000, 992));
        assert!(!is_nested(1000, 1000), "a tail call replaces");
        assert!(!is_nested(1000, 1008), "an abandoned call is replaced");
    }

    #[test]
    fn a_return_pops_the_return_address() {
        assert!(is_return_of(1000, 1008, 8) && is_return_of(1000, 1000, 0));
        assert!(!is_return_of(1000, 1000, 8) && !is_return_of(1000, 1008, 0));
        assert!(!is_return_of(1000, 984, 8));
    }

    #[test]
    fn resize_outcomes() {
        for shape in [SHAPE_RESIZE, SHAPE_RESIZE_ARRAY] {
            assert_eq!(aside(shape, 10, 0x1000), Aside::Drop, "moved or grown");
            assert_eq!(aside(shape, 10, 0), Aside::Restore, "failed");
            assert_eq!(aside(shape, OVERFLOW, 0), Aside::Restore, "overflow fails");
            assert_eq!(aside(shape, 0, 0), Aside::Drop, "realloc(p, 0) freed");
            assert_eq!(aside(shape, 0, 0x1000), Aside::Drop, "realloc(p, 0) gave a new block");
        }
        assert_eq!(aside(SHAPE_RESIZE_OR_FREE, 10, 0), Aside::Drop, "reallocf frees what it cannot resize");
        assert_eq!(aside(SHAPE_RESIZE_OR_FREE, 10, 0x1000), Aside::Drop);
        assert_eq!(aside(SHAPE_ALLOCATE, 10, 0), Aside::Keep);
        assert_eq!(aside(SHAPE_ALLOCATE_ARRAY, 0, 0), Aside::Keep);
    }

    #[test]
    fn in_place_outcomes() {
        assert_eq!(in_place_bytes(100, 100, 128), Some(100), "no more than asked for");
        assert_eq!(in_place_bytes(100, 120, 112), Some(112), "a part of the extra bytes");
        assert_eq!(in_place_bytes(100, 200, 100), Some(100));
        assert_eq!(in_place_bytes(100, 200, 64), None, "no room");
        assert_eq!(in_place_bytes(100, u64::MAX, 1 << 20), Some(1 << 20), "an overflow that went well");
    }

    #[test]
    fn shapes_with_an_old_block() {
        for shape in [SHAPE_RESIZE, SHAPE_RESIZE_ARRAY, SHAPE_RESIZE_OR_FREE, SHAPE_RESIZE_IN_PLACE] {
            assert!(resizes(shape));
        }
        assert!(!resizes(SHAPE_ALLOCATE) && !resizes(SHAPE_ALIGNED_OUT));
    }

    #[test]
    fn the_result_of_posix_memalign_is_read_on_success_only() {
        assert!(reads_result(SHAPE_ALIGNED_OUT, 0));
        assert!(reads_result(SHAPE_ALIGNED_OUT, 0xffff_ffff_0000_0000), "upper half undefined");
        assert!(!reads_result(SHAPE_ALIGNED_OUT, 12));
        assert!(!reads_result(SHAPE_ALLOCATE, 0));
    }
}
