//! What changed between two captures, or between two moments of one.
//!
//! Sites are matched in three passes, each on what the one before left over: the same process and the same code,
//! the same executable and the same code, the same executable and the same function names. The first is for two
//! moments of one recording, the second for a restart, the third for a rebuild: names count only in files of which
//! the two sides have different builds; in the others, another offset is another place.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::suppression::Matcher;
use super::{Profile, Rule, Site, SiteFrame, Suppressions, base_name};
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
    /// Indices into [`Profile::sites`]; several where they cannot be told apart by what they were matched on: by
    /// names, or processes of one executable. Empty: not seen there.
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

/// What one rule has hidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffHidden {
    /// Which.
    pub rule: Rule,
    /// Rows.
    pub rows: usize,
    /// Their bytes before.
    pub before_bytes: u64,
    /// Their bytes after.
    pub after_bytes: u64,
}

/// A comparison.
#[derive(Debug)]
pub struct Diff<'a> {
    /// Before.
    pub before: &'a Profile,
    /// After.
    pub after: &'a Profile,
    /// What both sides have observed, as far as the filter takes it.
    pub lenses: Vec<Lens>,
    /// What only one side has observed: it is in no row, since what was not observed is not known.
    pub uncompared: Vec<Lens>,
    /// Everything that is outstanding on one side at least, the largest change first.
    pub rows: Vec<DiffRow>,
    /// What rules have hidden, the most bytes first. It is in no row.
    pub hidden: Vec<DiffHidden>,
    /// Names of the files that are on both sides with different build ids, sorted: hostile input.
    pub rebuilt: Vec<String>,
}

impl<'a> Diff<'a> {
    /// Compares two profiles that were made with the same filter, without suppressions: those are for rows, since a
    /// site that only one side hides would seem to come or go.
    pub fn new(before: &'a Profile, after: &'a Profile, suppressions: &Suppressions) -> Self {
        let (lenses, uncompared) = lenses(before, after);
        let builds = Builds::new(before, after);
        let mut places = Places::default();
        let (mut left, mut right) = (all(before, &lenses), all(after, &lenses));
        let mut rows = Vec::new();
        for pass in Pass::ALL {
            let mut groups: HashMap<Key, (Lens, Side, Side)> = HashMap::new();
            for (profile, indices, is_before) in [(before, &left, true), (after, &right, false)] {
                for index in indices {
                    let Some(site) = profile.sites.get(*index) else { continue };
                    let key = key(profile, site, pass, &mut places, &builds);
                    let group =
                        groups.entry(key).or_insert_with(|| (site.lens, Side::default(), Side::default()));
                    add(if is_before { &mut group.1 } else { &mut group.2 }, *index, site);
                }
            }
            let matched = if pass == Pass::Names { Match::Names } else { Match::Exact };
            for (lens, before, after) in groups.into_values() {
                if before.sites.is_empty() || after.sites.is_empty() {
                    continue;
                }
                for index in &before.sites {
                    left.remove(index);
                }
                for index in &after.sites {
                    right.remove(index);
                }
                rows.push(DiffRow { rank: 0, matched, lens, before, after });
            }
        }
        // Each for itself: that two have the same names does not make them one call site.
        let mut alone = |profile: &Profile, indices: &BTreeSet<usize>, is_before: bool| {
            for (index, site) in indices.iter().filter_map(|index| Some((*index, profile.sites.get(*index)?)))
            {
                let (mut before, mut after) = (Side::default(), Side::default());
                add(if is_before { &mut before } else { &mut after }, index, site);
                rows.push(DiffRow { rank: 0, matched: Match::Alone, lens: site.lens, before, after });
            }
        };
        alone(before, &left, true);
        alone(after, &right, false);
        rows.retain(|row| row.before.outstanding_count > 0 || row.after.outstanding_count > 0);
        let hidden = hide(&mut rows, before, after, suppressions);
        rank(&mut rows);
        Self { before, after, lenses, uncompared, rows, hidden, rebuilt: builds.rebuilt }
    }

    /// The profile and the site whose stack stands for a row: that of after, where there is one.
    pub fn shown(&self, row: &DiffRow) -> Option<(&'a Profile, &'a Site)> {
        shown(self.before, self.after, row)
    }

    /// What a lens holds before and after, in bytes: the sums of the rows.
    pub fn bytes(&self, lens: Lens) -> (u64, u64) {
        let rows = self.rows.iter().filter(|row| row.lens == lens);
        rows.fold((0, 0), |sum: (u64, u64), row| {
            (
                sum.0.saturating_add(row.before.outstanding_bytes),
                sum.1.saturating_add(row.after.outstanding_bytes),
            )
        })
    }

    /// Sum of the changes of a lens, in bytes.
    pub fn delta_bytes(&self, lens: Lens) -> i64 {
        let (before, after) = self.bytes(lens);
        delta(before, after)
    }

