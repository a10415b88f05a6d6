//! Reads everything that a decision may depend on into one plain value.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        batch::v1::Job,
        core::v1::{ConfigMap, Event as KubeEvent, Namespace, Pod, PodStatus, ResourceQuota},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, ResourceExt,
    api::ListParams,
    core::{DeserializeGuard, Selector},
};
use tracing::warn;

use super::{
    Context, Error, admission,
    dry_run::try_patch,
    flag,
    quota::{self, Needs},
    template::{marker_patch, template_sha256},
    workload_pods::{UNKNOWN_POD, WorkloadPods, count_pods, rollout_failure},
};
use crate::{
    api::{
        CHECK_LABEL, CreditMigration, DecisionKind, FINALIZER, KeyRef, MigrationDecision, MigrationRun, RESTARTED_FOR,
        SQL_AUTHOR, SQL_LABEL, Time, UID_LABEL, WorkloadKind, WorkloadRef,
    },
    machine::{
        CheckJob, DEADLINE, DryRun, Job as JobState, JobPod, Observed, ObservedDecision, ObservedRun, ObservedSql,
        PodReason, SqlAuthor, Workload,
    },
    shared::deployment,
};

/// Reads the objects of one migration. Objects that cannot be decoded are omitted, with a warning in the log.
pub(super) async fn observe(ctx: &Context, migration: &CreditMigration) -> Result<Observed, Error> {
    let namespace = migration.namespace().unwrap_or_default();
    let (name, uid) = (migration.name_any(), migration.uid().unwrap_or_default());
    let reader = Reader { client: &ctx.client, namespace: &namespace };
    let sql = &migration.spec.migration;
    let deleting = migration.metadata.deletion_timestamp.is_some();
    let read = futures::try_join!(
        reader.runs(&uid),
        reader.check_jobs(&uid),
        reader.decisions(&name, &uid),
        admission::trust(&ctx.client, &ctx.options.decision_policy),
        flag::observe(ctx, migration),
        reader.sql(&sql.up.config_map_key_ref),
        reader.sql(&sql.down.config_map_key_ref),
        reader.workloads(ctx, migration),
        reader.quotas(),
        async { if deleting { reader.namespace_deleting().await } else { Ok(false) } },
    );
    let (runs, check_jobs, mut decisions, policy, flag, up, down, workloads, quotas, namespace_deleting) = read?;
    // The workloads that are restarted are restarted together.
    let mut surge = Needs::new();
    let restarted = &migration.spec.application.workloads;
    workloads
        .iter()
        .filter(|(w, _)| restarted.contains(&w.reference))
        .for_each(|(_, more)| quota::add(&mut surge, more));
    if !runs.iter().any(|run| run.run.spec.task.is_window() && run.job == JobState::Active) {
        quota::add(&mut surge, &quota::window_pod_needs(&migration.spec.runner.resources));
    }
    decisions.retain(|decision| is_authenticated(decision, policy.since));
    Ok(Observed {
        namespace: namespace.clone(),
        name,
        uid,
        generation: migration.metadata.generation.unwrap_or_default(),
        deleting,
        namespace_deleting,
        finalizer: migration.finalizers().iter().any(|f| f == FINALIZER),
        runner_image: ctx.options.runner_image.clone(),
        runs,
        decisions,
        policy_problem: policy.problem,
        server_clock: ctx.metrics.server_clock().offset(),
        flag: flag.flag,
        flag_write: flag.write,
        rollback_enabled: flag.rollback_enabled,
        check_jobs,
        up: up.0,
        down: down.0,
        sql_authors: if up.1 == down.1 { vec![up.1] } else { vec![up.1, down.1] },
        quota_shortages: quotas.map(|quotas| quota::shortages(&quotas, &surge)),
        refused_effect: ctx.failures.refused_effect(&namespace, &migration.name_any()),
        workloads: workloads.into_iter().map(|(workload, _)| workload).collect(),
    })
}

struct Reader<'a> {
    client: &'a Client,
    namespace: &'a str,
}

