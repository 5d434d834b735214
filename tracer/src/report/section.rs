//! Processes, allocators, groups, and what belongs to runtimes: small tables around the sites.

use super::escape;
use super::grid::{Column, lines};
use super::head::{line, wrapped};
use super::human::{count, counted, middle, percent, size};
use super::table::{Paint, growth};
use crate::model::{Lens, LiveSize, MemoryClass};
use crate::profile::{
    By, Group, GroupKey, Outstanding, ProcessSummary, Profile, SetAside, Totals, base_name,
};

/// Rows of one of these tables.
const ROWS_SHOWN: usize = 12;
/// Least width of a name.
const NAME_WIDTH: usize = 8;
/// Least width of the name of a group.
const GROUP_WIDTH: usize = 26;
/// Title of what is set aside.
const SET_ASIDE: &str = "Memory of the runtime and of allocators (not counted as leaks)";
/// Title of the pages of runtimes.
const RUNTIME_PAGES: &str = "Resident pages of the runtime (not counted as leaks)";

/// Whether sites must say which allocator they called.
pub(super) fn has_several_allocators(profile: &Profile) -> bool {
    profile.allocators.iter().filter(|row| row.counters.allocated_count > 0).count() > 1
}

/// Whether sites must say whose they are.
pub(super) fn has_several_processes(profile: &Profile) -> bool {
    profile.processes.len() > 1
}

/// The processes, where there are several: those that hold most, in the order in which they began.
pub(super) fn processes(profile: &Profile, width: usize, paint: Paint) -> String {
    if !has_several_processes(profile) {
        return String::new();
    }
    let held =
        |row: &ProcessSummary| row.unfreed.bytes.saturating_add(row.mapped.bytes).max(row.resident.bytes);
    let mut rows: Vec<&ProcessSummary> = profile.processes.iter().collect();
    rows.sort_by_key(|row| (std::cmp::Reverse(held(row)), row.process.id));
    rows.truncate(ROWS_SHOWN);
    rows.sort_by_key(|row| row.process.id);
    let column = |cell: &dyn Fn(&ProcessSummary) -> String| rows.iter().map(|row| cell(row)).collect();
    let inner = |row: &ProcessSummary| row.process.target.inner_tgid;
    let mut columns = vec![Column::number("pid", column(&|row| row.process.target.tgid.to_string()))];
    if rows.iter().any(|row| inner(row).is_some()) {
        let cells = column(&|row| inner(row).map(|tgid| tgid.to_string()).unwrap_or_default());
        columns.push(Column::number("inside", cells).dispensable(3));
    }
    columns.push(Column::name(
        "name",
        NAME_WIDTH,
        column(&|row| escape(&row.process.target.comm).into_owned()),
    ));
    columns.push(Column::word("state", column(&|row| state(row).to_owned())).dispensable(1));
    if profile.has_lens(Lens::Malloc) {
        columns.push(Column::number("unfreed", column(&|row| size(row.unfreed.bytes))));
        columns.push(Column::number("blocks", column(&|row| count(row.unfreed.count))).dispensable(4));
    }
    if profile.processes.iter().any(|row| row.mapped.count > 0) {
        columns.push(Column::number("mapped", column(&|row| size(row.mapped.bytes))));
    }
    if profile.has_lens(Lens::Faults) {
        columns.push(Column::number("resident", column(&|row| size(row.resident.bytes))));
    }
    let rss = |row: &ProcessSummary| {
        row.rss.map_or_else(
            || "not read".into(),
            |rss| format!("{} → {}", size(rss.start_bytes), size(rss.end_bytes)),
        )
    };
    columns.push(Column::word("RSS", column(&rss)).dispensable(2));
    let more = more(profile.processes.len() - rows.len(), "more process", "more processes");
    section("processes", columns, more, width, paint)
}

/// Whether it still ran at the end of the recording.
pub(super) fn state(row: &ProcessSummary) -> &'static str {
    row.ended.map_or("running", |ended| ended.how.name())
}

