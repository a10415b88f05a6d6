//! How far two clocks differ, as far as messages between their hosts can show.

use std::fmt;

use jiff::SignedDuration;

/// Largest difference between the clocks of API server, controller, runner and database that is accepted.
pub const CLOCK_SKEW_LIMIT: SignedDuration = SignedDuration::from_secs(2);

/// Difference of another clock to the own one, between two bounds: a message takes an unknown time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockOffset {
    /// The other clock is ahead by this much or more; negative: behind by this much at most.
    pub at_least: SignedDuration,
    /// The other clock is ahead by this much or less.
    pub at_most: SignedDuration,
}

impl ClockOffset {
    /// What two measurements show together; `None` if they contradict each other, because a clock was set meanwhile.
    pub fn narrowed(self, other: ClockOffset) -> Option<ClockOffset> {
        let both =
            ClockOffset { at_least: self.at_least.max(other.at_least), at_most: self.at_most.min(other.at_most) };
        (both.at_least <= both.at_most).then_some(both)
    }

    /// The middle between the bounds.
    pub fn estimate(self) -> SignedDuration {
        self.at_least + (self.at_most - self.at_least) / 2
    }

    /// By how much the clocks differ for certain, if that is more than [`CLOCK_SKEW_LIMIT`].
    pub fn beyond_limit(self) -> Option<ClockSkew> {
        if self.at_least > CLOCK_SKEW_LIMIT {
            Some(ClockSkew(self.at_least))
        } else if self.at_most < -CLOCK_SKEW_LIMIT {
            Some(ClockSkew(self.at_most))
        } else {
            None
        }
    }
}

/// A difference beyond the limit. Shown as `5.2 s ahead of` or `5.2 s behind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSkew(SignedDuration);

impl fmt::Display for ClockSkew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.0.is_negative() { "behind" } else { "ahead of" };
        write!(f, "{:.1} s {direction}", self.0.abs().as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(at_least: i64, at_most: i64) -> ClockOffset {
        ClockOffset { at_least: SignedDuration::from_secs(at_least), at_most: SignedDuration::from_secs(at_most) }
    }

    #[test]
    fn two_measurements_show_more_than_one() {
        assert_eq!(offset(1, 5).narrowed(offset(3, 9)), Some(offset(3, 5)));
        assert_eq!(offset(1, 5).narrowed(offset(0, 9)), Some(offset(1, 5)));
        assert_eq!(offset(1, 2).narrowed(offset(3, 4)), None);
        assert_eq!(offset(3, 5).estimate(), SignedDuration::from_secs(4));
        assert_eq!(offset(-5, -3).estimate(), SignedDuration::from_secs(-4));
    }

    #[rstest::rstest]
    #[case::equal(-1, 1, None)]
    #[case::perhaps_ahead(1, 60, None)]
    #[case::perhaps_behind(-60, -1, None)]
    #[case::at_the_limit(2, 3, None)]
    #[case::ahead(3, 9, Some("3.0 s ahead of"))]
    #[case::behind(-9, -4, Some("4.0 s behind"))]
    fn only_what_is_certain_counts(#[case] at_least: i64, #[case] at_most: i64, #[case] shown: Option<&str>) {
        let (at_least, at_most) = (SignedDuration::from_secs(at_least), SignedDuration::from_secs(at_most));
        let skew = ClockOffset { at_least, at_most }.beyond_limit();
        assert_eq!(skew.map(|s| s.to_string()).as_deref(), shown);
    }
}
