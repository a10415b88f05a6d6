//! The API server's clock against the controller's own, from the header `Date` of its answers: the deadline of a window
//! is made with the controller's clock, and kept by the runner's.
//!
//! An answer shows the difference only within a second and the time that it took. Those of up to two periods are
//! combined: requests are sent at any fraction of a second, so a few of them show it within some milliseconds.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, Request, Response, header::DATE};
use futures::future::BoxFuture;
use jiff::{SignedDuration, fmt::rfc2822::DateTimeParser};
use tower::{Layer, Service};

use crate::{
    api::{ClockOffset, Time},
    telemetry,
};

/// After one to two of these an answer says nothing any more: a clock may have been set.
const PERIOD: Duration = Duration::from_secs(30);
/// Resolution of the header.
const RESOLUTION: SignedDuration = SignedDuration::from_secs(1);

/// How far the API server's clock is ahead. Its state is shared by all clones.
#[derive(Clone, Default)]
pub(super) struct ServerClock(Arc<Mutex<Periods>>);

#[derive(Default)]
struct Periods {
    present: Option<(Instant, ClockOffset)>,
    earlier: Option<(Instant, ClockOffset)>,
}

impl Periods {
    fn record(&mut self, now: Instant, offset: ClockOffset) {
        match self.present {
            Some((since, known)) if now < since + PERIOD => match known.narrowed(offset) {
                Some(both) => self.present = Some((since, both)),
                // A clock was set: what was known before is void.
                None => *self = Self { present: Some((now, offset)), earlier: None },
            },
            known => *self = Self { present: Some((now, offset)), earlier: known },
        }
    }

    fn offset(&self, now: Instant) -> Option<ClockOffset> {
        let recent = |(since, offset): (Instant, ClockOffset)| (now < since + PERIOD * 2).then_some(offset);
        match (self.present.and_then(recent)?, self.earlier.and_then(recent)) {
            (present, Some(earlier)) => Some(present.narrowed(earlier).unwrap_or(present)),
            (present, None) => Some(present),
        }
    }
}

impl ServerClock {
    /// How far the API server's clock is ahead; `None` if it was not asked for long.
    pub(super) fn offset(&self) -> Option<ClockOffset> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).offset(Instant::now())
    }

    fn record(&self, sent: Time, headers: &HeaderMap, received: Time) {
        if let Some(offset) = offset_of(sent, headers, received) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).record(Instant::now(), offset);
        }
    }
}

/// What one answer shows. Its header was written between the two times, and has whole seconds, cut off.
fn offset_of(sent: Time, headers: &HeaderMap, received: Time) -> Option<ClockOffset> {
    static PARSER: DateTimeParser = DateTimeParser::new();
    let date = PARSER.parse_timestamp(headers.get(DATE)?.as_bytes()).ok()?;
    Some(ClockOffset { at_least: date.duration_since(received), at_most: date.duration_since(sent) + RESOLUTION })
}

impl<S> Layer<S> for ServerClock {
    type Service = Compared<S>;

    fn layer(&self, inner: S) -> Compared<S> {
        Compared { inner, clock: self.clone() }
    }
}

/// A client whose answers show the server's clock.
#[derive(Clone)]
pub(super) struct Compared<S> {
    inner: S,
    clock: ServerClock,
}

impl<S, B, C> Service<Request<B>> for Compared<S>
where
    S: Service<Request<B>, Response = Response<C>>,
    S::Future: Send + 'static,
    S::Response: Send,
    S::Error: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (clock, sent) = (self.clock.clone(), telemetry::now());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            clock.record(sent, answer.headers(), telemetry::now());
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(n: i64) -> SignedDuration {
        SignedDuration::from_millis(n)
    }

    /// What an answer shows whose server's clock is ahead by `ahead` ms, sent at `at` ms and received 20 ms later.
    fn answer(at: i64, ahead: i64) -> ClockOffset {
        let time = |ms: i64| Time::from_millisecond(784_111_777_000 + ms).unwrap();
        let seconds = time(at + 10 + ahead).as_second();
        let date = Time::from_second(seconds).unwrap().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let headers = HeaderMap::from_iter([(DATE, date.parse().unwrap())]);
        offset_of(time(at), &headers, time(at + 20)).unwrap()
    }

    #[test]
    fn one_answer_shows_the_difference_within_a_second() {
        for at in [0, 250, 500, 999] {
            for ahead in [-60_000, -2_500, -500, 0, 500, 2_500, 60_000] {
                let ClockOffset { at_least, at_most } = answer(at, ahead);
                assert!(at_least <= millis(ahead) && millis(ahead) <= at_most, "{at} {ahead}");
                assert_eq!(at_most - at_least, millis(1_020));
            }
        }
    }

    #[rstest::rstest]
    #[case::equal(0, None)]
    #[case::within_the_limit(1_900, None)]
    #[case::ahead(2_500, Some("2.5 s ahead of"))]
    #[case::behind(-2_500, Some("2.5 s behind"))]
    fn some_answers_show_it_for_certain(#[case] ahead: i64, #[case] found: Option<&str>) {
        let (mut periods, start) = (Periods::default(), Instant::now());
        for n in 0..40 {
            periods.record(start, answer(n * 137, ahead));
        }
        let skew = periods.offset(start).unwrap().beyond_limit();
        assert_eq!(skew.map(|skew| skew.to_string()).as_deref(), found);
    }

    #[test]
    fn a_clock_that_was_set_is_believed_at_once_and_silence_ends_it() {
        let (mut periods, start) = (Periods::default(), Instant::now());
        let skewed = |periods: &Periods, now| periods.offset(now).and_then(ClockOffset::beyond_limit).is_some();
        periods.record(start, answer(0, 5_000));
        assert!(skewed(&periods, start));
        periods.record(start + Duration::from_secs(1), answer(1_000, 0));
        assert!(!skewed(&periods, start + Duration::from_secs(1)));
        // A drift that no two answers contradict is found within two periods.
        let later = start + PERIOD * 2;
        periods.record(later, answer(60_000, 5_000));
        assert!(skewed(&periods, later));
        assert_eq!(periods.offset(later + PERIOD * 2), None);
    }

    #[tokio::test]
    async fn the_client_reads_the_header_of_each_answer() {
        let clock = ServerClock::default();
        let server = tower::service_fn(async |_: Request<()>| {
            let date = (telemetry::now() + SignedDuration::from_secs(60)).strftime("%a, %d %b %Y %H:%M:%S GMT");
            Response::builder().header(DATE, date.to_string()).body(())
        });
        clock.layer(server).call(Request::new(())).await.unwrap();
        let skew = clock.offset().and_then(ClockOffset::beyond_limit).unwrap().to_string();
        assert!(skew.ends_with("s ahead of"), "{skew}");
    }
}
