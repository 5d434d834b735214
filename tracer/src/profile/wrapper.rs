//! Which functions only pass an allocation on, so that the one who asked for it can be named.
//!
//! One table: names without arguments, template arguments and return types, as [`bare_name`] makes them.
//! A star stands for the rest. Functions that allocate for their caller as a service (`strdup`,
//! `asprintf`, `getline`) are wrappers too: it is their caller who does not free.

use std::borrow::Cow;

/// The table.
const WRAPPERS: &[&str] = &[
    // The C library, and allocators under names of their own.
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "memalign",
    "aligned_alloc",
    "posix_memalign",
    "valloc",
    "pvalloc",
    "__libc_malloc",
    "__libc_calloc",
    "__libc_realloc",
    "__libc_memalign",
    "__libc_reallocarray",
    "strdup",
    "__strdup",
    "strndup",
    "__strndup",
    "wcsdup",
    "asprintf",
    "__asprintf",
    "__asprintf_chk",
    "vasprintf",
    "__vasprintf_chk",
    "__vasprintf_internal",
    "mmap",
    "mmap64",
    "__mmap",
    "__mmap64",
    "mremap",
    "__mremap",
    "brk",
    "__brk",
    "sbrk",
    "__sbrk",
    "shmat",
    "getline",
    "getdelim",
    "__getdelim",
    "_IO_getdelim",
    "sysmalloc*",
    "_int_malloc",
    "_int_realloc",
    "_int_memalign",
    // Other allocators, and the prefixes they are built with.
    "je_*",
    "_rjem_*",
    "mallocx",
    "rallocx",
    "mi_*",
    "_mi_*",
    "tc_*",
    "tcmalloc::*",
    "snmalloc::*",
    "sn_malloc",
    "sn_calloc",
    "sn_realloc",
    "sn_rust_*",
    "rpmalloc",
    "rpcalloc",
    "rprealloc",
    "rpaligned_*",
    // Who asks the kernel for memory, and who creates threads with a stack in it.
    "mmap",
    "mmap64",
    "__mmap",
    "__mmap64",
    "munmap",
    "__munmap",
    "mremap",
    "__mremap",
    "sbrk",
    "__sbrk",
    "brk",
    "__brk",
    "shmat",
    "__shmat",
    "syscall",
    "pthread_create",
    "__pthread_create",
    "__pthread_create_2_1",
    "thrd_create",
    "allocate_stack",
    "allocate_thread_stack",
    "g_mapped_file_new*",
    "g_thread_new",
    "g_thread_try_new",
    "uv_thread_create",
    "uv_thread_create_ex",
    // C++.
    "operator new",
    "operator new[]",
    // The standard library grows its containers for whoever uses them.
    "std::*",
    "__gnu_cxx::*",
    // Rust.
    "__rust_*",
    "__rdl_*",
    "__rg_*",
    "alloc::*",
    "hashbrown::*",
    "libc::mmap",
    "memmap2::*",
    "rustix::mm::*",
    "nix::sys::mman::*",
    "tikv_jemalloc*",
    "mimalloc::*",
    // CPython.
    "PyMem_*",
    "_PyMem_*",
    "PyObject_Malloc",
    "PyObject_Calloc",
    "PyObject_Realloc",
    "_PyObject_Malloc",
    "_PyObject_Calloc",
    "_PyObject_Realloc",
    "_PyObject_New",
    "_PyObject_NewVar",
    "_PyObject_GC_*",
    "pymalloc_*",
    // Node, the JVM, Ruby.
    "node::Malloc",
    "node::Calloc",
    "node::Realloc",
    "node::UncheckedMalloc",
    "node::UncheckedCalloc",
    "node::UncheckedRealloc",
    "os::malloc",
    "os::realloc",
    "AllocateHeap",
    "ReallocateHeap",
    "ruby_xmalloc*",
    "ruby_xcalloc*",
    "ruby_xrealloc*",
    // GLib, OpenSSL, and what many programs call their own.
    "g_malloc*",
    "g_try_malloc*",
    "g_realloc*",
    "g_try_realloc*",
    "g_aligned_alloc*",
    "g_slice_alloc*",
    "g_slice_copy",
    "g_strdup*",
    "g_strndup",
    "g_memdup*",
    "CRYPTO_malloc",
    "CRYPTO_zalloc",
    "CRYPTO_realloc",
    "CRYPTO_strdup",
    "CRYPTO_strndup",
    "CRYPTO_memdup",
    "xmalloc",
    "xcalloc",
    "xzalloc",
    "xnmalloc",
    "xrealloc",
    "x2realloc",
    "x2nrealloc",
    "xreallocarray",
    "xstrdup",
    "xstrndup",
    "xmemdup",
    "xasprintf",
];

