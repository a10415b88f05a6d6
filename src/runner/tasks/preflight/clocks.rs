//! Whether the clocks agree: the deadline of a window is the controller's, kept by the runner, and recorded by the
//! database.

use jiff::SignedDuration;
use tokio_postgres::Client;

use crate::{
    api::{CLOCK_SKEW_LIMIT, ClockOffset, Reason, Time},
    runner::Failure,
    telemetry,
};

/// The database's clock agrees with this one. That of the controller is compared by the machine, with the times of this
/// run.
pub(super) async fn check(client: &Client) -> Result<String, Failure> {
    let before = telemetry::now();
    let row = client.query_one("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8", &[]).await?;
    let after = telemetry::now();
    let database = Time::from_millisecond(row.try_get(0)?)
        .map_err(|error| Failure::new(Reason::Internal, format!("the database's time cannot be used: {error}")))?;
    compare(before, database, after)
}

fn compare(before: Time, database: Time, after: Time) -> Result<String, Failure> {
    // Its milliseconds are rounded.
    let rounding = SignedDuration::from_millis(1);
    let offset = ClockOffset {
        at_least: database.duration_since(after) - rounding,
        at_most: database.duration_since(before) + rounding,
    };
    let limit = CLOCK_SKEW_LIMIT.as_secs();
    match offset.beyond_limit() {
        None => Ok(format!("the database's clock agrees with the runner's (limit {limit} s)")),
        Some(skew) => Err(Failure::new(
            Reason::ClockSkew,
            format!(
                "the database's clock is {skew} the runner's (limit {limit} s); next: synchronize the clocks of \
                 database server and nodes by NTP"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case::equal(0, 5, 10, None)]
    #[case::within_the_limit(0, 1_900, 0, None)]
    #[case::slow_answer_that_explains_it(0, 4_000, 3_000, None)]
    #[case::ahead(0, 5_250, 250, Some("5.0 s ahead of the runner's (limit 2 s)"))]
    #[case::behind(10_000, 7_000, 10_500, Some("3.0 s behind the runner's (limit 2 s)"))]
    fn clocks_that_differ_are_found(
        #[case] before: i64,
        #[case] database: i64,
        #[case] after: i64,
        #[case] found: Option<&str>,
    ) {
        let time = |millis| Time::from_millisecond(1_000_000_000 + millis).unwrap();
        match (compare(time(before), time(database), time(after)), found) {
            (Ok(_), None) => {}
            (Err(failure), Some(words)) => {
                assert_eq!(failure.reason, Reason::ClockSkew);
                assert!(failure.message.contains(words), "{}", failure.message);
            }
            (result, found) => panic!("{result:?} {found:?}"),
        }
    }
}
