//! Is a site a leak? Its series and the ages of its blocks together.

use super::survival::{BlockAges, Survival, survival};
use crate::trend::{Floors, Kind, Reason, Verdict, judge};

/// How far the survivors' rate may lie beyond the interval of the slope to be believed: this part of the interval's width, or
/// of its upper end. One interval in twenty does not hold the slope.
const RATE_ROOM: f64 = 0.25;
/// Of a few old blocks, the part that must be live where the series grows.
const FEW_KEPT: f64 = 0.9;
/// Fewest of them,
const MIN_FEW: u64 = 3;
/// and what they must be of the growth: two thirds of the recording have passed before they are that old.
const FEW_GROWN: f64 = 0.4;

/// What a site does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SiteKind {
    /// It grows without bound, and what is old survives.
    Leak,
    /// Not enough was seen to tell.
    Undetermined,
    /// It grew in the beginning only.
    WarmUp,
    /// It rises and falls back to a floor that is level.
    Sawtooth,
    /// It is level, or becomes less.
    Plateau,
}

impl SiteKind {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leak => "leak",
            Self::Undetermined => "undetermined",
            Self::WarmUp => "warm-up",
            Self::Sawtooth => "sawtooth",
            Self::Plateau => "plateau",
        }
    }
}

/// A verdict and what it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteVerdict {
    /// What.
    pub kind: SiteKind,
    /// For a leak: bytes per second, of the survivors where these are steady, else the slope of the series.
    pub growth_bytes_per_s: Option<f64>,
    /// Whether the ages of the blocks decided, not the series.
    pub by_survivors: bool,
    /// Whether it would be a leak, if the garbage collector that frees its blocks had been seen at work.
    pub awaits_collection: bool,
    /// What the series says.
    pub trend: Verdict,
    /// What the ages say; `None` where they are not known: unfinished recordings, earlier moments, pages.
    pub survival: Option<Survival>,
    /// When a block was freed last, in ns since the start, rounded up to the next point of the series; `None`: never.
    pub last_freed_ns: Option<u64>,
}

impl SiteVerdict {
    /// How sure: 0 to 1, of the trend's probability or the surviving part. For the order of leaks, not a probability.
    pub fn confidence(&self) -> f64 {
        if self.by_survivors {
            return self.survival.and_then(|survival| survival.surviving_part()).unwrap_or(0.0);
        }
        1.0 - self.trend.evidence.trend_p.unwrap_or(1.0).clamp(0.0, 1.0)
    }

    /// Whether the recording is too short for any verdict.
    pub fn is_too_short(&self) -> bool {
        self.kind == SiteKind::Undetermined && self.trend.reason == Reason::TooShort
    }

    /// The same for blocks that a garbage collector frees and that none has looked at: no leak yet.
    pub(super) fn awaiting_collection(self) -> Self {
        match self.kind {
            SiteKind::Leak => Self {
                kind: SiteKind::Undetermined,
                growth_bytes_per_s: None,
                awaits_collection: true,
                ..self
            },
            _ => self,
        }
    }

    /// About how much longer to watch, in seconds, where it is undetermined.
    pub fn needed_s(&self) -> Option<f64> {
        // Ages that contradict the series need twice the time: the oldest blocks are then twice as old.
        let needed_s = self.trend.needed_s.unwrap_or(self.trend.evidence.span_s);
        (self.kind == SiteKind::Undetermined).then_some(needed_s.max(1.0))
    }
}

/// What was seen of one site: everything that a verdict rests on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Outstanding bytes at (seconds).
    pub points: Vec<(f64, f64)>,
    /// Outstanding blocks at the same times.
    pub counts: Vec<u64>,
    /// Ages; `None` where they are not known.
    pub ages: Option<BlockAges>,
    /// When a block was freed last, in ns since the start.
    pub last_freed_ns: Option<u64>,
}

