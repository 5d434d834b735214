//! The guest's files, as an uncompressed `newc` cpio archive: 50 MB of it cost nothing visible.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use object::read::elf::ProgramHeader as _;

use crate::command::output;

const PROGRAM: &str = "/program";
const BUSYBOX: &str = "/bin/busybox";
const FOLDER: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;

/// First process of the guest: mounts, runs the program with a time limit, prints its status behind the nonce.
///
/// The limit of locked memory is left alone: offheap has to raise it by itself where a kernel needs that.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
for mount in proc:/proc sysfs:/sys devtmpfs:/dev tmpfs:/tmp debugfs:/sys/kernel/debug tracefs:/sys/kernel/tracing \
  bpf:/sys/fs/bpf cgroup2:/sys/fs/cgroup; do
  $b mount -t "${mount%%:*}" none "${mount#*:}" || echo "init: cannot mount ${mount#*:}"
done
$b ip link set lo up
# Asked for and not given: the run would say nothing of what it is for.
if $b grep -q preempt=full /proc/cmdline && ! $b grep -q '(full)' /sys/kernel/debug/sched/preempt; then
  echo 'init: this kernel is not fully preemptible'
  $b poweroff -f
fi
parameter() { $b sed -n "s/.*offheap\.$1=\([0-9a-f]*\).*/\1/p" /proc/cmdline; }
export RUST_BACKTRACE=0 PATH=/bin HOME=/tmp
while IFS= read -r line; do export "$line"; done </variables
set --
while IFS= read -r line; do set -- "$@" "$line"; done </arguments
$b timeout -s KILL "$(parameter seconds)" /program "$@"
echo "offheap-status $(parameter nonce) $?"
$b poweroff -f
"#;

/// Files of a guest.
pub struct Image {
    /// By path in the guest: mode and content.
    files: BTreeMap<String, (u32, Vec<u8>)>,
    variables: Vec<String>,
    sysroot: Option<&'static Sysroot>,
}

/// Where the libraries of another machine are, here and in the guest.
pub struct Sysroot {
    pub libraries: &'static str,
    pub guest_libraries: &'static str,
}

impl Image {
    /// A guest of this machine that runs one program.
    pub fn new(program: &Path) -> Result<Self> {
        Self::with(program, Path::new(BUSYBOX), None)
    }

    /// A guest that runs one program, with its shell; libraries are those of `sysroot`, if that is another machine's.
    pub fn with(program: &Path, busybox: &Path, sysroot: Option<&'static Sysroot>) -> Result<Self> {
        let mut image = Self { files: BTreeMap::new(), variables: Vec::new(), sysroot };
        for folder in ["/proc", "/sys", "/dev", "/tmp"] {
            image.files.insert(folder.to_owned(), (FOLDER, Vec::new()));
        }
        image.add("/init", INIT.as_bytes().to_vec());
        image.add_program(busybox, BUSYBOX)?;
        image.add_program(program, PROGRAM)?;
        image.set_arguments(&[]);
        image.add("/variables", Vec::new());
        Ok(image)
    }

    /// Adds a program, and the libraries it is linked with under the paths they have here.
    pub fn add_program(&mut self, program: &Path, guest_path: &str) -> Result<()> {
        let content = fs::read(program).with_context(|| format!("cannot read `{}`", program.display()))?;
        self.add(guest_path, content);
        if let Some(sysroot) = self.sysroot {
            return self.add_needed(program, sysroot);
        }
        for library in libraries(program)? {
            let content =
                fs::read(&library).with_context(|| format!("cannot read `{}`", library.display()))?;
            self.add(&library.to_string_lossy(), content);
        }
        Ok(())
    }

    /// Adds the libraries that a program of another machine is linked with, and those that these are linked with.
    fn add_needed(&mut self, program: &Path, sysroot: &Sysroot) -> Result<()> {
        let mut open = vec![program.to_path_buf()];
        while let Some(path) = open.pop() {
            let bytes = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
            for name in needed(&bytes) {
                let guest_path = format!("{}/{name}", sysroot.guest_libraries);
                if self.files.contains_key(&guest_path) {
                    continue;
                }
                let library = Path::new(sysroot.libraries).join(&name);
                let content = fs::read(&library).with_context(|| {
                    format!("cannot read `{}`: run `cargo xtask setup`", library.display())
                })?;
                self.add(&guest_path, content);
                open.push(library);
            }
        }
        Ok(())
    }

