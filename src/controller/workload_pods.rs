//! The pods that a Deployment's selector matches, counted by the chain of their owners: when they started, and what
//! keeps the new ones from becoming ready. Pure.

use k8s_openapi::api::{
    apps::v1::{Deployment, DeploymentCondition, ReplicaSet},
    core::v1::{ContainerStatus, Pod},
};
use kube::ResourceExt;

use super::{
    quota::{Needs, surge_needs},
    rollout_facts::expected_rollout,
};
use crate::{
    api::{ExpectedRollout, RESTARTED_FOR, Time},
    machine::{PodReason, RolloutFailure, RolloutFailureKind, WorkloadPod},
    shared::deployment,
};

/// A pod of which nothing is known.
pub(super) const UNKNOWN_POD: WorkloadPod = WorkloadPod { restarted_for: None, started_at: None };

/// Pods that a Deployment's selector matches.
#[derive(Debug, Default, PartialEq)]
pub(super) struct WorkloadPods {
    /// Its own.
    pub(super) own: Vec<WorkloadPod>,
    /// What keeps one of the present marker from becoming ready.
    pub(super) failure: Option<RolloutFailure>,
    /// Names of those that are not its own.
    pub(super) foreign: Vec<String>,
    /// What a restart is expected to take.
    pub(super) rollout: Option<ExpectedRollout>,
    /// What the first pod of a restart needs of quotas.
    pub(super) surge: Needs,
}

impl WorkloadPods {
    /// Number of its own that are not of the present marker.
    pub(super) fn old(&self, marker: Option<&str>) -> u32 {
        let old = self.own.iter().filter(|pod| pod.restarted_for.as_deref() != marker).count();
        u32::try_from(old).unwrap_or(u32::MAX)
    }
}

