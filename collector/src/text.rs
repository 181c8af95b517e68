//! Text that more than one module writes: times (RFC 3339 in UTC with nanoseconds, without allocation), and what a process,
//! a file system or a cluster chose, made safe to print and to send.

const NS_PER_S: u64 = 1_000_000_000;
const S_PER_DAY: u64 = 86_400;

/// `2026-11-24T20:59:39.123456789Z`
pub const LENGTH: usize = 30;

/// The text of a time, ns since 1970; a u64 reaches to 2554.
pub fn rfc3339(unix_ns: u64) -> [u8; LENGTH] {
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    let seconds = unix_ns / NS_PER_S;
    let (year, month, day) = date(seconds / S_PER_DAY);
    let second_of_day = seconds % S_PER_DAY;
    write_digits(&mut text[0..4], year);
    write_digits(&mut text[5..7], month);
    write_digits(&mut text[8..10], day);
    write_digits(&mut text[11..13], second_of_day / 3600);
    write_digits(&mut text[14..16], second_of_day / 60 % 60);
    write_digits(&mut text[17..19], second_of_day % 60);
    write_digits(&mut text[20..29], unix_ns % NS_PER_S);
    text
}

/// Year, month and day in the Gregorian calendar, by days since 1970 (Hinnant, `civil_from_days`: years begin in March
/// so that the leap day is their last, and 400 of them always have as many days).
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_1970: u64 = 719_468;
    const DAYS_PER_400_YEARS: u64 = 146_097;
    let days = days + DAYS_TO_1970;
    let day_of_era = days % DAYS_PER_400_YEARS;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + days / DAYS_PER_400_YEARS * 400 + u64::from(month <= 2);
    (year, month, day)
}

fn write_digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Whether a character may mislead whoever reads a line: it moves a terminal's cursor, ends the line, changes the writing
/// direction, or is not visible.
pub fn is_unsafe(character: char) -> bool {
    match character {
        '\u{ad}'
        | '\u{34f}'
        | '\u{61c}'
        | '\u{115f}'
        | '\u{1160}'
        | '\u{17b4}'
        | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' => true,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' => true,
        '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}' => true,
        _ => character.is_control(),
    }
}

/// `text` as UTF-8 of at most `max_bytes`: bytes that are not UTF-8 become U+FFFD, characters that mislead a reader
/// ([`is_unsafe`]) are escaped as in Rust, and the rest is cut at a character.
pub fn sanitize(text: &[u8], max_bytes: usize) -> String {
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
    let unsafe_ = is_unsafe(character);
    let length = if unsafe_ { character.escape_default().len() } else { character.len_utf8() };
    if out.len() + length > max_bytes {
        return false;
    }
    if unsafe_ {
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
    fn times_as_date_prints_them() {
        // `date -u -d @SECONDS +%FT%T`
        let table = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399_999_999_999, "2000-02-28T23:59:59.999999999Z"),
            (951_782_400_000_000_000, "2000-02-29T00:00:00.000000000Z"),
            (951_868_800_000_000_001, "2000-03-01T00:00:00.000000001Z"),
            (1_709_164_800_000_000_000, "2024-02-29T00:00:00.000000000Z"),
            (1_798_761_599_000_000_000, "2026-12-31T23:59:59.000000000Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
            (u64::MAX, "2554-07-21T23:34:33.709551615Z"),
        ];
        for (unix_ns, expected) in table {
            assert_eq!(str::from_utf8(&rfc3339(unix_ns)).unwrap(), expected);
        }
    }

    #[test]
    fn text_is_made_safe_and_bounded() {
        for (text, max_bytes, expected) in [
            (&b"nginx"[..], 64, "nginx"),
            ("käse \u{1F9C0}".as_bytes(), 64, "käse \u{1F9C0}"),
            (b"a\nb\tc\x1b[31m\x7f\0", 64, "a\\nb\\tc\\u{1b}[31m\\u{7f}\\u{0}"),
            (b"a\xff\xfeb", 64, "a\u{fffd}\u{fffd}b"),
            ("x\u{202e}y\u{2028}z".as_bytes(), 64, "x\\u{202e}y\\u{2028}z"),
            ("a\u{61c}b\u{200b}c\u{e0041}".as_bytes(), 64, "a\\u{61c}b\\u{200b}c\\u{e0041}"),
            ("ää".as_bytes(), 3, "ä"),
            (b"a\n", 2, "a"),
            (b"", 4, ""),
        ] {
            assert_eq!(sanitize(text, max_bytes), expected, "{text:?}");
        }
        assert_eq!(sanitize("ü".repeat(2048).as_bytes(), 255).len(), 254);
    }
}
