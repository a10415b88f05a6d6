//! Verbs that decide: each creates one `MigrationDecision`.
//!
//! A verb reads the migration, refuses a decision that would have no effect, and creates it under the user name by
//! which the API server knows the caller.

use clap::Args;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, ResourceExt, api::PostParams};

use super::{
    completion,
    preview::{preview, preview_text},
    status::current_state,
};
use crate::{
    api::{CreditMigration, DecisionKind, MigrationDecision, MigrationDecisionSpec, Phase, ReadyReason, Step},
    plugin::{
        PluginError,
        connection::ClusterConnection,
        output::{Format, Output},
    },
    shared::command::plugin,
};

pub(crate) const APPROVE: &str = "\
Approves the plan with the current status.plan.digest: spec, SQL, image, backup and rehearsal. The author's own approval
does not count.

Examples:
  kubectl creditmigration verify simplify-credits
  kubectl creditmigration approve simplify-credits --reason \"rehearsal reviewed\"";
pub(crate) const READY: &str = "\
The window starts only while enough people are present: spec.schedule.presence. A confirmation is valid for
presence.within.

Examples:
  kubectl creditmigration ready simplify-credits
  kubectl creditmigration ready simplify-credits --reason \"on call until 04:00\"";
pub(crate) const REJECT: &str = "\
Stops this plan. A change of spec or SQL starts a new one.

Examples:
  kubectl creditmigration reject simplify-credits --reason \"not before the holidays\"";
pub(crate) const ABORT: &str = "\
One person suffices. Effective in every phase except Completed, RolledBack, Cancelled, RollingBack and RollbackFailed.

Examples:
  kubectl creditmigration abort simplify-credits --reason \"wrong night\"";
pub(crate) const ROLLBACK: &str = "\
Without --confirm the verb only shows what would be undone. With it, and a reason, one person suffices, from the start
of the window until the new version is kept, and after RollbackFailed. One that would not work now (RollbackReady=False)
is refused without --force.

Examples:
  kubectl creditmigration rollback simplify-credits
  kubectl creditmigration rollback simplify-credits --confirm --reason \"payments fail\"";
pub(crate) const KEEP: &str = "\
Ends the migration: the new version stays. Only after the week review, and not by the author.

Examples:
  kubectl creditmigration report simplify-credits
  kubectl creditmigration keep simplify-credits --reason \"goals are met\"";

