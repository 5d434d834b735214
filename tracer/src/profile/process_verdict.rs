//! What a process does with its memory: call sites, ledger and RSS together.

use super::SiteKind;
use crate::model::{LedgerClass, Lens, MemoryClass, ProcessId};
use crate::trend::{Floors, Kind, Reason, Verdict, judge, theil_sen};

/// Free memory inside of the allocator is worth a verdict from this size, in bytes,
const MIN_RETAINED_BYTES: u64 = 16 << 20;
/// and from this part of RSS.
const MIN_RETAINED_PART: f64 = 0.25;
/// A cause that is a smaller part of the growth of RSS is named beside the verdict and does not decide it.
const MIN_CAUSE_PART: f64 = 0.05;

/// A class of the ledger that is a smaller part of the growth of RSS needs a verdict of its own.
const MIN_PART_OF_GROWTH: f64 = 0.2;

/// The same where it was looked at twice only.
const MIN_PART_OF_TWO_LOOKS: f64 = 0.5;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProcessKind {
    /// Blocks of an allocator are never freed.
    NativeLeak,
    /// Memory outside of allocators and collected heaps grows: mappings, stacks of threads, shared memory, files.
    MappingGrowth,
    /// The heap of a garbage collector grows, or what its runtime keeps for itself.
    ManagedHeapGrowth,
    /// The allocator keeps memory that the program has freed.
    AllocatorRetention,
    /// Memory grew, and is level since.
    Plateau,
    /// Memory grew in the beginning only.
    WarmUp,
    /// Memory did not grow.
    NoGrowth,
    /// Not enough was seen, or what was seen does not explain the growth.
    Undetermined,
}

impl ProcessKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::NativeLeak,
        Self::MappingGrowth,
        Self::ManagedHeapGrowth,
        Self::AllocatorRetention,
        Self::Plateau,
        Self::WarmUp,
        Self::NoGrowth,
        Self::Undetermined,
    ];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NativeLeak => "native-leak",
            Self::MappingGrowth => "mapping-growth",
            Self::ManagedHeapGrowth => "managed-heap-growth",
            Self::AllocatorRetention => "allocator-retention",
            Self::Plateau => "plateau",
            Self::WarmUp => "warm-up",
            Self::NoGrowth => "no-growth",
            Self::Undetermined => "undetermined",
        }
    }

    /// Whether memory grows, or is kept, in a way that somebody should look at.
    pub const fn is_trouble(self) -> bool {
        matches!(
            self,
            Self::NativeLeak | Self::MappingGrowth | Self::ManagedHeapGrowth | Self::AllocatorRetention
        )
    }
}

/// Call sites that leak.
#[derive(Clone, Debug, PartialEq)]
pub struct LeakSites {
    /// How they were observed.
    pub lens: Lens,
    /// How many.
    pub count: usize,
    /// The function of the one that grows fastest: hostile input.
    pub function: Option<String>,
}

/// Something that grows.
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    /// What that means; [`ProcessKind::Undetermined`] where it may mean two things.
    pub kind: ProcessKind,
    /// The class of the ledger that grows; `None` where call sites say it.
    pub class: Option<LedgerClass>,
    /// Who does it, where that was observed.
    pub sites: Option<LeakSites>,
    /// Bytes per second.
    pub growth_bytes_per_s: f64,
}

/// A verdict on a process and what it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessVerdict {
    /// What.
    pub kind: ProcessKind,
    /// Whose memory.
    pub process: ProcessId,
    /// What resident and swapped memory does.
    pub trend: Verdict,
    /// What grows, the fastest first.
    pub causes: Vec<Cause>,
    /// Resident at the end.
    pub resident_bytes: Option<u64>,
    /// Free inside of the allocator and resident, at the end; `None` where that is not known.
    pub retained_bytes: Option<u64>,
    /// Call sites that hold something and of which is not known whether they leak.
    pub undetermined_sites: usize,
}