impl Reader<'_> {
    fn api<K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    /// The namespace is being deleted, or is gone.
    async fn namespace_deleting(&self) -> Result<bool, Error> {
        let namespace = Api::<Namespace>::all(self.client.clone()).get_metadata_opt(self.namespace).await?;
        Ok(namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()))
    }

    async fn runs(&self, uid: &str) -> Result<Vec<ObservedRun>, Error> {
        let of_uid = ListParams::default().labels(&format!("{}={uid}", UID_LABEL));
        let runs: Api<DeserializeGuard<MigrationRun>> = Api::namespaced(self.client.clone(), self.namespace);
        let of_runs = ListParams::default().labels(&format!("{}={uid},!{}", UID_LABEL, CHECK_LABEL));
        let (runs, jobs) = futures::try_join!(runs.list(&of_uid), async { self.api::<Job>().list(&of_runs).await })?;
        let runs = runs.items.into_iter().filter_map(|guarded| match guarded.0 {
            Ok(run) => Some(run),
            Err(invalid) => {
                let name = invalid.metadata.name.as_deref();
                warn!(run = name, error = %invalid.error, "cannot decode this MigrationRun");
                None
            }
        });
        // The label selects them, the UID in the spec decides.
        let runs: Vec<MigrationRun> = runs.filter(|run| run.spec.migration_uid == uid).collect();
        let jobs: BTreeMap<String, &Job> = jobs.items.iter().map(|job| (job.name_any(), job)).collect();
        let mut pods = self.pods_of_runs(uid, &runs, &jobs).await?;
        Ok(runs
            .into_iter()
            .map(|run| {
                let name = run.name_any();
                let job = jobs.get(&name).map_or(JobState::Absent, |job| job_state(job));
                let pod = pods.remove(&name).unwrap_or(JobPod::Started);
                let written_at = written_at(&run.metadata);
                ObservedRun { run, job, pod, written_at }
            })
            .collect())
    }

    /// Pods of runs that have not reported their end, by the name of the run. Those of Jobs with a running pod are
    /// left out: most of the time there is nothing to ask for.
    async fn pods_of_runs(
        &self,
        uid: &str,
        runs: &[MigrationRun],
        jobs: &BTreeMap<String, &Job>,
    ) -> Result<BTreeMap<String, JobPod>, Error> {
        let of_open_run = |run: &MigrationRun| (!run.has_ended()).then(|| jobs.get(&run.name_any()).copied()).flatten();
        let open: Vec<&Job> = runs.iter().filter_map(of_open_run).filter(|job| pod_may_be_missing(job)).collect();
        if open.is_empty() {
            return Ok(BTreeMap::new());
        }
        // After the Jobs, as below.
        let of_runs = ListParams::default().labels(&format!("{}={uid},!{}", UID_LABEL, CHECK_LABEL));
        let pods = self.api::<Pod>().list(&of_runs).await?.items;
        let mut states = BTreeMap::new();
        for job in open {
            let name = job.name_any();
            let pod = newest_pod(&pods, &name);
            let state = match (pod.map_or(JobPod::Absent, pod_state), pod) {
                (JobPod::Absent, _) => refused(self.warnings_on(job.uid()).await, &["FailedCreate"], JobPod::Absent),
                // A volume that cannot be mounted is in the pod's Events alone.
                (JobPod::Waiting(None), Some(pod)) => {
                    let reasons = ["FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "FailedScheduling"];
                    refused(self.warnings_on(pod.uid()).await, &reasons, JobPod::Waiting(None))
                }
                (state, _) => state,
            };
            states.insert(name, state);
        }
        Ok(states)
    }

    /// Warnings on an object. What they explain goes on without them, so that they cannot be read is no error.
    async fn warnings_on(&self, uid: Option<String>) -> Vec<KubeEvent> {
        let Some(uid) = uid else { return vec![] };
        let on_object = ListParams::default().fields(&format!("involvedObject.uid={uid},type=Warning"));
        match self.api::<KubeEvent>().list(&on_object).await {
            Ok(events) => events.items,
            Err(error) => {
                warn!(%error, "cannot read Events, which say why a pod does not start");
                vec![]
            }
        }
    }

    async fn decisions(&self, name: &str, uid: &str) -> Result<Vec<ObservedDecision>, Error> {
        let api: Api<DeserializeGuard<MigrationDecision>> = Api::namespaced(self.client.clone(), self.namespace);
        let mut decisions: Vec<ObservedDecision> = api
            .list(&ListParams::default())
            .await?
            .items
            .into_iter()
            .filter_map(|guarded| guarded.0.ok())
            .filter_map(|decision| decision_for(decision, name, uid))
            .collect();
        decisions.sort_by(|a, b| (a.at, &a.name).cmp(&(b.at, &b.name)));
        Ok(decisions)
    }

    /// Jobs of `job` checks: they have the migration's UID, and a check's name.
    async fn check_jobs(&self, uid: &str) -> Result<Vec<CheckJob>, Error> {
        let of_uid = ListParams::default().labels(&format!("{}={uid},{}", UID_LABEL, CHECK_LABEL));
        let jobs = self.api::<Job>().list(&of_uid).await?;
        if jobs.items.is_empty() {
            return Ok(vec![]);
        }
        // After the Jobs: the pod of a finished Job is then read in its final state.
        let pods = self.api::<Pod>().list(&of_uid).await?.items;
        let seen = |j: &Job| CheckJob { name: j.name_any(), job: job_state(j), pod: pod_of(&pods, &j.name_any()) };
        Ok(jobs.items.iter().map(seen).collect())
    }

    async fn sql(&self, key: &KeyRef) -> Result<(ObservedSql, SqlAuthor), Error> {
        let map = self.api::<ConfigMap>().get_opt(&key.name).await?;
        let author = SqlAuthor { config_map: key.name.clone(), author: map.as_ref().and_then(author_of) };
        let text = map.as_ref().and_then(|m| m.data.as_ref()?.get(&key.key));
        let binary = map.as_ref().and_then(|m| m.binary_data.as_ref()?.get(&key.key)).is_some();
        Ok((ObservedSql::of(text.map(String::as_str), binary), author))
    }

    /// The quotas, or why the API server refuses to show them: no window is opened then, and one that is open goes on.
    async fn quotas(&self) -> Result<Result<Vec<ResourceQuota>, String>, Error> {
        match self.api::<ResourceQuota>().list(&ListParams::default()).await {
            Ok(quotas) => Ok(Ok(quotas.items)),
            Err(kube::Error::Api(refused)) if refused.code == 403 => Ok(Err(refused.message.clone())),
            Err(error) => Err(error.into()),
        }
    }

    /// The workloads, each with what the first pod of its restart needs of quotas.
    async fn workloads(&self, ctx: &Context, migration: &CreditMigration) -> Result<Vec<(Workload, Needs)>, Error> {
        let mut wanted = migration.spec.application.workloads.clone();
        let checked = migration
            .spec
            .validation
            .checks
            .iter()
            .chain(&migration.spec.monitoring.checks)
            .filter_map(|c| c.workload.clone());
        for w in checked {
            if !wanted.contains(&w) {
                wanted.push(w);
            }
        }
        let key = &migration.spec.application.flag.config_map_key_ref;
        futures::future::try_join_all(wanted.into_iter().map(|w| self.workload(ctx, migration, w, key))).await
    }

    async fn workload(
        &self,
        ctx: &Context,
        migration: &CreditMigration,
        reference: WorkloadRef,
        key: &KeyRef,
    ) -> Result<(Workload, Needs), Error> {
        let WorkloadKind::Deployment = reference.kind;
        let Some(deployment) = self.api::<Deployment>().get_opt(&reference.name).await? else {
            return Ok((Workload::missing(reference), Needs::new()));
        };
        let restarted_for = restarted_for(&deployment);
        let pods = self.pods(&deployment, restarted_for.as_deref()).await?;
        let write = match migration.spec.application.workloads.contains(&reference) {
            true => {
                try_patch::<Deployment>(ctx, migration, &reference.name, |trial| {
                    marker_patch(None, Some(&trial.marker), deployment.resource_version())
                })
                .await
            }
            // Only checks name it: it is not restarted.
            false => DryRun::Untried,
        };
        let workload = Workload {
            write,
            reads_flag: deployment::reads_flag(&deployment, &key.name, &key.key),
            paused: deployment::paused(&deployment),
            unsettled: deployment::unsettled(&deployment),
            available: deployment::available(&deployment),
            reference,
            exists: true,
            switched_for: deployment.annotations().get(RESTARTED_FOR).cloned(),
            old_pods: pods.old(restarted_for.as_deref()),
            failure: rollout_failure(&deployment).or(pods.failure),
            restarted_for,
            rollout: pods.rollout,
            template_sha256: template_sha256(&deployment),
            pods: pods.own,
            foreign_pods: pods.foreign,
        };
        Ok((workload, pods.surge))
    }

    /// Pods that the Deployment's selector matches, terminating ones included, by the chain of their owners.
    async fn pods(&self, deployment: &Deployment, marker: Option<&str>) -> Result<WorkloadPods, Error> {
        let Some(selector) = deployment.spec.as_ref().map(|s| s.selector.clone()) else {
            return Ok(WorkloadPods::default());
        };
        // A selector that cannot be used must not count as "no old pods".
        let Ok(selector) = Selector::try_from(selector) else {
            return Ok(WorkloadPods { own: vec![UNKNOWN_POD], ..WorkloadPods::default() });
        };
        let pods = self.api::<Pod>().list(&ListParams::default().labels_from(&selector)).await?.items;
        // After the pods: a ReplicaSet that is removed in between makes its pods old, never foreign.
        let names: BTreeSet<&str> = pods.iter().filter_map(deployment::replica_set_of).map(|(name, _)| name).collect();
        let replica_sets = self.api::<ReplicaSet>();
        let found = futures::future::try_join_all(names.into_iter().map(|name| replica_sets.get_opt(name))).await?;
        let found: Vec<ReplicaSet> = found.into_iter().flatten().collect();
        Ok(count_pods(deployment, marker, &pods, &found))
    }
}

