//! How far the long part of a task is, noted every 10 s.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::Progress;
use crate::{
    api::{Activity, WorkProgress, WorkUnit},
    telemetry,
};

/// How often the status of a run says how far it is.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Counts, also what several parts do at the same time. Nothing is noted of what takes less than 10 s, nor while
/// nothing goes on; what was noted is removed when the meter is dropped.
pub struct Meter {
    progress: Progress,
    work: Activity,
    unit: WorkUnit,
    count: Mutex<Count>,
}

struct Count {
    total: Option<u64>,
    done: u64,
    /// When the last note was made; the start before the first.
    noted_at: Instant,
    noted: bool,
}

impl Progress {
    /// Starts to count.
    pub fn meter(&self, work: Activity, unit: WorkUnit) -> Meter {
        let count = Count { total: None, done: 0, noted_at: Instant::now(), noted: false };
        Meter { progress: self.clone(), work, unit, count: Mutex::new(count) }
    }
}

impl Meter {
    /// So many more are done.
    pub fn add(&self, count: usize) {
        self.add_at(count, None, Instant::now());
    }

    /// The same, of so many in all.
    pub fn add_of(&self, count: usize, total: u64) {
        self.add_at(count, Some(total), Instant::now());
    }

    fn add_at(&self, more: usize, of: Option<u64>, now: Instant) {
        let mut count = self.count();
        count.total = of.or(count.total);
        count.done += u64::try_from(more).unwrap_or(0);
        if more > 0 && now.saturating_duration_since(count.noted_at) >= REPORT_INTERVAL {
            (count.noted_at, count.noted) = (now, true);
            let Count { total, done, .. } = *count;
            let work = WorkProgress { work: self.work, unit: self.unit, done, total, at: telemetry::now() };
            self.progress.update(|status| status.work = Some(work));
        }
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        // What panicked has added or not: both are whole counts.
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.count().noted {
            self.progress.update(|status| status.work = None);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_long_is_noted_every_ten_seconds_and_only_if_it_goes_on() {
        let progress = Progress::default();
        let mut notes = progress.subscribe();
        let meter = progress.meter(Activity::Restore, WorkUnit::Bytes);
        let mut now = meter.count().noted_at;
        for (seconds, count, wanted, why) in [
            (9, 100, None, "a short work"),
            (1, 100, Some(200), "10 s"),
            (9, 1, None, "too often"),
            (600, 0, None, "nothing went on"),
            (0, 1, Some(202), "it goes on"),
        ] {
            now += Duration::from_secs(seconds);
            meter.add_at(count, Some(1000), now);
            let changed = notes.has_changed().unwrap();
            notes.mark_unchanged();
            let done = changed.then(|| progress.fields()["work"]["done"].clone());
            assert_eq!(done, wanted.map(|done: u64| json!(done)), "{why}");
        }
        assert_eq!(progress.fields()["work"]["total"], json!(1000));
        drop(meter);
        assert_eq!(progress.fields()["work"], json!(null));
    }

    #[test]
    fn a_short_work_is_never_noted() {
        let progress = Progress::default();
        let notes = progress.subscribe();
        let meter = progress.meter(Activity::Dump, WorkUnit::Bytes);
        meter.add(1);
        drop(meter);
        assert!(!notes.has_changed().unwrap());
    }
}
