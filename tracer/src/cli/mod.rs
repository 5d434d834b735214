//! What the user typed, and what it resolves to.