/// Go's way from the caller of a C function into C, and what cgo writes for it. The dot belongs to these names.
fn is_cgo(function: &str) -> bool {
    function.strip_suffix(".abi0").is_some_and(is_cgo)
        || ["runtime.asmcgocall", "runtime.asmcgocall_landingpad", "runtime.cgocall"].contains(&function)
        || function.starts_with("_cgo_")
        || ["._Cfunc_", "._C2func_"].iter().any(|part| function.contains(part))
}

/// Whether the demangled function only passes an allocation on.
pub fn is_wrapper(function: &str) -> bool {
    if is_cgo(function) {
        return true;
    }
    let name = bare_name(function);
    WRAPPERS.iter().any(|wrapper| match wrapper.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => *wrapper == name,
    })
}

/// Whether the demangled function only touches memory for somebody else: functions of the C library that fill
/// and copy, under the names of all their variants.
pub fn is_toucher(function: &str) -> bool {
    const FILLING: [&str; 9] =
        ["memset", "memcpy", "memmove", "mempcpy", "bzero", "strcpy", "stpcpy", "strncpy", "strcat"];
    const VARIANTS: [&str; 6] = ["_avx", "_sse", "_ssse3", "_evex", "_erms", "_chk"];
    let name = bare_name(function);
    let name = name.trim_start_matches('_');
    FILLING
        .iter()
        .filter_map(|start| name.strip_prefix(start))
        .any(|rest| rest.is_empty() || VARIANTS.iter().any(|variant| rest.starts_with(variant)))
}

