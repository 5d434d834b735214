//! The processes of a recording.

use super::Target;

/// Identifies a [`Process`] within one recording. The first process of a recording has 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(pub u32);

/// One program that ran in one process: an exec begins a new one with the same tgid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Identity within the recording.
    pub id: ProcessId,
    /// The process that forked it or, after an exec, what it was before; `None` where that is not recorded.
    pub parent: Option<ProcessId>,
    /// What runs in it.
    pub target: Target,
    /// When it began, since the start of the recording; 0 for those that ran before.
    pub start_ns: u64,
}

/// How a [`Process`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProcessEnd {
    /// It exited or was killed.
    Exited,
    /// It executed another program.
    Executed,
}

impl ProcessEnd {
    /// Every end.
    pub const ALL: [Self; 2] = [Self::Exited, Self::Executed];

    /// The name used in reports and captures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Executed => "executed",
        }
    }

    /// The end with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|end| end.name() == name)
    }
}
