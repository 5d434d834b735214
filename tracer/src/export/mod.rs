//! Other tools' formats: folded stacks, flame graph.
