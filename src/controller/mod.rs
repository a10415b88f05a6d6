//! The controller: watches, [`observe`], `decide`, persist, [`execute`]. It talks to the Kubernetes API and to nothing else.
//!
//! Objects are read live for each decision, not from a cache: a migration is rare and dear, so freshness is worth the
//! requests. The watches only say when to look. See `docs/architecture.md`.

pub mod jobs;

mod events;
mod execute;
mod leader;
mod metrics;
mod observe;
mod policy;
mod server;
mod watches;

use std::{sync::Arc, time::Duration};

use clap::Args;
use kube::{
    Api, Client, ResourceExt,
    api::PostParams,
    core::DeserializeGuard,
    runtime::{controller::Action, events::Reporter},
};
use tracing::{Instrument, error, info, warn};

use crate::{
    api::{CreditMigration, Time},
    machine::{self, Decision},
    shared::time::to_signed,
    telemetry,
};

pub(crate) use policy::policy_problem;
pub use policy::{InstallCheck, check_install};

/// Field manager of everything that the controller writes.
pub const MANAGER: &str = "credit-migration-operator";

/// Longest time for one reconciliation: a request that hangs must not hold up the next event of the same object.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(30);
/// A migration is looked at this often although nothing happens: what is not watched (policies, pods) is seen then.
const RESYNC: Duration = Duration::from_secs(30);
/// While writes are blocked pods are looked at this often: a terminating pod sends no event when it is gone.
const WINDOW_RESYNC: Duration = Duration::from_millis(500);
/// The next look when it should have been already.
const PAST_WAKE: Duration = Duration::from_secs(1);

/// Options of `controller`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Image of the runner's pods; new migrations are pinned to it.
    #[arg(long, env = "RUNNER_IMAGE")]
    pub runner_image: String,
    /// ClusterRole that runner pods are bound to in their namespace.
    #[arg(long, default_value = "credit-migration-runner")]
    pub runner_cluster_role: String,
    /// ClusterRole that they are bound to besides where a check reads logs.
    #[arg(long, default_value = "credit-migration-runner-logs")]
    pub runner_logs_cluster_role: String,
    /// Name of the ValidatingAdmissionPolicy, and of its binding, that holds names in decisions to their authors.
    #[arg(long, default_value = policy::DECISIONS)]
    pub decision_policy: String,
    /// Name of the Lease.
    #[arg(long, default_value = "credit-migration-operator")]
    pub lease_name: String,
    /// How long a leader that was not heard of keeps the Lease.
    #[arg(long, default_value = "15s")]
    pub lease_duration: kube::core::Duration,
    /// Address of probes and metrics.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub listen: std::net::SocketAddr,
    /// Namespace of the operator.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Name of this replica.
    #[arg(long, env = "POD_NAME", default_value = "local")]
    pub identity: String,
}

