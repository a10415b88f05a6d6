//! Whether the namespace's quotas leave room for the pods that a rollout has to create first. Pure.
//!
//! What such a pod needs is read from a present one: defaults of a LimitRange are in it, and not in the template.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Container, Pod, PodSpec, ResourceQuota, ResourceRequirements},
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::{build, rollout_facts::max_unavailable};
use crate::{
    api::{RunnerResources, Task},
    machine::QuotaShortage,
    shared::quantity,
};

/// What pods need, by the names that quotas use, in thousandths.
pub(super) type Needs = BTreeMap<String, i128>;

/// What the first pod of a rollout needs in addition to the present pods; nothing if an old pod may end first, or if
/// the additional pod is there: a rollout that hangs has its room already.
pub(super) fn surge_needs<'a>(d: &Deployment, pods: impl Iterator<Item = &'a Pod>) -> Needs {
    let replicas = d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let present: Vec<&Pod> = pods.collect();
    let more_than_wanted = usize::try_from(replicas).is_ok_and(|wanted| present.len() > wanted);
    if replicas == 0 || more_than_wanted || max_unavailable(d) > 0 {
        return Needs::new();
    }
    let template = d.spec.as_ref().and_then(|s| s.template.spec.as_ref());
    present.into_iter().find_map(|pod| pod.spec.as_ref()).or(template).map(needs_of).unwrap_or_default()
}

/// What the window's own pod needs. Until it is there it counts, too: otherwise it would take the room that the rollout
/// was found to have, and be in its own way.
pub(super) fn window_pod_needs(resources: &RunnerResources) -> Needs {
    let mut needs = of_resources(&build::resources(Task::Window, resources));
    needs.insert("pods".to_owned(), 1_000);
    needs
}

/// Adds what another pod needs.
pub(super) fn add(total: &mut Needs, more: &Needs) {
    for (resource, amount) in more {
        *total.entry(resource.clone()).or_default() += amount;
    }
}

/// The resources of which a quota has less left than is needed.
pub(super) fn shortages(quotas: &[ResourceQuota], needs: &Needs) -> Vec<QuotaShortage> {
    let mut found = vec![];
    for quota in quotas.iter().filter(|quota| applies(quota, needs)) {
        let status = quota.status.as_ref();
        let hard = status.and_then(|s| s.hard.as_ref());
        let used = status.and_then(|s| s.used.as_ref());
        for (resource, hard) in hard.into_iter().flatten() {
            let Some(needed) = needs.get(canonical(resource)).filter(|needed| **needed > 0) else { continue };
            let used = used.and_then(|used| used.get(resource)).cloned().unwrap_or_else(|| Quantity("0".into()));
            let (Some(h), Some(u)) = (quantity::milli(&hard.0), quantity::milli(&used.0)) else { continue };
            if u + needed > h {
                found.push(QuotaShortage {
                    quota: quota.metadata.name.clone().unwrap_or_default(),
                    resource: resource.clone(),
                    used: used.0,
                    hard: hard.0.clone(),
                    needed: quantity::text(*needed),
                });
            }
        }
    }
    found
}

/// Whether a quota counts pods of a Deployment. One that selects them by anything else than these scopes is not judged.
fn applies(quota: &ResourceQuota, needs: &Needs) -> bool {
    let spec = quota.spec.as_ref();
    if spec.is_some_and(|s| s.scope_selector.is_some()) {
        return false;
    }
    let best_effort = !needs.keys().any(|resource| resource.contains("cpu") || resource.contains("memory"));
    spec.iter().flat_map(|s| s.scopes.iter().flatten()).all(|scope| match scope.as_str() {
        "NotTerminating" => true,
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        _ => false,
    })
}

/// A quota's name of a resource, without its short forms.
fn canonical(resource: &str) -> &str {
    match resource {
        "cpu" => "requests.cpu",
        "memory" => "requests.memory",
        "ephemeral-storage" => "requests.ephemeral-storage",
        "count/pods" => "pods",
        other => other,
    }
}

fn needs_of(pod: &PodSpec) -> Needs {
    let mut all = Needs::from([("pods".to_owned(), 1_000)]);
    let is_sidecar = |c: &&Container| c.restart_policy.is_some();
    let first = || pod.init_containers.iter().flatten();
    for container in pod.containers.iter().chain(first().filter(is_sidecar)) {
        add(&mut all, &of_container(container));
    }
    // Init containers run before the others: the larger one counts.
    for container in first().filter(|c| !is_sidecar(c)) {
        for (resource, amount) in of_container(container) {
            let entry = all.entry(resource).or_default();
            *entry = (*entry).max(amount);
        }
    }
    for (resource, amount) in pod.overhead.iter().flatten() {
        *all.entry(format!("requests.{resource}")).or_default() += quantity::milli(&amount.0).unwrap_or(0);
    }
    all
}

fn of_container(container: &Container) -> Needs {
    container.resources.as_ref().map(of_resources).unwrap_or_default()
}

