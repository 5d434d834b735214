//! Sums over sites, and how they grow.

use tracer_common::abi::SiteCounters;

use super::number::Outstanding;
use super::{Site, Variance, theil_sen};
use crate::capture::Series;

/// Sums over sites.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Rows.
    pub sites: usize,
    /// Rows with something outstanding.
    pub sites_outstanding: usize,
    /// Bytes that were not freed, of the age the filter asks for.
    pub outstanding_bytes: u64,
    /// Blocks or mappings that were not freed, of the age the filter asks for.
    pub outstanding_count: u64,
    /// Robust slope of the sum; `None` for fewer than three samples.
    pub growth_bytes_per_s: Option<f64>,
    /// How much of what is outstanding is resident; `None` where that was not measured of all of it.
    pub resident_bytes: Option<u64>,
    /// What the outstanding bytes and blocks vary by, where they are estimates; `None`: exact, or it is not known.
    pub variance: Option<Variance>,
    /// Totals since the start.
    pub counters: SiteCounters,
}

impl Totals {
    /// Sums without growth.
    pub(super) fn add(&mut self, site: &Site) {
        let mut sum = Outstanding { bytes: self.outstanding_bytes, count: self.outstanding_count };
        sum.add(Outstanding { bytes: site.outstanding_bytes, count: site.outstanding_count });
        let resident_bytes = if self.sites == 0 { Some(0) } else { self.resident_bytes };
        self.resident_bytes =
            resident_bytes.zip(site.resident_bytes).map(|(sum, bytes)| sum.saturating_add(bytes));
        self.variance = match self.variance {
            None if self.sites == 0 => site.variance,
            known => known.zip(site.variance).map(|(mut sum, more)| {
                sum.add(more);
                sum
            }),
        };
        self.sites += 1;
        self.sites_outstanding += usize::from(site.outstanding_count > 0);
        (self.outstanding_bytes, self.outstanding_count) = (sum.bytes, sum.count);
        add(&mut self.counters, &site.counters);
    }
}

/// Sums and growth of sites.
pub(super) fn totals<'a>(series: &Series, sites: impl Iterator<Item = &'a Site>) -> Totals {
    let mut totals = Totals::default();
    let mut numbers = Vec::new();
    for site in sites {
        totals.add(site);
        numbers.extend_from_slice(&site.numbers);
    }
    totals.growth_bytes_per_s = growth(series, &numbers);
    totals
}

/// Robust slope of the outstanding bytes of some sites together. Costs the square of the number of points.
pub(super) fn growth(series: &Series, numbers: &[u32]) -> Option<f64> {
    let mut bytes = vec![0u64; series.points_ns.len()];
    for number in numbers {
        series.add_outstanding(*number, &mut bytes);
    }
    let points = series.points_ns.iter().zip(bytes);
    let points: Vec<_> = points.map(|(ns, bytes)| (*ns as f64 / 1e9, bytes as f64)).collect();
    theil_sen(&points)
}

pub(super) fn add(sum: &mut SiteCounters, counters: &SiteCounters) {
    sum.allocated_bytes = sum.allocated_bytes.saturating_add(counters.allocated_bytes);
    sum.allocated_count = sum.allocated_count.saturating_add(counters.allocated_count);
    sum.freed_bytes = sum.freed_bytes.saturating_add(counters.freed_bytes);
    sum.freed_count = sum.freed_count.saturating_add(counters.freed_count);
}
