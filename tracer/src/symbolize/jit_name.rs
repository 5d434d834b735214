//! Names in perf maps, taken apart.
//!
//! | written by | name | kind |
//! |---|---|---|
//! | V8 | `JS:~f /app.js:10:5`, `LazyCompile:~f /app.js:10:5` | interpreted: `~` is bytecode |
//! | V8 | `JS:^f …` (Sparkplug), `JS:+f …` (Maglev), `JS:*f …` (TurboFan) | JIT |
//! | V8 | `Builtin:ArrayMap`, `BytecodeHandler:Add`, `RegExp:…`, anything else | JIT, name as it stands |
//! | JVM | `Lcom/foo/Bar;::method`, `com.foo.Bar::method` | JIT, as `com.foo.Bar.method` |
//! | JVM | `Interpreter` | interpreted |
//! | CPython | `py::Class.f:/app/file.py` | interpreted: the trampoline stands for the Python function |
//!
//! V8's line is that of the function, not of the call.

use super::demangle::bounded;
use crate::model::{FrameKind, Location};

/// What a perf map says about a piece of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JitFunction {
    /// Function, and file and line where the name has them.
    pub location: Location,
    /// [`FrameKind::Jit`] or [`FrameKind::Interpreted`].
    pub kind: FrameKind,
}

/// V8's tags for code that was made from a JavaScript function.
const V8_FUNCTION_TAGS: [&str; 5] = ["JS:", "LazyCompile:", "Function:", "Script:", "Eval:"];
/// How the script's name begins after the function's, which may have spaces (`get x`), as may the script's.
const V8_SCRIPT_STARTS: [&str; 6] = [" /", " file:", " node:", " webpack", " evalmachine.", " ["];
/// What V8 calls a function without a name in stack traces.
const ANONYMOUS: &str = "<anonymous>";

/// Takes a name from a perf map apart. Names that are of no known form are functions as they stand.
pub fn parse_jit_name(name: &str) -> JitFunction {
    let name = name.trim();
    if let Some(rest) = V8_FUNCTION_TAGS.iter().find_map(|tag| name.strip_prefix(tag)) {
        return v8_function(rest);
    }
    if let Some(rest) = name.strip_prefix("py::") {
        return python_function(rest);
    }
    if name == "Interpreter" {
        return function(name, None, None, FrameKind::Interpreted);
    }
    match java_method(name) {
        Some(method) => function(&method, None, None, FrameKind::Jit),
        None => function(name, None, None, FrameKind::Jit),
    }
}

fn function(name: &str, file: Option<&str>, line: Option<u32>, kind: FrameKind) -> JitFunction {
    let location = Location { function: Some(bounded(name)), file: file.map(bounded), line, inlined: false };
    JitFunction { location, kind }
}

fn v8_function(text: &str) -> JitFunction {
    let kind = if text.starts_with('~') { FrameKind::Interpreted } else { FrameKind::Jit };
    let text = text.strip_prefix(['~', '^', '+', '*']).unwrap_or(text);
    let (text, line) = split_position(text);
    let start = V8_SCRIPT_STARTS.iter().filter_map(|start| text.find(start)).min();
    // A script of another form is taken for one only where a line number proves that there is one.
    let start = start.or_else(|| text.rfind(' ').filter(|_| line.is_some()));
    let (name, file) = match start {
        Some(at) => (text[..at].trim(), Some(text[at..].trim()).filter(|file| !file.is_empty())),
        None => (text.trim(), None),
    };
    function(if name.is_empty() { ANONYMOUS } else { name }, file, line, kind)
}

/// Splits `text:LINE:COLUMN`, or `text:LINE` as older versions write it.
fn split_position(text: &str) -> (&str, Option<u32>) {
    let split = |text| -> Option<(&str, u32)> {
        let (before, number) = str::rsplit_once(text, ':')?;
        number.parse().ok().map(|number| (before, number))
    };
    match split(text) {
        Some((before, last)) => match split(before) {
            Some((before, line)) => (before, Some(line)),
            None => (before, Some(last)),
        },
        None => (text, None),
    }
}

fn python_function(text: &str) -> JitFunction {
    // A qualified name has no colon.
    let (name, file) = text.split_once(':').unwrap_or((text, ""));
    function(name, Some(file).filter(|file| !file.is_empty()), None, FrameKind::Interpreted)
}

fn java_method(name: &str) -> Option<String> {
    let (class, method) = name.split_once("::")?;
    let class = match class.strip_prefix('L').and_then(|class| class.strip_suffix(';')) {
        Some(descriptor) => descriptor.replace('/', "."),
        // The dot tells it from C++.
        None if class.contains('.') && !class.contains(['(', '<', ' ']) => class.to_owned(),
        None => return None,
    };
    Some(format!("{class}.{method}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use FrameKind::{Interpreted, Jit};

    #[test]
    fn names_of_every_runtime_are_taken_apart() {
        let cases = [
            ("JS:~foo /path/app.js:10:5", "foo", Some("/path/app.js"), Some(10), Interpreted),
            ("JS:*foo /path/app.js:10:5", "foo", Some("/path/app.js"), Some(10), Jit),
            ("JS:+foo /path/app.js:10:5", "foo", Some("/path/app.js"), Some(10), Jit),
            (
                "JS:^processTicks node:internal/process/task_queues:67:35",
                "processTicks",
                Some("node:internal/process/task_queues"),
                Some(67),
                Jit,
            ),
            (
                "LazyCompile:~get size /my app/a b.js:3:9",
                "get size",
                Some("/my app/a b.js"),
                Some(3),
                Interpreted,
            ),
            ("JS:~ /path/app.js:1:1", "<anonymous>", Some("/path/app.js"), Some(1), Interpreted),
            (
                "Script:~ file:///app/main.mjs:1:1",
                "<anonymous>",
                Some("file:///app/main.mjs"),
                Some(1),
                Interpreted,
            ),
            ("JS:*f app.js:7", "f", Some("app.js"), Some(7), Jit),
            ("JS:*bare", "bare", None, None, Jit),
            ("JS:", "<anonymous>", None, None, Jit),
            ("Builtin:ArrayPrototypeMap", "Builtin:ArrayPrototypeMap", None, None, Jit),
            ("BytecodeHandler:Add", "BytecodeHandler:Add", None, None, Jit),
            ("Lcom/foo/Bar;::method", "com.foo.Bar.method", None, None, Jit),
            ("com.foo.Bar::method", "com.foo.Bar.method", None, None, Jit),
            ("void com.foo.Bar.method(int)", "void com.foo.Bar.method(int)", None, None, Jit),
            ("std::vector::push", "std::vector::push", None, None, Jit),
            ("Interpreter", "Interpreter", None, None, Interpreted),
            ("py::Cache.fill:/app/cache.py", "Cache.fill", Some("/app/cache.py"), None, Interpreted),
            (
                "py::<module>:<frozen importlib._bootstrap>",
                "<module>",
                Some("<frozen importlib._bootstrap>"),
                None,
                Interpreted,
            ),
            ("py::odd", "odd", None, None, Interpreted),
        ];
        for (text, name, file, line, kind) in cases {
            let parsed = parse_jit_name(text);
            let location = &parsed.location;
            let found = (location.function.as_deref(), location.file.as_deref(), location.line, parsed.kind);
            assert_eq!(found, (Some(name), file, line, kind), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_name_is_some_function(name in "(JS:|py::|L|Eval:)?[~^*]?[a-zü :/;.0-9]{0,30}") {
            prop_assert!(parse_jit_name(&name).location.function.is_some());
        }
    }
}
