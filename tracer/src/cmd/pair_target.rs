//! `offheap pair-target`: the program that `doctor --calibrate` traces.
//!
//! It writes `ready`; each line `PAIRS` on its standard input is answered with the mean time of one pair of malloc and
//! free in ns, on a thread whose stack is six frames deep: the innermost function, two between, the thread's first one,
//! and two of the C library.

use std::ffi::c_void;
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::ptr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// Bytes of each block.
const BLOCK_BYTES: usize = 64;

struct Order {
    pairs: u64,
    nanoseconds: f64,
}

/// Does what the module says, until the input is closed.
pub fn run(input: &mut dyn BufRead, output: &mut dyn Write) -> Result<()> {
    let mut say =
        |line: &str| writeln!(output, "{line}").and_then(|()| output.flush()).context("write the answer");
    say("ready")?;
    let mut line = String::new();
    while input.read_line(&mut line).context("read the standard input")? > 0 {
        let pairs: u64 = line.trim().parse().context("expected a number of pairs")?;
        say(&format!("{:.3}", on_thread(pairs)?))?;
        line.clear();
    }
    Ok(())
}

/// Mean time of a pair, in ns.
fn on_thread(pairs: u64) -> Result<f64> {
    let mut order = Order { pairs: pairs.max(1), nanoseconds: 0.0 };
    let mut thread: libc::pthread_t = 0;
    // SAFETY: `order` lives until the thread has been joined, and nobody else touches it meanwhile.
    unsafe {
        let status = libc::pthread_create(&raw mut thread, ptr::null(), work, (&raw mut order).cast());
        ensure!(status == 0, "cannot start a thread: {}", std::io::Error::from_raw_os_error(status));
        let status = libc::pthread_join(thread, ptr::null_mut());
        ensure!(status == 0, "cannot wait for a thread: {}", std::io::Error::from_raw_os_error(status));
    }
    Ok(order.nanoseconds / order.pairs as f64)
}

extern "C" fn work(order: *mut c_void) -> *mut c_void {
    // SAFETY: what `on_thread` has passed, which waits for the end.
    let order = unsafe { &mut *order.cast::<Order>() };
    order.nanoseconds = outer(order.pairs);
    ptr::null_mut()
}

#[inline(never)]
fn outer(pairs: u64) -> f64 {
    black_box(inner(black_box(pairs)))
}

#[inline(never)]
fn inner(pairs: u64) -> f64 {
    black_box(spin(black_box(pairs)))
}

#[inline(never)]
fn spin(pairs: u64) -> f64 {
    let start = Instant::now();
    for _ in 0..pairs {
        // SAFETY: a block of its own, freed once; a null pointer may be freed.
        unsafe { libc::free(black_box(libc::malloc(black_box(BLOCK_BYTES)))) };
    }
    start.elapsed().as_nanos() as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn it_answers_each_line() {
        let mut output = Vec::new();
        run(&mut "1000\n1\n".as_bytes(), &mut output).unwrap();
        let text = String::from_utf8(output).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0]), (3, "ready"));
        assert!(lines[1].parse::<f64>().unwrap() > 0.0);
        assert!(run(&mut "many\n".as_bytes(), &mut Vec::new()).is_err());
    }
}
