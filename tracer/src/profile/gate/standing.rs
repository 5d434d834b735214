//! How a call site stands to a baseline.

use std::collections::HashMap;

use crate::model::Lens;
use crate::profile::{Diff, DiffRow, Match, Profile, Side, Site, SiteKind, Suppressions};

/// What has become of a call site since the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// The baseline does not have it.
    New,
    /// It grows faster than there, beyond the tolerance, with the whole interval.
    Faster,
    /// It holds more than there, beyond the tolerance.
    More,
    /// It is no worse.
    Known,
}

impl Standing {
    /// The name in reports for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Faster => "faster",
            Self::More => "more",
            Self::Known => "known",
        }
    }
}

/// A call site beside the baseline's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// What has become of it.
    pub standing: Standing,
    /// How it was found there.
    pub matched: Match,
    /// What the baseline held, bytes; `None` where it does not have it.
    pub before_bytes: Option<u64>,
    /// What the baseline grew by, bytes per second; `None` where that is not known.
    pub before_bytes_per_s: Option<f64>,
}

/// Every call site beside the baseline's.
pub(super) struct Baseline<'a> {
    diff: Diff<'a>,
    rows: HashMap<usize, usize>,
    tolerance: f64,
}

impl<'a> Baseline<'a> {
    /// Matches the sites. `tolerance` is the factor up to which something is no worse.
    pub(super) fn new(before: &'a Profile, after: &'a Profile, tolerance: f64) -> Self {
        // Both sides have been hidden from already: a built-in rule hides nothing that grows.
        let diff = Diff::new(before, after, &Suppressions::default());
        let of_row = |(index, row): (usize, &DiffRow)| {
            row.after.sites.iter().map(move |site| (*site, index)).collect::<Vec<_>>()
        };
        let rows = diff.rows.iter().enumerate().flat_map(of_row).collect();
        Self { diff, rows, tolerance }
    }

    pub(super) fn into_diff(self) -> Diff<'a> {
        self.diff
    }

    fn row(&self, site: usize) -> Option<&DiffRow> {
        self.rows.get(&site).and_then(|row| self.diff.rows.get(*row))
    }

    /// By how fast it grows; by what it holds, where that is not known of one of the two.
    pub(super) fn by_growth(&self, site: usize) -> Option<Comparison> {
        let row = self.row(site)?;
        let before = sum(self.diff.before, &row.before, rate);
        let now = sum(self.diff.after, &row.after, surely);
        let standing = match (before, now) {
            _ if row.before.sites.is_empty() => Standing::New,
            (Some(before), Some(now)) if now > before.max(0.0) * self.tolerance => Standing::Faster,
            (Some(_), Some(_)) => Standing::Known,
            _ if self.more_bytes(row) > 0 => Standing::More,
            _ => Standing::Known,
        };
        Some(comparison(row, standing, before))
    }

    /// By what it holds.
    pub(super) fn by_bytes(&self, site: usize) -> Option<Comparison> {
        let row = self.row(site)?;
        let standing = match self.more_bytes(row) {
            _ if row.before.sites.is_empty() => Standing::New,
            0 => Standing::Known,
            _ => Standing::More,
        };
        Some(comparison(row, standing, sum(self.diff.before, &row.before, rate)))
    }

    /// Bytes of blocks that the baseline does not have.
    pub(super) fn unfreed_bytes(&self) -> u64 {
        let blocks = self.diff.rows.iter().filter(|row| row.lens == Lens::Malloc);
        blocks.fold(0, |sum: u64, row| sum.saturating_add(self.more_bytes(row)))
    }

    /// What a row holds that it did not hold before; nothing within the tolerance.
    fn more_bytes(&self, row: &DiffRow) -> u64 {
        let (before, after) = (row.before.outstanding_bytes, row.after.outstanding_bytes);
        if after as f64 > before as f64 * self.tolerance { after.saturating_sub(before) } else { 0 }
    }
}

fn comparison(row: &DiffRow, standing: Standing, before_bytes_per_s: Option<f64>) -> Comparison {
    let before_bytes = (!row.before.sites.is_empty()).then_some(row.before.outstanding_bytes);
    Comparison { standing, matched: row.matched, before_bytes, before_bytes_per_s }
}

/// How fast a site grows, bytes per second; `None` for fewer than three samples.
pub(super) fn rate(site: &Site) -> Option<f64> {
    let leak = site.verdict.as_ref().filter(|verdict| verdict.kind == SiteKind::Leak);
    leak.and_then(|leak| leak.growth_bytes_per_s).or(site.growth_bytes_per_s)
}

/// How fast it surely grows: the lower end of the interval, where there is one.
fn surely(site: &Site) -> Option<f64> {
    let verdict = site.verdict.as_ref().filter(|verdict| !verdict.by_survivors);
    let low = verdict.and_then(|verdict| verdict.trend.evidence.interval).map(|interval| interval.0);
    low.or_else(|| rate(site))
}

fn sum(profile: &Profile, side: &Side, rate: impl Fn(&Site) -> Option<f64>) -> Option<f64> {
    let rates = side.sites.iter().filter_map(|site| profile.sites.get(*site)).map(rate);
    rates.sum()
}