impl ProcessVerdict {
    /// The cause that decided.
    pub fn cause(&self) -> Option<&Cause> {
        self.causes.iter().find(|cause| cause.kind == self.kind)
    }

    /// The part of the growth of RSS that the causes explain; `None` where RSS does not grow.
    pub fn explained_part(&self) -> Option<f64> {
        let slope = self.growth_bytes_per_s()?;
        Some(self.causes.iter().fold(0.0, |sum, cause| sum + cause.growth_bytes_per_s) / slope)
    }

    /// Growth of RSS in bytes per second, where it grows without bound.
    pub fn growth_bytes_per_s(&self) -> Option<f64> {
        self.trend.evidence.slope.filter(|slope| self.trend.kind.is_growth() && *slope > 0.0)
    }

    /// About how much longer to record, in seconds, where that is what is missing.
    pub fn needed_s(&self) -> Option<f64> {
        let is_open = self.kind == ProcessKind::Undetermined && self.trend.kind == Kind::Undetermined;
        self.trend.needed_s.filter(|_| is_open)
    }
}

/// A judged call site, as far as it concerns its process.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct JudgedSite {
    pub lens: Lens,
    pub class: MemoryClass,
    pub kind: SiteKind,
    /// Of a leak.
    pub growth_bytes_per_s: f64,
    pub function: Option<String>,
}

/// A series: seconds and bytes.
pub(super) type Points = Vec<(f64, f64)>;

/// All that is known about one process.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    pub process: ProcessId,
    pub lenses: Vec<Lens>,
    /// Resident and swapped.
    pub memory: Points,
    /// Resident by class.
    pub classes: Vec<(LedgerClass, Points)>,
    /// Blocks that its callers hold.
    pub unfreed: Points,
    pub sites: Vec<JudgedSite>,
    pub resident_bytes: Option<u64>,
    pub retained_bytes: Option<u64>,
}

/// The verdict.
pub(super) fn judge_process(observed: &Observed) -> ProcessVerdict {
    let trend = judge(&observed.memory, &Floors::RSS);
    let growth = trend.evidence.slope.filter(|_| trend.kind.is_growth()).unwrap_or(0.0);
    let mut causes = causes(observed, growth);
    causes.sort_by(|a, b| b.growth_bytes_per_s.total_cmp(&a.growth_bytes_per_s));
    let decisive = causes.iter().find(|cause| cause.growth_bytes_per_s >= growth * MIN_CAUSE_PART);
    let kind = match decisive {
        Some(cause) => cause.kind,
        None if trend.kind.is_growth() => ProcessKind::Undetermined,
        None if is_retained(observed) => ProcessKind::AllocatorRetention,
        None => match trend.kind {
            Kind::Plateau => ProcessKind::Plateau,
            Kind::WarmUp => ProcessKind::WarmUp,
            Kind::Level | Kind::SawtoothLevel | Kind::Shrinking => ProcessKind::NoGrowth,
            Kind::Growing | Kind::SawtoothRising | Kind::Undetermined => ProcessKind::Undetermined,
        },
    };
    ProcessVerdict {
        kind,
        process: observed.process,
        trend,
        causes,
        resident_bytes: observed.resident_bytes,
        retained_bytes: observed.retained_bytes,
        undetermined_sites: observed.sites.iter().filter(|site| site.kind == SiteKind::Undetermined).count(),
    }
}

fn is_retained(observed: &Observed) -> bool {
    observed.retained_bytes.zip(observed.resident_bytes).is_some_and(|(retained, resident)| {
        retained >= MIN_RETAINED_BYTES && retained as f64 >= resident as f64 * MIN_RETAINED_PART
    })
}