/// A decision, if it is one on this very migration and not on a predecessor of the same name.
fn decision_for(decision: MigrationDecision, name: &str, uid: &str) -> Option<ObservedDecision> {
    let ours = decision.spec.migration == name
        && decision.spec.migration_uid == uid
        && decision.metadata.deletion_timestamp.is_none();
    ours.then_some(ObservedDecision {
        name: decision.name_any(),
        at: decision.metadata.creation_timestamp?.0,
        by: decision.spec.by,
        decision: decision.spec.decision,
        digest: decision.spec.digest,
        reason: decision.spec.reason,
    })
}

/// Decisions made while no policy verified the names are not approvals. Requests to stop always count.
fn is_authenticated(decision: &ObservedDecision, since: Option<Time>) -> bool {
    since.is_none_or(|since| decision.at > since)
        || !matches!(decision.decision, DecisionKind::Approve | DecisionKind::Ready | DecisionKind::Keep)
}

fn job_state(job: &Job) -> JobState {
    let conditions = job.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let is_true = |type_: &str| conditions.iter().find(|c| c.type_ == type_ && c.status == "True");
    if let Some(failed) = is_true("Failed") {
        return JobState::Failed { reason: failed.reason.clone().unwrap_or_default() };
    }
    if is_true("Complete").is_some() { JobState::Complete } else { JobState::Active }
}

