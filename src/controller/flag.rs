//! The flag: its value, and whether its next write is accepted.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::{Context, Error, dry_run::try_patch};
use crate::{
    api::{CreditMigration, FLAG_SET_FOR, KeyRef},
    machine::{DryRun, ObservedFlag},
};

/// The patch that sets the flag and its marker, if the ConfigMap is still of this version.
pub(super) fn flag_patch(key: &KeyRef, value: &str, marker: &str, resource_version: Option<String>) -> Value {
    json!({
        "metadata": {"resourceVersion": resource_version, "annotations": {FLAG_SET_FOR: marker}},
        "data": {&key.key: value},
    })
}

/// What is observed of the flag.
pub(super) struct FlagFacts {
    /// The flag.
    pub(super) flag: ObservedFlag,
    /// Whether its next write is accepted.
    pub(super) write: DryRun,
    /// Value of the key that must be `true`.
    pub(super) rollback_enabled: Option<String>,
}

/// Reads the flag, and tries its next write.
pub(super) async fn observe(ctx: &Context, migration: &CreditMigration) -> Result<FlagFacts, Error> {
    let flag = &migration.spec.application.flag;
    let key = &flag.config_map_key_ref;
    let namespace = migration.namespace().unwrap_or_default();
    let map = Api::<ConfigMap>::namespaced(ctx.client.clone(), &namespace).get_opt(&key.name).await?;
    let write = match &map {
        None => DryRun::Untried,
        Some(map) => {
            try_patch::<ConfigMap>(ctx, migration, &key.name, |trial| {
                flag_patch(key, &trial.value, &trial.marker, map.resource_version())
            })
            .await
        }
    };
    let data = map.as_ref().and_then(|map| map.data.as_ref());
    Ok(FlagFacts {
        write,
        flag: flag_of(map.as_ref(), &key.key),
        rollback_enabled: data.and_then(|data| data.get(&flag.rollback_key)).cloned(),
    })
}

/// The flag in its ConfigMap, as it was read.
pub(super) fn flag_of(map: Option<&ConfigMap>, key: &str) -> ObservedFlag {
    let Some(map) = map else { return ObservedFlag::ConfigMapMissing };
    let data = map.data.as_ref();
    let Some(value) = data.and_then(|data| data.get(key)).cloned() else { return ObservedFlag::KeyMissing };
    let set_for = map.annotations().get(FLAG_SET_FOR).cloned();
    ObservedFlag::Value { value, immutable: map.immutable.unwrap_or(false), set_for }
}
