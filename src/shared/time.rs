//! Arithmetic on points in time and durations that cannot overflow.

/// Point in time, RFC 3339 in UTC.
pub type Time = jiff::Timestamp;

/// `from` plus `by`; [`Time::MAX`] if that is later than any time. A runner may report any time, and one migration's
/// wrong clock must not end the operator.
pub fn saturating_add(from: Time, by: jiff::SignedDuration) -> Time {
    from.checked_add(by).unwrap_or(Time::MAX)
}

/// A duration of whole seconds.
pub fn seconds(n: i64) -> jiff::SignedDuration {
    jiff::SignedDuration::from_secs(n)
}

/// A duration of a spec; a negative one counts as zero.
pub fn to_signed(d: kube::core::Duration) -> jiff::SignedDuration {
    if d.is_negative() {
        return jiff::SignedDuration::ZERO;
    }
    jiff::SignedDuration::try_from(std::time::Duration::from(d)).unwrap_or(jiff::SignedDuration::MAX)
}
