//! What a Deployment says about its pods.

use k8s_openapi::api::apps::v1::Deployment;

/// Available and wanted replicas.
pub fn available(d: &Deployment) -> (i32, i32) {
    let wanted = d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    (d.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0), wanted)
}

/// Whether the latest spec was observed and every replica is updated and available, with none surplus.
pub fn settled(d: &Deployment) -> bool {
    let Some(status) = &d.status else { return false };
    let (available, wanted) = available(d);
    status.observed_generation >= d.metadata.generation
        && status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && available == wanted
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
