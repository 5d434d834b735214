//! Which language runtime a process runs, and which version of it, as far as its files tell.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
    path::Path,
};

use object::{Object as _, ObjectSection as _, ReadCache};

use super::{
    maps,
    object::{MAX_BYTES, OffsetReader},
    plain_file,
};
use crate::model::Runtime;

/// Longest version that is believed.
const MAX_VERSION_BYTES: usize = 64;
/// What is read of a file at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// Largest section that is searched.
const MAX_SEARCH_BYTES: u64 = 256 << 20;

/// The language runtime, by the names of what is mapped.
pub(super) fn of_process(tgid: u32) -> Option<Runtime> {
    let entries = maps::read(tgid).ok()?;
    let exe = fs::read_link(format!("/proc/{tgid}/exe")).ok()?;
    let mut paths: Vec<String> =
        entries.iter().filter(|entry| entry.is_executable()).map(maps::MapEntry::display_name).collect();
    paths.push(exe.to_string_lossy().into_owned());
    let Some((name, version, path)) = paths.iter().find_map(|path| by_name(path)) else {
        let version = go_version(&open_exe(tgid)?)?;
        return Some(Runtime { name: "go".to_owned(), version });
    };
    let version = version.or_else(|| match name {
        "jvm" => jvm_version(tgid, &path),
        "node" => node_version(&open_exe(tgid)?),
        _ => None,
    });
    Some(Runtime { name: name.to_owned(), version })
}

fn open_exe(tgid: u32) -> Option<File> {
    let exe = plain_file::open_linked(&format!("/proc/{tgid}/exe")).ok()?;
    exe.metadata().ok().filter(|exe| exe.is_file() && exe.len() <= MAX_BYTES).map(|_| exe)
}

/// Name, version and path of the runtime that a file is.
fn by_name(path: &str) -> Option<(&'static str, Option<String>, String)> {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let base = path.rsplit('/').next()?;
    let version_of = |rest: &str| {
        let version: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        let version = version.trim_end_matches('.').to_owned();
        (!version.is_empty()).then_some(version)
    };
    let (name, version) = match base {
        "node" | "nodejs" => ("node", None),
        "libjvm.so" => ("jvm", None),
        "libcoreclr.so" => ("dotnet", None),
        "ruby" => ("ruby", None),
        _ if base.starts_with("libruby") && base.contains(".so") => ("ruby", None),
        _ => match (
            base.strip_prefix("libpython"),
            base.strip_prefix("python"),
            base.strip_prefix("libnode.so."),
        ) {
            (Some(rest), _, _) if base.contains(".so") => ("cpython", version_of(rest)),
            (_, Some(rest), _) if rest.is_empty() || rest.starts_with(|c: char| c.is_ascii_digit()) => {
                ("cpython", version_of(rest))
            }
            (_, _, Some(_)) => ("node", None),
            _ => return None,
        },
    };
    Some((name, version, path.to_owned()))
}

/// `JAVA_VERSION="17.0.15"` of the file `release` in the JVM's home, two directories above `libjvm.so`.
fn jvm_version(tgid: u32, libjvm: &str) -> Option<String> {
    let home = Path::new(libjvm).ancestors().nth(3)?;
    let mut release = String::new();
    plain_file::open_in_root_of(tgid, &home.join("release"))
        .ok()?
        .take(64 << 10)
        .read_to_string(&mut release)
        .ok()?;
    let version = release.lines().find_map(|line| line.strip_prefix("JAVA_VERSION="))?.trim_matches('"');
    (version.len() < 64).then(|| version.to_owned())
}

/// Where a section lies in a file: offset and size.
fn section(file: &File, name: &str) -> Option<(u64, u64)> {
    let cache = ReadCache::new(OffsetReader::new(file));
    let elf = object::File::parse(&cache).ok()?;
    elf.section_by_name(name)?.file_range()
}

/// `Some` for a Go program: its version, if it is written into the file (Go 1.18 and later).
fn go_version(exe: &File) -> Option<Option<String>> {
    let (offset, size_bytes) = section(exe, ".go.buildinfo")?;
    let mut head = [0; 128];
    let wanted = usize::try_from(size_bytes).unwrap_or(usize::MAX).min(head.len());
    let count = exe.read_at(&mut head[..wanted], offset).ok()?;
    Some(go_version_of(&head[..count]))
}

