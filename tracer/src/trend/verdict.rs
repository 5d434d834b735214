//! What can be said of a series, and what it rests on.

/// What a series does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It grows without a sign of an end.
    Growing,
    /// It rises and falls, and what it falls back to rises.
    SawtoothRising,
    /// It grew in the beginning and is level since.
    WarmUp,
    /// It grew and is level since.
    Plateau,
    /// It did not grow.
    Level,
    /// It rises and falls back to the same floor.
    SawtoothLevel,
    /// It becomes less.
    Shrinking,
    /// Not enough was seen.
    Undetermined,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Growing,
        Self::SawtoothRising,
        Self::WarmUp,
        Self::Plateau,
        Self::Level,
        Self::SawtoothLevel,
        Self::Shrinking,
        Self::Undetermined,
    ];

    /// The name used in reports for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Growing => "growing",
            Self::SawtoothRising => "sawtooth-rising",
            Self::WarmUp => "warm-up",
            Self::Plateau => "plateau",
            Self::Level => "level",
            Self::SawtoothLevel => "sawtooth-level",
            Self::Shrinking => "shrinking",
            Self::Undetermined => "undetermined",
        }
    }

    /// Whether memory grows without bound, as far as was seen.
    pub const fn is_growth(self) -> bool {
        matches!(self, Self::Growing | Self::SawtoothRising)
    }
}

/// Why the verdict is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A trend that is not chance and does not slow down.
    Trend,
    /// The floor rises with the cycles.
    FloorRises,
    /// The floor is the same in every cycle.
    FloorLevel,
    /// It grew and then stopped for long enough.
    Settled,
    /// The interval of the slope leaves room for nothing that matters.
    NoTrend,
    /// There is a slope, and it is practically nothing ([`Floors`]).
    Negligible,
    /// Too few samples, or too short a time.
    TooShort,
    /// It grows, and slows down.
    Slowing,
    /// It grew in so few steps that they may have been the only ones.
    FewSteps,
    /// It grew and stopped a moment ago.
    JustStopped,
    /// The noise hides what growth there may be.
    Noisy,
    /// It rises and falls in too few cycles to know its floor.
    FewCycles,
}

impl Reason {
    /// The name used in reports for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trend => "trend",
            Self::FloorRises => "floor-rises",
            Self::FloorLevel => "floor-level",
            Self::Settled => "settled",
            Self::NoTrend => "no-trend",
            Self::Negligible => "negligible",
            Self::TooShort => "too-short",
            Self::Slowing => "slowing",
            Self::FewSteps => "few-steps",
            Self::JustStopped => "just-stopped",
            Self::Noisy => "noisy",
            Self::FewCycles => "few-cycles",
        }
    }

    /// What a person reads after the verdict.
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::Trend => "the trend is not chance",
            Self::FloorRises => "what it falls back to rises with every cycle",
            Self::FloorLevel => "it falls back to the same floor",
            Self::Settled => "it grew and has been level since",
            Self::NoTrend => "no trend",
            Self::Negligible => "the slope is practically nothing",
            Self::TooShort => "too few samples",
            Self::Slowing => "it grows and slows down",
            Self::FewSteps => "it grew in a few steps, which may have been the only ones",
            Self::JustStopped => "it grew and stopped a moment ago",
            Self::Noisy => "the noise is larger than the growth that would matter",
            Self::FewCycles => "it rises and falls, in too few cycles to know its floor",
        }
    }
}

/// What counts as practically nothing, and how long one has to look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floors {
    /// Growth over the whole watch, bytes: below it is what any process does.
    pub growth_bytes: f64,
    /// Growth per hour as a part of the level.
    pub growth_per_hour: f64,
    /// Swings below this part of the level are noise and no sawtooth.
    pub swing: f64,
    /// Shortest watch that is judged, seconds.
    pub span_s: f64,
    /// Fewest samples that are judged.
    pub samples: usize,
}

impl Floors {
    /// For the resident memory of a process. The kernel's counter lags behind by up to 64 pages for each thread
    /// (`TASK_RSS_EVENTS_THRESH`, before 6.2) or 32 pages for each CPU (later): 256 KiB with one thread, or two CPUs. A
    /// thousandth per hour doubles memory in 41 days.
    pub const RSS: Self =
        Self { growth_bytes: 262_144.0, growth_per_hour: 0.001, swing: 0.02, span_s: 10.0, samples: 12 };

    /// For outstanding bytes, which are counted exactly.
    pub const EXACT: Self = Self { growth_bytes: 1.0, ..Self::RSS };
}

/// The figures a verdict rests on. Times are seconds, amounts bytes, slopes bytes per second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// Points of the series.
    pub samples: usize,
    /// From the first point to the last.
    pub span_s: f64,
    /// Median of the first points (a tenth, at least three).
    pub start: f64,
    /// Median of the last points.
    pub end: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Theil–Sen slope; of the troughs for a sawtooth.
    pub slope: Option<f64>,
    /// Its 95 % interval.
    pub interval: Option<(f64, f64)>,
    /// Two-sided Mann–Kendall probability, with the corrections for equal values and for autocorrelation.
    pub trend_p: Option<f64>,
    /// Two-sided probability of the mean step, as of a random walk.
    pub drift_p: Option<f64>,
    /// Autocorrelation of neighbouring residuals that was allowed for.
    pub autocorrelation: Option<f64>,
    /// Independent values that the samples are worth.
    pub effective_samples: Option<f64>,
    /// Standard deviation of what is left beside the slope, from the median absolute deviation.
    pub noise: Option<f64>,
    /// Theil–Sen slopes of the first, second and last third.
    pub thirds: Option<[f64; 3]>,
    /// Equal steps that growth would be made of.
    pub rises: Option<f64>,
    /// Troughs, for a sawtooth.
    pub cycles: Option<usize>,
    /// Time in which memory doubles if it goes on so; only where it grows.
    pub doubling_s: Option<f64>,
    /// How long each doubling took that was seen.
    pub doublings_s: Vec<f64>,
    /// Whether the last two doublings took equal times (within a quarter): growth in proportion to itself. `None` where it
    /// did not double twice.
    pub doubled_in_equal_times: Option<bool>,
}

/// What a series does, and why that is said.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What.
    pub kind: Kind,
    /// Why.
    pub reason: Reason,
    /// For [`Kind::Undetermined`]: about how much longer to watch.
    pub needed_s: Option<f64>,
    /// The figures.
    pub evidence: Evidence,
}
