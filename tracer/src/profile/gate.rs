//! Does a recording pass? What was asked for, what was found, and at which call sites.
//!
//! A breach is claimed only where it is sure; what is not sure is named. A rule that could not be judged is not
//! passed, nor is anything where data is missing.

mod finding;
mod growth;
mod rules;
mod standing;
#[cfg(test)]
mod tests;

use super::{Diff, Profile, Site, SiteKind};
use crate::model::{EndReason, Lens};
use crate::trend::Floors;

pub use finding::{Finding, GateVerdict, Measure, Offender, Outcome, Rule, Shortfall};
pub use growth::Growth;
pub use rules::{Rate, RateUnit, Rules};
pub use standing::{Comparison, Standing};

use growth::{is_counted, outstanding, resident};
use standing::{Baseline, rate};

/// Call sites that are named where a sum grows or is too large: the largest.
const NAMED_SITES: usize = 20;

/// How a recording was made, as far as the gate has to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Exit status of the command; `None` where running processes were recorded.
    pub command_status: Option<i32>,
    /// Time that was left out at the beginning, ns.
    pub warm_up_ns: u64,
}

/// A recording beside its rules.
#[derive(Debug)]
pub struct Gate<'a> {
    /// What was recorded after the warm-up.
    pub profile: &'a Profile,
    /// The comparison with the baseline.
    pub diff: Option<Diff<'a>>,
    /// What was asked for.
    pub rules: Rules,
    /// How it was recorded.
    pub run: Run,
    /// The rules that were asked for.
    pub findings: Vec<Finding>,
    /// Call sites with a part in a breach: leaks first, the fastest first.
    pub offenders: Vec<Offender>,
    /// Sites that grow and of which nobody can tell yet whether they leak, the fastest first: indices into
    /// [`Profile::sites`].
    pub undetermined: Vec<usize>,
    /// Why the result is partial.
    pub shortfalls: Vec<Shortfall>,
}

impl<'a> Gate<'a> {
    /// Judges a profile with all of its sites, and a baseline that was made with the same filter.
    pub fn new(profile: &'a Profile, baseline: Option<&'a Profile>, rules: Rules, run: Run) -> Self {
        let compared = baseline.map(|before| Baseline::new(before, profile, rules.tolerance()));
        let judge = Judge { profile, baseline, compared: compared.as_ref(), rules };
        let leaks = judge.leaks();
        let findings = judge.findings(&leaks);
        let offenders = judge.offenders(&findings, &leaks);
        let undetermined = judge.undetermined();
        let shortfalls = shortfalls(profile, run, &findings);
        let diff = compared.map(Baseline::into_diff);
        Self { profile, diff, rules, run, findings, offenders, undetermined, shortfalls }
    }

    /// What came of it. A breach is worst, then a command that failed.
    pub fn verdict(&self) -> GateVerdict {
        if self.findings.iter().any(|finding| finding.outcome == Outcome::Breached) {
            GateVerdict::Breached
        } else if self.run.command_status.is_some_and(|status| status != 0) {
            GateVerdict::CommandFailed
        } else if self.shortfalls.is_empty() {
            GateVerdict::Passed
        } else {
            GateVerdict::Incomplete
        }
    }

    /// The call site of an offender.
    pub fn site(&self, index: usize) -> Option<&'a Site> {
        self.profile.sites.get(index)
    }

    /// The limit's unit of time, in which growth is shown.
    pub fn unit(&self) -> RateUnit {
        let limit = self.rules.max_growth.or(self.rules.max_rss_growth);
        limit.map_or(RateUnit::Minute, |limit| limit.unit)
    }
}

