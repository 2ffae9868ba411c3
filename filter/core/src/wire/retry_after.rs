//! The response header `retry-after` (RFC 9110, 10.2.3): when an engine that refused wants to be
//! asked again.
//!
//! Read are a number of seconds and a date in the form that senders must use (`IMF-fixdate`). The
//! two obsolete forms of dates are not. Constant time and memory.
//!
//! ```
//! use warmpath_core::wire::retry_after;
//! assert_eq!(retry_after::parse(b"120", 0), Some(120));
//! assert_eq!(retry_after::parse(b"Thu, 01 Jan 1970 00:02:00 GMT", 30), Some(90));
//! ```

/// Longest wait that is believed, in seconds: a day.
pub const MAX_SECONDS: u32 = 24 * 60 * 60;

/// Seconds from now, at most [`MAX_SECONDS`]; 0 for a date that has passed. `now_unix_s` is the time
/// in seconds since 1970. `None` when the value is neither form.
pub fn parse(value: &[u8], now_unix_s: u64) -> Option<u32> {
    let value = value.trim_ascii();
    let seconds = if value.first()?.is_ascii_digit() {
        delay(value)?
    } else {
        date_unix_s(value)?.saturating_sub(now_unix_s)
    };
    Some(u32::try_from(seconds).map_or(MAX_SECONDS, |seconds| seconds.min(MAX_SECONDS)))
}

/// Any number of digits.
fn delay(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |seconds, digit| {
        let digit = digit.is_ascii_digit().then_some(digit & 0xf)?;
        Some(seconds.saturating_mul(10).saturating_add(u64::from(digit)))
    })
}

/// Seconds since 1970 of a date such as `Sun, 06 Nov 1994 08:49:37 GMT`; 0 for years before.
fn date_unix_s(date: &[u8]) -> Option<u64> {
    const SHAPE: &[u8; 29] = b"Aaa, 00 Aaa 0000 00:00:00 GMT";
    let date: &[u8; 29] = date.try_into().ok()?;
    let fits = date.iter().zip(SHAPE).all(|(byte, shape)| match shape {
        b'0' => byte.is_ascii_digit(),
        b'A' | b'a' => byte.is_ascii_alphabetic(),
        _ => byte == shape,
    });
    let number = |from: usize, to: usize| delay(date.get(from..to)?);
    let (day, year) = (number(5, 7)?, number(12, 16)?);
    let (hour, minute, second) = (number(17, 19)?, number(20, 22)?, number(23, 25)?);
    let month = month(date.get(8..11)?)?;
    // A leap second is written as 60.
    let in_range = (1..=days_of_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60
        && weekday_is_known(date.get(..3)?);
    if !fits || !in_range {
        return None;
    }
    let days = days_since_1970(year, month, day);
    Some(days.map_or(0, |days| {
        days * 86_400 + hour * 3_600 + minute * 60 + second
    }))
}

fn weekday_is_known(name: &[u8]) -> bool {
    let names = [b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun"];
    names.iter().any(|known| known.as_slice() == name)
}

/// Number of the month, from 1.
fn month(name: &[u8]) -> Option<u64> {
    let names = [
        b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov",
        b"Dec",
    ];
    (1..)
        .zip(names)
        .find(|(_, known)| known.as_slice() == name)
        .map(|(number, _)| number)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1 January 1970 to a date of the Gregorian calendar; `None` for years before.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    // Leap days up to the end of a year, counted from the year 0.
    let leap_days = |year: u64| year / 4 - year / 100 + year / 400;
    let years = year.checked_sub(1970)?;
    let past_months: u64 = (1..month).map(|month| days_of_month(year, month)).sum();
    Some(years * 365 + leap_days(year - 1) - leap_days(1969) + past_months + day - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &[u8] = b"Sun, 06 Nov 1994 08:49:37 GMT";
    const EXAMPLE_UNIX_S: u64 = 784_111_777;

    #[test]
    fn seconds_are_bounded_by_a_day() {
        assert_eq!(parse(b" 7 ", 5), Some(7));
        assert_eq!(parse(b"0", 5), Some(0));
        assert_eq!(parse(b"86401", 5), Some(MAX_SECONDS));
        assert_eq!(parse(&[b'9'; 400], 5), Some(MAX_SECONDS));
    }

    #[test]
    fn dates_count_from_now() {
        assert_eq!(date_unix_s(EXAMPLE), Some(EXAMPLE_UNIX_S));
        assert_eq!(parse(EXAMPLE, EXAMPLE_UNIX_S - 90), Some(90));
        assert_eq!(parse(EXAMPLE, EXAMPLE_UNIX_S + 90), Some(0));
        assert_eq!(parse(EXAMPLE, 0), Some(MAX_SECONDS));
        for (date, unix_s) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Tue, 29 Feb 2000 23:59:60 GMT", 951_868_800),
            ("Thu, 01 Mar 2001 00:00:00 GMT", 983_404_800),
            ("Sat, 21 Nov 2026 03:01:45 GMT", 1_795_230_105),
            ("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799),
            ("Wed, 31 Dec 1969 23:59:59 GMT", 0),
        ] {
            assert_eq!(date_unix_s(date.as_bytes()), Some(unix_s), "{date}");
        }
    }

    #[test]
    fn other_values_are_not_taken() {
        for value in [
            "",
            "-1",
            "1.5",
            "7 s",
            "soon",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 31 Nov 1994 08:49:37 GMT",
            "Sun, 29 Feb 1900 08:49:37 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Abc, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Abc 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(parse(value.as_bytes(), 5), None, "{value}");
        }
    }
}
