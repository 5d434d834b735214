//! What the pages of a site are: by where they lie, never by who touched them, with one exception. An allocator that
//! touches anonymous memory itself, its headers and lists, does so in memory of its own.

use std::collections::BTreeMap;

use super::{
    area::AreaKind,
    book::{SitePages, Use},
};
use crate::{
    managed::{self, MappingFacts, MappingKind, Place, Region},
    model::{MemoryClass, SiteClass},
    record::classes::place_of,
};

/// Functions of allocators that touch what they manage.
const ALLOCATOR_FUNCTIONS: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "free",
    "memalign",
    "posix_memalign",
    "aligned_alloc",
    "_int_malloc",
    "_int_free",
    "_int_realloc",
    "_int_memalign",
    "sysmalloc",
    "malloc_consolidate",
    "new_heap",
    "sbrk",
    "brk",
];
/// Beginnings of names of functions of allocators.
const ALLOCATOR_PREFIXES: &[&str] =
    &["__libc_m", "__libc_c", "__libc_r", "je_", "mi_", "tc_", "operator new", "_rjem_"];

/// The class of a site. `functions` are those of its stack, innermost first; `ranges` is what of it is resident.
pub fn class_of(
    site: u32,
    pages: &SitePages,
    functions: &[Option<&str>],
    ranges: &[(u64, u64)],
    regions: Option<&[Region]>,
) -> SiteClass {
    let of = |class, label: Option<String>| SiteClass { site, class, label };
    if let Place::Inside(region) = place_of(regions, ranges) {
        return of(region.class, Some(region.label.to_owned()));
    }
    let Some(most) = pages.uses.iter().max_by_key(|one| one.pages) else {
        return of(MemoryClass::Unknown, None);
    };
    let name = String::from_utf8_lossy(&most.name).into_owned();
    let named = || (!name.is_empty()).then(|| name.clone());
    match most.kind {
        AreaKind::Heap => of(MemoryClass::BrkHeap, Some("program break".to_owned())),
        AreaKind::GlibcArena => of(MemoryClass::AllocatorArena, Some("glibc malloc".to_owned())),
        AreaKind::Stack => of(MemoryClass::ThreadStack, Some("stack of the first thread".to_owned())),
        AreaKind::Code => of(MemoryClass::JitCode, None),
        AreaKind::Kernel => of(MemoryClass::RuntimeInternal, named()),
        AreaKind::File => classified(MappingKind::File, &name, site, named()),
        AreaKind::Shared => classified(MappingKind::SharedAnonymous, &name, site, named()),
        AreaKind::Anonymous if is_stack(most) => {
            of(MemoryClass::ThreadStack, Some("stack of a thread".to_owned()))
        }
        AreaKind::Anonymous if functions.iter().flatten().next().is_some_and(|name| is_allocator(name)) => {
            of(MemoryClass::AllocatorArena, None)
        }
        AreaKind::Anonymous => classified(MappingKind::Anonymous, &name, site, named()),
    }
}

/// Adds up what of `ranges` lies in collected heaps, by the heap's name. Exact, where the class of a site is that of most of
/// its pages.
pub fn add_heaps(ranges: &[(u64, u64)], regions: Option<&[Region]>, heaps: &mut BTreeMap<String, u64>) {
    let regions = regions.unwrap_or_default();
    for (start, end) in ranges {
        let first = regions.partition_point(|region| region.end <= *start);
        let inside = regions.iter().skip(first).take_while(|region| region.start < *end);
        for region in inside.filter(|region| region.class == MemoryClass::ManagedHeap) {
            *heaps.entry(region.label.to_owned()).or_default() +=
                region.end.min(*end).saturating_sub(region.start.max(*start));
        }
    }
}

fn is_stack(one: &Use) -> bool {
    one.on_stack * 2 > one.pages
}

fn is_allocator(function: &str) -> bool {
    let bare = function.split('(').next().unwrap_or(function);
    ALLOCATOR_FUNCTIONS.contains(&bare) || ALLOCATOR_PREFIXES.iter().any(|start| bare.starts_with(start))
}

/// By kind and name, as mappings are.
fn classified(kind: MappingKind, name: &str, site: u32, label: Option<String>) -> SiteClass {
    let facts = MappingFacts {
        kind,
        is_stack: false,
        is_executable: false,
        is_reserved: false,
        size_bytes: 0,
        allocator: None,
        name,
    };
    let found = managed::classify(&facts, &[], None, Place::NotKnown);
    SiteClass { site, class: found.class, label: found.label.or(label) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(kind: AreaKind, name: &str, on_stack: u64) -> SitePages {
        SitePages {
            uses: vec![
                Use { kind: AreaKind::Kernel, name: Vec::new(), pages: 1, on_stack: 0 },
                Use { kind, name: name.as_bytes().to_vec(), pages: 10, on_stack },
            ],
            counters: Default::default(),
            booked: 0,
        }
    }

    #[test]
    fn the_place_of_most_pages_decides() {
        let region = Region { start: 0x1000, end: 0x9000, class: MemoryClass::ManagedHeap, label: "V8 heap" };
        let class = |pages: &SitePages, functions: &[Option<&str>], ranges: &[(u64, u64)]| {
            let found = class_of(1, pages, functions, ranges, Some(std::slice::from_ref(&region)));
            (found.class, found.label.unwrap_or_default())
        };
        let mut heaps = BTreeMap::new();
        add_heaps(&[(0x500, 0x1500), (0x8000, 0xa000)], Some(std::slice::from_ref(&region)), &mut heaps);
        assert_eq!(heaps, BTreeMap::from([("V8 heap".to_owned(), 0x1500)]));
        let plain = pages(AreaKind::Anonymous, "", 0);
        assert_eq!(class(&plain, &[], &[(0x2000, 0x4000)]), (MemoryClass::ManagedHeap, "V8 heap".to_owned()));
        assert_eq!(class(&plain, &[], &[(0x20_0000, 0x40_0000)]).0, MemoryClass::DirectMapping);
        assert_eq!(class(&plain, &[Some("fill"), Some("malloc")], &[]).0, MemoryClass::DirectMapping);
        for function in ["_int_malloc", "operator new(unsigned long)", "je_malloc"] {
            assert_eq!(class(&plain, &[None, Some(function)], &[]).0, MemoryClass::AllocatorArena);
        }
        assert_eq!(class(&pages(AreaKind::Anonymous, "", 9), &[], &[]).0, MemoryClass::ThreadStack);
        assert_eq!(class(&pages(AreaKind::Heap, "[heap]", 0), &[], &[]).0, MemoryClass::BrkHeap);
        let file = pages(AreaKind::File, "/data/index", 0);
        assert_eq!(class(&file, &[], &[]), (MemoryClass::FileMapping, "/data/index".to_owned()));
        let memfd = pages(AreaKind::Shared, "/memfd:x (deleted)", 0);
        assert_eq!(class(&memfd, &[], &[]), (MemoryClass::SharedMemory, "/memfd:x (deleted)".to_owned()));
        let v8 = pages(AreaKind::Anonymous, "[anon:v8]", 0);
        assert_eq!(class(&v8, &[], &[]).0, MemoryClass::ManagedHeap);
        assert_eq!(class(&SitePages::default(), &[], &[]).0, MemoryClass::Unknown);
    }
}
