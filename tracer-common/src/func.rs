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
    /// Resizes the block at `pointer` and returns where it is now; NULL: nothing has changed.
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
    /// As [`Shape::Resize`], but NULL means that the block has been released (`reallocf`).
    ResizeOrFree {
        /// Argument with the old address.
        pointer: u8,
        /// Argument with the new size.
        size: u8,
    },
    /// Resizes the block at `pointer` where it lies, to `size` and if possible `extra` bytes more, and returns its real
    /// size, which is below `size` if that was not possible (`xallocx`).
    ResizeInPlace {
        /// Argument with the address.
        pointer: u8,
        /// Argument with the new size.
        size: u8,
        /// Argument with the bytes beyond it.
        extra: u8,
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
    /// Whether the function's end has to be seen.
    pub const fn returns_block(self) -> bool {
        !matches!(self, Self::Release { .. })
    }

    /// Indices of the arguments that are read at entry.
    pub const fn arguments(self) -> [Option<u8>; 3] {
        match self {
            Self::Allocate { size } => [Some(size), None, None],
            Self::AllocateArray { count, size } => [Some(count), Some(size), None],
            Self::Resize { pointer, size } | Self::ResizeOrFree { pointer, size } => {
                [Some(pointer), Some(size), None]
            }
            Self::ResizeArray { pointer, count, size } => [Some(pointer), Some(count), Some(size)],
            Self::ResizeInPlace { pointer, size, extra } => [Some(pointer), Some(size), Some(extra)],
            Self::AlignedOut { out, size } => [Some(out), Some(size), None],
            Self::Release { pointer } => [Some(pointer), None, None],
        }
    }
}

/// Under which names a function is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Behind every prefix, also none, also the user's.
    C,
    /// As it stands.
    Cpp,
    /// Behind `tc_`.
    Tcmalloc,
    /// Behind `mi_`.
    Mimalloc,
    /// Behind `sn_`.
    Snmalloc,
    /// Behind `scalable_`.
    Tbb,
}

/// Prefixes that are tried without being asked for, with the family that has further functions behind them.
/// `je_` is what jemalloc calls itself when it is not to be malloc, `_rjem_` what its Rust crates choose, `rp` is rpmalloc.
pub const PREFIXES: &[(&str, Option<Family>)] = &[
    ("", None),
    ("je_", None),
    ("_rjem_", None),
    ("tc_", Some(Family::Tcmalloc)),
    ("mi_", Some(Family::Mimalloc)),
    ("sn_", Some(Family::Snmalloc)),
    ("scalable_", Some(Family::Tbb)),
    ("rp", None),
];

/// One allocator function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Stable id, not 0.
    pub id: u8,
    /// Under which prefixes it is looked for.
    pub family: Family,
    /// Symbol, without the prefix.
    pub name: &'static str,
    /// What it does.
    pub shape: Shape,
    /// Whether a C++ exception may leave it: it must never have a return probe.
    pub may_throw: bool,
    /// Whether it hands on the very size it was asked for: if it always calls another function of the table, that one's
    /// probe is enough.
    pub forwards: bool,
}

impl Function {
    const fn throws(mut self) -> Self {
        self.may_throw = true;
        self
    }

    const fn forwards(mut self) -> Self {
        self.forwards = true;
        self
    }
}

const fn row(id: u8, family: Family, name: &'static str, shape: Shape) -> Function {
    // A release has no size that could differ.
    Function { id, family, name, shape, may_throw: false, forwards: !shape.returns_block() }
}

