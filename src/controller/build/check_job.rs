//! The Job of a `job` check: the team's own image, with the Pod Security of the runner's pods and without a token.

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule},
        core::v1::{
            Capabilities, Container, EnvFromSource, LocalObjectReference, PodSecurityContext, PodSpec, PodTemplateSpec,
            SeccompProfile, SecretEnvSource, SecurityContext,
        },
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt;

use super::{labels, owner};
use crate::{
    api::{CHECK_LABEL, CreditMigration},
    machine::CheckJobStart,
};

/// How long a finished Job is retained, in seconds: its result is in the status. A check that is measured every 10 s
/// makes 360 in an hour.
const FINISHED_JOB_TTL: i32 = 120;

/// Seconds, in addition to the check's own time-out, in which its pod must be scheduled. The pod itself has the check's
/// time-out, so a Job that reaches its deadline had no pod that could have answered: that is no measurement.
const SCHEDULING_ALLOWANCE: u64 = 60;

/// The Job of one measurement.
pub fn check_job(migration: &CreditMigration, start: &CheckJobStart) -> Job {
    let CheckJobStart { name, check, job } = start;
    let mut labels = labels(&migration.name_any(), &migration.uid().unwrap_or_default(), None);
    labels.insert("app.kubernetes.io/name".into(), "credit-migration-check".into());
    labels.insert(CHECK_LABEL.into(), check.clone());
    let list = |items: &[String]| (!items.is_empty()).then(|| items.to_vec());
    let pull = &migration.spec.runner.image_pull_secrets;
    let seconds = std::time::Duration::from(job.timeout).as_secs().max(1);
    Job {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: migration.namespace(),
            labels: Some(labels.clone()),
            owner_references: Some(owner(migration)),
            ..Default::default()
        },
        spec: Some(JobSpec {
            backoff_limit: Some(0),
            active_deadline_seconds: i64::try_from(seconds + SCHEDULING_ALLOWANCE).ok(),
            // A drained node says nothing about the application: the measurement is made on another node.
            pod_failure_policy: Some(PodFailurePolicy {
                rules: vec![PodFailurePolicyRule {
                    action: "Ignore".into(),
                    on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                        type_: "DisruptionTarget".into(),
                        status: Some("True".into()),
                    }]),
                    ..Default::default()
                }],
            }),
            ttl_seconds_after_finished: Some(FINISHED_JOB_TTL),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..Default::default() }),
                spec: Some(PodSpec {
                    restart_policy: Some("Never".into()),
                    active_deadline_seconds: i64::try_from(seconds).ok(),
                    // The team's image must not act in the cluster with any account.
                    automount_service_account_token: Some(false),
                    enable_service_links: Some(false),
                    image_pull_secrets: (!pull.is_empty())
                        .then(|| pull.iter().map(|s| LocalObjectReference { name: s.name.clone() }).collect()),
                    security_context: Some(PodSecurityContext {
                        run_as_non_root: Some(true),
                        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..Default::default() }),
                        ..Default::default()
                    }),
                    containers: vec![Container {
                        name: "check".into(),
                        image: Some(job.image.clone()),
                        command: list(&job.command),
                        args: list(&job.args),
                        env_from: Some(
                            job.env_from_secrets
                                .iter()
                                .map(|s| EnvFromSource {
                                    secret_ref: Some(SecretEnvSource { name: s.name.clone(), optional: Some(false) }),
                                    ..Default::default()
                                })
                                .collect(),
                        ),
                        security_context: Some(SecurityContext {
                            allow_privilege_escalation: Some(false),
                            read_only_root_filesystem: Some(true),
                            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), ..Default::default() }),
                            ..Default::default()
                        }),
                        ..Default::default()
                    }],
                    ..Default::default()
                }),
            },
            ..Default::default()
        }),
        status: None,
    }
}
