//! Sizes, durations and counts, as they are typed: with a unit, within a range.

use std::fmt::Display;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::time::Duration;

use tracer_common::sampling::{MAX_INTERVAL_BYTES, MIN_INTERVAL_BYTES};

use crate::profile::{Rate, RateUnit};

/// Units of a size and their bytes.
const SIZE_UNITS: [(&str, u64); 8] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// A size in bytes.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|character: char| character.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err("a size is a number and a unit, such as `64KiB` or `1MiB`".into());
    }
    let unit = unit.trim_start();
    if unit.is_empty() {
        return Err(format!("without a unit; write `{number}B`, `{number}KiB` or `{number}MiB`"));
    }
    let Some((_, factor)) = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) else {
        let known: Vec<_> = SIZE_UNITS.iter().map(|(name, _)| *name).collect();
        return Err(format!("unknown unit; use one of {}, with a whole number", known.join(", ")));
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*factor))
        .ok_or_else(|| "more bytes than a 64-bit number can hold".into())
}

/// A rate of growth.
pub(super) fn parse_rate(text: &str) -> Result<Rate, String> {
    let Some((size, unit)) = text.split_once('/') else {
        return Err("a rate is a size and a time, such as `1MiB/min`, `64KiB/s` or `10MB/h`".into());
    };
    let bytes = parse_size(size.trim_end())?;
    let unit = RateUnit::ALL.into_iter().find(|known| known.name() == unit.trim_start());
    let unit = unit.ok_or("unknown time; use one of `s`, `min` and `h`, as in `1MiB/min`")?;
    Ok(Rate { bytes, unit })
}

/// A share in percent, a whole number.
pub(super) fn parse_percent_in(text: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
    let number = text.strip_suffix('%').map(str::trim_end).and_then(|number| number.parse().ok());
    let number = number.ok_or("a share is a whole number and `%`, such as `25%`")?;
    in_range(number, &range, format!("{}%", range.start()), format!("{}%", range.end()))
}

/// A duration.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("without a unit; write `{text}s` or `{text}m`"));
    }
    humantime::parse_duration(text)
        .map_err(|_| "a duration is a number and a unit, such as `500ms`, `30s`, `5m` or `1h30m`".into())
}

/// A duration within a range.
pub(super) fn parse_duration_in(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    let (least, most) = (range.start(), range.end());
    in_range(duration, &range, humantime::format_duration(*least), humantime::format_duration(*most))
}

/// A whole number within a range.
pub(super) fn parse_count_in(text: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
    let number = text
        .parse()
        .map_err(|_| format!("not a whole number; write one from {} to {}", range.start(), range.end()))?;
    in_range(number, &range, range.start(), range.end())
}

/// A power of two bytes within a range.
pub(super) fn parse_power_of_two_size_in(text: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
    let bytes = parse_size(text)?;
    let (least, most) = (binary_size(*range.start()), binary_size(*range.end()));
    let wide = u64::from(*range.start())..=u64::from(*range.end());
    let bytes = in_range(bytes, &wide, &least, &most)?;
    u32::try_from(bytes).ok().filter(|bytes| bytes.is_power_of_two()).ok_or_else(|| {
        format!("not a power of two; the next one is `{}`", binary_size((bytes as u32).next_power_of_two()))
    })
}

/// Mean bytes from one sampled allocation to the next.
pub(super) fn parse_sample_interval(text: &str) -> Result<NonZeroU64, String> {
    let range = MIN_INTERVAL_BYTES..=MAX_INTERVAL_BYTES;
    let bytes = in_range(parse_size(text)?, &range, "4KiB", "1GiB")?;
    NonZeroU64::new(bytes).ok_or_else(|| "it is zero".to_owned())
}

fn binary_size(bytes: u32) -> String {
    if bytes >= 1 << 20 { format!("{}MiB", bytes >> 20) } else { format!("{}KiB", bytes >> 10) }
}

