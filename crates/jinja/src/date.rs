//! The date that `strftime_now` writes.

use std::fmt;

use crate::error::{Error, Result};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// A day of the Gregorian calendar, at midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

impl Date {
    /// A day that exists in the years 1 to 9999, or `None`.
    pub fn new(year: u16, month: u8, day: u8) -> Option<Self> {
        let date = Self { year, month, day };
        let is_valid = (1..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=date.days_in(month)).contains(&day);
        is_valid.then_some(date)
    }

    /// A day written as `YYYY-MM-DD`, or `None`.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('-').collect();
        let [year, month, day] = parts[..] else { return None };
        let is_written =
            |part: &str, len: usize| part.len() == len && part.bytes().all(|byte| byte.is_ascii_digit());
        if !is_written(year, 4) || !is_written(month, 2) || !is_written(day, 2) {
            return None;
        }
        Self::new(year.parse().ok()?, month.parse().ok()?, day.parse().ok()?)
    }

    fn days_in(self, month: u8) -> u8 {
        let is_leap =
            self.year.is_multiple_of(4) && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400));
        match month {
            2 => 28 + u8::from(is_leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

    /// From 1.
    fn day_of_year(self) -> u16 {
        (1..self.month).map(|month| u16::from(self.days_in(month))).sum::<u16>() + u16::from(self.day)
    }

    /// From 0, which is Monday.
    fn weekday(self) -> usize {
        let years = u32::from(self.year) - 1;
        let days = years * 365 + years / 4 - years / 100 + years / 400 + u32::from(self.day_of_year());
        // 1 January of the year 1 was a Monday.
        ((days - 1) % 7) as usize
    }

    /// `datetime.strftime` in the locale `C`.
    ///
    /// # Errors
    /// When the format has a directive that depends on the place, or that is not known.
    pub(crate) fn format(self, format: &str) -> Result<String> {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let Some(mut directive) = chars.next() else {
                out.push('%');
                break;
            };
            let is_bare = directive == '-';
            if is_bare {
                directive = chars.next().unwrap_or('-');
            }
            let text = self.directive(directive)?;
            let trimmed = text.trim_start_matches(['0', ' ']);
            let bare = if trimmed.is_empty() { "0" } else { trimmed };
            out.push_str(if is_bare { bare } else { &text });
        }
        Ok(out)
    }

    fn directive(self, directive: char) -> Result<String> {
        let (year, month, day) = (self.year, self.month, self.day);
        let (day_of_year, weekday) = (usize::from(self.day_of_year()), self.weekday());
        let month_name = MONTHS[usize::from(month - 1)];
        let weekday_name = WEEKDAYS[weekday];
        Ok(match directive {
            'Y' => format!("{year:04}"),
            'y' => format!("{:02}", year % 100),
            'C' => format!("{:02}", year / 100),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'j' => format!("{day_of_year:03}"),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'A' => weekday_name.to_owned(),
            'a' => weekday_name[..3].to_owned(),
            'w' => ((weekday + 1) % 7).to_string(),
            'u' => (weekday + 1).to_string(),
            'U' => format!("{:02}", (day_of_year - 1 + 7 - (weekday + 1) % 7) / 7),
            'W' => format!("{:02}", (day_of_year - 1 + 7 - weekday) / 7),
            'H' | 'M' | 'S' => "00".to_owned(),
            'I' => "12".to_owned(),
            'p' => "AM".to_owned(),
            'f' => "000000".to_owned(),
            'F' => format!("{year:04}-{month:02}-{day:02}"),
            'D' | 'x' => format!("{month:02}/{day:02}/{:02}", year % 100),
            'T' | 'X' => "00:00:00".to_owned(),
            'R' => "00:00".to_owned(),
            'r' => "12:00:00 AM".to_owned(),
            'c' => format!("{} {} {day:2} 00:00:00 {year:04}", &weekday_name[..3], &month_name[..3]),
            'z' | 'Z' => String::new(),
            '%' => "%".to_owned(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            other => {
                return Err(Error::refused(format!(
                    "`%{other}` in the format of `strftime_now` is not supported"
                )));
            }
        })
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
            assert_eq!(Date::parse(text).unwrap().to_string(), text);
        }
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
            "2026-1-01",
            "+026-01-01",
            "2026-01-01 ",
            "2026-01-01-01",
        ] {
            assert_eq!(Date::parse(text), None, "{text}");
        }
    }

    #[test]
    fn written_as_python_writes_them() {
        let written = |text: &str, format: &str| Date::parse(text).unwrap().format(format).unwrap();
        assert_eq!(
            written("2026-11-28", "%A %d %B %Y, %a %b %-d, %j %U %W %u %w"),
            "Saturday 28 November 2026, Sat Nov 28, 332 47 47 6 6"
        );
        assert_eq!(
            written("2024-02-29", "%c|%x|%X|%D|%F|%e|%y|%C"),
            "Thu Feb 29 00:00:00 2024|02/29/24|00:00:00|02/29/24|2024-02-29|29|24|20"
        );
        assert_eq!(written("2023-01-01", "%U %W %j %-m %%"), "01 00 001 1 %");
        let error = Date::parse("2026-11-28").unwrap().format("%Q").unwrap_err();
        assert_eq!(error.message, "`%Q` in the format of `strftime_now` is not supported");
    }
}
