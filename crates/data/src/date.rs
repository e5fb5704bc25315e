//! A day of the calendar: what `model.data.date` says that today is.

use std::fmt;
use std::str::FromStr;

use crate::DataError;

/// A day of the Gregorian calendar, as Python's `datetime.date` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

impl Date {
    /// The year, from 1 to 9999.
    pub fn year(self) -> u16 {
        self.year
    }

    /// The month, from 1.
    pub fn month(self) -> u8 {
        self.month
    }

    /// The day of the month, from 1.
    pub fn day(self) -> u8 {
        self.day
    }

    fn new(year: u16, month: u8, day: u8) -> Option<Self> {
        let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let num_days = match month {
            2 => 28 + u8::from(is_leap),
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        ((1..=9999).contains(&year) && (1..=num_days).contains(&day)).then_some(Self { year, month, day })
    }
}

impl FromStr for Date {
    type Err = DataError;

    /// Reads `YYYY-MM-DD`.
    fn from_str(text: &str) -> Result<Self, DataError> {
        let number = |part: &str, num_digits: usize| -> Option<u16> {
            let is_number = part.len() == num_digits && part.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| part.parse().ok()).flatten()
        };
        let mut parts = text.splitn(3, '-');
        let mut next = |num_digits| number(parts.next()?, num_digits);
        let date = next(4).zip(next(2)).zip(next(2)).and_then(|((year, month), day)| {
            Self::new(year, u8::try_from(month).ok()?, u8::try_from(day).ok()?)
        });
        date.ok_or_else(|| DataError::BadDate { text: text.to_owned() })
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_that_are_in_the_calendar() {
        for text in ["2026-11-28", "2024-02-29", "2000-02-29", "0001-01-01", "9999-12-31"] {
            assert_eq!(text.parse::<Date>().unwrap().to_string(), text);
        }
        let date: Date = "2026-07-04".parse().unwrap();
        assert_eq!((date.year(), date.month(), date.day()), (2026, 7, 4));
        for text in [
            "",
            "2026",
            "2026-11",
            "2026-11-31",
            "2026-02-29",
            "1900-02-29",
            "2026-00-01",
            "2026-13-01",
            "2026-01-00",
            "0000-01-01",
            "26-01-01",
            "2026-1-1",
            "2026-01-01 ",
            "2026-01-01T00:00",
            "2026/01/01",
            "+026-01-01",
            "today",
        ] {
            assert!(text.parse::<Date>().is_err(), "{text}");
        }
        insta::assert_snapshot!("2026-02-29".parse::<Date>().unwrap_err(), @"`model.data.date` must be a day of the calendar as `YYYY-MM-DD`, found `2026-02-29`");
    }
}
