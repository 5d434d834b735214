//! From a series and a limit to what a person wants to know.

use super::series::Series;
use super::watcher::memory_points;
use crate::ledger::limit::Limit;
use crate::model::RssSample;
use crate::trend::{Floors, Kind, Reason, Verdict, judge, theil_sen_interval};

/// Levels of a limit that are reported: where one should look, where one must act, where it is about to end.
pub const MARKS: [u8; 3] = [70, 85, 95];
/// Longest time ahead that is worth a word, seconds: ten years.
const MAX_AHEAD_S: f64 = 10.0 * 365.0 * 86_400.0;

/// What a series of memory says.
#[derive(Clone, Debug)]
pub struct Outlook {
    /// The verdict on resident and swapped memory.
    pub verdict: Verdict,
    /// First and last sample.
    pub first: Option<RssSample>,
    /// Last sample.
    pub last: Option<RssSample>,
    /// The last sample with Pss, which is read more rarely.
    pub last_pss: Option<RssSample>,
    /// Slopes of the parts, in bytes per second; `None` where a part is not known.
    pub parts: [(&'static str, Option<f64>); 4],
    /// Where it stands against its limit.
    pub reach: Option<Reach>,
}

/// Where memory stands against its limit, and when it gets there.
#[derive(Clone, Debug)]
pub struct Reach {
    /// The limit.
    pub limit: Limit,
    /// In use, of the limit's own account; else the process's memory.
    pub used_bytes: u64,
    /// Seconds until the limit is reached; `None` where memory does not grow.
    pub full_s: Option<f64>,
    /// The same at the ends of the slope's interval: soonest and latest; no latest where the lower end is no growth.
    pub full_between_s: Option<(f64, Option<f64>)>,
    /// Where [`MARKS`] are.
    pub marks: [Mark; 3],
}

/// A level of a limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark {
    /// Percent of the limit.
    pub percent: u8,
    /// That is.
    pub bytes: u64,
    /// Whether memory is there already.
    pub is_passed: bool,
    /// Seconds until it is; `None` where it is passed, or memory does not grow.
    pub in_s: Option<f64>,
}

/// Judges a series.
pub fn outlook(series: &Series, limit: Option<&Limit>) -> Outlook {
    let verdict = judge(&memory_points(series), &Floors::RSS);
    let slope = |value: fn(&RssSample) -> Option<u64>| {
        let points = series.points(value);
        theil_sen_interval(&points).map(|(slope, _)| slope)
    };
    let reach = limit.zip(series.last()).map(|(limit, last)| reach(limit, last, &verdict));
    Outlook {
        parts: [
            ("anonymous", slope(|sample| sample.anonymous_bytes)),
            ("file", slope(|sample| sample.file_bytes)),
            ("shared", slope(|sample| sample.shared_bytes)),
            ("swap", slope(|sample| sample.swap_bytes)),
        ],
        first: series.first().copied(),
        last: series.last().copied(),
        last_pss: series.last_pss().copied(),
        reach,
        verdict,
    }
}

fn reach(limit: &Limit, last: &RssSample, verdict: &Verdict) -> Reach {
    let used_bytes = limit.used_bytes.unwrap_or(last.rss_bytes);
    let grows = verdict.kind.is_growth();
    let time = |bytes: u64, slope: Option<f64>| {
        let slope = slope.filter(|slope| grows && *slope > 0.0)?;
        Some(bytes.saturating_sub(used_bytes) as f64 / slope).filter(|seconds| *seconds <= MAX_AHEAD_S)
    };
    let evidence = &verdict.evidence;
    let full_between_s = evidence.interval.and_then(|(low, high)| {
        Some((time(limit.limit_bytes, Some(high))?, time(limit.limit_bytes, Some(low))))
    });
    let marks = MARKS.map(|percent| {
        let bytes = (u128::from(limit.limit_bytes) * u128::from(percent) / 100) as u64;
        let is_passed = used_bytes >= bytes;
        let in_s = if is_passed { None } else { time(bytes, evidence.slope) };
        Mark { percent, bytes, is_passed, in_s }
    });
    Reach {
        used_bytes,
        full_s: time(limit.limit_bytes, evidence.slope),
        full_between_s,
        marks,
        limit: limit.clone(),
    }
}

impl Outlook {
    /// The verdict in one sentence, without who it is about.
    pub fn sentence(&self) -> String {
        let evidence = &self.verdict.evidence;
        let rate = |slope: Option<f64>| slope.map_or_else(|| "at an unknown rate".to_owned(), per_hour);
        match (self.verdict.kind, self.verdict.reason) {
            (Kind::Growing, _) => format!("grows without a sign of an end, {}", rate(evidence.slope)),
            (Kind::SawtoothRising, _) => {
                format!("rises and falls, and its floor rises {}", rate(evidence.slope))
            }
            (Kind::WarmUp, _) => "warmed up: grew in the beginning and is level since".to_owned(),
            (Kind::Plateau, _) => "plateau: grew, and is level since".to_owned(),
            (Kind::Level, Reason::Negligible) => {
                format!("level: its slope, {}, is practically nothing", rate(evidence.slope))
            }
            (Kind::Level, _) => match evidence.interval {
                Some((_, high)) if high > 0.0 => {
                    format!("level: no growth seen; less than {} would not have been", per_hour(high))
                }
                _ => "level: no growth".to_owned(),
            },
            (Kind::SawtoothLevel, _) => "rises and falls back to the same floor: no leak seen".to_owned(),
            (Kind::Shrinking, _) => format!("shrinks, {}", rate(evidence.slope)),
            (Kind::Undetermined, reason) => {
                let needed = self.verdict.needed_s.unwrap_or(0.0);
                format!("not enough yet ({}): watch for {} more", reason.phrase(), span(rounded_up(needed)))
            }
        }
    }
}

/// A wait that somebody would type: five seconds, then ten, then whole minutes.
pub fn rounded_up(seconds: f64) -> f64 {
    let step = match seconds {
        s if s <= 20.0 => 5.0,
        s if s <= 60.0 => 10.0,
        s if s <= 600.0 => 60.0,
        s if s <= 7200.0 => 600.0,
        _ => 3600.0,
    };
    (seconds / step).ceil() * step
}

/// `+1.2 GiB/h`.
pub fn per_hour(bytes_per_s: f64) -> String {
    let bytes = bytes_per_s * 3600.0;
    let size = crate::report::human::size(bytes.abs().min(u64::MAX as f64) as u64);
    format!("{}{size}/h", if bytes < 0.0 { "-" } else { "+" })
}

/// `45 s`, `3 min 20 s`, `5 h 10 min`, `12 days`.
pub fn span(seconds: f64) -> String {
    let whole = seconds.clamp(0.0, 1e12).round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600, whole / 60);
    match whole {
        0 if seconds > 0.0 => format!("{:.1} s", seconds),
        0..=119 => format!("{whole} s"),
        120..=7199 if whole.is_multiple_of(60) || minutes >= 20 => format!("{minutes} min"),
        120..=7199 => format!("{minutes} min {} s", whole % 60),
        7200..=172_799 if minutes.is_multiple_of(60) => format!("{hours} h"),
        7200..=172_799 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} days"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::watch::series::tests::sample;

