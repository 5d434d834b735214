//! Growth of sums, against a limit.

use std::collections::BTreeMap;

use super::{Outcome, Rate};
use crate::capture::thinned;
use crate::profile::{Profile, Site};
use crate::trend::{Evidence, Floors, Kind, Reason, Verdict, judge};

/// The growth of one sum and what it may be. Bytes per second.
#[derive(Clone, Debug, PartialEq)]
pub struct Growth {
    /// The limit as it was asked for.
    pub limit: Rate,
    /// The limit, and what the baseline grew by, with the tolerance.
    pub allowed_bytes_per_s: f64,
    /// What the baseline grew by; `None` without one, and where it is not known.
    pub baseline_bytes_per_s: Option<f64>,
    /// What the sum does; `None` where it was never measured.
    pub trend: Option<Verdict>,
}

impl Growth {
    /// Judges a sum. `tolerance` is the factor for what the baseline grew by.
    pub(super) fn new(
        points: &[(f64, f64)],
        floors: &Floors,
        limit: Rate,
        baseline: Option<&Verdict>,
        tolerance: f64,
    ) -> Self {
        let baseline_bytes_per_s = baseline.and_then(|verdict| verdict.evidence.slope);
        let known = baseline_bytes_per_s.unwrap_or(0.0).max(0.0) * tolerance;
        Self {
            limit,
            allowed_bytes_per_s: limit.bytes_per_s() + known,
            baseline_bytes_per_s,
            trend: (!points.is_empty()).then(|| judge(points, floors)),
        }
    }

    /// Theil–Sen slope, and its 95 % interval; `None` where too little was seen.
    pub fn slope(&self) -> Option<(f64, Option<(f64, f64)>)> {
        let trend = self.trend.as_ref().filter(|trend| trend.reason != Reason::TooShort)?;
        Some((trend.evidence.slope?, trend.evidence.interval))
    }

    /// A breach is sure: the whole interval lies above, and it goes on.
    pub fn outcome(&self) -> Outcome {
        let Some((slope, interval)) = self.slope() else { return Outcome::NotJudged };
        if slope <= self.allowed_bytes_per_s {
            return Outcome::Passed;
        }
        let is_sure = interval.is_some_and(|(low, _)| low > self.allowed_bytes_per_s);
        if is_sure && self.goes_on() { Outcome::Breached } else { Outcome::NotSure }
    }

    /// Whether it still grows like that at the end. What has settled was a warm-up.
    pub fn goes_on(&self) -> bool {
        let Some(Verdict { kind, evidence: Evidence { thirds, .. }, .. }) = &self.trend else { return false };
        match kind {
            Kind::Growing | Kind::SawtoothRising => true,
            Kind::Undetermined => thirds.is_some_and(|thirds| thirds[2] > self.allowed_bytes_per_s),
            Kind::WarmUp | Kind::Plateau | Kind::Level | Kind::SawtoothLevel | Kind::Shrinking => false,
        }
    }
}

/// Whether a site is in the sum of what is outstanding: each byte once.
pub(super) fn is_counted(profile: &Profile, site: &Site) -> bool {
    Profile::is_counted(site.lens) != profile.shows_pages()
}

/// What is outstanding at all sites together: seconds, bytes.
pub(super) fn outstanding(profile: &Profile) -> Vec<(f64, f64)> {
    let mut sums = vec![0u64; profile.points_ns().len()];
    for site in profile.drawable_sites() {
        for (sum, bytes) in sums.iter_mut().zip(profile.outstanding_series(site)) {
            *sum = sum.saturating_add(bytes);
        }
    }
    points(profile.points_ns().iter().copied().zip(sums))
}

/// Resident memory of all processes together: seconds, bytes. Shared pages are in it once for each.
pub(super) fn resident(profile: &Profile) -> Vec<(f64, f64)> {
    let mut sums: BTreeMap<u64, u64> = BTreeMap::new();
    for sample in profile.rss_samples() {
        let sum = sums.entry(sample.elapsed_ns).or_default();
        *sum = sum.saturating_add(sample.rss_bytes);
    }
    let (times_ns, sums): (Vec<u64>, Vec<u64>) = sums.into_iter().unzip();
    let kept = thinned(&times_ns);
    points(kept.into_iter().filter_map(|index| Some((*times_ns.get(index)?, *sums.get(index)?))))
}

fn points(values: impl Iterator<Item = (u64, u64)>) -> Vec<(f64, f64)> {
    values.map(|(ns, bytes)| (ns as f64 / 1e9, bytes as f64)).collect()
}