fn shortfalls(profile: &Profile, run: Run, findings: &[Finding]) -> Vec<Shortfall> {
    let is_early = run.command_status.is_none() && profile.window.end == Some(EndReason::TargetExited);
    let said = [
        (!profile.is_complete(), Shortfall::DataMissing),
        (profile.window.end == Some(EndReason::Interrupted), Shortfall::Interrupted),
        (is_early, Shortfall::EndedEarly),
    ];
    let said = said.into_iter().filter_map(|(is_so, shortfall)| is_so.then_some(shortfall));
    let open = findings.iter().filter(|finding| finding.outcome == Outcome::NotJudged);
    said.chain(open.map(|finding| Shortfall::NotJudged(finding.rule))).collect()
}

/// The leaks of a profile.
struct Leaks {
    /// Those that count.
    counted: Vec<usize>,
    /// How many the baseline has, too.
    known: usize,
    /// How many others are too slow to count.
    slow: usize,
    /// Whether too little was seen to call anything a leak.
    is_too_short: bool,
}

struct Judge<'a, 'b> {
    profile: &'a Profile,
    baseline: Option<&'a Profile>,
    compared: Option<&'b Baseline<'a>>,
    rules: Rules,
}

impl Judge<'_, '_> {
    fn counted_sites(&self) -> impl Iterator<Item = (usize, &Site)> {
        self.profile.sites.iter().enumerate().filter(|(_, site)| is_counted(self.profile, site))
    }

    fn is_known(&self, site: usize) -> bool {
        let comparison = self.compared.and_then(|baseline| baseline.by_growth(site));
        comparison.is_some_and(|comparison| comparison.standing == Standing::Known)
    }

    fn leaks(&self) -> Leaks {
        let of_kind = |site: &Site, kind| site.verdict.as_ref().is_some_and(|verdict| verdict.kind == kind);
        let leaking = self.counted_sites().filter(|(_, site)| of_kind(site, SiteKind::Leak));
        let (known, counted): (Vec<usize>, Vec<usize>) =
            leaking.map(|(index, _)| index).partition(|index| self.is_known(*index));
        let least = self.rules.min_leak_rate.map_or(f64::NEG_INFINITY, Rate::bytes_per_s);
        let (counted, slow): (Vec<usize>, Vec<usize>) = counted.into_iter().partition(|index| {
            let rate = self.profile.sites.get(*index).and_then(rate);
            rate.is_none_or(|rate| rate >= least)
        });
        let mut verdicts = self.counted_sites().filter_map(|(_, site)| site.verdict.as_ref());
        Leaks {
            known: known.len(),
            slow: slow.len(),
            is_too_short: verdicts.any(|verdict| verdict.is_too_short()),
            counted,
        }
    }

