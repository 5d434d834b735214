//! Stacks of threads: whose they are.
//!
//! glibc keeps every stack that it made in one of three lists (`_dl_stack_used`, `_dl_stack_user`, `_dl_stack_cache`,
//! members of `_rtld_global` of the dynamic linker since 2.34). An element is part of `struct pthread`, which says
//! where the stack begins, how large it is, and which thread runs on it: that finds stacks of threads that run just now,
//! stacks that were joined with a neighbouring mapping, and stacks of ended threads that glibc keeps. Where there is no such
//! list (older glibc, musl, static programs), the stack pointer of a blocked thread tells which mapping its stack is.

use std::collections::HashMap;
use std::fs;

use super::claim::{Claims, Use};
use crate::attach::maps::MapEntry;
use crate::managed::memory::{Memory, is_anonymous};
use crate::model::LedgerClass::ThreadStack;

/// Threads that are looked at.
const MAX_THREADS: usize = 1 << 16;
/// Offsets in `struct pthread` on x86-64, the same since 2.4: `header.tcb`, `header.self`, `list`, `tid` (nptl/descr.h).
const SELF: u64 = 0x10;
const LIST: u64 = 0x2c0;
const TID: u64 = 0x2d0;
/// Where `stackblock`, `stackblock_size` and `guardsize` are looked for, in words; 0x690 in 2.36.
const BLOCK_WORDS: std::ops::Range<u64> = 0x5c..0x120;
/// Bytes of `_rtld_global` that are looked through for heads of lists; 4,300 in 2.36.
const RTLD_BYTES: u64 = 8 << 10;
/// How far from its end `struct pthread` lies in its stack, at most: its size and the alignment of static TLS.
const MAX_TOP_BYTES: u64 = 64 << 10;

pub(super) const ENDED: &str = "stacks of ended threads, kept by glibc";

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Thread {
    /// Its id, as we see it.
    pub(super) tid: u32,
    /// Its id in its own pid namespace, which is what its C library knows.
    pub(super) inner_tid: u32,
    /// Name; hostile input.
    pub(super) comm: String,
    /// Where it was in its stack, if it was blocked.
    pub(super) stack_pointer: Option<u64>,
}

impl Thread {
    fn stack(&self) -> Use {
        Use::new(ThreadStack, format!("thread {} {}", self.tid, self.comm))
    }
}

/// The threads of a process now. One that ends meanwhile is left out.
pub(super) fn read(tgid: u32) -> Vec<Thread> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{tgid}/task")) else { return Vec::new() };
    let thread = |task: fs::DirEntry| {
        let tid: u32 = task.file_name().to_str()?.parse().ok()?;
        let status = fs::read(task.path().join("status")).ok()?;
        let status = String::from_utf8_lossy(&status);
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        let inner_tid = field("NSpid").and_then(|ids| ids.split_whitespace().next_back()?.parse().ok());
        let syscall = fs::read_to_string(task.path().join("syscall")).ok();
        Some(Thread {
            tid,
            inner_tid: inner_tid.unwrap_or(tid),
            comm: field("Name").unwrap_or("?").to_owned(),
            stack_pointer: syscall.as_deref().and_then(stack_pointer),
        })
    };
    tasks.flatten().take(MAX_THREADS).filter_map(thread).collect()
}

/// The last but one field of `/proc/PID/task/TID/syscall`; a running thread has none.
pub(crate) fn stack_pointer(syscall: &str) -> Option<u64> {
    let pointer = syscall.split_whitespace().rev().nth(1)?;
    u64::from_str_radix(pointer.strip_prefix("0x")?, 16).ok().filter(|pointer| *pointer != 0)
}

/// Claims the stacks that glibc's lists know. `rtld_global` is the address of the variable.
pub(super) fn claim_listed(memory: &impl Memory, rtld_global: u64, threads: &[Thread], claims: &mut Claims) {
    let by_inner: HashMap<u32, &Thread> = threads.iter().map(|thread| (thread.inner_tid, thread)).collect();
    for head in heads(memory, rtld_global) {
        let mut element = memory.word(head);
        for _ in 0..MAX_THREADS {
            let Some(at) = element.filter(|at| *at != head) else { break };
            if let Some(stack) = at.checked_sub(LIST).and_then(|pthread| listed(memory, pthread)) {
                let of_thread = by_inner.get(&stack.tid).map(|thread| thread.stack());
                let what = of_thread.unwrap_or_else(|| Use::new(ThreadStack, ENDED));
                claims.add(stack.start, stack.end, &what);
            }
            element = memory.word(at);
        }
    }
}

/// Heads of circular lists: `next` and `prev`, which lead back from both sides.
fn heads(memory: &impl Memory, rtld_global: u64) -> Vec<u64> {
    let mut bytes = vec![0; RTLD_BYTES as usize];
    // The mapping may end before.
    while !bytes.is_empty() && !memory.read(rtld_global, &mut bytes) {
        bytes.truncate(bytes.len() - 512.min(bytes.len()));
    }
    let words: Vec<u64> =
        bytes.chunks_exact(8).filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?))).collect();
    let is_head = |(index, pair): (usize, &[u64])| {
        let head = rtld_global.checked_add(8 * index as u64)?;
        let [next, prev] = pair else { return None };
        let is_list = *next != head
            && next.is_multiple_of(8)
            && *next > 1 << 12
            && memory.word(next.checked_add(8)?) == Some(head)
            && memory.word(*prev) == Some(head);
        is_list.then_some(head)
    };
    words.windows(2).enumerate().filter_map(is_head).collect()
}

struct Listed {
    start: u64,
    end: u64,
    tid: u32,
}

