//! "N of the last M measurements failed", and the breach that follows.
//!
//! One rule for the checks that the controller measures (`machine/checks.rs`) and for those that a runner measures
//! (`runner/checks/evaluator.rs`).

use std::collections::VecDeque;

/// Result of one measurement, as far as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// Within the limit.
    Good,
    /// Beyond the limit.
    Failed,
    /// Neither: there was no data, or the measurement itself failed.
    Uncounted,
}

/// The measurements of one check so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    count: u32,
    of: u32,
    recent: VecDeque<Sample>,
    measured: u64,
    breached: bool,
}

impl Tally {
    /// No measurement yet. The check is breached when `count` of the last `of` measurements failed; 0 counts as 1.
    pub fn new(count: u32, of: u32) -> Self {
        Self { count: count.max(1), of: of.max(1), recent: VecDeque::new(), measured: 0, breached: false }
    }

    /// Goes on from what was persisted. A breach stays one.
    pub fn resume(mut self, recent: impl IntoIterator<Item = Sample>, measured: u64, breached: bool) -> Self {
        self.recent = recent.into_iter().filter(|sample| *sample != Sample::Uncounted).collect();
        (self.measured, self.breached) = (measured, breached);
        self
    }

    /// Counts one more measurement.
    pub fn record(&mut self, sample: Sample) {
        self.measured += 1;
        if sample == Sample::Uncounted {
            return;
        }
        self.recent.push_back(sample);
        while self.recent.len() > usize::try_from(self.of).unwrap_or(usize::MAX) {
            self.recent.pop_front();
        }
        self.breached |= sample == Sample::Failed && self.failed() >= self.count;
    }

    /// Failed measurements among the last ones.
    pub fn failed(&self) -> u32 {
        let failed = self.recent.iter().filter(|sample| **sample == Sample::Failed).count();
        u32::try_from(failed).unwrap_or(u32::MAX)
    }

    /// How many of the last measurements are counted: at most `of`.
    pub fn considered(&self) -> usize {
        self.recent.len()
    }

    /// All measurements so far, those that count as neither included.
    pub fn measured(&self) -> u64 {
        self.measured
    }

    /// Whether `count` of the last `of` measurements had failed at any time.
    pub fn breached(&self) -> bool {
        self.breached
    }

    /// The last measurements as text, oldest first: `.` good, `x` failed.
    pub fn recent(&self) -> String {
        self.recent.iter().map(|sample| if *sample == Sample::Good { '.' } else { 'x' }).collect()
    }

    /// The reverse of [`Tally::recent`].
    pub fn parse(recent: &str) -> impl Iterator<Item = Sample> {
        recent.chars().map(|letter| if letter == '.' { Sample::Good } else { Sample::Failed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(tally: &mut Tally, row: &str) {
        for letter in row.chars() {
            tally.record(match letter {
                '.' => Sample::Good,
                'x' => Sample::Failed,
                _ => Sample::Uncounted,
            });
        }
    }

    #[rstest::rstest]
    #[case("three of three", "xxx", 3, 3, "xxx", true)]
    #[case("two of three", "xx", 3, 3, "xx", false)]
    #[case("a good one between, of three", "xx.x", 3, 3, "x.x", false)]
    #[case("a good one between, of four", "xx.x", 3, 4, "xx.x", true)]
    #[case("failures stop after the breach", "xxx...", 3, 3, "...", true)]
    #[case("one that is not counted changes nothing", "x?x", 2, 2, "xx", true)]
    #[case("nothing but uncounted ones", "???", 1, 1, "", false)]
    #[case("0 of 0 means 1 of 1", ".x", 0, 0, "x", true)]
    fn counts(
        #[case] name: &str,
        #[case] row: &str,
        #[case] count: u32,
        #[case] of: u32,
        #[case] recent: &str,
        #[case] breached: bool,
    ) {
        let mut tally = Tally::new(count, of);
        record(&mut tally, row);
        assert_eq!((tally.recent().as_str(), tally.breached()), (recent, breached), "{name}");
        assert_eq!(tally.measured(), row.len() as u64, "{name}");
        assert_eq!(tally.failed() as usize, recent.matches('x').count(), "{name}");
        assert_eq!(tally.considered(), recent.len(), "{name}");
    }

    #[test]
    fn what_was_persisted_goes_on() {
        for row in ["xx.x", "x?x.", "...", ""] {
            let mut whole = Tally::new(2, 3);
            record(&mut whole, row);
            record(&mut whole, "x.x");
            let mut first = Tally::new(2, 3);
            record(&mut first, row);
            let mut second = Tally::new(2, 3).resume(Tally::parse(&first.recent()), first.measured(), first.breached());
            record(&mut second, "x.x");
            assert_eq!(second, whole, "{row}");
        }
    }
}