/// Every function that is probed where an object defines it.
pub const FUNCTIONS: &[Function] = &[
    // The C library's, jemalloc's own, and BSD's, under any prefix.
    row(1, Family::C, "malloc", Shape::Allocate { size: 0 }),
    row(2, Family::C, "calloc", Shape::AllocateArray { count: 0, size: 1 }),
    row(3, Family::C, "realloc", Shape::Resize { pointer: 0, size: 1 }),
    row(4, Family::C, "reallocarray", Shape::ResizeArray { pointer: 0, count: 1, size: 2 }),
    row(5, Family::C, "posix_memalign", Shape::AlignedOut { out: 0, size: 2 }),
    row(6, Family::C, "aligned_alloc", Shape::Allocate { size: 1 }),
    row(7, Family::C, "memalign", Shape::Allocate { size: 1 }),
    row(8, Family::C, "valloc", Shape::Allocate { size: 0 }),
    row(9, Family::C, "pvalloc", Shape::Allocate { size: 0 }),
    row(10, Family::C, "free", Shape::Release { pointer: 0 }),
    row(11, Family::C, "cfree", Shape::Release { pointer: 0 }),
    row(12, Family::C, "free_sized", Shape::Release { pointer: 0 }),
    row(13, Family::C, "free_aligned_sized", Shape::Release { pointer: 0 }),
    row(14, Family::C, "mallocx", Shape::Allocate { size: 0 }),
    row(15, Family::C, "rallocx", Shape::Resize { pointer: 0, size: 1 }),
    row(16, Family::C, "xallocx", Shape::ResizeInPlace { pointer: 0, size: 1, extra: 2 }),
    row(17, Family::C, "dallocx", Shape::Release { pointer: 0 }),
    row(18, Family::C, "sdallocx", Shape::Release { pointer: 0 }),
    row(19, Family::C, "reallocf", Shape::ResizeOrFree { pointer: 0, size: 1 }),
    // operator new and operator delete in all forms of C++20: `w` for one object, `a` for an array.
    row(20, Family::Cpp, "_Znwm", Shape::Allocate { size: 0 }).throws().forwards(),
    row(21, Family::Cpp, "_Znam", Shape::Allocate { size: 0 }).throws().forwards(),
    row(22, Family::Cpp, "_ZnwmRKSt9nothrow_t", Shape::Allocate { size: 0 }).forwards(),
    row(23, Family::Cpp, "_ZnamRKSt9nothrow_t", Shape::Allocate { size: 0 }).forwards(),
    row(24, Family::Cpp, "_ZnwmSt11align_val_t", Shape::Allocate { size: 0 }).throws().forwards(),
    row(25, Family::Cpp, "_ZnamSt11align_val_t", Shape::Allocate { size: 0 }).throws().forwards(),
    row(26, Family::Cpp, "_ZnwmSt11align_val_tRKSt9nothrow_t", Shape::Allocate { size: 0 }).forwards(),
    row(27, Family::Cpp, "_ZnamSt11align_val_tRKSt9nothrow_t", Shape::Allocate { size: 0 }).forwards(),
    row(28, Family::Cpp, "_ZdlPv", Shape::Release { pointer: 0 }),
    row(29, Family::Cpp, "_ZdaPv", Shape::Release { pointer: 0 }),
    row(30, Family::Cpp, "_ZdlPvm", Shape::Release { pointer: 0 }),
    row(31, Family::Cpp, "_ZdaPvm", Shape::Release { pointer: 0 }),
    row(32, Family::Cpp, "_ZdlPvRKSt9nothrow_t", Shape::Release { pointer: 0 }),
    row(33, Family::Cpp, "_ZdaPvRKSt9nothrow_t", Shape::Release { pointer: 0 }),
    row(34, Family::Cpp, "_ZdlPvSt11align_val_t", Shape::Release { pointer: 0 }),
    row(35, Family::Cpp, "_ZdaPvSt11align_val_t", Shape::Release { pointer: 0 }),
    row(36, Family::Cpp, "_ZdlPvmSt11align_val_t", Shape::Release { pointer: 0 }),
    row(37, Family::Cpp, "_ZdaPvmSt11align_val_t", Shape::Release { pointer: 0 }),
    row(38, Family::Cpp, "_ZdlPvSt11align_val_tRKSt9nothrow_t", Shape::Release { pointer: 0 }),
    row(39, Family::Cpp, "_ZdaPvSt11align_val_tRKSt9nothrow_t", Shape::Release { pointer: 0 }),
    // gperftools, `tc_`.
    row(40, Family::Tcmalloc, "new", Shape::Allocate { size: 0 }).throws().forwards(),
    row(41, Family::Tcmalloc, "newarray", Shape::Allocate { size: 0 }).throws().forwards(),
    row(42, Family::Tcmalloc, "new_nothrow", Shape::Allocate { size: 0 }).forwards(),
    row(43, Family::Tcmalloc, "newarray_nothrow", Shape::Allocate { size: 0 }).forwards(),
    row(44, Family::Tcmalloc, "new_aligned", Shape::Allocate { size: 0 }).throws().forwards(),
    row(45, Family::Tcmalloc, "newarray_aligned", Shape::Allocate { size: 0 }).throws().forwards(),
    row(46, Family::Tcmalloc, "new_aligned_nothrow", Shape::Allocate { size: 0 }).forwards(),
    row(47, Family::Tcmalloc, "newarray_aligned_nothrow", Shape::Allocate { size: 0 }).forwards(),
    row(48, Family::Tcmalloc, "delete", Shape::Release { pointer: 0 }),
    row(49, Family::Tcmalloc, "deletearray", Shape::Release { pointer: 0 }),
    row(50, Family::Tcmalloc, "delete_nothrow", Shape::Release { pointer: 0 }),
    row(51, Family::Tcmalloc, "deletearray_nothrow", Shape::Release { pointer: 0 }),
    row(52, Family::Tcmalloc, "delete_sized", Shape::Release { pointer: 0 }),
    row(53, Family::Tcmalloc, "deletearray_sized", Shape::Release { pointer: 0 }),
    row(54, Family::Tcmalloc, "delete_aligned", Shape::Release { pointer: 0 }),
    row(55, Family::Tcmalloc, "deletearray_aligned", Shape::Release { pointer: 0 }),
    row(56, Family::Tcmalloc, "delete_sized_aligned", Shape::Release { pointer: 0 }),
    row(57, Family::Tcmalloc, "deletearray_sized_aligned", Shape::Release { pointer: 0 }),
    row(58, Family::Tcmalloc, "delete_aligned_nothrow", Shape::Release { pointer: 0 }),
    row(59, Family::Tcmalloc, "deletearray_aligned_nothrow", Shape::Release { pointer: 0 }),
    row(60, Family::Tcmalloc, "malloc_skip_new_handler", Shape::Allocate { size: 0 }).forwards(),
    // mimalloc, `mi_`; those of a heap have it as argument 0. It is C: a new handler's exception
    // leaves also the forms that should not throw.
    row(61, Family::Mimalloc, "zalloc", Shape::Allocate { size: 0 }).forwards(),
    row(62, Family::Mimalloc, "zalloc_small", Shape::Allocate { size: 0 }).forwards(),
    row(63, Family::Mimalloc, "malloc_small", Shape::Allocate { size: 0 }).forwards(),
    row(64, Family::Mimalloc, "malloc_aligned", Shape::Allocate { size: 0 }).forwards(),
    row(65, Family::Mimalloc, "malloc_aligned_at", Shape::Allocate { size: 0 }).forwards(),
    row(66, Family::Mimalloc, "zalloc_aligned", Shape::Allocate { size: 0 }).forwards(),
    row(67, Family::Mimalloc, "zalloc_aligned_at", Shape::Allocate { size: 0 }).forwards(),
    row(68, Family::Mimalloc, "mallocn", Shape::AllocateArray { count: 0, size: 1 }).forwards(),
    row(69, Family::Mimalloc, "calloc_aligned", Shape::AllocateArray { count: 0, size: 1 }).forwards(),
    row(70, Family::Mimalloc, "calloc_aligned_at", Shape::AllocateArray { count: 0, size: 1 }).forwards(),
    row(71, Family::Mimalloc, "expand", Shape::Resize { pointer: 0, size: 1 }).forwards(),
    row(72, Family::Mimalloc, "rezalloc", Shape::Resize { pointer: 0, size: 1 }).forwards(),
    row(73, Family::Mimalloc, "realloc_aligned", Shape::Resize { pointer: 0, size: 1 }).forwards(),
    row(74, Family::Mimalloc, "realloc_aligned_at", Shape::Resize { pointer: 0, size: 1 }).forwards(),
    row(75, Family::Mimalloc, "rezalloc_aligned", Shape::Resize { pointer: 0, size: 1 }).forwards(),
    row(76, Family::Mimalloc, "rezalloc_aligned_at", Shape::Resize { pointer: 0, size: 1 }).forwards(),
    row(77, Family::Mimalloc, "reallocn", Shape::ResizeArray { pointer: 0, count: 1, size: 2 }).forwards(),
    row(78, Family::Mimalloc, "recalloc", Shape::ResizeArray { pointer: 0, count: 1, size: 2 }).forwards(),
    row(79, Family::Mimalloc, "recalloc_aligned", Shape::ResizeArray { pointer: 0, count: 1, size: 2 })
        .forwards(),
    row(80, Family::Mimalloc, "recalloc_aligned_at", Shape::ResizeArray { pointer: 0, count: 1, size: 2 })
        .forwards(),
    row(81, Family::Mimalloc, "heap_malloc", Shape::Allocate { size: 1 }).forwards(),
    row(82, Family::Mimalloc, "heap_malloc_small", Shape::Allocate { size: 1 }).forwards(),
    row(83, Family::Mimalloc, "heap_zalloc", Shape::Allocate { size: 1 }).forwards(),
    row(84, Family::Mimalloc, "heap_malloc_aligned", Shape::Allocate { size: 1 }).forwards(),
    row(85, Family::Mimalloc, "heap_malloc_aligned_at", Shape::Allocate { size: 1 }).forwards(),
    row(86, Family::Mimalloc, "heap_zalloc_aligned", Shape::Allocate { size: 1 }).forwards(),
    row(87, Family::Mimalloc, "heap_zalloc_aligned_at", Shape::Allocate { size: 1 }).forwards(),
    row(88, Family::Mimalloc, "heap_calloc", Shape::AllocateArray { count: 1, size: 2 }).forwards(),
    row(89, Family::Mimalloc, "heap_mallocn", Shape::AllocateArray { count: 1, size: 2 }).forwards(),
    row(90, Family::Mimalloc, "heap_calloc_aligned", Shape::AllocateArray { count: 1, size: 2 }).forwards(),
    row(91, Family::Mimalloc, "heap_calloc_aligned_at", Shape::AllocateArray { count: 1, size: 2 })
        .forwards(),
    row(92, Family::Mimalloc, "heap_realloc", Shape::Resize { pointer: 1, size: 2 }).forwards(),
    row(93, Family::Mimalloc, "heap_rezalloc", Shape::Resize { pointer: 1, size: 2 }).forwards(),
    row(94, Family::Mimalloc, "heap_realloc_aligned", Shape::Resize { pointer: 1, size: 2 }).forwards(),
    row(95, Family::Mimalloc, "heap_realloc_aligned_at", Shape::Resize { pointer: 1, size: 2 }).forwards(),
    row(96, Family::Mimalloc, "heap_rezalloc_aligned", Shape::Resize { pointer: 1, size: 2 }).forwards(),
    row(97, Family::Mimalloc, "heap_rezalloc_aligned_at", Shape::Resize { pointer: 1, size: 2 }).forwards(),
    row(98, Family::Mimalloc, "heap_reallocn", Shape::ResizeArray { pointer: 1, count: 2, size: 3 })
        .forwards(),
    row(99, Family::Mimalloc, "heap_recalloc", Shape::ResizeArray { pointer: 1, count: 2, size: 3 })
        .forwards(),
    row(100, Family::Mimalloc, "heap_recalloc_aligned", Shape::ResizeArray { pointer: 1, count: 2, size: 3 })
        .forwards(),
    row(
        101,
        Family::Mimalloc,
        "heap_recalloc_aligned_at",
        Shape::ResizeArray { pointer: 1, count: 2, size: 3 },
    )
    .forwards(),
    row(102, Family::Mimalloc, "heap_reallocf", Shape::ResizeOrFree { pointer: 1, size: 2 }).forwards(),
    row(103, Family::Mimalloc, "new", Shape::Allocate { size: 0 }).throws().forwards(),
    row(104, Family::Mimalloc, "new_aligned", Shape::Allocate { size: 0 }).throws().forwards(),
    row(105, Family::Mimalloc, "new_nothrow", Shape::Allocate { size: 0 }).throws().forwards(),
    row(106, Family::Mimalloc, "new_aligned_nothrow", Shape::Allocate { size: 0 }).throws().forwards(),
    row(107, Family::Mimalloc, "new_n", Shape::AllocateArray { count: 0, size: 1 }).throws().forwards(),
    row(108, Family::Mimalloc, "new_realloc", Shape::Resize { pointer: 0, size: 1 }).throws().forwards(),
    row(109, Family::Mimalloc, "new_reallocn", Shape::ResizeArray { pointer: 0, count: 1, size: 2 })
        .throws()
        .forwards(),
    row(110, Family::Mimalloc, "heap_alloc_new", Shape::Allocate { size: 1 }).throws().forwards(),
    row(111, Family::Mimalloc, "heap_alloc_new_n", Shape::AllocateArray { count: 1, size: 2 })
        .throws()
        .forwards(),
    row(112, Family::Mimalloc, "free_size", Shape::Release { pointer: 0 }),
    row(113, Family::Mimalloc, "free_size_aligned", Shape::Release { pointer: 0 }),
    row(114, Family::Mimalloc, "free_aligned", Shape::Release { pointer: 0 }),
    // snmalloc, `sn_`: what its Rust crate calls.
    row(115, Family::Snmalloc, "rust_alloc", Shape::Allocate { size: 1 }),
    row(116, Family::Snmalloc, "rust_alloc_zeroed", Shape::Allocate { size: 1 }),
    row(117, Family::Snmalloc, "rust_realloc", Shape::Resize { pointer: 0, size: 3 }),
    row(118, Family::Snmalloc, "rust_dealloc", Shape::Release { pointer: 0 }),
    // oneTBB, `scalable_`.
    row(119, Family::Tbb, "aligned_malloc", Shape::Allocate { size: 0 }),
    row(120, Family::Tbb, "aligned_realloc", Shape::Resize { pointer: 0, size: 1 }),
    row(121, Family::Tbb, "aligned_free", Shape::Release { pointer: 0 }),
];

