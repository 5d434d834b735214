//! Variables: maps of one element that programs read without a lookup.
//!
//! Each one stands in a section of its own, which the loader makes a map of, with the section's name: user space writes one without
//! touching another.

use core::{cell::UnsafeCell, ptr};

/// A variable that programs, on every CPU, and user space share.
#[repr(transparent)]
pub struct Variable<T>(UnsafeCell<T>);

// SAFETY: it is only read and written as a whole, or atomically.
unsafe impl<T> Sync for Variable<T> {}

impl<T: Copy> Variable<T> {
    /// What it begins with: 0, where the section is one of `.bss`.
    pub const fn new(value: T) -> Self {
        const { assert!(size_of::<T>() <= 8, "larger ones are not accessed as a whole") };
        Self(UnsafeCell::new(value))
    }

    /// What it is now.
    #[inline(always)]
    pub fn load(&self) -> T {
        // SAFETY: a map value; aligned, so read as a whole.
        unsafe { ptr::read_volatile(self.0.get()) }
    }

    /// Writes it as a whole.
    #[inline(always)]
    pub fn store(&self, value: T) {
        // SAFETY: as above.
        unsafe { ptr::write_volatile(self.0.get(), value) }
    }

    /// For atomic operations.
    #[inline(always)]
    pub const fn as_ptr(&self) -> *mut T {
        self.0.get()
    }
}