/// The stack that a `struct pthread` describes, if it is one: it holds its own address twice, and lies at the end of
/// the block that it names.
fn listed(memory: &impl Memory, pthread: u64) -> Option<Listed> {
    let points_to_itself =
        memory.word(pthread)? == pthread && memory.word(pthread.checked_add(SELF)?)? == pthread;
    if !points_to_itself {
        return None;
    }
    let tid = memory.half(pthread.checked_add(TID)?)?;
    let word = |index: u64| memory.word(pthread.checked_add(8 * index)?);
    BLOCK_WORDS.into_iter().find_map(|index| {
        let (start, size_bytes, guard_bytes) = (word(index)?, word(index + 1)?, word(index + 2)?);
        let end = start.checked_add(size_bytes)?;
        let is_block = [start, size_bytes, guard_bytes].iter().all(|value| value.is_multiple_of(4096))
            && (start..end).contains(&pthread)
            && end - pthread <= MAX_TOP_BYTES
            && guard_bytes < size_bytes;
        is_block.then_some(Listed { start, end, tid })
    })
}

/// Claims the main thread's stack, and the mappings into which stack pointers lead. A stack with guard pages begins where
/// an inaccessible mapping ends; without, it is a mapping that has a stack pointer in it all the same.
pub(super) fn claim_by_pointer(entries: &[MapEntry], tgid: u32, threads: &[Thread], claims: &mut Claims) {
    for entry in entries.iter().filter(|entry| entry.name.starts_with(b"[stack]")) {
        let main = threads.iter().find(|thread| thread.tid == tgid);
        let what = main.map_or_else(|| Use::new(ThreadStack, "main thread"), Thread::stack);
        claims.add(entry.start, entry.end, &what);
    }
    for thread in threads {
        let Some(pointer) = thread.stack_pointer else { continue };
        let behind = entries.partition_point(|entry| entry.start <= pointer);
        let entry = behind.checked_sub(1).and_then(|index| entries.get(index));
        // A goroutine's stack is in the heap: that is claimed already.
        let is_stack = |entry: &&MapEntry| {
            pointer < entry.end
                && is_anonymous(entry)
                && entry.permissions.starts_with(b"rw")
                && !claims.covers(pointer)
        };
        if let Some(entry) = entry.filter(is_stack) {
            claims.add(entry.start, entry.end, &thread.stack());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ledger::fake::Fake;

    fn thread(tid: u32, inner_tid: u32) -> Thread {
        Thread { tid, inner_tid, comm: format!("t{tid}"), stack_pointer: None }
    }

    /// A list of one `struct pthread` at the end of a stack.
    fn lists(tid: u32) -> Fake {
        let mut memory = Fake::new(&[(0x10000, 0x2000), (0x70_0000, 0x1_0000)]);
        let (head, pthread) = (0x10100, 0x70_f600);
        for (at, value) in [
            (head, pthread + LIST),
            (head + 8, pthread + LIST),
            (pthread + LIST, head),
            (pthread + LIST + 8, head),
            (pthread, pthread),
            (pthread + SELF, pthread),
            (pthread + TID, u64::from(tid)),
            (pthread + 0x690, 0x70_0000),
            (pthread + 0x698, 0x1_0000),
            (pthread + 0x6a0, 0x1000),
        ] {
            memory.put(at, value);
        }
        memory
    }

    #[test]
    fn listed_stacks_have_their_threads_name() {
        let mut claims = Claims::default();
        claim_listed(&lists(7), 0x10000, &[thread(4007, 7)], &mut claims);
        assert_eq!(claims.at(0x70_0000).unwrap().label, "thread 4007 t4007");
        assert!(claims.covers(0x70_ffff) && !claims.covers(0x71_0000));
    }

    #[test]
    fn stacks_of_ended_threads_are_said_to_be() {
        let mut claims = Claims::default();
        claim_listed(&lists(0), 0x10000, &[thread(4007, 7)], &mut claims);
        assert_eq!(claims.at(0x70_0000).unwrap().label, ENDED);
    }

    #[test]
    fn what_does_not_point_to_itself_is_no_thread() {
        for (at, value) in [(0x70_f600, 1), (0x70_f610, 0), (0x70_f600 + 0x698, 0x1_0001)] {
            let mut memory = lists(7);
            memory.put(at, value);
            let mut claims = Claims::default();
            claim_listed(&memory, 0x10000, &[thread(4007, 7)], &mut claims);
            assert!(!claims.covers(0x70_0000), "{at:#x}");
        }
    }

    #[test]
    fn a_list_that_never_ends_is_left() {
        let mut memory = lists(7);
        // The element leads to itself.
        memory.put(0x70_f600 + LIST, 0x70_f600 + LIST);
        let mut claims = Claims::default();
        claim_listed(&memory, 0x10000, &[], &mut claims);
    }

    #[test]
    fn the_stack_pointer_is_the_last_but_one_field() {
        assert_eq!(stack_pointer("202 0x7f 0x80 0x7ffd10 0x7f00aa\n"), Some(0x7ffd10));
        assert_eq!(stack_pointer("-1 0x7ffd10 0x7f00aa\n"), Some(0x7ffd10));
        assert_eq!((stack_pointer("running\n"), stack_pointer("")), (None, None));
    }

    #[test]
    fn own_threads_are_found_by_their_stacks() {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let handle = std::thread::Builder::new().name("waits-here".into()).spawn(move || receiver.recv());
        let find = || read(std::process::id()).into_iter().find(|thread| thread.comm == "waits-here");
        let mut found = find();
        while found.as_ref().is_none_or(|thread| thread.stack_pointer.is_none()) {
            found = find();
        }
        drop(sender);
        assert!(handle.unwrap().join().unwrap().is_err());
        assert!(found.unwrap().stack_pointer.unwrap() > 1 << 32);
    }
}
