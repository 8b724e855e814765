//! When views are refreshed: after a time, or at times of the day, written as in crontab(5) and read in UTC.

use std::time::Duration;

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Timelike};

use crate::config::parse_duration;
use crate::runtime::Micros;

/// The value of `refresh_every`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefreshEvery {
    Interval(Duration),
    Cron(Cron),
}

/// Minutes at which something happens. Each field is a set of its values, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cron {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    /// Sunday is 0.
    weekdays: u64,
    /// As in crontab: when both are given, a day that matches one of them is enough.
    either_day: bool,
}

/// No valid expression is without a match for longer: 29 February may be eight years away.
const YEARS_MAX: u32 = 9;

impl RefreshEvery {
    /// Reads "30s", "1 hour" or five fields such as "*/15 6-22 * * 1-5".
    pub fn parse(text: &str) -> Result<Self, String> {
        match (parse_duration(text), text.split_whitespace().count()) {
            (Some(interval), _) => Ok(Self::Interval(interval)),
            (None, 5) => Cron::parse(text).map(Self::Cron),
            _ => Err(format!(
                "{text:?} is not a duration; write it like '30s' or '1 hour', or as five fields of cron (minute, hour, \
                 day, month, weekday, in UTC) like '*/15 * * * *'"
            )),
        }
    }

    /// When the next refresh is due after one that ended at `last`.
    pub fn next_after(&self, last: Micros) -> Micros {
        match self {
            Self::Interval(interval) => later(last, *interval),
            Self::Cron(cron) => cron.next_after(last),
        }
    }
}

/// When the next refresh is due: all views stand at one frontier, so all are refreshed with the first that is due,
/// and after `interval_max` in any case.
pub fn due<'a>(views: impl Iterator<Item = &'a RefreshEvery>, last: Micros, interval_max: Duration) -> Micros {
    views.map(|every| every.next_after(last)).fold(later(last, interval_max), Micros::min)
}

fn later(at: Micros, by: Duration) -> Micros {
    at.saturating_add(Micros::try_from(by.as_micros()).unwrap_or(Micros::MAX))
}

impl Cron {
    fn parse(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            return Err(format!("{text:?} has not the five fields of cron"));
        };
        let weekdays = field("weekday", weekday, 0, 7)?;
        let cron = Self {
            minutes: field("minute", minute, 0, 59)?,
            hours: field("hour", hour, 0, 23)?,
            days: field("day", day, 1, 31)?,
            months: field("month", month, 1, 12)?,
            // Sunday may be written as 7.
            weekdays: (weekdays | (weekdays >> 7)) & 0x7f,
            either_day: !day.starts_with('*') && !weekday.starts_with('*'),
        };
        match cron.search(NaiveDateTime::default()) {
            Some(_) => Ok(cron),
            None => Err(format!("{text:?} never happens: there is no such day")),
        }
    }

    /// The first matching minute after `last`.
    fn next_after(&self, last: Micros) -> Micros {
        let last = DateTime::from_timestamp_micros(last).unwrap_or_default().naive_utc();
        let found = self.search(last).map(|at| at.and_utc().timestamp_micros());
        found.expect("an expression that matches nothing is not read")
    }

    fn search(&self, after: NaiveDateTime) -> Option<NaiveDateTime> {
        let mut at = after.with_second(0)?.with_nanosecond(0)? + TimeDelta::minutes(1);
        let end = at.date().checked_add_months(Months::new(12 * YEARS_MAX))?;
        while at.date() < end {
            at = if !has(self.months, at.month()) {
                let first = at.date().with_day(1)?.checked_add_months(Months::new(1))?;
                first.and_time(NaiveTime::MIN)
            } else if !self.day_matches(at.date()) {
                at.date().checked_add_days(Days::new(1))?.and_time(NaiveTime::MIN)
            } else if !has(self.hours, at.hour()) {
                at.with_minute(0)? + TimeDelta::hours(1)
            } else if !has(self.minutes, at.minute()) {
                at + TimeDelta::minutes(1)
            } else {
                return Some(at);
            };
        }
        None
    }

    fn day_matches(&self, date: NaiveDate) -> bool {
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().num_days_from_sunday());
        if self.either_day { day || weekday } else { day && weekday }
    }
}

fn has(set: u64, value: u32) -> bool {
    (set >> value) & 1 == 1
}

