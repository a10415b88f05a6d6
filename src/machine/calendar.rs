//! The calendar of `schedule.allowedHours`: which hours come next.

use jiff::{
    ToSpan, Zoned,
    civil::{Date, Time as Clock, Weekday as Day},
    tz::TimeZone,
};

use crate::api::{AllowedHours, Schedule, Time, Weekday};

/// Days in which the next allowed hours must start: one day of each name, and those that started yesterday.
const DAYS: i32 = 9;

/// The first allowed hours that end after `from`: their start, not before `startAt`, and their end if they have one.
/// `None` if a time zone or a time cannot be used.
pub fn next_hours(schedule: &Schedule, from: Time) -> Option<(Time, Option<Time>)> {
    let from = schedule.start_at.map_or(from, |start| start.max(from));
    if schedule.allowed_hours.is_empty() {
        return Some((from, None));
    }
    let mut next: Option<(Time, Time)> = None;
    for hours in &schedule.allowed_hours {
        let zone = TimeZone::get(&hours.time_zone).ok()?;
        let today = from.to_zoned(zone.clone()).date();
        for day in -1..DAYS {
            let date = today.checked_add(day.days()).ok()?;
            if !hours.days.is_empty() && !hours.days.iter().any(|d| weekday(*d) == date.weekday()) {
                continue;
            }
            let (start, end) = hours_of(hours, date, &zone)?;
            if end <= from {
                continue;
            }
            // Of hours that overlap those that end last: they are one stretch.
            let better =
                next.is_none_or(|(b, e)| (start.max(from), std::cmp::Reverse(end)) < (b, std::cmp::Reverse(e)));
            if better {
                next = Some((start.max(from), end));
            }
        }
    }
    next.map(|(start, end)| (start, Some(end)))
}

fn hours_of(hours: &AllowedHours, date: Date, zone: &TimeZone) -> Option<(Time, Time)> {
    let at = |date: Date, text: &str| -> Option<Time> {
        let (date, text) = if text == "24:00" { (date.tomorrow().ok()?, "00:00") } else { (date, text) };
        let clock: Clock = format!("{text}:00").parse().ok()?;
        // Of an hour that a change of clocks leaves out the moment after it; of one that it repeats the first.
        let zoned: Zoned = date.to_datetime(clock).to_zoned(zone.clone()).ok()?;
        Some(zoned.timestamp())
    };
    let next_day = hours.to <= hours.from;
    Some((at(date, &hours.from)?, at(if next_day { date.tomorrow().ok()? } else { date }, &hours.to)?))
}

fn weekday(day: Weekday) -> Day {
    match day {
        Weekday::Monday => Day::Monday,
        Weekday::Tuesday => Day::Tuesday,
        Weekday::Wednesday => Day::Wednesday,
        Weekday::Thursday => Day::Thursday,
        Weekday::Friday => Day::Friday,
        Weekday::Saturday => Day::Saturday,
        Weekday::Sunday => Day::Sunday,
    }
}
