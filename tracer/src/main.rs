//! The `offheap` program.

fn main() {}
