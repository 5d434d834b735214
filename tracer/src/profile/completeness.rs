//! How complete a recording is, and where its stacks broke.

use std::collections::HashMap;

use super::Site;
use super::frame::expand;
use crate::capture::Capture;
use crate::model::{LossTally, StackEnd};

/// Functions listed at which stacks broke.
const BROKEN_SHOWN: usize = 5;

/// Shares of the stacks that reach the root of their thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackShares {
    /// Distinct stacks.
    pub total: u64,
    /// Distinct stacks that are whole.
    pub whole: u64,
    /// Allocations, also those whose stack was lost.
    pub allocated_count: u64,
    /// Allocations with a whole stack.
    pub whole_allocated_count: u64,
}

/// A function at which stacks ended before the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Outermost function that was reached, as [`super::SiteFrame::label`] names it; `None` where not one was.
    pub function: Option<String>,
    /// Why.
    pub end: StackEnd,
    /// Distinct stacks.
    pub stacks: u64,
    /// Their allocations.
    pub allocated_count: u64,
}

/// What is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completeness {
    /// Finished, nothing lost, nothing skipped. Stacks that broke do not count: their bytes are exact.
    pub is_complete: bool,
    /// Whether the recording was ended by its recorder.
    pub is_finished: bool,
    /// Every tally of the recorder, also the ones at zero.
    pub losses: Vec<LossTally>,
    /// Whole and broken stacks.
    pub stacks: StackShares,
    /// Where most allocations' stacks broke.
    pub broken: Vec<Broken>,
    /// Rows of the capture that made no sense.
    pub skipped_rows: u64,
}

impl Completeness {
    /// Losses that happened and make the numbers incomplete.
    pub fn incomplete_losses(&self) -> impl Iterator<Item = &LossTally> {
        self.losses.iter().filter(|loss| loss.is_incomplete && loss.count > 0)
    }
}

pub(super) fn fold(capture: &Capture, sites: &[Site]) -> Completeness {
    let mut stacks = StackShares::default();
    let mut broken: HashMap<(Option<String>, StackEnd), (u64, u64)> = HashMap::new();
    for site in sites {
        let allocated_count = site.counters.allocated_count;
        stacks.allocated_count = stacks.allocated_count.saturating_add(allocated_count);
        if site.is_lost {
            continue;
        }
        stacks.total += 1;
        if site.end.is_whole() {
            stacks.whole += 1;
            stacks.whole_allocated_count = stacks.whole_allocated_count.saturating_add(allocated_count);
            continue;
        }
        let outermost = site.frames.last().map(std::slice::from_ref).unwrap_or_default();
        let function = expand(outermost, &capture.frames, &capture.objects).last().map(|frame| frame.label());
        let (count, allocated) = broken.entry((function, site.end)).or_default();
        *count += 1;
        *allocated = allocated.saturating_add(allocated_count);
    }
    let mut broken: Vec<_> = broken
        .into_iter()
        .map(|((function, end), (stacks, allocated_count))| Broken { function, end, stacks, allocated_count })
        .collect();
    broken.sort_by(|a, b| {
        let key = |broken: &Broken| (std::cmp::Reverse((broken.allocated_count, broken.stacks)), broken.end);
        key(a).cmp(&key(b)).then_with(|| a.function.cmp(&b.function))
    });
    broken.truncate(BROKEN_SHOWN);
    let is_finished = capture.finish.is_some();
    let mut completeness = Completeness {
        is_complete: false,
        is_finished,
        losses: capture.losses.clone(),
        stacks,
        broken,
        skipped_rows: capture.skipped_rows,
    };
    completeness.is_complete =
        is_finished && capture.skipped_rows == 0 && completeness.incomplete_losses().next().is_none();
    completeness
}
