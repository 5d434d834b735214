//! Numbers and names for people: units, signs, widths.

use humansize::{BINARY, format_size};

/// Below this growth per second, the growth per hour is shown.
const SLOW_BYTES_PER_S: f64 = 1024.0;
const SECONDS_PER_HOUR: f64 = 3600.0;
const ELLIPSIS: char = '…';

/// A size with a binary unit.
pub(crate) fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    format_size(bytes, BINARY.decimal_places(1).decimal_zeroes(1))
}

/// Growth with its sign, per second or, where that would say nothing, per hour.
pub(crate) fn rate(bytes_per_s: f64) -> String {
    let (amount, unit) = if bytes_per_s.abs() < SLOW_BYTES_PER_S {
        (bytes_per_s * SECONDS_PER_HOUR, "h")
    } else {
        (bytes_per_s, "s")
    };
    // Sizes are below 2^64, and a cast of a float saturates.
    let bytes = amount.abs().round() as u64;
    match (bytes, amount < 0.0) {
        (0, _) => "no growth".into(),
        (_, true) => format!("-{}/{unit}", size(bytes)),
        (_, false) => format!("+{}/{unit}", size(bytes)),
    }
}

/// A count with separators.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A count with its noun.
pub(crate) fn counted(value: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(value), if value == 1 { one } else { many })
}

/// A share in percent; nothing of nothing is all of it. Only what is all is shown as 100 %.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if part >= whole {
        return "100 %".into();
    }
    let share = (part as f64 / whole as f64 * 100.0).min(99.9);
    if share < 0.05 && part > 0 { "<0.1 %".into() } else { format!("{share:.1} %") }
}

/// Seconds of a duration, for prose.
pub(crate) fn seconds(ns: u64) -> String {
    let seconds = ns / 100_000_000;
    let (whole, tenth) = (seconds / 10, seconds % 10);
    match whole {
        0..120 => format!("{whole}.{tenth} s"),
        120..7200 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

/// Cuts a string in its middle to at most `width` characters.
pub(crate) fn middle(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    let head = kept.div_ceil(2);
    let tail = kept - head;
    text.chars().take(head).chain([ELLIPSIS]).chain(text.chars().skip(length - tail)).collect()
}

/// Shortens a function name to `width` characters: first template arguments, innermost first, then
/// parameters, then the middle.
pub(crate) fn function(name: &str, width: usize) -> String {
    let fits = |name: &str| name.chars().count() <= width;
    if fits(name) {
        return name.to_owned();
    }
    let mut shorter = name.to_owned();
    for depth in (1..=nesting(name)).rev() {
        shorter = fold(name, '<', '>', depth);
        if fits(&shorter) {
            return shorter;
        }
    }
    middle(&fold(&shorter, '(', ')', 1), width)
}

/// How deep angle brackets nest; 0 where they are no brackets (`operator<<`, `->`) or absurdly deep.
fn nesting(name: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for character in name.chars() {
        match character {
            '<' => depth += 1,
            '>' if depth == 0 => return 0,
            '>' => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if depth > 0 || deepest > 64 { 0 } else { deepest }
}

/// Replaces the insides of brackets from nesting `depth` on.
fn fold(name: &str, open: char, close: char, depth: usize) -> String {
    let mut folded = String::with_capacity(name.len());
    let mut level = 0usize;
    for character in name.chars() {
        if character == open {
            level += 1;
            if level == depth {
                folded.push(open);
                folded.push(ELLIPSIS);
                continue;
            }
        }
        if level < depth || (character == close && level == depth) {
            folded.push(character);
        }
        if character == close {
            level = level.saturating_sub(1);
        }
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!((size(0), size(1023), size(1024)), ("0 B".into(), "1023 B".into(), "1.0 KiB".into()));
        assert_eq!((size(13_893_632), size(3 << 40)), ("13.2 MiB".into(), "3.0 TiB".into()));
        assert_eq!(
            (count(7), count(1234), count(1_234_567)),
            ("7".into(), "1,234".into(), "1,234,567".into())
        );
        assert_eq!(rate(1_048_576.0), "+1.0 MiB/s");
        assert_eq!(rate(-2048.0), "-2.0 KiB/s");
        assert_eq!(rate(100.0), "+351.6 KiB/h");
        assert_eq!((rate(0.0), rate(-0.0)), ("no growth".into(), "no growth".into()));
        assert_eq!(rate(f64::MAX), format!("+{}/s", size(u64::MAX)));
        assert_eq!((percent(999, 1000), percent(99_999, 100_000)), ("99.9 %".into(), "99.9 %".into()));
        assert_eq!(
            (percent(1, 1), percent(0, 0), percent(1, 100_000)),
            ("100 %".into(), "100 %".into(), "<0.1 %".into())
        );
        assert_eq!((seconds(9_999_999_999), seconds(150_000_000_000)), ("9.9 s".into(), "2 min 30 s".into()));
        assert_eq!(seconds(7_260_000_000_000), "2 h 1 min");
    }

    #[test]
    fn long_names_lose_their_insides_first() {
        let name = "std::map<std::string, std::vector<int, std::allocator<int> > >::emplace(std::string const&, int)";
        assert_eq!(function(name, 200), name);
        assert_eq!(
            function(name, 90),
            "std::map<std::string, std::vector<int, std::allocator<…> > >::emplace(std::string const&, int)"
                .replace("std::vector<int, std::allocator<…> >", "std::vector<…>")
        );
        assert_eq!(function(name, 45), "std::map<…>::emplace(std::string const&, int)");
        assert_eq!(function(name, 30), "std::map<…>::emplace(…)");
        assert_eq!(function(name, 9), "std:…e(…)");
        assert_eq!(function("operator<<(std::ostream&, int)", 20), "operator<<(…)");
    }

    #[test]
    fn any_width_holds() {
        for name in ["", "<<<<<<<<<<<<", ">>>(", "((((((a", "a<b>(c<d>)<e", "日本語日本語日本語"] {
            for width in 0..15 {
                assert!(function(name, width).chars().count() <= width.max(1), "{name} {width}");
            }
        }
    }
}
