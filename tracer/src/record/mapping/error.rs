//! Why the lens on mappings is off.

use crate::attach::tracepoint::TracepointError;

/// Why mappings are not followed. The rest of the recording does not depend on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MappingError {
    /// A tracepoint cannot be used.
    #[error(transparent)]
    Tracepoint(#[from] TracepointError),
    /// The kernel refused a program, or the object lacks it.
    #[error("the program for `{name}` cannot be used: {source}")]
    Program {
        /// Tracepoint.
        name: &'static str,
        /// Cause.
        source: Box<aya::programs::ProgramError>,
    },
    /// The kernel's types cannot be read.
    #[error("the kernel's BTF cannot be read: {source}")]
    Btf {
        /// Cause.
        source: Box<aya_obj::btf::BtfError>,
    },
    /// The object in this binary is not the one this code was written for.
    #[error("the BPF object lacks `{name}`")]
    Object {
        /// Program.
        name: &'static str,
    },
}
