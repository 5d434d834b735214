//! The flame graph of outstanding bytes, drawn by inferno.

use std::io::Write;

use inferno::flamegraph::color::{BackgroundColor, BasicPalette};
use inferno::flamegraph::{Options, Palette, TextTruncateDirection, from_lines};

use super::ExportError;
use super::fold::{diff_lines, line};
use crate::model::Lens;
use crate::profile::{Diff, Profile};
use crate::report::human::{counted, middle, percent, seconds, size};
use crate::report::{escape, who};

/// Characters of a title that fit the picture.
const TITLE_WIDTH: usize = 100;
/// Characters of a subtitle that fit the picture.
const SUBTITLE_WIDTH: usize = 150;

/// Draws the flame graph: its width is outstanding bytes, its root is at the bottom.
pub fn svg(profile: &Profile, out: impl Write) -> Result<(), ExportError> {
    let lines: Vec<String> = profile
        .drawable_sites()
        .filter(|site| site.outstanding_bytes > 0)
        .map(|site| line(profile, site))
        .collect();
    if lines.is_empty() {
        return Err(ExportError::NothingOutstanding);
    }
    let mut options = Options::default();
    options.title = title(profile);
    options.subtitle = Some(subtitle(profile));
    options.count_name = "bytes".into();
    options.name_type = "Function:".into();
    options.colors = Palette::Basic(BasicPalette::Mem);
    options.bgcolors = Some(BackgroundColor::Grey);
    options.deterministic = true;
    options.text_truncate_direction = TextTruncateDirection::Right;
    from_lines(&mut options, lines.iter().map(String::as_str), out)?;
    Ok(())
}

/// Draws the differential flame graph: its width is what is outstanding after; red grew, blue shrank. What is gone
/// has no width: exchange the two sides to see it; the picture says how much it is.
pub fn diff_svg(diff: &Diff<'_>, mut out: impl Write) -> Result<(), ExportError> {
    let lines = diff_lines(diff);
    if !diff.drawable_rows().any(|row| row.after.outstanding_bytes > 0) {
        return Err(ExportError::NothingOutstanding);
    }
    let mut options = Options::default();
    options.title = middle(&format!("Native memory not freed, compared: {}", who(diff.after)), TITLE_WIDTH);
    let when = |profile: &Profile| seconds(profile.window.elapsed_ns);
    let gone = || diff.drawable_rows().filter(|row| row.after.outstanding_bytes == 0);
    let gone_bytes = gone().fold(0u64, |sum, row| sum.saturating_add(row.before.outstanding_bytes));
    let gone = match gone_bytes {
        0 => String::new(),
        bytes => format!(
            "; gone, not drawn: {} at {}",
            size(bytes),
            counted(
                gone().filter(|row| row.before.outstanding_bytes > 0).count() as u64,
                "call site",
                "call sites"
            )
        ),
    };
    options.subtitle = Some(middle(
        &format!(
            "before: {} at {}; after: at {}; red grew, blue shrank{gone}",
            who(diff.before),
            when(diff.before),
            when(diff.after),
        ),
        SUBTITLE_WIDTH,
    ));
    options.count_name = "bytes".into();
    options.name_type = "Function:".into();
    options.deterministic = true;
    options.text_truncate_direction = TextTruncateDirection::Right;
    let mut drawn = Vec::new();
    from_lines(&mut options, lines.iter().map(String::as_str), &mut drawn)?;
    out.write_all(stronger(&String::from_utf8_lossy(&drawn)).as_bytes())?;
    Ok(())
}

/// Begin and end of the colour of a frame, as inferno writes it.
const COLOR: (&str, &str) = ("fill=\"rgb(", ")\"");

/// Makes small changes visible. inferno's colours go with the change in bytes from (250,250,250) to 100 in two of the
/// three channels, so that a tenth of the largest change looks white; with its root, every change is seen.
fn stronger(svg: &str) -> String {
    let mut parts = svg.split(COLOR.0);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(COLOR.0);
        let (color, rest) = part.split_once(COLOR.1).unwrap_or((part, ""));
        let channels: Vec<u8> = color.split(',').filter_map(|channel| channel.trim().parse().ok()).collect();
        match *channels.as_slice() {
            [255, weak, other] if weak == other => text.push_str(&format!("255,{0},{0}", faded(weak))),
            [weak, other, 255] if weak == other => text.push_str(&format!("{0},{0},255", faded(weak))),
            _ => text.push_str(color),
        }
        if color.len() < part.len() {
            text.push_str(COLOR.1);
            text.push_str(rest);
        }
    }
    text
}

/// A channel of 100 (the largest change) to 250 (none), spread to 60 to 215.
fn faded(channel: u8) -> u8 {
    let change = f64::from(250 - channel.clamp(100, 250)) / 150.0;
    (215.0 - 155.0 * change.sqrt()).round() as u8
}

/// What was measured.
fn title(profile: &Profile) -> String {
    let age = profile.filter.min_age_ns.map(|age_ns| format!(" for {}", seconds(age_ns))).unwrap_or_default();
    let what =
        if profile.shows_pages() { "Resident memory by who touched it" } else { "Native memory not freed" };
    middle(&format!("{what}{age}: {}", who(profile)), TITLE_WIDTH)
}