    fn findings(&self, leaks: &Leaks) -> Vec<Finding> {
        let rules = &self.rules;
        let grown = |rule, series: &dyn Fn(&Profile) -> Vec<(f64, f64)>, floors: &Floors, limit| {
            let before = self.baseline.and_then(|profile| {
                let points = series(profile);
                (!points.is_empty()).then(|| crate::trend::judge(&points, floors))
            });
            let points = series(self.profile);
            let growth = Growth::new(&points, floors, limit, before.as_ref(), rules.tolerance());
            Finding { rule, outcome: growth.outcome(), measure: Measure::Growth(Box::new(growth)) }
        };
        let floors = if self.profile.shows_pages() { Floors::RSS } else { Floors::EXACT };
        [
            rules.max_leak_sites.map(|allowed| leak_sites(leaks, allowed)),
            rules.max_growth.map(|limit| grown(Rule::Growth, &outstanding, &floors, limit)),
            rules.max_rss_growth.map(|limit| grown(Rule::RssGrowth, &resident, &Floors::RSS, limit)),
            rules.max_unfreed_bytes.map(|allowed| self.unfreed(allowed)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn unfreed(&self, allowed_bytes: u64) -> Finding {
        let all = || match self.compared {
            Some(baseline) => baseline.unfreed_bytes(),
            None => self.profile.totals.outstanding_bytes,
        };
        let found_bytes = self.profile.has_lens(Lens::Malloc).then(all);
        let outcome = match found_bytes {
            None => Outcome::NotJudged,
            Some(bytes) if bytes > allowed_bytes => Outcome::Breached,
            Some(_) => Outcome::Passed,
        };
        Finding { rule: Rule::Unfreed, outcome, measure: Measure::Unfreed { found_bytes, allowed_bytes } }
    }

    /// Sites with a part in a breach, each once.
    fn offenders(&self, findings: &[Finding], leaks: &Leaks) -> Vec<Offender> {
        let mut offenders: Vec<Offender> = Vec::new();
        let broken = findings.iter().filter(|finding| finding.outcome == Outcome::Breached);
        for rule in broken.map(|finding| finding.rule) {
            let sites = match rule {
                Rule::LeakSites => leaks.counted.clone(),
                Rule::Growth | Rule::RssGrowth => self.growers(),
                Rule::Unfreed => self.holders(),
            };
            for site in sites {
                match offenders.iter_mut().find(|offender| offender.site == site) {
                    Some(known) => known.breaks.push(rule),
                    None => {
                        let compare = |baseline: &&Baseline<'_>| match rule {
                            Rule::Unfreed => baseline.by_bytes(site),
                            _ => baseline.by_growth(site),
                        };
                        let comparison = self.compared.as_ref().and_then(compare);
                        offenders.push(Offender { site, breaks: vec![rule], comparison });
                    }
                }
            }
        }
        offenders
    }

    /// The sites that grow most and are not known from the baseline.
    fn growers(&self) -> Vec<usize> {
        let grows = |(index, site): (usize, &Site)| Some((rate(site).filter(|rate| *rate > 0.0)?, index));
        let mut sites: Vec<(f64, usize)> = self.counted_sites().filter_map(grows).collect();
        sites.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let all: f64 = sites.iter().map(|site| site.0).sum();
        // What is below a hundredth of the growth explains nothing.
        let large = sites.into_iter().filter(|site| site.0 >= all / 100.0);
        large.map(|site| site.1).filter(|site| !self.is_known(*site)).take(NAMED_SITES).collect()
    }

    /// The sites that hold most blocks, and more than in the baseline.
    fn holders(&self) -> Vec<usize> {
        let is_worse = |site: usize| {
            let comparison = self.compared.and_then(|baseline| baseline.by_bytes(site));
            comparison.is_none_or(|comparison| comparison.standing != Standing::Known)
        };
        let mut sites: Vec<(u64, usize)> = (0..)
            .zip(&self.profile.sites)
            .filter(|(_, site)| site.lens == Lens::Malloc && site.outstanding_count > 0)
            .map(|(index, site)| (site.outstanding_bytes, index))
            .collect();
        sites.sort_by_key(|site| (std::cmp::Reverse(site.0), site.1));
        sites.into_iter().map(|site| site.1).filter(|site| is_worse(*site)).take(NAMED_SITES).collect()
    }

    fn undetermined(&self) -> Vec<usize> {
        let is_open = |site: &Site| {
            let verdict = site.verdict.as_ref();
            verdict.is_some_and(|verdict| verdict.kind == SiteKind::Undetermined && !verdict.is_too_short())
        };
        let open = self.counted_sites().filter(|(_, site)| is_open(site));
        let mut open: Vec<(f64, usize)> = open
            .filter_map(|(index, site)| Some((site.growth_bytes_per_s.filter(|rate| *rate > 0.0)?, index)))
            .filter(|(_, index)| !self.is_known(*index))
            .collect();
        open.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        open.into_iter().map(|site| site.1).collect()
    }
}

fn leak_sites(leaks: &Leaks, allowed: u32) -> Finding {
    let found = leaks.counted.len();
    let outcome = match found {
        _ if found > allowed as usize => Outcome::Breached,
        // Nothing was judged, so that nothing was found says nothing.
        _ if leaks.is_too_short => Outcome::NotJudged,
        _ => Outcome::Passed,
    };
    let measure = Measure::LeakSites { found, known: leaks.known, slow: leaks.slow, allowed };
    Finding { rule: Rule::LeakSites, outcome, measure }
}
