//! Rollback to the old version: by a breached check, by an approver, by the deadline; inside the window and after it.

use std::process::Command;

use credit_migration::api::{DecisionKind, Phase, Reason, Step, Writes};
use serde_json::{Value, json};

use super::{
    checklist::inbox,
    cluster::eventually,
    harness::{APPROVERS, DEADLINE, LASTS, Setup, World, e2e},
    migration::{condition, ready},
};

#[tokio::test]
async fn by_a_breached_check_after_writes_on_v2() {
    e2e("breach", Setup::default(), |world| async move {
        let (before, purchases) =
            (world.db.balances().await, world.db.count("SELECT count(*) FROM credit_purchases").await);
        let check = json!({"name": "no-breach",
            "sql": {"query": "SELECT count(*) FROM users WHERE email = 'breach@example.com'"},
                           "interval": "1s", "max": "0", "failures": {"count": 2, "of": 2}, "onBreach": "Rollback"});
        let m = world.migrate("simplify", json!({"monitoring": {"duration": LASTS, "checks": [check]}})).await;
        m.approve().await;
        m.phase(Phase::Monitoring).await;
        m.assert_new().await;
        for (user, amount) in [(1, 3), (2, 5), (3, 7)] {
            assert_eq!(world.deduct(user, amount).await, before[&user] - amount);
        }
        let written = world.db.balances().await;
        // The status shows how many users a rollback would affect.
        m.until("written users", |s| s.users_written == Some(3)).await;
        world.db.run("INSERT INTO users (email, api_token) VALUES ('breach@example.com', 'breach')").await;

        let status = m.phase(Phase::RolledBack).await;
        m.assert_old("up,down").await;
        assert_eq!(world.running().await, "v1");
        let rollback = status.rollback.as_ref().unwrap();
        assert_eq!(rollback.cause, "TriggerFired");
        assert!(rollback.message.contains("no-breach") && rollback.message.contains("1 > 0"), "{}", rollback.message);
        assert_eq!(rollback.users_written_since, Some(3));
        assert_eq!(world.db.balances().await, written, "a balance changed in the rollback");
        assert_eq!(written.values().sum::<i64>(), before.values().sum::<i64>() - 15);
        assert_eq!(world.db.count("SELECT count(*) FROM credit_packages").await, 3);
        assert_eq!(world.db.count("SELECT count(*) FROM credit_purchases").await, purchases);
        assert_eq!(ready(&status).0, "RolledBack");
        for reason in ["TriggerFired", "RolledBack", "VerifyRollbackSucceeded"] {
            m.event(reason, "").await;
        }
        m.cleaned().await;
        assert_eq!(world.deduct(1, 1).await, before[&1] - 4);
    })
    .await;
}

#[tokio::test]
async fn by_an_approver_while_monitoring() {
    e2e("rollback", Setup::default(), |world| async move {
        let before = world.db.fingerprint().await;
        let m = world.migrate("simplify", json!({"monitoring": {"duration": LASTS}})).await;
        m.approve().await;
        m.phase(Phase::Monitoring).await;
        // The spec is immutable by now.
        let refused = m.edit(json!({"monitoring": {"duration": "1s"}})).await.unwrap_err().to_string();
        assert!(refused.contains("spec is immutable once the migration window has started"), "{refused}");
        // One approver suffices, and it must be an approver.
        m.decide("mallory@shop.example", DecisionKind::Rollback, None).await.unwrap_err();
        m.decide(APPROVERS[0], DecisionKind::Rollback, None).await.unwrap();
        let status = m.phase(Phase::RolledBack).await;
        m.assert_old("up,down").await;
        assert_eq!(world.running().await, "v1");
        assert_eq!(status.rollback.as_ref().unwrap().cause, "Rollback");
        m.cleaned().await;
        assert_eq!(world.db.fingerprint().await.tables, before.tables);
    })
    .await;
}

