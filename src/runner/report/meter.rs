//! How far the long part of a task is, noted every 10 s.

use std::time::{Duration, Instant};

use super::Progress;
use crate::{
    api::{Activity, WorkProgress, WorkUnit},
    telemetry,
};

/// How often the status of a run says how far it is.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Counts. Nothing is noted of what takes less than 10 s, nor while nothing goes on; what was noted is removed when the
/// meter is dropped.
pub struct Meter {
    progress: Progress,
    work: Activity,
    unit: WorkUnit,
    total: Option<u64>,
    done: u64,
    /// When the last note was made; the start before the first.
    noted_at: Instant,
    noted: bool,
}

impl Progress {
    /// Starts to count.
    pub fn meter(&self, work: Activity, unit: WorkUnit) -> Meter {
        let progress = self.clone();
        Meter { progress, work, unit, total: None, done: 0, noted_at: Instant::now(), noted: false }
    }
}

impl Meter {
    /// So many more are done.
    pub fn add(&mut self, count: usize) {
        self.add_at(count, Instant::now());
    }

    /// The same, of so many in all.
    pub fn add_of(&mut self, count: usize, total: u64) {
        self.total = Some(total);
        self.add(count);
    }

    fn add_at(&mut self, count: usize, now: Instant) {
        self.done += u64::try_from(count).unwrap_or(0);
        if count > 0 && now.saturating_duration_since(self.noted_at) >= REPORT_INTERVAL {
            (self.noted_at, self.noted) = (now, true);
            let Self { work, unit, total, done, .. } = *self;
            let at = telemetry::now();
            self.progress.update(|status| status.work = Some(WorkProgress { work, unit, done, total, at }));
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.noted {
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
        let mut meter = progress.meter(Activity::Restore, WorkUnit::Bytes);
        let mut now = meter.noted_at;
        meter.total = Some(1000);
        for (seconds, count, wanted, why) in [
            (9, 100, None, "a short work"),
            (1, 100, Some(200), "10 s"),
            (9, 1, None, "too often"),
            (600, 0, None, "nothing went on"),
            (0, 1, Some(202), "it goes on"),
        ] {
            now += Duration::from_secs(seconds);
            meter.add_at(count, now);
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
        let mut meter = progress.meter(Activity::Dump, WorkUnit::Bytes);
        meter.add(1);
        drop(meter);
        assert!(!notes.has_changed().unwrap());
    }
}