/// Reads the head of `.go.buildinfo`: `\xff Go buildinf:`, pointer size, flags (2: the strings are inline),
/// and from byte 32 the version with its length in front.
pub(crate) fn go_version_of(head: &[u8]) -> Option<String> {
    let rest = head.strip_prefix(b"\xff Go buildinf:")?;
    if rest.get(1)? & 2 == 0 {
        return None;
    }
    // A length of 128 and more, which takes two bytes, is no version.
    let length = usize::from(*head.get(32)?);
    let version = std::str::from_utf8(head.get(33..33 + length)?).ok()?.strip_prefix("go")?;
    is_version(version).then(|| version.to_owned())
}

/// Official builds of node hold the address that they can be downloaded from.
fn node_version(exe: &File) -> Option<String> {
    const BEFORE: &[u8] = b"https://nodejs.org/download/release/v";
    let (start, size_bytes) = section(exe, ".rodata")?;
    let end = start.checked_add(size_bytes.min(MAX_SEARCH_BYTES))?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut offset = start;
    while offset < end {
        let count = exe.read_at(&mut chunk, offset).ok()?;
        let bytes = &chunk[..count];
        if let Some(version) = version_behind(bytes, BEFORE) {
            return Some(version);
        }
        // The next chunk begins early enough to hold what this one has cut.
        let step = count.checked_sub(BEFORE.len() + MAX_VERSION_BYTES).filter(|step| *step > 0)?;
        offset += step as u64;
    }
    None
}

/// The version that stands between `before` and a slash.
pub(crate) fn version_behind(bytes: &[u8], before: &[u8]) -> Option<String> {
    bytes.windows(before.len()).enumerate().filter(|(_, window)| *window == before).find_map(|(at, _)| {
        let rest = &bytes[at + before.len()..];
        let length = rest.iter().take(MAX_VERSION_BYTES).position(|byte| *byte == b'/')?;
        let version = std::str::from_utf8(&rest[..length]).ok()?;
        is_version(version).then(|| version.to_owned())
    })
}

/// Whether it looks like one: digits first, then digits, letters, dots and what release candidates have.
fn is_version(text: &str) -> bool {
    text.len() < MAX_VERSION_BYTES
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+_".contains(&byte))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_are_known_by_their_files() {
        let name = |path| by_name(path).map(|(name, version, _)| (name, version));
        assert_eq!(name("/usr/bin/node"), Some(("node", None)));
        assert_eq!(name("/opt/python3.11 (deleted)"), Some(("cpython", Some("3.11".to_owned()))));
        assert_eq!(name("/usr/lib/libpython3.12.so.1.0"), Some(("cpython", Some("3.12".to_owned()))));
        assert_eq!(name("/jdk/lib/server/libjvm.so"), Some(("jvm", None)));
        assert_eq!(name("/usr/lib/libruby-3.1.so.3.1"), Some(("ruby", None)));
        assert_eq!(name("/usr/bin/python-argcomplete"), None);
        assert_eq!(name("/usr/bin/nginx"), None);
    }

    #[test]
    fn the_version_of_go_stands_in_its_build_info() {
        let mut head = b"\xff Go buildinf:\x08\x02".to_vec();
        head.resize(32, 0);
        head.extend(b"\x08go1.22.1rest");
        assert_eq!(go_version_of(&head), Some("1.22.1".to_owned()));
        for end in 0..head.len() - 4 {
            assert_eq!(go_version_of(&head[..end]), None, "cut at {end}");
        }
        head[15] = 0;
        assert_eq!(go_version_of(&head), None, "pointers, as before 1.18");
    }

    #[test]
    fn a_version_is_taken_only_if_it_looks_like_one() {
        let find = |bytes: &[u8]| version_behind(bytes, b"/v");
        assert_eq!(find(b"x/v/v20.1.0/node"), Some("20.1.0".to_owned()));
        assert_eq!(find(b"/v\x1b[31m/"), None);
        assert_eq!(find(b"/v20.1.0"), None, "cut");
    }

    #[test]
    fn a_running_node_tells_its_version() {
        let Ok(mut child) = std::process::Command::new("node")
            .args(["-e", "console.log(process.version); setInterval(() => {}, 1000)"])
            .stdout(std::process::Stdio::piped())
            .spawn()
        else {
            eprintln!("skipped: node is not installed");
            return;
        };
        let mut line = String::new();
        let output = child.stdout.take().unwrap();
        let told = std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line);
        let runtime = of_process(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        told.unwrap();
        let runtime = runtime.unwrap();
        assert_eq!(runtime.name, "node");
        // A distribution's own build does not say.
        assert!(runtime.version.is_none_or(|version| line.trim() == format!("v{version}")), "{line}");
    }

    #[test]
    fn a_c_program_has_none() {
        assert_eq!(of_process(std::process::id()), None);
    }
}