/// Whether the Job's pod is to be read: the Job has no running pod, or has failed.
fn pod_may_be_missing(job: &Job) -> bool {
    let ready = job.status.as_ref().and_then(|s| s.ready).unwrap_or_default();
    match job_state(job) {
        JobState::Active => ready == 0,
        JobState::Failed { .. } => true,
        JobState::Absent | JobState::Complete => false,
    }
}

/// The newest pod of a Job.
fn newest_pod<'a>(pods: &'a [Pod], job: &str) -> Option<&'a Pod> {
    let of_job = pods.iter().filter(|p| p.owner_references().iter().any(|o| o.kind == "Job" && o.name == job));
    of_job.max_by_key(|p| p.creation_timestamp().map(|t| t.0))
}

/// State of the newest pod of a Job.
fn pod_of(pods: &[Pod], job: &str) -> JobPod {
    newest_pod(pods, job).map_or(JobPod::Absent, pod_state)
}

fn pod_state(pod: &Pod) -> JobPod {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    // A container that never started has no id, even if the kubelet writes at the pod's time-out that it was
    // "terminated".
    if containers.iter().any(|c| c.container_id.as_deref().is_some_and(|id| !id.is_empty())) {
        return stopped_by(&status).map_or(JobPod::Started, JobPod::Stopped);
    }
    let reason =
        |reason: Option<&str>, message: Option<&str>| Some(PodReason::new(reason?, message.unwrap_or_default()));
    let waits = containers.iter().filter_map(|c| {
        let waiting = c.state.as_ref()?.waiting.as_ref()?;
        reason(waiting.reason.as_deref(), waiting.message.as_deref())
    });
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let unscheduled = conditions.iter().filter(|c| c.type_ == "PodScheduled" && c.status == "False");
    let why = waits
        .chain(unscheduled.filter_map(|c| reason(c.reason.as_deref(), c.message.as_deref())))
        .chain(reason(status.reason.as_deref(), status.message.as_deref()));
    // States that every pod goes through, and the time-out itself, explain nothing.
    let says_nothing = ["ContainerCreating", "PodInitializing", DEADLINE];
    JobPod::Waiting(why.into_iter().find(|why| !says_nothing.contains(&why.reason.as_str())))
}