fn in_range<T: PartialOrd>(
    value: T,
    range: &RangeInclusive<T>,
    least: impl Display,
    most: impl Display,
) -> Result<T, String> {
    if range.contains(&value) {
        Ok(value)
    } else {
        Err(format!("out of range; choose from {least} to {most}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("0B", 0),
            ("64KiB", 65_536),
            ("64kib", 65_536),
            ("1 MiB", 1 << 20),
            ("3GB", 3_000_000_000),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, reason) in [
            ("64", "`64KiB`"),
            ("", "a number and a unit"),
            ("KiB", "a number and a unit"),
            ("-1KiB", "a number and a unit"),
            ("1.5MiB", "unknown unit"),
            ("1K", "unknown unit"),
            ("99999999999TiB", "64-bit"),
            ("99999999999999999999B", "64-bit"),
        ] {
            assert!(parse_size(text).is_err_and(|error| error.contains(reason)), "{text}");
        }
    }

    #[test]
    fn rates_are_sizes_over_times() {
        for (text, bytes, unit) in [
            ("1MiB/min", 1 << 20, RateUnit::Minute),
            ("64KiB/s", 65_536, RateUnit::Second),
            ("10MB/h", 10_000_000, RateUnit::Hour),
            ("0B/s", 0, RateUnit::Second),
            ("5 kib / min", 5120, RateUnit::Minute),
        ] {
            assert_eq!(parse_rate(text), Ok(Rate { bytes, unit }), "{text}");
        }
        for (text, reason) in [
            ("1MiB", "a size and a time"),
            ("", "a size and a time"),
            ("1/min", "`1KiB`"),
            ("MiB/min", "a number and a unit"),
            ("1MiB/m", "`min`"),
            ("1MiB/", "`min`"),
            ("1MiB/min/s", "`min`"),
            ("-1MiB/s", "a number and a unit"),
            ("99999999999TiB/s", "64-bit"),
        ] {
            assert!(parse_rate(text).is_err_and(|error| error.contains(reason)), "{text}");
        }
        assert_eq!(Rate { bytes: 60, unit: RateUnit::Minute }.bytes_per_s().to_bits(), 1.0f64.to_bits());
        assert_eq!(Rate { bytes: 7200, unit: RateUnit::Hour }.bytes_per_s().to_bits(), 2.0f64.to_bits());
    }

    #[test]
    fn shares_are_in_percent() {
        assert_eq!(parse_percent_in("25%", 0..=1000), Ok(25));
        assert_eq!(parse_percent_in("0 %", 0..=1000), Ok(0));
        for (text, reason) in
            [("25", "`25%`"), ("%", "`25%`"), ("2.5%", "`25%`"), ("1001%", "from 0% to 1000%")]
        {
            assert!(parse_percent_in(text, 0..=1000).is_err_and(|error| error.contains(reason)), "{text}");
        }
    }

    #[test]
    fn durations_have_units_and_ranges() {
        let range = Duration::from_secs(1)..=Duration::from_secs(3600);
        for (text, seconds) in [("1s", 1), ("5m", 300), ("1h", 3600), ("1m 30s", 90)] {
            assert_eq!(parse_duration_in(text, range.clone()), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for (text, reason) in [
            ("30", "`30s`"),
            ("0s", "from 1s to 1h"),
            ("999ms", "from 1s to 1h"),
            ("2h", "from 1s to 1h"),
            ("", "a number and a unit"),
            ("-1s", "a number and a unit"),
            ("soon", "a number and a unit"),
            ("99999999999999999999s", "a number and a unit"),
        ] {
            assert!(
                parse_duration_in(text, range.clone()).is_err_and(|error| error.contains(reason)),
                "{text}"
            );
        }
    }

    #[test]
    fn counts_and_rings_have_ranges() {
        assert_eq!(parse_count_in("10", 1..=10), Ok(10));
        assert!(parse_count_in("11", 1..=10).is_err_and(|error| error.contains("from 1 to 10")));
        assert!(parse_count_in("many", 1..=10).is_err_and(|error| error.contains("whole number")));
        let ring = 64 << 10..=256 << 20;
        assert_eq!(parse_power_of_two_size_in("1MiB", ring.clone()), Ok(1 << 20));
        for (text, reason) in [("3MiB", "`4MiB`"), ("4KiB", "from 64KiB to 256MiB"), ("8GiB", "from 64KiB")] {
            assert!(
                parse_power_of_two_size_in(text, ring.clone()).is_err_and(|e| e.contains(reason)),
                "{text}"
            );
        }
    }
}
