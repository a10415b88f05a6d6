//! What a Deployment says about its pods, and which pods are its own.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

/// Available and wanted replicas.
pub fn available(d: &Deployment) -> (i32, i32) {
    let wanted = d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    (d.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0), wanted)
}

/// What keeps a Deployment from being settled: its latest spec is not observed, or a replica is not updated, not
/// available or surplus. `None` when it is settled.
pub fn unsettled(d: &Deployment) -> Option<String> {
    let Some(status) = &d.status else { return Some("it has no status yet".to_owned()) };
    let (available, wanted) = available(d);
    let generations = (status.observed_generation.unwrap_or(0), d.metadata.generation.unwrap_or(0));
    let (updated, all) = (status.updated_replicas.unwrap_or(0), status.replicas.unwrap_or(0));
    let exceeded = status
        .conditions
        .iter()
        .flatten()
        .any(|c| c.type_ == "Progressing" && c.status == "False" && c.reason.as_deref() == Some(DEADLINE_EXCEEDED));
    let stalled = if exceeded { format!(", {DEADLINE_EXCEEDED}") } else { String::new() };
    if generations.0 < generations.1 {
        return Some(format!("status.observedGeneration is {}, expected {}", generations.0, generations.1));
    }
    if updated != wanted || all != wanted || available != wanted {
        return Some(format!(
            "of {wanted} wanted replicas {updated} are updated and {available} are available, {all} exist{stalled}"
        ));
    }
    exceeded.then(|| format!("its condition Progressing is False ({DEADLINE_EXCEEDED})"))
}

/// Reason of the condition `Progressing` of a Deployment whose rollout has stopped.
pub const DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";

/// Whether its rollout is stopped by `spec.paused`: a restart would replace no pod.
pub fn paused(d: &Deployment) -> bool {
    d.spec.as_ref().and_then(|s| s.paused).unwrap_or(false)
}

/// The object that controls another one.
fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|o| o.controller == Some(true))
}

/// The ReplicaSet that controls a pod: its name and UID.
pub fn replica_set_of(pod: &Pod) -> Option<(&str, &str)> {
    let owner =
        controller_of(&pod.metadata).filter(|o| o.kind == "ReplicaSet" && o.api_version.starts_with("apps/"))?;
    Some((&owner.name, &owner.uid))
}

/// Whether a pod that a Deployment's selector matches is known to be of another owner, or of none.
///
/// `replica_sets` are those that [`replica_set_of`] names, as far as they exist. The pod of a ReplicaSet that is gone
/// is not foreign: an old ReplicaSet may be removed while its pods still terminate, and until then they may write.
pub fn is_foreign(pod: &Pod, d: &Deployment, replica_sets: &[ReplicaSet]) -> bool {
    let Some((_, uid)) = replica_set_of(pod) else { return true };
    let Some(set) = replica_sets.iter().find(|set| set.metadata.uid.as_deref() == Some(uid)) else { return false };
    controller_of(&set.metadata).map(|o| &o.uid) != d.metadata.uid.as_ref()
}

/// Whether a container takes a ConfigMap's key as an environment variable: a mounted file would change without a
/// restart, at any time.
pub fn reads_flag(d: &Deployment, config_map: &str, key: &str) -> bool {
    let Some(pod) = d.spec.as_ref().and_then(|s| s.template.spec.as_ref()) else { return false };
    pod.containers.iter().any(|c| {
        let single = c.env.iter().flatten().any(|e| {
            e.value_from
                .as_ref()
                .and_then(|v| v.config_map_key_ref.as_ref())
                .is_some_and(|r| r.name == config_map && r.key == key)
        });
        let whole =
            c.env_from.iter().flatten().any(|e| e.config_map_ref.as_ref().is_some_and(|r| r.name == config_map));
        single || whole
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn deployment(status: &Value) -> Deployment {
        let value = json!({
            "metadata": {"name": "shop", "uid": "d", "generation": 4},
            "spec": {"replicas": 2, "selector": {}, "template": {}},
            "status": status,
        });
        serde_json::from_value(value).unwrap()
    }

    #[rstest]
    #[case::all_are_new_and_available(
        json!({"observedGeneration": 4, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}), None)]
    #[case::the_spec_is_newer(
        json!({"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}),
        Some("status.observedGeneration is 3, expected 4"))]
    #[case::one_is_of_the_last_spec(
        json!({"observedGeneration": 4, "replicas": 2, "updatedReplicas": 1, "availableReplicas": 2}),
        Some("of 2 wanted replicas 1 are updated and 2 are available, 2 exist"))]
    #[case::one_crashes(
        json!({"observedGeneration": 4, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1}),
        Some("of 2 wanted replicas 2 are updated and 1 are available, 2 exist"))]
    #[case::one_is_surplus(
        json!({"observedGeneration": 4, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 2}),
        Some("of 2 wanted replicas 2 are updated and 2 are available, 3 exist"))]
    #[case::the_rollout_has_stopped(
        json!({"observedGeneration": 4, "replicas": 3, "updatedReplicas": 1, "availableReplicas": 2, "conditions": [
            {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"},
        ]}),
        Some("of 2 wanted replicas 1 are updated and 2 are available, 3 exist, ProgressDeadlineExceeded"))]
    fn what_keeps_a_deployment_from_being_settled_is_named(#[case] status: Value, #[case] expected: Option<&str>) {
        assert_eq!(unsettled(&deployment(&status)).as_deref(), expected);
    }

    fn owned_by(kind: &str, name: &str, uid: &str) -> Value {
        let group = if kind == "ReplicaSet" || kind == "Deployment" { "apps/v1" } else { "batch/v1" };
        json!([{"apiVersion": group, "kind": kind, "name": name, "uid": uid, "controller": true}])
    }

    #[rstest]
    #[case::its_own(owned_by("ReplicaSet", "shop-1", "r1"), false)]
    #[case::of_a_replica_set_that_is_gone(owned_by("ReplicaSet", "shop-0", "r0"), false)]
    #[case::of_another_deployment(owned_by("ReplicaSet", "canary-1", "r2"), true)]
    #[case::of_a_bare_replica_set(owned_by("ReplicaSet", "bare", "r3"), true)]
    #[case::of_a_job(owned_by("Job", "report", "j"), true)]
    #[case::of_nobody(json!([]), true)]
    fn a_pod_is_its_own_by_the_chain_of_owners(#[case] owners: Value, #[case] foreign: bool) {
        let set = |name: &str, uid: &str, owners: Value| -> ReplicaSet {
            let metadata = json!({"name": name, "uid": uid, "ownerReferences": owners});
            serde_json::from_value(json!({"metadata": metadata})).unwrap()
        };
        let sets = [
            set("shop-1", "r1", owned_by("Deployment", "shop", "d")),
            set("canary-1", "r2", owned_by("Deployment", "canary", "c")),
            set("bare", "r3", json!([])),
        ];
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "ownerReferences": owners}})).unwrap();
        assert_eq!(is_foreign(&pod, &deployment(&json!({})), &sets), foreign);
    }
}
