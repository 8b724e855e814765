//! ISO-8601 instants as UTC microseconds.

/// Reads an instant with an offset; None when it is none, or lies where SQL cannot count its nanoseconds
/// (outside the years 1678 to 2261): such a one would fail in a query, long after.
pub(super) fn parse_micros(text: &str) -> Option<i64> {
    usual_form(text.as_bytes()).or_else(|| {
        let at = chrono::DateTime::parse_from_rfc3339(text).ok()?;
        at.timestamp_nanos_opt().map(|_| at.timestamp_micros())
    })
}

/// `2026-01-31T12:00:00[.123456]Z`, as almost every producer writes it, in a tenth of the time. None also for
/// sound instants in any other form; the test compares it with chrono.
fn usual_form(text: &[u8]) -> Option<i64> {
    let (&[a, b, c, d, b'-', e, f, b'-', g, h, b'T', i, j, b':', k, l, b':', m, n], rest) =
        text.split_first_chunk::<19>()?
    else {
        return None;
    };
    let fraction = match rest {
        [b'Z'] => 0,
        [b'.', digits @ .., b'Z'] if (1..=9).contains(&digits.len()) => micros(digits)?,
        _ => return None,
    };
    let year = number(&[a, b, c, d])?;
    let (month, day) = (number(&[e, f])?, number(&[g, h])?);
    let (hour, minute, second) = (number(&[i, j])?, number(&[k, l])?, number(&[m, n])?);
    let sound = (1700..2200).contains(&year) && hour < 24 && minute < 60 && second < 60;
    let day = if sound { day_number(year, month, day)? } else { return None };
    Some(((day * 24 + hour) * 60 + minute) * 60_000_000 + second * 1_000_000 + fraction)
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0')))
}

/// Digits of a fraction of a second; those below a microsecond are cut off.
fn micros(digits: &[u8]) -> Option<i64> {
    let all = number(digits)?;
    let places = u32::try_from(digits.len()).ok()?;
    Some(if places <= 6 { all * 10_i64.pow(6 - places) } else { all / 10_i64.pow(places - 6) })
}

/// Days since 1970-01-01 of a date that exists (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn day_number(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=days).contains(&day) {
        return None;
    }
    // Years begin in March, so that the leap day is the last of one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    Some(era * 146_097 + year * 365 + year / 4 - year / 100 + day_of_year - 719_468)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_chrono(text: &str) -> Option<i64> {
        let at = chrono::DateTime::parse_from_rfc3339(text).ok()?;
        at.timestamp_nanos_opt().map(|_| at.timestamp_micros())
    }

    #[test]
    fn edges() {
        for text in [
            "1970-01-01T00:00:00Z",
            "1969-12-31T23:59:59.999999999Z",
            "2000-02-29T00:00:00Z",
            "2024-02-29T23:59:59.1Z",
            "2199-12-31T23:59:59Z",
            "2200-01-01T00:00:00Z",
            "1678-01-01T00:00:00Z",
            "2026-01-31T12:00:00+02:00",
            "2026-01-31t12:00:00z",
            "2016-12-31T23:59:60Z",
        ] {
            assert_eq!(parse_micros(text), by_chrono(text), "{text}");
            assert!(parse_micros(text).is_some(), "{text}");
        }
        for text in [
            "",
            "2026-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31",
            "9999-01-01T00:00:00Z",
        ] {
            assert_eq!(parse_micros(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn it_reads_what_chrono_reads(
            text in "(19|20|17|16)[0-9]{2}-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{0,10})?(Z|z|\\+01:30|)",
        ) {
            prop_assert_eq!(parse_micros(&text), by_chrono(&text));
        }

        #[test]
        fn it_reads_every_instant_of_its_years(second in -8_520_336_000_i64..7_258_118_400, nanos in 0_u32..1_000_000_000) {
            let at = chrono::DateTime::from_timestamp(second, nanos).expect("in range");
            for text in [at.format("%Y-%m-%dT%H:%M:%S%.fZ"), at.format("%Y-%m-%dT%H:%M:%SZ"), at.format("%Y-%m-%dT%H:%M:%S%.3fZ")] {
                let text = text.to_string();
                prop_assert!(usual_form(text.as_bytes()).is_some(), "{}", text);
                prop_assert_eq!(parse_micros(&text), by_chrono(&text));
            }
        }
    }
}
