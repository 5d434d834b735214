//! Builds targets from `tests/targets` into a cache under cargo's target directory.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::SystemTime;

use anyhow::{Context, bail};

use crate::Result;
use crate::require::find_program;

/// How one target is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recipe {
    C,
    Cpp,
    /// C++, stripped.
    CppStripped,
    Rust,
    /// CPython extension beside a copy of the script that uses it.
    Python,
    /// N-API addon.
    Node,
    /// JNI library and class.
    Java,
    /// A class; it may use others of the folder.
    Class,
    /// C or C++, linked in a way of its own.
    Linked(Linked),
    /// Go with C code, in a folder of its own; further arguments of `go build`.
    Go(&'static str, &'static [&'static str]),
}

/// How a target is linked. One source may be linked in many ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Linked {
    compiler: &'static str,
    source: &'static str,
    flags: &'static [&'static str],
    /// Behind the source.
    libraries: &'static [&'static str],
}

const fn linked(
    compiler: &'static str,
    source: &'static str,
    flags: &'static [&'static str],
    libraries: &'static [&'static str],
) -> Recipe {
    Recipe::Linked(Linked { compiler, source, flags, libraries })
}

const SHARED: &[&str] = &["-shared", "-fPIC"];
const JEMALLOC: &[&str] = &["-l:libjemalloc.a", "-lm", "-pthread"];
const BUILD_ID: &[&str] = &["-Wl,--build-id"];
/// All of its symbols are local ones of the library that it is linked into.
const HIDDEN_JEMALLOC: &[&str] = &["-l:libjemalloc_pic.a", "-lm", "-Wl,--exclude-libs,ALL"];

/// Name of the target (its source's name), how it is made, and the file that is run or loaded.
const TARGETS: &[(&str, Recipe, &str)] = &[
    ("rules", Recipe::C, "rules"),
    ("interposed", Recipe::C, "interposed"),
    ("mappings", Recipe::C, "mappings"),
    ("faults", Recipe::C, "faults"),
    ("faults_family", Recipe::C, "faults_family"),
    ("faults_many", Recipe::C, "faults_many"),
    ("faults_stripped", linked("gcc", "faults.c", &["-static", "-s", "-pthread"], &[]), "faults_stripped"),
    ("FaultsJava", Recipe::Class, "FaultsJava.class"),
    ("noleak", Recipe::C, "noleak"),
    ("lookalikes", Recipe::C, "lookalikes"),
    ("startup", Recipe::C, "startup"),
    ("puppet", Recipe::C, "puppet"),
    ("hostile", Recipe::C, "hostile"),
    ("paced", Recipe::C, "paced"),
    ("family", Recipe::C, "family"),
    ("careless", Recipe::C, "careless"),
    ("soak", Recipe::Cpp, "soak"),
    ("soak_plugin", linked("gcc", "soak_plugin.c", SHARED, &[]), "soak_plugin.so"),
    ("grower", Recipe::C, "grower"),
    ("worker", Recipe::C, "worker"),
    ("growth_cases", Recipe::C, "growth_cases"),
    ("views", Recipe::C, "views"),
    ("versions", linked("gcc", "versions.c", BUILD_ID, &[]), "versions"),
    (
        "versions_rebuilt",
        linked("gcc", "versions.c", &["-DREBUILT", "-Wl,--build-id"], &[]),
        "versions_rebuilt",
    ),
    ("spin_pairs", Recipe::C, "spin_pairs"),
    ("spin_grid", Recipe::C, "spin_grid"),
    ("spin_pages", Recipe::C, "spin_pages"),
    ("exceptions", Recipe::Cpp, "exceptions"),
    ("server_stripped", Recipe::CppStripped, "server_stripped"),
    ("leak_rust", Recipe::Rust, "leak_rust"),
    ("leak_python", Recipe::Python, "leak_native.so"),
    ("leak_node", Recipe::Node, "leak_node.node"),
    ("LeakJni", Recipe::Java, "LeakJni.class"),
    ("new_forms", Recipe::Cpp, "new_forms"),
    ("prefixes", Recipe::C, "prefixes"),
    ("c_forms_static", linked("gcc", "c_forms.c", &["-static"], &[]), "c_forms_static"),
    ("c_forms_musl", linked("musl-gcc", "c_forms.c", &[], &[]), "c_forms_musl"),
    ("c_forms_musl_static", linked("musl-gcc", "c_forms.c", &["-static"], &[]), "c_forms_musl_static"),
    ("new_forms_jemalloc", linked("g++", "new_forms.cpp", &["-std=c++17"], JEMALLOC), "new_forms_jemalloc"),
    ("mallocx", linked("gcc", "mallocx.c", &[], JEMALLOC), "mallocx"),
    ("mi_forms", linked("gcc", "mi_forms.c", &[], &["-lmimalloc"]), "mi_forms"),
    ("hidden_host", Recipe::C, "hidden_host"),
    ("hidden_plugin", linked("gcc", "hidden_plugin.c", SHARED, HIDDEN_JEMALLOC), "hidden_plugin.so"),
    ("stripped_static", linked("gcc", "noleak.c", &["-static", "-s"], &[]), "stripped_static"),
    ("leak_go", Recipe::Go("leak_go", &[]), "leak_go"),
    ("leak_go_stripped", Recipe::Go("leak_go", &["-ldflags", "-s -w"]), "leak_go_stripped"),
    (
        "leak_go_pie_stripped",
        Recipe::Go("leak_go", &["-buildmode=pie", "-ldflags", "-s -w"]),
        "leak_go_pie_stripped",
    ),
    ("go_only", Recipe::Go("go_only", &[]), "go_only"),
    ("ledger", Recipe::C, "ledger"),
    ("ledger_go", Recipe::Go("ledger_go", &[]), "ledger_go"),
    ("ledger_go_stripped", Recipe::Go("ledger_go", &["-ldflags", "-s -w"]), "ledger_go_stripped"),
    ("LedgerJvm", Recipe::Class, "LedgerJvm.class"),
];

