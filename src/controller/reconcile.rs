//! One reconciliation: observe -> decide -> persist -> apply. Called by `watches`.
//!
//! Objects are read live for each decision, not from a cache: migrations are rare and costly, so freshness is worth the
//! requests. See `docs/architecture.md`.

use std::{sync::Arc, time::Duration};

use kube::{Api, Resource, ResourceExt, core::DeserializeGuard, runtime::controller::Action};
use tracing::{Instrument, error, warn};

use super::{
    Context, Error, apply,
    failures::{Activity, Failed},
    observe,
};
use crate::{
    api::{CreditMigration, Time, Writes},
    machine::{self, Decision},
    telemetry,
};

/// Longest time for one reconciliation: a hanging request must not delay the next event of the same object.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(30);
/// A migration is reconciled this often without an event, to observe what is not watched (policies, pods).
const RESYNC: Duration = Duration::from_secs(30);
/// The same while writes are blocked: a terminating pod sends no event when it is gone.
const WINDOW_RESYNC: Duration = Duration::from_millis(500);
/// The delay when the requested time has passed already.
const OVERDUE_REQUEUE: Duration = Duration::from_secs(1);
/// Time after a conflict: another write was quicker, and the object is read again.
const CONFLICT_REQUEUE: Duration = Duration::from_millis(50);

/// observe -> decide -> persist -> apply, once.
pub(super) async fn reconcile(
    object: Arc<DeserializeGuard<CreditMigration>>,
    ctx: Arc<Context>,
) -> Result<Action, Error> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let timer = ctx.metrics.reconciling(&namespace, &name);
    let result = async {
        if let Err(invalid) = &object.0 {
            // One object that cannot be decoded must not stop the others.
            error!(error = %invalid.error, "cannot decode this CreditMigration");
            apply::report_undecodable::<CreditMigration>(&ctx, invalid).await;
            return Ok(Some(RESYNC));
        }
        tokio::time::timeout(RECONCILE_TIMEOUT, reconcile_live(&ctx, &namespace, &name))
            .await
            .unwrap_or_else(|_| Err(Error::Timeout(RECONCILE_TIMEOUT).into()))
    }
    .instrument(telemetry::migration_span(&namespace, &name))
    .await;
    match &result {
        Ok(after) => {
            timer.succeeded();
            if after.is_some() {
                ctx.failures.clear(&namespace, &name);
            }
        }
        Err(Failed { error: Error::Conflict, .. }) => {}
        Err(failed) => {
            // The object must show why nothing happens: its status may be that of yesterday.
            if failed.is_reported(ctx.failures.count(&namespace, &name, failed)) {
                apply::report_failure(&ctx, &object.object_ref(&()), failed).await;
                if failed.activity == Activity::Reconcile {
                    show_unread(&ctx, &namespace, &name, &failed.error).await;
                }
            }
        }
    }
    let after = result.map_err(|failed| failed.error)?;
    Ok(after.map_or_else(Action::await_change, |after| requeue(&ctx, &namespace, &name, after)))
}

/// Shows in the status that objects cannot be read. If that fails, too, the Event has to do.
async fn show_unread(ctx: &Context, namespace: &str, name: &str, error: &Error) {
    let api: Api<CreditMigration> = Api::namespaced(ctx.client.clone(), namespace);
    let written = async {
        let Some(mut live) = api.get_opt(name).await? else { return Ok(()) };
        let before = live.status.take().unwrap_or_default();
        let generation = live.metadata.generation.unwrap_or_default();
        let status = machine::cannot_observe(&before, generation, error.to_string(), telemetry::now());
        if status != before {
            ctx.lease.check()?;
            live.status = Some(status);
            api.replace_status(name, &super::post_params(), &live).await?;
        }
        Ok::<_, Error>(())
    };
    if let Err(error) = written.await {
        warn!(%error, "the status does not show why reconciliations fail");
    }
}