    /// What the program is called with.
    pub fn set_arguments(&mut self, arguments: &[String]) {
        let text: String = arguments.iter().map(|argument| format!("{argument}\n")).collect();
        self.add("/arguments", text.into_bytes());
    }

    /// Sets an environment variable.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.push(format!("{name}={value}\n"));
        self.add("/variables", self.variables.concat().into_bytes());
    }

    fn add(&mut self, path: &str, content: Vec<u8>) {
        let folders = Path::new(path).ancestors().skip(1).filter(|folder| folder.parent().is_some());
        for folder in folders {
            self.files.entry(folder.to_string_lossy().into_owned()).or_insert((FOLDER, Vec::new()));
        }
        self.files.insert(path.to_owned(), (EXECUTABLE, content));
    }

    /// The archive. Folders come before what is in them, because paths are sorted.
    pub fn archive(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        for (number, (path, (mode, content))) in (1..).zip(&self.files) {
            append(&mut archive, number, path.trim_start_matches('/'), *mode, content);
        }
        append(&mut archive, 0, "TRAILER!!!", 0, &[]);
        archive
    }
}

/// One entry of the `newc` format (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's
/// sources): a magic number, 13 fields of 8 hex digits, the name with its zero, the content; name and content padded to 4 bytes.
fn append(archive: &mut Vec<u8>, inode: usize, name: &str, mode: u32, content: &[u8]) {
    let links = 1;
    let fields = [inode, mode as usize, 0, 0, links, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08X}").into_bytes());
    }
    archive.extend(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend(content);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// Shared libraries and loader of a program, none if it is static.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let bytes = fs::read(program).with_context(|| format!("cannot read `{}`", program.display()))?;
    let Some(loader) = loader(&bytes) else { return Ok(Vec::new()) };
    // musl's loader is its C library, and `ldd` knows nothing of it.
    if loader.to_string_lossy().contains("ld-musl") {
        return Ok(vec![loader]);
    }
    Ok(parse_ldd(&output(Command::new("ldd").arg(program))?))
}

/// The loader that a program names.
fn loader(program: &[u8]) -> Option<PathBuf> {
    let file = object::read::elf::ElfFile64::<object::Endianness>::parse(program).ok()?;
    let headers = file.elf_program_headers().iter();
    let name = headers.filter_map(|header| header.interpreter(file.endian(), program).ok()?).next()?;
    Some(PathBuf::from(std::str::from_utf8(name).ok()?))
}

/// Names of the libraries that an ELF file is linked with, and of its loader.
fn needed(bytes: &[u8]) -> Vec<String> {
    let Ok(file) = object::read::elf::ElfFile64::<object::Endianness>::parse(bytes) else {
        return Vec::new();
    };
    let endian = file.endian();
    let table = file.elf_section_table().dynamic(endian, bytes).ok().flatten();
    let mut names = Vec::new();
    if let Some((entries, strings)) = table {
        let strings = file.elf_section_table().strings(endian, bytes, strings).unwrap_or_default();
        for entry in entries.iter().filter(|entry| entry.d_tag.get(endian) == object::elf::DT_NEEDED) {
            let offset = u32::try_from(entry.d_val.get(endian)).unwrap_or(u32::MAX);
            names.extend(strings.get(offset).ok().map(|name| String::from_utf8_lossy(name).into_owned()));
        }
    }
    let loader = loader(bytes);
    names.extend(loader.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned())));
    names
}

/// Paths in lines like `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f…)`; the vDSO has none.
fn parse_ldd(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\t/lib64/ld.so (0x7f)\n";
        assert_eq!(parse_ldd(text), [Path::new("/lib/libc.so.6"), Path::new("/lib64/ld.so")]);
    }

    #[test]
    fn entries_are_padded_and_closed() {
        let mut archive = Vec::new();
        append(&mut archive, 1, "a", EXECUTABLE, b"12345");
        assert_eq!(archive.len() % 4, 0);
        assert!(archive.starts_with(b"0707010000000100008"));
        assert_eq!(&archive[110..112], b"a\0");
        assert_eq!(&archive[112..117], b"12345");
    }
}
