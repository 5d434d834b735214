//! Pages come, move and go.
#![allow(clippy::indexing_slicing)]

use proptest::prelude::*;
use tracer_common::abi::{FAULT_ON_PRESENT, MAX_FAULT_LEVEL};

use super::*;

const PRESENT: PageState = PageState::PRESENT;

fn area(start: u64, end: u64, kind: AreaKind) -> Area {
    Area { start, end, kind, is_shared: false, name: Vec::new() }
}

fn run(start: u64, end: u64, state: PageState) -> PageRun {
    PageRun { start, end, state }
}

fn fault(site: u32, flags: u32) -> PageFault {
    PageFault { time_ns: 0, site, flags }
}

fn write(site: u32) -> PageFault {
    fault(site, FAULT_FRESH | FAULT_WRITE)
}

/// (resident, ever) pages of a site.
fn pages(book: &PageBook, site: u32) -> (u64, u64) {
    let counters = book.sites.get(&site).map(|state| state.counters).unwrap_or_default();
    assert_eq!(counters.allocated_bytes, counters.allocated_count * PAGE_BYTES);
    assert_eq!(counters.freed_bytes, counters.freed_count * PAGE_BYTES);
    (counters.allocated_count - counters.freed_count, counters.allocated_count)
}

fn look(book: &mut PageBook, areas: &[Area], runs: &[PageRun]) -> Looked {
    let all: Vec<_> = areas.iter().map(|area| (area.start, area.end)).collect();
    book.look(areas, &all, runs)
}

#[test]
fn touched_pages_are_resident_until_they_are_not() {
    let areas = [area(1000, 3000, AreaKind::Anonymous)];
    let mut book = PageBook::default();
    book.begin(&areas, &[run(1000, 1010, PRESENT)]);
    assert_eq!(book.start_pages(), Some(10));
    for page in 1010..1020 {
        book.fault(page, &write(1));
    }
    let looked = look(&mut book, &areas, &[run(1000, 1020, PRESENT)]);
    assert_eq!(pages(&book, 1), (10, 10));
    assert_eq!((looked.resident, looked.before, looked.of_sites, looked.unattributed), (20, 10, 10, 0));
    // Half of it is given back, and touched again from elsewhere; of the old memory, some too.
    for page in 1010..1015 {
        book.fault(page, &write(2));
    }
    let looked = look(&mut book, &areas, &[run(1004, 1018, PRESENT)]);
    assert_eq!((pages(&book, 1), pages(&book, 2)), ((3, 10), (5, 5)));
    assert_eq!((looked.before, looked.of_sites), (6, 8));
    look(&mut book, &areas, &[]);
    assert_eq!((pages(&book, 1), pages(&book, 2), book.held()), ((0, 10), (0, 5), 0));
}

#[test]
fn a_page_on_its_way_has_until_the_next_look() {
    let areas = [area(0, 100, AreaKind::Anonymous)];
    let mut book = PageBook::default();
    book.begin(&areas, &[]);
    book.fault(5, &write(1));
    look(&mut book, &areas, &[]);
    assert_eq!((pages(&book, 1), book.held()), ((0, 0), 1));
    look(&mut book, &areas, &[run(5, 6, PRESENT)]);
    assert_eq!(pages(&book, 1), (1, 1));
    book.fault(6, &write(1));
    look(&mut book, &areas, &[run(5, 6, PRESENT)]);
    look(&mut book, &areas, &[run(5, 6, PRESENT)]);
    assert_eq!((pages(&book, 1), book.held()), ((1, 2), 1), "it came and went");
}

