//! Text that a process, a file system or a cluster chose, made safe to print and to send: UTF-8, on one line, bounded.

/// `text` as UTF-8 of at most `max_bytes`: bytes that are not UTF-8 become U+FFFD, characters that steer a terminal
/// (controls, line separators, changes of writing direction) are escaped as in Rust, and the rest is cut at a character.
pub fn printable(text: &[u8], max_bytes: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max_bytes));
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            if !push(&mut out, character, max_bytes) {
                return out;
            }
        }
        if !chunk.invalid().is_empty() && !push(&mut out, char::REPLACEMENT_CHARACTER, max_bytes) {
            return out;
        }
    }
    out
}

/// Adds a character unless that would pass `max_bytes`; says whether it did.
fn push(out: &mut String, character: char, max_bytes: usize) -> bool {
    let steers = character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let length = if steers { character.escape_default().len() } else { character.len_utf8() };
    if out.len() + length > max_bytes {
        return false;
    }
    if steers {
        out.extend(character.escape_default());
    } else {
        out.push(character);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_made_safe_and_bounded() {
        for (text, max_bytes, expected) in [
            (&b"nginx"[..], 64, "nginx"),
            ("käse \u{1F9C0}".as_bytes(), 64, "käse \u{1F9C0}"),
            (b"a\nb\tc\x1b[31m\x7f\0", 64, "a\\nb\\tc\\u{1b}[31m\\u{7f}\\u{0}"),
            (b"a\xff\xfeb", 64, "a\u{fffd}\u{fffd}b"),
            ("x\u{202e}y\u{2028}z".as_bytes(), 64, "x\\u{202e}y\\u{2028}z"),
            ("ää".as_bytes(), 3, "ä"),
            (b"a\n", 2, "a"),
            (b"", 4, ""),
        ] {
            assert_eq!(printable(text, max_bytes), expected, "{text:?}");
        }
        assert_eq!(printable("ü".repeat(2048).as_bytes(), 255).len(), 254);
    }
}
