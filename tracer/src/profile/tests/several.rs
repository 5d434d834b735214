//! Several processes, several allocators, two lenses.

use super::super::{By, Filter, Group, GroupKey, Outstanding, Profile, ProfileError, Sort, Totals};
use super::profile;
use crate::capture::LENS_SETTING;
use crate::capture::fixture::{MIB, Recording, blocks, leaky, server};
use crate::model::{Lens, MemoryClass, ProcessEnd, ProcessId};

#[test]
fn unfreed_mapped_and_set_aside_are_three_sums() {
    let profile = profile(&server(), Filter::default());
    let unfreed = (1000 + 560) * 1024 + 100 * 64;
    assert_eq!((profile.totals.outstanding_bytes, profile.totals.outstanding_count), (unfreed, 1660));
    let mapped = 2 * (300 << 10) + 16 * MIB + 5 * MIB + 4096;
    assert_eq!((profile.mapped.outstanding_bytes, profile.mapped.outstanding_count), (mapped, 6));
    assert_eq!((profile.totals.sites, profile.mapped.sites), (3, 4));
    let listed: u64 = profile.sites.iter().map(|site| site.outstanding_bytes).sum();
    assert_eq!(listed, profile.outstanding_bytes(), "arenas contain the blocks: they are not added");
    assert!(profile.sites.iter().all(|site| site.class.can_leak()));
    let aside: Vec<_> = profile
        .set_aside
        .iter()
        .map(|row| (row.class, row.allocator.map(|id| id.0), row.outstanding, row.growth_bytes_per_s))
        .collect();
    let row = |class, allocator, bytes, count, growth: f64| {
        (class, allocator, Outstanding { bytes, count }, Some(growth))
    };
    assert_eq!(
        aside,
        [
            row(MemoryClass::AllocatorArena, Some(2), 26 * MIB, 13, 2.0 * MIB as f64),
            row(MemoryClass::ManagedHeap, None, 16 * MIB, 1, 0.0),
            row(MemoryClass::BrkHeap, Some(1), 132 << 10, 1, 0.0),
        ]
    );
    assert_eq!(profile.completeness.stacks.total, 11, "all stacks count for completeness");
}

#[test]
fn a_site_has_one_process_allocator_and_class() {
    let profile = profile(&server(), Filter::default());
    let site = |number: u32| profile.sites.iter().find(|site| site.numbers.contains(&number)).unwrap();
    assert_eq!(site(1).numbers, [1], "the same stack in another process is another site");
    assert_eq!(
        (site(1).processes.as_slice(), site(2).processes.as_slice()),
        (&[ProcessId(1)][..], &[ProcessId(2)][..])
    );
    assert_eq!((site(1).lens, site(1).class), (Lens::Malloc, MemoryClass::Allocation));
    assert_eq!((site(5).lens, site(5).class), (Lens::Mmap, MemoryClass::EndedThreadStack));
    assert_eq!(site(11).class, MemoryClass::Unknown, "a mapping without a class");
    assert_eq!(site(5).culprit, 1, "pthread_create is a wrapper");
    let name = |id| profile.allocator(id).unwrap().allocator.name.as_str();
    assert_eq!((site(1).allocator.map(name), site(4).allocator), (Some("jemalloc"), None));
}

#[test]
fn a_class_of_blocks_changes_nothing_and_mappings_without_a_stack_have_a_row() {
    let mut recording = server();
    recording.class(1, MemoryClass::ManagedHeap, None);
    recording.class(20, MemoryClass::SharedMemory, None);
    recording.class(21, MemoryClass::AllocatorArena, None);
    let (elapsed_ns, mut samples) = recording.ticks.pop().unwrap();
    samples.extend([(20, blocks(100, 3, 0)), (21, blocks(1000, 3, 0)), (0, blocks(7, 1, 0))]);
    recording.ticks.push((elapsed_ns, samples));
    let profile = profile(&recording, Filter::default());
    let lost: Vec<_> = profile
        .sites
        .iter()
        .filter(|site| site.is_lost)
        .map(|site| (site.lens, site.class, site.numbers.clone(), site.outstanding_bytes))
        .collect();
    assert_eq!(
        lost,
        [
            (Lens::Mmap, MemoryClass::SharedMemory, vec![20], 300),
            (Lens::Malloc, MemoryClass::Allocation, vec![0], 7)
        ]
    );
    let first = profile.sites.iter().find(|site| site.numbers == [1]).unwrap();
    assert_eq!(first.class, MemoryClass::Allocation);
}

#[test]
fn equal_stacks_of_one_executable_are_merged_if_asked() {
    let merged = Filter { merges_processes: true, ..Filter::default() };
    let found = profile(&server(), merged.clone());
    let site = found.sites.iter().find(|site| site.numbers.contains(&1)).unwrap();
    assert_eq!((site.numbers.as_slice(), site.processes.len()), (&[1, 2][..], 2));
    assert_eq!(site.outstanding_bytes, 1560 * 1024);
    let apart = profile(&server(), Filter::default());
    assert_eq!(found.totals.outstanding_bytes, apart.totals.outstanding_bytes);
    assert_eq!(found.processes, apart.processes);
    let mut other = server();
    other.processes[1].target.exe = None;
    assert_eq!(profile(&other, merged).totals.sites, 3, "without a path nothing says that they are the same");
}

