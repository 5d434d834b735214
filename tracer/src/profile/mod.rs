//! Pure folds over a capture: sites, growth, completeness.

mod aside;
mod collector;
mod completeness;
mod diff;
mod estimate;
mod filter;
mod frame;
mod gate;
mod group;
mod judged;
mod memory;
mod merge;
mod number;
mod observed;
mod process_verdict;
pub mod simulation;
mod site;
mod size_class;
pub(crate) mod suppression;
mod survival;
#[cfg(test)]
mod tests;
mod thread_start;
mod totals;
mod verdict;
mod who;
mod wrapper;

use std::collections::HashMap;

use collector::Collections;
use filter::Selection;

use crate::capture::{Capture, Header, LENS_SETTING, Series};
use crate::model::{
    AllocatorId, EndReason, Frame, FrameId, Ledger, Lens, MemoryLimit, Object, ObjectId, ProcessId, RssSample,
};

pub use crate::trend::{MIN_POINTS, theil_sen};
pub use aside::SetAside;
pub use completeness::{Broken, Completeness, StackShares};
pub use diff::{Diff, DiffHidden, DiffRow, Match, Side};
pub use estimate::{Estimate, Variance, Windows};
pub use filter::{By, Direction, Filter, ProfileError, Sort, TreeView};
pub use frame::SiteFrame;
pub(crate) use frame::base_name;
pub use gate::{
    Comparison, Finding, Gate, GateVerdict, Growth, Measure, Offender, Outcome, Rate, RateUnit,
    Rule as GateRule, Rules, Run, Shortfall, Standing,
};
pub use group::{Group, GroupKey};
pub use memory::{FigureSummary, LedgerLine, LedgerSummary, advice};
pub use number::Outstanding;
pub use process_verdict::{Cause, LeakSites, ProcessKind, ProcessVerdict};
pub use site::Site;
pub use suppression::{Rule, RuleOrigin, Suppressed, SuppressionError, Suppressions};
pub use survival::{Births, BlockAges, Survival};
pub use totals::Totals;
pub use verdict::{Observed, SiteKind, SiteVerdict};
pub use who::{AllocatorSummary, ProcessSummary};
pub use wrapper::is_wrapper;

/// When was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Length.
    pub elapsed_ns: u64,
    /// `None` for an unfinished recording.
    pub end: Option<EndReason>,
    /// Samples that were taken.
    pub tick_count: u64,
    /// Samples that growth was computed from, after thinning.
    pub point_count: usize,
}

/// RSS over the recording.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rss {
    /// At the first sample.
    pub start_bytes: u64,
    /// At the last sample.
    pub end_bytes: u64,
    /// Robust slope; `None` for fewer than three samples.
    pub growth_bytes_per_s: Option<f64>,
}

/// What tracing cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Program runs per second.
    pub probe_hits_per_s: f64,
    /// CPU time of the programs, in percent of one CPU; `None` where it was not measured.
    pub probe_cpu_percent: Option<f64>,
    /// CPU time of the traps, as calibrated, in percent of one CPU; `None` where it was not measured.
    pub trap_cpu_percent: Option<f64>,
    /// Both, in percent of the CPU time that the targets used, what tracing took of it included; `None` where it was not measured.
    pub target_percent: Option<f64>,
}

/// What a recording says.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Who, when, where.
    pub header: Header,
    /// How long.
    pub window: Window,
    /// How complete.
    pub completeness: Completeness,
    /// How the numbers of blocks were estimated; `None`: they are exact.
    pub estimate: Option<Estimate>,
    /// How dear; `None` where it was not measured.
    pub cost: Option<Cost>,
    /// RSS of the target, also after an exec; `None` where it was never read.
    pub rss: Option<Rss>,
    /// Every process of the recording, by its id; never empty.
    pub processes: Vec<ProcessSummary>,
    /// Every allocator of the recording, by its id.
    pub allocators: Vec<AllocatorSummary>,
    /// How memory was observed.
    pub lenses: Vec<Lens>,
    /// One for each process, as the last program it ran, whatever the filter, apart from its suppressions: the one that
    /// matters most first. At most 32.
    pub verdicts: Vec<ProcessVerdict>,
    /// Unfreed blocks: sums over all sites of the lens `malloc` that the filter takes, also those that were cut.
    pub totals: Totals,
    /// Mappings that can be leaks: sums over all such sites that the filter takes, also those that were cut.
    pub mapped: Totals,
    /// Resident pages: sums over all sites of the lens `faults` that the filter takes, also those that were cut; without
    /// the memory of runtimes.
    pub resident: Totals,
    /// Resident pages of every class, whatever the filter: bytes.
    pub touched_bytes: u64,
    /// Figures of runtimes.
    pub figures: Vec<FigureSummary>,
    /// Limits, the one with the least room first.
    pub limits: Vec<MemoryLimit>,
    /// Sites in order, after the filter: blocks, and mappings that can be leaks; then resident pages, with ranks of
    /// their own.
    pub sites: Vec<Site>,
    /// Sites summed as the filter says; empty where it does not.
    pub groups: Vec<Group>,
    /// Groups with something outstanding, also those that were cut.
    pub groups_outstanding: usize,
    /// Memory of allocators and runtimes, after the filter. It is no leak, and is in no other sum.
    pub set_aside: Vec<SetAside>,
    /// What rules have hidden, most bytes first. It is in no other sum.
    pub suppressed: Vec<Suppressed>,
    /// Sentences for the user.
    pub hints: Vec<String>,
    /// The filter.
    pub filter: Filter,
    frames: HashMap<FrameId, Frame>,
    objects: HashMap<ObjectId, Object>,
    series: Series,
    has_sizes: bool,
    is_earlier_moment: bool,
    rss_samples: Vec<RssSample>,
    ledgers: Vec<Ledger>,
}

