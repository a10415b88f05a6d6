//! Objects that a run needs, built from plain values. Pure.

mod check;
mod volumes;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec},
        core::v1::{
            Capabilities, Container, EnvVar, EnvVarSource, LocalObjectReference, ObjectFieldSelector,
            PodSecurityContext, PodSpec, PodTemplateSpec, ResourceRequirements, SeccompProfile, SecurityContext,
            ServiceAccount, Toleration,
        },
        rbac::v1::{RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};
use kube::{Resource, ResourceExt};

use crate::{
    api::{
        CreditMigration, CreditMigrationSpec, MIGRATION_LABEL, MigrationRun, MigrationRunSpec, TASK_LABEL, Task,
        UID_LABEL, mounts,
    },
    machine::StartRun,
};

/// Selector for everything that the controller makes.
pub const MANAGED_SELECTOR: &str = "app.kubernetes.io/managed-by=credit-migration-operator";

/// User and group of runner pods, as in the image.
const UID: i64 = 65532;
/// Restarts of a preparing pod are the machine's business; those of a window pod the kubelet's, which needs no API server.
const WINDOW_POD_RETRIES: i32 = 6;
/// Seconds from SIGTERM to SIGKILL.
const GRACE: i64 = 10;
/// The same of a pod that uploads: parts of an upload that is not aborted are kept, and paid for, until somebody finds them.
const UPLOAD_GRACE: i64 = 60;
/// The same of a window pod: one that nobody succeeds, as in a namespace that is being deleted, runs the down SQL meanwhile.
const WINDOW_GRACE: i64 = 120;

/// Seconds after which the pod of a window whose node is lost is given up.
const LOST_NODE: i64 = 10;
/// Annotation that the cluster autoscaler heeds.
const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";

pub use check::check_job;

fn labels(name: &str, uid: &str, task: Option<Task>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "credit-migration-runner".to_owned()),
        ("app.kubernetes.io/managed-by".to_owned(), super::MANAGER.to_owned()),
        (MIGRATION_LABEL.to_owned(), name.to_owned()),
        (UID_LABEL.to_owned(), uid.to_owned()),
    ]);
    labels.extend(task.map(|t| (TASK_LABEL.to_owned(), t.slug().to_owned())));
    labels
}

fn owner<K: Resource<DynamicType = ()>>(object: &K) -> Vec<OwnerReference> {
    object.controller_owner_ref(&()).into_iter().collect()
}

/// Name of the ServiceAccount and the RoleBinding of a migration's pods.
pub fn runner_name(migration: &str) -> String {
    format!("{migration}-runner")
}

fn meta(name: String, migration: &CreditMigration, task: Option<Task>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: migration.namespace(),
        labels: Some(labels(&migration.name_any(), &migration.uid().unwrap_or_default(), task)),
        owner_references: Some(owner(migration)),
        ..Default::default()
    }
}

/// ServiceAccount of a migration's pods.
pub fn service_account(migration: &CreditMigration) -> ServiceAccount {
    ServiceAccount { metadata: meta(runner_name(&migration.name_any()), migration, None), ..Default::default() }
}

/// Binds that ServiceAccount to one of the runner's ClusterRoles, in this namespace only. `suffix` tells bindings apart:
/// empty for the role that every task needs.
pub fn role_binding(migration: &CreditMigration, cluster_role: &str, suffix: &str) -> RoleBinding {
    let name = runner_name(&migration.name_any());
    RoleBinding {
        metadata: meta(format!("{name}{suffix}"), migration, None),
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "ClusterRole".into(),
            name: cluster_role.into(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name,
            namespace: migration.namespace(),
            ..Default::default()
        }]),
    }
}

/// The run object.
pub fn run(migration: &CreditMigration, start: &StartRun) -> MigrationRun {
    MigrationRun {
        metadata: meta(start.name.clone(), migration, Some(start.spec.task)),
        spec: start.spec.clone(),
        status: None,
    }
}

/// The Job of a run. It satisfies the Pod Security standard `restricted`.
pub fn job(run: &MigrationRun, image: &str, timeout_seconds: Option<u64>) -> Job {
    let MigrationRunSpec { migration, migration_uid, task, attempt: _, plan, inputs: _, window: _ } = &run.spec;
    let labels = labels(migration, migration_uid, Some(*task));
    let in_window = matches!(task, Task::Window | Task::RollbackWindow);
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
                    annotations: keeps_its_node(*task)
                        .then(|| BTreeMap::from([(SAFE_TO_EVICT.to_owned(), "false".to_owned())])),
                    ..Default::default()
                }),
                spec: Some(pod(run, plan, image, in_window)),
            },
            ..Default::default()
        }),
        status: None,
    }
}

