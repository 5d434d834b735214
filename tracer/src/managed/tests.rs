//! Stacks as `strace -k` showed them on Debian 12: Node 20.20, OpenJDK 17 with symbols, CPython 3.11, Go 1.19.

use super::*;
use MappingKind::{Anonymous, Brk, File, Memfd, SharedAnonymous};
use MemoryClass::*;

const PLAIN: MappingFacts<'_> = MappingFacts {
    kind: Anonymous,
    is_stack: false,
    is_executable: false,
    is_reserved: false,
    size_bytes: 1 << 20,
    allocator: None,
    name: "",
};
const NODE: &str = "/usr/bin/node";
const JVM: &str = "/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so";
const PYTHON: &str = "/usr/lib/libpython3.11.so.1.0";
const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

fn runtime(name: &str, version: &str) -> Runtime {
    Runtime { name: name.to_owned(), version: Some(version.to_owned()) }
}

/// Classifies with the C library's `mmap` innermost and the functions in one object.
fn by_stack(
    runtime: &Runtime,
    facts: &MappingFacts<'_>,
    object: &str,
    functions: &[&str],
) -> (MemoryClass, String) {
    let frame = |function, object| FrameFacts { function: Some(function), object: Some(object) };
    let stack: Vec<_> =
        [frame("mmap", LIBC)].into_iter().chain(functions.iter().map(|name| frame(*name, object))).collect();
    let found = classify(facts, &stack, Some(runtime), Place::NotKnown);
    (found.class, found.label.unwrap_or_default())
}

#[test]
fn node() {
    let node = runtime("node", "20.20.2");
    let allocate =
        "v8::base::OS::Allocate(void*, unsigned long, unsigned long, v8::base::OS::MemoryPermission)";
    let reserve = "v8::internal::VirtualMemory::VirtualMemory(v8::PageAllocator*, unsigned long, void*)";
    let page = [
        allocate,
        reserve,
        "v8::internal::MemoryAllocator::AllocateAlignedMemory(unsigned long, unsigned long, unsigned long)",
        "v8::internal::MemoryAllocator::AllocatePage(v8::internal::MemoryAllocator::AllocationMode)",
        "v8::internal::SemiSpace::GrowTo(unsigned long)",
        "heap::base::SlotCallbackResult v8::internal::Scavenger::ScavengeObject<v8::internal::FullHeapObjectSlot>(int)",
    ];
    let of = |facts, functions: &[&str]| by_stack(&node, facts, NODE, functions);
    assert_eq!(of(&PLAIN, &page), (ManagedHeap, "V8 heap".into()));
    let executable = MappingFacts { is_executable: true, ..PLAIN };
    assert_eq!(of(&executable, &page), (JitCode, "V8 code".into()));
    let code = [
        allocate,
        reserve,
        "v8::internal::VirtualMemoryCage::InitReservation(v8::internal::VirtualMemoryCage::ReservationParams const&)",
        "v8::internal::CodeRange::InitReservation(v8::PageAllocator*, unsigned long)",
        "v8::internal::Heap::SetUp(v8::internal::LocalHeap*)",
    ];
    assert_eq!(of(&PLAIN, &code), (JitCode, "V8 code".into()));
    let wasm = [
        allocate,
        "v8::internal::AllocatePages(v8::PageAllocator*, void*, unsigned long, unsigned long, int)",
        "std::_Function_handler<bool (), v8::internal::BackingStore::TryAllocate()::{lambda()#1}>::_M_invoke(int)",
        "v8::internal::BackingStore::TryAllocateAndPartiallyCommitMemory(v8::internal::Isolate*, unsigned long)",
        "v8::internal::WasmMemoryObject::New(v8::internal::Isolate*, int, int)",
        "v8::internal::FunctionCallbackArguments::Call(v8::internal::CallHandlerInfo)",
    ];
    assert_eq!(of(&PLAIN, &wasm), (ManagedHeap, "V8 WebAssembly memory".into()));
    let cppgc = [
        allocate,
        "cppgc::internal::GCInfoTable::GCInfoTable(v8::PageAllocator&)",
        "node::Start(int, char**)",
    ];
    assert_eq!(of(&PLAIN, &cppgc), (RuntimeInternal, "V8".into()));
    // Below a collection, but mapped by others: an addon, the program's C++, C++ code of no one in particular.
    for own in ["uv_fs_map", "node::sqlite::Map(int)", "std::vector<char, Mapper>::reserve(unsigned long)"] {
        let called = [own, "v8::internal::FunctionCallbackArguments::Call(int)", page[2]];
        assert_eq!(of(&PLAIN, &called), (DirectMapping, String::new()), "{own}");
    }
}

