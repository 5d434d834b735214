//! What changed between two captures, or between two moments of one.
//!
//! Sites are matched in three passes, each on what the one before left over: the same process and the same code,
//! the same executable and the same code, the same executable and the same function names. The first is for two
//! moments of one recording, the second for a restart, the third for a rebuild.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use super::{Profile, Site, SiteFrame, base_name};
use crate::model::{FrameKind, Lens, MemoryClass, StackEnd};

/// How the two sides of a row were found to be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Match {
    /// The same code, by build ids and offsets.
    Exact,
    /// The same function names, in files that differ.
    Names,
    /// Only one side has it.
    Alone,
}

impl Match {
    /// The name in reports for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Names => "names",
            Self::Alone => "alone",
        }
    }
}

/// Sites of one capture that are one row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Side {
    /// Bytes that were not freed.
    pub outstanding_bytes: u64,
    /// Blocks, mappings or pages.
    pub outstanding_count: u64,
    /// `None` where it is not known of one of them.
    pub growth_bytes_per_s: Option<f64>,
    /// Indices into [`Profile::sites`]; several only for a match by names. Empty: not seen there.
    pub sites: Vec<usize>,
}

/// One line of the comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct DiffRow {
    /// From 1, in order.
    pub rank: usize,
    /// How its sides were matched.
    pub matched: Match,
    /// How memory was observed.
    pub lens: Lens,
    /// Before.
    pub before: Side,
    /// After.
    pub after: Side,
}

impl DiffRow {
    /// Bytes that came; negative: went.
    pub fn delta_bytes(&self) -> i64 {
        delta(self.before.outstanding_bytes, self.after.outstanding_bytes)
    }

    /// Blocks, mappings or pages that came; negative: went.
    pub fn delta_count(&self) -> i64 {
        delta(self.before.outstanding_count, self.after.outstanding_count)
    }
}

fn delta(before: u64, after: u64) -> i64 {
    let difference = i128::from(after) - i128::from(before);
    i64::try_from(difference).unwrap_or(if difference < 0 { i64::MIN } else { i64::MAX })
}

/// A comparison.
#[derive(Debug)]
pub struct Diff<'a> {
    /// Before.
    pub before: &'a Profile,
    /// After.
    pub after: &'a Profile,
    /// Everything that is outstanding on one side at least, the largest change first.
    pub rows: Vec<DiffRow>,
    /// Names of the files that are on both sides with different build ids, sorted: hostile input.
    pub rebuilt: Vec<String>,
}

impl<'a> Diff<'a> {
    /// Compares two profiles that were made with the same filter.
    pub fn new(before: &'a Profile, after: &'a Profile) -> Self {
        let mut places = Places::default();
        let (mut left, mut right) = (outstanding(before), outstanding(after));
        let mut rows = Vec::new();
        for pass in Pass::ALL {
            let mut groups: HashMap<Key, Group> = HashMap::new();
            for index in &left {
                let Some(site) = before.sites.get(*index) else { continue };
                let group = groups.entry(key(before, site, pass, &mut places)).or_insert(Group::new(site));
                add(&mut group.before, *index, site);
            }
            for index in &right {
                let Some(site) = after.sites.get(*index) else { continue };
                let group = groups.entry(key(after, site, pass, &mut places)).or_insert(Group::new(site));
                add(&mut group.after, *index, site);
            }
            for Group { lens, before, after } in groups.into_values() {
                let is_matched = !before.sites.is_empty() && !after.sites.is_empty();
                let matched = match (is_matched, pass) {
                    (true, Pass::Names) => Match::Names,
                    (true, _) => Match::Exact,
                    (false, Pass::Names) => Match::Alone,
                    (false, _) => continue,
                };
                for index in &before.sites {
                    left.remove(index);
                }
                for index in &after.sites {
                    right.remove(index);
                }
                rows.push(DiffRow { rank: 0, matched, lens, before, after });
            }
        }
        rows.retain(|row| row.before.outstanding_count > 0 || row.after.outstanding_count > 0);
        rank(&mut rows);
        Self { before, after, rows, rebuilt: rebuilt(before, after) }
    }

    /// The profile and the site whose stack stands for a row: that of after, where there is one.
    pub fn shown(&self, row: &DiffRow) -> Option<(&'a Profile, &'a Site)> {
        let of = |profile: &'a Profile, side: &Side| {
            side.sites.first().and_then(|index| profile.sites.get(*index)).map(|site| (profile, site))
        };
        of(self.after, &row.after).or_else(|| of(self.before, &row.before))
    }

    /// Sum of the changes of a lens, in bytes.
    pub fn delta_bytes(&self, lens: Lens) -> i64 {
        let rows = self.rows.iter().filter(|row| row.lens == lens);
        rows.fold(0, |sum: i64, row| sum.saturating_add(row.delta_bytes()))
    }

    /// Rows that were matched in this way.
    pub fn matched(&self, how: Match) -> usize {
        self.rows.iter().filter(|row| row.matched == how).count()
    }
}

