//! The digest of a plan: what approvers approve.

use serde_json::json;

use crate::api::{CreditMigrationSpec, CreditMigrationStatus, sha256};

/// SHA-256 of all that is approved: UID, spec, SQL, image, pod templates, backup and rehearsal. `None` until the
/// rehearsal has passed.
pub fn plan_digest(uid: &str, spec: &CreditMigrationSpec, status: &CreditMigrationStatus) -> Option<String> {
    let plan = status.plan.as_ref()?;
    let backup = status.backup.as_ref()?;
    let verification = status.verification.as_ref()?;
    let rehearsal = status.rehearsal.as_ref()?;
    let text = json!({
        "uid": uid,
        "spec": spec,
        "up": plan.up_sha256,
        "down": plan.down_sha256,
        "image": status.runner_image,
        "backup": backup.sha256,
        "object": backup.object,
        "verified": verification.sha256,
        "code": status.code_backup.as_ref().map(|c| (&c.commit, &c.tag, &c.branch)),
        "keyUsers": status.key_users.as_ref().map(|k| (&k.object, &k.sha256)),
        "rehearsal": rehearsal,
        "podTemplates": plan.pod_templates,
    })
    .to_string();
    Some(sha256(text.as_bytes()))
}