/// What grows. What call sites say goes before what the ledger says of the same memory: it is exact, and names somebody.
fn causes(observed: &Observed, growth: f64) -> Vec<Cause> {
    let mut causes: Vec<Cause> = Vec::new();
    causes.extend(leak_of(observed, Lens::Malloc, ProcessKind::NativeLeak, |_| true));
    causes.extend(leak_of(observed, Lens::Mmap, ProcessKind::MappingGrowth, |_| true));
    let has = |lens| observed.lenses.contains(&lens);
    let has_mapping_leak = causes.iter().any(|cause| cause.kind == ProcessKind::MappingGrowth);
    for class in [LedgerClass::ManagedHeap, LedgerClass::JitCode, LedgerClass::RuntimeInternal] {
        causes.extend(growth_of(observed, class, ProcessKind::ManagedHeapGrowth, growth));
    }
    // What lies in these mappings may be touched later than it was mapped, so that no mapping leaks and RSS grows.
    if !has_mapping_leak {
        use LedgerClass::{File, Mmap, SharedMemory, ThreadStack, Unknown};
        for class in [Mmap, ThreadStack, SharedMemory, File, Unknown] {
            causes.extend(growth_of(observed, class, ProcessKind::MappingGrowth, growth));
        }
    }
    let arenas: Vec<Cause> = [LedgerClass::AllocatorArena, LedgerClass::AllocatorLive, LedgerClass::BrkHeap]
        .into_iter()
        .filter_map(|class| growth_of(observed, class, ProcessKind::Undetermined, growth))
        .collect();
    if !has(Lens::Malloc) {
        causes.extend(arenas);
    } else if !arenas.is_empty() && !causes.iter().any(|cause| cause.kind == ProcessKind::NativeLeak) {
        causes.extend(retention(observed, &arenas));
    }
    causes
}

/// All sites of a lens that leak, as one cause.
fn leak_of(
    observed: &Observed,
    lens: Lens,
    kind: ProcessKind,
    is_part: impl Fn(&JudgedSite) -> bool,
) -> Option<Cause> {
    let is_leak = |site: &&JudgedSite| site.lens == lens && site.kind == SiteKind::Leak && is_part(site);
    let leaks: Vec<&JudgedSite> = observed.sites.iter().filter(is_leak).collect();
    let fastest = leaks.iter().max_by(|a, b| a.growth_bytes_per_s.total_cmp(&b.growth_bytes_per_s))?;
    Some(Cause {
        kind,
        class: None,
        sites: Some(LeakSites { lens, count: leaks.len(), function: fastest.function.clone() }),
        growth_bytes_per_s: leaks.iter().map(|site| site.growth_bytes_per_s).sum(),
    })
}

/// A class of the ledger that grows without bound. Pages that were touched tell by whom.
fn growth_of(observed: &Observed, class: LedgerClass, kind: ProcessKind, growth: f64) -> Option<Cause> {
    let (_, points) = observed.classes.iter().find(|(of, _)| *of == class)?;
    let trend = judge(points, &Floors::RSS);
    let own = trend.evidence.slope.filter(|_| trend.kind.is_growth());
    let slope = own.or_else(|| part_of(points, growth)).filter(|slope| *slope > 0.0)?;
    let by_pages = leak_of(observed, Lens::Faults, kind, |site| ledger_class(site.class) == Some(class));
    let sites = by_pages.and_then(|cause| cause.sites);
    Some(Cause { kind, class: Some(class), sites, growth_bytes_per_s: slope })
}

/// The slope of a class that was looked at too rarely for a verdict of its own, where RSS grows for good and the class is a
/// part of that: it rose from look to look, and its slope is that from the first look to the last. Two looks, of which nothing
/// of the kind can be said, must hold more of it.
fn part_of(points: &[(f64, f64)], growth: f64) -> Option<f64> {
    let (first, last) = (points.first()?, points.last()?);
    let whole = (last.1 - first.1) / (last.0 - first.0);
    if growth <= 0.0 || !whole.is_finite() || points.len() >= Floors::RSS.samples {
        return None;
    }
    let Some(slope) = theil_sen(points) else {
        return Some(whole).filter(|slope| *slope >= growth * MIN_PART_OF_TWO_LOOKS);
    };
    let falls = points.windows(2).filter(|pair| matches!(pair, [a, b] if b.1 < a.1)).count();
    let is_steady = (0.5..=2.0).contains(&(whole / slope)) && falls * 4 <= points.len();
    (slope >= growth * MIN_PART_OF_GROWTH && is_steady).then_some(slope)
}

