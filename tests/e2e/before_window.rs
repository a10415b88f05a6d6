//! Before the window nothing of the application is changed.

use credit_migration::api::{DecisionKind, Phase};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use serde_json::json;

use super::{
    database::DOWN,
    harness::{APPROVERS, LASTS, SQL, Setup, e2e},
    latch::Latch,
    migration::ready,
};

fn idle() -> Setup {
    Setup { replicas: 0, ..Setup::default() }
}

#[tokio::test]
async fn abort() {
    e2e("abort", idle(), |world| async move {
        let before = world.db.fingerprint().await;
        let m = world.migrate("simplify", json!({})).await;
        m.phase(Phase::AwaitingApproval).await;
        assert!(world.db.triggers().await > 0);
        m.decide(APPROVERS[0], DecisionKind::Abort, None).await.unwrap();
        let status = m.phase(Phase::Cancelled).await;
        assert!(ready(&status).1.contains("nothing was changed"), "{:?}", ready(&status));
        m.cleaned().await;
        m.assert_old("").await;
        assert_eq!(world.db.fingerprint().await, before);
    })
    .await;
}

/// Its keys are mounted as they are, for the runner and for `pg_dump` and `pg_restore`.
#[tokio::test]
async fn a_secret_of_an_operator_for_postgresql() {
    e2e("secret", idle(), |world| async move {
        world.secret("credentials", world.db.credentials()).await;
        let connection = json!({
            "secretRef": {"name": "credentials", "key": null}, "host": "postgres.postgres", "sslMode": "VerifyCa",
        });
        let m = world.migrate("simplify", json!({"database": {"connection": connection}})).await;
        m.phase(Phase::AwaitingApproval).await;
    })
    .await;
}

#[tokio::test]
async fn what_was_approved_is_what_runs() {
    e2e("edited", Setup::default(), |world| async move {
        let m = world.migrate("simplify", json!({})).await;
        m.phase(Phase::AwaitingApproval).await;
        let first = m.digest().await;
        m.decide(APPROVERS[0], DecisionKind::Approve, Some(&first)).await.unwrap();
        m.until("an approval", |s| s.approvals.as_deref() == Some("1/2")).await;
        let new_plan = |old: String| {
            move |s: &credit_migration::api::CreditMigrationStatus| {
                s.phase == Some(Phase::AwaitingApproval)
                    && s.plan.as_ref().and_then(|p| p.digest.as_ref()).is_some_and(|d| *d != old)
            }
        };

        // The SQL is changed after an approval.
        world.patch::<ConfigMap>(SQL, json!({"data": {"up.sql": Latch::Rehearse.up()}})).await;
        let status = m.until("a new plan", new_plan(first.clone())).await;
        assert_eq!((status.approvals.as_deref(), status.approved_by.len()), (Some("0/2"), 0));
        // An approval of the old plan does not count.
        m.decide(APPROVERS[1], DecisionKind::Approve, Some(&first)).await.unwrap();
        let second = m.digest().await;
        m.decide(APPROVERS[0], DecisionKind::Approve, Some(&second)).await.unwrap();
        let status = m.until("an approval", |s| s.approvals.as_deref() == Some("1/2")).await;
        assert_eq!(status.approved_by, [APPROVERS[0]]);

        // The spec is changed after an approval.
        m.edit(json!({"window": {"maxDuration": "31m"}})).await.unwrap();
        let status = m.until("a new plan", new_plan(second.clone())).await;
        assert_eq!((status.approvals.as_deref(), status.approved_by.len()), (Some("0/2"), 0));
        m.event("PreparationRestarted", "").await;
        // These fields are immutable.
        for (patch, part) in [
            (json!({"requestedBy": "x"}), "requestedBy"),
            (json!({"database": {"name": "x"}}), "database.name is immutable"),
        ] {
            let refused = m.edit(patch).await.unwrap_err().to_string();
            assert!(refused.contains(part), "{refused}");
        }
        // The spec is edited during the rehearsal.
        let closed = world.db.close(Latch::Rehearse).await;
        m.edit(json!({"window": {"maxDuration": "32m"}})).await.unwrap();
        world.db.sql_waits(Latch::Rehearse).await;
        m.edit(json!({"window": {"maxDuration": "33m"}})).await.unwrap();
        m.until("the last edit", |s| s.plan.as_ref().is_some_and(|p| p.generation == 4)).await;
        drop(closed);
        let status = m
            .until("the last spec", |s| s.plan.as_ref().is_some_and(|p| p.generation == 4 && p.digest.is_some()))
            .await;
        // The events name this backup, not the first one with a higher count.
        let backup = status.backup.unwrap().object;
        m.event("BackupSucceeded", &backup).await;

        // The last plan is the one that is run.
        m.approve().await;
        let status = m.completed().await;
        m.assert_new().await;
        assert_eq!(
            world.db.ask("SELECT sql_sha256 FROM credit_migration.ledger").await,
            status.plan.map(|p| p.up_sha256)
        );
        m.cleaned().await;
    })
    .await;
}

#[tokio::test]
async fn two_migrations_on_one_database() {
    e2e("two", idle(), |world| async move {
        let first = world.migrate("first", json!({})).await;
        first.phase(Phase::AwaitingApproval).await;
        let second = world.migrate("second", json!({})).await;
        let message = second.reason("DatabaseInUse").await;
        assert!(message.contains("migration first") && message.contains("next:"), "{message}");
        second.event("DatabaseInUse", "").await;
        assert_eq!(first.status().await.phase, Some(Phase::AwaitingApproval));
        first.decide(APPROVERS[0], DecisionKind::Abort, None).await.unwrap();
        first.phase(Phase::Cancelled).await;
        second.phase(Phase::AwaitingApproval).await;
    })
    .await;
}