/// Pods that the cluster autoscaler must not move: those of windows, and those that have counted failures of checks.
fn keeps_its_node(task: Task) -> bool {
    matches!(task, Task::Window | Task::RollbackWindow | Task::Validate | Task::Monitor)
}

/// A lost node's pod is given up after [`LOST_NODE`] instead of the 300 s that Kubernetes adds by itself: until then no other one
/// comes, and that is as long as a window by default may last.
fn tolerations() -> Vec<Toleration> {
    ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]
        .map(|taint| Toleration {
            key: Some(taint.into()),
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            toleration_seconds: Some(LOST_NODE),
            ..Default::default()
        })
        .into()
}

fn grace(task: Task) -> i64 {
    match task {
        Task::Window | Task::RollbackWindow => WINDOW_GRACE,
        Task::Backup | Task::ExportKeyUsers => UPLOAD_GRACE,
        _ => GRACE,
    }
}

fn pod(run: &MigrationRun, plan: &CreditMigrationSpec, image: &str, in_window: bool) -> PodSpec {
    let (volumes, mounts): (Vec<_>, Vec<_>) = volumes::of(plan, run.spec.task).into_iter().unzip();
    let pull = &plan.runner.image_pull_secrets;
    PodSpec {
        service_account_name: Some(runner_name(&run.spec.migration)),
        image_pull_secrets: (!pull.is_empty())
            .then(|| pull.iter().map(|s| LocalObjectReference { name: s.name.clone() }).collect()),
        // A crashed window container is started again in place by the kubelet: quicker than a new pod, and without the API server.
        restart_policy: Some(if in_window { "OnFailure" } else { "Never" }.into()),
        termination_grace_period_seconds: Some(grace(run.spec.task)),
        tolerations: in_window.then(tolerations),
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
            resources: Some(ResourceRequirements {
                requests: Some(BTreeMap::from([quantity("cpu", "50m"), quantity("memory", "64Mi")])),
                limits: Some(BTreeMap::from([quantity("memory", "512Mi")])),
                ..Default::default()
            }),
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

fn env(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.into(), value: Some(value.into()), ..Default::default() }
}

fn quantity(name: &str, value: &str) -> (String, Quantity) {
    (name.into(), Quantity(value.into()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        api::{RunInputs, WindowCommand, WindowOrder},
        machine::CheckJobStart,
    };

    const TASKS: [Task; 14] = [
        Task::Preflight,
        Task::CodeBackup,
        Task::ExportKeyUsers,
        Task::DayCheck,
        Task::WeekReview,
        Task::Notify,
        Task::Backup,
        Task::VerifyBackup,
        Task::Rehearse,
        Task::Window,
        Task::Validate,
        Task::Monitor,
        Task::RollbackWindow,
        Task::Cleanup,
    ];

    /// As the API server would give it back.
    fn migration() -> CreditMigration {
        serde_json::from_value(json!({
            "apiVersion": "creditmigration.io/v1alpha1",
            "kind": "CreditMigration",
            "metadata": {"name": "credit-v2", "namespace": "shop", "uid": "11111111-2222-3333-4444-555555555555"},
            "spec": {
                "requestedBy": "alice",
                "database": {
                    "name": "shop",
                    "connection": {
                        "secretRef": {"name": "shop-db", "key": "url"},
                        "caSecretRef": {"name": "shop-ca", "key": "root.pem"},
                    },
                    "applicationRoles": ["shop"],
                },
                "migration": {
                    "up": {"configMapKeyRef": {"name": "credit-v2-sql", "key": "0003_up.sql"}},
                    "down": {"configMapKeyRef": {"name": "credit-v2-down", "key": "0003_down.sql"}},
                },
                "application": {
                    "flag": {"configMapKeyRef": {"name": "shop", "key": "CREDIT_SYSTEM_VERSION"}},
                    "workloads": [{"kind": "Deployment", "name": "shop"}],
                },
                "backup": {"store": {"url": "s3://backups/credit-migration/", "secretRef": {"name": "backup-bucket"}}},
                "runner": {"imagePullSecrets": [{"name": "registry"}]},
            },
        }))
        .unwrap()
    }

    /// Run and Job, as they are made for a task.
    fn made(task: Task, timeout_seconds: Option<u64>) -> Job {
        made_for(&migration(), task, timeout_seconds)
    }

    fn made_for(migration: &CreditMigration, task: Task, timeout_seconds: Option<u64>) -> Job {
        let in_window = matches!(task, Task::Window | Task::RollbackWindow);
        let start = StartRun {
            name: format!("credit-v2-{}-1", task.slug()),
            spec: MigrationRunSpec {
                migration: migration.name_any(),
                migration_uid: migration.uid().unwrap(),
                task,
                attempt: 1,
                plan: migration.spec.clone(),
                inputs: RunInputs {
                    up_sha256: "sha256:up".into(),
                    down_sha256: "sha256:down".into(),
                    ..Default::default()
                },
                window: in_window.then_some(WindowOrder { command: WindowCommand::Standby, deadline: None }),
            },
            image: "registry.example/credit-migration-operator:1.2.3".into(),
            timeout_seconds,
        };
        let mut run = run(migration, &start);
        run.metadata.uid = Some("66666666-7777-8888-9999-000000000000".into());
        job(&run, &start.image, start.timeout_seconds)
    }

    /// Compares with a file of `tests/golden`; `UPDATE_GOLDEN=1` writes it.
    fn golden(name: &str, object: &impl serde::Serialize) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.yaml"));
        let found = serde_yaml_ng::to_string(object).unwrap();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &found).unwrap();
        }
        let wanted = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == wanted, "{} differs; UPDATE_GOLDEN=1 writes it. Found:\n{found}", path.display());
    }

    #[test]
    fn objects_of_a_run() {
        golden("job-preparing", &made(Task::Backup, Some(21_600)));
        golden("job-window", &made(Task::Window, None));
        let start = CheckJobStart {
            name: "credit-v2-monitor-c0n1".into(),
            check: "own".into(),
            job: serde_json::from_value(json!({"image": "shop-check:1", "timeout": "90s"})).unwrap(),
        };
        golden("job-check", &check_job(&migration(), &start));
        golden("service-account", &service_account(&migration()));
        golden("role-binding", &role_binding(&migration(), "credit-migration-runner", ""));
    }

    /// What the Pod Security standard `restricted` refuses, as `path: value`.
    fn refused(pod: &Value) -> Vec<String> {
        let mut found = vec![];
        let mut demand = |good: bool, what: String| {
            if !good {
                found.push(what);
            }
        };
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            demand(pod[field].as_bool() != Some(true), field.into());
        }
        let security = &pod["securityContext"];
        for volume in pod["volumes"].as_array().into_iter().flatten() {
            let kind = volume.as_object().unwrap().keys().find(|k| *k != "name").unwrap().clone();
            demand(
                [
                    "configMap",
                    "csi",
                    "downwardAPI",
                    "emptyDir",
                    "ephemeral",
                    "persistentVolumeClaim",
                    "projected",
                    "secret",
                ]
                .contains(&kind.as_str()),
                format!("volume {kind}"),
            );
        }
        for list in ["containers", "initContainers"] {
            for c in pod[list].as_array().into_iter().flatten() {
                let own = &c["securityContext"];
                let name = &c["name"];
                demand(own["privileged"].as_bool() != Some(true), format!("{name} privileged"));
                demand(own["allowPrivilegeEscalation"] == false, format!("{name} allowPrivilegeEscalation"));
                demand(own["capabilities"]["drop"] == json!(["ALL"]), format!("{name} capabilities.drop"));
                demand(own["capabilities"]["add"].is_null(), format!("{name} capabilities.add"));
                let non_root =
                    if own["runAsNonRoot"].is_null() { &security["runAsNonRoot"] } else { &own["runAsNonRoot"] };
                demand(*non_root == true, format!("{name} runAsNonRoot"));
                let user = if own["runAsUser"].is_null() { &security["runAsUser"] } else { &own["runAsUser"] };
                demand(user.as_i64() != Some(0), format!("{name} runAsUser"));
                let profile =
                    if own["seccompProfile"].is_null() { &security["seccompProfile"] } else { &own["seccompProfile"] };
                demand(
                    profile["type"] == "RuntimeDefault" || profile["type"] == "Localhost",
                    format!("{name} seccompProfile"),
                );
                demand(
                    c["ports"].as_array().into_iter().flatten().all(|p| p["hostPort"].is_null()),
                    format!("{name} hostPort"),
                );
            }
        }
        found
    }

    #[test]
    fn pods_satisfy_the_restricted_standard() {
        for task in TASKS {
            let pod = serde_json::to_value(made(task, None).spec.unwrap().template.spec.unwrap()).unwrap();
            assert_eq!(refused(&pod), Vec::<String>::new(), "{task:?}");
            // Beyond the standard: nothing can be written but /tmp.
            for c in pod["containers"].as_array().unwrap() {
                assert_eq!(c["securityContext"]["readOnlyRootFilesystem"], true);
                for mount in c["volumeMounts"].as_array().unwrap() {
                    assert_eq!(mount["readOnly"] == true, mount["mountPath"] != "/tmp", "{mount}");
                }
            }
            // Each violation would be found.
            for (path, value) in [
                ("/hostNetwork", json!(true)),
                ("/securityContext/runAsUser", json!(0)),
                ("/securityContext/seccompProfile", Value::Null),
                ("/containers/0/securityContext/allowPrivilegeEscalation", json!(true)),
                ("/containers/0/securityContext/capabilities", json!({})),
                ("/containers/0/securityContext/runAsNonRoot", json!(false)),
                ("/volumes/0", json!({"name": "x", "hostPath": {"path": "/"}})),
            ] {
                let mut pod = pod.clone();
                pod["hostNetwork"] = json!(false);
                *pod.pointer_mut(path).unwrap() = value;
                assert_eq!(refused(&pod).len(), 1, "{path}");
            }
        }
    }

    #[test]
    fn secrets_come_by_optional_mounts_only() {
        let pod = made(Task::Window, None).spec.unwrap().template.spec.unwrap();
        let container = &pod.containers[0];
        assert_eq!(container.args.as_deref(), Some(["runner".to_owned()].as_slice()));
        assert!(container.env_from.is_none());
        for e in container.env.iter().flatten() {
            assert!(e.value_from.as_ref().is_none_or(|v| v.secret_key_ref.is_none()), "{e:?}");
        }
        let secrets: Vec<_> = pod.volumes.iter().flatten().filter_map(|v| v.secret.as_ref()).collect();
        assert_eq!(secrets.len(), 3);
        for s in secrets {
            // A missing one must become the runner's message, not a pod that never starts.
            assert_eq!((s.optional, s.default_mode), (Some(true), Some(0o440)), "{s:?}");
        }
    }

    /// The API server cuts a generated name to 63 characters; the policy knows a run's pod by the whole name of its Job.
    #[test]
    fn names_of_pods_are_not_cut() {
        for task in TASKS {
            let longest = format!("{}-{}-999999-", "m".repeat(40), task.slug());
            assert!(longest.len() + 5 <= 63, "{longest}");
        }
    }

    #[test]
    fn without_pull_secrets_the_field_is_left_out() {
        let mut migration = migration();
        migration.spec.runner.image_pull_secrets.clear();
        let pod = made_for(&migration, Task::Backup, None).spec.unwrap().template.spec.unwrap();
        assert_eq!(pod.image_pull_secrets, None);
        let spec = serde_json::to_value(&migration.spec).unwrap();
        assert!(spec["runner"].get("imagePullSecrets").is_none(), "{spec}");
    }

    #[test]
    fn a_window_does_not_wait_for_a_lost_node() {
        for task in TASKS {
            let template = made(task, None).spec.unwrap().template;
            let window = matches!(task, Task::Window | Task::RollbackWindow);
            let pod = template.spec.unwrap();
            let patience: Vec<_> = pod.tolerations.iter().flatten().map(|t| t.toleration_seconds).collect();
            assert_eq!(patience, if window { vec![Some(10); 2] } else { vec![] }, "{task:?}");
            let stays = template.metadata.unwrap().annotations.unwrap_or_default();
            let stage = matches!(task, Task::Validate | Task::Monitor);
            assert_eq!(stays.get(SAFE_TO_EVICT).map(String::as_str), (window || stage).then_some("false"), "{task:?}");
            // An upload is aborted, a window's way back runs: both need their time.
            let grace = pod.termination_grace_period_seconds.unwrap();
            let wanted = if window {
                120
            } else if matches!(task, Task::Backup | Task::ExportKeyUsers) {
                60
            } else {
                10
            };
            assert_eq!(grace, wanted, "{task:?}");
        }
    }

    #[test]
    fn who_owns_what() {
        let (job, migration) = (made(Task::Backup, None), migration());
        let owner = |o: &ObjectMeta| o.owner_references.clone().unwrap().remove(0);
        let of_job = owner(&job.metadata);
        assert_eq!(
            (of_job.kind.as_str(), of_job.name.as_str(), of_job.controller),
            ("MigrationRun", "credit-v2-backup-1", Some(true))
        );
        let of_account = owner(&service_account(&migration).metadata);
        assert_eq!((of_account.kind, Some(of_account.uid)), ("CreditMigration".to_owned(), migration.uid()));
        // A preparing pod is tried again by the machine, a window's pod by the kubelet, which needs no API server.
        let limits = |j: Job| {
            let s = j.spec.unwrap();
            (s.backoff_limit, s.active_deadline_seconds, s.template.spec.unwrap().restart_policy.unwrap())
        };
        assert_eq!(limits(made(Task::Backup, Some(60))), (Some(0), Some(60), "Never".to_owned()));
        assert_eq!(limits(made(Task::RollbackWindow, None)), (Some(6), None, "OnFailure".to_owned()));
    }
}
