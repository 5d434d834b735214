//! One process of a recording.

use std::{num::NonZeroU32, os::fd::OwnedFd, time::Instant};

use super::{link::Links, mapping::MappingBook, process_code::ProcessCode};
use crate::{
    attach::absence::Absence,
    managed::Region,
    model::{ProcessId, Target},
    symbolize::PerfMapSource,
};

/// What a process runs, from a fork or an exec to the next exec or the exit: one row of the capture.
pub struct Program {
    /// Its row.
    pub id: ProcessId,
    /// First address-space epoch that belongs to it.
    pub first_epoch: u32,
    /// Who it is.
    pub target: Target,
    /// Names of code that it makes at run time.
    pub perf_map: Option<PerfMapSource>,
}

/// A process that is recorded, or was.
pub struct Member {
    /// Process id.
    pub tgid: NonZeroU32,
    /// Whether it was asked for; else it was followed to.
    pub is_root: bool,
    /// What it has run, in order; never empty.
    pub programs: Vec<Program>,
    /// Its code.
    pub code: ProcessCode,
    /// When it was seen to begin with what it runs now.
    pub began: Instant,
    /// What it has mapped.
    pub mappings: MappingBook,
    /// Which ranges its runtime uses for what, at the last look; `None` where that is not known.
    pub regions: Option<Vec<Region>>,
    /// Why it has no probes; `None` if it has some, or shall have none.
    pub absence: Option<Absence>,
    /// Its probes.
    pub links: Links,
    /// Whether its mappings are to be read again.
    pub is_dirty: bool,
    /// Readable when it has exited.
    pub exit: Option<OwnedFd>,
}

impl Member {
    /// What it runs now, or ran last.
    pub fn program(&self) -> &Program {
        &self.programs[self.programs.len() - 1]
    }

    /// What it ran in an epoch.
    pub fn program_of_epoch(&self, epoch: u32) -> &Program {
        self.programs.iter().rev().find(|program| program.first_epoch <= epoch).unwrap_or(&self.programs[0])
    }
}
