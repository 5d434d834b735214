//! Finds the target's allocators and decides where each probe goes.

#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct AttachError;