fn requeue(ctx: &Context, namespace: &str, name: &str, after: Duration) -> Action {
    ctx.metrics.queued(namespace, name, after);
    Action::requeue(after)
}

/// Returns the time to the next reconciliation; `None` if the migration is gone.
async fn reconcile_live(ctx: &Context, namespace: &str, name: &str) -> Result<Option<Duration>, Failed> {
    let api: Api<CreditMigration> = Api::namespaced(ctx.client.clone(), namespace);
    let Some(live) = api.get_opt(name).await? else {
        ctx.forget(namespace, name);
        return Ok(None);
    };
    let observed = observe::observe(ctx, &live).await?;
    let now = telemetry::now();
    let before = live.status.clone().unwrap_or_default();
    let Decision { status, effects, wake_at } = machine::decide(&live.spec, &before, &observed, now);

    ctx.failures.decided(namespace, name, &status);

    let mut live = live;
    if status != before {
        ctx.lease.check()?;
        live.status = Some(status.clone());
        // Carries the resourceVersion that was decided on: a second controller, or a stale read, gets a conflict here.
        live = match api.replace_status(name, &super::post_params(), &live).await {
            Err(kube::Error::Api(e)) if e.code == 409 => return Err(Error::Conflict.into()),
            Err(error) => return Err(Failed { activity: Activity::PersistStatus, error: error.into() }),
            Ok(persisted) => persisted,
        };
    }
    ctx.metrics.observe(namespace, &live, &status, now);
    let applied = apply::apply(ctx, &live, &observed.flag, effects).await;
    applied.map_err(|error| Failed { activity: Activity::ApplyEffect, error })?;

    ctx.metrics.reconciled();
    let in_window = status.writes == Some(Writes::Blocked);
    let longest = if in_window { WINDOW_RESYNC } else { RESYNC };
    Ok(Some(requeue_after(wake_at, now, longest)))
}

/// Time until the next reconciliation. A wake-up time that is not in the future would be requested again by each
/// reconciliation, and each costs some twenty requests: it waits for [`OVERDUE_REQUEUE`].
fn requeue_after(wake_at: Option<Time>, now: Time, longest: Duration) -> Duration {
    let wait = match wake_at {
        None => longest,
        Some(at) if at <= now => OVERDUE_REQUEUE,
        Some(at) => at.duration_since(now).try_into().unwrap_or(longest),
    };
    wait.clamp(Duration::from_millis(20), longest)
}

/// When a failed reconciliation is retried: see `failures`.
pub(super) fn error_policy(object: Arc<DeserializeGuard<CreditMigration>>, error: &Error, ctx: Arc<Context>) -> Action {
    ctx.metrics.failed(error);
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    if let Error::Conflict = error {
        return requeue(&ctx, &namespace, &name, CONFLICT_REQUEUE);
    }
    let span = telemetry::migration_span(&namespace, &name);
    span.in_scope(|| warn!(%error, "reconciliation failed; retried"));
    let status = object.0.as_ref().ok().and_then(|migration| migration.status.as_ref());
    let after = ctx.failures.retry_after(&namespace, &name, status);
    requeue(&ctx, &namespace, &name, after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case::nothing_planned(None, 30_000)]
    #[case::planned(Some(7_000), 7_000)]
    #[case::long_away(Some(90_000), 30_000)]
    #[case::in_a_moment(Some(1), 20)]
    #[case::now(Some(0), 1_000)]
    #[case::past(Some(-5_000), 1_000)]
    fn requeues(#[case] wake_millis: Option<i64>, #[case] millis: u64) {
        let now = Time::UNIX_EPOCH;
        let at = wake_millis.map(|ms| now + jiff::SignedDuration::from_millis(ms));
        assert_eq!(requeue_after(at, now, RESYNC), Duration::from_millis(millis));
        assert!(requeue_after(at, now, WINDOW_RESYNC) <= WINDOW_RESYNC);
    }
}