/// The function with this id.
pub fn by_id(id: u8) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.id == id)
}

/// The first function with this name; those of C come first.
pub fn by_name(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_not_zero() {
        for (index, function) in FUNCTIONS.iter().enumerate() {
            assert_eq!(usize::from(function.id), index + 1, "in order, without a gap");
            let same = |other: &Function| other.name == function.name && other.family == function.family;
            assert!(!FUNCTIONS[..index].iter().any(same), "{}", function.name);
            assert_eq!(by_id(function.id), Some(function));
        }
        assert_eq!(by_name("malloc").map(|function| function.id), Some(1));
    }

    #[test]
    fn arguments_are_in_registers() {
        let all = FUNCTIONS.iter().flat_map(|function| function.shape.arguments()).flatten();
        assert!(all.into_iter().all(|argument| argument < 4), "the programs read four registers");
    }

    #[test]
    fn what_releases_neither_throws_nor_needs_a_size() {
        for function in FUNCTIONS.iter().filter(|function| !function.shape.returns_block()) {
            assert!(!function.may_throw && function.forwards, "{}", function.name);
        }
    }

    #[test]
    fn the_forms_of_new_that_throw_are_known() {
        let throwing = |name| by_name(name).map(|function| function.may_throw);
        for name in ["_Znwm", "_Znam", "_ZnwmSt11align_val_t", "_ZnamSt11align_val_t"] {
            assert_eq!(throwing(name), Some(true), "{name}");
        }
        for name in ["_ZnwmRKSt9nothrow_t", "_ZnamSt11align_val_tRKSt9nothrow_t", "malloc"] {
            assert_eq!(throwing(name), Some(false), "{name}");
        }
    }
}
