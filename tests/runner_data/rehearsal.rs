//! Rehearse.

use credit_migration::api::{Reason, RehearsalEvidence, Task};

use serde_json::{Value, json};

use crate::harness::{DOWN, UP, USERS, World};

async fn ready(up: &str, down: &str) -> World {
    let mut world = World::new().await;
    world.sql(up, down);
    world.backed_up().await;
    world
}

#[tokio::test]
async fn the_sample_application_is_rehearsed() {
    let world = ready(UP, DOWN).await;
    // What an earlier, killed pod left.
    world.alter("CREATE DATABASE scratch_{n} OWNER migrator_{n}").await;
    let refused = world.run(Task::Rehearse).await;
    assert_eq!(refused.failure().reason, Reason::ScratchDatabaseExists);
    assert!(refused.failure().message.contains("DROP DATABASE"), "{}", refused.failure());
    world
        .alter(&format!(
            "COMMENT ON DATABASE scratch_{{n}} IS 'credit-migration: scratch database of migration {}, dropped after \
                its rehearsal'",
            world.spec.migration_uid
        ))
        .await;
    let outcome = world.run(Task::Rehearse).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    let evidence: RehearsalEvidence = serde_json::from_value(outcome.noted["rehearsal"].clone()).unwrap();
    assert_eq!((evidence.users, evidence.tables_equal), (USERS, 6));
    assert!(evidence.expected_window_seconds > 10.0 && evidence.expected_window_seconds < 30.0, "{evidence:?}");
    assert!(!world.has_scratch().await);
    // The database itself was not touched.
    assert_eq!(world.count("SELECT count(*) FROM pg_class WHERE relname = 'credit_plans'").await, 0);
    assert_eq!(world.count("SELECT count(*) FROM credit_migration.ledger").await, 0);
}

#[tokio::test]
async fn what_fails_is_named_and_the_copy_is_dropped() {
    let down_forgets = DOWN.replace("DROP TABLE credit_plans;", "ALTER TABLE credit_plans RENAME TO left_over;");
    let down_alters =
        format!("{DOWN};\nUPDATE users SET email = 'x' || email WHERE id = 7; ALTER TABLE users ADD a int;");
    let down_refused = DOWN.replace("count(*) > 0 OR NOT EXISTS", "false AND NOT EXISTS");
    let cases = [
        (format!("{UP};\nSELECT 1 / 0;"), DOWN.to_owned(), Reason::SqlFailed, "statement"),
        (
            format!("{UP};\nUPDATE user_credits SET balance = balance + 1 WHERE user_id = 3;"),
            DOWN.to_owned(),
            Reason::BalancesUnexplained,
            "1 ",
        ),
        ("SELECT 1;".to_owned(), DOWN.to_owned(), Reason::TablesNotGone, "credit_packages"),
        (UP.to_owned(), format!("{DOWN};\nDROP TABLE no_such_table;"), Reason::SqlFailed, "no_such_table"),
        (UP.to_owned(), down_forgets, Reason::RollbackNotEqual, "table public.left_over is new"),
        (UP.to_owned(), down_refused, Reason::VerifyDownFailed, "verifyDown"),
        (UP.to_owned(), down_alters, Reason::RollbackNotEqual, "table public.users"),
        (
            UP.to_owned(),
            "CREATE INDEX CONCURRENTLY i ON users (id);".to_owned(),
            Reason::SqlOutsideTransaction,
            "line 1",
        ),
    ];
    for (up, down, reason, words) in cases {
        let world = ready(&up, &down).await;
        let outcome = world.run(Task::Rehearse).await;
        assert_eq!(outcome.failure().reason, reason, "{}", outcome.failure());
        assert!(outcome.failure().message.contains(words), "{}", outcome.failure());
        assert!(!world.has_scratch().await, "{reason}");
    }
}

#[tokio::test]
async fn a_verification_that_cannot_fail_is_refused() {
    let mut world = ready(UP, DOWN).await;
    for (query, good) in [
        ("SELECT count(*) FROM user_credits WHERE balance < 0", false),
        ("SELECT count(*), count(*) = 0 FROM user_credits WHERE balance < 0", true),
    ] {
        world.spec.plan.migration.verify_down = Some(query.to_owned());
        let outcome = world.run(Task::Rehearse).await;
        assert_eq!(outcome.result.is_ok(), good, "{:?}", outcome.result);
        if !good {
            assert_eq!(outcome.failure().reason, Reason::VerifyDownFailed);
            assert!(outcome.failure().message.contains("no boolean column"), "{}", outcome.failure());
        }
        assert!(!world.has_scratch().await);
    }
}