#[tokio::test]
async fn an_undecodable_object_affects_no_other() {
    e2e("undecodable", idle(), |world| async move {
        // Unknown fields are pruned, or rejected under strict validation, which kubectl asks for.
        let m = world.migrate("unknown-field", json!({"surprise": true})).await;
        assert!(serde_json::to_value(m.get().await).unwrap()["spec"].get("surprise").is_none());
        let kind = kube::discovery::ApiResource::erase::<credit_migration::api::CreditMigration>(&());
        let api: kube::Api<kube::api::DynamicObject> =
            kube::Api::namespaced_with(world.client.clone(), &world.namespace, &kind);
        let object = json!({"apiVersion": "creditmigration.io/v1alpha1", "kind": "CreditMigration",
            "metadata": {"name": "strict"},
                            "spec": world.spec(json!({"surprise": true, "requestedBy": "admin"}))});
        let strict = PostParams { field_manager: Some("e2e".into()), ..Default::default() };
        let mut request =
            kube::core::Request::new(api.resource_url()).create(&strict, object.to_string().into_bytes()).unwrap();
        let uri = format!("{}&fieldValidation=Strict", request.uri()).parse().unwrap();
        *request.uri_mut() = uri;
        let refused = world.client.request::<serde_json::Value>(request).await.unwrap_err().to_string();
        assert!(refused.contains("unknown field \"spec.surprise\""), "{refused}");

        // Valid by the schema, but not by the operator's types.
        let odd = json!({"rollback": {"triggers": {"balanceErrors": {"maxUsers": u64::from(u32::MAX) + 1}}}});
        let undecodable = world.try_migrate("undecodable", odd).await.unwrap();
        undecodable.event("Undecodable", "next:").await;
        // Other migrations continue.
        m.phase(Phase::AwaitingApproval).await;
    })
    .await;
}

/// What database teams set for a role, and editors put before a text, is met in each task.
#[tokio::test]
async fn a_login_that_acts_as_the_owner_with_short_limits() {
    let sample = Setup::default();
    // It takes longer than the limits of the role, and writes as the owner.
    let further = "SELECT pg_sleep(1.5); UPDATE user_credits SET balance = balance;";
    let setup = Setup { up: format!("\u{feff}{}\n{further}", sample.up), ..sample };
    e2e("group-role", setup, |world| async move {
        let before = world.db.balances().await;
        world.db.give_to_group().await;
        let migrator = world.db.migrator();
        let limits = ["transaction_timeout", "statement_timeout", "idle_in_transaction_session_timeout"];
        for limit in limits {
            world.db.run(&format!("ALTER ROLE {migrator} SET {limit} = '1s'")).await;
        }
        let m = world.migrate("simplify", json!({"monitoring": {"duration": LASTS}})).await;
        m.approve().await;
        m.phase(Phase::Monitoring).await;
        m.assert_new().await;
        m.decide(APPROVERS[0], DecisionKind::Rollback, None).await.unwrap();
        m.phase(Phase::RolledBack).await;
        m.assert_old("up,down").await;
        assert_eq!(world.db.balances().await, before);
        m.cleaned().await;
    })
    .await;
}

#[tokio::test]
async fn a_schema_that_changed_since_the_rehearsal_is_rehearsed_again() {
    e2e("schema-drift", Setup::default(), |world| async move {
        let m = world.migrate("simplify", json!({})).await;
        m.phase(Phase::AwaitingApproval).await;
        let digest = m.digest().await;
        world.db.run("ALTER TABLE users ADD COLUMN nickname text").await;
        m.approve().await;
        let found = m.event("SchemaDrifted", "table public.users changed").await;
        assert!(found.contains("no SQL was run") && found.contains("limit 0 objects"), "{found}");
        m.event("PreparationRestarted", "").await;
        m.until("another plan", |s| {
            s.phase == Some(Phase::AwaitingApproval)
                && s.approvals.as_deref() == Some("0/2")
                && s.plan.as_ref().and_then(|p| p.digest.as_ref()).is_some_and(|d| *d != digest)
        })
        .await;
        m.assert_old("").await;
        m.approve().await;
        m.completed().await;
        m.assert_new().await;
    })
    .await;
}

#[tokio::test]
async fn a_down_sql_that_fails_on_new_rows_is_found_before_approval() {
    // Right for each row of the backup.
    let strict = "ALTER TABLE credit_transactions ADD CONSTRAINT small CHECK (amount < 1000000);
        ALTER TABLE credit_transactions DROP CONSTRAINT small;";
    let sample = Setup::default();
    let setup = Setup { down: format!("{}\n{strict}", sample.down), replicas: 0, ..sample };
    e2e("new-rows", setup, |world| async move {
        let writes =
            "INSERT INTO credit_transactions (user_id, type, amount) VALUES (7, 'subscription_grant', 1000000);
            UPDATE user_credits SET balance = balance + 1000000 WHERE user_id = 7;";
        let m = world.migrate("simplify", json!({"rehearsal": {"writes": writes}})).await;
        let status = m.phase(Phase::Failed).await;
        let (reason, message) = ready(&status);
        assert!(reason == "SqlFailed" && message.contains("after spec.rehearsal.writes: "), "{reason}: {message}");
        assert_eq!(status.plan.and_then(|plan| plan.digest), None, "there is nothing to approve");
        m.assert_old("").await;
        // Corrected, it can be approved, and the evidence is there.
        world.patch::<ConfigMap>(SQL, json!({"data": {"down.sql": DOWN}})).await;
        let status = m.until("the plan", |s| s.phase == Some(Phase::AwaitingApproval)).await;
        let written = status.rehearsal.unwrap().writes.unwrap();
        assert_eq!((written.rows, written.users), (2, 1));
    })
    .await;
}
