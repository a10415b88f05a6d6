//! Objects against golden files, the Pod Security standard and each other.

use std::path::PathBuf;

use k8s_openapi::api::batch::v1::Job;
use serde_json::{Value, json};

use super::{run_job::STAYS, *};
use crate::{
    api::{MigrationRunSpec, RunInputs, WindowCommand, WindowOrder},
    machine::{CheckJobStart, StartRun},
};

const TASKS: [Task; 16] = [
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
    Task::RehearseRollback,
    Task::Cleanup,
    Task::DropParked,
];

/// As the API server would return it.
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

/// Run and Job of a task.
fn made(task: Task, timeout_seconds: Option<u64>) -> Job {
    made_for(&migration(), task, timeout_seconds)
}

fn made_for(migration: &CreditMigration, task: Task, timeout_seconds: Option<u64>) -> Job {
    made_of_class(migration, task, timeout_seconds, "migrations")
}

fn made_of_class(migration: &CreditMigration, task: Task, timeout_seconds: Option<u64>, class: &str) -> Job {
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
    job(&run, &start.image, start.timeout_seconds, class)
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
            let non_root = if own["runAsNonRoot"].is_null() { &security["runAsNonRoot"] } else { &own["runAsNonRoot"] };
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
        // In addition to the standard: only /tmp is writable.
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
        // A missing Secret must become the runner's message, not a pod that never starts.
        assert_eq!((s.optional, s.default_mode), (Some(true), Some(0o440)), "{s:?}");
    }
}

/// The API server cuts a generated name to 63 characters; the policy identifies a run's pod by the whole name of its
/// Job.
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
fn a_pod_has_the_resources_of_the_spec() {
    let mut migration = migration();
    let given = json!({"requests": {"cpu": "1", "ephemeralStorage": "1Gi"}, "limits": {"memory": "2Gi", "cpu": "4"}});
    migration.spec.runner.resources = serde_json::from_value(given).unwrap();
    for (task, memory) in [(Task::Backup, "64Mi"), (Task::Window, "2Gi")] {
        let pod = made_for(&migration, task, None).spec.unwrap().template.spec.unwrap();
        let resources = serde_json::to_value(&pod.containers[0].resources).unwrap();
        let requests = json!({"cpu": "1", "memory": memory, "ephemeral-storage": "1Gi"});
        assert_eq!(resources, json!({"requests": requests, "limits": {"memory": "2Gi", "cpu": "4"}}), "{task:?}");
    }
}

#[test]
fn neither_a_window_nor_a_trigger_waits_for_a_node_that_is_lost_or_full() {
    for task in TASKS {
        let template = made(task, None).spec.unwrap().template;
        let window = matches!(task, Task::Window | Task::RollbackWindow);
        let pod = template.spec.unwrap();
        let tolerated: Vec<_> = pod.tolerations.iter().flatten().map(|t| t.toleration_seconds).collect();
        // No task is moved by an autoscaler, which would start it again and again.
        let annotations = template.metadata.unwrap().annotations.unwrap_or_default();
        for (name, value) in STAYS {
            assert_eq!(annotations.get(name).map(String::as_str), Some(value), "{task:?}");
        }
        // A node that is short of memory evicts what uses more than it has requested.
        let resources = pod.containers[0].resources.clone().unwrap();
        let (asked, limit) = (&resources.requests.unwrap()["memory"], &resources.limits.unwrap()["memory"]);
        assert_eq!(asked == limit, window, "{task:?}");
        let stage = matches!(task, Task::Validate | Task::Monitor);
        assert_eq!(tolerated, if window || stage { vec![Some(10); 2] } else { vec![] }, "{task:?}");
        assert_eq!(pod.priority_class_name.as_deref(), (window || stage).then_some("migrations"), "{task:?}");
        // Aborting an upload and rolling back a window take time.
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
fn without_a_priority_class_of_the_values_none_is_named() {
    let pod = made_of_class(&migration(), Task::Window, None, "").spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.priority_class_name, None);
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
    // The machine retries a pod that prepares; the kubelet restarts a window's pod, which needs no API server.
    let limits = |j: Job| {
        let s = j.spec.unwrap();
        (s.backoff_limit, s.active_deadline_seconds, s.template.spec.unwrap().restart_policy.unwrap())
    };
    assert_eq!(limits(made(Task::Backup, Some(60))), (Some(0), Some(60), "Never".to_owned()));
    assert_eq!(limits(made(Task::RollbackWindow, None)), (Some(6), None, "OnFailure".to_owned()));
}

/// A Secret that the policy on migrations does not see could be named by a user who may not read it.
#[test]
fn the_policy_on_migrations_sees_every_secret() {
    fn visit(schema: &Value, path: &str, found: &mut Vec<String>) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            // There are two connections.
            let parents = if path.ends_with(".connection") { 2 } else { 1 };
            let parent: Vec<&str> = path.rsplit('.').take(parents).collect();
            let parent = parent.into_iter().rev().collect::<Vec<_>>().join(".");
            let lower = name.to_lowercase();
            if lower.ends_with("secretref") || lower.ends_with("secrets") {
                found.push(format!("{parent}.{name}"));
            }
            visit(property, &format!("{path}.{name}"), found);
            visit(&property["items"], &format!("{path}.{name}"), found);
        }
    }
    let crd = serde_json::to_value(<CreditMigration as kube::CustomResourceExt>::crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut found = vec![];
    visit(schema, "spec", &mut found);
    let policy = include_str!(
        "../../../charts/credit-migration-operator/files/admissionpolicies/creditmigrations.creditmigration.io.yaml"
    )
    .replace('?', "");
    let missing: Vec<_> = found.iter().filter(|field| !policy.contains(field.as_str())).collect();
    assert!(found.len() > 10 && missing.is_empty(), "not in the policy: {missing:?}");
}

/// A task that the policy on runners does not list could be forged.
#[test]
fn the_policy_on_runners_lists_every_task() {
    let policy = include_str!(
        "../../../charts/credit-migration-operator/files/admissionpolicies/runners.creditmigration.io.yaml"
    );
    let slugs: Vec<&str> = Task::ALL.iter().map(|task| task.slug()).collect();
    let listed = format!("find('-({})-[0-9]+-[a-z0-9]{{5}}$')", slugs.join("|"));
    assert!(policy.contains(&listed), "{listed} is not in the policy");
}