/// Why the pod's container was ended, if its own program did not end it.
fn stopped_by(status: &PodStatus) -> Option<PodReason> {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let disrupted = conditions.iter().find(|c| c.type_ == "DisruptionTarget" && c.status == "True");
    if let Some(condition) = disrupted {
        let reason = condition.reason.as_deref().unwrap_or("DisruptionTarget");
        return Some(PodReason::new(reason, condition.message.as_deref().unwrap_or_default()));
    }
    if let Some(reason) = status.reason.as_deref().filter(|reason| *reason != DEADLINE) {
        return Some(PodReason::new(reason, status.message.as_deref().unwrap_or_default()));
    }
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    containers.iter().find_map(|container| {
        let states = [&container.state, &container.last_state];
        let ended = states.into_iter().flatten().find_map(|state| state.terminated.as_ref())?;
        let reason = ended.reason.as_deref().filter(|reason| !["Completed", "Error"].contains(reason))?;
        Some(PodReason::new(reason, ended.message.as_deref().unwrap_or_default()))
    })
}

/// The newest of the warnings that say why a pod does not start; `otherwise` if there is none.
fn refused(warnings: Vec<KubeEvent>, reasons: &[&str], otherwise: JobPod) -> JobPod {
    let at = |event: &KubeEvent| {
        let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|t| t.0);
        series.max(event.last_timestamp.as_ref().map(|t| t.0)).max(event.event_time.as_ref().map(|t| t.0))
    };
    let known = warnings.into_iter().filter(|e| e.reason.as_deref().is_some_and(|reason| reasons.contains(&reason)));
    let Some(newest) = known.max_by_key(at) else { return otherwise };
    JobPod::Waiting(Some(PodReason::new(newest.reason.unwrap_or_default(), newest.message.as_deref().unwrap_or(""))))
}

/// The author of a ConfigMap with SQL, if the admission policy has verified the name.
fn author_of(map: &ConfigMap) -> Option<String> {
    map.labels().contains_key(SQL_LABEL).then(|| map.annotations().get(SQL_AUTHOR).cloned()).flatten()
}