/// A migration, and why.
#[derive(Args, Debug)]
pub(crate) struct DecisionArgs {
    /// Name of the CreditMigration.
    #[arg(add = completion::names())]
    name: String,
    /// Why; it is stored with the decision.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Output format of the created decision.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// A rollback.
#[derive(Args, Debug)]
pub(crate) struct RollbackArgs {
    #[command(flatten)]
    target: DecisionArgs,
    /// Do it. Without this option the verb only shows what would be undone.
    #[arg(long, requires = "reason")]
    confirm: bool,
    /// Also if it would not work now (RollbackReady=False). It then waits with writes open, unless the down SQL fails.
    #[arg(long, requires = "confirm")]
    force: bool,
}

/// Creates a decision.
pub(crate) async fn decide(
    connection: &ClusterConnection,
    decision: DecisionKind,
    target: DecisionArgs,
) -> Result<Output, PluginError> {
    let migration = connection.migration(&target.name).await?;
    let by = connection.whoami().await?;
    let wanted = decision_on(&migration, decision, &by, target.reason)?;
    let object = MigrationDecision {
        metadata: ObjectMeta { generate_name: Some(format!("{}-", target.name)), ..Default::default() },
        spec: wanted,
    };
    let api: Api<MigrationDecision> = connection.api();
    let mut made = match api.create(&PostParams::default(), &object).await {
        Ok(made) => made,
        Err(kube::Error::Api(status)) if status.code == 403 => {
            // Without an answer the refusal is printed as it is.
            let has_permission = connection.may::<MigrationDecision>("create", None).await.unwrap_or(true);
            return Err(explain_refusal(status.message, has_permission, &by, decision));
        }
        Err(other) => return Err(other.into()),
    };
    // kubectl does not show them either.
    made.metadata.managed_fields = None;
    // Not the state before the decision: that would read as if the decision had no effect.
    let text = || {
        let next = plugin(&connection.namespace, format!("status {}", target.name));
        format!("migrationdecision/{} created: {decision} by {by}; to see its effect: {next}", made.name_any())
    };
    Ok(Output::success(target.output.write(&made, text)?))
}

/// Creates a `Rollback`, or shows what it would undo.
pub(crate) async fn rollback(connection: &ClusterConnection, args: RollbackArgs) -> Result<Output, PluginError> {
    if args.confirm {
        if !args.force {
            check_works(&connection.migration(&args.target.name).await?)?;
        }
        return decide(connection, DecisionKind::Rollback, args.target).await;
    }
    let migration = connection.migration(&args.target.name).await?;
    check_applicable(&migration, DecisionKind::Rollback, "")?;
    let preview = preview(&migration);
    Ok(Output::success(args.target.output.write(&preview, || preview_text(&migration, &preview))?))
}

/// Checks that a rollback would work now, as far as it is known.
///
/// # Errors
/// `InvalidState` with what is in the way, and what to do.
fn check_works(m: &CreditMigration) -> Result<(), PluginError> {
    let conditions = m.status.iter().flat_map(|status| &status.conditions);
    let mut missing = conditions.filter(|c| c.type_ == "RollbackReady" && c.status == "False");
    // The last one did not start: this is the next one.
    let Some(missing) = missing.find(|c| c.reason != ReadyReason::RollbackNotStarted.as_str()) else { return Ok(()) };
    Err(PluginError::InvalidState(format!(
        "the rollback would not work now, and is not ordered: {}: {}; to order it all the same: --force",
        missing.reason, missing.message
    )))
}

/// The API server's refusal; if the caller lacks the permission, with who can grant it.
fn explain_refusal(refusal: String, has_permission: bool, by: &str, decision: DecisionKind) -> PluginError {
    if has_permission {
        return PluginError::Refused(refusal);
    }
    let role = match decision {
        DecisionKind::Abort | DecisionKind::Rollback => "credit-migration-responder",
        DecisionKind::Approve | DecisionKind::Ready | DecisionKind::Reject | DecisionKind::Keep => {
            "credit-migration-approver"
        }
    };
    PluginError::Refused(format!(
        "{refusal}; next: ask a cluster administrator for a RoleBinding of {by} to ClusterRole {role} in this namespace"
    ))
}

/// The decision, or why it would have no effect. Pure.
fn decision_on(
    m: &CreditMigration,
    decision: DecisionKind,
    by: &str,
    reason: Option<String>,
) -> Result<MigrationDecisionSpec, PluginError> {
    check_applicable(m, decision, by)?;
    let digest = m.status.as_ref().and_then(|s| s.plan.as_ref()).and_then(|p| p.digest.clone());
    Ok(MigrationDecisionSpec {
        migration: m.name_any(),
        migration_uid: m.uid().unwrap_or_default(),
        decision,
        by: by.into(),
        reason,
        // A request to stop must not be refused because the plan has changed meanwhile.
        digest: if matches!(decision, DecisionKind::Abort | DecisionKind::Rollback) { None } else { digest },
    })
}

/// Checks that the decision would have an effect now.
///
/// # Errors
/// `InvalidState` with the reason, the state of the migration, and the applicable verb.
fn check_applicable(m: &CreditMigration, decision: DecisionKind, by: &str) -> Result<(), PluginError> {
    let status = m.status.as_ref();
    let phase = status.and_then(|s| s.phase);
    let has_digest = status.and_then(|s| s.plan.as_ref()).is_some_and(|p| p.digest.is_some());
    let author = m.spec.requested_by == by;
    let (namespace, name) = (m.namespace().unwrap_or_default(), m.name_any());
    let refuse = |why: &str| Err(PluginError::InvalidState(format!("{why}; {}", current_state(m))));
    match decision {
        DecisionKind::Approve | DecisionKind::Reject if phase != Some(Phase::AwaitingApproval) => {
            refuse("there is nothing to approve or reject now")
        }
        DecisionKind::Approve | DecisionKind::Ready if rejected(m) => {
            refuse("the plan was rejected: its author has to change it, and the new one needs approvals")
        }
        DecisionKind::Approve if status.is_some_and(|s| s.approved_by.iter().any(|name| name == by)) => {
            refuse("you have already approved this plan")
        }
        DecisionKind::Approve if author => refuse("the author's own approval does not count: ask another person"),
        DecisionKind::Ready if phase != Some(Phase::AwaitingApproval) => {
            refuse("the migration does not wait for presence now")
        }
        DecisionKind::Keep if phase != Some(Phase::Observing) => {
            refuse("there is nothing to keep yet: decide after the week review, in phase Observing")
        }
        DecisionKind::Keep if status.and_then(|s| s.step) != Some(Step::Decide) => {
            refuse("it is too early to keep the new version: the day check and the week review come first")
        }
        DecisionKind::Keep if author => refuse("the author cannot decide to keep the new version: ask another person"),
        DecisionKind::Approve | DecisionKind::Ready | DecisionKind::Keep if !has_digest => {
            refuse("the plan has no digest: the rehearsal has not passed")
        }
        DecisionKind::Abort | DecisionKind::Rollback
            if matches!(phase, Some(Phase::Completed | Phase::RolledBack | Phase::Cancelled)) =>
        {
            refuse("the migration has ended")
        }
        DecisionKind::Abort if matches!(phase, Some(Phase::RollingBack | Phase::RollbackFailed)) => {
            let again = plugin(&namespace, format!("rollback {name} --confirm --reason \"...\""));
            refuse(&format!("it is already rolling back; after RollbackFailed: {again}"))
        }
        DecisionKind::Rollback if phase == Some(Phase::RollingBack) => {
            let next = plugin(&namespace, format!("watch {name}"));
            refuse(&format!("it is already rolling back; next: {next}"))
        }
        DecisionKind::Rollback
            if matches!(phase, None | Some(Phase::Preparing | Phase::AwaitingApproval | Phase::Failed)) =>
        {
            let next = plugin(&namespace, format!("abort {name}"));
            refuse(&format!("the window has not started, nothing was changed; to stop it: {next}"))
        }
        _ => Ok(()),
    }
}

/// Whether a Reject blocks the plan.
fn rejected(m: &CreditMigration) -> bool {
    let conditions = m.status.iter().flat_map(|s| &s.conditions);
    conditions.filter(|c| c.type_ == "Ready").any(|c| c.reason == ReadyReason::Rejected.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{commands::sound, verbs::preview::tests::migration};

    fn at_step(phase: Phase, step: Step) -> CreditMigration {
        let mut m = migration(phase);
        m.status.as_mut().unwrap().step = Some(step);
        m
    }

    #[rstest::rstest]
    #[case(DecisionKind::Approve, Phase::AwaitingApproval, "ann", Some("sha256:x"))]
    #[case(DecisionKind::Reject, Phase::AwaitingApproval, "author", Some("sha256:x"))]
    #[case(DecisionKind::Ready, Phase::AwaitingApproval, "author", Some("sha256:x"))]
    #[case(DecisionKind::Abort, Phase::Preparing, "author", None)]
    #[case(DecisionKind::Abort, Phase::Executing, "ann", None)]
    #[case(DecisionKind::Rollback, Phase::Executing, "ann", None)]
    #[case(DecisionKind::Rollback, Phase::Validating, "author", None)]
    #[case(DecisionKind::Rollback, Phase::Monitoring, "ann", None)]
    #[case(DecisionKind::Rollback, Phase::Observing, "ann", None)]
    #[case(DecisionKind::Rollback, Phase::RollbackFailed, "ann", None)]
    fn a_word_in_its_time(
        #[case] decision: DecisionKind,
        #[case] phase: Phase,
        #[case] by: &str,
        #[case] digest: Option<&str>,
    ) {
        let spec = decision_on(&migration(phase), decision, by, None).unwrap();
        assert_eq!((spec.by.as_str(), spec.digest.as_deref()), (by, digest));
    }

    #[rstest::rstest]
    #[case(DecisionKind::Approve, Phase::AwaitingApproval, "author", "own approval does not count")]
    #[case(DecisionKind::Approve, Phase::Preparing, "ann", "nothing to approve")]
    #[case(DecisionKind::Reject, Phase::Monitoring, "ann", "nothing to approve")]
    #[case(DecisionKind::Ready, Phase::Executing, "ann", "does not wait for presence")]
    #[case(DecisionKind::Ready, Phase::Preparing, "ann", "does not wait for presence")]
    #[case(DecisionKind::Keep, Phase::Monitoring, "ann", "nothing to keep yet")]
    #[case(DecisionKind::Keep, Phase::Observing, "ann", "too early")]
    #[case(DecisionKind::Abort, Phase::Completed, "ann", "has ended")]
    #[case(DecisionKind::Abort, Phase::RollbackFailed, "ann", "already rolling back")]
    #[case(DecisionKind::Rollback, Phase::RolledBack, "ann", "has ended")]
    #[case(DecisionKind::Rollback, Phase::RollingBack, "ann", "creditmigration -n shop watch m")]
    #[case(DecisionKind::Rollback, Phase::AwaitingApproval, "ann", "creditmigration -n shop abort m")]
    #[case(DecisionKind::Rollback, Phase::Failed, "ann", "nothing was changed")]
    fn a_word_that_would_do_nothing(
        #[case] decision: DecisionKind,
        #[case] phase: Phase,
        #[case] by: &str,
        #[case] why: &str,
    ) {
        let error = decision_on(&migration(phase), decision, by, None).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        let printed = error.to_string().matches("kubectl ").count();
        assert_eq!(sound(&error.to_string(), "shop"), printed);
        assert_eq!(error.exit(), crate::plugin::Exit::InvalidState);
    }

    #[rstest::rstest]
    #[case("True", "Switchable", None)]
    #[case("Unknown", "SafeguardsNotMeasured", None)]
    #[case::the_next_one("False", "RollbackNotStarted", None)]
    #[case("False", "WorkloadPaused", Some("not ordered: WorkloadPaused: it is paused; next: resume it"))]
    #[case("False", "RollbackRehearsalFailed", Some("to order it all the same: --force"))]
    fn a_rollback_that_would_not_work_is_not_ordered(
        #[case] status: &str,
        #[case] reason: &str,
        #[case] refused: Option<&str>,
    ) {
        let mut m = migration(Phase::Observing);
        let condition = serde_json::json!({
            "type": "RollbackReady", "status": status, "reason": reason, "message": "it is paused; next: resume it",
            "lastTransitionTime": "2030-01-01T00:00:00Z",
        });
        m.status.as_mut().unwrap().conditions = vec![serde_json::from_value(condition).unwrap()];
        let answer = check_works(&m).map_err(|error| error.to_string());
        match refused {
            Some(why) => assert!(answer.clone().unwrap_err().contains(why), "{answer:?}"),
            None => assert_eq!(answer, Ok(())),
        }
    }

    #[test]
    fn a_word_that_counts_already_or_no_more_is_not_repeated() {
        let mut m = migration(Phase::AwaitingApproval);
        m.status.as_mut().unwrap().approved_by = vec!["ann".into()];
        let again = decision_on(&m, DecisionKind::Approve, "ann", None).unwrap_err().to_string();
        assert!(again.contains("you have already approved this plan"), "{again}");
        assert!(decision_on(&m, DecisionKind::Approve, "bob", None).is_ok());
        assert!(decision_on(&m, DecisionKind::Reject, "ann", None).is_ok(), "a change of mind");
        let rejected = serde_json::json!({
            "type": "Ready", "status": "False", "reason": "Rejected", "message": "bob rejected it",
            "lastTransitionTime": "2030-01-01T00:00:00Z",
        });
        m.status.as_mut().unwrap().conditions = vec![serde_json::from_value(rejected).unwrap()];
        for decision in [DecisionKind::Approve, DecisionKind::Ready] {
            let refused = decision_on(&m, decision, "cid", None).unwrap_err().to_string();
            assert!(
                refused.contains("its author has to change it") && refused.contains("bob rejected it"),
                "{refused}"
            );
        }
    }

    #[test]
    fn whoever_may_not_decide_learns_who_gives_the_right() {
        let refused = |has_permission, decision| {
            explain_refusal("it cannot be".to_owned(), has_permission, "dave", decision).to_string()
        };
        for (decision, role) in [(DecisionKind::Approve, "approver"), (DecisionKind::Rollback, "responder")] {
            let role = format!("dave to ClusterRole credit-migration-{role} in this namespace");
            let refusal = refused(false, decision);
            assert!(refusal.starts_with("it cannot be; next: ") && refusal.ends_with(&role), "{refusal}");
            // A policy or a webhook has refused it.
            assert_eq!(refused(true, decision), "it cannot be");
        }
    }

    #[test]
    fn keeping_is_for_another_person_at_its_step() {
        let m = at_step(Phase::Observing, Step::Decide);
        let spec = decision_on(&m, DecisionKind::Keep, "ann", Some("good".into())).unwrap();
        assert_eq!((spec.digest.as_deref(), spec.reason.as_deref()), (Some("sha256:x"), Some("good")));
        for (m, by, why) in
            [(&at_step(Phase::Observing, Step::WeekReview), "ann", "too early"), (&m, "author", "author cannot decide")]
        {
            let error = decision_on(m, DecisionKind::Keep, by, None).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[rstest::rstest]
    fn without_a_digest_nothing_is_said(#[values(DecisionKind::Approve, DecisionKind::Ready)] decision: DecisionKind) {
        let mut m = migration(Phase::AwaitingApproval);
        m.status.as_mut().unwrap().plan.as_mut().unwrap().digest = None;
        let error = decision_on(&m, decision, "ann", None).unwrap_err().to_string();
        assert!(error.contains("no digest"), "{error}");
    }
}
