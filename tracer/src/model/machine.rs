//! Processors.

/// A processor that offheap knows programs of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// x86-64.
    X86_64,
    /// 64-bit ARM, little-endian. Experimental.
    Aarch64,
}

impl Machine {
    /// The one that this program runs on, and so do its targets.
    #[cfg(target_arch = "x86_64")]
    pub const HOST: Self = Self::X86_64;
    /// The one that this program runs on, and so do its targets.
    #[cfg(target_arch = "aarch64")]
    pub const HOST: Self = Self::Aarch64;

    /// The name that Linux has for it, and Rust.
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86-64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// What is to be said wherever a recording is made on it.
    pub const fn reservation(self) -> Option<&'static str> {
        match self {
            Self::X86_64 => None,
            Self::Aarch64 => {
                Some("experimental: offheap was run on emulated machines of this kind, not yet on a real one")
            }
        }
    }

    /// `e_machine` of its ELF files.
    pub const fn e_machine(self) -> u16 {
        match self {
            Self::X86_64 => 62,
            Self::Aarch64 => 183,
        }
    }
}
