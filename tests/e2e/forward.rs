//! The forward path: from `kubectl apply` to Completed.

use std::process::Command;

use credit_migration::api::{CreditMigrationStatus, DecisionKind, Phase, Step, StepState, Writes};
use serde_json::json;

use super::{
    harness::{APPROVERS, AUTHOR, Setup, e2e},
    migration::{condition, ready},
};

#[tokio::test]
async fn happy_path() {
    e2e("happy", Setup { replicas: 2, ..Setup::default() }, |world| async move {
        let before = world.db.balances().await;
        let m = world.migrate("simplify", json!({"rollback": {"rehearsal": {"mode": "Daily"}}})).await;

        let status = m.phase(Phase::AwaitingApproval).await;
        assert_eq!(ready(&status).0, "ApprovalPending");
        let next = format!("next: kubectl creditmigration -n {} approve simplify", world.namespace);
        assert!(ready(&status).1.contains(&next), "{:?}", ready(&status));
        assert_eq!(condition(&status, "BackupVerified"), "True ReadThroughToEnd");
        assert_eq!(condition(&status, "RehearsalPassed"), "True RolledBackEqual");
        let digest = m.digest().await;
        let [alice, bob] = APPROVERS;
        // One approval is not enough, nor are two by the same approver. The author and other users may not approve.
        m.decide(alice, DecisionKind::Approve, Some(&digest)).await.unwrap();
        m.decide(alice, DecisionKind::Approve, Some(&digest)).await.unwrap();
        for user in [AUTHOR, "mallory@shop.example"] {
            let refused = m.decide(user, DecisionKind::Approve, Some(&digest)).await.unwrap_err();
            assert!(matches!(&refused, kube::Error::Api(e) if e.code == 403), "{user}: {refused}");
        }
        let status = m.until("one approval", |s| s.approvals.as_deref() == Some("1/2")).await;
        assert_eq!(status.phase, Some(Phase::AwaitingApproval));
        assert_eq!(world.flag().await, "v1");
        m.decide(bob, DecisionKind::Approve, Some(&digest)).await.unwrap();
        // Approved, but no one is present: the migration waits, and says for how many.
        let message = m.reason("PresencePending").await;
        assert!(message.contains("0 of 2 people present") && message.contains("ready simplify"), "{message}");
        m.decide(alice, DecisionKind::Ready, Some(&digest)).await.unwrap();
        m.decide(alice, DecisionKind::Ready, Some(&digest)).await.unwrap();
        m.until("one present", |s| s.schedule.as_ref().is_some_and(|x| x.presence.as_deref() == Some("1/2"))).await;
        assert_eq!(world.flag().await, "v1");
        m.decide(bob, DecisionKind::Ready, Some(&digest)).await.unwrap();

        // While the new version runs, a copy of the live database is rolled back.
        let rehearsed = |s: &CreditMigrationStatus| s.rollback_rehearsal.as_ref().is_some_and(|r| r.passed.is_some());
        let status = m.until("the rollback rehearsed", rehearsed).await;
        assert_eq!(condition(&status, "RollbackReady"), "True Switchable");
        let rehearsals = status.rollback_rehearsal.unwrap();
        assert!(rehearsals.expected_window_seconds.is_some_and(|seconds| seconds > 0), "{rehearsals:?}");
        let passed = rehearsals.passed.unwrap();
        assert!((passed.users, passed.users_written) == (1000, 0) && passed.rows > 1000, "{passed:?}");

        let status = m.completed().await;
        m.assert_new().await;
        assert_eq!(world.db.balances().await, before, "a balance changed");
        assert_eq!(status.approved_by, APPROVERS);
        assert_eq!((ready(&status).0.as_str(), condition(&status, "Ready").as_str()), ("Completed", "True Completed"));
        assert_eq!(condition(&status, "WritesBlocked"), "False Unblocked");
        assert_eq!(status.writes, Some(Writes::Open));
        let baseline = status.baseline.as_ref().unwrap();
        assert_eq!((baseline.users, &baseline.total_balance), (1000, &before.values().sum::<i64>().to_string()));
        let (backup, verified) = (status.backup.as_ref().unwrap(), status.verification.as_ref().unwrap());
        assert!(backup.object.starts_with(&format!("s3://backups/{}/", world.namespace)), "{}", backup.object);
        assert_eq!((backup.bytes, &backup.sha256), (verified.bytes, &verified.sha256));
        assert_eq!(status.rehearsal.as_ref().unwrap().users, 1000);
        let comparison = status.window.as_ref().unwrap().comparison.as_ref().unwrap();
        assert_eq!((comparison.users, comparison.unexplained), (1000, 0));
        // It runs in parallel to the others.
        let steps: Vec<_> = status.steps.iter().filter(|x| x.name != Step::RehearseRollback).collect();
        let order: Vec<Step> = steps.iter().map(|x| x.name).collect();
        let forward: Vec<Step> = credit_migration::machine::steps::FORWARD.iter().map(|r| r.step).collect();
        assert_eq!(order[..forward.len()], forward);
        // Steps that are not configured are skipped.
        let state = |s: Step| match s {
            Step::NotifyTeam | Step::CodeBackup => StepState::Skipped,
            _ => StepState::Succeeded,
        };
        assert!(steps[..forward.len()].iter().all(|x| x.state == state(x.name) && x.attempt == 1));
        let covered = status.conditions.iter().find(|c| c.type_ == "ChecklistCovered").unwrap();
        assert!(covered.status == "False" && covered.message.contains("tag and branch"), "{covered:?}");
        let users = status.key_users.as_ref().unwrap().users;
        let wanted = world.db.count("SELECT count(*) FROM user_credits WHERE balance > 1000").await;
        assert!(users >= u64::try_from(wanted).unwrap() && users > 0, "{users} key users, {wanted} by balance alone");
        let (day, week) = (status.day_report.as_ref().unwrap(), status.week_report.as_ref().unwrap());
        assert!(
            day.object.ends_with(".day-report.json") && week.object.ends_with(".week-report.json"),
            "{day:?} {week:?}"
        );

        m.cleaned().await;
        for step in forward.into_iter().filter(|s| state(*s) == StepState::Succeeded) {
            m.event(&format!("{step:?}Succeeded"), "").await;
        }
        m.event("Completed", "").await;
        table(&world.namespace);
        // Writes on v2 go through after the cleanup.
        let balance = before[&7];
        assert_eq!(world.deduct(7, 1).await, balance - 1);
    })
    .await;
}

/// Checks what `kubectl get` shows.
fn table(namespace: &str) {
    let output = Command::new("kubectl").args(["get", "creditmigrations", "-n", namespace]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let columns: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(columns[0], ["NAME", "PHASE", "STEP", "READY", "REASON", "APPROVALS", "WRITES", "AGE"], "{text}");
    assert_eq!(
        columns[1][..8],
        ["simplify", "Completed", "20/20", "Decide", "True", "Completed", "2/2", "Open"],
        "{text}"
    );
}