#[tokio::test]
async fn an_extension_that_the_role_may_not_create_is_left_out() {
    let mut world = World::new().await;
    world.alter("CREATE EXTENSION pg_stat_statements; CREATE EXTENSION pgcrypto").await;
    world.backed_up().await;
    let outcome = world.run(Task::Rehearse).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);

    // What needs it says so.
    world.alter("CREATE VIEW slow AS SELECT query FROM pg_stat_statements; GRANT SELECT ON slow TO migrator_{n}").await;
    world.backed_up().await;
    let outcome = world.run(Task::Rehearse).await;
    assert_eq!(outcome.failure().reason, Reason::DumpFailed);
    for words in [
        "pg_stat_statements\" does not exist",
        "may not create pg_stat_statements",
        "next: if what failed needs it, mark it as trusted",
    ] {
        assert!(outcome.failure().message.contains(words), "{}", outcome.failure());
    }
    assert!(!world.has_scratch().await);
}

/// The stage of a check, and the check.
fn checks(world: &mut World, validation: Value, monitoring: Value) {
    world.spec.plan.validation.checks = serde_json::from_value(validation).unwrap();
    world.spec.plan.monitoring.checks = serde_json::from_value(monitoring).unwrap();
}

#[tokio::test]
async fn checks_are_measured_on_the_migrated_copy() {
    let mut world = ready(UP, DOWN).await;
    let plans = json!({"name": "plans", "sql": {"query": "SELECT count(*) FROM credit_plans"}, "equals": "3"});
    let busy = json!({"name": "busy", "sql": {"query": "SELECT count(*) FROM subscription_credits"}, "min": "1"});
    let users = json!({"name": "users", "balances": {"compare": "Users"}, "max": "0"});
    checks(&mut world, json!([plans, users]), json!([busy]));
    let outcome = world.run(Task::Rehearse).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    let evidence: RehearsalEvidence = serde_json::from_value(outcome.noted["rehearsal"].clone()).unwrap();
    // With the trigger that is on by default.
    assert_eq!((evidence.checks_measured, evidence.checks_not_passing), (4, vec!["busy: 0 < 1".to_owned()]));
}

#[tokio::test]
async fn a_check_that_does_not_fit_the_new_schema_is_found() {
    let up = format!("{UP};\nALTER TABLE credit_transactions RENAME TO moved;");
    let down = format!("ALTER TABLE moved RENAME TO credit_transactions;\n{DOWN}");
    let mut world = ready(&up, &down).await;
    let users = json!({"name": "users", "balances": {"compare": "Users"}, "max": "0"});
    let old = json!({"name": "old", "sql": {"query": "SELECT count(*) FROM credit_transactions"}, "max": "9"});
    for (check, words) in [
        (&old, "spec.validation.checks on the migrated copy: old: relation \"credit_transactions\" does not exist"),
        (&users, "users: table credit_transactions is not there any more: nothing explains balances; next: watch"),
    ] {
        checks(&mut world, json!([check]), json!([]));
        let outcome = world.run(Task::Rehearse).await;
        assert_eq!(outcome.failure().reason, Reason::CheckNotMeasurable);
        assert!(outcome.failure().message.contains(words), "{}", outcome.failure());
        assert!(!world.has_scratch().await);
    }
    // A trigger that watches nothing is reported, and so is what only warns.
    let mut warns = users;
    warns["onBreach"] = json!("Warn");
    checks(&mut world, json!([]), json!([warns]));
    let outcome = world.run(Task::Rehearse).await;
    let evidence: RehearsalEvidence = serde_json::from_value(outcome.noted["rehearsal"].clone()).unwrap();
    assert_eq!(evidence.checks_measured, 2);
    for (reported, name) in evidence.checks_not_passing.iter().zip(["balance-errors: ", "users: "]) {
        assert!(reported.starts_with(name) && reported.contains("nothing explains balances"), "{reported}");
    }
}

#[tokio::test]
async fn without_createdb_the_right_is_named() {
    let world = ready(UP, DOWN).await;
    world.alter("ALTER ROLE migrator_{n} NOCREATEDB").await;
    let outcome = world.run(Task::Rehearse).await;
    assert_eq!(outcome.failure().reason, Reason::PrivilegeMissing);
    let fix = format!("ALTER ROLE \"migrator_{}\" CREATEDB;", world.number);
    assert!(outcome.failure().message.ends_with(&fix), "{}", outcome.failure());
}

