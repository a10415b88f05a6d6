//! The flag: its value, and whether its next write is accepted. The write is tried as a server-side dry run, by the same
//! patch, field manager and fence: it passes authorization, admission and validation, and changes nothing.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    core::Status,
};
use serde_json::{Value, json};
use tracing::warn;

use super::{Context, Error, MANAGER};
use crate::{
    api::{CreditMigration, FLAG_SET_FOR, KeyRef},
    machine::{DryRun, FlagTrial, ObservedFlag, flag_trial, one_line},
};

/// How long an answer is waited for: a webhook may take 10 s by default, and then refuses by its time-out.
const LONGEST: Duration = Duration::from_secs(15);
/// The same while writes are blocked: the decision does not wait for it.
const LONGEST_IN_WINDOW: Duration = Duration::from_secs(2);

/// An answer that did not refuse the write.
pub(super) struct Answer {
    trial: FlagTrial,
    at: Instant,
    answer: DryRun,
}

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
    let data = map.as_ref().and_then(|map| map.data.as_ref());
    Ok(FlagFacts {
        write: try_write(ctx, migration, map.as_ref()).await,
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

/// Whether the API server accepts the next write of the flag in this ConfigMap, if one may follow.
async fn try_write(ctx: &Context, migration: &CreditMigration, map: Option<&ConfigMap>) -> DryRun {
    let (namespace, name) = (migration.namespace().unwrap_or_default(), migration.name_any());
    let status = migration.status.clone().unwrap_or_default();
    let trial = flag_trial(&migration.spec, &status, &migration.uid().unwrap_or_default());
    let (Some(map), Some(trial)) = (map, trial) else { return DryRun::Untried };
    let recent = |known: &Answer| known.trial == trial && known.at.elapsed() < trial.max_age;
    let known = ctx.flag_answers.change(&namespace, &name, |known: &mut Option<Answer>| {
        known.as_ref().filter(|known| recent(known)).map(|known| known.answer.clone())
    });
    if let Some(known) = known {
        return known;
    }
    let key = &migration.spec.application.flag.config_map_key_ref;
    let patch = flag_patch(key, &trial.value, &trial.marker, map.resource_version());
    let params = PatchParams { dry_run: true, field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    let maps = Api::<ConfigMap>::namespaced(ctx.client.clone(), &namespace);
    let longest = if trial.in_window { LONGEST_IN_WINDOW } else { LONGEST };
    let answer = match tokio::time::timeout(longest, maps.patch(&key.name, &params, &Patch::Merge(patch))).await {
        Ok(Ok(_)) => DryRun::Accepted,
        Ok(Err(kube::Error::Api(status))) => answer_of(&status),
        Ok(Err(error)) => {
            warn!(%error, config_map = %key.name, "the dry run of the flag's write failed");
            DryRun::Untried
        }
        Err(_) => {
            warn!(config_map = %key.name, seconds = longest.as_secs(), "the dry run of the flag's write took too long");
            DryRun::Untried
        }
    };
    // What is refused is tried again: it may be accepted now.
    let kept = matches!(answer, DryRun::Accepted | DryRun::Unsupported(_));
    let answered = kept.then(|| Answer { trial, at: Instant::now(), answer: answer.clone() });
    ctx.flag_answers.change(&namespace, &name, |known| *known = answered);
    answer
}

/// What an error says of the write itself.
fn answer_of(status: &Status) -> DryRun {
    match (status.code, status.reason.as_str()) {
        // A webhook with side effects, by the API server. One that denies has its own reason, or none.
        (400, "BadRequest") => DryRun::Unsupported(one_line(&status.message)),
        // Written or removed by another, or the API server is overloaded or away.
        (404 | 409 | 429, _) => DryRun::Untried,
        (400..=500, _) => DryRun::Refused(one_line(&status.message)),
        _ => DryRun::Untried,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case::no_right(403, "Forbidden", DryRun::Refused("no".into()))]
    #[case::a_policy(422, "Invalid", DryRun::Refused("no".into()))]
    #[case::a_webhook_that_denies(400, "", DryRun::Refused("no".into()))]
    #[case::a_webhook_that_cannot_be_called(500, "InternalError", DryRun::Refused("no".into()))]
    #[case::a_webhook_with_side_effects(400, "BadRequest", DryRun::Unsupported("no".into()))]
    #[case::another_writer(409, "Conflict", DryRun::Untried)]
    #[case::removed(404, "NotFound", DryRun::Untried)]
    #[case::overloaded(429, "TooManyRequests", DryRun::Untried)]
    #[case::away(503, "ServiceUnavailable", DryRun::Untried)]
    fn only_what_refuses_the_write_itself_counts(#[case] code: u16, #[case] reason: &str, #[case] answer: DryRun) {
        let status = Status { code, reason: reason.into(), message: "no".into(), ..Status::default() };
        assert_eq!(answer_of(&status), answer);
    }
}