/// What ends the controller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or could not be reached.
    #[error("Kubernetes API: {0}")]
    Kube(#[from] kube::Error),
    /// No configuration for a cluster was found.
    #[error("no cluster configuration: {0}")]
    Config(#[from] kube::config::InferConfigError),
    /// The port for probes and metrics cannot be used.
    #[error("cannot listen: {0}")]
    Listen(#[from] std::io::Error),
    /// Another replica leads now.
    #[error("lost the lease; another replica leads now")]
    LeaseLost,
    /// Neither names nor reports are proven.
    #[error("{0}; next: helm upgrade with admissionPolicies.install=true")]
    Unguarded(String),
    /// An object of the name exists and is not ours.
    #[error("{kind} {name} exists and does not belong to this migration; next: rename or delete it")]
    Foreign {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The live object differs from the one that was decided on.
    #[error("the object changed meanwhile; decided again")]
    Stale,
    /// One reconciliation took too long.
    #[error("reconciliation took longer than {0:?}")]
    Timeout(Duration),
}

/// What reconciliations share.
pub(crate) struct Context {
    client: Client,
    options: Options,
    events: events::Events,
    lease: leader::Held,
    metrics: Arc<metrics::Metrics>,
}

/// Runs until a signal, the loss of the Lease, or an error that cannot be waited out.
pub async fn run(options: Options) -> Result<(), Error> {
    let client = client().await?;
    let metrics = Arc::new(metrics::Metrics::default());
    let serve = server::serve(options.listen, metrics.clone()).await?;
    let duration = to_signed(options.lease_duration).unsigned_abs();
    let elector =
        leader::Elector::new(client.clone(), &options.namespace, &options.lease_name, &options.identity, duration);
    metrics.waiting_for("the lease");
    tokio::select! {
        // A signal while waiting: nothing is held, nothing is to be given up.
        () = watches::shutdown() => return Ok(()),
        ended = serve => { ended.map_err(|e| Error::Listen(std::io::Error::other(e)))??; return Ok(()) },
        () = elector.acquire() => {}
    }
    info!(lease = %options.lease_name, identity = %options.identity, "leading");
    metrics.leading();
    let reporter = Reporter { controller: MANAGER.into(), instance: Some(options.identity.clone()) };
    let ctx = Arc::new(Context {
        events: events::Events::new(client.clone(), reporter),
        client: client.clone(),
        options,
        lease: elector.held(),
        metrics,
    });
    tokio::select! {
        () = watches::run(ctx.clone()) => elector.release().await,
        // Fence: nothing may be written once another replica may have taken over.
        () = elector.keep() => return Err(Error::LeaseLost),
    }
    Ok(())
}

/// A client whose requests end: without a read time-out a hanging API server would hang the operator with it.
pub async fn client() -> Result<Client, Error> {
    let mut config = kube::Config::infer().await?;
    config.connect_timeout = Some(Duration::from_secs(5));
    // Longer than the watch's own time-out (290 s), so that an idle watch is not cut before the server ends it.
    config.read_timeout = Some(Duration::from_secs(295));
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// observe -> decide -> persist -> execute, once.
async fn reconcile(object: Arc<DeserializeGuard<CreditMigration>>, ctx: Arc<Context>) -> Result<Action, Error> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    async {
        if let Err(invalid) = &object.0 {
            // One object that cannot be read is its own problem; the others go on.
            error!(error = %invalid.error, "cannot decode this CreditMigration");
            execute::report_undecodable::<CreditMigration>(&ctx, invalid).await;
            return Ok(Action::requeue(RESYNC));
        }
        tokio::time::timeout(RECONCILE_TIMEOUT, reconcile_live(&ctx, &namespace, &name))
            .await
            .unwrap_or(Err(Error::Timeout(RECONCILE_TIMEOUT)))
    }
    .instrument(telemetry::migration_span(&namespace, &name))
    .await
}

async fn reconcile_live(ctx: &Context, namespace: &str, name: &str) -> Result<Action, Error> {
    let api: Api<CreditMigration> = Api::namespaced(ctx.client.clone(), namespace);
    let Some(live) = api.get_opt(name).await? else {
        ctx.metrics.forget(namespace, name);
        return Ok(Action::await_change());
    };
    let observed = observe::observe(ctx, &live).await?;
    let now = telemetry::now();
    let before = live.status.clone().unwrap_or_default();
    let Decision { status, effects, wake_at } = machine::decide(&live.spec, &before, &observed, now);

    let mut live = live;
    if status != before {
        ctx.lease.check()?;
        live.status = Some(status.clone());
        // Carries the resourceVersion that was decided on: a second controller, or a stale read, meets a conflict here.
        live = match api.replace_status(name, &PostParams::default(), &live).await {
            Err(kube::Error::Api(e)) if e.code == 409 => return Ok(Action::requeue(Duration::from_millis(50))),
            other => other?,
        };
    }
    ctx.metrics.observe(namespace, &live, &status, now);
    if let Err(error) = execute::execute(ctx, &live, effects).await {
        // A refused write would be tried for ever; the one who reads the object must see why nothing moves.
        if !matches!(error, Error::Stale | Error::LeaseLost) {
            execute::report_error(ctx, &live, &error).await;
        }
        return Err(error);
    }

    ctx.metrics.reconciled();
    let in_window = status.writes == Some(crate::api::Writes::Blocked);
    let longest = if in_window { WINDOW_RESYNC } else { RESYNC };
    Ok(Action::requeue(until(wake_at, now, longest)))
}

/// Time until the next look. A wake-up that is not in the future would come again with each look, and each look costs some twenty
/// requests: it waits for [`PAST_WAKE`].
fn until(wake_at: Option<Time>, now: Time, longest: Duration) -> Duration {
    let wait = match wake_at {
        None => longest,
        Some(at) if at <= now => PAST_WAKE,
        Some(at) => at.duration_since(now).try_into().unwrap_or(longest),
    };
    wait.clamp(Duration::from_millis(20), longest)
}

fn error_policy(object: Arc<DeserializeGuard<CreditMigration>>, error: &Error, ctx: Arc<Context>) -> Action {
    ctx.metrics.failed(error);
    match error {
        Error::Stale => Action::requeue(Duration::from_millis(50)),
        _ => {
            let span = telemetry::migration_span(&object.namespace().unwrap_or_default(), &object.name_any());
            span.in_scope(|| warn!(%error, "reconciliation failed; tried again"));
            Action::requeue(Duration::from_secs(1))
        }
    }
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
    fn the_next_look(#[case] wake_millis: Option<i64>, #[case] millis: u64) {
        let now = Time::UNIX_EPOCH;
        let at = wake_millis.map(|ms| now + jiff::SignedDuration::from_millis(ms));
        assert_eq!(until(at, now, RESYNC), Duration::from_millis(millis));
        assert!(until(at, now, WINDOW_RESYNC) <= WINDOW_RESYNC);
    }
}
