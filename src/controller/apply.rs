//! The only writer: one exhaustive match over [`Effect`].
//!
//! [`Writer::apply`] fences every irreversible effect ([`Effect::target`]) three times. It checks the Lease. It reads
//! the target, then reads the migration again and compares it with the one that was decided on. The write carries the
//! target's resourceVersion. A leader that was suspended between decision and write therefore cannot undo what its
//! successor did.

use std::fmt::Debug;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        batch::v1::Job,
        core::v1::{ConfigMap, ObjectReference},
    },
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
    core::error_boundary::InvalidObject,
    runtime::events::{Event as KubeEvent, EventType},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tracing::{info, warn};

use super::{
    Context, Error, MANAGER, build,
    failures::Failed,
    flag::{flag_of, flag_patch},
    post_params,
    template::marker_patch,
};
use crate::{
    api::{CreditMigration, FINALIZER, MigrationRun, Step, Task, WindowCommand, WindowOrder, WorkloadRef},
    machine::{Effect, Event, FenceTarget, ObservedFlag, StartRun},
};

/// Applies the effects of a decision in order. `live` is the migration as persisted with the decision, `flag` is what
/// was decided on.
pub(super) async fn apply(
    ctx: &Context,
    live: &CreditMigration,
    flag: &ObservedFlag,
    effects: Vec<Effect>,
) -> Result<(), Error> {
    let writer = Writer { ctx, live, flag, namespace: live.namespace().unwrap_or_default() };
    let (mut result, mut stopped) = (Ok(()), false);
    for effect in effects {
        // The status that an event or a notice reports is already persisted, so both are sent even if an earlier effect
        // was refused.
        let announces = match &effect {
            Effect::Event(_) => true,
            Effect::StartRun(start) => start.spec.task == Task::Notify,
            _ => false,
        };
        let tidies = matches!(effect, Effect::RemoveRun { .. });
        if stopped && !announces {
            continue;
        }
        if let Err(error) = writer.apply(effect).await {
            // A run that cannot be deleted must not hold up the order that unblocks writes.
            stopped |= !tidies || matches!(error, Error::Conflict | Error::LeaseLost);
            result = result.and(Err(error));
        }
    }
    result
}

/// The target of an irreversible effect, read before the migration was found unchanged.
struct Fenced {
    resource_version: Option<String>,
    /// The run, if the target is a run that exists.
    run: Option<MigrationRun>,
}

/// A kind of objects that belong to a namespace.
trait Namespaced: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned {}
impl<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned> Namespaced
    for K
{
}

struct Writer<'a> {
    ctx: &'a Context,
    live: &'a CreditMigration,
    flag: &'a ObservedFlag,
    namespace: String,
}