impl Observed {
    /// The verdict. Costs milliseconds at most.
    pub fn judge(&self, floors: &Floors) -> SiteVerdict {
        let trend = judge(&self.points, floors);
        let survival = self.ages.as_ref().map(survival);
        let (kind, by_survivors) = decide(&trend, survival.as_ref(), || self.grows_in_size(floors));
        let by_ages = survival.and_then(|survival| survival.growth_bytes_per_s);
        let holds = |rate: &f64| {
            by_survivors || trend.evidence.interval.is_none_or(|(low, high)| low <= *rate && *rate <= high)
        };
        let growth_bytes_per_s = match kind {
            SiteKind::Leak => by_ages.filter(holds).or(trend.evidence.slope),
            _ => None,
        };
        let last_freed_ns = self.last_freed_ns;
        let awaits_collection = false;
        SiteVerdict {
            kind,
            growth_bytes_per_s,
            by_survivors,
            awaits_collection,
            trend,
            survival,
            last_freed_ns,
        }
    }

    /// Whether blocks become larger rather than more: a buffer that is reallocated is freed and born again each time, so its
    /// age says nothing. Their mean size must grow by itself, and be at least half of the growth, as a factor.
    fn grows_in_size(&self, floors: &Floors) -> bool {
        let sizes: Vec<(f64, f64)> = self
            .points
            .iter()
            .zip(&self.counts)
            .filter(|(_, count)| **count > 0)
            .map(|((at_s, bytes), count)| (*at_s, bytes / *count as f64))
            .collect();
        let sizes = judge(&sizes, floors);
        // From the second quarter of the time to the last one: in the first, they are seen for the first time.
        let quarter = (self.points.len() / 4).max(1);
        let median_count = |from: usize| {
            let mut counts: Vec<u64> = self.counts.iter().skip(from).take(quarter).copied().collect();
            counts.sort_unstable();
            counts.get(counts.len() / 2).map(|count| (*count as f64).max(1.0))
        };
        let more = median_count(quarter).zip(median_count(self.counts.len().saturating_sub(quarter)));
        let more = more.map_or(1.0, |(before, after)| after / before);
        let slope = sizes.evidence.slope.unwrap_or(0.0);
        let larger = 1.0 + slope * sizes.evidence.span_s * 0.625 / sizes.evidence.start.max(1.0);
        sizes.kind.is_growth() && larger >= more
    }
}

/// The verdict, and whether the ages decided.
fn decide(
    trend: &Verdict,
    survival: Option<&Survival>,
    grows_in_size: impl FnOnce() -> bool,
) -> (SiteKind, bool) {
    let by_series = match trend.kind {
        Kind::Growing | Kind::SawtoothRising => SiteKind::Leak,
        Kind::WarmUp => SiteKind::WarmUp,
        Kind::Plateau | Kind::Level | Kind::Shrinking => SiteKind::Plateau,
        Kind::SawtoothLevel => SiteKind::Sawtooth,
        Kind::Undetermined => SiteKind::Undetermined,
    };
    let Some(survival) = survival else { return (by_series, false) };
    if by_series == SiteKind::Leak {
        return match is_kept(trend, survival) || grows_in_size() {
            true => (SiteKind::Leak, false),
            false => (SiteKind::Undetermined, true),
        };
    }
    let Some(rate) = survival.growth_bytes_per_s else { return (by_series, false) };
    // Growth that the series excludes is none; and one has to have looked for long enough.
    let is_possible =
        trend.evidence.interval.is_none_or(|(low, high)| rate <= high + RATE_ROOM * (high - low).max(high));
    if is_possible && trend.reason != Reason::TooShort { (SiteKind::Leak, true) } else { (by_series, false) }
}

/// Whether what grows is kept, as far as the ages say. What grows and frees what is old is memory that lives for as long as
/// the recording lasts, or a queue that lags behind; what grows and has nothing old is a rate that rises; what is kept ever more
/// rarely fills.
fn is_kept(trend: &Verdict, survival: &Survival) -> bool {
    if survival.has_enough() {
        return survival.settled_age_ns.is_some() && !survival.is_slowing;
    }
    // Few: they must be what grows.
    let grown = trend.evidence.slope.unwrap_or(0.0) * trend.evidence.span_s;
    survival.survivors >= MIN_FEW
        && survival.surviving_part().is_some_and(|part| part >= FEW_KEPT)
        && survival.survivor_bytes as f64 >= FEW_GROWN * grown
}
