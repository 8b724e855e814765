//! JSON by hand: the few values a record consists of, appended to a buffer that is used again and again.
//! A general serialiser costs three times as much, and its peer on the same machine is the server under test.

use crate::runtime::Micros;

const HEX: &[u8; 16] = b"0123456789abcdef";
const MICROS_A_DAY: i64 = 86_400_000_000;

/// Appends an integer in decimal.
pub(super) fn integer(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    unsigned(out, value.unsigned_abs());
}

/// Appends an unsigned integer in decimal.
pub(super) fn unsigned(out: &mut Vec<u8>, mut value: u64) {
    let start = out.len();
    loop {
        out.push(b'0' + digit(value % 10));
        value /= 10;
        if value == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(start..) {
        digits.reverse();
    }
}

/// Appends a UUID of version 4 made of 128 random bits.
pub(super) fn uuid(out: &mut Vec<u8>, high: u64, low: u64) {
    let high = (high & 0xffff_ffff_ffff_0fff) | 0x4000;
    let low = (low & 0x3fff_ffff_ffff_ffff) | 0x8000_0000_0000_0000;
    let mut text = [b'-'; 36];
    let mut at = text.iter_mut();
    for (position, byte) in high.to_be_bytes().into_iter().chain(low.to_be_bytes()).enumerate() {
        if matches!(position, 4 | 6 | 8 | 10) {
            at.next();
        }
        for nibble in [byte >> 4, byte & 15] {
            if let (Some(place), Some(hex)) = (at.next(), HEX.get(usize::from(nibble))) {
                *place = *hex;
            }
        }
    }
    out.extend_from_slice(&text);
}

/// Appends an instant as `2026-11-23T17:05:09.123Z`, rounded down to the millisecond. Years 0 to 9999.
pub(super) fn instant(out: &mut Vec<u8>, at: Micros) {
    let (year, month, day) = civil(at.div_euclid(MICROS_A_DAY));
    let millis = at.rem_euclid(MICROS_A_DAY).unsigned_abs() / 1_000;
    padded::<4>(out, year);
    out.push(b'-');
    padded::<2>(out, month);
    out.push(b'-');
    padded::<2>(out, day);
    out.push(b'T');
    padded::<2>(out, millis / 3_600_000);
    out.push(b':');
    padded::<2>(out, millis / 60_000 % 60);
    out.push(b':');
    padded::<2>(out, millis / 1_000 % 60);
    out.push(b'.');
    padded::<3>(out, millis % 1_000);
    out.push(b'Z');
}

/// Appends `units` divided by ten to the power of `scale`.
pub(super) fn decimal(out: &mut Vec<u8>, units: u64, scale: u8) {
    let one = 10_u64.pow(u32::from(scale));
    unsigned(out, units / one);
    if scale == 0 {
        return;
    }
    out.push(b'.');
    let mut place = one / 10;
    while place > 0 {
        out.push(b'0' + digit(units / place % 10));
        place /= 10;
    }
}

fn padded<const WIDTH: usize>(out: &mut Vec<u8>, mut value: u64) {
    let mut text = [b'0'; WIDTH];
    for place in text.iter_mut().rev() {
        *place = b'0' + digit(value % 10);
        value /= 10;
    }
    out.extend_from_slice(&text);
}

fn digit(below_ten: u64) -> u8 {
    u8::try_from(below_ten).expect("a remainder of ten is below ten")
}

/// Year, month and day of a number of days since 1970-01-01 in the proleptic Gregorian calendar, counted in
/// eras of 400 years that begin on the first of March (Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year.unsigned_abs(), month.unsigned_abs(), day.unsigned_abs())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn integers_read_as_they_are() {
        for value in [0, 7, 10, -1, 86_400, i64::MAX, i64::MIN] {
            assert_eq!(written(|out| integer(out, value)), value.to_string());
        }
    }

    #[test]
    fn instants_agree_with_chrono() {
        let leap_day = 1_709_210_096_789_000;
        for at in [0, 1, 951_782_400_000_000, leap_day, 1_767_225_599_999_999, 4_102_444_800_000_000, -1] {
            let expected = chrono::DateTime::from_timestamp_micros(at).unwrap();
            let expected = expected.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
            assert_eq!(written(|out| instant(out, at)), expected);
        }
    }

    #[test]
    fn decimals_keep_their_scale() {
        assert_eq!(written(|out| decimal(out, 1_205, 4)), "0.1205");
        assert_eq!(written(|out| decimal(out, 30_007, 3)), "30.007");
        assert_eq!(written(|out| decimal(out, 12, 0)), "12");
    }

    #[test]
    fn uuids_are_version_four_and_keep_their_bits() {
        assert_eq!(written(|out| uuid(out, u64::MAX, u64::MAX)), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(
            written(|out| uuid(out, 0x0123_4567_89ab_cdef, 0x0011_2233_4455_6677)),
            "01234567-89ab-4def-8011-223344556677"
        );
    }
}
