//! Finds the target's allocators and decides where each probe goes.
