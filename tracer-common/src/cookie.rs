//! The attach cookie: all that a program needs to know about the function that fired.
//!
//! ```text
//! bits 0-7   function id                  bits 24-27 index of the pointer argument
//! bits 8-11  shape                        bit  28    its end is seen by probes at its exits
//! bits 16-19 index of the size argument   bits 32-47 bytes pushed since the function's first instruction
//! bits 20-23 index of the count argument  bits 48-63 number of the allocator within the recording
//! ```
//!
//! Worked example: `realloc` probed at its first instruction is id 3, shape 3, size argument 1, pointer
//! argument 0: `0x0001_0303`.

use crate::func::{Function, Shape};

/// [`Shape::Allocate`].
pub const SHAPE_ALLOCATE: u64 = 1;
/// [`Shape::AllocateArray`].
pub const SHAPE_ALLOCATE_ARRAY: u64 = 2;
/// [`Shape::Resize`].
pub const SHAPE_RESIZE: u64 = 3;
/// [`Shape::ResizeArray`].
pub const SHAPE_RESIZE_ARRAY: u64 = 4;
/// [`Shape::AlignedOut`].
pub const SHAPE_ALIGNED_OUT: u64 = 5;
/// [`Shape::Release`].
pub const SHAPE_RELEASE: u64 = 6;
/// [`Shape::ResizeOrFree`].
pub const SHAPE_RESIZE_OR_FREE: u64 = 7;
/// [`Shape::ResizeInPlace`]; what it may grow by is the count argument.
pub const SHAPE_RESIZE_IN_PLACE: u64 = 8;

const LEFT_AT_EXIT: u64 = 1 << 28;

/// An attach cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(pub u64);

impl Cookie {
    /// Packs a function; `pushed_bytes` is how far the stack pointer has moved at the probed instruction,
    /// `allocator` the number of its object within the recording.
    pub const fn new(function: &Function, pushed_bytes: u16, allocator: u16) -> Self {
        let (shape, size, count, pointer) = match function.shape {
            Shape::Allocate { size } => (SHAPE_ALLOCATE, size, 0, 0),
            Shape::AllocateArray { count, size } => (SHAPE_ALLOCATE_ARRAY, size, count, 0),
            Shape::Resize { pointer, size } => (SHAPE_RESIZE, size, 0, pointer),
            Shape::ResizeArray { pointer, count, size } => (SHAPE_RESIZE_ARRAY, size, count, pointer),
            Shape::ResizeOrFree { pointer, size } => (SHAPE_RESIZE_OR_FREE, size, 0, pointer),
            Shape::ResizeInPlace { pointer, size, extra } => (SHAPE_RESIZE_IN_PLACE, size, extra, pointer),
            Shape::AlignedOut { out, size } => (SHAPE_ALIGNED_OUT, size, 0, out),
            Shape::Release { pointer } => (SHAPE_RELEASE, 0, 0, pointer),
        };
        Self(
            function.id as u64
                | (shape << 8)
                | ((size as u64) << 16)
                | ((count as u64) << 20)
                | ((pointer as u64) << 24)
                | ((pushed_bytes as u64) << 32)
                | ((allocator as u64) << 48),
        )
    }

    /// The same for a function that has no return probe but probes at its exits.
    #[must_use]
    pub const fn left_at_exit(self) -> Self {
        Self(self.0 | LEFT_AT_EXIT)
    }

    /// Whether the function's end is seen by probes at its exits.
    #[inline(always)]
    pub const fn is_left_at_exit(self) -> bool {
        self.0 & LEFT_AT_EXIT != 0
    }

    /// Function id.
    #[inline(always)]
    pub const fn function(self) -> u8 {
        self.0 as u8
    }

    /// One of the `SHAPE_` constants.
    #[inline(always)]
    pub const fn shape(self) -> u64 {
        (self.0 >> 8) & 15
    }

    /// Index of the size argument.
    #[inline(always)]
    pub const fn size_argument(self) -> u64 {
        (self.0 >> 16) & 15
    }

    /// Index of the count argument.
    #[inline(always)]
    pub const fn count_argument(self) -> u64 {
        (self.0 >> 20) & 15
    }

    /// Index of the pointer argument.
    #[inline(always)]
    pub const fn pointer_argument(self) -> u64 {
        (self.0 >> 24) & 15
    }

    /// Bytes pushed between the function's first instruction and the probed one.
    #[inline(always)]
    pub const fn pushed_bytes(self) -> u64 {
        (self.0 >> 32) & 0xffff
    }

    /// Number of the allocator within the recording.
    #[inline(always)]
    pub const fn allocator(self) -> u32 {
        (self.0 >> 48) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::func::{FUNCTIONS, by_name};

    #[test]
    fn the_worked_example_holds() {
        assert_eq!(by_name("realloc").map(|f| Cookie::new(f, 0, 0)), Some(Cookie(0x0001_0303)));
    }

    #[test]
    fn every_function_survives_packing() {
        for function in FUNCTIONS {
            let plain = Cookie::new(function, 8, 0xfffe);
            assert!(!plain.is_left_at_exit() && plain.left_at_exit().is_left_at_exit());
            for cookie in [plain, plain.left_at_exit()] {
                assert_eq!(cookie.allocator(), 0xfffe);
                assert_eq!(cookie.function(), function.id);
                assert_eq!(cookie.pushed_bytes(), 8);
                let [size, count, pointer] =
                    [cookie.size_argument(), cookie.count_argument(), cookie.pointer_argument()];
                let unpacked = match cookie.shape() {
                    SHAPE_ALLOCATE => Shape::Allocate { size: size as u8 },
                    SHAPE_ALLOCATE_ARRAY => Shape::AllocateArray { count: count as u8, size: size as u8 },
                    SHAPE_RESIZE => Shape::Resize { pointer: pointer as u8, size: size as u8 },
                    SHAPE_RESIZE_ARRAY => {
                        Shape::ResizeArray { pointer: pointer as u8, count: count as u8, size: size as u8 }
                    }
                    SHAPE_ALIGNED_OUT => Shape::AlignedOut { out: pointer as u8, size: size as u8 },
                    SHAPE_RESIZE_OR_FREE => Shape::ResizeOrFree { pointer: pointer as u8, size: size as u8 },
                    SHAPE_RESIZE_IN_PLACE => {
                        Shape::ResizeInPlace { pointer: pointer as u8, size: size as u8, extra: count as u8 }
                    }
                    _ => Shape::Release { pointer: pointer as u8 },
                };
                assert_eq!(unpacked, function.shape, "{}", function.name);
            }
        }
    }
}