#[test]
fn processes_and_allocators_have_their_sums_whatever_the_filter() {
    for tgid in [None, Some(4251)] {
        let profile = profile(&server(), Filter { tgid, top: Some(1), ..Filter::default() });
        let rows: Vec<_> = profile
            .processes
            .iter()
            .map(|row| {
                (row.process.target.tgid, row.unfreed.bytes, row.mapped.bytes, row.ended.map(|end| end.how))
            })
            .collect();
        let parent_mapped = (600 << 10) + 5 * MIB;
        assert_eq!(
            rows,
            [
                (4242, 6400, parent_mapped, None),
                (4250, 1000 * 1024, 16 * MIB, Some(ProcessEnd::Exited)),
                (4251, 560 * 1024, 0, Some(ProcessEnd::Executed)),
                (4251, 0, 4096, None),
            ]
        );
        let rss = profile.processes[1].rss.unwrap();
        assert_eq!(
            (rss.start_bytes, rss.end_bytes, rss.growth_bytes_per_s),
            (9 * MIB, 17 * MIB, Some(MIB as f64))
        );
        let allocators: Vec<_> = profile
            .allocators
            .iter()
            .map(|row| (row.allocator.name.as_str(), row.unfreed.count, row.counters.allocated_count))
            .collect();
        assert_eq!(allocators, [("glibc malloc", 100, 10_000), ("jemalloc", 1560, 1560), ("mimalloc", 0, 0)]);
    }
}

#[test]
fn memory_of_the_target_goes_on_after_an_exec() {
    let mut recording = Recording::new();
    let again = recording.process(Some(ProcessId(0)), 2, recording.header.target.clone());
    let mut other = recording.header.target.clone();
    other.tgid = 1;
    let other = recording.process(None, 0, other);
    for second in 1..=4 {
        recording.tick(second, &[], 0);
        recording.rss.pop();
        recording.rss(other, second, 1 << 40);
        recording.rss(if second < 2 { ProcessId(0) } else { again }, second, second * MIB);
    }
    let rss = profile(&recording, Filter::default()).rss.unwrap();
    assert_eq!((rss.start_bytes, rss.end_bytes, rss.growth_bytes_per_s), (MIB, 4 * MIB, Some(MIB as f64)));
}

#[test]
fn groups_sum_up_to_the_totals() {
    let server = server();
    let rows = |by| {
        let profile = profile(&server, Filter { by, merges_processes: true, ..Filter::default() });
        let sum = |get: fn(&Group) -> u64| profile.groups.iter().map(get).sum::<u64>();
        assert_eq!(sum(|group| group.unfreed.outstanding_bytes), profile.totals.outstanding_bytes);
        assert_eq!(sum(|group| group.mapped.outstanding_bytes), profile.mapped.outstanding_bytes);
        profile.groups.iter().map(|group| (group.key.clone(), group.outstanding().0)).collect::<Vec<_>>()
    };
    let mapped_4242 = (600 << 10) + 5 * MIB;
    let helper = 4096;
    assert_eq!(
        rows(By::Process),
        [
            (GroupKey::Process(ProcessId(1)), 16 * MIB + 1000 * 1024),
            (GroupKey::Process(ProcessId(0)), mapped_4242 + 6400),
            (GroupKey::Process(ProcessId(2)), 560 * 1024),
            (GroupKey::Process(ProcessId(3)), helper),
        ]
    );
    let all = 16 * MIB + 1000 * 1024 + mapped_4242 + 6400 + 560 * 1024;
    assert_eq!(
        rows(By::Executable),
        [
            (GroupKey::Executable("/usr/sbin/nginx".into()), all),
            (GroupKey::Executable("/usr/lib/\u{1b}[31mhelper".into()), helper),
        ]
    );
    assert_eq!(
        rows(By::Allocator),
        [
            (GroupKey::Mapped, 16 * MIB + mapped_4242 + helper),
            (GroupKey::Allocator("jemalloc".into()), 1560 * 1024),
            (GroupKey::Allocator("glibc malloc".into()), 6400),
        ]
    );
    assert_eq!(rows(By::Class)[0], (GroupKey::Class(MemoryClass::EndedThreadStack), 16 * MIB));
    assert!(rows_are_empty(&server));
    let growth = Filter { by: By::Class, sort: Sort::Growth, top: Some(1), ..Filter::default() };
    let fastest = profile(&server, growth).groups;
    assert_eq!((fastest.len(), &fastest[0].key), (1, &GroupKey::Class(MemoryClass::Allocation)));
    let lost = profile(&leaky(), Filter { by: By::Process, ..Filter::default() }).groups;
    assert_eq!(
        lost.iter().map(|group| &group.key).collect::<Vec<_>>(),
        [&GroupKey::Process(ProcessId(0)), &GroupKey::Lost]
    );
    let of_leaky = |by| profile(&leaky(), Filter { by, ..Filter::default() }).groups;
    for by in By::ALL.into_iter().filter(|by| *by != By::Site) {
        let sum = |get: fn(&Totals) -> u64| of_leaky(by).iter().map(|group| get(&group.unfreed)).sum::<u64>();
        let whole = profile(&leaky(), Filter::default()).totals;
        assert_eq!(sum(|totals| totals.outstanding_bytes), whole.outstanding_bytes, "{}", by.name());
        assert_eq!(sum(|totals| totals.outstanding_count), whole.outstanding_count, "{}", by.name());
    }
    let sizes = of_leaky(By::SizeClass);
    let of_4096 = sizes.iter().find(|group| group.key == GroupKey::SizeClass(13)).unwrap();
    assert_eq!(
        (of_4096.unfreed.outstanding_bytes, of_4096.unfreed.outstanding_count, of_4096.unfreed.sites),
        (2624 * 4096, 2624, 1)
    );
    assert_eq!(of_4096.growth_bytes_per_s, None, "known at the end only");
    let mut old = leaky();
    old.live_sizes.clear();
    let by_size = Filter { by: By::SizeClass, ..Filter::default() };
    let unknown = profile(&old, by_size.clone());
    assert_eq!(unknown.groups.iter().map(|group| &group.key).collect::<Vec<_>>(), [&GroupKey::NoSize]);
    assert_eq!(unknown.why_no_sizes(), Some("the capture was written before sizes were kept"));
    let early = leaky().capture().at(5_000_000_000).unwrap();
    let early = Profile::new(early, by_size.clone()).unwrap();
    assert!(early.why_no_sizes().unwrap().contains("an earlier moment"));
    let by_age = Filter { min_age_ns: Some(1), ..by_size };
    assert_eq!(Profile::new(leaky().capture(), by_age).unwrap_err(), ProfileError::NoSizesByAge);
    let nameless = profile(&leaky(), Filter { by: By::Allocator, ..Filter::default() }).groups;
    assert_eq!(nameless[0].key, GroupKey::NoAllocator);
}

