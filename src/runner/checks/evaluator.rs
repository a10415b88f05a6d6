//! Judges measurements of a check against its limit. Pure: no client, no clock.
//!
//! ```text
//!  value within the limit ......... Pass     counts as good
//!  value beyond the limit ......... Fail     counts towards failures.count
//!  could not be measured .......... Error    counts as neither: an unreachable Prometheus says nothing about it
//!  nothing, NaN, too few samples .. NoData   counts as neither, and is never success
//! ```
//! A breach is latched: that failures stop after the limit was reached does not undo it.

use std::cmp::Ordering;

use crate::{
    api::{Check, CheckOutcome, CheckResult, Time},
    shared::{
        message::Message,
        quoted::Quoted,
        tally::{Sample, Tally},
    },
};

/// What one attempt to measure brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Measurement {
    /// A value, with the number of samples behind it where that is known.
    Value {
        /// The value as it was read.
        value: Value,
        /// Samples behind it.
        samples: Option<f64>,
    },
    /// The application answered wrongly or not at all: that is a measurement, and it is bad.
    Failed(String),
    /// There was nothing to measure.
    NoData(Message),
    /// The measurement itself did not work.
    Error(Message),
}

/// A measured value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number, with its exact text.
    Number(String),
    /// Anything else.
    Text(String),
    /// An answer whose arrival is all that was asked for.
    Answered,
}

impl Value {
    /// A number if the text is one, otherwise a text.
    pub fn of_text(text: &str) -> Self {
        match text.trim().parse::<f64>() {
            Ok(_) => Self::Number(text.trim().to_owned()),
            Err(_) => Self::Text(text.to_owned()),
        }
    }
}

/// The measurements of one check so far.
#[derive(Debug)]
pub struct CheckEvaluator<'a> {
    check: &'a Check,
    tally: Tally,
}

impl<'a> CheckEvaluator<'a> {
    /// Nothing measured yet. `before` is what an earlier process of the same run reported: its breach stays.
    pub fn new(check: &'a Check, before: Option<&CheckResult>) -> Self {
        let failed = before.map_or(0, |b| b.failed).min(check.failures.of);
        let failures = std::iter::repeat_n(Sample::Failed, usize::try_from(failed).unwrap_or(0));
        let (measured, breached) = before.map_or((0, false), |b| (b.measured, b.breached));
        let tally = Tally::new(check.failures.count, check.failures.of).resume(failures, measured, breached);
        Self { check, tally }
    }

    /// Takes one more measurement in.
    pub fn record(&mut self, measurement: &Measurement, at: Time) -> CheckResult {
        let (outcome, detail) = assess(self.check, measurement);
        self.tally.record(match outcome {
            CheckOutcome::Pass => Sample::Good,
            CheckOutcome::Fail => Sample::Failed,
            CheckOutcome::Error | CheckOutcome::NoData => Sample::Uncounted,
        });
        let failed = self.tally.failed();
        let message = match failed {
            0 => detail,
            _ => {
                format!(
                    "{detail}; {failed} of the last {} failed, limit {}",
                    self.tally.considered(),
                    self.check.failures.count
                )
            }
        };
        CheckResult {
            name: self.check.name.clone(),
            outcome,
            failed,
            recent: String::new(),
            measured: self.tally.measured(),
            breached: self.tally.breached(),
            waiting_for: None,
            message,
            at,
        }
    }
}

impl Measurement {
    /// Whether it says what to do next.
    pub fn has_next(&self) -> bool {
        match self {
            Self::NoData(detail) | Self::Error(detail) => detail.next.is_some(),
            Self::Value { .. } | Self::Failed(_) => false,
        }
    }
}

/// Outcome of one measurement, and a text with observed value and limit.
pub(in crate::runner) fn assess(check: &Check, measurement: &Measurement) -> (CheckOutcome, String) {
    let (value, samples) = match measurement {
        Measurement::Value { value, samples } => (value, *samples),
        Measurement::Failed(detail) => return (CheckOutcome::Fail, detail.clone()),
        Measurement::NoData(detail) => return (CheckOutcome::NoData, detail.to_string()),
        Measurement::Error(detail) => return (CheckOutcome::Error, detail.to_string()),
    };
    let behind = samples.map(|n| format!(" ({n:.0} samples)")).unwrap_or_default();
    if let Some(minimum) = check.minimum_samples {
        let enough = samples.is_some_and(|n| n >= f64_of(minimum));
        if !enough {
            let seen = samples.map_or_else(|| "an unknown number of".to_owned(), |n| format!("{n:.0}"));
            return (CheckOutcome::NoData, format!("{seen} samples, at least {minimum} needed"));
        }
    }
    match value {
        Value::Answered => (CheckOutcome::Pass, "answered as expected".to_owned()),
        Value::Number(text) => number(check, text, &behind),
        Value::Text(text) => {
            // An unexpected text may be anything, also a person's data: its length must do.
            let length = text.chars().count();
            match &check.equals {
                Some(want) if want == text => (CheckOutcome::Pass, format!("{} as expected", Quoted(want))),
                Some(want) => (CheckOutcome::Fail, format!("another text ({length} characters), not {}", Quoted(want))),
                None => (
                    CheckOutcome::Error,
                    format!("a text ({length} characters) is not a number, and max or min need one"),
                ),
            }
        }
    }
}

