//! A Rust program, optimised, that leaks an exactly known amount from known functions.
//!
//! The handshake uses the C library directly: standard I/O of Rust allocates its buffers.

use std::hint::black_box;

unsafe extern "C" {
    fn read(fd: i32, buffer: *mut u8, count: usize) -> isize;
    fn write(fd: i32, buffer: *const u8, count: usize) -> isize;
}

fn say(text: &str) {
    // SAFETY: the buffer is valid for its length.
    let written = unsafe { write(1, text.as_ptr(), text.len()) };
    assert_eq!(written, text.len() as isize);
}

/// One line; `false` at the end of the input.
fn wait_for_line() -> bool {
    let mut byte = 0;
    loop {
        // SAFETY: the buffer is one byte.
        match unsafe { read(0, &mut byte, 1) } {
            1 if byte == b'\n' => return true,
            1 => {}
            _ => return false,
        }
    }
}

#[inline(never)]
fn site_rust_box() {
    for _ in 0..10 {
        std::mem::forget(black_box(Box::new([1u8; 200])));
    }
}

#[inline(never)]
fn site_rust_vec() {
    let mut growing = Vec::new();
    for number in 0..1024u64 {
        growing.push(black_box(number));
    }
    growing.shrink_to_fit();
    std::mem::forget(growing);
}

#[inline(never)]
fn site_rust_string() {
    let mut text = String::with_capacity(10);
    for _ in 0..30 {
        text.push_str(black_box("twelve bytes"));
    }
    text.shrink_to_fit();
    std::mem::forget(text);
}

#[inline(never)]
fn site_rust_zeroed() {
    std::mem::forget(black_box(vec![0u8; black_box(5000)]));
}

#[inline(never)]
fn site_rust_freed() {
    for size in 1..50usize {
        drop(black_box(vec![1u8; black_box(size)]));
    }
}

fn main() {
    say("ready\n");
    assert!(wait_for_line());
    site_rust_box();
    site_rust_vec();
    site_rust_string();
    site_rust_zeroed();
    site_rust_freed();
    say("truth {\"is_strict\":true,\"sites\":[\
        {\"function\":\"site_rust_box\",\"outstanding_bytes\":2000,\"outstanding_count\":10,\"allocated_bytes\":2000,\"allocated_count\":10},\
        {\"function\":\"site_rust_vec\",\"outstanding_bytes\":8192,\"outstanding_count\":1},\
        {\"function\":\"site_rust_string\",\"outstanding_bytes\":360,\"outstanding_count\":1},\
        {\"function\":\"site_rust_zeroed\",\"outstanding_bytes\":5000,\"outstanding_count\":1,\"allocated_bytes\":5000,\"allocated_count\":1},\
        {\"function\":\"site_rust_freed\",\"outstanding_bytes\":0,\"outstanding_count\":0,\"allocated_bytes\":1225,\"allocated_count\":49}\
        ]}\n");
    while wait_for_line() {}
}
