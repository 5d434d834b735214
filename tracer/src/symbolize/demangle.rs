//! Names as people write them, with a bound: a mangled C++ name can stand for one of any length.

use std::fmt::{self, Write};

/// Longest function or file name that is kept; the rest is cut.
pub(super) const MAX_NAME_BYTES: usize = 8 << 10;

/// What glibc puts before the name under which it calls its own functions. Only its debug information has it;
/// without the prefix a function has one name whether that is installed or not.
const GLIBC_INTERNAL: &str = "__GI_";

/// The function's name in its own language, for C++ and Rust. At most 8 KiB.
pub fn demangle(name: &str) -> String {
    let name = name.strip_prefix(GLIBC_INTERNAL).unwrap_or(name);
    let mut out = Bounded(String::new());
    // Rust first: its older scheme is C++'s with a hash at the end.
    if let Ok(symbol) = rustc_demangle::try_demangle(name) {
        // An error means that the bound was reached; what was written stands.
        let _ = write!(out, "{symbol:#}");
    } else if name.starts_with("_Z")
        && let Ok(symbol) = cpp_demangle::Symbol::new(name)
    {
        let _ = symbol.structured_demangle(&mut out, &cpp_demangle::DemangleOptions::new());
    }
    if out.0.is_empty() { bounded(name) } else { out.0 }
}

/// The text, cut at [`MAX_NAME_BYTES`].
pub(super) fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_NAME_BYTES)].to_owned()
}

/// A string that refuses to grow beyond [`MAX_NAME_BYTES`].
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_NAME_BYTES - self.0.len();
        self.0.push_str(&text[..text.floor_char_boundary(room)]);
        if text.len() > room { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_languages_are_demangled_and_the_rest_is_left_alone() {
        for (mangled, name) in [
            ("_Z12leak_scratchm", "leak_scratch(unsigned long)"),
            (
                "_ZN5cache6insertERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE",
                "cache::insert(std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> > const&)",
            ),
            ("_ZN7offheap3cmd4demo17h0123456789abcdefE", "offheap::cmd::demo"),
            ("_RNvCskwGfYPst2Cb_3foo16example_function", "foo::example_function"),
            ("qsort", "qsort"),
            ("__GI___libc_malloc", "__libc_malloc"),
            ("_Znonsense", "_Znonsense"),
            ("", ""),
        ] {
            assert_eq!(demangle(mangled), name);
        }
    }

    #[test]
    fn a_name_that_doubles_at_every_step_is_cut() {
        // f(A<char, char>, A<previous, previous>, …): each argument is twice the one before.
        let mut bomb = "_Z1f1AIccE".to_owned();
        for step in 0..60 {
            let previous = if step == 0 { "0".to_owned() } else { base36(step) };
            bomb += &format!("S_IS{previous}_S{previous}_E");
        }
        let name = demangle(&bomb);
        assert!(name.starts_with("f(A<char, char>, A<"), "{name}");
        assert!((MAX_NAME_BYTES - 3..=MAX_NAME_BYTES).contains(&name.len()));
        assert_eq!(demangle(&"ü".repeat(MAX_NAME_BYTES)).len(), MAX_NAME_BYTES);
    }

    fn base36(number: u32) -> String {
        let digit = |value| char::from_digit(value, 36).map(|digit| digit.to_ascii_uppercase());
        [digit(number / 36).filter(|_| number >= 36), digit(number % 36)].into_iter().flatten().collect()
    }
}
