//! Rehearse.

use credit_migration::{
    api::{Direction, Invariant, LockMode, LostRight, Reason, RehearsalEvidence, StatementEvidence, Task},
    runner::database::control::{ControlSpec, schema_objects::require_rehearsed_schema_now},
};

use serde_json::{Value, json};

use crate::{
    harness::{DOWN, UP, USERS, World},
    programs::MAJOR,
};

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
    assert!(evidence.migrate_seconds > 0.0 && evidence.compare_seconds > 0.0, "{evidence:?}");
    assert!(!world.has_scratch().await);
    // It is valid for the schema as it is, which none of the tasks has changed.
    let schema = evidence.schema.unwrap();
    assert!(schema.objects > 10, "{schema:?}");
    let rehearsed = ControlSpec { rehearsed_schema: Some(schema.sha256), ..world.control_spec() };
    let mut client = world.target().connect("test").await.unwrap();
    require_rehearsed_schema_now(&mut client, &rehearsed).await.unwrap();
    world.alter("COMMENT ON TABLE users IS 'people'").await;
    let drifted = require_rehearsed_schema_now(&mut client, &rehearsed).await.unwrap_err();
    assert_eq!(drifted.reason, Reason::SchemaDrifted);
    assert!(drifted.message.contains("rehearsal: table public.users changed; limit"), "{drifted}");
    // The database itself was not touched.
    assert_eq!(world.count("SELECT count(*) FROM pg_class WHERE relname = 'credit_plans'").await, 0);
    assert_eq!(world.count("SELECT count(*) FROM credit_migration.ledger").await, 0);
}

#[tokio::test]
async fn each_statement_is_measured() {
    let own = "ALTER TABLE users ADD note text;\n\nSELECT pg_sleep(1.2), 'ann@example.com';\n\
        SET LOCAL search_path = pg_temp;\nUPDATE public.user_credits SET balance = balance;\n";
    let down = format!("{DOWN};\nALTER TABLE users DROP note;");
    let world = ready(&format!("{own}RESET search_path;\n{UP}"), &down).await;
    let outcome = world.run(Task::Rehearse).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    let evidence: RehearsalEvidence = serde_json::from_value(outcome.noted["rehearsal"].clone()).unwrap();
    let measured = &evidence.statements;
    assert!(measured.is_sorted_by(|a, b| a.seconds >= b.seconds), "{measured:?}");
    let at = |direction, line| {
        let found = measured.iter().find(|one| (one.direction, one.line) == (direction, line));
        found.unwrap_or_else(|| panic!("{line}: {measured:?}"))
    };
    let lock = |one: &StatementEvidence| one.lock.clone().map(|lock| (lock.mode, lock.table));
    let of = |mode, table: &str| Some((mode, format!("public.{table}")));
    let (alter, sleep, update) = (at(Direction::Forward, 1), &measured[0], at(Direction::Forward, 5));
    assert_eq!((sleep.line, sleep.keywords.as_str(), sleep.rows), (3, "SELECT", 1));
    assert_eq!((sleep.seconds > 1.2, lock(sleep)), (true, None));
    assert_eq!((alter.keywords.as_str(), lock(alter)), ("ALTER TABLE", of(LockMode::AccessExclusive, "users")));
    let held = alter.lock.as_ref().unwrap().held_seconds;
    assert!(held > 1.2 && held < evidence.migrate_seconds, "{held} of {evidence:?}");
    assert_eq!((update.rows, lock(update)), (USERS, of(LockMode::RowExclusive, "user_credits")));
    // A table that is gone has its name, and one that the SQL made has no lock that anyone waits for.
    let gone = |one: &&StatementEvidence| one.direction == Direction::Rollback && one.keywords == "DROP TABLE";
    let dropped: Vec<_> = measured.iter().filter(gone).filter_map(lock).collect();
    assert!(dropped.contains(&of(LockMode::AccessExclusive, "subscription_credits").unwrap()), "{dropped:?}");
    let made = measured.iter().find(|one| one.keywords == "CREATE INDEX").unwrap();
    assert_eq!(lock(made), None);
    let message = outcome.result.unwrap();
    let words = "public.users for 1.";
    assert!(message.contains(words) && message.contains("(up SQL, line 1: ALTER TABLE takes"), "{message}");
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

/// Files as editors and frameworks write them.
#[tokio::test]
async fn deferred_constraints_and_files_of_windows_are_rehearsed() {
    let wallets = "CREATE TABLE wallets (id bigint PRIMARY KEY, user_id bigint CONSTRAINT of_user REFERENCES users \
        (id) DEFERRABLE INITIALLY DEFERRED);\n";
    let windows = |text: &str| format!("\u{feff}{}", text.replace('\n', "\r\n"));
    let down = windows(&format!("{DOWN};\nDROP TABLE wallets;\n"));
    let fill = |user: &str| windows(&format!("{UP};\n{wallets}INSERT INTO wallets SELECT id, {user} FROM users;\n"));
    let world = ready(&fill("id"), &down).await;
    let outcome = world.run(Task::Preflight).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.findings());
    let outcome = world.run(Task::Rehearse).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    let world = ready(&fill("-id"), &down).await;
    let outcome = world.run(Task::Rehearse).await;
    assert_eq!(outcome.failure().reason, Reason::SqlFailed, "{}", outcome.failure());
    let words = "violates foreign key constraint \"of_user\"";
    assert!(outcome.failure().message.contains("deferred constraints, after "), "{}", outcome.failure());
    assert!(outcome.failure().message.contains(words), "{}", outcome.failure());
}

