//! The book against a model that knows nothing but pages.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tracer_common::abi::{
    OPERATION_REMAP, OPERATION_REMAP_ENTER, OPERATION_REMAP_FAILED, OPERATION_UNMAP_FAILED,
};

use super::{DONT_UNMAP, MappingBook, MappingEvent, PAGE, counters, event, look, map, remap, reserve, unmap};

/// Pages of the model's address space.
const SPACE: usize = 48;

/// One page: number of its mapping, its site, whether it is reserved.
type Page = Option<(u64, u32, bool)>;

#[derive(Clone, Debug)]
struct Model {
    pages: [Page; SPACE],
    next: u64,
}

impl Model {
    fn set(&mut self, site: u32, start: usize, length: usize, is_reserved: bool) {
        self.next += 1;
        let page = Some((self.next, site, is_reserved));
        self.pages.iter_mut().skip(start).take(length).for_each(|place| *place = page);
    }

    fn clear(&mut self, start: usize, length: usize) {
        self.pages.iter_mut().skip(start).take(length).for_each(|page| *page = None);
    }

    /// Pages of memory, mappings and reserved pages by site.
    fn outstanding(&self) -> BTreeMap<u32, (u64, u64, u64)> {
        let mut mappings: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        let mut sums: BTreeMap<u32, (u64, u64, u64)> = BTreeMap::new();
        for (mapping, site, is_reserved) in self.pages.iter().flatten() {
            let sum = sums.entry(*site).or_default();
            if *is_reserved {
                sum.2 += 1;
            } else {
                sum.0 += 1;
                mappings.entry(*site).or_default().insert(*mapping);
            }
        }
        for (site, set) in mappings {
            sums.entry(site).or_default().1 = set.len() as u64;
        }
        sums
    }
}

#[derive(Clone, Debug)]
enum Step {
    Map { site: u32, start: usize, length: usize, is_reserved: bool },
    Unmap { start: usize, length: usize, fails: bool },
    Remap { site: u32, old: usize, old_length: usize, new: usize, length: usize, leaves: bool, fails: bool },
    Protect { start: usize, length: usize, is_reserved: bool },
    Look,
    LostUnmap { start: usize, length: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0..SPACE, 1..16usize).prop_map(|(start, length)| (start, length.min(SPACE - start)));
    let site = || 1..5u32;
    prop_oneof![
        4 => (site(), place(), any::<bool>()).prop_map(|(site, (start, length), is_reserved)| {
            Step::Map { site, start, length, is_reserved }
        }),
        3 => (place(), any::<bool>())
            .prop_map(|((start, length), fails)| Step::Unmap { start, length, fails }),
        3 => (site(), place(), place(), any::<bool>(), any::<bool>()).prop_map(
            |(site, (old, old_length), (new, length), leaves, fails)| {
                // The kernel takes no overlap except a change of size in place, and leaves only what keeps its size.
                let apart = old + old_length <= new || new + length <= old;
                let (new, leaves) =
                    if apart { (new, leaves && length == old_length) } else { (old, false) };
                let length = length.min(SPACE - new);
                Step::Remap { site, old, old_length, new, length, leaves, fails }
            }
        ),
        1 => (place(), any::<bool>())
            .prop_map(|((start, length), is_reserved)| Step::Protect { start, length, is_reserved }),
        1 => Just(Step::Look),
        1 => place().prop_map(|(start, length)| Step::LostUnmap { start, length }),
    ]
}

fn apply_to_book(book: &mut MappingBook, step: &Step, model: &Model) {
    match *step {
        Step::Map { site, start, length, is_reserved: false } => {
            map(book, site, start as u64, length as u64);
        }
        Step::Map { site, start, length, .. } => reserve(book, site, start as u64, length as u64),
        Step::Unmap { start, length, fails } => {
            unmap(book, start as u64, length as u64);
            if fails {
                book.apply(&event(OPERATION_UNMAP_FAILED, 1, 0, start as u64, length as u64));
            }
        }
        Step::Remap { site, old, old_length, new, length, leaves, fails } => {
            let flags = if leaves { DONT_UNMAP } else { 0 };
            let (from, to) = ((old as u64, old_length as u64), (new as u64, length as u64));
            book.apply(&MappingEvent { flags, ..remap(OPERATION_REMAP_ENTER, 1, 0, from, to) });
            let end = if fails { OPERATION_REMAP_FAILED } else { OPERATION_REMAP };
            book.apply(&MappingEvent { flags, ..remap(end, 1, site, from, to) });
        }
        Step::Protect { .. } | Step::LostUnmap { .. } => {}
        Step::Look => {
            let pages = model.pages.iter().zip(0u64..);
            let lines: Vec<_> = pages
                .filter_map(|(page, at)| {
                    let permissions = if (*page)?.2 { "---p" } else { "rw-p" };
                    Some((at, at + 1, permissions, ""))
                })
                .chain([(1000, 1001, "r-xp", "/bin/target")])
                .collect();
            look(book, &lines);
        }
    }
}

fn apply_to_model(model: &mut Model, step: &Step) {
    match *step {
        Step::Map { site, start, length, is_reserved } => model.set(site, start, length, is_reserved),
        Step::Unmap { start, length, fails: false } | Step::LostUnmap { start, length } => {
            model.clear(start, length);
        }
        Step::Remap { site, old, old_length, new, length, leaves, fails: false } => {
            let moved: Vec<Page> = model.pages[old..old + old_length].to_vec();
            let is_reserved = moved.iter().rev().flatten().next().is_some_and(|page| page.2);
            model.clear(old, old_length);
            model.clear(new, length);
            for (place, page) in model.pages.iter_mut().skip(new).take(length).zip(&moved) {
                *place = *page;
            }
            if length > old_length {
                model.set(site, new + old_length, length - old_length, is_reserved);
            }
            if leaves {
                model.set(site, old, old_length, is_reserved);
            }
        }
        Step::Protect { start, length, is_reserved } => {
            for page in model.pages.iter_mut().skip(start).take(length).flatten() {
                page.2 = is_reserved;
            }
        }
        Step::Unmap { .. } | Step::Remap { .. } | Step::Look => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// After a look, the book says of every site what the pages say; and it never takes a count back, except for
    /// calls that fail.
    #[test]
    fn the_book_is_as_the_pages_are(steps in proptest::collection::vec(step(), 1..40)) {
        let mut book = MappingBook::default();
        let mut model = Model { pages: [None; SPACE], next: 0 };
        for step in &steps {
            apply_to_model(&mut model, step);
            apply_to_book(&mut book, step, &model);
            let is_hidden = |step: &Step| matches!(step, Step::Protect { .. } | Step::LostUnmap { .. });
            // Hidden steps are seen by a look.
            if is_hidden(step) {
                apply_to_book(&mut book, &Step::Look, &model);
            }
            let pages = model.outstanding();
            let facts = book.facts();
            for site in 1..5 {
                let (bytes, count, reserved) = pages.get(&site).copied().unwrap_or_default();
                let found = counters(&book, site);
                prop_assert_eq!((found.0 - found.2, found.1 - found.3), (bytes, count), "site {}", site);
                let reserved_bytes = facts.get(&site).map_or(0, |facts| facts.reserved_bytes);
                prop_assert_eq!(reserved_bytes, reserved * PAGE, "site {}", site);
            }
        }
    }
}
