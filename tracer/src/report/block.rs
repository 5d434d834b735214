//! One site of the table: its numbers, the function that asked for the memory, and who called it.

use super::escape;
use super::estimate::{error_of_bytes, error_of_count};
use super::evidence::evidence;
use super::human::{counted, function, middle, percent, size};
use super::section::{described, has_several_allocators, has_several_processes, process_name};
use super::table::{Paint, growth};
use crate::model::Lens;
use crate::profile::{Profile, Site, SiteFrame, SiteKind, base_name};

/// Callers shown of one site, a recursion as one; of more, the inner and the outer ones.
const CALLERS_SHOWN: usize = 8;
/// Of these, outer ones.
const OUTER_CALLERS: usize = 2;

/// Frames, counted from the root, that all these sites share and that tell none of them from another.
/// Stacks that break off share no root and are left out.
pub(super) fn shared_frames(profile: &Profile, sites: &[&Site]) -> usize {
    let mut stacks = sites.iter().filter(|site| site.end.is_whole()).map(|site| {
        let lines: Vec<_> = profile.stack(site).collect();
        let room = lines.len().saturating_sub(site.culprit + 1);
        (lines, room)
    });
    let Some((first, room)) = stacks.next() else { return 0 };
    let (mut shared, mut others) = (room, 0);
    for (lines, room) in stacks {
        let same = first.iter().rev().zip(lines.iter().rev()).take_while(|(a, b)| is_same(a, b)).count();
        shared = shared.min(same).min(room);
        others += 1;
    }
    if others == 0 { 0 } else { shared }
}

fn is_same(a: &SiteFrame<'_>, b: &SiteFrame<'_>) -> bool {
    let object = |line: &SiteFrame<'_>| line.object.map(|object| object.path.clone());
    a.location == b.location && object(a) == object(b) && a.label() == b.label()
}

/// The lines of one site.
pub(super) fn blocks(profile: &Profile, site: &Site, shared: usize, width: usize, paint: Paint) -> String {
    // What is the same of all is said once, in the head.
    let verdict = site.verdict.as_ref().filter(|verdict| !verdict.is_too_short());
    let all = match site.lens {
        Lens::Faults => profile.resident.outstanding_bytes,
        Lens::Malloc | Lens::Mmap => profile.outstanding_bytes(),
    };
    let share = percent(site.outstanding_bytes, all);
    // Of pages everything is resident.
    let resident = match site.resident_bytes {
        Some(bytes) if site.lens != Lens::Faults => format!(", {} resident", size(bytes)),
        _ => String::new(),
    };
    let numbers = format!(
        "{:>3}. {:>10}{}  {:>6}  {}{}{resident}, {}{}",
        site.rank,
        size(site.outstanding_bytes),
        error_of_bytes(site.variance.as_ref()),
        share,
        match site.lens {
            Lens::Malloc => counted(site.outstanding_count, "block", "blocks"),
            Lens::Mmap => counted(site.outstanding_count, "mapping", "mappings"),
            Lens::Faults => counted(site.outstanding_count, "page", "pages"),
        },
        error_of_count(site.variance.as_ref()),
        growth(site.growth_bytes_per_s),
        verdict.map_or_else(String::new, |verdict| format!(", {}", verdict.kind.name())),
    );
    let numbers = middle(&numbers, width);
    let is_leak = verdict.is_some_and(|verdict| verdict.kind == SiteKind::Leak);
    let mut lines = vec![if is_leak { paint.warning(&numbers) } else { paint.bold(&numbers) }];
    let evidence = verdict.map(evidence).unwrap_or_default();
    if !evidence.is_empty() {
        lines.push(format!("     {}", paint.dim(&middle(&evidence, width.saturating_sub(5)))));
    }
    let (context, room) = (context(profile, site), width.saturating_sub(5));
    let in_one = context.join(" · ");
    let context = if in_one.chars().count() <= room { vec![in_one] } else { context };
    let context = context.iter().filter(|part| !part.is_empty());
    lines.extend(context.map(|part| format!("     {}", paint.dim(&middle(part, room)))));
    lines.extend(stack(profile, site, shared, width, paint));
    joined(&lines)
}

