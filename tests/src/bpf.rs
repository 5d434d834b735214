//! What a running offheap has in the kernel: its programs, maps and links.
//!
//! Tests fill maps with it to provoke a loss, and prove that nothing is left after an end of any kind. The objects are found
//! through the descriptors of the process, so that other users of BPF on this machine do not matter.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::Result;
use crate::lines::PATIENCE;

/// Commands of bpf(2), include/uapi/linux/bpf.h.
const MAP_LOOKUP_ELEM: i32 = 1;
const MAP_UPDATE_ELEM: i32 = 2;
const MAP_DELETE_ELEM: i32 = 3;
const PROG_GET_NEXT_ID: i32 = 11;
const MAP_GET_NEXT_ID: i32 = 12;
const MAP_GET_FD_BY_ID: i32 = 14;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const LINK_GET_NEXT_ID: i32 = 31;

/// `union bpf_attr`: larger than any command here needs, zero beyond.
type Attributes = [u64; 16];

fn bpf(command: i32, attributes: &mut Attributes) -> io::Result<i32> {
    // SAFETY: the attributes are alive for the call and as long as is said; what they point to is each caller's matter.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of::<Attributes>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(0)) }
}

/// A descriptor by the id of a program, map or link.
fn by_id(command: i32, id: u32) -> io::Result<OwnedFd> {
    let mut attributes: Attributes = [0; 16];
    attributes[0] = u64::from(id);
    let fd = bpf(command, &mut attributes)?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a program, map or link is in the kernel, by the command that gives the next id of its kind.
///
/// It is not opened for that: the release of each descriptor of an array of programs takes a reference to it for a work item, which is
/// never given back if that item is pending already (`prog_array_map_clear` in kernel/bpf/arraymap.c). Seen on 6.18, where one such map
/// in some hundred stayed for ever while this function opened it again and again on its way out.
fn is_there(command: i32, id: u32) -> io::Result<bool> {
    let before = id.saturating_sub(1);
    let mut attributes: Attributes = [0; 16];
    attributes[0] = u64::from(before);
    match bpf(command, &mut attributes) {
        // `start_id` and `next_id`, 4 bytes each.
        Ok(_) => Ok((attributes[0] >> 32) as u32 == id),
        // There is none behind it.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Programs, maps and links that a process holds, by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Programs.
    pub programs: BTreeSet<u32>,
    /// Maps.
    pub maps: BTreeSet<u32>,
    /// Links.
    pub links: BTreeSet<u32>,
}

impl Objects {
    /// What a process holds now.
    ///
    /// # Errors
    /// Its descriptors cannot be listed. One that is closed meanwhile is left out.
    pub fn of(pid: u32) -> Result<Self> {
        let mut objects = Self::default();
        let folder = format!("/proc/{pid}/fdinfo");
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list `{folder}`"))? {
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            for line in text.lines() {
                let Some((name, number)) = line.split_once(":\t") else { continue };
                let ids = match name {
                    "prog_id" => &mut objects.programs,
                    "map_id" => &mut objects.maps,
                    "link_id" => &mut objects.links,
                    _ => continue,
                };
                ids.extend(number.trim().parse::<u32>().ok());
            }
        }
        Ok(objects)
    }

    /// Fails unless all maps are in the kernel, which they are while their process holds them: so that not to find them means something.
    ///
    /// # Errors
    /// Names one that is not.
    pub fn ensure_there(&self) -> Result {
        for &id in &self.maps {
            ensure!(is_there(MAP_GET_NEXT_ID, id)?, "map {id} is not in the kernel");
        }
        Ok(())
    }

    /// Fails if one of them is still in the kernel after a while: objects go when their last user has, some after grace periods.
    ///
    /// # Errors
    /// Names what is left.
    pub fn ensure_gone(&self) -> Result {
        ensure!(!self.programs.is_empty() && !self.maps.is_empty(), "nothing was there: this proves nothing");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = |command, ids: &BTreeSet<u32>| -> Result<Vec<u32>> {
                let mut left = Vec::new();
                for &id in ids {
                    if is_there(command, id).context("cannot list what is in the kernel")? {
                        left.push(id);
                    }
                }
                Ok(left)
            };
            let programs = left(PROG_GET_NEXT_ID, &self.programs)?;
            let maps = left(MAP_GET_NEXT_ID, &self.maps)?;
            let links = left(LINK_GET_NEXT_ID, &self.links)?;
            if programs.is_empty() && maps.is_empty() && links.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "left in the kernel: programs {programs:?}, maps {maps:?}, links {links:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A map of a running offheap.
pub struct Map {
    fd: OwnedFd,
    /// Bytes of a key.
    pub key_bytes: usize,
    /// Bytes of a value, of one CPU.
    pub value_bytes: usize,
    /// Entries.
    pub max_entries: u32,
    is_per_cpu: bool,
}

/// `BPF_MAP_TYPE_PERCPU_HASH`, `BPF_MAP_TYPE_PERCPU_ARRAY`.
const PER_CPU: [u32; 2] = [5, 6];

impl Map {
    /// The map of this name that a process holds.
    ///
    /// # Errors
    /// There is none, or it may not be opened.
    pub fn of(pid: u32, name: &str) -> Result<Self> {
        for id in Objects::of(pid)?.maps {
            let fd = by_id(MAP_GET_FD_BY_ID, id).with_context(|| format!("cannot open map {id}"))?;
            // `struct bpf_map_info`: type, id, key_size, value_size, max_entries, flags, name.
            let mut info = [0u32; 22];
            let mut attributes: Attributes = [0; 16];
            attributes[0] = u64::from(fd.as_raw_fd().unsigned_abs()) | ((size_of_val(&info) as u64) << 32);
            attributes[1] = info.as_mut_ptr() as u64;
            bpf(OBJ_GET_INFO_BY_FD, &mut attributes).with_context(|| format!("cannot ask map {id}"))?;
            let letters: Vec<u8> = info[6..10].iter().flat_map(|word| word.to_le_bytes()).collect();
            if letters.split(|letter| *letter == 0).next() == Some(name.as_bytes()) {
                let [kind, _, key_bytes, value_bytes, max_entries, ..] = info;
                let is_per_cpu = PER_CPU.contains(&kind);
                return Ok(Self {
                    fd,
                    key_bytes: key_bytes as usize,
                    value_bytes: value_bytes as usize,
                    max_entries,
                    is_per_cpu,
                });
            }
        }
        anyhow::bail!("process {pid} has no map {name}")
    }

    fn call(&self, command: i32, key: &[u8], value: *mut u8) -> io::Result<()> {
        if key.len() != self.key_bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attributes: Attributes = [0; 16];
        attributes[0] = u64::from(self.fd.as_raw_fd().unsigned_abs());
        attributes[1] = key.as_ptr() as u64;
        attributes[2] = value as u64;
        bpf(command, &mut attributes).map(drop)
    }

    /// Bytes of a value as bpf(2) reads and writes it: that of every possible CPU, each rounded up to eight.
    fn buffer_bytes(&self) -> Result<usize> {
        Ok(if self.is_per_cpu {
            self.value_bytes.next_multiple_of(8) * possible_cpus()?
        } else {
            self.value_bytes
        })
    }

    /// A value that is zero, with `head` at the begin of that of each CPU.
    ///
    /// # Errors
    /// The number of CPUs cannot be read.
    pub fn value(&self, head: &[u8]) -> Result<Vec<u8>> {
        let mut value = vec![0; self.buffer_bytes()?];
        let step = if self.is_per_cpu { self.value_bytes.next_multiple_of(8) } else { self.value_bytes };
        for part in value.chunks_mut(step.max(1)) {
            part.iter_mut().zip(head).for_each(|(byte, wanted)| *byte = *wanted);
        }
        Ok(value)
    }

    /// Writes an element; `value` is one of [`Map::value`].
    ///
    /// # Errors
    /// As the kernel says; a full map is E2BIG.
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.call(MAP_UPDATE_ELEM, key, value.as_ptr().cast_mut())
    }

    /// Removes an element.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.call(MAP_DELETE_ELEM, key, std::ptr::null_mut())
    }

    /// Reads an element.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn lookup(&self, key: &[u8]) -> Result<Vec<u8>> {
        let mut value = vec![0; self.buffer_bytes()?];
        self.call(MAP_LOOKUP_ELEM, key, value.as_mut_ptr())?;
        Ok(value)
    }

    /// Fills a hash map with keys that no process has, until the kernel takes no more; gives the keys.
    ///
    /// # Errors
    /// The map does not fill up.
    pub fn fill(&self) -> Result<Vec<Vec<u8>>> {
        let value = self.value(&[])?;
        let mut keys = Vec::new();
        for number in 0..=u64::from(self.max_entries) {
            let mut key = vec![0; self.key_bytes];
            // Behind the process id, which is 0: no user process has that.
            let place = self.key_bytes.checked_sub(8).context("a key too short for this")?;
            key[place..].copy_from_slice(&number.to_le_bytes());
            if let Err(error) = self.update(&key, &value) {
                ensure!(error.raw_os_error() == Some(libc::E2BIG), "cannot fill a map: {error}");
                return Ok(keys);
            }
            keys.push(key);
        }
        anyhow::bail!("{} elements do not fill a map of {}", keys.len(), self.max_entries)
    }
}

/// CPUs that this machine could have, which is how many values a per-CPU map has.
fn possible_cpus() -> Result<usize> {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible").context("cannot read the CPUs")?;
    let last = text.trim().rsplit(['-', ',']).next().context("no CPU")?;
    Ok(last.parse::<usize>().with_context(|| format!("not a list of CPUs: {text}"))? + 1)
}