fn rows_are_empty(recording: &Recording) -> bool {
    profile(recording, Filter::default()).groups.is_empty()
}

#[test]
fn filters_take_a_part_and_know_their_names() {
    let numbers = |filter| {
        let profile = profile(&server(), filter);
        let mut numbers: Vec<_> = profile.sites.iter().flat_map(|site| site.numbers.clone()).collect();
        numbers.sort_unstable();
        (numbers, profile.set_aside.len())
    };
    let all = Filter::default();
    assert_eq!(numbers(Filter { lens: Some(Lens::Malloc), ..all.clone() }), (vec![1, 2, 3], 0));
    assert_eq!(numbers(Filter { lens: Some(Lens::Mmap), ..all.clone() }), (vec![4, 5, 6, 11], 3));
    assert_eq!(numbers(Filter { tgid: Some(4251), ..all.clone() }), (vec![2, 11], 2), "both programs of it");
    assert_eq!(numbers(Filter { allocator: Some("JEMALLOC".into()), ..all.clone() }), (vec![1, 2], 1));
    let none = |filter| Profile::new(server().capture(), filter).unwrap_err().to_string();
    let unknown = none(Filter { tgid: Some(1), ..all.clone() });
    assert_eq!(unknown, "process 1 is not in the capture; it has 4242, 4250, 4251");
    let unknown = none(Filter { allocator: Some("tcmalloc".into()), ..all });
    assert!(unknown.ends_with("it has `glibc malloc`, `jemalloc`, `mimalloc`"), "{unknown}");
}

#[test]
fn mappings_have_no_age() {
    let filter = Filter { min_age_ns: Some(7_000_000_000), ..Filter::default() };
    let old = profile(&server(), filter.clone());
    assert_eq!(old.totals.outstanding_bytes, 1560 * 1024);
    assert_eq!(old.mapped, profile(&server(), Filter::default()).mapped);
    let mut recording = server();
    recording.live_ages.clear();
    assert_eq!(Profile::new(recording.capture(), filter.clone()).err(), Some(ProfileError::NoAges));
    for (_, samples) in &mut recording.ticks {
        samples.retain(|(site, _)| *site > 3);
    }
    let mapped = Profile::new(recording.capture(), filter).unwrap();
    assert!(mapped.mapped.outstanding_bytes > 0, "mappings alone need no ages");
}

#[test]
fn what_was_not_observed_is_not_zero() {
    assert!(!profile(&leaky(), Filter::default()).has_lens(Lens::Mmap), "a capture from before the setting");
    assert!(profile(&server(), Filter::default()).has_lens(Lens::Mmap));
    let mut recording = leaky();
    recording.header.settings.push((LENS_SETTING.into(), "malloc,mmap".into()));
    assert!(profile(&recording, Filter::default()).has_lens(Lens::Mmap));
    recording.header.settings.pop();
    recording.header.settings.push((LENS_SETTING.into(), "mmap".into()));
    assert!(!profile(&recording, Filter::default()).has_lens(Lens::Malloc));
}