struct Group {
    lens: Lens,
    before: Side,
    after: Side,
}

impl Group {
    fn new(site: &Site) -> Self {
        Self { lens: site.lens, before: Side::default(), after: Side::default() }
    }
}

/// Every site, also those that hold nothing any more: that is what the other side is compared with.
fn outstanding(profile: &Profile) -> BTreeSet<usize> {
    (0..profile.sites.len()).collect()
}

fn add(side: &mut Side, index: usize, site: &Site) {
    let is_first = side.sites.is_empty();
    side.outstanding_bytes = side.outstanding_bytes.saturating_add(site.outstanding_bytes);
    side.outstanding_count = side.outstanding_count.saturating_add(site.outstanding_count);
    side.growth_bytes_per_s = match (is_first, side.growth_bytes_per_s, site.growth_bytes_per_s) {
        (true, _, growth) => growth,
        (false, Some(sum), Some(growth)) => Some(sum + growth),
        (false, ..) => None,
    };
    side.sites.push(index);
}

fn rank(rows: &mut [DiffRow]) {
    rows.sort_by_key(|row| {
        let first = (row.after.sites.first().copied(), row.before.sites.first().copied());
        let larger = row.before.outstanding_bytes.max(row.after.outstanding_bytes);
        (Reverse(row.delta_bytes().unsigned_abs()), Reverse(larger), first)
    });
    for (rank, row) in (1..).zip(rows) {
        row.rank = rank;
    }
}

/// What has to be the same.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Process,
    Code,
    Names,
}

impl Pass {
    const ALL: [Self; 3] = [Self::Process, Self::Code, Self::Names];
}

/// What makes two sites the same in one pass.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    lens: Lens,
    class: MemoryClass,
    is_lost: bool,
    allocator: Option<String>,
    /// By path; by name only where names are enough.
    executable: Option<String>,
    /// Process ids as the host saw them, where they have to be the same.
    tgids: Vec<u32>,
    /// Where names are enough, a stack may end in another way.
    end: Option<StackEnd>,
    places: Vec<u32>,
}

fn key(profile: &Profile, site: &Site, pass: Pass, places: &mut Places) -> Key {
    let targets =
        || site.processes.iter().filter_map(|id| profile.process(*id)).map(|row| &row.process.target);
    let executable = targets().next().map(|target| match (&target.exe, pass) {
        (Some(exe), Pass::Names) => base_name(exe).to_owned(),
        (Some(exe), _) => exe.clone(),
        (None, _) => target.comm.clone(),
    });
    Key {
        lens: site.lens,
        class: site.class,
        is_lost: site.is_lost,
        allocator: site.allocator.and_then(|id| profile.allocator(id)).map(|row| row.allocator.name.clone()),
        executable,
        tgids: if pass == Pass::Process { targets().map(|target| target.tgid).collect() } else { Vec::new() },
        end: (pass != Pass::Names).then_some(site.end),
        places: profile.stack(site).filter_map(|line| places.number(&line, pass)).collect(),
    }
}

/// Where a frame is, as far as it has to be the same.
#[derive(PartialEq, Eq, Hash)]
enum Place {
    /// Build id, or path where there is none; file offset.
    Code(String, u64),
    /// Name of the file; function.
    Name(String, String),
    /// Code without a file: what it is, and its function.
    Made(FrameKind, Option<String>),
}

/// Numbers for places, so that a key is short.
#[derive(Default)]
struct Places(HashMap<Place, u32>);

impl Places {
    /// `None` for a function that is inlined into the next frame's code: the code says it already.
    fn number(&mut self, line: &SiteFrame<'_>, pass: Pass) -> Option<u32> {
        let function = line.location.function.clone();
        let place = match (line.object, line.frame.file_offset, function) {
            (Some(object), _, Some(function)) if pass == Pass::Names => {
                Place::Name(base_name(&object.path).to_owned(), function)
            }
            (Some(object), Some(offset), _) => {
                if line.location.inlined {
                    return None;
                }
                Place::Code(object.build_id.clone().unwrap_or_else(|| object.path.clone()), offset)
            }
            (_, _, function) => Place::Made(line.frame.kind, function),
        };
        let next = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        Some(*self.0.entry(place).or_insert(next))
    }
}

/// Files with the same path and different build ids.
fn rebuilt(before: &Profile, after: &Profile) -> Vec<String> {
    let ids: HashMap<&str, Option<&str>> =
        before.objects.values().map(|object| (object.path.as_str(), object.build_id.as_deref())).collect();
    let differs = |path: &str, id: Option<&str>| ids.get(path).is_some_and(|old| *old != id);
    let names: BTreeSet<String> = after
        .objects
        .values()
        .filter(|object| differs(&object.path, object.build_id.as_deref()))
        .map(|object| base_name(&object.path).to_owned())
        .collect();
    names.into_iter().collect()
}
