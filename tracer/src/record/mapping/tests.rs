//! The book, case by case.

#![allow(clippy::unwrap_used)]

mod model;

use tracer_common::abi::{
    EventHeader, MappingEvent, MappingKind, MappingOrigin, OPERATION_BREAK, OPERATION_MAP, OPERATION_REMAP,
    OPERATION_REMAP_ENTER, OPERATION_REMAP_FAILED, OPERATION_SHM_ATTACH, OPERATION_SHM_DETACH,
    OPERATION_THREAD_EXIT, OPERATION_THREAD_START, OPERATION_UNMAP, OPERATION_UNMAP_FAILED, SiteCounters,
    Tally,
};

use super::MappingBook;
use crate::attach::maps::{MapEntry, parse};

/// First page, the one behind the last, permissions, name.
type Line<'a> = (u64, u64, &'a str, &'a str);

const PAGE: u64 = 4096;
const READ_WRITE: u32 = 3;
const DONT_UNMAP: u32 = 4;

/// Addresses and lengths in pages.
fn event(operation: u32, tid: u32, site: u32, address: u64, length: u64) -> MappingEvent {
    MappingEvent {
        header: EventHeader { kind: 4, tgid: 7, value: 100 },
        address: address * PAGE,
        length: length * PAGE,
        tid,
        operation,
        protection: READ_WRITE,
        flags: 0x22,
        site,
        origin: MappingOrigin::new(MappingKind::Anonymous).0,
        ..MappingEvent::default()
    }
}

fn map(book: &mut MappingBook, site: u32, address: u64, length: u64) {
    book.apply(&event(OPERATION_MAP, 1, site, address, length));
}

fn reserve(book: &mut MappingBook, site: u32, address: u64, length: u64) {
    book.apply(&MappingEvent { protection: 0, ..event(OPERATION_MAP, 1, site, address, length) });
}

fn unmap(book: &mut MappingBook, address: u64, length: u64) {
    book.apply(&event(OPERATION_UNMAP, 1, 0, address, length));
}

fn remap(operation: u32, tid: u32, site: u32, from: (u64, u64), to: (u64, u64)) -> MappingEvent {
    MappingEvent {
        old_address: from.0 * PAGE,
        old_length: from.1 * PAGE,
        flags: 0,
        ..event(operation, tid, site, to.0, to.1)
    }
}

/// Allocated pages and mappings, freed pages and mappings.
fn counters(book: &MappingBook, site: u32) -> (u64, u64, u64, u64) {
    let SiteCounters { allocated_bytes, allocated_count, freed_bytes, freed_count } = book.counters(site);
    (allocated_bytes / PAGE, allocated_count, freed_bytes / PAGE, freed_count)
}