/// Databases of the server whose name has the world's number or UID in it.
async fn databases(world: &World) -> String {
    let root = world.root_session("postgres").await;
    let like = [format!("%\\_{}", world.number), format!("%{}", world.spec.migration_uid)];
    let query = "SELECT coalesce(string_agg(datname, ',' ORDER BY datname), '') FROM pg_database WHERE datname::text \
        LIKE ANY ($1)";
    root.query_one(query, &[&like.as_slice()]).await.unwrap().get(0)
}

#[tokio::test]
async fn what_killed_rehearsals_left_is_dropped_and_nothing_else() {
    let mut world = ready(UP, DOWN).await;
    let (number, uid) = (world.number, world.spec.migration_uid.clone());
    let mark =
        |uid: &str| format!("credit-migration: scratch database of migration {uid}, dropped after its rehearsal");
    let unmarked = format!("credit_migration_scratch_{uid}");
    // A person's, another migration's, and one that was made by hand under the name that only the operator uses.
    for statement in [
        format!("CREATE DATABASE mine_{number} TEMPLATE template0 OWNER migrator_{number}"),
        format!("CREATE DATABASE other_{number} TEMPLATE template0 OWNER migrator_{number}"),
        format!("COMMENT ON DATABASE other_{number} IS '{}'", mark("another-uid")),
        format!("CREATE DATABASE \"{unmarked}\" TEMPLATE template0 OWNER migrator_{number}"),
    ] {
        world.alter(&statement).await;
    }
    let refused = world.run(Task::Rehearse).await;
    assert_eq!(refused.failure().reason, Reason::ScratchDatabaseExists, "{}", refused.failure());
    let cleaned = world.run(Task::Cleanup).await;
    assert!(cleaned.result.is_ok(), "{:?}", cleaned.result);
    let others = format!("mine_{number},other_{number},shop_{number}");
    assert_eq!(databases(&world).await, format!("{unmarked},{others}"));

    world.alter(&format!("DROP DATABASE \"{unmarked}\"")).await;
    tokio::select! {
        outcome = world.run(Task::Rehearse) => panic!("not killed in time: {:?}", outcome.result),
        () = async { while !world.has_scratch().await {} } => {}
    }
    // The next one is killed before it has a mark; the spec has another name by then.
    world
        .alter(&format!(
            "CREATE DATABASE \"{unmarked}\" TEMPLATE template0 ALLOW_CONNECTIONS false OWNER migrator_{number}"
        ))
        .await;
    world.spec.plan.rehearsal.database = format!("renamed_{number}");
    assert_eq!(
        databases(&world).await,
        format!("{unmarked},mine_{number},other_{number},scratch_{number},shop_{number}")
    );
    let cleaned = world.run(Task::Cleanup).await;
    assert!(
        cleaned.result.as_ref().is_ok_and(|message| message.contains("2 scratch databases")),
        "{:?}",
        cleaned.result
    );
    assert_eq!(databases(&world).await, others);
}

/// Dynamic SQL changes what the whole server has: the text does not show it, the transaction does. Nothing of it remains.
#[tokio::test]
async fn an_effect_outside_of_the_database_is_named_and_undone() {
    let settings = "DO $$ BEGIN EXECUTE format('ALTER %s %I SET work_mem = 1024', 'ROLE', current_user); END $$;";
    for (up, down, sql) in [
        (format!("{UP};\n{settings}"), DOWN.to_owned(), "the up SQL"),
        (UP.to_owned(), format!("{DOWN};\n{settings}"), "the down SQL"),
    ] {
        let world = ready(&up, &down).await;
        let outcome = world.run(Task::Rehearse).await;
        let failure = outcome.failure();
        assert_eq!(failure.reason, Reason::SqlOutsideDatabase, "{failure}");
        for part in ["pg_db_role_setting", "settings of role migrator_", sql, "next: "] {
            assert!(failure.message.contains(part), "{part} is not in {failure}");
        }
        let left = "SELECT count(*) FROM pg_db_role_setting WHERE setrole = 'migrator_{n}'::regrole";
        assert_eq!(world.count(left).await, 0, "nothing of it remains");
        assert!(!world.has_scratch().await);
    }
}