#[tokio::test]
async fn a_verification_that_cannot_fail_is_refused() {
    let mut world = ready(UP, DOWN).await;
    let number = "SELECT count(*) FROM user_credits WHERE balance < 0";
    let good = "SELECT count(*), count(*) = 0 FROM user_credits WHERE balance < 0";
    let cases = [
        (good, number, Some((Reason::VerifyDownFailed, "verifyDown: the query has no boolean column"))),
        (number, good, Some((Reason::VerifyUpFailed, "verifyUp: the query has no boolean column"))),
        ("SELECT count(*) = 4 AS plans FROM credit_plans", good, Some((Reason::VerifyUpFailed, "column plans"))),
        ("SELECT count(*) = 3 AS plans FROM credit_plans", good, None),
    ];
    for (verify_up, verify_down, failure) in cases {
        world.spec.plan.migration.verify_up = Some(verify_up.to_owned());
        world.spec.plan.migration.verify_down = Some(verify_down.to_owned());
        let outcome = world.run(Task::Rehearse).await;
        match failure {
            None => assert!(outcome.result.is_ok(), "{:?}", outcome.result),
            Some((reason, words)) => {
                assert_eq!(outcome.failure().reason, reason);
                assert!(outcome.failure().message.contains(words), "{}", outcome.failure());
            }
        }
        assert!(!world.has_scratch().await);
    }
}

#[tokio::test]
async fn a_down_sql_that_fails_on_new_rows_is_found() {
    // Only the new version grants by subscription: no row of the backup violates the constraint.
    let strict = format!(
        "{DOWN};\nALTER TABLE credit_transactions ADD CONSTRAINT old CHECK (type <> 'subscription_grant');\n\
        ALTER TABLE credit_transactions DROP CONSTRAINT old;"
    );
    let mut world = ready(UP, &strict).await;
    assert!(world.run(Task::Rehearse).await.result.is_ok(), "without new rows it passes");
    let writes = "INSERT INTO credit_transactions (user_id, type, amount) VALUES (7, 'subscription_grant', 3),
            (8, 'subscription_grant', 4);
        UPDATE user_credits SET balance = balance + 3 WHERE user_id = 7;
        UPDATE user_credits SET balance = balance + 4 WHERE user_id = 8;";
    world.spec.plan.rehearsal.writes = Some(writes.to_owned());
    let outcome = world.run(Task::Rehearse).await;
    assert_eq!(outcome.failure().reason, Reason::SqlFailed, "{}", outcome.failure());
    assert!(outcome.failure().message.starts_with("rehearsal: after spec.rehearsal.writes: statement "));
    assert!(!world.has_scratch().await);

    world.sql(UP, DOWN);
    let outcome = world.run(Task::Rehearse).await;
    assert!(outcome.result.as_ref().is_ok_and(|m| m.contains("4 rows and 2 balances written")), "{:?}", outcome.result);
    let evidence: RehearsalEvidence = serde_json::from_value(outcome.noted["rehearsal"].clone()).unwrap();
    assert_eq!(evidence.writes.map(|w| (w.rows, w.users)), Some((4, 2)));
}