/// A demangled name without return type, template arguments, parameters and suffixes of the compiler.
pub fn bare_name(function: &str) -> Cow<'_, str> {
    // `<alloc::alloc::Global as core::alloc::Allocator>::allocate`: the type stands for its method.
    // `<alloc::raw_vec::RawVecInner>::try_allocate_in`: a type of its own. For `<T as Trait>::method` the
    // trait says more than the parameter.
    let implemented = function.strip_prefix('<').and_then(|rest| {
        let (inside, method) = rest.rsplit_once(">::")?;
        let (path, of) = inside.split_once(" as ").unwrap_or((inside, inside));
        let path = if path.contains("::") { path } else { of };
        Some(format!("{path}::{method}"))
    });
    let function = implemented.map_or(Cow::Borrowed(function), Cow::Owned);
    for operator in ["operator new[]", "operator new"] {
        if function.strip_prefix(operator).is_some_and(|rest| rest.is_empty() || rest.starts_with('(')) {
            return operator.into();
        }
    }
    if !function.contains([' ', '<', '(', '.', '@']) {
        return function;
    }
    let mut bare = String::with_capacity(function.len());
    let mut depth = 0usize;
    for character in function.chars() {
        match character {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            // Parameters, `.constprop.0`, `@@GLIBC_2.2.5`: nothing of the name follows.
            '(' | '.' | '@' if depth == 0 => break,
            // What stood before was a return type.
            ' ' if depth == 0 => bare.clear(),
            _ if depth == 0 => bare.push(character),
            _ => {}
        }
    }
    // `Vec<T>::push` in the notation of Rust paths: `Vec::<T>::push`.
    bare.replace("::::", "::").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fills_memory_for_others_is_passed_by() {
        for name in ["memset", "__memset_avx2_unaligned_erms", "__memmove_avx_unaligned", "memcpy@GLIBC_2.14"]
        {
            assert!(is_toucher(name), "{name}");
        }
        for name in ["memset_pool::run", "my_memset", "memory", "memsets", "fill_scratch(unsigned long)"] {
            assert!(!is_toucher(name), "{name}");
        }
    }

    #[test]
    fn wrappers_are_recognised_in_every_spelling() {
        for name in [
            "malloc",
            "malloc@@GLIBC_2.2.5",
            "xmalloc.constprop.0",
            "operator new(unsigned long)",
            "operator new[](unsigned long, std::nothrow_t const&)",
            "std::__new_allocator<std::pair<int const, char> >::allocate(unsigned long, void const*)",
            "std::allocator_traits<std::allocator<char> >::allocate(std::allocator<char>&, unsigned long)",
            "std::_Vector_base<int, std::allocator<int> >::_M_allocate(unsigned long)",
            "char* std::__1::__libcpp_allocate<char>(unsigned long)",
            "__rust_alloc",
            "__rdl_alloc_zeroed",
            "alloc::alloc::exchange_malloc",
            "alloc::raw_vec::RawVec<T,A>::grow_one",
            "<alloc::alloc::Global as core::alloc::Allocator>::allocate",
            "alloc::boxed::Box<T>::new",
            "alloc::vec::Vec::<T>::with_capacity",
            "<alloc::raw_vec::RawVecInner>::try_allocate_in",
            "<T as alloc::slice::<impl [T]>::to_vec_in::ConvertVec>::to_vec",
            "std::vector<int, std::allocator<int> >::push_back(int const&)",
            "void std::vector<std::string>::_M_realloc_insert<char const*>(char const*&&)",
            "PyMem_Malloc",
            "_PyMem_RawMalloc",
            "PyObject_Malloc",
            "g_malloc0_n",
            "strdup",
            "asprintf",
            "getline",
            "mmap64",
            "__mmap",
            "mremap@@GLIBC_2.2.5",
            "syscall",
            "pthread_create@@GLIBC_2.34",
            "__pthread_create_2_1",
            "std::thread::_M_start_thread(std::unique_ptr<std::thread::_State>, void (*)())",
            "memmap2::MmapOptions::map_anon",
            "mi_new_n",
            "_mi_heap_malloc_zero",
            "_rjem_mallocx",
            "je_aligned_alloc",
            "tc_newarray_nothrow",
            "tcmalloc::allocate_full_cpp_throw_oom(unsigned long)",
            "operator new(unsigned long, std::align_val_t)",
            "runtime.asmcgocall.abi0",
            "runtime.cgocall",
            "example.com/pkg._Cfunc__CMalloc",
            "_cgo_8775527e0d54_Cfunc__Cmalloc",
        ] {
            assert!(is_wrapper(name), "{name}: {}", bare_name(name));
        }
    }

    #[test]
    fn callers_are_not_wrappers() {
        for name in [
            "main",
            "leak_scratch(unsigned long)",
            "my_malloc_user",
            "malloc_stats_collector",
            "Cache::allocate(unsigned long)",
            "store(std::allocator<int>::allocate)",
            "operator newish",
            "tcp_connect",
            "mmap_cache",
            "syscall_table_init",
            "my_shmat",
            "brk_point",
            "pthread_create_pool",
            "mirror",
            "mine::alloc::alloc::x",
            "",
            "<",
            ">>::(",
            "<a as b",
            "PyObject_Call",
            "runtime.cgo",
            "main.leak",
            "runtime.cgocallbackg",
        ] {
            assert!(!is_wrapper(name), "{name}: {}", bare_name(name));
        }
    }
}
