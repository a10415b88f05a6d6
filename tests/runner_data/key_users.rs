//! The export of key users: which rows, what the object holds, and that there is none unless it is whole.

use credit_migration::api::{Reason, Task, sha256};

use crate::harness::{Outcome, World};

/// The sample has balances 10, 20 ... 3000, and 0, 50 or 100 purchased credits. All its users but for those of `more`
/// are below both limits.
async fn limited(more: &str) -> World {
    let mut world = World::new().await;
    world.spec.plan.backup.key_users.balance_over = "100000".to_owned();
    world.spec.plan.backup.key_users.purchased_over = "500.5".to_owned();
    world
        .alter(
            "ALTER TABLE user_credits ADD note text, ALTER balance DROP NOT NULL, ALTER purchased_credits DROP NOT NULL,
                 ALTER purchased_credits TYPE numeric, DROP COLUMN updated_at,
                 DROP CONSTRAINT user_credits_user_id_fkey",
        )
        .await;
    world.alter(&format!("INSERT INTO user_credits (user_id, balance, purchased_credits, note) VALUES {more}")).await;
    world
}

fn object(outcome: &Outcome) -> &str {
    outcome.noted["keyUsers"]["object"].as_str().unwrap()
}

#[tokio::test]
async fn rows_above_either_limit_are_in_the_bucket() {
    let mut world = limited(
        "(1001, 100000, 500.5, 'both limits, not above'),
         (1002, 100001, 0, 'plain'),
         (1003, 0, 500.51, ''),
         (1004, NULL, 501, NULL),
         (1005, 100001, NULL, E'two\\nlines, a comma and a \"quote\"'),
         (1006, NULL, NULL, 'nothing known'),
         (1007, 100001, 501, 'naïve ☕')",
    )
    .await;
    world.backed_up().await;
    let outcome = world.run(Task::ExportKeyUsers).await;
    outcome.result.as_ref().unwrap();
    let dump = world.spec.inputs.backup_object.clone().unwrap();
    assert_eq!(object(&outcome), dump.replace(".dump", ".key-users.csv"));
    let file = std::fs::read(world.file_of(object(&outcome))).unwrap();
    let mut text = String::from_utf8(file.clone()).unwrap();
    assert!(text.starts_with("user_id,balance,purchased_credits,note\n"), "{text}");
    text = text.replace("two\nlines", "two lines");
    let mut lines: Vec<&str> = text.lines().skip(1).collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "1002,100001,0,plain",
            "1003,0,500.51,\"\"",
            "1004,,501,",
            "1005,100001,,\"two lines, a comma and a \"\"quote\"\"\"",
            "1007,100001,501,naïve ☕",
        ]
    );
    let noted = &outcome.noted["keyUsers"];
    assert_eq!((&noted["users"], &noted["bytes"]), (&5.into(), &file.len().into()));
    assert_eq!(noted["sha256"], sha256(&file));
    for text in [format!("{:?}", outcome.result), noted.to_string()] {
        assert!(!text.contains("quote") && !text.contains("1007"), "{text}");
    }

    // Again, as after a lost report.
    let again = world.run(Task::ExportKeyUsers).await;
    assert_eq!((object(&again), &again.noted["keyUsers"]["sha256"]), (object(&outcome), &noted["sha256"]));
}

#[tokio::test]
async fn nobody_above_the_limits_leaves_a_header() {
    let world = limited("(1001, 5, 5, 'x')").await;
    let outcome = world.run(Task::ExportKeyUsers).await;
    let file = std::fs::read_to_string(world.file_of(object(&outcome))).unwrap();
    assert_eq!(
        (file.as_str(), &outcome.noted["keyUsers"]["users"]),
        ("user_id,balance,purchased_credits,note\n", &0.into())
    );
    // Without a backup's object: named as one.
    let name = object(&outcome).rsplit('/').next().unwrap();
    assert!(name.starts_with("shop_") && name.ends_with("_pre_migration_0d9f2c11_1.key-users.csv"), "{name}");
}

/// A view whose 250th row of 200 kB calls a function.
async fn broken_off(function: &str) -> World {
    let mut world = World::new().await;
    world.alter(function).await;
    world
        .alter(
            "CREATE VIEW large AS SELECT n AS user_id, 2000 AS balance, 0 AS purchased_credits,
                    repeat('private', 30000) AS note,
                 CASE WHEN n = 250 THEN broken() END AS broken FROM generate_series(1, 300) AS n;
             GRANT SELECT ON large TO PUBLIC",
        )
        .await;
    world.spec.plan.credits.balances.table = "large".to_owned();
    world
}

#[tokio::test]
async fn an_export_that_breaks_off_leaves_no_object_and_no_part() {
    let lost = "CREATE FUNCTION broken() RETURNS bool LANGUAGE sql STABLE SECURITY DEFINER AS 'SELECT \
        pg_terminate_backend(pg_backend_pid())'";
    let failed = "CREATE FUNCTION broken() RETURNS bool LANGUAGE plpgsql STABLE AS 'BEGIN PERFORM \
        ''private''::bigint; RETURN true; END'";
    for (function, reason) in [(lost, Reason::ConnectionLost), (failed, Reason::SqlFailed)] {
        let world = broken_off(function).await;
        let outcome = world.run(Task::ExportKeyUsers).await;
        assert_eq!(outcome.failure().reason, reason, "{}", outcome.failure());
        assert!(!outcome.failure().message.contains("private"), "{}", outcome.failure());
        assert!(!outcome.noted.contains_key("keyUsers"));
        assert_eq!(world.stored(), Vec::<std::path::PathBuf>::new(), "no object, no part");
    }
    let whole = "CREATE FUNCTION broken() RETURNS bool LANGUAGE sql STABLE AS 'SELECT true'";
    let world = broken_off(whole).await;
    let outcome = world.run(Task::ExportKeyUsers).await;
    assert_eq!(outcome.noted["keyUsers"]["users"], 300);
    let bytes = outcome.noted["keyUsers"]["bytes"].as_u64().unwrap();
    assert!(bytes > 60_000_000, "{bytes}: several parts");
}

#[tokio::test]
async fn hidden_rows_are_an_error_and_not_a_shorter_list() {
    let world = limited("(1001, 5, 900, 'x')").await;
    world.alter("ALTER TABLE user_credits ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY").await;
    let outcome = world.run(Task::ExportKeyUsers).await;
    assert_eq!(outcome.failure().reason, Reason::SqlFailed);
    assert!(outcome.failure().message.contains("row-level security"), "{}", outcome.failure());
    assert_eq!(world.stored(), Vec::<std::path::PathBuf>::new());
}
