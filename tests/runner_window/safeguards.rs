//! The write block is watched: while a window waits, and what is left of it after the window.

use credit_migration::{
    api::{Reason, SafeguardKind as Kind, WindowCommand as Order, WindowState as State},
    runner::database::control,
};

use crate::{
    harness::{Database, Desk, end, sample_down, spec, state_of},
    window::{compared, migrated, unblocked},
};

const DISABLE: &str = "ALTER TABLE user_credits DISABLE TRIGGER credit_migration_block_writes";
const ENABLE: &str = "ALTER TABLE user_credits ENABLE ALWAYS TRIGGER credit_migration_block_writes";

#[tokio::test]
async fn a_trigger_that_is_disabled_inside_the_window_is_found_at_once() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let task = compared(&database, &desk).await;
    let owner = database.session("migrator").await;
    owner.batch_execute(DISABLE).await.unwrap();
    desk.until("it is reported", |progress, note| {
        progress.comparison.is_none() && note.is_some_and(|note| note.reason == Reason::WritesNotBlocked)
    })
    .await;
    // No switch while writes may go through.
    desk.order(Order::Switch);
    desk.asked_for_orders(20).await;
    assert!(!desk.last().switch_acknowledged);
    owner.batch_execute(ENABLE).await.unwrap();
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    // Compared again, since writes may have gone through.
    desk.until("comparison", |progress, _| progress.comparison.is_some()).await;
    desk.order(Order::UnblockWrites);
    assert_eq!(end(task).await.failure, None);
}

/// Nothing of it is seen in the catalog: only a write shows it.
#[tokio::test]
async fn a_write_block_without_effect_is_found_before_the_switch_and_before_the_end() {
    let broken = "CREATE OR REPLACE FUNCTION credit_migration.block_writes() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN RETURN NULL; END'";
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let task = migrated(&database, &desk).await;
    let owner = database.session("migrator").await;
    let function = "SELECT pg_get_functiondef('credit_migration.block_writes'::regproc)";
    let working: String = owner.query_one(function, &[]).await.unwrap().get(0);
    let not_blocked = "a write is not refused";
    for order in [Order::Switch, Order::UnblockWrites] {
        owner.batch_execute(broken).await.unwrap();
        desk.order(order);
        desk.until(not_blocked, |_, note| note.is_some_and(|note| note.reason == Reason::WritesNotBlocked)).await;
        assert_eq!((desk.last().state, desk.last().switch_acknowledged), (State::Migrated, order != Order::Switch));
        owner.batch_execute(&working).await.unwrap();
        if order == Order::Switch {
            desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
            desk.until("comparison", |progress, _| progress.comparison.is_some()).await;
        }
    }
    assert_eq!(end(task).await.failure, None);
}

#[tokio::test]
async fn what_a_rollback_needs_is_measured_after_the_window() {
    let database = unblocked().await;
    let (target, spec, root) = (database.target(), spec(), database.session("postgres").await);
    let approved = sample_down().sha256;
    let missing = async || {
        let found = control::missing_safeguards(&target, &spec, &approved).await.unwrap();
        found.into_iter().map(|found| (found.kind, found.table.unwrap_or_default())).collect::<Vec<_>>()
    };
    assert_eq!(missing().await, []);
    let balances = database.balances().await;
    let credits = || "public.user_credits".to_owned();
    let default = format!("ALTER DATABASE {} SET default_transaction_read_only = on", database.name);
    for (harm, fix, expected) in [
        (DISABLE, ENABLE, vec![(Kind::WriteBlock, credits())]),
        (
            "ALTER TABLE user_credits ENABLE TRIGGER credit_migration_track_changes",
            "ALTER TABLE user_credits ENABLE ALWAYS TRIGGER credit_migration_track_changes",
            vec![(Kind::ChangeTracking, credits())],
        ),
        (
            "ALTER TABLE user_credits RENAME balance TO credits",
            "ALTER TABLE user_credits RENAME credits TO balance",
            vec![(Kind::WorkingChangeTracking, credits())],
        ),
        (
            "BEGIN READ WRITE; UPDATE credit_migration.write_block SET blocked = true; COMMIT",
            "BEGIN READ WRITE; UPDATE credit_migration.write_block SET blocked = false; COMMIT",
            vec![(Kind::UnblockedWrites, String::new())],
        ),
        (
            &default,
            &default.replace("SET default_transaction_read_only = on", "RESET ALL"),
            vec![(Kind::UnblockedWrites, String::new())],
        ),
        (
            "UPDATE credit_migration.ledger SET down_sql = down_sql || ' '",
            "UPDATE credit_migration.ledger SET down_sql = left(down_sql, -1)",
            vec![(Kind::StoredDownSql, String::new())],
        ),
    ] {
        root.batch_execute(harm).await.unwrap();
        assert_eq!(missing().await, expected, "{harm}");
        root.batch_execute(fix).await.unwrap();
        assert_eq!(missing().await, [], "{fix}");
    }
    // The write that was tried is rolled back, and holds no one up.
    assert_eq!(database.balances().await, balances);
    root.batch_execute("BEGIN; UPDATE user_credits SET updated_at = now()").await.unwrap();
    assert_eq!(missing().await, []);
    root.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(state_of(&database.session("app").await, "UPDATE user_credits SET updated_at = now()").await, "ok");
}