#[test]
fn jvm() {
    let java = runtime("jvm", "17.0.15");
    let of = |functions: &[&str]| by_stack(&java, &PLAIN, JVM, functions);
    let reserve =
        ["os::pd_reserve_memory(unsigned long, bool)", "os::reserve_memory(unsigned long, bool, MEMFLAGS)"];
    let commit =
        ["os::pd_commit_memory(char*, unsigned long, bool)", "os::commit_memory(char*, unsigned long, bool)"];
    let way = |first: [&'static str; 2], rest: &[&'static str]| [&first[..], rest].concat();
    for (functions, class, label) in [
        (
            way(
                reserve,
                &[
                    "ReservedSpace::reserve(unsigned long)",
                    "ReservedCodeSpace::ReservedCodeSpace(unsigned long)",
                    "CodeCache::initialize_heaps()",
                ],
            ),
            JitCode,
            "JVM code cache",
        ),
        (
            way(
                commit,
                &[
                    "VirtualSpace::expand_by(unsigned long, bool)",
                    "CodeHeap::reserve(ReservedSpace)",
                    "CodeCache::add_heap(int)",
                ],
            ),
            JitCode,
            "JVM code cache",
        ),
        (
            way(
                reserve,
                &[
                    "ReservedSpace::reserve(unsigned long)",
                    "ReservedHeapSpace::try_reserve_range(char*)",
                    "Universe::reserve_heap(unsigned long)",
                    "G1CollectedHeap::initialize()",
                ],
            ),
            ManagedHeap,
            "Java heap",
        ),
        (
            way(
                commit,
                &[
                    "G1PageBasedVirtualSpace::commit(unsigned long)",
                    "G1RegionsLargerThanCommitSizeMapper::commit_regions(unsigned int)",
                ],
            ),
            ManagedHeap,
            "Java heap",
        ),
        (
            way(
                commit,
                &[
                    "G1PageBasedVirtualSpace::commit(unsigned long)",
                    "G1RegionsSmallerThanCommitSizeMapper::commit_regions(unsigned int)",
                ],
            ),
            RuntimeInternal,
            "JVM garbage collector",
        ),
        (
            way(
                reserve,
                &["G1CMMarkStack::resize(unsigned long)", "G1ConcurrentMark::G1ConcurrentMark(int)"],
            ),
            RuntimeInternal,
            "JVM garbage collector",
        ),
        (
            way(
                commit,
                &[
                    "metaspace::VirtualSpaceNode::commit_range(MetaWordImpl**, unsigned long)",
                    "Metaspace::allocate(int)",
                ],
            ),
            RuntimeInternal,
            "JVM metaspace",
        ),
        (
            way(
                reserve,
                &[
                    "ReservedSpace::reserve(unsigned long)",
                    "Metaspace::reserve_address_space_for_compressed_classes(unsigned long)",
                    "MetaspaceShared::map_archives(int)",
                ],
            ),
            RuntimeInternal,
            "JVM class space",
        ),
        (
            way(commit, &["StackOverflow::create_stack_guard_pages()", "JavaThread::run()"]),
            ThreadStack,
            "guard pages of a JVM thread",
        ),
        (
            way(
                reserve,
                &["SafepointMechanism::default_initialize()", "Threads::create_vm(JavaVMInitArgs*)"],
            ),
            RuntimeInternal,
            "JVM",
        ),
    ] {
        assert_eq!(of(&functions), (class, label.to_owned()), "{functions:?}");
    }
    // What the address says goes before what the function says.
    let frame = |function, object| FrameFacts { function, object: Some(object) };
    let heap = Region { start: 1, end: 2, class: ManagedHeap, label: "Java heap" };
    let stack = [
        frame(Some("mmap"), LIBC),
        frame(Some("G1RegionsLargerThanCommitSizeMapper::commit_regions(int)"), JVM),
    ];
    let at = |place| classify(&PLAIN, &stack, Some(&java), place).label.unwrap_or_default();
    assert_eq!([at(Place::Inside(&heap)), at(Place::Outside)], ["Java heap", "JVM garbage collector"]);
    // Without symbols the object alone speaks; a JNI library is the program's.
    let unnamed = |object| [frame(None, LIBC), frame(None, object), frame(None, JVM)];
    let class = |object| classify(&PLAIN, &unnamed(object), Some(&java), Place::NotKnown).class;
    assert_eq!([class(JVM), class("/app/libimage.so")], [RuntimeInternal, DirectMapping]);
}

#[test]
fn cpython() {
    let python = runtime("cpython", "3.11.7");
    let of = |functions: &[&str]| by_stack(&python, &PLAIN, PYTHON, functions);
    let evaluate = "_PyEval_EvalFrameDefault";
    let arena =
        ["_PyObject_ArenaMmap", "allocate_from_new_pool", "_PyObject_Malloc", "PyUnicode_New", evaluate];
    assert_eq!(of(&arena), (ManagedHeap, "CPython arena".into()));
    let frames = ["_PyObject_ArenaMmap", "_PyThreadState_BumpFramePointerSlow", "_PyFrame_Push", evaluate];
    assert_eq!(of(&frames), (ManagedHeap, "CPython frames".into()));
    // The module `mmap`, built in: the program asked for it.
    assert_eq!(of(&["new_mmap_object", "type_call", evaluate]), (DirectMapping, String::new()));
    // Without names an arena is known by its size, and by nothing else.
    let frame = |object| FrameFacts { function: None, object: Some(object) };
    let label = |size_bytes, object, version| {
        let facts = MappingFacts { size_bytes, ..PLAIN };
        let runtime = runtime("cpython", version);
        classify(&facts, &[frame(LIBC), frame(object)], Some(&runtime), Place::NotKnown).label
    };
    let by_size = Some("CPython arena, by its size".to_owned());
    assert_eq!(label(1 << 20, "/usr/bin/python3.11", "3.11"), by_size);
    assert_eq!(label(256 << 10, "/usr/bin/python3.9", "3.9"), by_size);
    assert_eq!(label(256 << 10, "/usr/bin/python3.11", "3.11"), None);
    assert_eq!(label(1 << 20, "/usr/lib/python3/mmap.cpython-311-x86_64-linux-gnu.so", "3.11"), None);
}

