//! Tasks `Validate` and `Monitor`: measures a stage's checks until the process is told to end.
//!
//! The controller decides when a stage is over and what a breach does; it measures `workload` checks itself. Results are
//! noted whenever one changed; the reporter sends them at most once per second.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use super::{
    Failure,
    judge::{Judge, Measurement},
    postgres::Target,
    probe::{Prober, SqlProber},
    report::Progress,
};
use crate::{
    api::{Check, CheckResult},
    telemetry,
};

/// Longest time for the query of a check.
const MAX_QUERY: Duration = Duration::from_secs(30);

/// Measures `checks` at their intervals until `stop`.
///
/// `before` is what an earlier process of the same run reported; breaches in it stay.
///
/// # Errors
/// `Internal` if no client can be set up. A check that cannot be measured is a result, not an error.
pub async fn watch(
    checks: &[Check],
    before: &[CheckResult],
    target: Result<Target, Failure>,
    progress: &Progress,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let prober = Prober::new()?;
    let sql = Arc::new(Mutex::new(SqlProber::new(target)));
    let (sender, mut results) = mpsc::channel::<CheckResult>(32);
    let mut tasks = JoinSet::new();
    for check in checks.iter().filter(|check| check.workload.is_none()).cloned() {
        let known = before.iter().find(|result| result.name == check.name).cloned();
        tasks.spawn(repeat(check, known, prober.clone(), sql.clone(), sender.clone()));
    }
    drop(sender);
    let mut latest: Vec<CheckResult> = Vec::new();
    loop {
        let result = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(result) = results.recv() => result,
            // No check of ours: the stage is the controller's alone.
            else => { stop.cancelled().await; return Ok(()); }
        };
        if result.breached {
            tracing::warn!(check = result.name, "limit breached: {}", result.message);
        }
        match latest.iter_mut().find(|known| known.name == result.name) {
            Some(known) => *known = result,
            None => latest.push(result),
        }
        progress.note("checks", &latest);
    }
}

/// Measures one check at its interval. Measurements do not pile up when one takes longer than the interval.
async fn repeat(
    check: Check,
    known: Option<CheckResult>,
    prober: Prober,
    sql: Arc<Mutex<SqlProber>>,
    results: mpsc::Sender<CheckResult>,
) {
    let mut judge = Judge::new(&check, known.as_ref());
    let interval = Duration::from(check.interval).max(Duration::from_millis(100));
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let measurement = measure(&check, interval, &prober, &sql).await;
        if results.send(judge.add(&measurement, telemetry::now())).await.is_err() {
            return;
        }
    }
}

async fn measure(check: &Check, interval: Duration, prober: &Prober, sql: &Mutex<SqlProber>) -> Measurement {
    if let Some(source) = &check.sql {
        return sql.lock().await.measure(source, interval.clamp(Duration::from_secs(5), MAX_QUERY)).await;
    }
    if let Some(source) = &check.http {
        let wants_time = check.max.is_some() || check.min.is_some() || check.equals.is_some();
        return prober.http(source, wants_time).await;
    }
    match &check.prometheus {
        Some(source) => prober.prometheus(source).await,
        None => Measurement::Error("the check has no source".to_owned()),
    }
}