#[tokio::test]
async fn writes_that_the_application_cannot_make_are_refused() {
    let mut world = ready(UP, DOWN).await;
    for (writes, reason, words) in [
        ("UPDATE users SET email = email WHERE id < 0", Reason::SqlFailed, "no row was written, at least 1"),
        // The application's role may not.
        ("DELETE FROM credit_transactions", Reason::SqlFailed, "statement 1 of 1: permission denied"),
        ("SELECT 1; DELETE FROM credit_purchases", Reason::SqlFailed, "statement 2 of 2: relation"),
        ("INSERT INTO users (email) VALUES ('a'); COMMIT", Reason::SqlTransactionControl, "line 1"),
    ] {
        world.spec.plan.rehearsal.writes = Some(writes.to_owned());
        let outcome = world.run(Task::Rehearse).await;
        assert_eq!(outcome.failure().reason, reason, "{}", outcome.failure());
        let message = &outcome.failure().message;
        assert!(message.contains("spec.rehearsal.writes") && message.contains(words), "{message}");
        assert!(!world.has_scratch().await);
    }
}

/// What 18 is the first to have: virtual columns, and NOT NULL as a constraint with a name.
#[tokio::test]
async fn new_kinds_of_columns_are_copied_and_compared() {
    if *MAJOR < 18 {
        return;
    }
    let mut world = World::new().await;
    world
        .alter(
            "ALTER TABLE users ADD half bigint GENERATED ALWAYS AS (id / 2) VIRTUAL, ADD nick text;
             ALTER TABLE users RENAME CONSTRAINT users_email_not_null TO email_is_there;
             ALTER TABLE users ADD CONSTRAINT nick_is_there NOT NULL nick NOT VALID",
        )
        .await;
    world.backed_up().await;
    let outcome = world.run(Task::Rehearse).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
}

#[tokio::test]
async fn rights_that_the_application_loses_are_found() {
    let mut world = World::new().await;
    let app = format!("app_{}", world.number);
    let up = format!("{UP};\nREVOKE INSERT, UPDATE ON users FROM {app};");
    world.sql(&up, &format!("GRANT INSERT, UPDATE ON users TO {app};\n{DOWN}"));
    world.backed_up().await;
    let outcome = world.run(Task::Rehearse).await;
    let reported = format!("to keep them add to the up SQL: GRANT INSERT, UPDATE ON TABLE public.users TO {app};");
    assert!(outcome.result.as_ref().is_ok_and(|message| message.ends_with(&reported)), "{:?}", outcome.result);
    let evidence: RehearsalEvidence = serde_json::from_value(outcome.noted["rehearsal"].clone()).unwrap();
    let privileges = vec!["INSERT".to_owned(), "UPDATE".to_owned()];
    assert_eq!(evidence.rights_lost, [LostRight { role: app, object: "TABLE public.users".to_owned(), privileges }]);
}