#[test]
fn go() {
    let go = runtime("go", "1.19.8");
    // Go makes system calls without the C library.
    let of = |functions: &[&str]| {
        let frame = |name| FrameFacts { function: Some(name), object: Some("/app/server") };
        let stack: Vec<_> = functions.iter().copied().map(frame).collect();
        let found = classify(&PLAIN, &stack, Some(&go), Place::NotKnown);
        (found.class, found.label.unwrap_or_default())
    };
    let grow = ["runtime.(*mheap).grow", "runtime.(*mheap).allocSpan", "runtime.mallocgc", "main.work"];
    let heap = (ManagedHeap, "Go heap".to_owned());
    let internal = (RuntimeInternal, "Go runtime".to_owned());
    let behind = |first: &[&'static str]| [&["runtime.sysMmap.abi0"], first, &grow].concat();
    assert_eq!(of(&behind(&["runtime.sysReserve", "runtime.(*mheap).sysAlloc"])), heap);
    assert_eq!(of(&behind(&["runtime.sysMapOS", "runtime.sysMap"])), heap);
    assert_eq!(of(&behind(&["runtime.sysAllocOS", "runtime.(*mheap).sysAlloc"])), internal);
    assert_eq!(
        of(&behind(&["runtime.sysMapOS", "runtime.sysMap", "runtime.(*pageAlloc).sysGrow"])),
        internal
    );
    assert_eq!(
        of(&["runtime.sysMmap.abi0", "runtime.sysReserve", "runtime.schedinit", "runtime.rt0_go.abi0"]),
        internal
    );
    let own = [
        "runtime/internal/syscall.Syscall6",
        "syscall.Syscall6",
        "syscall.mmap",
        "main.main",
        "runtime.main",
    ];
    assert_eq!(of(&own), (DirectMapping, String::new()));
}

#[test]
fn what_is_no_runtimes() {
    let python = runtime("cpython", "3.11");
    let of =
        |facts: &MappingFacts<'_>, object, functions: &[&str]| by_stack(&python, facts, object, functions);
    let app = "/app/server";
    let class = |kind| of(&MappingFacts { kind, ..PLAIN }, app, &["load", "main"]).0;
    assert_eq!(
        [File, SharedAnonymous, Memfd, Anonymous].map(class),
        [FileMapping, SharedMemory, SharedMemory, DirectMapping]
    );
    let in_malloc = MappingFacts { allocator: Some("jemalloc"), ..PLAIN };
    assert_eq!(of(&in_malloc, PYTHON, &["_PyObject_ArenaMmap"]), (AllocatorArena, "jemalloc".into()));
    let heap = MappingFacts { kind: Brk, allocator: Some("glibc malloc"), ..PLAIN };
    assert_eq!(of(&heap, LIBC, &["sbrk"]), (BrkHeap, "glibc malloc".into()));
    let thread = MappingFacts { is_stack: true, ..PLAIN };
    assert_eq!(of(&thread, app, &["start"]).0, ThreadStack);
    assert_eq!(of(&PLAIN, LIBC, &["pthread_create@@GLIBC_2.34"]).0, ThreadStack);
    let named = MappingFacts { name: "/memfd:doublemapper (deleted)", kind: Memfd, ..PLAIN };
    assert_eq!(of(&named, app, &["f"]), (JitCode, ".NET code".into()));
    let closure = of(&PLAIN, "/usr/lib/x86_64-linux-gnu/libffi.so.8", &["ffi_closure_alloc"]);
    assert_eq!(closure, (JitCode, "libffi closures".into()));
    let loader = FrameFacts { function: None, object: Some("/usr/lib64/ld-linux-x86-64.so.2") };
    assert_eq!(classify(&PLAIN, &[loader], None, Place::NotKnown).class, FileMapping);
    // A lost stack of a process with a runtime: it may be its heap.
    assert_eq!(classify(&PLAIN, &[], Some(&python), Place::Outside).class, Unknown);
    assert_eq!(classify(&PLAIN, &[], None, Place::NotKnown).class, DirectMapping);
}

#[test]
fn names_of_classes_are_distinct() {
    for class in MemoryClass::ALL {
        assert_eq!(MemoryClass::from_name(class.name()), Some(class));
    }
}