fn number(check: &Check, text: &str, behind: &str) -> (CheckOutcome, String) {
    // A NaN is what a rate over no requests gives: comparing it with a limit would always come out as good.
    if text.parse::<f64>().map_or(true, f64::is_nan) {
        return (CheckOutcome::NoData, format!("{text}: nothing to measure{behind}"));
    }
    let mut passed = Vec::new();
    let limits = [(&check.max, Ordering::Greater, "<=", ">"), (&check.min, Ordering::Less, ">=", "<")];
    for (limit, beyond, good, bad) in limits {
        let Some(limit) = limit else { continue };
        match compare(text, limit) {
            None => return (CheckOutcome::Error, format!("{text} cannot be compared with {limit}")),
            Some(order) if order == beyond => return (CheckOutcome::Fail, format!("{text} {bad} {limit}{behind}")),
            Some(_) => passed.push(format!("{text} {good} {limit}")),
        }
    }
    if let Some(want) = &check.equals {
        if text != want && compare(text, want) != Some(Ordering::Equal) {
            return (CheckOutcome::Fail, format!("{text}, not {want}{behind}"));
        }
        passed.push(format!("{text} = {want}"));
    }
    (CheckOutcome::Pass, format!("{}{behind}", if passed.is_empty() { text.to_owned() } else { passed.join(", ") }))
}

/// Compares two decimal numbers exactly where both are plain decimals (sums of money exceed a float's digits).
pub(in crate::runner) fn compare(a: &str, b: &str) -> Option<Ordering> {
    if let (Some(a), Some(b)) = (Decimal::parse(a), Decimal::parse(b)) {
        return Some(a.cmp(&b));
    }
    a.parse::<f64>().ok()?.partial_cmp(&b.parse::<f64>().ok()?)
}

/// A plain decimal number, normalised.
#[derive(PartialEq, Eq)]
struct Decimal {
    negative: bool,
    whole: String,
    fraction: String,
}

impl Decimal {
    fn parse(text: &str) -> Option<Self> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if whole.len() + fraction.len() == 0 || !plain(whole) || !plain(fraction) {
            return None;
        }
        let whole = whole.trim_start_matches('0').to_owned();
        let fraction = fraction.trim_end_matches('0').to_owned();
        // There is one zero only.
        let negative = negative && !(whole.is_empty() && fraction.is_empty());
        Some(Self { negative, whole, fraction })
    }

    fn cmp(&self, other: &Self) -> Ordering {
        let size = |a: &Self, b: &Self| {
            a.whole
                .len()
                .cmp(&b.whole.len())
                .then_with(|| a.whole.cmp(&b.whole))
                .then_with(|| a.fraction.cmp(&b.fraction))
        };
        match (self.negative, other.negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => size(self, other),
            (true, true) => size(other, self),
        }
    }
}