#[test]
fn a_huge_page_below_a_stack_pointer_is_stack() {
    let areas = [area(512, 2048, AreaKind::Anonymous)];
    let mut book = PageBook::default();
    book.begin(&areas, &[]);
    book.fault(1000, &fault(1, FAULT_FRESH | FAULT_WRITE | FAULT_ON_STACK));
    book.fault(1030, &write(2));
    look(&mut book, &areas, &[run(512, 1024, PRESENT), run(1030, 1040, PRESENT)]);
    assert_eq!((pages(&book, 1), pages(&book, 2)), ((512, 512), (10, 10)));
    let on_stack =
        |site| book.sites[&site].uses.iter().map(|one| (one.pages, one.on_stack)).collect::<Vec<_>>();
    assert_eq!((on_stack(1), on_stack(2)), (vec![(512, 512)], vec![(10, 0)]));
}

#[test]
fn the_page_of_zeroes_is_nobodys() {
    let areas = [area(0, 100, AreaKind::Anonymous)];
    let zero = PRESENT.and(PageState::ZERO);
    let perhaps = PRESENT.and(PageState::PERHAPS_ZERO);
    for state in [zero, perhaps] {
        let mut book = PageBook::default();
        book.begin(&areas, &[]);
        book.fault(5, &fault(1, FAULT_FRESH));
        look(&mut book, &areas, &[run(5, 6, state)]);
        assert_eq!(pages(&book, 1), (0, 0));
        book.fault(5, &fault(2, FAULT_ON_PRESENT | FAULT_WRITE));
        let looked = look(&mut book, &areas, &[run(5, 6, PRESENT)]);
        assert_eq!((pages(&book, 1), pages(&book, 2)), ((0, 0), (1, 1)));
        assert_eq!(looked.copied, 0);
    }
}

#[test]
fn copies_of_older_pages_are_told_apart() {
    let areas = [area(0, 100, AreaKind::Anonymous)];
    let mut book = PageBook::default();
    book.fault(2, &fault(1, FAULT_ON_PRESENT | FAULT_WRITE));
    book.begin(&areas, &[run(0, 10, PRESENT)]);
    assert_eq!(book.start_pages(), Some(10), "a copy was there before");
    book.fault(3, &fault(1, FAULT_ON_PRESENT | FAULT_WRITE));
    book.fault(4, &write(1));
    let looked = look(&mut book, &areas, &[run(0, 10, PRESENT)]);
    assert_eq!((looked.of_sites, looked.copied, looked.before), (3, 2, 7));
    book.clear();
    assert_eq!((pages(&book, 1), book.start_pages()), ((0, 3), None));
}

#[test]
fn pages_without_a_fault_count_for_the_nearest_of_their_block() {
    let areas = [area(512, 1100, AreaKind::Anonymous), area(1100, 1536, AreaKind::File)];
    let mut book = PageBook::default();
    book.begin(&areas, &[]);
    book.fault(600, &write(1));
    book.fault(1000, &write(2));
    book.fault(1030, &fault(4, FAULT_FRESH));
    book.fault(1200, &fault(3, FAULT_FRESH));
    let file = PRESENT.and(PageState::FILE);
    let huge = PRESENT.and(PageState::PERHAPS_ZERO);
    let runs = [run(512, 1024, huge), run(1030, 1040, huge), run(1190, 1210, file), run(1600, 1601, PRESENT)];
    let looked = look(&mut book, &areas, &runs);
    assert_eq!(pages(&book, 1), (289, 289), "up to the middle");
    assert_eq!(pages(&book, 2), (223, 223));
    assert_eq!(pages(&book, 3), (20, 20));
    assert_eq!(pages(&book, 4), (0, 0), "a huge page of zeroes");
    assert_eq!(looked.unattributed, 9, "what nobody wrote to has no claimant");
}

#[test]
fn what_was_populated_belongs_to_whoever_did() {
    let areas = [area(0, 1000, AreaKind::Anonymous)];
    let mut book = PageBook::default();
    book.begin(&areas, &[run(0, 10, PRESENT)]);
    book.fault(20, &write(1));
    book.populate(5, 40, 2);
    assert_eq!(book.ranges(), [(0, 512)]);
    let looked = look(&mut book, &areas, &[run(0, 40, PRESENT)]);
    assert_eq!((pages(&book, 1), pages(&book, 2)), ((1, 1), (29, 29)));
    assert_eq!(looked.before, 10);
}