/// How much, for how long, how complete.
fn subtitle(profile: &Profile) -> String {
    let (totals, stacks) = (&profile.totals, profile.completeness.stacks);
    let mapped = &profile.mapped;
    let blocks = format!(
        "{} requested in {}",
        size(totals.outstanding_bytes),
        counted(totals.outstanding_count, "block", "blocks")
    );
    let mappings = format!(
        "{} mapped in {}",
        size(mapped.outstanding_bytes),
        counted(mapped.outstanding_count, "mapping", "mappings")
    );
    let resident = || {
        let pages = counted(profile.resident.outstanding_count, "page", "pages");
        format!("{} resident in {pages}", size(profile.resident.outstanding_bytes))
    };
    let amount = match profile.filter.lens {
        _ if profile.shows_pages() => resident(),
        Some(Lens::Malloc) => blocks,
        Some(Lens::Mmap) => mappings,
        Some(Lens::Faults) => resident(),
        None if mapped.outstanding_count == 0 => blocks,
        None => format!("{blocks}, {mappings}"),
    };
    let mut subtitle = format!(
        "{amount}, recorded for {}, {} of {} whole",
        seconds(profile.window.elapsed_ns),
        percent(stacks.whole, stacks.total),
        counted(stacks.total, "stack", "stacks"),
    );
    let drawn = profile.drawable_sites().count();
    let all =
        if profile.shows_pages() { profile.resident.sites } else { profile.totals.sites + mapped.sites };
    if drawn < all {
        subtitle.push_str(&format!(", largest {} only", counted(drawn as u64, "site", "sites")));
    }
    let completeness = &profile.completeness;
    if !completeness.is_finished {
        subtitle.push_str(", UNFINISHED");
    } else if !completeness.is_complete {
        let reasons: Vec<_> = completeness.incomplete_losses().map(|loss| escape(&loss.reason)).collect();
        let reasons = if reasons.is_empty() { "damaged capture".into() } else { reasons.join(", ") };
        subtitle.push_str(&format!(", INCOMPLETE: {reasons}"));
    } else {
        subtitle.push_str(", complete");
    }
    middle(&subtitle, SUBTITLE_WIDTH)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::capture::fixture::{clean, leaky, server};
    use crate::profile::Filter;
    use crate::report::tests::profile;

    #[test]
    fn the_picture_says_what_it_shows() {
        let mut out = Vec::new();
        svg(&profile(&leaky()), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("Native memory not freed: node (pid 4242)"));
        assert!(text.contains("recorded for 10.0 s, 66.7 % of 3 stacks whole, INCOMPLETE: stack-ring-full"));
        let leak = "leak_scratch(unsigned long) (10,747,904 bytes,";
        assert!(text.contains(leak), "frames carry their bytes");
        assert!(!text.contains(['\u{1b}', '\u{202e}']));
        assert!(text.contains("std::pair&lt;"), "names are escaped for XML");
    }

    #[test]
    fn the_picture_says_whose_and_what_memory_it_is() {
        let subtitle = |lens| {
            let mut out = Vec::new();
            let filter = Filter { lens, ..Filter::default() };
            svg(&Profile::new(server().capture(), filter).unwrap(), &mut out).unwrap();
            let text = String::from_utf8(out).unwrap();
            assert!(text.contains("Native memory not freed: 3 processes: nginx (2), hel\\u{202e}per"));
            assert!(text.contains("nginx (4250)"), "a root frame per process");
            let line = text.lines().find(|line| line.contains("recorded for")).unwrap().to_owned();
            (line, text.contains("[mapped: stack of an ended thread]"), text.contains("ngx_array_push"))
        };
        let (both, has_stacks, has_blocks) = subtitle(None);
        assert!(
            both.contains("1.5 MiB requested in 1,660 blocks, 21.6 MiB mapped in 6 mappings, rec"),
            "{both}"
        );
        assert!(has_stacks && has_blocks);
        let (line, has_stacks, has_blocks) = subtitle(Some(Lens::Mmap));
        assert!(!line.contains("requested") && has_stacks && !has_blocks, "{line}");
        let (line, has_stacks, has_blocks) = subtitle(Some(Lens::Malloc));
        assert!(!line.contains("mapped") && !has_stacks && has_blocks, "{line}");
    }

    #[test]
    fn small_changes_are_seen() {
        let svg = r#"<rect fill="rgb(255,235,235)"/><rect fill="rgb(100,100,255)"/><rect fill="rgb(250,250,250)"/>"#;
        let strong =
            r#"<rect fill="rgb(255,166,166)"/><rect fill="rgb(60,60,255)"/><rect fill="rgb(250,250,250)"/>"#;
        assert_eq!(stronger(svg), strong);
        for odd in ["", "fill=\"rgb(", "fill=\"rgb(1,2", "fill=\"rgb(x,y,z)\"", "a fill=\"rgb(255,9)\" b"] {
            assert_eq!(stronger(odd), odd);
        }
    }

    #[test]
    fn nothing_is_not_drawn() {
        let mut out = Vec::new();
        assert!(matches!(svg(&profile(&clean()), &mut out), Err(ExportError::NothingOutstanding)));
        assert!(out.is_empty());
    }
}