    /// Rows that were matched in this way.
    pub fn matched(&self, how: Match) -> usize {
        self.rows.iter().filter(|row| row.matched == how).count()
    }

    /// The rows that one picture can show, since their bytes can be added: resident pages where nothing else was
    /// compared, else blocks and mappings.
    pub fn drawable_rows(&self) -> impl Iterator<Item = &DiffRow> {
        let shows_pages = self.lenses == [Lens::Faults];
        self.rows.iter().filter(move |row| Profile::is_counted(row.lens) != shows_pages)
    }
}

/// Lenses of both sides, and of one only; those that the filter takes.
fn lenses(before: &Profile, after: &Profile) -> (Vec<Lens>, Vec<Lens>) {
    let wanted = |lens: &Lens| after.filter.lens.is_none_or(|only| only == *lens);
    let seen = |lens: &Lens| before.has_lens(*lens) || after.has_lens(*lens);
    let both = |lens: &Lens| before.has_lens(*lens) && after.has_lens(*lens);
    Lens::ALL.into_iter().filter(wanted).filter(seen).partition(both)
}

/// Every site, also those that hold nothing any more: that is what the other side is compared with.
fn all(profile: &Profile, lenses: &[Lens]) -> BTreeSet<usize> {
    (0..)
        .zip(&profile.sites)
        .filter(|(_, site)| lenses.contains(&site.lens))
        .map(|(index, _)| index)
        .collect()
}

fn shown<'a>(before: &'a Profile, after: &'a Profile, row: &DiffRow) -> Option<(&'a Profile, &'a Site)> {
    let of = |profile: &'a Profile, side: &Side| {
        side.sites.first().and_then(|index| profile.sites.get(*index)).map(|site| (profile, site))
    };
    of(after, &row.after).or_else(|| of(before, &row.before))
}

/// Takes the rows that a rule hides out of the list.
fn hide(
    rows: &mut Vec<DiffRow>,
    before: &Profile,
    after: &Profile,
    suppressions: &Suppressions,
) -> Vec<DiffHidden> {
    let mut hidden: Vec<DiffHidden> = Vec::new();
    // What is known of a frame is kept by its id, and each capture has its own.
    let mut matchers = [Matcher::new(suppressions), Matcher::new(suppressions)];
    rows.retain(|row| {
        let Some((profile, site)) = shown(before, after, row) else { return true };
        let [of_before, of_after] = &mut matchers;
        let matcher = if row.after.sites.is_empty() { of_before } else { of_after };
        let stack: Vec<_> = profile.stack(site).collect();
        let growths = || [row.before.growth_bytes_per_s, row.after.growth_bytes_per_s].into_iter().flatten();
        // A moment has too few samples for a slope: then it is what came between the two that counts.
        let grows = || match growths().count() {
            0 => row.delta_bytes() > 0,
            _ => growths().any(|growth| growth > 0.0),
        };
        let count = row.before.outstanding_count.max(row.after.outstanding_count);
        let Some(rule) = matcher.hides(&stack, site.culprit, count, grows) else { return true };
        let index = hidden.iter().position(|sum| sum.rule == rule).unwrap_or(hidden.len());
        if index == hidden.len() {
            hidden.push(DiffHidden { rule, rows: 0, before_bytes: 0, after_bytes: 0 });
        }
        if let Some(sum) = hidden.get_mut(index) {
            sum.rows += 1;
            sum.before_bytes = sum.before_bytes.saturating_add(row.before.outstanding_bytes);
            sum.after_bytes = sum.after_bytes.saturating_add(row.after.outstanding_bytes);
        }
        false
    });
    hidden.sort_by_key(|sum| Reverse(sum.before_bytes.max(sum.after_bytes)));
    hidden
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
    is_lost: bool,
    allocator: Option<String>,
    /// By path; by name only where names are enough.
    executable: Option<String>,
    /// Process ids as the host saw them, where they have to be the same.
    tgids: Vec<u32>,
    /// What else says what a mapping is, where it has to be the same: it may have names in it that change.
    label: Option<String>,
    /// Where names are enough, a stack may end in another way, and be known less well.
    end: Option<(StackEnd, MemoryClass)>,
    places: Vec<u32>,
}

