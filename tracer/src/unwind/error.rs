//! What can go wrong between an ELF file and the kernel's unwind tables.

/// Why an unwind table could not be made or placed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnwindError {
    /// The bytes do not begin with a 64-bit little-endian ELF header.
    #[error("the file is not a 64-bit little-endian ELF file (hint: 32-bit processes are not supported)")]
    NotElf,
    /// The file is for another machine.
    #[error("ELF machine `{machine}` is not that of this kernel (hint: x86-64 is machine 62, aarch64 183)")]
    Machine {
        /// `e_machine`.
        machine: u16,
    },
    /// A part of the file contradicts itself or lies outside the file.
    #[error("the ELF file is malformed: reading `{part}`")]
    Malformed {
        /// Which part.
        part: &'static str,
    },
    /// The file is larger than anything a compiler makes.
    #[error("`{what}` of the ELF file is {found}, over the limit of {limit}")]
    OverLimit {
        /// Which quantity, with its unit.
        what: &'static str,
        /// How much there is.
        found: u64,
        /// How much is read.
        limit: u64,
    },
    /// The kernel maps, whose size is fixed when they are made, cannot hold another table.
    #[error("the unwind map `{map}` is full: {needed} entries needed, {limit} there (hint: raise its size)")]
    TableFull {
        /// Which map.
        map: &'static str,
        /// Entries it would have to have for this table.
        needed: u64,
        /// Entries it has.
        limit: u64,
    },
    /// The map of mapping chunks cannot hold another mapping set.
    #[error("the map of mapping chunks is full: {needed} chunks needed, {free} free")]
    MappingsFull {
        /// Chunks the set needs.
        needed: usize,
        /// Chunks that are free.
        free: usize,
    },
    /// This process's own vDSO could not be read.
    #[error("reading `{path}` for the vDSO")]
    Vdso {
        /// File that could not be read.
        path: &'static str,
        /// Why.
        source: std::io::Error,
    },
}
