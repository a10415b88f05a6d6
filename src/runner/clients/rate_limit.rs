//! A limit on bytes per second, shared by all that read at the same time.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// What may pass at once after a pause: as much as the limit gives in this time.
const BURST: Duration = Duration::from_secs(1);

/// A limit, or none. Clones share it.
#[derive(Clone)]
pub struct RateLimit(Option<Arc<Shared>>);

struct Shared {
    started: Instant,
    bucket: Mutex<Bucket>,
}

impl RateLimit {
    /// So many bytes per second; no limit if `None`.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        let shared = |bytes_per_second| Shared {
            started: Instant::now(),
            bucket: Mutex::new(Bucket { bytes_per_second, paid_until: Duration::ZERO }),
        };
        Self(bytes_per_second.map(|bytes| Arc::new(shared(bytes))))
    }

    /// Whether there is a limit.
    pub fn is_limited(&self) -> bool {
        self.0.is_some()
    }

    /// Accounts for bytes that were read, and waits until more may be read.
    pub async fn pass(&self, bytes: u64) {
        let Some(shared) = &self.0 else { return };
        let wait = {
            let mut bucket = shared.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.pass(shared.started.elapsed(), bytes)
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// The account. Times are since its start. Pure.
struct Bucket {
    bytes_per_second: u64,
    /// Until when the bytes that have passed use up the limit.
    paid_until: Duration,
}

impl Bucket {
    /// How long to wait after these bytes.
    fn pass(&mut self, now: Duration, bytes: u64) -> Duration {
        #[allow(clippy::cast_precision_loss)]
        let costs = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.max(1) as f64);
        self.paid_until = self.paid_until.max(now.saturating_sub(BURST)) + costs;
        self.paid_until.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Bytes that pass in so many seconds, if `readers` wait as long as they have to.
    fn passed_in(seconds: u32, readers: usize, chunk: u64) -> u64 {
        let mut bucket = Bucket { bytes_per_second: 1_000, paid_until: Duration::ZERO };
        let (mut free_at, mut passed) = (vec![Duration::ZERO; readers], 0);
        while let Some(next) = free_at.iter_mut().min().filter(|at| **at < SECOND * seconds) {
            let wait = bucket.pass(*next, chunk);
            *next += wait.max(Duration::from_millis(1));
            passed += chunk;
        }
        passed
    }

    #[test]
    fn readers_share_the_limit() {
        for (readers, chunk) in [(1, 100), (4, 100), (4, 1), (1, 5_000)] {
            let passed = passed_in(100, readers, chunk);
            // One chunk of each reader is under way when it has to wait.
            let most = 100_000 + 1_000 + chunk * u64::try_from(readers).unwrap();
            assert!((95_000..=most).contains(&passed), "{readers} readers of {chunk}: {passed}, at most {most}");
        }
    }

    #[test]
    fn a_pause_is_made_up_for_by_one_second_and_no_more() {
        let mut bucket = Bucket { bytes_per_second: 1_000, paid_until: Duration::ZERO };
        assert_eq!(bucket.pass(SECOND * 60, 1_000), Duration::ZERO);
        assert_eq!(bucket.pass(SECOND * 60, 2_000), SECOND * 2);
    }

    #[tokio::test]
    async fn without_a_limit_nothing_waits() {
        RateLimit::new(None).pass(u64::MAX).await;
    }
}
