//! The vDSO: an ELF image that the kernel maps into every process, so ours tells what all others have.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use super::UnwindError;

const MAPS: &str = "/proc/self/maps";
const MEM: &str = "/proc/self/mem";
/// Most bytes of our own mapping list that are looked through.
const MAX_MAPS_BYTES: u64 = 16 << 20;
/// Largest vDSO that is read; today's have two pages.
const MAX_VDSO_BYTES: u64 = 1 << 20;

/// The ELF image of the vDSO, read from this process. `None` if this process has none (`vdso=0`).
///
/// It is the image that 64-bit targets on the same kernel have, also in containers.
///
/// # Errors
/// `/proc` is not there or refuses.
pub fn own_vdso() -> Result<Option<Vec<u8>>, UnwindError> {
    let failed = |path| move |source| UnwindError::Vdso { path, source };
    let mut maps = String::new();
    let file = File::open(MAPS).map_err(failed(MAPS))?;
    file.take(MAX_MAPS_BYTES).read_to_string(&mut maps).map_err(failed(MAPS))?;
    let Some((start, end)) = maps.lines().find_map(vdso_range) else { return Ok(None) };
    let mut image = vec![0; usize::try_from((end - start).min(MAX_VDSO_BYTES)).unwrap_or(0)];
    let memory = File::open(MEM).map_err(failed(MEM))?;
    memory.read_exact_at(&mut image, start).map_err(failed(MEM))?;
    Ok(Some(image))
}

fn vdso_range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.strip_suffix("[vdso]")?.split(' ').next()?.split_once('-')?;
    let range = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (range.0 < range.1).then_some(range)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_own_vdso_is_an_elf_image() {
        let image = own_vdso().unwrap().unwrap();
        assert_eq!(&image[..4], b"\x7fELF");
    }

    #[test]
    fn only_the_vdso_line_counts() {
        let line = "7ffe3a3f2000-7ffe3a3f4000 r-xp 00000000 00:00 0                          [vdso]";
        assert_eq!(vdso_range(line), Some((0x7ffe_3a3f_2000, 0x7ffe_3a3f_4000)));
        assert_eq!(vdso_range(&line.replace("vdso", "vvar")), None);
        assert_eq!(vdso_range("7ffe-1000 r-xp [vdso]"), None);
    }
}
