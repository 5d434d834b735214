//! What must hold for a recording to pass.

/// A unit of time that growth is limited by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RateUnit {
    /// Seconds.
    Second,
    /// Minutes.
    Minute,
    /// Hours.
    Hour,
}

impl RateUnit {
    /// Every unit.
    pub const ALL: [Self; 3] = [Self::Second, Self::Minute, Self::Hour];

    /// As it is typed and shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Second => "s",
            Self::Minute => "min",
            Self::Hour => "h",
        }
    }

    /// Its length.
    pub const fn seconds(self) -> f64 {
        match self {
            Self::Second => 1.0,
            Self::Minute => 60.0,
            Self::Hour => 3600.0,
        }
    }
}

/// A rate of growth as the user thinks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So many bytes
    pub bytes: u64,
    /// in this time.
    pub unit: RateUnit,
}

impl Rate {
    /// Bytes per second.
    pub fn bytes_per_s(self) -> f64 {
        self.bytes as f64 / self.unit.seconds()
    }
}

/// What must hold. What is `None` is not asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Call sites that may leak.
    pub max_leak_sites: Option<u32>,
    /// Leaks that are slower do not count.
    pub min_leak_rate: Option<Rate>,
    /// How fast what is outstanding may grow.
    pub max_growth: Option<Rate>,
    /// How fast resident memory may grow.
    pub max_rss_growth: Option<Rate>,
    /// How many bytes of blocks may be unfreed at the end.
    pub max_unfreed_bytes: Option<u64>,
    /// How much worse than a baseline is still the same, in percent.
    pub tolerance_percent: u32,
}

impl Rules {
    /// Whether nothing is asked for.
    pub const fn is_empty(&self) -> bool {
        !self.needs_series() && self.max_unfreed_bytes.is_none()
    }

    /// Whether something is asked that only a series can tell.
    pub const fn needs_series(&self) -> bool {
        self.max_leak_sites.is_some() || self.max_growth.is_some() || self.max_rss_growth.is_some()
    }

    /// Factor up to which something is no worse than in the baseline.
    pub(super) fn tolerance(&self) -> f64 {
        1.0 + f64::from(self.tolerance_percent) / 100.0
    }
}
