//! Other tools' formats: folded stacks, flame graph.

mod flame;
mod fold;

use std::io;

use thiserror::Error;

pub use flame::{diff_svg, svg};
pub use fold::{diff_folded, folded};

/// Why an export was not written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A flame graph of nothing cannot be drawn.
    #[error(
        "nothing that was allocated during the recording is outstanding: there is no flame graph to draw"
    )]
    NothingOutstanding,
    /// Writing failed.
    #[error("write the export")]
    Write(#[from] io::Error),
}
