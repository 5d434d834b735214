//! Every developer and CI step.

fn main() {}
