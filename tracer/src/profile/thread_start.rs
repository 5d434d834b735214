//! Where the program's own code begins in a thread.

use super::wrapper::bare_name;
use super::{SiteFrame, base_name};

/// Functions that run before it: of the kernel's and the C library's way into a thread or a program, and of the
/// runtimes that start threads with a closure. Without arguments, as [`bare_name`] makes them; a star stands for the rest.
const ENTRIES: [&str; 22] = [
    "_start",
    "clone",
    "clone3",
    "__clone",
    "__clone3",
    "__clone_internal",
    "start_thread",
    "start_c11",
    "__libc_start_main*",
    "__libc_start_call_main",
    "libc_start_main_stage2",
    // C++.
    "execute_native_thread_routine*",
    "std::*",
    // Rust.
    "core::ops::function::*",
    "<alloc::boxed::Box*",
    "alloc::boxed::*",
    "__rust_begin_short_backtrace",
    "__rust_try*",
    // The JVM, libuv.
    "thread_native_entry",
    "Thread::call_run",
    "uv__thread_start",
    // Go.
    "runtime.goexit*",
];
/// Beginnings of the names of C libraries and loaders: their functions have no names where they are stripped.
const LIBRARIES: [&str; 6] = ["libc.so", "libc-2", "libpthread", "ld-musl", "ld-linux", "libstdc++"];

/// The start routine of the thread that a stack belongs to: the outermost function (of `stack`, innermost first) that
/// is not part of the way into it. Of a stack that has nothing else, the outermost function.
pub(super) fn thread_start<'a, 'b>(stack: &'b [SiteFrame<'a>]) -> Option<&'b SiteFrame<'a>> {
    stack.iter().rev().find(|line| !is_entry(line)).or_else(|| stack.last())
}

fn is_entry(line: &SiteFrame<'_>) -> bool {
    let Some(function) = line.location.function.as_deref() else {
        let object = line.object.map_or("", |object| base_name(&object.path));
        return LIBRARIES.iter().any(|library| object.starts_with(library));
    };
    // The dot belongs to the names of Go.
    let names = [function, &bare_name(function)];
    ENTRIES.iter().any(|entry| match entry.strip_suffix('*') {
        Some(start) => names.iter().any(|name| name.starts_with(start)),
        None => names.contains(entry),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::{Frame, FrameId, FrameKind, Location, Object, ObjectId};

    fn start(stack: &[(&str, &str)]) -> String {
        let frames: Vec<(Frame, Object)> = (0..)
            .zip(stack)
            .map(|(id, (object, function))| {
                let function = (!function.is_empty()).then(|| (*function).to_owned());
                let location = Location { function, file: None, line: None, inlined: false };
                let object = Object { id: ObjectId(id), path: format!("/lib/{object}"), build_id: None };
                let frame = Frame {
                    id: FrameId(id),
                    address: 0,
                    object: Some(object.id),
                    file_offset: Some(0x10),
                    kind: FrameKind::Native,
                    locations: vec![location],
                };
                (frame, object)
            })
            .collect();
        let lines: Vec<_> = frames
            .iter()
            .map(|(frame, object)| SiteFrame { frame, location: &frame.locations[0], object: Some(object) })
            .collect();
        thread_start(&lines).map(SiteFrame::label).unwrap_or_default()
    }

    #[test]
    fn what_starts_a_thread_is_not_what_it_runs() {
        let c = [("app", "work"), ("app", "worker"), ("libc.so.6", "start_thread"), ("libc.so.6", "clone3")];
        assert_eq!(start(&c), "worker");
        let stripped = [("app", "work"), ("app", "worker"), ("libc.so.6", ""), ("libc.so.6", "")];
        assert_eq!(start(&stripped), "worker");
        let program = [
            ("app", "work"),
            ("app", "main"),
            ("libc.so.6", "__libc_start_main@@GLIBC_2.34"),
            ("app", "_start"),
        ];
        assert_eq!(start(&program), "main");
        let cpp = [
            ("app", "Pool::run(int)"),
            ("app", "void std::__invoke_impl<void, Pool::start()::{lambda()#1}>(std::__invoke_other)"),
            ("app", "std::thread::_State_impl<std::thread::_Invoker<std::tuple<Pool> > >::_M_run()"),
            ("libstdc++.so.6", "execute_native_thread_routine"),
            ("libc.so.6", "start_thread"),
        ];
        assert_eq!(start(&cpp), "Pool::run(int)");
        let rust = [
            ("app", "app::serve"),
            ("app", "app::main::{{closure}}"),
            ("app", "std::sys::backtrace::__rust_begin_short_backtrace"),
            ("app", "core::ops::function::FnOnce::call_once{{vtable.shim}}"),
            ("app", "<alloc::boxed::Box<F,A> as core::ops::function::FnOnce<Args>>::call_once"),
            ("app", "std::sys::thread::unix::Thread::new::thread_start"),
            ("libc.so.6", "start_thread"),
        ];
        assert_eq!(start(&rust), "app::main::{{closure}}");
        assert_eq!(
            start(&[("app", "main.leak"), ("app", "main.main.func1"), ("app", "runtime.goexit.abi0")]),
            "main.main.func1"
        );
        assert_eq!(
            start(&[("libc.so.6", ""), ("libc.so.6", "clone")]),
            "clone",
            "of nothing else, the outermost"
        );
        assert_eq!(start(&[]), "");
    }
}