/// Where the ledger books pages of a class of sites.
fn ledger_class(class: MemoryClass) -> Option<LedgerClass> {
    Some(match class {
        MemoryClass::Allocation | MemoryClass::AllocatorArena => LedgerClass::AllocatorArena,
        MemoryClass::DirectMapping => LedgerClass::Mmap,
        MemoryClass::FileMapping => LedgerClass::File,
        MemoryClass::SharedMemory => LedgerClass::SharedMemory,
        MemoryClass::ThreadStack | MemoryClass::EndedThreadStack => LedgerClass::ThreadStack,
        MemoryClass::BrkHeap => LedgerClass::BrkHeap,
        MemoryClass::ManagedHeap => LedgerClass::ManagedHeap,
        MemoryClass::JitCode => LedgerClass::JitCode,
        MemoryClass::RuntimeInternal => LedgerClass::RuntimeInternal,
        MemoryClass::Unknown => return None,
    })
}

/// Arenas that grow while what their callers hold surely does not.
fn retention(observed: &Observed, arenas: &[Cause]) -> Option<Cause> {
    let held = judge(&observed.unfreed, &Floors::EXACT);
    // Reasons to be unsure of what is held are reasons to be unsure of this.
    if held.kind.is_growth() || held.reason == Reason::TooShort || held.kind == Kind::Undetermined {
        return None;
    }
    Some(Cause {
        kind: ProcessKind::AllocatorRetention,
        class: Some(LedgerClass::AllocatorArena),
        sites: None,
        growth_bytes_per_s: arenas.iter().map(|cause| cause.growth_bytes_per_s).sum(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: f64 = 1_048_576.0;

    fn line(start: f64, slope: f64) -> Points {
        (0..30).map(|second| (f64::from(second), start + slope * f64::from(second))).collect()
    }

    fn observed(memory_slope: f64) -> Observed {
        Observed {
            process: ProcessId(0),
            lenses: vec![Lens::Malloc, Lens::Mmap],
            memory: line(100.0 * MIB, memory_slope),
            classes: Vec::new(),
            unfreed: line(MIB, 0.0),
            sites: Vec::new(),
            resident_bytes: Some(100 << 20),
            retained_bytes: Some(1 << 20),
        }
    }

    fn leak(lens: Lens, growth_bytes_per_s: f64) -> JudgedSite {
        let (class, function) = (MemoryClass::Allocation, Some("grow".to_owned()));
        JudgedSite { lens, class, kind: SiteKind::Leak, growth_bytes_per_s, function }
    }

    #[test]
    fn nothing_grows() {
        let verdict = judge_process(&observed(0.0));
        assert_eq!((verdict.kind, verdict.causes.len()), (ProcessKind::NoGrowth, 0));
    }

    #[test]
    fn the_fastest_cause_decides_and_others_are_named() {
        let heap = (LedgerClass::ManagedHeap, line(50.0 * MIB, MIB));
        let leaks = vec![leak(Lens::Malloc, 1000.0), leak(Lens::Malloc, 24.0)];
        let verdict = judge_process(&Observed { classes: vec![heap], sites: leaks, ..observed(MIB) });
        assert_eq!(verdict.kind, ProcessKind::ManagedHeapGrowth);
        let other = verdict.causes.last().unwrap();
        assert_eq!((other.kind, other.growth_bytes_per_s), (ProcessKind::NativeLeak, 1024.0));
        assert!((verdict.explained_part().unwrap() - 1.001).abs() < 0.001, "{verdict:?}");
        // A leak that is not seen in RSS yet is one all the same.
        let small = judge_process(&Observed { sites: vec![leak(Lens::Malloc, 12.0)], ..observed(0.0) });
        assert_eq!((small.kind, small.explained_part()), (ProcessKind::NativeLeak, None));
    }

    #[test]
    fn growth_that_nothing_explains_is_said_to_be_that() {
        let verdict = judge_process(&observed(MIB));
        assert_eq!((verdict.kind, verdict.needed_s()), (ProcessKind::Undetermined, None));
        assert_eq!(verdict.explained_part(), Some(0.0));
        let drop = judge_process(&Observed { sites: vec![leak(Lens::Malloc, 100.0)], ..observed(MIB) });
        assert_eq!(drop.kind, ProcessKind::Undetermined, "a ten thousandth of the growth");
    }

    #[test]
    fn arenas_that_grow_without_their_callers() {
        let arenas = || vec![(LedgerClass::AllocatorArena, line(50.0 * MIB, MIB))];
        let kept = judge_process(&Observed { classes: arenas(), ..observed(MIB) });
        assert_eq!(kept.kind, ProcessKind::AllocatorRetention);
        let held = Observed { classes: arenas(), unfreed: line(MIB, MIB), ..observed(MIB) };
        assert_eq!(judge_process(&held).kind, ProcessKind::Undetermined);
        let unseen = Observed { classes: arenas(), lenses: Vec::new(), ..observed(MIB) };
        let unseen = judge_process(&unseen);
        assert_eq!(unseen.kind, ProcessKind::Undetermined, "a leak or retention");
        assert_eq!(unseen.causes.first().unwrap().class, Some(LedgerClass::AllocatorArena));
    }

    #[test]
    fn memory_that_is_kept() {
        let kept = Observed { retained_bytes: Some(60 << 20), ..observed(0.0) };
        assert_eq!(judge_process(&kept).kind, ProcessKind::AllocatorRetention);
        let unknown = Observed { retained_bytes: None, ..observed(0.0) };
        assert_eq!(judge_process(&unknown).kind, ProcessKind::NoGrowth);
    }

    #[test]
    fn a_class_that_was_looked_at_rarely() {
        let rare = |values: &[f64]| -> Points {
            (0..).zip(values).map(|(look, mib)| (f64::from(look) * 6.0, mib * MIB)).collect()
        };
        let kind = |values: &[f64]| {
            let classes = vec![(LedgerClass::ManagedHeap, rare(values))];
            judge_process(&Observed { classes, ..observed(MIB) }).kind
        };
        assert_eq!(kind(&[30.0, 36.0, 42.0, 48.0, 54.0]), ProcessKind::ManagedHeapGrowth);
        assert_eq!(kind(&[30.0, 60.0, 20.0, 61.0, 31.0]), ProcessKind::Undetermined, "a sawtooth");
        assert_eq!(kind(&[30.0, 30.0, 30.0, 30.0, 60.0]), ProcessKind::Undetermined, "a step");
        assert_eq!(kind(&[30.0, 32.0]), ProcessKind::Undetermined, "a third of the growth");
        assert_eq!(kind(&[30.0, 36.0]), ProcessKind::ManagedHeapGrowth);
        let level =
            Observed { classes: vec![(LedgerClass::ManagedHeap, rare(&[1.0, 2.0, 3.0]))], ..observed(0.0) };
        assert_eq!(judge_process(&level).kind, ProcessKind::NoGrowth);
    }

    #[test]
    fn mappings_that_are_touched_late() {
        let mapped = Observed { classes: vec![(LedgerClass::Mmap, line(MIB, MIB))], ..observed(MIB) };
        let verdict = judge_process(&mapped);
        assert_eq!(verdict.kind, ProcessKind::MappingGrowth);
        let sites = vec![leak(Lens::Mmap, 3.0 * MIB)];
        let verdict = judge_process(&Observed { sites, ..mapped });
        assert_eq!(verdict.causes.len(), 1, "the sites say it already");
    }

    #[test]
    fn too_short() {
        let mut short = observed(MIB);
        short.memory.truncate(4);
        let verdict = judge_process(&short);
        assert_eq!(verdict.kind, ProcessKind::Undetermined);
        assert!(verdict.needed_s().is_some());
    }
}
