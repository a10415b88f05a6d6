//! RehearseRollback.

use credit_migration::api::{Reason, RollbackRehearsalEvidence, Task, sha256};

use crate::harness::{DOWN, UP, USERS, World};

/// After the cutover, with two users that the new version has written.
async fn live(down: &str) -> World {
    let mut world = World::new().await;
    world.cutover(UP).await;
    world.sql(UP, down);
    world.alter(&write(7)).await;
    world.alter(&write(8)).await;
    world
}

/// What the new version writes for a user: only it grants by subscription.
fn write(user: u32) -> String {
    format!(
        "BEGIN; INSERT INTO credit_transactions (user_id, type, amount) VALUES ({user}, 'subscription_grant', 100);
         UPDATE user_credits SET balance = balance + 100 WHERE user_id = {user}; COMMIT"
    )
}

async fn stays_as_it_is(world: &World) {
    assert!(!world.has_scratch().await);
    assert_eq!(world.count("SELECT count(*) FROM credit_plans").await, 3, "still on the new schema");
    assert_eq!(world.count("SELECT count(*) FROM credit_migration.ledger").await, 1);
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop_{n}' AND usename = 'migrator_{n}'";
    assert_eq!(world.count(sessions).await, 0, "no session is left");
}

#[tokio::test]
async fn a_rollback_is_rehearsed_on_what_was_written_since() {
    let world = live(DOWN).await;
    let stored = world.stored();
    let outcome = world.run(Task::RehearseRollback).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    let evidence: RollbackRehearsalEvidence =
        serde_json::from_value(outcome.noted["rollbackRehearsal"].clone()).unwrap();
    assert_eq!((evidence.users, evidence.users_written), (USERS, 2));
    assert_eq!(evidence.credits_written.as_deref(), Some("200"));
    let rows = world
        .count(
            "SELECT sum(n)::bigint FROM (SELECT count(*) AS n FROM users UNION ALL SELECT count(*) FROM \
        user_credits UNION ALL SELECT count(*) FROM credit_transactions) AS t",
        )
        .await;
    assert!(evidence.rows >= u64::try_from(rows).unwrap(), "{evidence:?}");
    let granted = evidence.transactions.iter().find(|kind| kind.kind == "subscription_grant").unwrap();
    assert_eq!((granted.count, granted.total_amount.as_str()), (2, "200"));
    assert!(evidence.duration_seconds > evidence.rollback_seconds);
    assert!(evidence.schema.is_some_and(|schema| schema.objects > 10));
    assert_eq!(evidence.message, "each balance kept; each is explained by the transactions since the cutover");
    assert_eq!(world.stored(), stored, "nothing goes into the bucket");
    stays_as_it_is(&world).await;
}

#[tokio::test]
async fn a_rollback_that_would_fail_now_is_found() {
    let strict = format!(
        "{DOWN};\nALTER TABLE credit_transactions ADD CONSTRAINT old CHECK (type <> \
        'subscription_grant');"
    );
    let loses = format!("{DOWN};\nUPDATE user_credits SET balance = 0 WHERE user_id = 8;");
    for (down, reason, words) in [
        (strict, Reason::SqlFailed, "rehearsal of the rollback: statement "),
        (loses, Reason::BalancesUnexplained, "changed the balances of 1 users"),
    ] {
        let world = live(&down).await;
        let outcome = world.run(Task::RehearseRollback).await;
        assert_eq!(outcome.failure().reason, reason, "{}", outcome.failure());
        assert!(outcome.failure().message.contains(words), "{}", outcome.failure());
        stays_as_it_is(&world).await;
    }
}

/// Whatever the new version has done to it: the rollback keeps it as it is.
#[tokio::test]
async fn a_balance_that_no_transaction_explains_is_found_and_no_rollback_fails_for_it() {
    let world = live(DOWN).await;
    world.alter("UPDATE user_credits SET balance = balance + 1 WHERE user_id = 8").await;
    let outcome = world.run(Task::RehearseRollback).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    let evidence: RollbackRehearsalEvidence =
        serde_json::from_value(outcome.noted["rollbackRehearsal"].clone()).unwrap();
    assert_eq!(evidence.unexplained, Some(1));
    let found = "the balances of 1 users are not explained by the transactions since the cutover, limit 0: a rollback \
        keeps them";
    assert!(evidence.message.contains(found), "{}", evidence.message);
    stays_as_it_is(&world).await;
}

/// What the new version writes may be what it needs to act: it passed the first rehearsal.
#[tokio::test]
async fn the_rehearsal_of_a_rollback_has_no_effect_outside_of_its_copy() {
    let acts = "DO $$ BEGIN IF EXISTS (SELECT FROM credit_transactions WHERE type = 'subscription_grant') THEN
        EXECUTE format('ALTER %s %I SET work_mem = 1024', 'ROLE', current_user); END IF; END $$;";
    let world = live(&format!("{acts}\n{DOWN}")).await;
    let outcome = world.run(Task::RehearseRollback).await;
    assert_eq!(outcome.failure().reason, Reason::SqlOutsideDatabase, "{}", outcome.failure());
    let left = "SELECT count(*) FROM pg_db_role_setting WHERE setrole = 'migrator_{n}'::regrole";
    assert_eq!(world.count(left).await, 0);
    stays_as_it_is(&world).await;
}

#[tokio::test]
async fn the_down_sql_that_the_database_keeps_is_rehearsed() {
    let mut world = live(DOWN).await;
    // As the cutover of these tests stores it: it leaves the new schema, which has no verify_rollback().
    world.sql(UP, "SELECT 2");
    world.spec.inputs.down_sha256 = sha256(b"SELECT 1");
    world.spec.plan.migration.verify_down = Some("SELECT count(*) = 3 AS plans FROM credit_plans".to_owned());
    let outcome = world.run(Task::RehearseRollback).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    world.spec.inputs.down_sha256 = sha256(b"SELECT 3");
    assert_eq!(world.run(Task::RehearseRollback).await.failure().reason, Reason::SqlChanged);
    stays_as_it_is(&world).await;
}
