//! Gives away rights as soon as they are not needed any more: what a hostile target's files could make of a fault in a parser
//! is then little.
//!
//! A thread has capabilities of its own, and threads that it makes later have no more than it. The recording's loop and all
//! parsers run on one thread and on those that it makes.

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

/// What is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The first probes are in place. Others follow: in children, after exec and dlopen; so the right to make them stays, and
    /// those to read the target's memory, `/proc` and `map_files`.
    Recording,
    /// All is recorded. Names are to be found in files that are open, and in debug files; the capture is closed.
    Naming,
}

/// To open files, also the capture's own in somebody's directory.
const FILES: CapabilitySet = CapabilitySet::DAC_READ_SEARCH.union(CapabilitySet::DAC_OVERRIDE);
/// To place probes, SYS_ADMIN included: kernels from 6.16 on want it for perf's uprobes.
const PROBES: CapabilitySet =
    CapabilitySet::BPF.union(CapabilitySet::PERFMON).union(CapabilitySet::SYS_ADMIN);
/// To read other processes.
const PROCESSES: CapabilitySet = CapabilitySet::SYS_PTRACE.union(CapabilitySet::CHECKPOINT_RESTORE);

impl Stage {
    const fn needs(self) -> CapabilitySet {
        match self {
            Self::Recording => FILES.union(PROBES).union(PROCESSES),
            Self::Naming => FILES,
        }
    }
}

/// Gives away what the stage does not need, also to programs that this thread might execute. For good.
///
/// Where the kernel refuses that, nothing is lost but caution.
pub fn shed(stage: Stage) {
    if let Err(errno) = try_shed(stage.needs()) {
        log::info!("rights that are not needed could not be given away: {errno}");
    }
}

fn try_shed(needed: CapabilitySet) -> rustix::io::Result<()> {
    let now = capabilities(None)?;
    set_no_new_privs(true)?;
    // Root that executes a program has again whatever this set holds.
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for unneeded in CapabilitySet::all().difference(needed).iter() {
            // The kernel may know fewer.
            let _ = remove_capability_from_bounding_set(unneeded);
        }
    }
    set_capabilities(
        None,
        CapabilitySets {
            effective: now.effective.intersection(needed),
            permitted: now.permitted.intersection(needed),
            inheritable: CapabilitySet::empty(),
        },
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// On a thread of its own: what it gives away is gone.
    fn after(stages: &'static [Stage]) -> CapabilitySets {
        let thread = std::thread::spawn(move || {
            stages.iter().for_each(|stage| shed(*stage));
            // A thread made later has no more.
            std::thread::spawn(|| capabilities(None).unwrap()).join().unwrap()
        });
        thread.join().unwrap()
    }

    #[test]
    fn every_stage_has_less_than_the_one_before() {
        let had = capabilities(None).unwrap().permitted;
        let recording = after(&[Stage::Recording]);
        assert_eq!(recording.permitted, had & Stage::Recording.needs());
        assert!(
            recording.effective.difference(recording.permitted).is_empty()
                && recording.inheritable.is_empty()
        );
        let naming = after(&[Stage::Recording, Stage::Naming]);
        assert_eq!(naming.permitted, had & FILES);
        assert!(!naming.permitted.intersects(PROBES | PROCESSES));
        assert_eq!(after(&[Stage::Naming, Stage::Recording]), naming, "nothing comes back");
        assert_eq!(capabilities(None).unwrap().permitted, had, "other threads keep theirs");
    }
}
