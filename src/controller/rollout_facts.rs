//! What a Deployment and its pods say about how long a rollout takes. Pure.

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Pod, Probe},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{api::ExpectedRollout, shared::deployment};

/// Kubernetes' default of `terminationGracePeriodSeconds`.
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// Kubernetes' default of `progressDeadlineSeconds`.
const DEFAULT_PROGRESS_SECONDS: i32 = 600;
/// Kubernetes' default of `maxSurge` and `maxUnavailable`.
const DEFAULT_SHARE: &str = "25%";

/// The rollout that a restart would cause. `pods` are the Deployment's own.
pub(super) fn expected_rollout<'a>(name: &str, d: &Deployment, pods: impl Iterator<Item = &'a Pod>) -> ExpectedRollout {
    let replicas = u32::try_from(deployment::available(d).1).unwrap_or(0);
    let spec = d.spec.as_ref();
    let template = spec.and_then(|s| s.template.spec.as_ref());
    let probes = template.iter().flat_map(|pod| &pod.containers);
    let probes = probes.map(|c| delay(c.startup_probe.as_ref()).saturating_add(delay(c.readiness_probe.as_ref())));
    let until_ready = measured(d, pods).unwrap_or(0).max(probes.max().unwrap_or(0));
    let min_ready = spec.and_then(|s| s.min_ready_seconds).and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
    let grace = template.and_then(|pod| pod.termination_grace_period_seconds).unwrap_or(DEFAULT_GRACE_SECONDS);
    ExpectedRollout::new(
        name,
        replicas,
        at_once(d),
        until_ready.saturating_add(min_ready),
        u64::try_from(grace).unwrap_or(0),
    )
}

/// Pods that the rollout replaces at once.
fn at_once(d: &Deployment) -> u32 {
    let (surge, unavailable) = limits(d);
    surge.saturating_add(unavailable)
}

/// Pods that may be unavailable during the rollout: so many end before new ones are created.
pub(super) fn max_unavailable(d: &Deployment) -> u32 {
    limits(d).1
}

/// `maxSurge` and `maxUnavailable`, in pods.
fn limits(d: &Deployment) -> (u32, u32) {
    let replicas = u32::try_from(deployment::available(d).1).unwrap_or(0);
    let strategy = d.spec.as_ref().and_then(|s| s.strategy.as_ref());
    if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
        return (0, replicas);
    }
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let share = IntOrString::String(DEFAULT_SHARE.to_owned());
    let surge = rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&share);
    let unavailable = rolling.and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&share);
    // Kubernetes rounds the surge up and the unavailable down; if both are 0, one pod is unavailable.
    match (of(surge, replicas, u64::div_ceil), of(unavailable, replicas, |n, d| n / d)) {
        (0, 0) => (0, 1),
        both => both,
    }
}

/// A number, or a share of the replicas.
fn of(value: &IntOrString, replicas: u32, divide: fn(u64, u64) -> u64) -> u32 {
    match value {
        IntOrString::Int(n) => u32::try_from(*n).unwrap_or(0),
        IntOrString::String(text) => {
            let percent: u64 = text.trim_end_matches('%').parse().unwrap_or(0);
            u32::try_from(divide(percent.saturating_mul(u64::from(replicas)), 100)).unwrap_or(u32::MAX)
        }
    }
}

/// The middle one of the times that the present pods took from their creation until they were ready. One whose
/// container was restarted, or that took longer than a rollout may, was not ready for the first time.
fn measured<'a>(d: &Deployment, pods: impl Iterator<Item = &'a Pod>) -> Option<u64> {
    let limit = d.spec.as_ref().and_then(|s| s.progress_deadline_seconds).unwrap_or(DEFAULT_PROGRESS_SECONDS);
    let mut seconds: Vec<u64> = pods
        .filter_map(|pod| {
            let status = pod.status.as_ref()?;
            let restarts = status.container_statuses.iter().flatten().map(|c| c.restart_count).max()?;
            let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready" && c.status == "True")?;
            let (created, ready) = (pod.metadata.creation_timestamp.as_ref()?, ready.last_transition_time.as_ref()?);
            let seconds = ready.0.duration_since(created.0).as_secs();
            (restarts == 0 && seconds <= i64::from(limit)).then(|| u64::try_from(seconds).unwrap_or(0))
        })
        .collect();
    seconds.sort_unstable();
    seconds.get(seconds.len() / 2).copied()
}

/// The least time that a probe needs to pass, in seconds.
fn delay(probe: Option<&Probe>) -> u64 {
    let Some(probe) = probe else { return 0 };
    let periods = probe.success_threshold.unwrap_or(1).max(1) - 1;
    let seconds = probe.initial_delay_seconds.unwrap_or(0) + periods.saturating_mul(probe.period_seconds.unwrap_or(10));
    u64::try_from(seconds).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn deployment(spec: Value) -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "shop"}, "spec": spec})).unwrap()
    }

    #[rstest::rstest]
    #[case::default_of_two(2, Value::Null, 1)]
    #[case::default_of_eight(8, Value::Null, 4)]
    #[case::one_more(8, json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}), 1)]
    #[case::shares(10, json!({"rollingUpdate": {"maxSurge": "15%", "maxUnavailable": "15%"}}), 3)]
    #[case::neither(3, json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "1%"}}), 1)]
    #[case::all(5, json!({"type": "Recreate"}), 5)]
    fn as_many_as_the_strategy_says(#[case] replicas: u32, #[case] strategy: Value, #[case] pods: u32) {
        let spec = json!({"replicas": replicas, "selector": {}, "template": {}, "strategy": strategy});
        assert_eq!(at_once(&deployment(spec)), pods);
    }

    #[test]
    fn the_time_until_ready_is_measured_and_not_shorter_than_the_probes_allow() {
        let pod = |ready: i64, restarts: i32| -> Pod {
            let at = (crate::api::Time::UNIX_EPOCH + jiff::SignedDuration::from_secs(ready)).to_string();
            let condition = json!({"type": "Ready", "status": "True", "lastTransitionTime": at});
            let container =
                json!({"name": "app", "image": "i", "imageID": "", "ready": true, "restartCount": restarts});
            let status = json!({"conditions": [condition], "containerStatuses": [container]});
            serde_json::from_value(json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"}, "status": status}))
                .unwrap()
        };
        let spec = |delay: i64| {
            let probe = json!({"initialDelaySeconds": delay, "periodSeconds": 5, "successThreshold": 3});
            let template = json!({"spec": {
                "terminationGracePeriodSeconds": 7, "containers": [{"name": "app", "readinessProbe": probe}],
            }});
            deployment(json!({"replicas": 3, "selector": {}, "template": template, "minReadySeconds": 2}))
        };
        // The slowest is an exception; one was restarted, and one became unready long after its start.
        let pods = [pod(12, 0), pod(20, 0), pod(90, 0), pod(5_000, 0), pod(1, 1)];
        let expected = expected_rollout("shop", &spec(0), pods.iter());
        assert_eq!((expected.ready_seconds, expected.termination_seconds), (22, 7));
        assert_eq!(expected_rollout("shop", &spec(45), pods.iter()).ready_seconds, 57);
        assert_eq!(expected_rollout("shop", &spec(45), std::iter::empty()).ready_seconds, 57);
    }
}