fn key(profile: &Profile, site: &Site, pass: Pass, places: &mut Places, builds: &Builds) -> Key {
    let targets =
        || site.processes.iter().filter_map(|id| profile.process(*id)).map(|row| &row.process.target);
    let executable = targets().next().map(|target| match (&target.exe, pass) {
        (Some(exe), Pass::Names) => file_name(exe).to_owned(),
        (Some(exe), _) => present(exe).to_owned(),
        (None, _) => target.comm.clone(),
    });
    let is_same_process = pass == Pass::Process;
    Key {
        lens: site.lens,
        is_lost: site.is_lost,
        allocator: site.allocator.and_then(|id| profile.allocator(id)).map(|row| row.allocator.name.clone()),
        executable,
        tgids: if is_same_process { targets().map(|target| target.tgid).collect() } else { Vec::new() },
        label: site.label.clone().filter(|_| is_same_process),
        end: (pass != Pass::Names).then_some((site.end, site.class)),
        places: profile.stack(site).filter_map(|line| places.number(&line, pass, builds)).collect(),
    }
}

/// The path of a file, also where the kernel says that it has been replaced since: as it is while a new build of a
/// running program is installed.
fn present(path: &str) -> &str {
    path.strip_suffix(" (deleted)").unwrap_or(path)
}

/// Name of a file without its directory, of a library without its version.
fn file_name(path: &str) -> &str {
    let name = base_name(present(path));
    name.find(".so.").and_then(|at| name.get(..at + 3)).unwrap_or(name)
}

/// A function's name without what the compiler appends to parts and copies of it: another build may have others.
fn steady_name(function: &str) -> &str {
    const APPENDED: [&str; 6] = [".constprop.", ".isra.", ".part.", ".lto_priv.", ".llvm.", " [clone "];
    let function = function.strip_suffix(".cold").unwrap_or(function);
    let end = APPENDED.iter().filter_map(|mark| function.find(mark)).min();
    end.filter(|end| *end > 0).and_then(|end| function.get(..end)).unwrap_or(function)
}

/// Where a frame is, as far as it has to be the same.
#[derive(PartialEq, Eq, Hash)]
enum Place {
    /// Build id, file offset.
    Code(String, u64),
    /// Of a file without a build id: its path, offset, and the function that is there.
    File(String, u64, Option<String>),
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
    fn number(&mut self, line: &SiteFrame<'_>, pass: Pass, builds: &Builds) -> Option<u32> {
        let function = line.location.function.as_deref();
        let place = match (line.object, line.frame.file_offset, function) {
            (Some(object), _, Some(function))
                if pass == Pass::Names && !builds.has_both(object.build_id.as_deref()) =>
            {
                Place::Name(file_name(&object.path).to_owned(), steady_name(function).to_owned())
            }
            (Some(_), Some(_), _) if line.location.inlined => return None,
            (Some(object), Some(offset), _) => match &object.build_id {
                Some(id) => Place::Code(id.clone(), offset),
                None => Place::File(present(&object.path).to_owned(), offset, function.map(str::to_owned)),
            },
            _ => Place::Made(line.frame.kind, function.map(str::to_owned)),
        };
        let next = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        Some(*self.0.entry(place).or_insert(next))
    }
}

/// Which builds of files the two sides have.
struct Builds {
    /// Build ids that both have.
    common: BTreeSet<String>,
    /// Names of the files of which they have different ones.
    rebuilt: Vec<String>,
}

impl Builds {
    fn new(before: &Profile, after: &Profile) -> Self {
        let [old, new] = [before, after].map(|profile| {
            let mut builds: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            for object in profile.objects.values() {
                if let Some(id) = &object.build_id {
                    builds.entry(file_name(&object.path)).or_default().insert(id);
                }
            }
            builds
        });
        let ids = |builds: &BTreeMap<&str, BTreeSet<&str>>| -> BTreeSet<String> {
            builds.values().flatten().map(|id| (*id).to_owned()).collect()
        };
        let common: BTreeSet<String> = ids(&old).intersection(&ids(&new)).cloned().collect();
        let differs =
            |name: &&str| old.get(name).zip(new.get(name)).is_some_and(|(old, new)| old.is_disjoint(new));
        let rebuilt = new.keys().copied().filter(differs).map(str::to_owned).collect();
        Self { common, rebuilt }
    }

    /// Whether both sides have this build.
    fn has_both(&self, build_id: Option<&str>) -> bool {
        build_id.is_some_and(|id| self.common.contains(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_rebuild_changes_stay_the_same() {
        for (name, steady) in [
            ("grow.constprop.0", "grow"),
            ("grow.part.0.isra.1", "grow"),
            ("Cache::grow(int) [clone .constprop.0]", "Cache::grow(int)"),
            ("grow.cold", "grow"),
            ("main.grow", "main.grow"),
            (".part.0", ".part.0"),
        ] {
            assert_eq!(steady_name(name), steady, "{name}");
        }
        for (path, name) in [
            ("/usr/lib/libssl.so.1.1", "libssl.so"),
            ("/usr/lib/libz.so", "libz.so"),
            ("/srv/v2/server (deleted)", "server"),
            ("/srv/a.so.d/server", "server"),
        ] {
            assert_eq!(file_name(path), name);
        }
    }
}