/// The values of one field: `*`, `5`, `1-5`, each with `/step`, or several of them with commas.
fn field(name: &str, text: &str, min: u32, max: u32) -> Result<u64, String> {
    let wrong = || format!("the {name} of cron is {min} to {max}, a range, * or a step such as */5, not {text:?}");
    let number = |text: &str| text.parse::<u32>().ok().filter(|n| (min..=max).contains(n));
    let mut set = 0;
    for part in text.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let step = match step {
            Some(step) => step.parse::<usize>().ok().filter(|step| *step > 0).ok_or_else(wrong)?,
            None => 1,
        };
        let (from, to) = match (range, range.split_once('-')) {
            ("*", _) => (min, max),
            (_, Some((from, to))) => (number(from).ok_or_else(wrong)?, number(to).ok_or_else(wrong)?),
            (single, None) => {
                let from = number(single).ok_or_else(wrong)?;
                // As in crontab: 5/15 goes on to the end.
                (from, if part.contains('/') { max } else { from })
            }
        };
        if from > to {
            return Err(wrong());
        }
        set |= (from..=to).step_by(step).fold(0, |set, value| set | (1 << value));
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(text: &str) -> Micros {
        NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").unwrap().and_utc().timestamp_micros()
    }

    #[test]
    fn the_next_time_is_found() {
        // 2026-01-31 is a Saturday.
        for (cron, last, next) in [
            ("* * * * *", "2026-01-31 12:00:00", "2026-01-31 12:01:00"),
            ("* * * * *", "2026-01-31 12:00:59", "2026-01-31 12:01:00"),
            ("*/15 * * * *", "2026-01-31 12:45:00", "2026-01-31 13:00:00"),
            ("5/20 * * * *", "2026-01-31 12:06:00", "2026-01-31 12:25:00"),
            ("30 2 * * *", "2026-01-31 02:30:00", "2026-02-01 02:30:00"),
            ("0 0 1 * *", "2026-12-01 00:00:00", "2027-01-01 00:00:00"),
            ("0 6-8,22 * * *", "2026-01-31 08:00:00", "2026-01-31 22:00:00"),
            ("0 0 31 * *", "2026-01-31 00:00:00", "2026-03-31 00:00:00"),
            ("0 9 * * 1-5", "2026-01-31 00:00:00", "2026-02-02 09:00:00"),
            ("0 9 * * 7", "2026-01-31 00:00:00", "2026-02-01 09:00:00"),
            ("0 9 * * 0", "2026-01-31 00:00:00", "2026-02-01 09:00:00"),
            ("0 0 29 2 *", "2096-03-01 00:00:00", "2104-02-29 00:00:00"),
            // A day of either kind is enough when both are given.
            ("0 0 13 * 5", "2026-01-31 00:00:00", "2026-02-06 00:00:00"),
            ("0 0 13 * *", "2026-01-31 00:00:00", "2026-02-13 00:00:00"),
        ] {
            let RefreshEvery::Cron(parsed) = RefreshEvery::parse(cron).unwrap() else { panic!("{cron}") };
            assert_eq!(parsed.next_after(at(last)), at(next), "{cron} after {last}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (text, reason) in [
            ("soon", "not a duration"),
            ("* * * *", "not a duration"),
            ("60 * * * *", "the minute of cron is 0 to 59"),
            ("* 24 * * *", "the hour"),
            ("* * 0 * *", "the day"),
            ("* * * 13 *", "the month"),
            ("* * * * 8", "the weekday"),
            ("*/0 * * * *", "the minute"),
            ("5-1 * * * *", "the minute"),
            ("1,,2 * * * *", "the minute"),
            ("* * 30 2 *", "never happens"),
        ] {
            let told = RefreshEvery::parse(text).unwrap_err();
            assert!(told.contains(reason), "{text}: {told}");
        }
    }

    #[test]
    fn the_first_view_that_is_due_decides_within_the_longest_interval() {
        let parse = |text| RefreshEvery::parse(text).unwrap();
        let views = [parse("2 hours"), parse("10 13 * * *")];
        let last = at("2026-01-31 12:00:00");
        let due = |hours: u64| due(views.iter(), last, Duration::from_secs(hours * 3600));
        assert_eq!(due(24), at("2026-01-31 13:10:00"));
        assert_eq!(due(1), at("2026-01-31 13:00:00"));
    }
}