/// The allocators that were called, where there are several.
pub(super) fn allocators(profile: &Profile, width: usize, paint: Paint) -> String {
    if !has_several_allocators(profile) || profile.filter.by == By::Allocator {
        return String::new();
    }
    let mut rows: Vec<_> = profile.allocators.iter().filter(|row| row.counters.allocated_count > 0).collect();
    rows.sort_by_key(|row| (std::cmp::Reverse(row.unfreed.bytes), row.allocator.id));
    let hidden = rows.len().saturating_sub(ROWS_SHOWN);
    rows.truncate(ROWS_SHOWN);
    let text = |cell: &dyn Fn(&crate::model::Allocator) -> &str| {
        rows.iter().map(|row| escape(cell(&row.allocator)).into_owned()).collect::<Vec<_>>()
    };
    let mut columns = vec![Column::name("name", NAME_WIDTH, text(&|allocator| &allocator.name))];
    if rows.iter().any(|row| !row.allocator.prefix.is_empty()) {
        columns.push(Column::name("prefix", 4, text(&|allocator| &allocator.prefix)).dispensable(3));
    }
    columns.extend([
        Column::number("unfreed", rows.iter().map(|row| size(row.unfreed.bytes)).collect()),
        Column::number("blocks", rows.iter().map(|row| count(row.unfreed.count)).collect()).dispensable(2),
        Column::number("allocated", rows.iter().map(|row| size(row.counters.allocated_bytes)).collect())
            .dispensable(4),
        Column::name("file", NAME_WIDTH, text(&|allocator| base_name(&allocator.path))).dispensable(1),
    ]);
    section("allocators", columns, more(hidden, "more allocator", "more allocators"), width, paint)
}

/// What allocators and runtimes have, where they have something: mappings, then resident pages.
pub(super) fn set_aside(profile: &Profile, width: usize, paint: Paint) -> String {
    let one = |pages: bool, title| set_aside_of(profile, pages, title, width, paint);
    one(false, SET_ASIDE) + &one(true, RUNTIME_PAGES)
}

fn set_aside_of(profile: &Profile, pages: bool, title: &str, width: usize, paint: Paint) -> String {
    let is_shown =
        |row: &&SetAside| row.outstanding != Outstanding::default() && (row.lens == Lens::Faults) == pages;
    let mut rows: Vec<_> = profile.set_aside.iter().filter(is_shown).collect();
    if rows.is_empty() {
        return String::new();
    }
    let hidden = rows.len().saturating_sub(ROWS_SHOWN);
    rows.truncate(ROWS_SHOWN);
    let mappings = |row: &SetAside| match (row.lens, row.class, row.outstanding.count) {
        (Lens::Faults, _, pages) => counted(pages, "page", "pages"),
        (_, MemoryClass::BrkHeap, _) => String::new(),
        (_, _, mappings) => counted(mappings, "mapping", "mappings"),
    };
    let column = |cell: &dyn Fn(&SetAside) -> String| rows.iter().map(|row| cell(row)).collect();
    let columns = vec![
        Column::number("", column(&|row| size(row.outstanding.bytes))),
        Column::word("", column(&mappings)).dispensable(2),
        Column::word("", column(&|row| growth(row.growth_bytes_per_s))).dispensable(1),
        Column::name("", 2 * NAME_WIDTH, column(&|row| what(profile, row))),
    ];
    section(title, columns, more(hidden, "more kind", "more kinds"), width, paint)
}

/// Class, allocator, and what else is known.
fn what(profile: &Profile, row: &SetAside) -> String {
    let allocator = row.allocator.and_then(|id| profile.allocator(id)).map(|row| row.allocator.name.as_str());
    let label = row.label.as_deref();
    let allocator = allocator.filter(|name| !label.is_some_and(|label| label.contains(name)));
    described(row.class, allocator.into_iter().chain(label))
}

/// A class and more about it, safe to print.
pub(super) fn described<'a>(class: MemoryClass, more: impl Iterator<Item = &'a str>) -> String {
    let parts: Vec<_> = [class.phrase()].into_iter().chain(more).collect();
    escape(&parts.join(", ")).into_owned()
}

