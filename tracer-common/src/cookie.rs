//! The attach cookie: all that a program needs to know about the function that fired.
//!
//! ```text
//! bits 0-7   function id        bits 20-23 index of the count argument
//! bits 8-11  shape              bits 24-27 index of the pointer argument
//! bits 16-19 index of the size argument    bits 32-47 bytes pushed since the function's first instruction
//! bits 48-63 number of the allocator within the recording
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
            let cookie = Cookie::new(function, 8, 0xfffe);
            assert_eq!(cookie.allocator(), 0xfffe);
            assert_eq!(cookie.function(), function.id);
            assert_eq!(cookie.pushed_bytes(), 8);
            match function.shape {
                Shape::Allocate { size } => {
                    assert_eq!((cookie.shape(), cookie.size_argument()), (SHAPE_ALLOCATE, size as u64))
                }
                Shape::AllocateArray { count, size } => assert_eq!(
                    (cookie.shape(), cookie.size_argument(), cookie.count_argument()),
                    (SHAPE_ALLOCATE_ARRAY, size as u64, count as u64)
                ),
                Shape::Resize { pointer, size } => assert_eq!(
                    (cookie.shape(), cookie.size_argument(), cookie.pointer_argument()),
                    (SHAPE_RESIZE, size as u64, pointer as u64)
                ),
                Shape::ResizeArray { pointer, count, size } => assert_eq!(
                    (
                        cookie.shape(),
                        cookie.size_argument(),
                        cookie.count_argument(),
                        cookie.pointer_argument()
                    ),
                    (SHAPE_RESIZE_ARRAY, size as u64, count as u64, pointer as u64)
                ),
                Shape::AlignedOut { out, size } => assert_eq!(
                    (cookie.shape(), cookie.size_argument(), cookie.pointer_argument()),
                    (SHAPE_ALIGNED_OUT, size as u64, out as u64)
                ),
                Shape::Release { pointer } => {
                    assert_eq!((cookie.shape(), cookie.pointer_argument()), (SHAPE_RELEASE, pointer as u64));
                }
            }
        }
    }
}