impl Writer<'_> {
    fn api<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(&self) -> Api<K> {
        Api::namespaced(self.ctx.client.clone(), &self.namespace)
    }

    /// Reads the target of an irreversible effect, then the migration, which must be the one that was decided on.
    async fn fence(&self, target: FenceTarget<'_>) -> Result<Fenced, Error> {
        let fenced = match target {
            FenceTarget::Migration => Fenced { resource_version: self.live.resource_version(), run: None },
            FenceTarget::Run(name) => {
                let run = self.api::<MigrationRun>().get_opt(name).await?;
                Fenced { resource_version: run.as_ref().and_then(ResourceExt::resource_version), run }
            }
            FenceTarget::Flag => self.fence_flag().await?,
            FenceTarget::Workload(workload) => self.fenced_version::<Deployment>(&workload.name).await?,
        };
        let now = self.api::<CreditMigration>().get_metadata(&self.live.name_any()).await?;
        if now.resource_version() == self.live.resource_version() { Ok(fenced) } else { Err(Error::Conflict) }
    }

    /// The flag must be the one that was decided on: to write it again as it was would be wrong if another leader has
    /// set it meanwhile, and containers have read that.
    async fn fence_flag(&self) -> Result<Fenced, Error> {
        let key = &self.live.spec.application.flag.config_map_key_ref;
        let map = self.api::<ConfigMap>().get(&key.name).await?;
        if flag_of(Some(&map), &key.key) != *self.flag {
            return Err(Error::Conflict);
        }
        Ok(Fenced { resource_version: map.resource_version(), run: None })
    }

    async fn fenced_version<K: Namespaced>(&self, name: &str) -> Result<Fenced, Error> {
        let target = self.api::<K>().get_metadata(name).await?;
        Ok(Fenced { resource_version: target.resource_version(), run: None })
    }

    async fn apply(&self, effect: Effect) -> Result<(), Error> {
        if !matches!(effect, Effect::Event(_)) {
            self.ctx.lease.check()?;
        }
        let fenced = match effect.target() {
            Some(target) => Some(self.fence(target).await?),
            None => None,
        };
        // An irreversible effect without a fence is not applied.
        let fenced = || fenced.ok_or(Error::Conflict);
        match effect {
            Effect::AddFinalizer => self.set_finalizer(true, self.live.resource_version()).await,
            Effect::RemoveFinalizer => self.set_finalizer(false, fenced()?.resource_version).await,
            Effect::StartRun(start) => self.start_run(&start).await,
            Effect::StartCheckJob(start) => {
                let job = build::check_job(self.live, &start);
                self.ensure("Job", job, &self.live.uid().unwrap_or_default()).await.map(drop)
            }
            Effect::RemoveRun { name } => self.remove_run(&name, fenced()?).await,
            Effect::OrderWindow { name, order } => self.order_window(&name, &order, fenced()?).await,
            Effect::SetFlag { value, marker } => self.set_flag(&value, &marker, fenced()?).await,
            Effect::Restart { workload, marker } => self.mark(&workload, None, Some(&marker), fenced()?).await,
            Effect::KeepPods { workload, template, marker } => {
                self.mark(&workload, Some(&marker), template.as_deref(), fenced()?).await
            }
            Effect::Event(event) => {
                // An event that cannot be published must not hide or delay what it reports.
                self.publish(&event).await;
                Ok(())
            }
        }
    }

    async fn set_finalizer(&self, wanted: bool, resource_version: Option<String>) -> Result<(), Error> {
        let mut finalizers = self.live.finalizers().to_vec();
        finalizers.retain(|f| f != FINALIZER);
        if wanted {
            finalizers.push(FINALIZER.into());
        }
        let patch = json!({"metadata": {"resourceVersion": resource_version, "finalizers": finalizers}});
        ignore_conflict(self.merge::<CreditMigration>(&self.live.name_any(), &patch).await)
    }

    async fn merge<K: Namespaced>(&self, name: &str, patch: &serde_json::Value) -> Result<(), kube::Error> {
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..Default::default() };
        self.api::<K>().patch(name, &params, &Patch::Merge(patch)).await.map(drop)
    }

    /// Creates an object, or adopts an existing one if its owner is the expected one.
    ///
    /// # Errors
    /// `NotOwned` if the existing object has another owner.
    async fn ensure<K>(&self, kind: &'static str, wanted: K, owner_uid: &str) -> Result<K, Error>
    where
        K: Namespaced + serde::Serialize,
    {
        let api = self.api::<K>();
        match api.create(&post_params(), &wanted).await {
            Ok(made) => Ok(made),
            Err(kube::Error::Api(e)) if e.code == 409 => {
                let name = wanted.name_any();
                let found = api.get(&name).await?;
                if found.owner_references().iter().any(|o| o.uid == owner_uid) {
                    Ok(found)
                } else {
                    Err(Error::NotOwned { kind, name })
                }
            }
            Err(e) => Err(e.into()),
        }
    }

    async fn start_run(&self, start: &StartRun) -> Result<(), Error> {
        let uid = self.live.uid().unwrap_or_default();
        self.ensure("ServiceAccount", build::service_account(self.live), &uid).await?;
        let options = &self.ctx.options;
        self.ensure("RoleBinding", build::role_binding(self.live, &options.runner_cluster_role, ""), &uid).await?;
        // Logs may contain anything: the right to read them is granted only if a check reads logs.
        if start.spec.plan.checks_of(start.spec.task).iter().any(|c| c.logs.is_some()) {
            let binding = build::role_binding(self.live, &options.runner_logs_cluster_role, "-logs");
            self.ensure("RoleBinding", binding, &uid).await?;
        }
        let run = self.ensure("MigrationRun", build::run(self.live, start), &uid).await?;
        let job = build::job(&run, &start.image, start.timeout_seconds, &options.window_priority_class_name);
        self.ensure("Job", job, &run.uid().unwrap_or_default()).await?;
        info!(run = %start.name, "started");
        Ok(())
    }

    async fn remove_run(&self, name: &str, fenced: Fenced) -> Result<(), Error> {
        let api = self.api::<MigrationRun>();
        let Some(run) = fenced.run else { return Ok(()) };
        let in_window = run.spec.task.is_window();
        if in_window {
            if run.spec.window.as_ref().is_some_and(|w| w.command > WindowCommand::Standby) {
                return Err(Error::Conflict);
            }
            // With the resourceVersion that still says Standby: an order to block writes cannot arrive in between.
            let exactly = Preconditions { resource_version: fenced.resource_version, uid: run.metadata.uid };
            let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::background() };
            return ignore_conflict(api.delete(name, &params).await.map(drop));
        }
        // The Job and its pods first: the work must have ended before its record is deleted.
        let jobs = self.api::<Job>();
        match jobs.get_opt(name).await? {
            Some(job) if job.metadata.deletion_timestamp.is_none() => {
                let params =
                    DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..Default::default() };
                ignore_missing(jobs.delete(name, &params).await.map(drop))
            }
            Some(_) => Ok(()),
            None => ignore_missing(api.delete(name, &DeleteParams::background()).await.map(drop)),
        }
    }

    async fn order_window(&self, name: &str, order: &WindowOrder, fenced: Fenced) -> Result<(), Error> {
        let Some(run) = fenced.run else { return Err(Error::Conflict) };
        // Orders only move forward, no matter which replica gave the last one.
        if run.spec.window.as_ref().is_some_and(|w| w.command >= order.command) {
            return Ok(());
        }
        let patch = json!({"metadata": {"resourceVersion": fenced.resource_version}, "spec": {"window": order}});
        ignore_conflict(self.merge::<MigrationRun>(name, &patch).await)?;
        info!(run = name, command = %order.command, "window ordered");
        Ok(())
    }

    async fn set_flag(&self, value: &str, marker: &str, fenced: Fenced) -> Result<(), Error> {
        let key = &self.live.spec.application.flag.config_map_key_ref;
        let patch = flag_patch(key, value, marker, fenced.resource_version);
        ignore_conflict(self.merge::<ConfigMap>(&key.name, &patch).await)?;
        info!(config_map = %key.name, value, "flag set");
        Ok(())
    }

    /// Writes the marker of a switch, see [`marker_patch`].
    async fn mark(
        &self,
        workload: &WorkloadRef,
        own: Option<&str>,
        template: Option<&str>,
        fenced: Fenced,
    ) -> Result<(), Error> {
        let patch = marker_patch(own, template, fenced.resource_version);
        ignore_conflict(self.merge::<Deployment>(&workload.name, &patch).await)
    }

    async fn publish(&self, event: &Event) {
        let action = self.live.status.as_ref().and_then(|s| s.step).map_or("Reconcile", Step::as_str);
        let type_ = if event.warning { EventType::Warning } else { EventType::Normal };
        publish(self.ctx, &self.live.object_ref(&()), type_, &event.reason, &event.note, action).await;
    }
}