/// Nearest float; a number of samples is never near 2^53.
fn f64_of(number: u64) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn check(extra: serde_json::Value) -> Check {
        let mut base = json!({"name": "c", "sql": {"query": "q"}});
        base.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        serde_json::from_value(base).unwrap()
    }
    fn value(text: &str) -> Measurement {
        Measurement::Value { value: Value::of_text(text), samples: None }
    }
    fn sampled(text: &str, samples: f64) -> Measurement {
        Measurement::Value { value: Value::of_text(text), samples: Some(samples) }
    }

    #[rstest]
    #[case(json!({"max": "0.05"}), value("0.05"), CheckOutcome::Pass, "0.05 <= 0.05")]
    #[case(json!({"max": "0.05"}), value("0.0500001"), CheckOutcome::Fail, "0.0500001 > 0.05")]
    #[case(json!({"max": "10"}), value("9"), CheckOutcome::Pass, "9 <= 10")]
    #[case(json!({"min": "-1"}), value("-2"), CheckOutcome::Fail, "-2 < -1")]
    #[case(json!({"min": "1", "max": "2"}), value("1.5"), CheckOutcome::Pass, "1.5 <= 2, 1.5 >= 1")]
    #[case(json!({"equals": "0"}), value("0.00"), CheckOutcome::Pass, "0.00 = 0")]
    #[case(json!({"equals": "v2"}), value("v1"), CheckOutcome::Fail, "another text (2 characters), not \"v2\"")]
    #[case(json!({"equals": "v2"}), value("v2"), CheckOutcome::Pass, "\"v2\" as expected")]
    #[case(json!({"max": "1"}), value("abc"), CheckOutcome::Error, "a text (3 characters) is not a number, and max or \
        min need one")]
    #[case(json!({"max": "1"}), value("NaN"), CheckOutcome::NoData, "NaN: nothing to measure")]
    #[case(json!({"max": "1"}), value("+Inf"), CheckOutcome::Fail, "+Inf > 1")]
    #[case(json!({"max": "9007199254740992"}), value("9007199254740993"), CheckOutcome::Fail, "9007199254740993 > \
        9007199254740992")]
    #[case(json!({"max": "1"}), value("1e-3"), CheckOutcome::Pass, "1e-3 <= 1")]
    #[case(json!({"max": "1", "minimumSamples": 100}), sampled("0.5", 99.0), CheckOutcome::NoData, "99 samples, at \
        least 100 needed")]
    #[case(json!({"max": "1", "minimumSamples": 100}), value("0.5"), CheckOutcome::NoData, "an unknown number of \
        samples, at least 100 needed")]
    #[case(json!({"max": "1", "minimumSamples": 100}), sampled("5", 1204.0), CheckOutcome::Fail,
        "5 > 1 (1204 samples)")]
    #[case(json!({}), Measurement::Value { value: Value::Answered, samples: None }, CheckOutcome::Pass, "answered as \
        expected")]
    #[case(json!({"max": "1"}), Measurement::Error("e".into()), CheckOutcome::Error, "e")]
    #[case(json!({"max": "1"}), Measurement::NoData("n".into()), CheckOutcome::NoData, "n")]
    #[case(json!({"max": "1"}), Measurement::Failed("b".into()), CheckOutcome::Fail, "b")]
    fn assesses(
        #[case] extra: serde_json::Value,
        #[case] m: Measurement,
        #[case] outcome: CheckOutcome,
        #[case] detail: &str,
    ) {
        assert_eq!(assess(&check(extra), &m), (outcome, detail.to_owned()));
    }

    // f: fail, p: pass, e: error, n: no data
    #[rstest]
    #[case::three_of_three("fff", 3, 3, true)]
    #[case::two("ff", 3, 3, false)]
    #[case::interrupted("fpff", 3, 3, false)]
    #[case::two_of_three("fpf", 2, 3, true)]
    #[case::far_apart("fpppf", 2, 3, false)]
    #[case::latched("fffppp", 3, 3, true)]
    #[case::errors_do_not_count("fefnf", 3, 3, true)]
    #[case::errors_alone("eeennn", 1, 1, false)]
    #[case::errors_do_not_pass("ffenp", 2, 2, true)]
    #[case::once("f", 1, 1, true)]
    fn counts(#[case] run: &str, #[case] count: u32, #[case] of: u32, #[case] breached: bool) {
        let check = check(json!({"max": "1", "failures": {"count": count, "of": of}}));
        let mut evaluator = CheckEvaluator::new(&check, None);
        let mut last = None;
        for letter in run.chars() {
            let m = match letter {
                'f' => value("2"),
                'p' => value("0"),
                'e' => Measurement::Error("e".into()),
                _ => Measurement::NoData("n".into()),
            };
            last = Some(evaluator.record(&m, Time::UNIX_EPOCH));
        }
        let last = last.unwrap();
        assert_eq!((last.breached, last.measured), (breached, run.len() as u64), "{last:?}");
    }

    #[test]
    fn goes_on_where_an_earlier_process_ended() {
        let check = check(json!({"max": "1"}));
        let mut evaluator = CheckEvaluator::new(&check, None);
        evaluator.record(&value("2"), Time::UNIX_EPOCH);
        let before = evaluator.record(&value("2"), Time::UNIX_EPOCH);
        let mut evaluator = CheckEvaluator::new(&check, Some(&before));
        let after = evaluator.record(&value("2"), Time::UNIX_EPOCH);
        assert!(after.breached);
        assert_eq!((after.failed, after.measured), (3, 3));
        let mut evaluator = CheckEvaluator::new(&check, Some(&after));
        assert!(evaluator.record(&value("0"), Time::UNIX_EPOCH).breached);
    }
}
