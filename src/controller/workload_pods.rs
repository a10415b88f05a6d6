//! The pods that a Deployment's selector matches, counted by the chain of their owners. Pure.

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use kube::ResourceExt;

use crate::{api::RESTARTED_FOR, shared::deployment};

/// Pods that a Deployment's selector matches.
#[derive(Debug, Default, PartialEq)]
pub(super) struct WorkloadPods {
    /// Its own that are not of the present marker.
    pub(super) old: u32,
    /// Names of those that are not its own.
    pub(super) foreign: Vec<String>,
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
    let old = own.iter().filter(|p| p.annotations().get(RESTARTED_FOR).map(String::as_str) != marker).count();
    let mut foreign: Vec<String> = foreign.iter().map(|p| p.name_any()).collect();
    foreign.sort();
    WorkloadPods { old: u32::try_from(old).unwrap_or(u32::MAX), foreign }
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
        assert_eq!(count_pods(&deployment, Some("1.to"), &pods, &[set]), WorkloadPods { old: 2, foreign });
    }
}