/// The groups, the largest first.
pub(super) fn groups(profile: &Profile, width: usize, paint: Paint) -> String {
    let title = match profile.filter.by {
        By::Site => return String::new(),
        By::Process => "by process",
        By::Executable => "by executable",
        By::Allocator => "by allocator",
        By::Class => "by class of memory",
        By::Function => "by function that asked for it",
        By::Object => "by file of the function that asked for it",
        By::Thread => "by start routine of the thread (not by thread: many run the same routine)",
        By::SizeClass => "by size of the blocks, as requested",
    };
    let rows: Vec<&Group> = profile.groups.iter().filter(|group| group.outstanding().1 > 0).collect();
    if rows.is_empty() {
        return String::new();
    }
    let all = match profile.outstanding_bytes() {
        0 => profile.resident.outstanding_bytes,
        all => all,
    };
    let column = |cell: &dyn Fn(&Group) -> String| rows.iter().map(|row| cell(row)).collect::<Vec<_>>();
    let mut columns = vec![Column::number("", column(&|row| format!("{}.", row.rank)))];
    if rows.iter().any(|row| row.unfreed.outstanding_count > 0) {
        let blocks = |totals: &Totals| count(totals.outstanding_count);
        columns.push(Column::number("unfreed", column(&|row| size(row.unfreed.outstanding_bytes))));
        columns.push(Column::number("blocks", column(&|row| blocks(&row.unfreed))).dispensable(3));
    }
    if rows.iter().any(|row| row.mapped.outstanding_count > 0) {
        columns.push(Column::number("mapped", column(&|row| size(row.mapped.outstanding_bytes))));
    }
    if rows.iter().any(|row| row.resident.outstanding_count > 0) {
        columns.push(Column::number("resident", column(&|row| size(row.resident.outstanding_bytes))));
    }
    columns.push(Column::number("share", column(&|row| percent(row.outstanding().0, all))).dispensable(2));
    // How large the blocks are is known at the end only.
    if profile.filter.by != By::SizeClass {
        columns.push(Column::word("growth", column(&|row| growth(row.growth_bytes_per_s))).dispensable(1));
    }
    columns.push(Column::name("", GROUP_WIDTH, column(&|row| group_name(profile, &row.key))));
    let hidden = profile.groups_outstanding.saturating_sub(rows.len());
    let mut text = section(title, columns, more(hidden, "more group", "more groups"), width, paint);
    if let Some(why) = profile.why_no_sizes() {
        line(&mut text, &wrapped(&format!("size not known: {why}"), width, "  ", |part| paint.dim(part)));
        text.push('\n');
    }
    text
}

/// What the sites of a group have in common, for people.
pub(super) fn group_name(profile: &Profile, key: &GroupKey) -> String {
    match key {
        GroupKey::Process(id) => process_name(profile, &[*id]),
        GroupKey::Executable(name) | GroupKey::Allocator(name) => escape(name).into_owned(),
        GroupKey::NoAllocator => "allocator not known".into(),
        GroupKey::Mapped => "mapped without an allocator".into(),
        GroupKey::Class(class) => class.phrase().into(),
        GroupKey::Function { name, object } | GroupKey::Thread { name, object } => {
            let file = object.as_deref().map(base_name);
            // A function without a name has the file in its place.
            let file = file.filter(|file| !name.starts_with(&format!("{file}+")));
            let parts: Vec<&str> = [name.as_str()].into_iter().chain(file).collect();
            escape(&parts.join("  ")).into_owned()
        }
        GroupKey::Object(path) => escape(path).into_owned(),
        GroupKey::NoObject(kind) => format!("{kind} code, in no file"),
        GroupKey::NoThread => "not known: the stack does not reach the start".into(),
        GroupKey::SizeClass(bucket) => match LiveSize::sizes(*bucket) {
            (least, largest) if least == largest => size(least),
            // To the end of the class: the next power of two is not in it.
            (least, largest) => format!("{} to {}", size(least), below(largest)),
        },
        GroupKey::NoSize => "size not known".into(),
        GroupKey::Lost => "not known: stack lost".into(),
    }
}

/// The largest size of a class: `127 B`, and `<2.0 KiB` where bytes are not shown.
fn below(largest: u64) -> String {
    if largest < 1024 { size(largest) } else { format!("<{}", size(largest.saturating_add(1))) }
}

/// Name and id of one process, or how many there are; safe to print.
pub(super) fn process_name(profile: &Profile, ids: &[crate::model::ProcessId]) -> String {
    let first = ids.first().and_then(|id| profile.process(*id));
    let Some(target) = first.map(|row| &row.process.target) else { return "process not known".into() };
    let comm = escape(&target.comm);
    match ids.len() {
        1 => format!("{comm} (pid {})", target.tgid),
        several => format!("{comm} ({several} processes)"),
    }
}

pub(super) fn more(hidden: usize, one: &str, many: &str) -> Option<String> {
    (hidden > 0).then(|| format!("… and {}", counted(hidden as u64, one, many)))
}

pub(super) fn section(
    title: &str,
    columns: Vec<Column>,
    more: Option<String>,
    width: usize,
    paint: Paint,
) -> String {
    let has_titles = columns.iter().any(|column| !column.title.is_empty());
    let mut text = format!("{}\n", paint.bold(&middle(title, width)));
    for (index, line) in lines(columns, 2, width).iter().enumerate() {
        let line = if has_titles && index == 0 { paint.dim(line) } else { line.clone() };
        text.push_str(&line);
        text.push('\n');
    }
    if let Some(more) = more {
        text.push_str(&format!("  {}\n", paint.dim(&more)));
    }
    text.push('\n');
    text
}