#[tokio::test]
async fn by_an_approver_inside_the_window() {
    e2e("abort-inside", Setup::default(), |world| async move {
        let before = world.db.balances().await;
        let m = world.migrate("simplify", World::never_switched()).await;
        m.approve().await;
        let status = m.step(Step::SwitchApplication).await;
        assert_eq!(status.writes, Some(credit_migration::api::Writes::Blocked));
        m.switched().await;
        assert!(world.db.writes_blocked().await);
        assert!(world.db.writable().await.is_err(), "writes are not blocked");
        let refused = m.edit(json!({"window": {"maxDuration": "31m"}})).await.unwrap_err().to_string();
        assert!(refused.contains("spec is immutable"), "{refused}");
        m.decide(APPROVERS[1], DecisionKind::Abort, None).await.unwrap();
        let status = m.phase(Phase::RolledBack).await;
        m.assert_old("up,down").await;
        assert_eq!(world.running().await, "v1");
        assert_eq!(status.rollback.as_ref().unwrap().cause, "Stopped");
        assert!(status.rollback.as_ref().unwrap().message.contains("bob@shop.example"));
        assert_eq!(world.db.balances().await, before);
        m.cleaned().await;
        assert_eq!(world.deduct(1, 1).await, before[&1] - 1);
    })
    .await;
}

#[tokio::test]
async fn by_the_deadline_when_the_rollout_hangs() {
    e2e("hanging", Setup::default(), |world| async move {
        let mut spec = World::never_switched();
        spec["window"] = json!({"maxDuration": DEADLINE});
        let m = world.migrate("simplify", spec).await;
        m.approve().await;
        let status = m.phase(Phase::RolledBack).await;
        m.assert_old("up,down").await;
        assert_eq!(status.rollback.as_ref().unwrap().cause, "DeadlinePassed");
        m.cleaned().await;
    })
    .await;
}

/// Nothing is refused for it: the approved down SQL is all that a rollback has. But everyone knows before.
#[tokio::test]
async fn one_that_would_fail_is_known_before_it_is_ordered() {
    let sample = Setup::default();
    let fails = "SELECT 1 / count(*) FILTER (WHERE NOT known) FROM
        (SELECT EXISTS (SELECT FROM users WHERE email = 'later@example.com') AS known) t;";
    let setup = Setup { down: format!("{}\n{fails}", sample.down), ..sample };
    e2e("fails-later", setup, |world| async move {
        world.further_secrets().await;
        let key = |key: &str| json!({"name": "notices", "key": key});
        let slack = json!({"urlSecretRef": key("slack-url"), "caSecretRef": key("ca.crt")});
        let m = world
            .migrate(
                "simplify",
                json!({
                    "schedule": {"leadTime": "0s"},
                    "rollback": {"rehearsal": {"mode": "Daily"}},
                    "followUps": {"day": {"after": LASTS}, "week": {"after": "48h"}},
                    "notifications": {"channels": [{"name": "slack", "audiences": ["Team"], "slack": slack}]},
                }),
            )
            .await;
        m.phase(Phase::AwaitingApproval).await;
        // After the rehearsal, in which the down SQL has passed.
        world.db.run("INSERT INTO users (email, api_token) VALUES ('later@example.com', 'later')").await;
        m.approve().await;
        let status =
            m.until("RollbackReady", |s| condition(s, "RollbackReady") == "False RollbackRehearsalFailed").await;
        assert_eq!((status.phase, status.writes), (Some(Phase::Observing), Some(Writes::Open)));
        let failed = status.rollback_rehearsal.unwrap().failed.unwrap();
        assert!(failed.reason == Reason::SqlFailed && failed.message.contains("division by zero"), "{failed:?}");
        m.event("RollbackRehearsalFailed", "division by zero").await;
        let notices = format!("/{}/slack", world.namespace);
        let about = |all: &[Value]| all.iter().filter(|text| text.to_string().contains("division by zero")).count();
        eventually("the notice", async || match about(&inbox(&notices).await) {
            1 => Ok(()),
            n => Err(format!("{n} notices")),
        })
        .await;
        let plugin = env!("CARGO_BIN_EXE_kubectl-creditmigration");
        let preview = Command::new(plugin).args(["rollback", &m.name, "-n", &world.namespace]).output().unwrap();
        let preview = String::from_utf8_lossy(&preview.stdout).into_owned();
        for part in ["no, it would block writes and fail: RollbackRehearsalFailed", "SqlFailed", "nothing was done"] {
            assert!(preview.contains(part), "{part}:\n{preview}");
        }
        m.assert_new().await;
        let events = world.events(&m.name).await;
        assert_eq!(events.iter().filter(|(reason, _)| reason == "RollbackRehearsalFailed").count(), 1, "{events:?}");
        assert_eq!(about(&inbox(&notices).await), 1);
    })
    .await;
}
