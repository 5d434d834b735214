//! `offheap demo-target`: a program that leaks, and knows how much.
//!
//! It speaks with whoever started it, over its standard streams: it writes `ready`, waits for the line `go`,
//! works for the given time, writes its ground truth as one line of JSON, and ends when its input is closed.
//! Its memory comes from the C library's `malloc` directly, so that each function below is the caller of the
//! allocator; what Rust's own library allocates besides is not in the truth.

use std::hint::black_box;
use std::io::{BufRead, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// Size of a leaked block.
const LEAK_BLOCK_BYTES: usize = 1024;
/// One block each: 64 KiB a second.
const LEAK_INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / 64);
/// The cache, which is filled once: 1 MiB.
const CACHE_BLOCK_BYTES: usize = 4096;
const CACHE_BLOCKS: usize = 256;
/// Blocks that are allocated and freed between two leaks.
const CHURN_BLOCK_BYTES: usize = 512;
const CHURN_BLOCKS: usize = 16;

/// What a function of this program holds at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DemoTruth {
    /// Full path of the function, as symbolized.
    pub function: String,
    /// Bytes it asked for and did not free.
    pub outstanding_bytes: u64,
    /// Blocks it did not free.
    pub outstanding_count: u64,
}

/// Does what the module says. An end of the input instead of `go` ends it without work.
pub fn run(duration: Duration, input: &mut dyn BufRead, output: &mut dyn Write) -> Result<()> {
    say(output, "ready")?;
    let mut line = String::new();
    input.read_line(&mut line).context("read the standard input")?;
    match line.trim_end() {
        "" => return Ok(()),
        "go" => {}
        other => bail!("expected `go`, got `{}`", other.escape_debug()),
    }
    let truth = work(duration)?;
    say(output, &serde_json::to_string(&truth)?)?;
    line.clear();
    while input.read_line(&mut line).context("read the standard input")? > 0 {
        line.clear();
    }
    Ok(())
}

fn say(output: &mut dyn Write, line: &str) -> Result<()> {
    writeln!(output, "{line}").and_then(|()| output.flush()).context("write to the standard output")
}

fn work(duration: Duration) -> Result<Vec<DemoTruth>> {
    let mut cache = [0; CACHE_BLOCKS];
    demo_cache_fill(&mut cache)?;
    let start = Instant::now();
    let mut leaked_count = 0;
    while let Some(left) = duration.checked_sub(start.elapsed()) {
        demo_leak_request_buffers()?;
        leaked_count += 1;
        demo_churn()?;
        let next = LEAK_INTERVAL * leaked_count;
        thread::sleep(next.saturating_sub(start.elapsed()).min(left));
    }
    black_box(&cache);
    Ok(vec![
        truth(&demo_leak_request_buffers, u64::from(leaked_count), LEAK_BLOCK_BYTES),
        truth(&demo_cache_fill, CACHE_BLOCKS as u64, CACHE_BLOCK_BYTES),
        truth(&demo_churn, 0, CHURN_BLOCK_BYTES),
    ])
}

fn truth<F>(function: &F, count: u64, block_bytes: usize) -> DemoTruth {
    DemoTruth {
        function: std::any::type_name_of_val(function).to_owned(),
        outstanding_bytes: count * block_bytes as u64,
        outstanding_count: count,
    }
}

/// Leaks one block.
#[inline(never)]
fn demo_leak_request_buffers() -> Result<()> {
    // SAFETY: any size may be asked for.
    let block = unsafe { libc::malloc(black_box(LEAK_BLOCK_BYTES)) };
    touch(block, 1)
}

/// Fills every place of the cache; the addresses keep the blocks reachable.
#[inline(never)]
fn demo_cache_fill(places: &mut [usize; CACHE_BLOCKS]) -> Result<()> {
    for place in places {
        // SAFETY: any size may be asked for.
        let block = unsafe { libc::malloc(black_box(CACHE_BLOCK_BYTES)) };
        touch(block, 2)?;
        *place = block.addr();
    }
    Ok(())
}

/// Allocates blocks and frees them.
#[inline(never)]
fn demo_churn() -> Result<()> {
    for _ in 0..CHURN_BLOCKS {
        // SAFETY: any size may be asked for.
        let block = unsafe { libc::malloc(black_box(CHURN_BLOCK_BYTES)) };
        touch(block, 3)?;
        // SAFETY: `block` came from `malloc` and is used no more.
        unsafe { libc::free(block) };
    }
    Ok(())
}

/// Writes to a block, so that its allocation cannot be left out.
#[inline(always)]
fn touch(block: *mut libc::c_void, mark: u8) -> Result<()> {
    ensure!(!block.is_null(), "out of memory");
    // SAFETY: the block is not null, came from `malloc`, and is longer than a byte.
    unsafe { block.cast::<u8>().write_volatile(mark) };
    black_box(block);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn converse(input: &str) -> (Result<()>, Vec<String>) {
        let mut output = Vec::new();
        let outcome = run(Duration::from_millis(100), &mut Cursor::new(input), &mut output);
        (outcome, String::from_utf8(output).unwrap().lines().map(str::to_owned).collect())
    }

    #[test]
    fn the_truth_is_told_after_the_work() {
        let (outcome, lines) = converse("go\n");
        outcome.unwrap();
        let [ready, truth] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(ready, "ready");
        let truth: Vec<DemoTruth> = serde_json::from_str(truth).unwrap();
        let [leak, cache, churn] = &truth[..] else { panic!("{truth:?}") };
        assert_eq!(leak.function, "offheap::cmd::demo_target::demo_leak_request_buffers");
        assert!((1..=7).contains(&leak.outstanding_count), "{leak:?}");
        assert_eq!(leak.outstanding_bytes, leak.outstanding_count * 1024);
        assert_eq!((cache.outstanding_bytes, cache.outstanding_count), (1 << 20, 256));
        assert_eq!((churn.outstanding_bytes, churn.outstanding_count), (0, 0));
    }

    #[test]
    fn the_truth_names_functions_as_the_symbolizer_does() {
        for (address, truth) in [
            (demo_leak_request_buffers as *const () as u64, truth(&demo_leak_request_buffers, 0, 0)),
            (demo_cache_fill as *const () as u64, truth(&demo_cache_fill, 0, 0)),
            (demo_churn as *const () as u64, truth(&demo_churn, 0, 0)),
        ] {
            let locations = crate::symbolize::tests::symbolize_own(address);
            assert_eq!(locations.last().and_then(|last| last.function.clone()), Some(truth.function));
        }
    }

    #[test]
    fn without_go_there_is_no_work() {
        for (input, is_error) in [("", false), ("stop\n", true)] {
            let (outcome, lines) = converse(input);
            assert_eq!((outcome.is_err(), lines), (is_error, vec!["ready".to_owned()]), "{input:?}");
        }
    }
}