fn of_resources(resources: &ResourceRequirements) -> Needs {
    let (requests, limits) = (resources.requests.as_ref(), resources.limits.as_ref());
    let mut needs = Needs::new();
    for (resource, amount) in limits.into_iter().flatten() {
        let amount = quantity::milli(&amount.0).unwrap_or(0);
        needs.insert(format!("limits.{resource}"), amount);
        // Without a request the limit is it.
        needs.insert(format!("requests.{resource}"), amount);
    }
    for (resource, amount) in requests.into_iter().flatten() {
        needs.insert(format!("requests.{resource}"), quantity::milli(&amount.0).unwrap_or(0));
    }
    needs
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn needs(strategy: &Value) -> Needs {
        let resources = |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu}, "limits": {"memory": memory}});
        let pod = json!({"spec": {
            "initContainers": [{"name": "i", "resources": resources("1500m", "10Mi")}],
            "containers": [
                {"name": "a", "resources": resources("250m", "64Mi")},
                {"name": "b", "resources": resources("1", "1Gi")},
            ],
        }});
        let spec = json!({"replicas": 2, "selector": {}, "template": {}, "strategy": strategy});
        let deployment = serde_json::from_value(json!({"metadata": {"name": "shop"}, "spec": spec})).unwrap();
        surge_needs(&deployment, [&serde_json::from_value(pod).unwrap()].into_iter())
    }

    fn surge() -> Needs {
        needs(&json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}))
    }

    fn quota(spec: Value, hard: Value, used: Value) -> ResourceQuota {
        let status = json!({"hard": hard, "used": used});
        serde_json::from_value(json!({"metadata": {"name": "compute"}, "spec": spec, "status": status})).unwrap()
    }

    #[rstest::rstest]
    #[case::pods(json!({"pods": "3"}), json!({"pods": "2"}), None)]
    #[case::no_pod_left(json!({"pods": "2"}), json!({"pods": "2"}), Some("1"))]
    #[case::counted_pods(json!({"count/pods": "2"}), json!({"count/pods": "2"}), Some("1"))]
    #[case::the_init_container_is_larger(json!({"cpu": "4"}), json!({"cpu": "2501m"}), Some("1500m"))]
    #[case::just_enough(json!({"requests.cpu": "4"}), json!({"requests.cpu": "2500m"}), None)]
    #[case::a_limit_is_a_request(json!({"memory": "2Gi"}), json!({"memory": "1Gi"}), Some("1140850688"))]
    #[case::limits(json!({"limits.memory": "4Gi"}), json!({"limits.memory": "1Gi"}), None)]
    #[case::of_other_objects(json!({"count/jobs.batch": "1"}), json!({"count/jobs.batch": "1"}), None)]
    fn what_a_quota_has_left(#[case] hard: Value, #[case] used: Value, #[case] needed: Option<&str>) {
        let found = shortages(&[quota(json!({}), hard, used)], &surge());
        assert_eq!(found.first().map(|s| s.needed.as_str()), needed);
        assert!(found.iter().all(|s| s.quota == "compute"));
    }

    #[test]
    fn a_rollout_that_has_its_additional_pod_needs_no_other() {
        let strategy = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        let spec = json!({"replicas": 1, "selector": {}, "template": {}, "strategy": strategy});
        let deployment = serde_json::from_value(json!({"metadata": {"name": "shop"}, "spec": spec})).unwrap();
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "a"}]}})).unwrap();
        assert_eq!(surge_needs(&deployment, [&pod].into_iter()).get("pods"), Some(&1_000));
        assert_eq!(surge_needs(&deployment, [&pod, &pod].into_iter()), Needs::new());
    }

    #[test]
    fn the_windows_own_pod_counts() {
        let needs = window_pod_needs(&RunnerResources::default());
        assert_eq!((needs["pods"], needs["requests.cpu"]), (1_000, 50));
        assert_eq!(needs["requests.memory"], needs["limits.memory"]);
    }

    #[rstest::rstest]
    #[case::of_lasting_pods(json!({"scopes": ["NotTerminating"]}), true)]
    #[case::of_pods_that_end(json!({"scopes": ["Terminating"]}), false)]
    #[case::of_pods_with_requests(json!({"scopes": ["NotBestEffort"]}), true)]
    #[case::of_pods_without(json!({"scopes": ["BestEffort"]}), false)]
    #[case::of_a_priority(json!({"scopeSelector": {"matchExpressions": []}}), false)]
    fn only_quotas_that_count_the_pods_are_asked(#[case] spec: Value, #[case] counts: bool) {
        let quota = quota(spec, json!({"pods": "2"}), json!({"pods": "2"}));
        assert_eq!(!shortages(&[quota], &surge()).is_empty(), counts);
    }

    #[rstest::rstest]
    #[case::default_of_two(Value::Null, false)]
    #[case::an_old_pod_ends_first(json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}), true)]
    #[case::all_end_first(json!({"type": "Recreate"}), true)]
    fn a_rollout_that_ends_a_pod_first_needs_no_room(#[case] strategy: Value, #[case] none: bool) {
        assert_eq!(needs(&strategy).is_empty(), none);
    }
}
