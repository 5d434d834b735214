//! The one table of allocator functions.
//!
//! To add a function, add a row: attach points, programs, `doctor` and the tests follow. Ids are
//! append-only, they stand in captures.

/// What a call does, and where its arguments are (index of the integer argument, from 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Returns a block of `size` bytes.
    Allocate {
        /// Argument with the size.
        size: u8,
    },
    /// Returns a block of `count` times `size` bytes.
    AllocateArray {
        /// Argument with the count.
        count: u8,
        /// Argument with the size of one.
        size: u8,
    },
    /// Resizes the block at `pointer` and returns where it is now.
    Resize {
        /// Argument with the old address.
        pointer: u8,
        /// Argument with the new size.
        size: u8,
    },
    /// Resizes the block at `pointer` to `count` times `size` bytes.
    ResizeArray {
        /// Argument with the old address.
        pointer: u8,
        /// Argument with the count.
        count: u8,
        /// Argument with the size of one.
        size: u8,
    },
    /// Writes the address of a block of `size` bytes to `*out` and returns 0, or an error code.
    AlignedOut {
        /// Argument that points to the result.
        out: u8,
        /// Argument with the size.
        size: u8,
    },
    /// Releases the block at `pointer`.
    Release {
        /// Argument with the address.
        pointer: u8,
    },
}

impl Shape {
    /// Whether the function needs a return probe.
    pub const fn returns_block(self) -> bool {
        !matches!(self, Self::Release { .. })
    }

    /// Highest argument index that is read at entry.
    pub const fn last_argument(self) -> u8 {
        match self {
            Self::Allocate { size } | Self::AllocateArray { size, .. } => size,
            Self::Resize { size, .. } | Self::ResizeArray { size, .. } => size,
            Self::AlignedOut { size, .. } => size,
            Self::Release { pointer } => pointer,
        }
    }
}

/// One allocator function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Stable id, not 0.
    pub id: u8,
    /// Symbol.
    pub name: &'static str,
    /// What it does.
    pub shape: Shape,
}

const fn function(id: u8, name: &'static str, shape: Shape) -> Function {
    Function { id, name, shape }
}

/// Every function that is probed where an object defines it.
pub const FUNCTIONS: &[Function] = &[
    function(1, "malloc", Shape::Allocate { size: 0 }),
    function(2, "calloc", Shape::AllocateArray { count: 0, size: 1 }),
    function(3, "realloc", Shape::Resize { pointer: 0, size: 1 }),
    function(4, "reallocarray", Shape::ResizeArray { pointer: 0, count: 1, size: 2 }),
    function(5, "posix_memalign", Shape::AlignedOut { out: 0, size: 2 }),
    function(6, "aligned_alloc", Shape::Allocate { size: 1 }),
    function(7, "memalign", Shape::Allocate { size: 1 }),
    function(8, "valloc", Shape::Allocate { size: 0 }),
    function(9, "pvalloc", Shape::Allocate { size: 0 }),
    function(10, "free", Shape::Release { pointer: 0 }),
    function(11, "cfree", Shape::Release { pointer: 0 }),
    function(12, "free_sized", Shape::Release { pointer: 0 }),
    function(13, "free_aligned_sized", Shape::Release { pointer: 0 }),
];

/// The function with this id.
pub fn by_id(id: u8) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.id == id)
}

/// The function with this symbol.
pub fn by_name(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_not_zero() {
        for (index, function) in FUNCTIONS.iter().enumerate() {
            assert_ne!(function.id, 0);
            assert!(
                FUNCTIONS[..index].iter().all(|other| other.id != function.id && other.name != function.name)
            );
            assert_eq!(by_id(function.id), Some(function));
            assert_eq!(by_name(function.name), Some(function));
        }
    }

    #[test]
    fn arguments_are_in_registers() {
        assert!(
            FUNCTIONS.iter().all(|function| function.shape.last_argument() < 4),
            "the programs read four registers"
        );
    }
}
