//! Makes names that come from a target safe to print.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Replaces what a terminal would act on, or what a reader would not see, by visible escapes: control
/// characters (line ends and the starts of ANSI sequences among them), characters that change the
/// direction of text, and characters without width.
pub fn escape(name: &str) -> Cow<'_, str> {
    if !name.chars().any(is_deceptive) {
        return Cow::Borrowed(name);
    }
    let mut escaped = String::with_capacity(name.len() + 8);
    for character in name.chars() {
        match character {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            // Writing to a string does not fail.
            '\0'..='\x7f' if is_deceptive(character) => {
                let _ = write!(escaped, "\\x{:02x}", u32::from(character));
            }
            _ if is_deceptive(character) => {
                let _ = write!(escaped, "\\u{{{:x}}}", u32::from(character));
            }
            _ => escaped.push(character),
        }
    }
    Cow::Owned(escaped)
}

/// Whether a character must not reach a terminal as it is.
pub(super) fn is_deceptive(character: char) -> bool {
    let is_plain = matches!(character, ' '..='~');
    !is_plain
        && (character.is_control()
            || matches!(character,
            // Directions.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}'
            // No width, or blank although a letter.
            | '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2065}' | '\u{2800}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}'
            // Line ends of Unicode.
            | '\u{2028}' | '\u{2029}'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_stay() {
        for name in ["operator new[](unsigned long)", "größe_λ", "日本語", "a\\b", "node::Buffer::New"]
        {
            assert!(matches!(escape(name), Cow::Borrowed(same) if same == name));
        }
    }

    #[test]
    fn what_deceives_becomes_visible() {
        assert_eq!(escape("\u{1b}[2Jx\n\r\t\0\u{7f}"), "\\x1b[2Jx\\n\\r\\t\\x00\\x7f");
        assert_eq!(escape("\u{9b}31m"), "\\u{9b}31m", "the 8-bit form of an ANSI sequence");
        assert_eq!(escape("a\u{202e}b\u{200b}c\u{2067}"), "a\\u{202e}b\\u{200b}c\\u{2067}");
        assert_eq!(escape("\u{e0041}\u{feff}\u{2028}"), "\\u{e0041}\\u{feff}\\u{2028}");
    }
}
