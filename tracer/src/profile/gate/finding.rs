//! What a gate finds: for each rule, at each call site, and in all.

#[cfg(doc)]
use super::Rules;
use super::{Comparison, Growth};
#[cfg(doc)]
use crate::profile::Profile;

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// [`Rules::max_leak_sites`].
    LeakSites,
    /// [`Rules::max_growth`].
    Growth,
    /// [`Rules::max_rss_growth`].
    RssGrowth,
    /// [`Rules::max_unfreed_bytes`].
    Unfreed,
}

impl Rule {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LeakSites => "leak-sites",
            Self::Growth => "growth",
            Self::RssGrowth => "rss-growth",
            Self::Unfreed => "unfreed",
        }
    }
}

/// What became of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It may be broken: the estimate is above the limit, the interval is not. No breach.
    NotSure,
    /// Too little was seen. Not passed.
    NotJudged,
    /// It is broken.
    Breached,
}

impl Outcome {
    /// The name in reports for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::NotSure => "not-sure",
            Self::NotJudged => "not-judged",
            Self::Breached => "breached",
        }
    }
}

/// What was measured for a rule.
#[derive(Clone, Debug, PartialEq)]
pub enum Measure {
    /// Call sites that leak.
    LeakSites {
        /// That count.
        found: usize,
        /// Leaks that the baseline has, too.
        known: usize,
        /// Leaks that are slower than [`Rules::min_leak_rate`].
        slow: usize,
        /// May be.
        allowed: u32,
    },
    /// Growth of a sum.
    Growth(Box<Growth>),
    /// Blocks that are unfreed at the end, bytes.
    Unfreed {
        /// Found: all, or what the baseline does not have. `None` where allocator calls were not recorded.
        found_bytes: Option<u64>,
        /// May be.
        allowed_bytes: u64,
    },
}

/// One rule and what was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Which.
    pub rule: Rule,
    /// What became of it.
    pub outcome: Outcome,
    /// Why.
    pub measure: Measure,
}

/// A call site that has a part in a breach.
#[derive(Clone, Debug, PartialEq)]
pub struct Offender {
    /// Index into [`Profile::sites`].
    pub site: usize,
    /// The rules.
    pub breaks: Vec<Rule>,
    /// Beside the baseline; `None` without one.
    pub comparison: Option<Comparison>,
}

/// Why a result is partial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shortfall {
    /// The recording has lost something, or is damaged.
    DataMissing,
    /// It was interrupted before its end.
    Interrupted,
    /// The processes ended before the time was up.
    EndedEarly,
    /// A rule could not be judged.
    NotJudged(Rule),
}

/// What came of it all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GateVerdict {
    /// Every rule holds, everything was seen.
    Passed,
    /// A rule is broken.
    Breached,
    /// No rule is broken, and the command has failed.
    CommandFailed,
    /// No rule is broken in what was seen, and that is not all.
    Incomplete,
}

impl GateVerdict {
    /// The name in reports for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Breached => "breached",
            Self::CommandFailed => "command-failed",
            Self::Incomplete => "incomplete",
        }
    }
}