impl Profile {
    /// Folds a capture.
    pub fn new(capture: Capture, filter: Filter) -> Result<Self, ProfileError> {
        if filter.by == By::SizeClass && filter.min_age_ns.is_some() {
            return Err(ProfileError::NoSizesByAge);
        }
        let elapsed_ns = capture.elapsed_ns();
        let selection = Selection::new(&filter, &capture)?;
        let numbers = number::numbers(&capture, filter.min_age_ns, elapsed_ns)?;
        let merges = filter.merges_processes && filter.by == By::Site;
        let mut sites = merge::merge(&capture, &numbers, merges);
        let completeness = completeness::fold(&capture, &sites);
        let lenses = lenses(&capture);
        let collections = Collections::of(&capture, &sites);
        let verdicts = Self::judge(&capture, &mut sites, (&numbers, &collections), (&lenses, &filter));
        sites.retain(|site| {
            let is_wanted = filter
                .class
                .map_or_else(|| !number::is_set_aside(site.lens, site.class), |class| site.class == class);
            is_wanted && selection.takes_site(site)
        });
        let suppressed = suppress(&capture, &mut sites, &filter);
        judged::judge_sites(&capture, &mut sites, &collections);
        site::order(&mut sites, &capture.series, &filter);
        let total = |lens| totals::totals(&capture.series, sites.iter().filter(|site| site.lens == lens));
        let (totals, mapped, resident) = (total(Lens::Malloc), total(Lens::Mmap), total(Lens::Faults));
        let set_aside =
            numbers.iter().filter(|number| number.is_set_aside() && selection.takes_number(number));
        let set_aside = aside::fold(&capture.series, set_aside);
        let (groups, groups_outstanding) = group::fold(&capture, &sites, &filter);
        let touched_bytes = numbers
            .iter()
            .filter(|number| number.lens == Lens::Faults)
            .fold(0u64, |sum, number| sum.saturating_add(number.outstanding.bytes));
        sites.retain(|site| filter.top.is_none_or(|top| site.rank <= top));
        let seconds = elapsed_ns as f64 / 1e9;
        let cost = capture.overhead.filter(|_| elapsed_ns > 0).map(|overhead| Cost {
            probe_hits_per_s: overhead.probe_hits as f64 / seconds,
            probe_cpu_percent: overhead.probe_cpu_ns.map(|cpu_ns| cpu_ns as f64 / elapsed_ns as f64 * 100.0),
            trap_cpu_percent: capture
                .budget
                .and_then(|budget| budget.trap_ns)
                .map(|trap_ns| trap_ns as f64 / elapsed_ns as f64 * 100.0),
            target_percent: capture.budget.and_then(|budget| {
                let (programs_ns, traps_ns) = overhead.probe_cpu_ns.zip(budget.trap_ns)?;
                let target_ns = budget.target_cpu_ns.filter(|target_ns| *target_ns > 0)?;
                Some(programs_ns.saturating_add(traps_ns) as f64 / target_ns as f64 * 100.0)
            }),
        });
        Ok(Self {
            window: Window {
                elapsed_ns,
                end: capture.finish.map(|finish| finish.reason),
                tick_count: capture.series.tick_count,
                point_count: capture.series.points_ns.len(),
            },
            completeness,
            estimate: Estimate::of(&capture),
            cost,
            rss: who::target_rss(&capture),
            processes: who::processes(&capture, &numbers),
            allocators: who::allocators(&capture, &numbers),
            lenses,
            verdicts,
            totals,
            mapped,
            resident,
            touched_bytes,
            figures: memory::figures(&capture),
            limits: memory::limits(&capture),
            sites,
            groups,
            groups_outstanding,
            set_aside,
            suppressed,
            hints: capture.hints,
            filter,
            header: capture.header,
            frames: capture.frames,
            objects: capture.objects,
            series: capture.series,
            has_sizes: !capture.live_sizes.is_empty(),
            is_earlier_moment: capture.is_earlier_moment,
            rss_samples: capture.rss,
            ledgers: capture.ledgers,
        })
    }