fn entries(lines: &[Line<'_>]) -> Vec<MapEntry> {
    let text: String = lines
        .iter()
        .map(|(start, end, permissions, name)| {
            format!("{:x}-{:x} {permissions} 00000000 00:00 0 {name}\n", start * PAGE, end * PAGE)
        })
        .collect();
    let mut entries = parse(text.as_bytes());
    entries.sort_by_key(|entry| entry.start);
    entries
}

fn look(book: &mut MappingBook, lines: &[(u64, u64, &str, &str)]) {
    book.begin_look();
    book.reconcile(&entries(lines), Some(false));
}

#[test]
fn a_mapping_counts_until_its_last_page_is_gone() {
    let mut book = MappingBook::default();
    map(&mut book, 1, 10, 10);
    unmap(&mut book, 14, 2);
    assert_eq!(counters(&book, 1), (10, 1, 2, 0));
    unmap(&mut book, 0, 14);
    assert_eq!(counters(&book, 1), (10, 1, 6, 0));
    unmap(&mut book, 16, 100);
    assert_eq!(counters(&book, 1), (10, 1, 10, 1));
    let unknown = book.tallies().unknown_unmap;
    assert_eq!((unknown.count, unknown.bytes), (2, 10 * PAGE + 96 * PAGE));
}

#[test]
fn one_unmapping_spans_two_sites_and_a_newer_mapping_replaces() {
    let mut book = MappingBook::default();
    map(&mut book, 1, 10, 10);
    map(&mut book, 2, 20, 10);
    unmap(&mut book, 15, 10);
    map(&mut book, 3, 12, 2);
    assert_eq!(counters(&book, 1), (10, 1, 7, 0));
    assert_eq!(counters(&book, 2), (10, 1, 5, 0));
    assert_eq!(counters(&book, 3), (2, 1, 0, 0));
}

#[test]
fn lengths_are_rounded_to_the_page_of_the_mapping() {
    let mut book = MappingBook::default();
    book.apply(&MappingEvent { length: 1, ..event(OPERATION_MAP, 1, 1, 10, 0) });
    let huge = MappingEvent { length: 1, flags: 0x4_0022, ..event(OPERATION_MAP, 1, 2, 1024, 0) };
    book.apply(&huge);
    book.apply(&MappingEvent { flags: 0x4_0022 | 16 << 26, site: 3, address: 4096 * PAGE, ..huge });
    assert_eq!(counters(&book, 1), (1, 1, 0, 0));
    assert_eq!(counters(&book, 2), (512, 1, 0, 0), "2 MiB by default");
    assert_eq!(counters(&book, 3), (16, 1, 0, 0), "64 KiB");
}

#[test]
fn a_failed_unmapping_comes_back_except_where_something_newer_is() {
    let mut book = MappingBook::default();
    map(&mut book, 1, 10, 10);
    unmap(&mut book, 10, 10);
    assert_eq!(counters(&book, 1), (10, 1, 10, 1));
    book.apply(&event(OPERATION_MAP, 2, 2, 12, 2));
    book.apply(&event(OPERATION_UNMAP_FAILED, 1, 0, 10, 10));
    assert_eq!(counters(&book, 1), (10, 1, 2, 0));
    assert_eq!(counters(&book, 2), (2, 1, 0, 0));
    unmap(&mut book, 10, 10);
    assert_eq!(counters(&book, 1), (10, 1, 10, 1));
    assert_eq!(counters(&book, 2), (2, 1, 2, 1));
}

/// A filter can refuse a call before it is announced; an older call of the same thread must not come back.
#[test]
fn a_failure_that_was_not_announced_restores_nothing() {
    let mut book = MappingBook::default();
    map(&mut book, 1, 10, 10);
    unmap(&mut book, 10, 10);
    book.apply(&event(OPERATION_UNMAP_FAILED, 1, 0, 30, 5));
    book.apply(&event(OPERATION_UNMAP_FAILED, 2, 0, 10, 10));
    assert_eq!(counters(&book, 1), (10, 1, 10, 1));
}

#[test]
fn moved_bytes_keep_their_site_and_growth_has_its_own() {
    let mut book = MappingBook::default();
    map(&mut book, 1, 10, 4);
    map(&mut book, 2, 40, 9);
    book.apply(&remap(OPERATION_REMAP_ENTER, 1, 0, (10, 4), (0, 9)));
    // The old place is given to another thread before the end of the call is seen.
    book.apply(&event(OPERATION_MAP, 2, 4, 10, 4));
    book.apply(&remap(OPERATION_REMAP, 1, 3, (10, 4), (40, 9)));
    assert_eq!(counters(&book, 1), (4, 1, 0, 0));
    assert_eq!(counters(&book, 2), (9, 1, 9, 1));
    assert_eq!(counters(&book, 3), (5, 1, 0, 0));
    assert_eq!(counters(&book, 4), (4, 1, 0, 0));
    unmap(&mut book, 40, 5);
    assert_eq!(counters(&book, 1), (4, 1, 4, 1));
    assert_eq!(counters(&book, 3), (5, 1, 1, 0));
}

#[test]
fn shrinking_frees_the_tail_and_failing_nothing() {
    let mut book = MappingBook::default();
    map(&mut book, 1, 10, 10);
    book.apply(&remap(OPERATION_REMAP_ENTER, 1, 0, (10, 10), (0, 50)));
    book.apply(&remap(OPERATION_REMAP_FAILED, 1, 0, (10, 10), (0, 50)));
    assert_eq!(counters(&book, 1), (10, 1, 0, 0));
    book.apply(&remap(OPERATION_REMAP_ENTER, 1, 0, (10, 10), (0, 6)));
    book.apply(&event(OPERATION_MAP, 2, 2, 16, 4));
    book.apply(&remap(OPERATION_REMAP, 1, 0, (10, 10), (10, 6)));
    assert_eq!(counters(&book, 1), (10, 1, 4, 0));
    assert_eq!(counters(&book, 2), (4, 1, 0, 0));
}

#[test]
fn what_is_left_empty_belongs_to_the_one_who_left_it() {
    let mut book = MappingBook::default();
    map(&mut book, 1, 10, 5);
    let leave =
        |operation| MappingEvent { flags: DONT_UNMAP | 1, ..remap(operation, 1, 2, (10, 5), (50, 5)) };
    book.apply(&leave(OPERATION_REMAP_ENTER));
    book.apply(&leave(OPERATION_REMAP));
    assert_eq!(counters(&book, 1), (5, 1, 0, 0));
    assert_eq!(counters(&book, 2), (5, 1, 0, 0));
    unmap(&mut book, 50, 5);
    assert_eq!(counters(&book, 1), (5, 1, 5, 1));
}

#[test]
fn a_lost_announcement_or_a_lost_end_costs_no_bytes() {
    let mut book = MappingBook::default();
    map(&mut book, 1, 10, 4);
    book.apply(&remap(OPERATION_REMAP, 1, 2, (10, 4), (30, 6)));
    assert_eq!((counters(&book, 1), counters(&book, 2)), ((4, 1, 0, 0), (2, 1, 0, 0)));
    book.apply(&remap(OPERATION_REMAP_ENTER, 1, 0, (30, 6), (0, 6)));
    unmap(&mut book, 90, 1);
    assert_eq!((counters(&book, 1), counters(&book, 2)), ((4, 1, 0, 0), (2, 1, 0, 0)));
    book.apply(&remap(OPERATION_REMAP_ENTER, 1, 0, (30, 6), (0, 6)));
    book.apply(&event(OPERATION_THREAD_EXIT, 1, 0, 900, 0));
    unmap(&mut book, 30, 6);
    assert_eq!((counters(&book, 1), counters(&book, 2)), ((4, 1, 4, 1), (2, 1, 2, 1)));
}

#[test]
fn the_break_grows_and_shrinks_from_where_it_was() {
    let mut book = MappingBook::default();
    let to = |site, bytes| MappingEvent { address: bytes, ..event(OPERATION_BREAK, 1, site, 0, 0) };
    book.apply(&to(1, 50 * PAGE));
    assert_eq!(counters(&book, 1), (0, 0, 0, 0), "from where, is not known");
    book.apply(&to(1, 50 * PAGE + 1));
    book.apply(&to(2, 51 * PAGE));
    book.apply(&to(2, 60 * PAGE));
    book.apply(&to(3, 50 * PAGE));
    assert_eq!(counters(&book, 1), (1, 1, 1, 1));
    assert_eq!(counters(&book, 2), (9, 1, 9, 1));
    book.apply(&to(3, 40 * PAGE));
    assert_eq!(book.tallies().unknown_unmap.bytes, 10 * PAGE);
}

#[test]
fn a_segment_is_measured_by_a_look_and_detached_as_a_whole() {
    let mut book = MappingBook::default();
    book.apply(&event(OPERATION_SHM_ATTACH, 1, 1, 10, 0));
    assert!(book.wants_look_now());
    look(&mut book, &[(10, 15, "rw-s", "/SYSV00000000 (deleted)")]);
    assert_eq!(counters(&book, 1), (5, 1, 0, 0));
    map(&mut book, 2, 12, 1);
    book.apply(&event(OPERATION_SHM_DETACH, 1, 0, 11, 0));
    assert_eq!(counters(&book, 1), (5, 1, 1, 0), "not where it was attached");
    book.apply(&event(OPERATION_SHM_DETACH, 1, 0, 10, 0));
    assert_eq!((counters(&book, 1), counters(&book, 2)), ((5, 1, 5, 1), (1, 1, 0, 0)));
    book.apply(&event(OPERATION_SHM_ATTACH, 1, 3, 30, 0));
    book.apply(&event(OPERATION_SHM_DETACH, 1, 0, 30, 0));
    assert!(!book.wants_look_now());
    assert_eq!((counters(&book, 3), book.tallies().unseen_segment.count), ((0, 0, 0, 0), 1));
}

#[test]
fn reserved_ranges_count_when_they_become_memory() {
    let mut book = MappingBook::default();
    reserve(&mut book, 1, 10, 10);
    assert_eq!(counters(&book, 1), (0, 0, 0, 0));
    assert_eq!(book.facts()[&1].reserved_bytes, 10 * PAGE);
    assert!(book.wants_look());
    look(&mut book, &[(10, 14, "---p", ""), (14, 16, "rw-p", "[anon:heap]"), (16, 20, "---p", "")]);
    assert_eq!(counters(&book, 1), (2, 1, 0, 0));
    let facts = &book.facts()[&1];
    assert_eq!((facts.reserved_bytes, facts.protection), (8 * PAGE, READ_WRITE));
    assert_eq!(
        (facts.vma_names[0].name.as_slice(), facts.vma_names[0].bytes),
        (&b"[anon:heap]"[..], 2 * PAGE)
    );
    look(&mut book, &[(10, 20, "---p", "")]);
    assert_eq!(counters(&book, 1), (2, 1, 2, 1));
    look(&mut book, &[(10, 20, "r--p", "")]);
    assert_eq!(counters(&book, 1), (12, 2, 2, 1));
    assert!(!book.wants_look(), "nothing has happened since");
}

#[test]
fn what_is_gone_is_healed_but_not_by_a_process_that_has_ended() {
    let mut book = MappingBook::default();
    map(&mut book, 1, 10, 10);
    look(&mut book, &[]);
    assert_eq!(counters(&book, 1), (10, 1, 0, 0));
    look(&mut book, &[(12, 15, "rw-p", ""), (18, 30, "rw-p", "")]);
    assert_eq!(counters(&book, 1), (10, 1, 5, 0));
    let healed = book.tallies().healed;
    assert_eq!((healed.count, healed.bytes), (2, 5 * PAGE));
}

/// A move between the last event before a look and the look itself: its record comes afterwards.
#[test]
fn what_moves_during_a_look_is_left_alone() {
    let mut book = MappingBook::default();
    map(&mut book, 1, 10, 4);
    map(&mut book, 2, 20, 4);
    book.begin_look();
    book.apply(&remap(OPERATION_REMAP_ENTER, 1, 0, (10, 4), (0, 4)));
    book.apply(&remap(OPERATION_REMAP, 1, 0, (10, 4), (30, 4)));
    book.reconcile(&entries(&[(10, 14, "rw-p", ""), (20, 22, "rw-p", "")]), Some(false));
    assert_eq!(counters(&book, 1), (4, 1, 0, 0), "the look saw neither place");
    assert_eq!(counters(&book, 2), (4, 1, 2, 0), "untouched ranges are healed");
    assert!(book.wants_look(), "the rest is for the next look");
}

#[test]
fn stacks_tell_whether_their_threads_still_run() {
    let mut book = MappingBook::default();
    map(&mut book, 1, 10, 4);
    map(&mut book, 1, 20, 4);
    map(&mut book, 1, 30, 4);
    let thread = |operation, pointer: u64| MappingEvent { address: pointer, ..event(operation, 5, 0, 0, 0) };
    let state = |book: &MappingBook| (book.facts()[&1].running_threads, book.facts()[&1].ended_threads);
    book.apply(&thread(OPERATION_THREAD_START, 14 * PAGE));
    book.apply(&thread(OPERATION_THREAD_START, 23 * PAGE));
    assert_eq!(state(&book), (2, 0), "the third has none");
    book.apply(&thread(OPERATION_THREAD_EXIT, 14 * PAGE - 200));
    assert_eq!(state(&book), (1, 1));
    // The stack is used again, and the records of the two threads come in the wrong order.
    book.apply(&thread(OPERATION_THREAD_START, 23 * PAGE));
    book.apply(&thread(OPERATION_THREAD_EXIT, 23 * PAGE));
    assert_eq!(state(&book), (1, 1));
    unmap(&mut book, 10, 4);
    assert_eq!(state(&book), (1, 0));
    book.apply(&thread(OPERATION_THREAD_EXIT, 0));
}

#[test]
fn another_program_begins_with_nothing() {
    let mut book = MappingBook::default();
    book.set_break(5 * PAGE);
    map(&mut book, 1, 10, 4);
    reserve(&mut book, 1, 20, 4);
    unmap(&mut book, 12, 1);
    book.end_program();
    assert_eq!(counters(&book, 1), (4, 1, 4, 1));
    assert_eq!(book.facts()[&1].reserved_bytes, 0);
    assert!(!book.knows_break());
    book.apply(&event(OPERATION_UNMAP_FAILED, 1, 0, 12, 1));
    assert_eq!(counters(&book, 1), (4, 1, 4, 1));
}

/// Ranges at the ends of the address space, and numbers that mean nothing.
#[test]
fn nonsense_is_survived() {
    let mut book = MappingBook::default();
    for operation in 0..14 {
        for (address, length) in [(u64::MAX, u64::MAX), (0, u64::MAX), (u64::MAX, 0), (1, 1), (0, 0)] {
            let nonsense = MappingEvent {
                address,
                length,
                old_address: length,
                old_length: address,
                operation,
                flags: u32::MAX,
                origin: u32::MAX,
                ..event(0, 1, 1, 0, 0)
            };
            book.apply(&nonsense);
        }
    }
    look(&mut book, &[(0, 1, "rw-p", "")]);
}

#[test]
fn what_no_event_has_mapped_is_unaccounted_for() {
    let mut book = MappingBook::default();
    let before: &[Line<'_>] = &[(10, 14, "r-xp", "/bin/x"), (50, 60, "rw-p", "[stack]")];
    let look = |book: &mut MappingBook, lines: &[Line<'_>], has_skipped| {
        book.begin_look();
        book.reconcile(&entries(lines), Some(has_skipped));
        book.tallies().unaccounted
    };
    let tally = |count, pages: u64| Tally { count, bytes: pages * 4096 };
    assert_eq!(look(&mut book, before, true), tally(0, 0), "older than the recording");
    map(&mut book, 1, 20, 4);
    let grown = [before, &[(20, 24, "rw-p", ""), (45, 50, "rw-p", "[stack]")]].concat();
    assert_eq!(look(&mut book, &grown, true), tally(0, 0), "booked; the stack grows by itself");
    let missed = [&grown[..], &[(24, 27, "rw-p", ""), (30, 31, "rw-p", "")]].concat();
    assert_eq!(look(&mut book, &missed, true), tally(2, 4));
    assert_eq!(look(&mut book, &missed, true), tally(2, 4), "counted once");
    let moved = [&missed[..], &[(33, 35, "rw-p", "")]].concat();
    assert_eq!(look(&mut book, &moved, false), tally(2, 4), "no program was skipped: there is a reason");
    assert_eq!(look(&mut book, &moved, true), tally(2, 4));
    book.begin_look();
    unmap(&mut book, 36, 1);
    let busy = [&moved[..], &[(36, 37, "rw-p", "")]].concat();
    book.reconcile(&entries(&busy), Some(true));
    assert_eq!(book.tallies().unaccounted, tally(2, 4), "gone by now, or on its way");
}

#[test]
fn a_book_that_is_full_says_so() {
    let mut book = MappingBook::default();
    for number in 0..super::book::MAX_PIECES as u64 {
        map(&mut book, 1, 16 + 2 * number, 1);
    }
    assert_eq!(book.tallies().full, Tally::default());
    map(&mut book, 2, 8, 3);
    assert_eq!(book.tallies().full, Tally { count: 1, bytes: 3 * PAGE });
    let of =
        |book: &MappingBook, wanted| book.sites().find(|(site, _)| *site == wanted).map(|(_, sums)| sums);
    assert_eq!(of(&book, 2), Some(SiteCounters::default()), "what is not booked is not counted");
    // What is there already is still followed.
    unmap(&mut book, 16, 1);
    let bytes = of(&book, 1).map(|sums| sums.allocated_bytes - sums.freed_bytes);
    assert_eq!(bytes, Some((super::book::MAX_PIECES as u64 - 1) * PAGE));
    map(&mut book, 2, 16, 1);
    assert_eq!(book.tallies().full.count, 1, "there is room again");
}