/// Publishes an event; one that cannot be published is in the log alone.
async fn publish(ctx: &Context, about: &ObjectReference, type_: EventType, reason: &str, text: &str, action: &str) {
    let event = KubeEvent {
        type_,
        reason: reason.to_owned(),
        note: Some(note(text)),
        action: action.to_owned(),
        secondary: None,
    };
    if let Err(error) = ctx.events.publish(&event, about).await {
        // A namespace that is being deleted refuses it: the log is then the only place that has its text.
        warn!(%error, reason, note = text, "cannot publish an event");
    }
}

/// The note of an event, cut to the length that the API server accepts. The limit is in bytes; an event with a longer
/// note is rejected.
fn note(text: &str) -> String {
    const LIMIT: usize = 1024;
    const CUT: &str = "...";
    if text.len() <= LIMIT {
        return text.to_owned();
    }
    let end = (0..=LIMIT - CUT.len()).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}{CUT}", text.get(..end).unwrap_or_default())
}

/// A conflict means that the object was changed in the meantime: the change triggers another reconciliation.
fn ignore_conflict(result: Result<(), kube::Error>) -> Result<(), Error> {
    match result {
        Err(kube::Error::Api(e)) if e.code == 409 => Err(Error::Conflict),
        other => ignore_missing(other),
    }
}

fn ignore_missing(result: Result<(), kube::Error>) -> Result<(), Error> {
    match result {
        Err(kube::Error::Api(e)) if e.code == 404 => Ok(()),
        other => Ok(other?),
    }
}

/// Reports on the migration why its reconciliation fails.
pub(super) async fn report_failure(ctx: &Context, about: &ObjectReference, failed: &Failed) {
    let text = format!("{}; retried", failed.error);
    publish(ctx, about, EventType::Warning, failed.activity.event_reason(), &text, "Reconcile").await;
}

/// An object that cannot be decoded, as an event names it.
pub(super) fn reference<K: Resource<DynamicType = ()>>(invalid: &InvalidObject) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: invalid.metadata.name.clone(),
        namespace: invalid.metadata.namespace.clone(),
        uid: invalid.metadata.uid.clone(),
        ..Default::default()
    }
}

/// Reports to the owner of an object that it cannot be decoded.
pub(super) async fn report_undecodable<K: Resource<DynamicType = ()>>(ctx: &Context, invalid: &InvalidObject) {
    let text = format!(
        "{}; next: correct it (a decision: create another one), or update the operator and its CRDs together",
        invalid.error
    );
    publish(ctx, &reference::<K>(invalid), EventType::Warning, "Undecodable", &text, "Decode").await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case::short("aborted", 1, 7)]
    #[case::full("a", 1024, 1024)]
    #[case::ascii("a", 1025, 1024)]
    #[case::cyrillic("\u{43f}", 600, 1023)]
    #[case::four_bytes("\u{1f4b3}", 300, 1023)]
    fn a_note_fits_into_an_event(#[case] letter: &str, #[case] times: usize, #[case] bytes: usize) {
        let text = letter.repeat(times);
        let cut = note(&text);
        assert_eq!(cut.len(), bytes);
        assert!(text.starts_with(cut.trim_end_matches("...")) && (cut == text || cut.ends_with("...")), "{cut}");
    }
}
