//! V8: Node, and whatever else embeds it.
//!
//! Functions are those of `node` 20 as `strace -k` shows them. All memory of the heap comes through
//! `MemoryAllocator`, in pages of 256 KiB that are aligned to their size; the code range is reserved once.

use super::rule::{Table, rule};
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
