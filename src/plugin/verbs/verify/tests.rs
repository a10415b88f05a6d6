//! Consistent evidence, and evidence with one inconsistent piece each.

use serde_json::json;

use super::*;
use crate::plugin::{
    Exit,
    commands::sound,
    inspect::record::tests::{at, completed, progress, run, status},
};

fn bad(record: &Record) -> Vec<CheckedItem> {
    verify(record).into_iter().filter(|f| f.state.is_problem()).collect()
}

#[test]
fn consistent_evidence_is_fine() {
    let found = verify(&completed());
    assert_eq!(bad(&completed()), vec![]);
    assert_eq!(exit_of(&found), Exit::Success);
    for what in ["backup, read back", "digest of the plan", "approvals", "writes were blocked", "decision to keep"] {
        assert!(found.iter().any(|f| f.what == what && f.state == State::Ok), "{what}: {found:#?}");
    }
}

/// One piece each that is missing or does not fit.
#[rstest::rstest]
#[case::altered_backup(
    "backup, read back",
    |r: &mut Record| status(r).verification.as_mut().unwrap().sha256 = "sha256:x".into()
)]
#[case::shorter_backup("backup, read back", |r: &mut Record| status(r).verification.as_mut().unwrap().bytes = 9)]
#[case::not_read_back("backup, read back", |r: &mut Record| status(r).verification = None)]
#[case::no_table_compared("rehearsal", |r: &mut Record| status(r).rehearsal.as_mut().unwrap().tables_equal = 0)]
#[case::other_users("rehearsal", |r: &mut Record| status(r).rehearsal.as_mut().unwrap().users = 1)]
#[case::another_spec("digest of the plan", |r: &mut Record| r.migration.spec.approval.required = 3)]
#[case::another_image("digest of the plan", |r: &mut Record| status(r).runner_image = Some("x".into()))]
#[case::edited_sql("up SQL", |r: &mut Record| r.sql[0] = Some("x".into()))]
#[case::one_approval(
    "approvals",
    |r: &mut Record| r.decisions.retain(|d| d.spec.by != "bob" || d.spec.decision != DecisionKind::Approve)
)]
#[case::one_twice("approvals", |r: &mut Record| r.decisions.iter_mut().for_each(|d| d.spec.by = "ann".into()))]
#[case::by_the_author("approvals", |r: &mut Record| r.decisions[0].spec.by = "author".into())]
#[case::of_another_plan("approvals", |r: &mut Record| r.decisions[0].spec.digest = Some("sha256:old".into()))]
#[case::before_the_last_window(
    "approvals",
    |r: &mut Record| status(r).approvals_after = Some(at("2030-01-01T01:30:00Z"))
)]
#[case::present_for_an_earlier_window(
    "presence",
    |r: &mut Record| status(r).approvals_after = Some(at("2030-01-01T01:30:00Z"))
)]
#[case::nobody_present("presence", |r: &mut Record| r.decisions.retain(|d| d.spec.decision != DecisionKind::Ready))]
#[case::not_verified("writes were blocked", |r: &mut Record| progress(r).verification = None)]
#[case::not_committed("SQL committed, once", |r: &mut Record| progress(r).migrate_seconds = None)]
#[case::unexplained(
    "balances after the change",
    |r: &mut Record| progress(r).comparison.as_mut().unwrap().unexplained = 1
)]
#[case::too_long("window", |r: &mut Record| progress(r).unblocked_at = Some(at("2030-01-01T02:01:01Z")))]
#[case::no_run("window", |r: &mut Record| r.runs.clear())]
#[case::kept_by_the_author(
    "decision to keep",
    |r: &mut Record| r.decisions.last_mut().unwrap().spec.by = "author".into()
)]
fn what_does_not_fit_is_reported(#[case] what: &str, #[case] change: fn(&mut Record)) {
    let mut record = completed();
    change(&mut record);
    let found = bad(&record);
    assert!(found.iter().any(|f| f.what == what), "{what}: {found:#?}");
}

#[test]
fn before_the_window_only_what_approval_rests_on_is_due() {
    let mut record = completed();
    record.decisions.clear();
    record.runs.clear();
    status(&mut record).phase = Some(Phase::AwaitingApproval);
    status(&mut record).approved_by.clear();
    assert_eq!(bad(&record), vec![]);
    let found = verify(&record);
    assert!(
        found
            .iter()
            .any(|f| f.what == "approvals" && f.message.contains("next: kubectl creditmigration -n shop approve m"))
    );
    status(&mut record).rehearsal = None;
    assert!(bad(&record).iter().any(|f| f.what == "rehearsal"));
    let commands: usize = found.iter().map(|f| sound(&f.message, "shop")).sum();
    assert_eq!(commands, 2, "approve and ready: {found:#?}");
}

/// As the operator counts them: who said so yesterday is not there now.
#[rstest::rstest]
#[case::now("2030-01-01T01:30:00Z", None, State::Ok)]
#[case::just_not("2030-01-01T01:59:59Z", None, State::Ok)]
#[case::stale("2030-01-01T02:00:00Z", None, State::NotYet)]
#[case::yesterday("2030-01-02T01:30:00Z", None, State::NotYet)]
#[case::of_a_window_without_effect("2030-01-01T01:30:00Z", Some("2030-01-01T01:10:00Z"), State::NotYet)]
fn presence_before_the_window(#[case] now: &str, #[case] after: Option<&str>, #[case] state: State) {
    let mut record = completed();
    record.at = at(now);
    record.runs.clear();
    status(&mut record).phase = Some(Phase::AwaitingApproval);
    status(&mut record).approvals_after = after.map(at);
    let found = verify(&record);
    let presence = found.iter().find(|f| f.what == "presence").unwrap();
    assert_eq!(presence.state, state, "{presence:?}");
}

#[test]
fn a_rollback_is_verified_as_well() {
    let mut record = completed();
    status(&mut record).phase = Some(Phase::RolledBack);
    status(&mut record).rollback = Some(
        serde_json::from_value(
            json!({"cause": "TriggerFired", "message": "errors", "startedAt": "2030-01-01T03:00:00Z"}),
        )
        .unwrap(),
    );
    assert!(bad(&record).iter().any(|f| f.what == "old schema"), "{:?}", bad(&record));
    record.runs.push(run(
        Task::RollbackWindow,
        json!({"state": "RolledBack", "blockedAt": "2030-01-01T03:00:00Z", "unblockedAt": "2030-01-01T03:00:05Z",
               "usersWrittenSince": 1, "comparison": {"users": 2, "unexplained": 0, "totalBalance": "3"}}),
    ));
    assert_eq!(bad(&record), vec![]);
    assert!(verify(&record).iter().any(|f| f.what == "window of the rollback" && f.state == State::Ok));
}