/// The lines that say who asked for the memory.
pub(super) fn stack(
    profile: &Profile,
    site: &Site,
    shared: usize,
    width: usize,
    paint: Paint,
) -> Vec<String> {
    let mut lines = Vec::new();
    let stack: Vec<_> = profile.stack(site).collect();
    if site.is_lost {
        let reason = if site.lost_by.is_empty() { "reason unknown".into() } else { site.lost_by.join(", ") };
        lines.push(format!("     {}", paint.warning(&format!("stack lost: {reason}"))));
        return lines;
    }
    match stack.get(site.culprit) {
        Some(culprit) => lines.push(named(culprit, "     ", width, |name| paint.culprit(name), paint)),
        None => lines.push(format!("     {}", paint.warning(&format!("no stack: {}", site.end.name())))),
    }
    let via: Vec<_> =
        stack.iter().take(site.culprit).rev().map(|line| function(&escape(&line.label()), 40)).collect();
    if !via.is_empty() {
        let via = middle(&format!("via {}", via.join(" → ")), width.saturating_sub(7));
        lines.push(format!("       {}", paint.dim(&via)));
    }
    let callers = stack.get(site.culprit + 1..).unwrap_or_default();
    let shared = if site.end.is_whole() { shared.min(callers.len()) } else { 0 };
    let (own, common) = callers.split_at(callers.len() - shared);
    let groups: Vec<&[SiteFrame<'_>]> = own.chunk_by(is_same).collect();
    let inner = CALLERS_SHOWN - OUTER_CALLERS;
    let hidden = inner..groups.len().saturating_sub(OUTER_CALLERS);
    for (index, group) in groups.iter().enumerate() {
        if groups.len() <= CALLERS_SHOWN || !hidden.contains(&index) {
            lines.extend(group.first().map(|caller| named(caller, "       ← ", width, str::to_owned, paint)));
            if group.len() > 1 {
                lines.push(paint.dim(&format!("         … the same {} times in all", group.len())));
            }
        } else if index == inner {
            let frames =
                groups.get(hidden.clone()).unwrap_or_default().iter().map(|group| group.len()).sum::<usize>();
            lines.push(
                paint.dim(&format!(
                    "       … {}",
                    counted(frames as u64, "frame left out", "frames left out")
                )),
            );
        }
    }
    if !common.is_empty() {
        let frames = counted(common.len() as u64, "frame", "frames");
        lines.push(paint.dim(&format!("       … {frames} shared by all whole stacks")));
    }
    if !site.end.is_whole() && !stack.is_empty() {
        let reason = format!("the stack breaks off here: {}", site.end.name());
        lines.push(format!("       {}", paint.warning(&reason)));
    }
    lines
}

/// What a mapping is for; where there are several, the allocator and the process. Safe to print.
fn context(profile: &Profile, site: &Site) -> Vec<String> {
    let mut parts = Vec::new();
    let what = || described(site.class, site.label.as_deref().into_iter());
    match site.lens {
        Lens::Malloc => {}
        Lens::Mmap => parts.push(format!("mapped: {}", what())),
        Lens::Faults => parts.push(format!("in: {}", what())),
    }
    let allocator = site.allocator.and_then(|id| profile.allocator(id));
    if let Some(row) = allocator.filter(|_| has_several_allocators(profile)) {
        parts.push(escape(&row.allocator.name).into_owned());
    }
    if has_several_processes(profile) && !site.is_lost {
        parts.push(process_name(profile, &site.processes));
    }
    parts
}

pub(super) fn joined(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Function first, then file and line, then the object, within `width`.
fn named(
    line: &SiteFrame<'_>,
    indent: &str,
    width: usize,
    paint_name: impl Fn(&str) -> String,
    paint: Paint,
) -> String {
    let file = line.location.file.as_deref().map(|file| match line.location.line {
        Some(number) => format!("{}:{number}", base_name(file)),
        None => base_name(file).to_owned(),
    });
    // A nameless frame has its object in its label, an inlined one shares it with its caller.
    let object = line
        .object
        .filter(|_| line.location.function.is_some() && !line.location.inlined)
        .map(|object| base_name(&object.path).to_owned());
    let inlined = line.location.inlined.then(|| "inlined".to_owned());
    let place: Vec<_> = file.into_iter().chain(object).chain(inlined).collect();
    let place = middle(&escape(&place.join("  ")), width / 2);
    let room = width.saturating_sub(indent.chars().count() + place.chars().count() + 2).max(12);
    let name = function(&escape(&line.label()), room);
    format!("{indent}{}  {}", paint_name(&name), paint.dim(&place)).trim_end().to_owned()
}