    const MIB: u64 = 1 << 20;

    fn growing() -> Series {
        let mut series = Series::default();
        for second in 0..31 {
            series.push(sample(second, (100 + second) * MIB));
        }
        series
    }

    fn limit(limit_mib: u64, used_mib: Option<u64>) -> Limit {
        Limit {
            source: "cgroup".into(),
            limit_bytes: limit_mib * MIB,
            used_bytes: used_mib.map(|mib| mib * MIB),
        }
    }

    #[test]
    fn the_limit_is_reached_at_the_slope() {
        let outlook = outlook(&growing(), Some(&limit(200, Some(140))));
        assert_eq!(outlook.verdict.kind, Kind::Growing);
        let reach = outlook.reach.unwrap();
        assert_eq!((reach.used_bytes, reach.full_s), (140 * MIB, Some(60.0)));
        let (soonest, latest) = reach.full_between_s.unwrap();
        assert!(soonest <= 60.0 && latest.unwrap() >= 60.0);
        let marks = reach.marks.map(|mark| (mark.percent, mark.is_passed, mark.in_s));
        assert_eq!(marks, [(70, true, None), (85, false, Some(30.0)), (95, false, Some(50.0))]);
        assert_eq!(outlook.parts[0].1, Some(MIB as f64 / 2.0));
        assert_eq!(outlook.parts[3], ("swap", None));
    }

    #[test]
    fn without_growth_or_account_there_is_no_time() {
        let mut level = Series::default();
        for second in 0..31 {
            level.push(sample(second, 100 * MIB));
        }
        let reach = outlook(&level, Some(&limit(125, None))).reach.unwrap();
        assert_eq!((reach.used_bytes, reach.full_s, reach.full_between_s), (100 * MIB, None, None));
        assert!(reach.marks[0].is_passed && !reach.marks[1].is_passed && reach.marks[1].in_s.is_none());
        assert!(outlook(&level, None).reach.is_none());
        let full = outlook(&growing(), Some(&limit(100, Some(120)))).reach.unwrap();
        assert_eq!(full.full_s, Some(0.0));
        assert!(outlook(&Series::default(), Some(&limit(1, None))).reach.is_none());
    }

    #[test]
    fn sentences_and_units() {
        let text = outlook(&growing(), None).sentence();
        assert_eq!(text, "grows without a sign of an end, +3.5 GiB/h");
        let short = outlook(&Series::default(), None).sentence();
        assert_eq!(short, "not enough yet (too few samples): watch for 10 s more");
        assert_eq!(per_hour(-1024.0), "-3.5 MiB/h");
        for (seconds, text) in [
            (0.0, "0 s"),
            (0.3, "0.3 s"),
            (119.4, "119 s"),
            (200.0, "3 min 20 s"),
            (180.0, "3 min"),
            (3000.0, "50 min"),
            (7200.0, "2 h"),
            (18_600.0, "5 h 10 min"),
            (1e6, "11 days"),
            (f64::INFINITY, "11574074 days"),
        ] {
            assert_eq!(span(seconds), text, "{seconds}");
        }
        assert_eq!([1.0, 23.0, 61.0, 1000.0, 9000.0].map(rounded_up), [5.0, 30.0, 120.0, 1200.0, 10_800.0]);
    }
}
