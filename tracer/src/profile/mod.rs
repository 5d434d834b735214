//! Pure folds over a capture: sites, growth, completeness.

mod completeness;
mod frame;
mod site;
mod slope;
#[cfg(test)]
mod tests;
mod wrapper;

use std::collections::HashMap;

use thiserror::Error;

use crate::capture::{Capture, Header, thinned};
use crate::model::{EndReason, Frame, FrameId, Object, ObjectId};

pub use completeness::{Broken, Completeness, StackShares};
pub use frame::SiteFrame;
pub(crate) use frame::base_name;
pub use site::{Site, Totals};
pub use slope::{MIN_POINTS, theil_sen};
pub use wrapper::is_wrapper;

/// What the sites are ranked by, the largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// Bytes that were not freed.
    #[default]
    Outstanding,
    /// Bytes per second by which they grow.
    Growth,
    /// Blocks that were not freed.
    Count,
}

impl Sort {
    /// Every order.
    pub const ALL: [Self; 3] = [Self::Outstanding, Self::Growth, Self::Count];

    /// The name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outstanding => "outstanding",
            Self::Growth => "growth",
            Self::Count => "count",
        }
    }
}

/// Which part of a capture is looked at, and in which order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only blocks at least this old count as outstanding.
    pub min_age_ns: Option<u64>,
    /// Order of the sites.
    pub sort: Sort,
    /// Sites to keep; all without it.
    pub top: Option<usize>,
}

/// Why there is no profile.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProfileError {
    /// The age of the blocks is not in the capture.
    #[error(
        "a minimum age needs the live blocks, which are read at the end of a recording: this one was \
         interrupted before; leave the age out"
    )]
    NoAges,
}

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
    /// How dear; `None` where it was not measured.
    pub cost: Option<Cost>,
    /// RSS; `None` where it was never read.
    pub rss: Option<Rss>,
    /// Sums over all sites, also those that were cut.
    pub totals: Totals,
    /// Sites in order, after the filter.
    pub sites: Vec<Site>,
    /// Sentences for the user.
    pub hints: Vec<String>,
    /// The filter.
    pub filter: Filter,
    frames: HashMap<FrameId, Frame>,
    objects: HashMap<ObjectId, Object>,
}

impl Profile {
    /// Folds a capture.
    pub fn new(capture: Capture, filter: Filter) -> Result<Self, ProfileError> {
        let elapsed_ns = capture.elapsed_ns();
        let (sites, totals) = site::fold(&capture, &filter, elapsed_ns)?;
        let seconds = elapsed_ns as f64 / 1e9;
        let cost = capture.overhead.filter(|_| elapsed_ns > 0).map(|overhead| Cost {
            probe_hits_per_s: overhead.probe_hits as f64 / seconds,
            probe_cpu_percent: overhead.probe_cpu_ns.map(|cpu_ns| cpu_ns as f64 / elapsed_ns as f64 * 100.0),
        });
        let completeness = completeness::fold(&capture, &sites);
        let mut profile = Self {
            window: Window {
                elapsed_ns,
                end: capture.finish.map(|finish| finish.reason),
                tick_count: capture.series.tick_count,
                point_count: capture.series.points_ns.len(),
            },
            completeness,
            cost,
            rss: fold_rss(&capture),
            totals,
            sites,
            hints: capture.hints,
            filter,
            header: capture.header,
            frames: capture.frames,
            objects: capture.objects,
        };
        profile.sites.truncate(filter.top.unwrap_or(usize::MAX));
        Ok(profile)
    }

    /// Frames of a site, innermost first; a frame with inlined functions gives one item for each.
    pub fn stack<'a>(&'a self, site: &'a Site) -> impl Iterator<Item = SiteFrame<'a>> {
        frame::expand(&site.frames, &self.frames, &self.objects)
    }

    /// Whether the exit status must say that data is incomplete.
    pub fn is_complete(&self) -> bool {
        self.completeness.is_complete
    }
}

fn fold_rss(capture: &Capture) -> Option<Rss> {
    let (first, last) = (capture.rss.first()?, capture.rss.last()?);
    let points: Vec<_> = thinned(capture.rss.len())
        .into_iter()
        .filter_map(|index| capture.rss.get(index))
        .map(|sample| (sample.elapsed_ns as f64 / 1e9, sample.rss_bytes as f64))
        .collect();
    Some(Rss {
        start_bytes: first.rss_bytes,
        end_bytes: last.rss_bytes,
        growth_bytes_per_s: theil_sen(&points),
    })
}
