//! Points in time as API objects write them (RFC 3339), so that they compare as such: as text,
//! `2026-01-01T01:00:00+01:00` would be younger than `2026-01-01T00:30:00Z`.

use std::num::NonZeroU64;

/// Microseconds since [`BEGINNING`], in UTC: as fine as API servers write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(NonZeroU64);

/// Seconds from before the year 0 to 1970.
const BEGINNING: i64 = 720_000 * 86_400;

/// `None` for what is no RFC 3339 date and time.
pub(super) fn parse_moment(text: &str) -> Option<Moment> {
    let (date, rest) = text.split_once(['T', 't', ' '])?;
    let (time, offset) = rest.split_at(rest.find(['Z', 'z', '+', '-'])?);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    // 60 is a leap second.
    let valid = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    let seconds = days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset_seconds(offset)?;
    let microseconds = u64::try_from(seconds + BEGINNING).ok()? * 1_000_000 + microseconds(fraction)?;
    NonZeroU64::new(microseconds).filter(|_| valid).map(Moment)
}

/// Numbers of these widths with `separator` between them.
fn numbers<const N: usize>(text: &str, separator: char, widths: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut found = [0; N];
    for (number, width) in found.iter_mut().zip(widths) {
        let part = parts.next().filter(|part| part.len() == width && is_digits(part))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(found)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn offset_seconds(text: &str) -> Option<i64> {
    let (sign, offset) = match text.split_at_checked(1)? {
        ("Z" | "z", "") => return Some(0),
        ("+", offset) => (1, offset),
        ("-", offset) => (-1, offset),
        _ => return None,
    };
    let [hours, minutes] = numbers(offset, ':', [2, 2])?;
    Some(sign * (hours * 3_600 + minutes * 60))
}

fn microseconds(fraction: &str) -> Option<u64> {
    let digits: String = fraction.chars().chain("000000".chars()).take(6).collect();
    digits.parse().ok().filter(|_| is_digits(fraction))
}

/// Days since 1970-01-01 in the Gregorian calendar. The year begins in March, so that the leap day is its last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + leap_days + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_ordered_in_time_however_they_are_written() {
        for (earlier, later) in [
            ("2026-01-01T01:00:00+01:00", "2026-01-01T00:30:00Z"),
            ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00.5Z"),
            ("2026-01-01T00:00:00.05Z", "2026-01-01T00:00:00.5Z"),
            ("2025-12-31T23:59:59-00:01", "2026-01-01T00:01:00Z"),
            ("2024-02-29T00:00:00Z", "2024-03-01T00:00:00Z"),
            ("2023-12-31T23:59:59Z", "2024-01-01T00:00:00Z"),
        ] {
            assert!(parse_moment(earlier).unwrap() < parse_moment(later).unwrap(), "{earlier} is before {later}");
        }
        assert_eq!(parse_moment("2026-01-01T01:30:00+01:30"), parse_moment("2026-01-01T00:00:00.000z"));
    }

    #[test]
    fn seconds_count_from_1970() {
        for (text, seconds) in
            [("1970-01-01T00:00:00Z", 0), ("2000-02-29T12:00:00Z", 951_825_600), ("1969-12-31T23:59:59Z", -1_i64)]
        {
            let microseconds = NonZeroU64::new((seconds + BEGINNING).unsigned_abs() * 1_000_000);
            assert_eq!(parse_moment(text), microseconds.map(Moment), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_and_time_is_none() {
        for text in [
            "",
            "yesterday",
            "2026-01-01",
            "2026-13-01T00:00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00.Z",
            "2026-1-01T00:00:00Z",
            "2026-01-01T00:00:00+é",
        ] {
            assert_eq!(parse_moment(text), None, "{text}");
        }
    }
}