#[test]
fn what_is_populated_while_the_tables_are_read_is_seen_by_the_next_look() {
    let areas = [area(0, 2000, AreaKind::Anonymous)];
    let mut book = PageBook::default();
    book.begin(&areas, &[]);
    book.populate(100, 200, 5);
    look(&mut book, &areas, &[]);
    // Half of it moves, a part of the other half has gone.
    book.move_range((150, 50), (1000, 50));
    book.drop_range(110, 120);
    let there = [run(100, 150, PRESENT), run(1000, 1050, PRESENT)];
    let looked = look(&mut book, &areas, &there);
    assert_eq!((pages(&book, 5), looked.unattributed), ((90, 90), 10));
    // By now it counts for nothing.
    look(&mut book, &areas, &there);
    let looked = look(&mut book, &areas, &[run(100, 150, PRESENT), run(1000, 1100, PRESENT)]);
    assert_eq!((pages(&book, 5), looked.unattributed), ((90, 90), 60));
}

#[test]
fn pages_move_with_their_memory() {
    let areas = [area(0, 2000, AreaKind::Anonymous)];
    let mut book = PageBook::default();
    book.begin(&areas, &[run(100, 110, PRESENT)]);
    for page in 110..120 {
        book.fault(page, &write(1));
    }
    look(&mut book, &areas, &[run(100, 120, PRESENT)]);
    book.fault(1505, &write(2));
    book.move_range((100, 20), (1500, 40));
    let looked = look(&mut book, &areas, &[run(1500, 1520, PRESENT)]);
    assert_eq!(pages(&book, 1), (10, 10));
    assert_eq!((looked.before, looked.unattributed, looked.of_sites), (10, 0, 10));
}

#[test]
fn what_moves_while_the_tables_are_read_keeps_its_site() {
    let areas = [area(0, 2000, AreaKind::Anonymous)];
    let mut book = PageBook::default();
    book.begin(&areas, &[run(100, 110, PRESENT)]);
    for page in 110..120 {
        book.fault(page, &write(1));
    }
    let there = [run(100, 120, PRESENT)];
    look(&mut book, &areas, &there);
    // They were read at the old place, beside pages of another site, and at the new one before anything was there.
    book.fault(99, &write(2));
    book.move_range((100, 20), (1500, 20));
    let looked = look(&mut book, &areas, &[run(99, 120, PRESENT)]);
    assert_eq!((pages(&book, 1), pages(&book, 2), looked.unattributed), ((10, 10), (1, 1), 0));
    book.drop_range(99, 100);
    let looked = look(&mut book, &areas, &[run(1500, 1520, PRESENT)]);
    assert_eq!((pages(&book, 1), looked.before, looked.unattributed), ((10, 10), 10, 0));
    // Gone is what is not there at the next look either.
    book.move_range((1500, 20), (100, 20));
    look(&mut book, &areas, &[]);
    let looked = look(&mut book, &areas, &[]);
    assert_eq!((pages(&book, 1), looked.before, book.held()), ((0, 10), 0, 0));
}

#[test]
fn swapped_pages_are_counted_apart() {
    let areas = [area(0, 100, AreaKind::Anonymous)];
    let mut book = PageBook::default();
    book.begin(&areas, &[]);
    book.fault(1, &write(1));
    book.fault(2, &write(1));
    look(&mut book, &areas, &[run(1, 3, PRESENT)]);
    let looked = look(&mut book, &areas, &[run(1, 2, PRESENT), run(2, 3, PageState::SWAPPED)]);
    assert_eq!((pages(&book, 1), looked.swapped), ((1, 2), 1));
    book.fault(2, &write(2));
    look(&mut book, &areas, &[run(1, 3, PRESENT)]);
    assert_eq!((pages(&book, 1), pages(&book, 2)), ((1, 2), (1, 1)));
}

