//! A Deployment's pod template: its digest, which is what runs, as far as the template says it, and the patch that
//! restarts it. Pure.

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};

use crate::api::{RESTARTED_FOR, sha256};

/// Annotations that restart pods and change nothing that runs: the operator's own, and that of `kubectl rollout
/// restart`.
const RESTARTS: [&str; 2] = [RESTARTED_FOR, "kubectl.kubernetes.io/restartedAt"];

/// SHA-256 of the pod template without annotations of restarts.
pub(super) fn template_sha256(d: &Deployment) -> Option<String> {
    let mut template = d.spec.as_ref()?.template.clone();
    if let Some(meta) = &mut template.metadata
        && let Some(annotations) = &mut meta.annotations
    {
        annotations.retain(|name, _| !RESTARTS.contains(&name.as_str()));
        // No annotations and an empty list of them are the same template.
        if annotations.is_empty() {
            meta.annotations = None;
        }
    }
    let text = serde_json::to_value(&template).ok()?.to_string();
    Some(sha256(text.as_bytes()))
}

/// The patch that writes the marker of a switch: to the Deployment itself, if given, and to its pod template, from
/// which `None` removes it.
pub(super) fn marker_patch(own: Option<&str>, template: Option<&str>, resource_version: Option<String>) -> Value {
    let own = own.map_or_else(|| json!({}), |marker| json!({RESTARTED_FOR: marker}));
    json!({
        "metadata": {"resourceVersion": resource_version, "annotations": own},
        "spec": {"template": {"metadata": {"annotations": {RESTARTED_FOR: template}}}},
    })
}

/// The image by its digest, if the container's status has it and it is of the same repository; otherwise as it is.
pub(super) fn by_digest(image: &str, image_id: &str) -> Option<String> {
    let image_id = image_id.rsplit_once("://").map_or(image_id, |(_, id)| id);
    let (repository, digest) = image_id.split_once("@sha256:")?;
    let is_digest = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
    (is_digest && repository == repository_of(image)).then(|| image_id.to_owned())
}

/// Registry and repository of an image, without tag and digest.
fn repository_of(image: &str) -> &str {
    let image = image.split_once('@').map_or(image, |(name, _)| name);
    let name = image.rfind('/').map_or(0, |slash| slash + 1);
    image.get(name..).and_then(|last| last.find(':')).map_or(image, |colon| image.get(..name + colon).unwrap_or(image))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn digest(annotations: Value, image: &str) -> String {
        let template = json!({
            "metadata": {"labels": {"app": "shop"}, "annotations": annotations},
            "spec": {"containers": [{"name": "app", "image": image}]},
        });
        let deployment = json!({"metadata": {}, "spec": {"selector": {}, "template": template}});
        template_sha256(&serde_json::from_value(deployment).unwrap()).unwrap()
    }

    #[test]
    fn a_restart_changes_no_template() {
        let plain = digest(Value::Null, "shop:1");
        assert_eq!(digest(json!({RESTARTED_FOR: "uid-0.to"}), "shop:1"), plain);
        assert_eq!(digest(json!({"kubectl.kubernetes.io/restartedAt": "now"}), "shop:1"), plain);
        assert_ne!(digest(json!({"team": "credits"}), "shop:1"), plain);
        assert_ne!(digest(Value::Null, "shop:2"), plain);
    }

    #[rstest::rstest]
    #[case::pulled("ghcr.io/x/op:1", "ghcr.io/x/op@sha256:", true)]
    #[case::by_docker("ghcr.io/x/op:1", "docker-pullable://ghcr.io/x/op@sha256:", true)]
    #[case::of_a_port("localhost:5000/op", "localhost:5000/op@sha256:", true)]
    #[case::loaded_by_hand("ghcr.io/x/op:1", "sha256:", false)]
    #[case::of_another_repository("ghcr.io/x/op:1", "docker.io/library/import@sha256:", false)]
    fn an_image_is_pinned_by_what_its_container_runs(#[case] image: &str, #[case] id: &str, #[case] pinned: bool) {
        let id = format!("{id}{}", "0123456789abcdef".repeat(4));
        let expected = pinned.then(|| id.trim_start_matches("docker-pullable://").to_owned());
        assert_eq!(by_digest(image, &id), expected);
    }
}
