//! V8: Node, and whatever else embeds it.
//!
//! Functions are those of `node` 20 as `strace -k` shows them. All memory of the heap comes through
//! `MemoryAllocator`, in pages of 256 KiB that are aligned to their size; the code range is reserved once.

use std::collections::HashMap;

use super::Region;
use super::memory::{Memory, is_anonymous};
use super::rule::{Table, rule};
use crate::attach::maps::MapEntry;
use crate::model::MemoryClass::{JitCode, ManagedHeap, RuntimeInternal};

pub(super) const TABLE: Table = Table {
    rules: &[
        rule("v8::internal::CodeRange::", JitCode, "V8 code"),
        rule("v8::internal::wasm::WasmCode", JitCode, "V8 code"),
        rule("v8::internal::BackingStore::", ManagedHeap, "V8 WebAssembly memory"),
        rule("v8::internal::MemoryAllocator::", ManagedHeap, "V8 heap"),
        rule("v8::internal::ReadOnly", ManagedHeap, "V8 heap"),
        rule("v8::internal::IsolateAllocator::", ManagedHeap, "V8 heap"),
        rule("v8::internal::SegmentedTable", ManagedHeap, "V8 heap"),
        rule("v8::internal::External", ManagedHeap, "V8 heap"),
        rule("cppgc::internal::GCInfoTable", RuntimeInternal, "V8"),
        rule("cppgc::", ManagedHeap, "V8 heap for C++ objects"),
    ],
    borders: &[
        "Builtins_",
        "v8::internal::FunctionCallbackArguments::",
        "v8::internal::PropertyCallbackArguments::",
        "v8::internal::Execution::",
        "v8::internal::(anonymous namespace)::Invoke",
        "v8::internal::Builtin_",
        "v8::Function::Call",
    ],
    own_functions: &["v8::", "cppgc::", "heap::base::"],
    own_objects: &[],
    otherwise: Some((RuntimeInternal, "V8")),
    code_label: Some("V8 code"),
};

/// Alignment, and smallest size, of V8's pages in bytes (`kPageSizeBits` is 18).
const PAGE_BYTES: u64 = 256 << 10;
/// Words of a page's header that are looked at.
const HEADER_WORDS: usize = 16;
/// Pages that are looked at: 16 GiB of them.
const MAX_PAGES: usize = 1 << 16;
/// Pages that must agree on their heap before any of them is believed.
const MIN_VOTES: usize = 8;
/// Largest offset of a page's objects behind its header, in bytes.
const MAX_HEADER_BYTES: u64 = 32 << 10;

/// One page that may be V8's.
struct Page {
    start: u64,
    size_bytes: u64,
    header: [u64; HEADER_WORDS],
}

/// The pages of V8's heaps, and the code that it makes.
///
/// A page begins at a multiple of 256 KiB with its size, and its header holds its own address and a pointer to its heap,
/// which is the same in all pages of an isolate. The offsets differ between versions; that many pages agree on one of
/// them is the evidence. Below eight pages nothing is said. Code is in anonymous executable mappings; where they are not
/// V8's, they are code that something made at run time all the same.
pub(super) fn regions(memory: &impl Memory, entries: &[MapEntry]) -> Vec<Region> {
    let mut pages = Vec::new();
    for entry in entries.iter().filter(|entry| is_anonymous(entry) && entry.permissions.starts_with(b"rw")) {
        let mut start = entry.start.next_multiple_of(PAGE_BYTES);
        while start < entry.end && pages.len() < MAX_PAGES {
            let page = read_page(memory, start, entry.end);
            start += page.as_ref().map_or(PAGE_BYTES, |page| page.size_bytes.next_multiple_of(PAGE_BYTES));
            pages.extend(page);
        }
    }
    let mut votes: HashMap<(usize, u64), usize> = HashMap::new();
    for page in &pages {
        for (index, word) in
            page.header.iter().enumerate().skip(1).filter(|(_, word)| is_heap_pointer(**word, page))
        {
            *votes.entry((index, *word)).or_default() += 1;
        }
    }
    let is_agreed = |page: &Page| {
        page.header
            .iter()
            .enumerate()
            .any(|(index, word)| votes.get(&(index, *word)).is_some_and(|votes| *votes >= MIN_VOTES))
    };
    let heap = pages.iter().filter(|page| is_agreed(page)).map(|page| Region {
        start: page.start,
        end: page.start + page.size_bytes,
        class: ManagedHeap,
        label: "V8 heap",
    });
    let code = entries
        .iter()
        .filter(|entry| is_anonymous(entry) && entry.is_executable())
        .map(|entry| Region { start: entry.start, end: entry.end, class: JitCode, label: "V8 code" });
    heap.chain(code).collect()
}

/// A page, if its size and the places in it are what they must be.
fn read_page(memory: &impl Memory, start: u64, mapping_end: u64) -> Option<Page> {
    let mut bytes = [0; 8 * HEADER_WORDS];
    if !memory.read(start, &mut bytes) {
        return None;
    }
    let mut header = [0; HEADER_WORDS];
    for (word, bytes) in header.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().ok()?);
    }
    let size_bytes = header.first().copied()?;
    let is_sane = size_bytes >= PAGE_BYTES && size_bytes % 4096 == 0 && size_bytes <= mapping_end - start;
    let holds_itself = header.contains(&start);
    let begins_area = header.iter().any(|word| (start + 64..start + MAX_HEADER_BYTES).contains(word));
    (is_sane && holds_itself && begins_area).then_some(Page { start, size_bytes, header })
}

/// A pointer that does not lead into the page itself.
fn is_heap_pointer(word: u64, page: &Page) -> bool {
    (0x1_0000..1 << 47).contains(&word)
        && word.is_multiple_of(8)
        && word != page.size_bytes
        && !(page.start..page.start + page.size_bytes).contains(&word)
}
