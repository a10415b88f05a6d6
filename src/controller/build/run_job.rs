//! The run object and its Job.

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec},
        core::v1::{
            Capabilities, Container, EnvVar, EnvVarSource, LocalObjectReference, ObjectFieldSelector,
            PodSecurityContext, PodSpec, PodTemplateSpec, ResourceRequirements, SeccompProfile, SecurityContext,
            Toleration,
        },
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use kube::ResourceExt;

use super::{labels, meta, owner, volumes};
use crate::{
    api::{
        CreditMigration, CreditMigrationSpec, MigrationRun, MigrationRunSpec, Placement, RunnerResources, Task, mounts,
        runner_name,
    },
    machine::StartRun,
};

/// User and group of runner pods, as in the image.
const UID: i64 = 65532;
/// The machine retries a pod that prepares; the kubelet restarts a window's pod, which needs no API server.
const WINDOW_POD_RETRIES: i32 = 6;
/// Seconds after which a pinned pod on a lost node is replaced.
const LOST_NODE_SECONDS: i64 = 10;
/// Annotations that keep the cluster autoscaler and Karpenter from moving a pod: a task would start again.
pub(super) const STAYS: [(&str, &str); 2] =
    [("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"), ("karpenter.sh/do-not-disrupt", "true")];

/// The run object.
pub fn run(migration: &CreditMigration, start: &StartRun) -> MigrationRun {
    MigrationRun {
        metadata: meta(start.name.clone(), migration, Some(start.spec.task)),
        spec: start.spec.clone(),
        status: None,
    }
}

/// The Job of a run. It satisfies the Pod Security standard `restricted`. A pinned pod is of this PriorityClass, unless
/// its name is empty.
pub fn job(run: &MigrationRun, image: &str, timeout_seconds: Option<u64>, priority_class: &str) -> Job {
    let MigrationRunSpec { migration, migration_uid, task, attempt: _, plan, inputs: _, window: _ } = &run.spec;
    let labels = labels(migration, migration_uid, Some(*task));
    let in_window = task.is_window();
    Job {
        metadata: ObjectMeta {
            name: run.metadata.name.clone(),
            namespace: run.metadata.namespace.clone(),
            labels: Some(labels.clone()),
            owner_references: Some(owner(run)),
            ..Default::default()
        },
        spec: Some(JobSpec {
            backoff_limit: Some(if in_window { WINDOW_POD_RETRIES } else { 0 }),
            active_deadline_seconds: timeout_seconds.and_then(|s| i64::try_from(s).ok()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: Some(STAYS.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
                    ..Default::default()
                }),
                spec: Some(pod(run, plan, image, priority_class)),
            },
            ..Default::default()
        }),
        status: None,
    }
}

/// A pod on a lost node is replaced after [`LOST_NODE_SECONDS`] instead of the default of 300 s: until then no other
/// pod starts, 300 s is the default limit of a whole window, and meanwhile no trigger is measured.
fn tolerations() -> Vec<Toleration> {
    ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]
        .map(|taint| Toleration {
            key: Some(taint.into()),
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            toleration_seconds: Some(LOST_NODE_SECONDS),
            ..Default::default()
        })
        .into()
}

fn pod(run: &MigrationRun, plan: &CreditMigrationSpec, image: &str, priority_class: &str) -> PodSpec {
    let pinned = run.spec.task.spec().placement == Placement::Pinned;
    let (volumes, mounts): (Vec<_>, Vec<_>) = volumes::for_task(plan, run.spec.task).into_iter().unzip();
    let pull = &plan.runner.image_pull_secrets;
    PodSpec {
        service_account_name: Some(runner_name(&run.spec.migration)),
        image_pull_secrets: (!pull.is_empty())
            .then(|| pull.iter().map(|s| LocalObjectReference { name: s.name.clone() }).collect()),
        // The kubelet restarts a crashed window container in place: faster than a new pod, and without the API server.
        restart_policy: Some(if run.spec.task.is_window() { "OnFailure" } else { "Never" }.into()),
        termination_grace_period_seconds: Some(run.spec.task.spec().grace_seconds),
        tolerations: pinned.then(tolerations),
        // A node that is full preempts or evicts others first.
        priority_class_name: (pinned && !priority_class.is_empty()).then(|| priority_class.to_owned()),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(UID),
            run_as_group: Some(UID),
            fs_group: Some(UID),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..Default::default() }),
            ..Default::default()
        }),
        containers: vec![Container {
            name: "runner".into(),
            image: Some(image.into()),
            args: Some(vec!["runner".into()]),
            env: Some(vec![
                env(mounts::ENV_RUN, &run.name_any()),
                env(mounts::ENV_NAMESPACE, &run.namespace().unwrap_or_default()),
                EnvVar {
                    name: mounts::ENV_POD.into(),
                    value_from: Some(EnvVarSource {
                        field_ref: Some(ObjectFieldSelector {
                            field_path: "metadata.name".into(),
                            ..Default::default()
                        }),
                        ..Default::default()
                    }),
                    ..Default::default()
                },
            ]),
            resources: Some(resources(run.spec.task, &plan.runner.resources)),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                read_only_root_filesystem: Some(true),
                run_as_non_root: Some(true),
                capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), ..Default::default() }),
                ..Default::default()
            }),
            volume_mounts: Some(mounts),
            ..Default::default()
        }],
        volumes: Some(volumes),
        ..Default::default()
    }
}

/// What the pod of a task requests, and its limits.
pub(in crate::controller) fn resources(task: Task, given: &RunnerResources) -> ResourceRequirements {
    let memory = match task.is_window() {
        // A node that is short of memory evicts first what uses more than it has requested.
        true => given.memory_limit(),
        false => given.requests.memory.as_deref().unwrap_or("64Mi"),
    };
    let list = |cpu: Option<&str>, memory: &str, disk: &Option<String>| {
        let amounts = [("cpu", cpu), ("memory", Some(memory)), ("ephemeral-storage", disk.as_deref())];
        Some(amounts.into_iter().filter_map(|(name, amount)| Some(quantity(name, amount?))).collect())
    };
    ResourceRequirements {
        requests: list(Some(given.cpu_request()), memory, &given.requests.ephemeral_storage),
        limits: list(given.limits.cpu.as_deref(), given.memory_limit(), &given.limits.ephemeral_storage),
        ..Default::default()
    }
}

fn env(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.into(), value: Some(value.into()), ..Default::default() }
}

fn quantity(name: &str, value: &str) -> (String, Quantity) {
    (name.into(), Quantity(value.into()))
}