/// Counts the live pods by their owners. `marker` is the switch that the Deployment's template carries.
pub(super) fn count_pods(
    deployment: &Deployment,
    marker: Option<&str>,
    pods: &[Pod],
    replica_sets: &[ReplicaSet],
) -> WorkloadPods {
    // A finished pod no longer writes.
    let live = pods
        .iter()
        .filter(|p| !matches!(p.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")));
    let (foreign, own): (Vec<&Pod>, Vec<&Pod>) =
        live.partition(|pod| deployment::is_foreign(pod, deployment, replica_sets));
    let restarted_for = |pod: &Pod| pod.annotations().get(RESTARTED_FOR).cloned();
    let failure = own.iter().filter(|pod| restarted_for(pod).as_deref() == marker).find_map(|pod| pod_failure(pod));
    let surge = surge_needs(deployment, own.iter().copied());
    let rollout = Some(expected_rollout(&deployment.name_any(), deployment, own.iter().copied()));
    let own =
        own.iter().map(|pod| WorkloadPod { restarted_for: restarted_for(pod), started_at: started_at(pod) }).collect();
    let mut foreign: Vec<String> = foreign.iter().map(|p| p.name_any()).collect();
    foreign.sort();
    WorkloadPods { own, failure, foreign, rollout, surge }
}

/// Latest start of a container of a pod. `None` unless it is ready, stays, and every container of it runs.
fn started_at(pod: &Pod) -> Option<Time> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    let statuses = status.container_statuses.as_deref().unwrap_or_default();
    // A sidecar may read the flag too, and is not looked into.
    let has_sidecar = spec.init_containers.iter().flatten().any(|c| c.restart_policy.is_some());
    let all_run = is_ready(pod) && statuses.len() == spec.containers.len() && !has_sidecar;
    if pod.metadata.deletion_timestamp.is_some() || !all_run {
        return None;
    }
    let start = |status: &ContainerStatus| Some(status.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0);
    let starts: Option<Vec<Time>> = statuses.iter().map(start).collect();
    starts?.into_iter().max()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Restarts of a container from which on they are a crash loop.
const CRASH_LOOP_RESTARTS: i32 = 2;

/// What keeps a pod from becoming ready, if it may not pass by itself.
fn pod_failure(pod: &Pod) -> Option<RolloutFailure> {
    if pod.metadata.deletion_timestamp.is_some() || is_ready(pod) {
        return None;
    }
    let status = pod.status.as_ref()?;
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let (kind, why) = containers.filter_map(container_failure).next()?;
    Some(RolloutFailure { kind, pod: Some(pod.name_any()), why })
}

fn container_failure(status: &ContainerStatus) -> Option<(RolloutFailureKind, PodReason)> {
    let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
    let (reason, message) = waiting.map_or(("", ""), |waiting| {
        (waiting.reason.as_deref().unwrap_or_default(), waiting.message.as_deref().unwrap_or_default())
    });
    let kind = match reason {
        "InvalidImageName" | "ErrImageNeverPull" => RolloutFailureKind::ImageInvalid,
        "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" => RolloutFailureKind::ImageNotPulled,
        "CreateContainerConfigError" | "CreateContainerError" => RolloutFailureKind::ContainerNotCreated,
        _ => return crash_loop(status),
    };
    Some((kind, PodReason::new(reason, message)))
}

/// A container that has ended again and again. What its program said as it ended is not repeated: it may have a secret.
fn crash_loop(status: &ContainerStatus) -> Option<(RolloutFailureKind, PodReason)> {
    if status.restart_count < CRASH_LOOP_RESTARTS || status.ready {
        return None;
    }
    let states = [&status.state, &status.last_state];
    let ended = states.into_iter().flatten().find_map(|state| state.terminated.as_ref())?;
    let text = format!(
        "container {} was restarted {} times, exit code {} ({})",
        status.name,
        status.restart_count,
        ended.exit_code,
        ended.reason.as_deref().unwrap_or("no reason")
    );
    Some((RolloutFailureKind::CrashLoop, PodReason::new("CrashLoopBackOff", &text)))
}

/// What a Deployment itself says of a rollout of its present spec that does not end.
pub(super) fn rollout_failure(d: &Deployment) -> Option<RolloutFailure> {
    let status = d.status.as_ref().filter(|status| status.observed_generation == d.metadata.generation)?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let kind = |c: &DeploymentCondition| match (c.type_.as_str(), c.status.as_str(), c.reason.as_deref()) {
        ("ReplicaFailure", "True", _) => Some(RolloutFailureKind::PodsRefused),
        ("Progressing", "False", Some(deployment::DEADLINE_EXCEEDED)) => Some(RolloutFailureKind::NoProgress),
        _ => None,
    };
    conditions.iter().find_map(|c| {
        let why = PodReason::new(c.reason.clone().unwrap_or_default(), c.message.as_deref().unwrap_or_default());
        Some(RolloutFailure { kind: kind(c)?, pod: None, why })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_of_another_owner_is_named_and_is_not_old() {
        let owner = |kind: &str, uid: &str| {
            let owner = json!({"apiVersion": "apps/v1", "kind": kind, "name": uid, "uid": uid, "controller": true});
            json!([owner])
        };
        let pod = |name: &str, marker: &str, owners: Value, phase: &str| -> Pod {
            let metadata = json!({"name": name, "annotations": {RESTARTED_FOR: marker}, "ownerReferences": owners});
            serde_json::from_value(json!({"metadata": metadata, "status": {"phase": phase}})).unwrap()
        };
        let deployment: Deployment = serde_json::from_value(json!({"metadata": {"name": "shop", "uid": "d"}})).unwrap();
        let set: ReplicaSet =
            serde_json::from_value(json!({"metadata": {"uid": "r", "ownerReferences": owner("Deployment", "d")}}))
                .unwrap();
        let pods = [
            pod("shop-new", "1.to", owner("ReplicaSet", "r"), "Running"),
            pod("shop-old", "", owner("ReplicaSet", "r"), "Running"),
            pod("shop-done", "", owner("ReplicaSet", "r"), "Succeeded"),
            pod("shop-of-a-removed-set", "", owner("ReplicaSet", "gone"), "Running"),
            pod("debug", "", json!([]), "Running"),
            pod("canary", "1.to", owner("StatefulSet", "s"), "Pending"),
            pod("report", "", json!([]), "Succeeded"),
        ];
        let foreign = vec!["canary".to_owned(), "debug".to_owned()];
        let counted = count_pods(&deployment, Some("1.to"), &pods, &[set]);
        assert_eq!((counted.old(Some("1.to")), counted.foreign), (2, foreign));
    }

    fn pod(status: &Value) -> Pod {
        let spec = json!({"containers": [{"name": "app"}]});
        let mut pod = json!({"metadata": {"name": "shop-1"}, "spec": spec, "status": status});
        if status["deleting"] == json!(true) {
            pod["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z");
        }
        serde_json::from_value(pod).unwrap()
    }

    fn container(restarts: i32, state: &Value, last: &Value) -> Value {
        json!([{"name": "app", "image": "i", "imageID": "", "ready": false, "restartCount": restarts,
            "state": state, "lastState": last}])
    }

    fn waiting(reason: &str, restarts: i32) -> Value {
        let last = json!({"terminated": {"exitCode": 1, "reason": "Error", "message": "password is hunter2"}});
        let state = json!({"waiting": {"reason": reason, "message": "as the kubelet says"}});
        json!({"containerStatuses": container(restarts, &state, &last)})
    }

    #[rstest::rstest]
    #[case::starts(waiting("ContainerCreating", 0), None)]
    #[case::no_image(waiting("ImagePullBackOff", 0), Some(RolloutFailureKind::ImageNotPulled))]
    #[case::no_image_yet(waiting("ErrImagePull", 0), Some(RolloutFailureKind::ImageNotPulled))]
    #[case::no_such_name(waiting("InvalidImageName", 0), Some(RolloutFailureKind::ImageInvalid))]
    #[case::no_secret(waiting("CreateContainerConfigError", 0), Some(RolloutFailureKind::ContainerNotCreated))]
    #[case::restarted_once(waiting("CrashLoopBackOff", 1), None)]
    #[case::restarted_again(waiting("CrashLoopBackOff", 2), Some(RolloutFailureKind::CrashLoop))]
    fn what_keeps_a_pod_from_becoming_ready(#[case] status: Value, #[case] kind: Option<RolloutFailureKind>) {
        let failure = pod_failure(&pod(&status));
        assert_eq!(failure.as_ref().map(|f| f.kind), kind);
        if let Some(RolloutFailure { kind, pod, why }) = failure {
            assert_eq!(pod.as_deref(), Some("shop-1"));
            let text = why.to_string();
            let said =
                if kind == RolloutFailureKind::CrashLoop { "exit code 1 (Error)" } else { "as the kubelet says" };
            assert!(text.contains(said) && !text.contains("hunter2"), "{text}");
        }
        let mut gone = status.clone();
        gone["deleting"] = json!(true);
        assert_eq!(pod_failure(&pod(&gone)), None, "it is being removed");
    }

    #[rstest::rstest]
    #[case::runs(json!({"running": {"startedAt": "2030-01-01T00:00:05Z"}}), "True", false, true)]
    #[case::is_not_ready(json!({"running": {"startedAt": "2030-01-01T00:00:05Z"}}), "False", false, false)]
    #[case::is_being_removed(json!({"running": {"startedAt": "2030-01-01T00:00:05Z"}}), "True", true, false)]
    #[case::is_between_two_starts(json!({"terminated": {"exitCode": 1}}), "True", false, false)]
    #[case::has_no_status(Value::Null, "True", false, false)]
    fn a_start_is_known_only_of_a_pod_that_runs(
        #[case] state: Value,
        #[case] ready: &str,
        #[case] deleting: bool,
        #[case] known: bool,
    ) {
        let mut status = json!({"conditions": [{"type": "Ready", "status": ready}], "deleting": deleting});
        if !state.is_null() {
            status["containerStatuses"] = container(0, &state, &json!({}));
        }
        let start = started_at(&pod(&status));
        assert_eq!(start.map(|t| t.to_string()), known.then(|| "2030-01-01T00:00:05Z".to_owned()));
    }

    #[rstest::rstest]
    #[case::under_way(4, "Progressing", "True", "ReplicaSetUpdated", None)]
    #[case::stopped(4, "Progressing", "False", "ProgressDeadlineExceeded", Some(RolloutFailureKind::NoProgress))]
    #[case::of_the_last_spec(3, "Progressing", "False", "ProgressDeadlineExceeded", None)]
    #[case::refused(4, "ReplicaFailure", "True", "FailedCreate", Some(RolloutFailureKind::PodsRefused))]
    fn what_a_deployment_says_of_its_rollout(
        #[case] observed: i64,
        #[case] condition: &str,
        #[case] status: &str,
        #[case] reason: &str,
        #[case] kind: Option<RolloutFailureKind>,
    ) {
        let message = "pods \"shop-1\" is forbidden: exceeded quota";
        let condition = json!({"type": condition, "status": status, "reason": reason, "message": message});
        let value = json!({
            "metadata": {"name": "shop", "generation": 4},
            "status": {"observedGeneration": observed, "conditions": [condition]},
        });
        let failure = rollout_failure(&serde_json::from_value(value).unwrap());
        assert_eq!(failure.as_ref().map(|f| f.kind), kind);
        assert!(failure.is_none_or(|f| f.why.to_string() == format!("{reason}: {message}")));
    }
}
