//! The text of a time: RFC 3339 in UTC with nanoseconds, without allocation.

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
}