/// When an object was last written, by the API server's clock.
fn written_at(meta: &ObjectMeta) -> Option<Time> {
    meta.managed_fields.iter().flatten().filter_map(|entry| Some(entry.time.as_ref()?.0)).max()
}

fn restarted_for(deployment: &Deployment) -> Option<String> {
    deployment.spec.as_ref()?.template.metadata.as_ref()?.annotations.as_ref()?.get(RESTARTED_FOR).cloned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn decision(word: &str, change: impl FnOnce(&mut Value)) -> MigrationDecision {
        let mut value = json!({
            "apiVersion": "creditmigration.io/v1alpha1",
            "kind": "MigrationDecision",
            "metadata": {"name": "d", "namespace": "shop", "creationTimestamp": "2030-01-01T00:00:00Z"},
            "spec": {"migration": "m", "migrationUID": "1", "decision": word, "digest": "sha256:0", "by": "ann"},
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[rstest::rstest]
    #[case::on_this_migration("/spec/migrationUID", json!("1"), true)]
    #[case::on_its_deleted_predecessor("/spec/migrationUID", json!("0"), false)]
    #[case::on_another_one("/spec/migration", json!("n"), false)]
    #[case::withdrawn("/metadata/deletionTimestamp", json!("2030-01-02T00:00:00Z"), false)]
    #[case::never_stored("/metadata/creationTimestamp", Value::Null, false)]
    fn only_decisions_on_this_very_migration_count(
        #[case] path: &str,
        #[case] value: Value,
        #[case] counts: bool,
        #[values("Approve", "Reject", "Abort", "Rollback")] word: &str,
    ) {
        let (parent, key) = path.rsplit_once('/').unwrap();
        let d = decision(word, |d| d.pointer_mut(parent).unwrap()[key] = value);
        assert_eq!(decision_for(d, "m", "1").is_some(), counts);
    }

    fn waiting(reason: &str, message: &str) -> JobPod {
        JobPod::Waiting(Some(PodReason::new(reason, message)))
    }

    fn stopped(reason: &str, message: &str) -> JobPod {
        JobPod::Stopped(PodReason::new(reason, message))
    }

    #[rstest::rstest]
    #[case::none_yet(json!([]), JobPod::Absent)]
    #[case::of_another_job(json!([{"job": "k"}]), JobPod::Absent)]
    #[case::just_made(json!([{}]), JobPod::Waiting(None))]
    #[case::on_its_way(
        json!([{"state": {"waiting": {"reason": "ContainerCreating"}}}]),
        JobPod::Waiting(None)
    )]
    #[case::no_image(
        json!([{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]),
        waiting("ImagePullBackOff", "")
    )]
    #[case::no_node(
        json!([{"status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}}]),
        waiting("Unschedulable", "")
    )]
    #[case::ended_without_a_container(
        json!([{
            "state": {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown"}},
            "status": {"reason": "DeadlineExceeded"},
        }]),
        JobPod::Waiting(None)
    )]
    #[case::refused_by_its_node(json!([{"status": {"reason": "OutOfcpu"}}]), waiting("OutOfcpu", ""))]
    #[case::runs(json!([{"id": "containerd://1", "state": {"running": {}}}]), JobPod::Started)]
    #[case::failed(json!([{"id": "containerd://1", "state": {"terminated": {"exitCode": 1}}}]), JobPod::Started)]
    #[case::with_the_words_of_the_registry(
        json!([{"state": {"waiting": {"reason": "ErrImagePull", "message": "not\n found"}}}]),
        waiting("ErrImagePull", "not found")
    )]
    #[case::out_of_memory(
        json!([{"id": "containerd://1", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]),
        stopped("OOMKilled", "")
    )]
    #[case::evicted(
        json!([{
            "id": "containerd://1",
            "state": {"terminated": {"exitCode": 137, "reason": "Error"}},
            "status": {"reason": "Evicted", "message": "low on memory"},
        }]),
        stopped("Evicted", "low on memory")
    )]
    #[case::node_lost(
        json!([{
            "id": "containerd://1",
            "state": {"running": {}},
            "status": {"conditions": [{
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "taint",
            }]},
        }]),
        stopped("DeletionByTaintManager", "taint")
    )]
    #[case::the_newest_counts(
        json!([{"id": "containerd://1", "made": "2030-01-01T00:00:01Z"}, {"made": "2030-01-01T00:00:02Z"}]),
        JobPod::Waiting(None)
    )]
    fn a_pod_whose_container_never_started_is_not_one_that_failed(#[case] pods: Value, #[case] seen: JobPod) {
        let pod = |p: &Value| {
            let mut status = if p["status"].is_null() { json!({}) } else { p["status"].clone() };
            if !p["id"].is_null() || !p["state"].is_null() {
                let id = p["id"].as_str().unwrap_or_default();
                let container = json!({
                    "name": "check", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                    "containerID": id, "state": p["state"],
                });
                status["containerStatuses"] = json!([container]);
            }
            let owner = json!({
                "apiVersion": "batch/v1", "kind": "Job", "name": p["job"].as_str().unwrap_or("j"), "uid": "1",
            });
            let made = p["made"].as_str().unwrap_or("2030-01-01T00:00:00Z");
            let meta = json!({"ownerReferences": [owner], "creationTimestamp": made});
            serde_json::from_value(json!({"metadata": meta, "status": status})).unwrap()
        };
        let pods: Vec<Pod> = pods.as_array().unwrap().iter().map(pod).collect();
        assert_eq!(pod_of(&pods, "j"), seen);
    }

    #[test]
    fn the_newest_warning_says_why_there_is_no_pod() {
        let event = |reason: &str, at: &str, message: &str| -> KubeEvent {
            let regarding = json!({"kind": "Job", "name": "j"});
            let value = json!({
                "metadata": {"name": at}, "involvedObject": regarding, "reason": reason, "message": message,
                "lastTimestamp": at,
            });
            serde_json::from_value(value).unwrap()
        };
        let first = event("FailedCreate", "2030-01-01T00:00:01Z", "no account");
        let last = event("FailedCreate", "2030-01-01T00:00:03Z", "exceeded quota: must specify limits.cpu");
        let other = event("BackOff", "2030-01-01T00:00:04Z", "other");
        let seen = refused(vec![first, last, other.clone()], &["FailedCreate"], JobPod::Absent);
        assert_eq!(seen, waiting("FailedCreate", "exceeded quota: must specify limits.cpu"));
        assert_eq!(refused(vec![other], &["FailedCreate"], JobPod::Absent), JobPod::Absent);
    }

    #[rstest::rstest]
    #[case::starts(json!({"active": 1, "ready": 0}), true)]
    #[case::runs(json!({"active": 1, "ready": 1}), false)]
    #[case::has_no_pod(json!({}), true)]
    #[case::failed(json!({"conditions": [{"type": "Failed", "status": "True"}]}), true)]
    #[case::complete(json!({"conditions": [{"type": "Complete", "status": "True"}]}), false)]
    fn only_pods_that_may_be_missing_are_asked_for(#[case] status: Value, #[case] asked: bool) {
        let job: Job = serde_json::from_value(json!({"metadata": {"name": "j"}, "status": status})).unwrap();
        assert_eq!(pod_may_be_missing(&job), asked);
    }

    #[rstest::rstest]
    #[case("Approve", false)]
    #[case("Ready", false)]
    #[case("Keep", false)]
    #[case("Reject", true)]
    #[case("Abort", true)]
    #[case("Rollback", true)]
    fn what_is_older_than_the_policy_approves_nothing(#[case] word: &str, #[case] counts: bool) {
        let d = decision_for(decision(word, |_| {}), "m", "1").unwrap();
        let second = jiff::SignedDuration::from_secs(1);
        assert!(is_authenticated(&d, None), "without a policy the window stays shut anyway");
        assert!(is_authenticated(&d, Some(d.at - second)));
        assert_eq!(is_authenticated(&d, Some(d.at)), counts);
        assert_eq!(is_authenticated(&d, Some(d.at + second)), counts);
    }
}
