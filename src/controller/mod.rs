//! The controller, the only writer in the cluster: leads, watches, reconciles. It reads no Secret, and talks to the
//! Kubernetes API and to nothing else.
//!
//! Called by `main`, by way of [`run`]; `watches` calls `reconcile`, which calls `observe`, `machine::decide` and
//! `apply`. Imports `shared`, `api`, `machine` and `telemetry`.

pub mod build;

mod admission;
mod apply;
mod client;
mod dry_run;
mod error;
mod events;
mod failures;
#[cfg(test)]
mod fake_api;
mod flag;
mod leader;
mod metrics;
mod observe;
mod options;
mod per_migration;
mod quota;
mod reconcile;
mod rollout_facts;
mod server;
mod server_clock;
mod template;
#[cfg(test)]
mod tests;
mod watches;
mod workload_pods;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::PostParams, runtime::events::Reporter};
use tracing::{info, warn};

use crate::shared::time::to_signed;

pub use admission::{InstallCheck, check_install};
pub use error::Error;
pub use options::ControllerOptions;

/// Field manager of all writes of the controller.
pub const MANAGER: &str = "credit-migration-operator";

/// Parameters of a write that creates or replaces an object.
pub(crate) fn post_params() -> PostParams {
    PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() }
}

/// State shared by all reconciliations.
pub(crate) struct Context {
    client: Client,
    options: ControllerOptions,
    events: events::Events,
    failures: failures::Failures,
    /// What the API server answered last to the writes of the next switch.
    dry_runs: per_migration::PerMigration<dry_run::Answers>,
    lease: leader::LeaseGuard,
    metrics: Arc<metrics::Metrics>,
}

impl Context {
    /// Forgets a migration that is gone: an alert on it would never resolve, and its failures are not those of a
    /// successor of the same name.
    fn forget(&self, namespace: &str, name: &str) {
        self.metrics.forget(namespace, name);
        self.failures.forget(namespace, name);
        self.dry_runs.forget(namespace, name);
    }
}

/// Runs until a signal.
///
/// # Errors
/// `LeaseLost` when another replica may lead; `Config`, `Listen` or `Kube` when the controller cannot start.
pub async fn run(options: ControllerOptions) -> Result<(), Error> {
    let metrics = Arc::new(metrics::Metrics::default());
    let client = client::connect(&metrics).await?;
    let serve = server::serve(options.listen, metrics.clone()).await?;
    let duration = to_signed(options.lease_duration).unsigned_abs();
    let elector =
        leader::Elector::new(client.clone(), &options.namespace, &options.lease_name, &options.identity, duration);
    metrics.set_waiting_for("the lease");
    tokio::select! {
        // A signal while waiting: there is no Lease to release.
        () = watches::shutdown() => return Ok(()),
        ended = serve => { ended.map_err(|e| Error::Listen(std::io::Error::other(e)))??; return Ok(()) },
        () = elector.acquire() => {}
    }
    let runner_image = runner_image(&client, &options).await;
    let options = ControllerOptions { runner_image, ..options };
    info!(lease = %options.lease_name, identity = %options.identity, "leading");
    metrics.leading();
    let reporter = Reporter { controller: MANAGER.into(), instance: Some(options.identity.clone()) };
    let ctx = Arc::new(Context {
        events: events::Events::new(client.clone(), reporter),
        failures: failures::Failures::default(),
        dry_runs: per_migration::PerMigration::default(),
        client: client.clone(),
        options,
        lease: elector.lease(),
        metrics,
    });
    tokio::select! {
        () = watches::run(ctx.clone()) => elector.release().await,
        // Fence: nothing may be written once another replica may lead.
        () = elector.keep() => return Err(Error::LeaseLost),
    }
    Ok(())
}

/// The runner's image by the digest that this very pod runs, if it is the same image: what a tag refers to may change
/// between the rehearsal and the window. As it was given if that cannot be known.
async fn runner_image(client: &Client, options: &ControllerOptions) -> String {
    let image = options.runner_image.clone();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &options.namespace);
    let pod = match pods.get_opt(&options.identity).await {
        Ok(pod) => pod,
        Err(error) => {
            warn!(%error, "cannot read the operator's own pod: the runner's image is not pinned by its digest");
            None
        }
    };
    let own = pod
        .as_ref()
        .and_then(|pod| pod.spec.as_ref())
        .is_some_and(|spec| spec.containers.iter().any(|container| container.image.as_deref() == Some(image.as_str())));
    let statuses = pod.and_then(|pod| pod.status?.container_statuses).unwrap_or_default();
    let pinned = statuses.iter().find_map(|status| template::by_digest(&image, &status.image_id));
    pinned.filter(|_| own).unwrap_or(image)
}