/// Sources of the targets.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("targets")
}

/// Where targets are built, or, in a virtual machine, where they lie ready (`OFFHEAP_TARGETS`).
pub fn directory() -> Result<PathBuf> {
    if let Some(ready) = env::var_os("OFFHEAP_TARGETS") {
        return Ok(PathBuf::from(ready));
    }
    let executable = env::current_exe().context("cannot find the test program")?;
    let target = executable.ancestors().find(|path| path.join("CACHEDIR.TAG").is_file());
    Ok(target.context("the test program is not in cargo's target directory")?.join("test-targets"))
}

/// Builds a target unless it is newer than its sources; gives the file to run or load.
pub fn target(name: &str) -> Result<PathBuf> {
    let &(name, recipe, product) =
        TARGETS.iter().find(|(known, ..)| *known == name).with_context(|| format!("no target `{name}`"))?;
    let directory = directory()?;
    let product = directory.join(product);
    if env::var_os("OFFHEAP_TARGETS").is_some() {
        return Ok(product);
    }
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILDING.lock();
    if is_fresh(&product)? {
        return Ok(product);
    }
    fs::create_dir_all(&directory).with_context(|| format!("cannot create `{}`", directory.display()))?;
    for mut command in recipe.commands(name, &directory, &product)? {
        let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
        if !output.status.success() {
            bail!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(product)
}

/// Builds every target.
pub fn all_targets() -> Result<Vec<PathBuf>> {
    TARGETS.iter().map(|(name, ..)| target(name)).collect()
}

/// Whether `product` is newer than every source; the sources are few and share a header.
fn is_fresh(product: &Path) -> Result<bool> {
    let Ok(built) = fs::metadata(product).and_then(|metadata| metadata.modified()) else { return Ok(false) };
    is_older(&sources(), built)
}

/// Whether every file of a folder, and of those in it, is older.
fn is_older(folder: &Path, built: SystemTime) -> Result<bool> {
    for entry in fs::read_dir(folder).context("cannot list the targets' sources")? {
        let entry = entry?;
        let is_older = match entry.file_type()?.is_dir() {
            true => is_older(&entry.path(), built)?,
            false => entry.metadata()?.modified()? < built,
        };
        if !is_older {
            return Ok(false);
        }
    }
    Ok(true)
}

const C_FLAGS: &[&str] = &["-O2", "-g", "-Wall", "-Wextra", "-Werror"];

fn compiler(program: &str, source: &str, product: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(C_FLAGS).args(flags).arg("-o").arg(product).arg(sources().join(source));
    command
}

impl Recipe {
    fn commands(self, name: &str, directory: &Path, product: &Path) -> Result<Vec<Command>> {
        // -rdynamic exports what the executable defines, allocator functions too.
        let c = ["-std=gnu11", "-rdynamic", "-pthread"];
        let cpp = ["-std=c++17", "-rdynamic", "-pthread"];
        let shared = ["-std=gnu11", "-shared", "-fPIC"];
        let c_source = format!("{name}.c");
        let cpp_source = format!("{name}.cpp");
        Ok(match self {
            Self::C => vec![compiler("gcc", &c_source, product, &c)],
            Self::Cpp => vec![compiler("g++", &cpp_source, product, &cpp)],
            Self::CppStripped => {
                let mut strip = Command::new("strip");
                strip.arg(product);
                vec![compiler("g++", &cpp_source, product, &cpp[..1]), strip]
            }
            Self::Rust => {
                let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
                rustc.args(["-O", "-g", "--edition", "2024", "-o"]).arg(product);
                rustc.arg(sources().join(format!("{name}.rs")));
                vec![rustc]
            }
            Self::Python => {
                let includes = Command::new("python3-config").arg("--includes").output();
                let includes = String::from_utf8(includes.context("cannot run `python3-config`")?.stdout)?;
                let mut gcc = compiler("gcc", &c_source, product, &shared);
                gcc.args(includes.split_whitespace());
                vec![gcc]
            }
            Self::Node => {
                let mut gcc = compiler("gcc", &c_source, product, &shared);
                gcc.arg("-I/usr/include/node");
                vec![gcc]
            }
            Self::Linked(Linked { compiler: program, source, flags, libraries }) => {
                let mut command = compiler(program, source, product, flags);
                command.args(libraries);
                vec![command]
            }
            Self::Java => {
                let library = directory.join("libleak_jni.so");
                let mut gcc = compiler("gcc", "leak_jni.c", &library, &shared);
                let include = java_home()?.join("include");
                gcc.arg("-I").arg(&include).arg("-I").arg(include.join("linux"));
                let mut javac = Command::new("javac");
                javac.arg("-d").arg(directory).arg(sources().join(format!("{name}.java")));
                vec![gcc, javac]
            }
            Self::Class => {
                let mut javac = Command::new("javac");
                javac.arg("-d").arg(directory).arg("-cp").arg(directory);
                javac.arg("-sourcepath").arg(sources()).arg(sources().join(format!("{name}.java")));
                vec![javac]
            }
            Self::Go(folder, arguments) => {
                // `OFFHEAP_GO` is another toolchain's `go`: the runtime's assembly differs between versions.
                let mut go = Command::new(env::var_os("OFFHEAP_GO").unwrap_or_else(|| "go".into()));
                go.args(["build", "-o"])
                    .arg(product)
                    .args(arguments)
                    .arg(".")
                    .current_dir(sources().join(folder));
                go.envs([("CGO_ENABLED", "1"), ("GOFLAGS", "-mod=mod"), ("GOTOOLCHAIN", "local")]);
                go.envs([("GOPROXY", "off"), ("CGO_CFLAGS", "-O2 -g")])
                    .env("GOCACHE", directory.join("go-cache"));
                vec![go]
            }
        })
    }
}

/// The JDK that `javac` belongs to.
fn java_home() -> Result<PathBuf> {
    let javac = fs::canonicalize(find_program("javac").context("no javac")?)?;
    Ok(javac.ancestors().nth(2).context("javac is not in a JDK")?.to_path_buf())
}
