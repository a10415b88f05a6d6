//! Tries the writes of the next switch as server-side dry runs, by the same patch, field manager and fence: they pass
//! authorization, admission and validation, and change nothing.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    time::{Duration, Instant},
};

use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
    core::{NamespaceResourceScope, Status},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tracing::warn;

use super::{Context, MANAGER};
use crate::{
    api::{CreditMigration, CreditMigrationStatus},
    machine::{DryRun, SwitchTrial, one_line, switch_trial},
};

/// How long an answer is waited for: a webhook may take 10 s by default, and then refuses by its time-out.
const LONGEST: Duration = Duration::from_secs(15);
/// The same while writes are blocked: the decision does not wait for it.
const LONGEST_IN_WINDOW: Duration = Duration::from_secs(2);

/// Answers that did not refuse the write, by kind and name of its object.
pub(super) type Answers = BTreeMap<String, Answer>;

/// An answer that did not refuse the write.
pub(super) struct Answer {
    trial: SwitchTrial,
    at: Instant,
    answer: DryRun,
}

/// Whether the API server accepts the patch with which the next switch of this migration would change the object, if
/// one may follow.
pub(super) async fn try_patch<K>(
    ctx: &Context,
    migration: &CreditMigration,
    name: &str,
    patch: impl FnOnce(&SwitchTrial) -> Value,
) -> DryRun
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let (namespace, of) = (migration.namespace().unwrap_or_default(), migration.name_any());
    let new = CreditMigrationStatus::default();
    let status = migration.status.as_ref().unwrap_or(&new);
    let trial = switch_trial(&migration.spec, status, &migration.uid().unwrap_or_default());
    let Some(trial) = trial else { return DryRun::Untried };
    let target = format!("{} {name}", K::kind(&()));
    let known = ctx.dry_runs.change(&namespace, &of, |known: &mut Answers| {
        let known = known.get(&target)?;
        (known.trial == trial && known.at.elapsed() < trial.max_age).then(|| known.answer.clone())
    });
    if let Some(known) = known {
        return known;
    }
    let params = PatchParams { dry_run: true, field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    let objects = Api::<K>::namespaced(ctx.client.clone(), &namespace);
    let longest = if trial.in_window { LONGEST_IN_WINDOW } else { LONGEST };
    let ask =
        async |patch: Value| match tokio::time::timeout(longest, objects.patch(name, &params, &Patch::Merge(patch)))
            .await
        {
            Ok(Ok(_)) => DryRun::Accepted,
            Ok(Err(kube::Error::Api(status))) => answer_of(&status),
            Ok(Err(error)) => {
                warn!(%error, target = %target, "a dry run of the switch failed");
                DryRun::Untried
            }
            Err(_) => {
                warn!(target = %target, seconds = longest.as_secs(), "a dry run of the switch took too long");
                DryRun::Untried
            }
        };
    let answer = match ask(patch(&trial)).await {
        // A webhook without dry runs is in the way of each one, so also of a patch without a change.
        DryRun::Unsupported(text) if ask(json!({})).await == DryRun::Accepted => DryRun::Refused(text),
        answer => answer,
    };
    // What is refused is asked for each time: it may be accepted now.
    let kept = matches!(answer, DryRun::Accepted | DryRun::Unsupported(_));
    ctx.dry_runs.change(&namespace, &of, |known| match kept {
        true => drop(known.insert(target, Answer { trial, at: Instant::now(), answer: answer.clone() })),
        false => drop(known.remove(&target)),
    });
    answer
}

/// What an error says of the write itself.
fn answer_of(status: &Status) -> DryRun {
    match (status.code, status.reason.as_str()) {
        // The API server's own answer for a webhook with side effects, without details. One that denies has its own
        // reason, or none; but it may have the same.
        (400, "BadRequest") if status.details.is_none() => DryRun::Unsupported(one_line(&status.message)),
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

    #[test]
    fn a_webhook_that_says_what_it_denies_refuses_the_write() {
        let status = serde_json::from_value::<Status>(json!({
            "code": 400, "reason": "BadRequest", "message": "no", "details": {"name": "shop"},
        }));
        let status = status.unwrap();
        assert_eq!(answer_of(&status), DryRun::Refused("no".into()));
    }
}
