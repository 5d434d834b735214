//! Other tools' formats: folded stacks, flame graphs, pprof, speedscope, comma-separated values; and a page of everything.

mod csv;
mod flame;
mod fold;
mod html;
mod pprof;
mod speedscope;
#[cfg(test)]
mod tests;
mod tree;

use std::io;

use thiserror::Error;

pub use csv::csv;
pub use flame::{diff_svg, svg};
pub use fold::{diff_folded, folded};
pub use html::html;
pub use pprof::pprof;
pub use speedscope::speedscope;

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