#[tokio::test]
async fn an_invariant_holds_on_the_copy_or_is_named() {
    let mut world = ready(UP, DOWN).await;
    let totals = "SELECT type, count(*), sum(amount) FROM credit_transactions GROUP BY type";
    let pair = |after: &str| {
        let pairs = json!([{"name": "totals", "before": totals, "after": after}]);
        serde_json::from_value::<Vec<Invariant>>(pairs).unwrap()
    };
    world.spec.plan.migration.invariants = pair(totals);
    let outcome = world.run(Task::Rehearse).await;
    assert!(outcome.result.as_ref().is_ok_and(|m| m.ends_with("held: totals over 2 rows")), "{:?}", outcome.result);

    world.spec.plan.migration.invariants = pair(&format!("{totals} LIMIT 1"));
    let outcome = world.run(Task::Rehearse).await;
    assert_eq!(outcome.failure().reason, Reason::InvariantBroken);
    assert!(outcome.failure().message.starts_with("rehearsal: invariant totals: of 2 rows before the up SQL 1 are"));
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

/// Dynamic SQL changes what the whole server has: the transaction shows it, the text does not. Nothing of it remains.
#[tokio::test]
async fn an_effect_outside_of_the_database_is_named_and_undone() {
    let settings = "DO $$ BEGIN EXECUTE format('ALTER %s %I SET work_mem = 1024', 'ROLE', current_user); END $$;";
    let written = "INSERT INTO credit_transactions (user_id, type, amount) VALUES (7, 'subscription_grant', 0);";
    // No row of the backup shows it: it needs one that only the new version writes.
    let late = settings
        .replace(
            "EXECUTE",
            "IF EXISTS (SELECT FROM credit_transactions WHERE type = 'subscription_grant') THEN EXECUTE",
        )
        .replace("; END $$", "; END IF; END $$");
    // By the query that verifies the rollback, and by a trigger that is deferred to the commit.
    let function = "CREATE FUNCTION alters() RETURNS boolean LANGUAGE plpgsql AS $f$ BEGIN
        EXECUTE format('ALTER %s %I SET work_mem = 1024', 'ROLE', current_user); RETURN true; END $f$;";
    let deferred = format!(
        "{function} CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN PERFORM alters(); \
        RETURN NULL; END $f$; CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON users \
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW \
        EXECUTE FUNCTION later(); UPDATE users SET email = email WHERE id = 7;"
    );
    let (up, down) = (UP.to_owned(), DOWN.to_owned());
    for (up, down, writes, verify_up, sql) in [
        (format!("{UP};\n{settings}"), down.clone(), None, None, "the up SQL changes"),
        (format!("{UP};\n{function}"), down.clone(), None, Some("SELECT alters()"), "the up SQL changes"),
        (format!("{UP};\n{deferred}"), down.clone(), None, None, "the up SQL changes"),
        (up.clone(), format!("{DOWN};\n{settings}"), None, None, "the down SQL changes"),
        (
            up.clone(),
            format!("{late}\n{DOWN}"),
            Some(written.to_owned()),
            None,
            "after spec.rehearsal.writes: the down SQL changes",
        ),
        (up, down, Some(format!("{written} {settings}")), None, "spec.rehearsal.writes: the SQL changes"),
    ] {
        let mut world = ready(&up, &down).await;
        let role = if sql.contains("writes: the SQL") { "app_" } else { "migrator_" };
        world.spec.plan.rehearsal.writes = writes;
        world.spec.plan.migration.verify_up = verify_up.map(str::to_owned);
        let outcome = world.run(Task::Rehearse).await;
        let failure = outcome.failure();
        assert_eq!(failure.reason, Reason::SqlOutsideDatabase, "{failure}");
        for part in ["pg_db_role_setting", &format!("settings of role {role}"), sql, "next: "] {
            assert!(failure.message.contains(part), "{part} is not in {failure}");
        }
        let left = format!("SELECT count(*) FROM pg_db_role_setting WHERE setrole = '{role}{{n}}'::regrole");
        assert_eq!(world.count(&left).await, 0, "nothing of it remains");
        assert!(!world.has_scratch().await);
    }
}

/// Rotated logins: each acts as the owner, and is none itself.
#[tokio::test]
async fn a_login_that_acts_as_the_owner_prepares_and_rehearses() {
    for inherits in [false, true] {
        let mut world = World::new().await;
        world
            .alter(
                "CREATE ROLE owner_{n} NOLOGIN CREATEDB; GRANT app_{n}, pg_signal_backend TO owner_{n};
                 GRANT owner_{n} TO migrator_{n}; ALTER DATABASE shop_{n} OWNER TO owner_{n};
                 REVOKE app_{n}, pg_signal_backend FROM migrator_{n}; ALTER ROLE migrator_{n} NOCREATEDB;
                 DO $$ DECLARE c record; BEGIN
                     FOR c IN SELECT oid::regclass AS name FROM pg_class
                              WHERE relkind IN ('r', 'p', 'v') AND relnamespace = 'public'::regnamespace
                     LOOP EXECUTE format('ALTER TABLE %s OWNER TO owner_{n}', c.name); END LOOP; END $$",
            )
            .await;
        let acts = match inherits {
            true => "ALTER ROLE migrator_{n} CREATEDB",
            false => "ALTER ROLE migrator_{n} NOINHERIT; ALTER ROLE migrator_{n} SET role = 'owner_{n}'",
        };
        world.alter(acts).await;
        world.sql(&format!("{UP};\nUPDATE user_credits SET balance = balance;"), DOWN);
        let outcome = world.run(Task::Preflight).await;
        assert!(outcome.result.is_ok(), "{:?} {:?}", outcome.result, outcome.findings());
        let said = format!("login migrator_{0} acts as owner_{0}: what the SQL creates belongs to it", world.number);
        assert!(outcome.findings().iter().any(|f| f.message == said), "{said}: {:?}", outcome.findings());
        world.backed_up().await;
        let outcome = world.run(Task::Rehearse).await;
        assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    }
}

/// In the window it would be refused with writes blocked.
#[tokio::test]
async fn sql_that_the_write_block_does_not_let_pass_is_refused_before_the_window() {
    let forgets =
        format!("DELETE FROM credit_migration.exempt_transaction;\n{UP};\nDELETE FROM user_credits WHERE false;");
    let world = ready(&forgets, DOWN).await;
    let outcome = world.run(Task::Rehearse).await;
    assert_eq!(outcome.failure().reason, Reason::SqlFailed);
    assert!(outcome.failure().message.contains("are blocked by migration"), "{}", outcome.failure());
}
