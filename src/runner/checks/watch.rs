//! Measures the checks of a stage, each at its interval, until `stop` is cancelled.
//!
//! The controller measures `workload` and `job` checks itself.
//! Results are noted whenever one changed; the reporter sends them at most once per second.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{Session, Source, SourceContext, TargetProvider, evaluator::CheckEvaluator, unexplained};
use crate::{
    api::{Check, CheckResult, SafeguardReport},
    runner::{
        Failure,
        context::TaskContext,
        database::control::{self, ControlSpec},
        report::Progress,
    },
    telemetry,
};

/// Time between two measurements of what a rollback needs.
const SAFEGUARDS_INTERVAL: Duration = Duration::from_secs(15);
/// Least time between two measurements of what was written.
const WRITTEN_INTERVAL: Duration = Duration::from_secs(10);
/// Pause after such a measurement, in times of its duration: it takes at most a part of the database's time.
const WRITTEN_PAUSE: u32 = 20;

/// Measures `checks` at their intervals until `stop`; returns the last result of each that was measured, in the order
/// of `checks`.
///
/// `before` is what an earlier process of the same run reported; breaches in it stay.
///
/// # Errors
/// `Internal` if no client can be set up. A check that cannot be measured is a result, not an error.
pub async fn watch(
    context: &TaskContext<'_>,
    checks: &[Check],
    before: &[CheckResult],
    stop: &CancellationToken,
) -> Result<Vec<CheckResult>, Failure> {
    let source_context = Arc::new(SourceContext::new(context)?);
    let (sender, mut results) = mpsc::channel::<CheckResult>(32);
    let mut tasks = JoinSet::new();
    for check in checks.iter().filter(|check| !check.by_controller()).cloned() {
        let known = before.iter().find(|result| result.name == check.name).cloned();
        tasks.spawn(repeat(check, known, source_context.clone(), sender.clone()).in_current_span());
    }
    drop(sender);
    let written = measure_written(TargetProvider::of(context), context.control_spec(), context.progress.clone());
    tasks.spawn(written.in_current_span());
    tasks.spawn(Safeguards::of(context).watch().in_current_span());
    let mut latest: Vec<CheckResult> = Vec::new();
    let asked = Notify::new();
    let mut listing = pin!(unexplained::list_when_asked(context, &asked));
    loop {
        let result = tokio::select! {
            () = stop.cancelled() => return Ok(latest),
            // It has no end.
            () = &mut listing => continue,
            // Without a check of ours there is none: the stage is the controller's alone.
            Some(result) = results.recv() => result,
        };
        if unexplained::concerns(checks, &result) {
            asked.notify_one();
        }
        if result.breached {
            tracing::warn!(check = result.name, detail = result.message, "limit breached");
        }
        match latest.iter_mut().find(|known| known.name == result.name) {
            Some(known) => *known = result,
            None => {
                latest.push(result);
                // In the manifest's order, whichever answered first: a list that changes its order is hard to
                // read.
                latest.sort_by_key(|known| checks.iter().position(|check| check.name == known.name));
            }
        }
        context.progress.update(|status| status.checks.clone_from(&latest));
    }
}

/// Measures what was written since the cutover, for the decision on a rollback. It runs next to the checks: a
/// measurement that fails is repeated and delays nothing.
async fn measure_written(target_provider: TargetProvider, control_spec: ControlSpec, progress: Progress) {
    let mut session = Session::new(target_provider, "checks");
    loop {
        let started = Instant::now();
        let measured = async {
            let client = session.client().await?;
            let users = control::users_written(&*client, &control_spec).await?;
            Ok::<_, Failure>((users, control::credits_written(&*client, &control_spec).await?))
        };
        match measured.await {
            Ok((users, credits)) => progress.update(|status| {
                (status.users_written, status.credits_written) = (Some(users), Some(credits));
            }),
            Err(failure) => {
                session.lose();
                tracing::warn!(reason = %failure.reason, error = %failure, "what was written is not measured");
            }
        }
        tokio::time::sleep(WRITTEN_INTERVAL.max(started.elapsed() * WRITTEN_PAUSE)).await;
    }
}

/// What a rollback needs in the database: measured in each stage after the window, whatever its checks.
struct Safeguards {
    target_provider: TargetProvider,
    control_spec: ControlSpec,
    /// Digest of the down SQL.
    approved: String,
    progress: Progress,
}

impl Safeguards {
    fn of(context: &TaskContext<'_>) -> Self {
        Self {
            target_provider: TargetProvider::of(context),
            control_spec: context.control_spec(),
            approved: context.spec.inputs.down_sha256.clone(),
            progress: context.progress.clone(),
        }
    }

    /// Measures at intervals. A measurement that fails is repeated, and delays no check.
    async fn watch(self) {
        let mut ticks = tokio::time::interval(SAFEGUARDS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.measure().await;
        }
    }

    /// One measurement, which is reported.
    async fn measure(&self) {
        let measured = async {
            let target = self.target_provider.target()?;
            control::missing_safeguards(&target, &self.control_spec, &self.approved).await
        };
        let report = |reachable, missing| SafeguardReport { at: telemetry::now(), reachable, missing };
        let report = match measured.await {
            Ok(missing) => report(true, missing),
            Err(failure) if failure.is_connection_lost() => {
                tracing::warn!(reason = %failure.reason, error = %failure, "the database is not reached");
                report(false, vec![])
            }
            // The last report gets old, which is reported in turn.
            Err(failure) => {
                return tracing::warn!(reason = %failure.reason, error = %failure, "what a rollback needs is not \
                    measured");
            }
        };
        for found in &report.missing {
            tracing::warn!(kind = %found.kind, table = found.table, detail = found.detail, "missing for a rollback");
        }
        self.progress.update(|status| status.safeguards = Some(report));
    }
}

/// Measures once what a rollback needs in the database, and reports it.
pub async fn report_safeguards(context: &TaskContext<'_>) {
    Safeguards::of(context).measure().await;
}

/// Measures one check at its interval. Measurements do not pile up when one takes longer than the interval.
async fn repeat(
    check: Check,
    known: Option<CheckResult>,
    source_context: Arc<SourceContext>,
    results: mpsc::Sender<CheckResult>,
) {
    let mut evaluator = CheckEvaluator::new(&check, known.as_ref());
    let mut source = Source::new(&check, &source_context);
    let interval = Duration::from(check.interval).max(Duration::from_millis(100));
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let measurement = source.measure(&check, interval, &source_context).await;
        if results.send(evaluator.record(&measurement, telemetry::now())).await.is_err() {
            return;
        }
    }
}