    /// Judges all that was observed, whatever the filter. What is set aside or suppressed is no call site's fault.
    fn judge(
        capture: &Capture,
        sites: &mut [Site],
        (numbers, collections): (&[number::Number<'_>], &Collections),
        (lenses, filter): (&[Lens], &Filter),
    ) -> Vec<ProcessVerdict> {
        let mut all: Vec<Site> =
            sites.iter().filter(|site| !number::is_set_aside(site.lens, site.class)).cloned().collect();
        let _ = suppress(capture, &mut all, filter);
        judged::judge_sites(capture, &mut all, collections);
        let verdicts = observed::judge_processes(capture, lenses, &all, numbers);
        let mut known: HashMap<Vec<u32>, Option<SiteVerdict>> =
            all.into_iter().map(|site| (site.numbers, site.verdict)).collect();
        for site in sites {
            site.verdict = known.remove(&site.numbers).flatten();
        }
        verdicts
    }

    /// Frames of a site, innermost first; a frame with inlined functions gives one item for each.
    pub fn stack<'a>(&'a self, site: &'a Site) -> impl Iterator<Item = SiteFrame<'a>> {
        frame::expand(&site.frames, &self.frames, &self.objects)
    }

    /// A process.
    pub fn process(&self, id: ProcessId) -> Option<&ProcessSummary> {
        let index = self.processes.binary_search_by_key(&id, |summary| summary.process.id).ok()?;
        self.processes.get(index)
    }

    /// An allocator.
    pub fn allocator(&self, id: AllocatorId) -> Option<&AllocatorSummary> {
        let index = self.allocators.binary_search_by_key(&id, |summary| summary.allocator.id).ok()?;
        self.allocators.get(index)
    }

    /// Blocks, and mappings that can be leaks, together: bytes.
    pub fn outstanding_bytes(&self) -> u64 {
        self.totals.outstanding_bytes.saturating_add(self.mapped.outstanding_bytes)
    }

    /// Sites of both kinds with something outstanding, also those that were cut.
    pub fn sites_outstanding(&self) -> usize {
        self.totals.sites_outstanding + self.mapped.sites_outstanding
    }

    /// Whether memory was observed in this way: what was not is not known, and not 0.
    pub fn has_lens(&self, lens: Lens) -> bool {
        self.lenses.contains(&lens)
    }

    /// Whether sites of this lens are in the sums of blocks and mappings. A page that was touched lies in a block or a
    /// mapping: what one lens shows of it must not be added to what another does.
    pub fn is_counted(lens: Lens) -> bool {
        lens != Lens::Faults
    }

    /// The sites that one picture can show, since their bytes can be added: resident pages where nothing else was
    /// observed or asked for, else blocks and mappings.
    pub fn drawable_sites(&self) -> impl Iterator<Item = &Site> {
        let shows_pages = self.shows_pages();
        self.sites.iter().filter(move |site| Self::is_counted(site.lens) != shows_pages)
    }

    /// Whether a picture of everything shows resident pages.
    pub fn shows_pages(&self) -> bool {
        let wanted = self.filter.lens.or(match self.lenses.as_slice() {
            [only] => Some(*only),
            _ => None,
        });
        wanted == Some(Lens::Faults)
    }

    /// Ledger of the target, of its last program that has one.
    pub fn ledger(&self) -> Option<&LedgerSummary> {
        let tgid = self.header.target.tgid;
        let mut of_target = self.processes.iter().rev().filter(|row| row.process.target.tgid == tgid);
        of_target.find_map(|row| row.ledger.as_ref())
    }

    /// Times of the points of the series of all sites, since the start.
    pub fn points_ns(&self) -> &[u64] {
        &self.series.points_ns
    }

    /// Outstanding bytes of a site, of any age, at every point.
    pub fn outstanding_series(&self, site: &Site) -> Vec<u64> {
        let mut bytes = vec![0; self.series.points_ns.len()];
        for number in &site.numbers {
            self.series.add_outstanding(*number, &mut bytes);
        }
        bytes
    }

    /// Every look at the memory of the processes.
    pub fn rss_samples(&self) -> &[RssSample] {
        &self.rss_samples
    }

    /// Every look at where the memory of the processes lies.
    pub fn ledger_looks(&self) -> &[Ledger] {
        &self.ledgers
    }

    /// Whether the exit status must say that data is incomplete.
    pub fn is_complete(&self) -> bool {
        self.completeness.is_complete
    }
}

/// Takes out what rules hide, and nothing that a built-in rule hides and that grows.
fn suppress(capture: &Capture, sites: &mut Vec<Site>, filter: &Filter) -> Vec<Suppressed> {
    suppression::suppress(sites, &filter.suppressions, (&capture.frames, &capture.objects), |site| {
        totals::growth(&capture.series, &site.numbers).is_none_or(|growth| growth > 0.0)
    })
}

/// What the setting `lens` says, its words separated by commas. Without it, allocator calls were observed, and
/// mappings if there are any.
fn lenses(capture: &Capture) -> Vec<Lens> {
    let said = capture.header.settings.iter().find(|(name, _)| name == LENS_SETTING);
    let has = |lens| match said {
        Some((_, words)) => words.split(',').any(|word| Lens::from_name(word.trim()) == Some(lens)),
        None => lens == Lens::Malloc || capture.stacks.iter().any(|stack| stack.lens == lens),
    };
    Lens::ALL.into_iter().filter(|lens| has(*lens)).collect()
}