#[test]
fn samples_stand_for_the_rest() {
    let blocks = 4096u64;
    let areas = [area(0, blocks << BLOCK_SHIFT, AreaKind::Anonymous)];
    let mut book = PageBook::default();
    book.begin(&areas, &[]);
    for block in 0..blocks {
        for page in 0..4 {
            book.fault((block << BLOCK_SHIFT) + page, &write(if block % 4 == 0 { 1 } else { 2 }));
        }
    }
    let runs: Vec<_> =
        (0..blocks).map(|block| run(block << BLOCK_SHIFT, (block << BLOCK_SHIFT) + 4, PRESENT)).collect();
    look(&mut book, &areas, &runs);
    assert_eq!((pages(&book, 1).0, pages(&book, 2).0), (4096, 3 * 4096));
    for level in [1, 4] {
        book.sample(level);
        look(&mut book, &areas, &runs);
        let error = book.standard_error_pages();
        let total = (pages(&book, 1).0 + pages(&book, 2).0) as f64;
        assert!((total - 16384.0).abs() <= 4.0 * error, "{total} ± {error} of level {level}");
        assert!(error < 2000.0 && error > 0.0, "{error}");
    }
    look(&mut book, &areas, &[]);
    assert_eq!((pages(&book, 1).0, pages(&book, 2).0, book.held()), (0, 0, 0));
}

proptest! {
    /// Whatever a target does: counters never fall, what is outstanding is what the book holds resident, and nothing
    /// overflows.
    #[test]
    fn any_order_adds_up(
        steps in proptest::collection::vec((0u8..7, 0u64..1200, 0u64..1200, 0u32..4, 0u32..4), 1..60)
    ) {
        let areas = [area(0, 600, AreaKind::Anonymous), area(600, 2048, AreaKind::File)];
        let mut book = PageBook::default();
        let (mut level, mut has_moved) = (0, false);
        for (step, first, second, site, flags) in steps {
            let (start, end) = (first.min(second), first.max(second) + 1);
            match step {
                0 | 1 => (start..end.min(start + 50)).for_each(|page| {
                    let fresh = if flags & 1 == 0 { FAULT_FRESH } else { 0 };
                    book.fault(page, &fault(site, flags | fresh));
                }),
                2 => {
                    let state = if flags == 3 { PageState::SWAPPED } else { PRESENT };
                    let looked = look(&mut book, &areas, &[run(start, end, state)]);
                    prop_assert!(looked.of_sites + looked.before + looked.unattributed <= looked.resident);
                    // What has moved away is nobody's where these tables may show it still.
                    if level == 0 && !has_moved {
                        prop_assert_eq!(looked.of_sites + looked.before + looked.unattributed, looked.resident);
                    }
                    has_moved = false;
                }
                3 => {
                    book.move_range((first, second), (second, first + 7));
                    has_moved = true;
                }
                4 => book.begin(&areas, &[run(start, end, PRESENT)]),
                5 => book.populate(start, end, site),
                _ if flags == 0 => book.clear(),
                _ => {
                    level = (level + 1).min(MAX_FAULT_LEVEL);
                    book.sample(level);
                }
            }
            let held: u64 = book.chunks.values().map(|chunk| u64::from(chunk.held().count_ones())).sum();
            prop_assert_eq!(held, book.held());
            let booked: u64 = book.chunks.values().map(|chunk| u64::from(chunk.booked.count_ones())).sum();
            let outstanding: u64 = (0..4).map(|site| pages(&book, site).0).sum();
            prop_assert_eq!(booked << level, outstanding);
            for chunk in book.chunks.values() {
                prop_assert_eq!(chunk.booked & !chunk.held(), 0);
                prop_assert_eq!(chunk.own & chunk.claimed, 0);
            }
        }
    }
}
