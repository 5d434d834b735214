//! Why a site is called what it is, in a sentence.

use super::human::{count, rate, seconds};
use crate::profile::{SiteKind, SiteVerdict};

/// The evidence for a person; empty where there is nothing to say.
pub(super) fn evidence(verdict: &SiteVerdict) -> String {
    let trend = &verdict.trend;
    let mut parts = Vec::new();
    match verdict.kind {
        SiteKind::Leak if verdict.by_survivors => {
            parts.extend(
                verdict.growth_bytes_per_s.map(|growth| format!("{} hidden under churn", rate(growth))),
            );
        }
        SiteKind::Leak => {
            if let (Some(growth), Some((low, high))) = (verdict.growth_bytes_per_s, trend.evidence.interval) {
                parts.push(format!("{} ({} to {})", rate(growth), rate(low), rate(high)));
            }
            parts.push(trend.reason.phrase().to_owned());
        }
        SiteKind::Undetermined if verdict.awaits_collection => parts.push(
            "it grows, but a garbage collector frees these blocks and was not seen to run: record for longer, or make it run"
                .to_owned(),
        ),
        SiteKind::Undetermined if verdict.by_survivors => {
            let is_slowing = verdict.survival.is_some_and(|survival| survival.is_slowing);
            let phrase = match is_slowing {
                true => "it grows, and what is kept is allocated ever more rarely",
                false => "it grows, but its blocks are freed: a queue, long lifetimes, or a rate that rises",
            };
            parts.push(phrase.to_owned());
            parts.extend(more(verdict));
        }
        SiteKind::Undetermined => {
            parts.push(trend.reason.phrase().to_owned());
            parts.extend(more(verdict));
        }
        SiteKind::WarmUp | SiteKind::Sawtooth | SiteKind::Plateau => {
            parts.push(trend.reason.phrase().to_owned());
        }
    }
    if let Some(survival) = verdict.survival {
        let ages = match (survival.settled_age_ns, survival.surviving_part()) {
            (Some(age_ns), Some(part)) => format!(
                "{:.4} % of the {} older than {} were never freed",
                (part * 100.0 * 1e4).floor() / 1e4,
                count(survival.survivors.saturating_add(survival.freed_older)),
                seconds(age_ns)
            )
            .replace(".0000 %", " %"),
            _ => String::new(),
        };
        parts.extend(Some(ages).filter(|ages| !ages.is_empty()));
    }
    parts.join("; ")
}

fn more(verdict: &SiteVerdict) -> Option<String> {
    let needed_ns = (verdict.needed_s()?.clamp(1.0, 1e9) * 1e9) as u64;
    Some(format!("record for {} more", seconds(needed_ns)))
}
