//! THE transaction by itself: what it refuses, and that what it refuses leaves no trace.

use credit_migration::{
    api::{Direction, Reason},
    runner::{
        Failure,
        database::control::{self, Applied, ControlSpec, Sql, StopSignal},
    },
};
use tokio_postgres::Client;

use crate::harness::{Database, sample_down, sample_up, spec, sql};

async fn up(client: &mut Client, spec: &ControlSpec, sql: &Sql) -> Result<Applied, Failure> {
    control::run_up(client, spec, sql, &sample_down(), &StopSignal::default()).await
}

/// Runs an up SQL that must be refused; nothing of it may be left.
async fn refused(statements: &[&str]) -> Failure {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    let (tables, balances) = (tables(&database).await, database.balances().await);
    let failure = up(&mut client, &spec, &sql(statements)).await.unwrap_err();
    assert_eq!((self::tables(&database).await, database.balances().await), (tables, balances));
    assert_eq!(database.value("SELECT count(*) FROM credit_migration.ledger").await, "0");
    failure
}

async fn tables(database: &Database) -> String {
    database
        .value(
            "SELECT string_agg(c.oid::regclass::text, ',' ORDER BY c.oid) FROM pg_class c WHERE relkind = 'r' \
        AND relnamespace = 'public'::regnamespace",
        )
        .await
}

const GONE: &str = "DROP TABLE credit_purchases; DROP TABLE credit_packages";

#[tokio::test]
async fn a_statement_that_fails_is_named_and_undone() {
    let failure = refused(&[GONE, "CREATE TABLE fresh (id int)", "SELECT 1/0"]).await;
    assert_eq!(
        (failure.reason, failure.message.as_str()),
        (Reason::SqlFailed, "statement 3 of 3: division by zero (SQLSTATE 22012)")
    );
}

/// As Django makes each foreign key.
const WALLETS: &str = "CREATE TABLE wallets (id bigint PRIMARY KEY, user_id bigint CONSTRAINT of_user REFERENCES users \
    (id) DEFERRABLE INITIALLY DEFERRED)";

/// What is checked at the end of the transaction does not keep the table from getting its triggers.
#[tokio::test]
async fn rows_under_a_deferred_constraint_are_migrated_and_rolled_back() {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    let mut statements = sample_up().statements;
    statements.extend([WALLETS.to_owned(), "INSERT INTO wallets SELECT id, id FROM users".to_owned()]);
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    let applied = up(&mut client, &spec, &sql(&statements)).await.unwrap();
    assert!(matches!(applied, Applied::Now { .. }), "{applied:?}");
    let mut down = vec!["DROP TABLE wallets", WALLETS, "INSERT INTO wallets SELECT id, id FROM users"];
    let sample = sample_down().statements;
    down.extend(sample.iter().map(String::as_str));
    let applied = control::run_down(&mut client, &spec, &sql(&down)).await.unwrap();
    assert!(matches!(applied, Applied::Now { .. }), "{applied:?}");
}

#[tokio::test]
async fn a_deferred_constraint_that_is_violated_is_named() {
    let failure = refused(&[GONE, WALLETS, "INSERT INTO wallets VALUES (1, -7)"]).await;
    assert_eq!(failure.reason, Reason::SqlFailed);
    for words in ["deferred constraints, after 3 statements: ", "\"of_user\"", "SQLSTATE 23503"] {
        assert!(failure.message.contains(words), "{failure}");
    }
}

#[tokio::test]
async fn a_changed_balance_is_refused() {
    let failure = refused(&[GONE, "UPDATE user_credits SET balance = balance - 1 WHERE user_id = 7"]).await;
    assert_eq!(failure.reason, Reason::BalancesUnexplained);
    assert!(failure.message.contains("1 users"), "{failure}");
}

#[tokio::test]
async fn a_swap_between_two_users_is_refused_though_every_sum_is_kept() {
    let failure = refused(&[
        GONE,
        "UPDATE user_credits SET balance = CASE user_id WHEN 1 THEN 1002 ELSE 1001 END WHERE user_id IN (1, 2)",
    ])
    .await;
    assert!(failure.reason == Reason::BalancesUnexplained && failure.message.contains("2 users"), "{failure}");
}

#[tokio::test]
async fn a_user_who_is_lost_or_truncated_is_refused() {
    let failure = refused(&[GONE, "DELETE FROM user_credits WHERE user_id = 5"]).await;
    assert_eq!(failure.reason, Reason::BalancesUnexplained);
    let failure = refused(&[GONE, "TRUNCATE user_credits"]).await;
    assert!(failure.message.contains("200 users"), "{failure}");
}

#[tokio::test]
async fn a_table_that_must_be_gone_is_searched_in_every_schema() {
    let failure = refused(&[GONE, "CREATE SCHEMA old; CREATE TABLE old.credit_packages (id int)"]).await;
    assert_eq!(failure.reason, Reason::TablesNotGone);
    assert!(failure.message.contains("old.credit_packages"), "{failure}");
}

/// A report's temporary table, and another tenant's.
#[tokio::test]
async fn tables_of_others_with_such_a_name_may_stay() {
    let (database, spec) = (Database::new().await, spec());
    let analyst = database.session("analyst").await;
    analyst.batch_execute("CREATE TEMP TABLE credit_packages (id int)").await.unwrap();
    let root = database.session("postgres").await;
    root.batch_execute("CREATE SCHEMA tenant; CREATE TABLE tenant.credit_packages (id int)").await.unwrap();
    let mut client = database.prepared(&spec).await;
    up(&mut client, &spec, &sql(&[GONE])).await.unwrap();
}

#[tokio::test]
async fn a_balances_table_that_lost_its_column_is_refused() {
    let failure = refused(&[GONE, "ALTER TABLE user_credits RENAME balance TO amount"]).await;
    assert_eq!(failure.reason, Reason::ColumnMissing);
}

#[tokio::test]
async fn settings_of_the_sql_neither_mislead_the_verification_nor_outlive_it() {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    let hostile = sql(&[
        "SELECT set_config('search_path', '', false)",
        "DROP TABLE public.credit_purchases; DROP TABLE public.credit_packages",
        "SET lock_timeout = 0; SET statement_timeout = 1",
        "SET ROLE app",
    ]);
    assert!(matches!(up(&mut client, &spec, &hostile).await.unwrap(), Applied::Now { reconciled_users: 0, .. }));
    let role: String =
        client.query_one("SELECT current_user || current_setting('search_path')", &[]).await.unwrap().get(0);
    assert_eq!(role, "migratorpg_catalog, pg_temp");
}

#[tokio::test]
async fn once_is_once_and_undone_stays_undone() {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    assert_eq!(control::run_down(&mut client, &spec, &sample_down()).await.unwrap(), Applied::NotApplicable);
    assert!(matches!(up(&mut client, &spec, &sample_up()).await.unwrap(), Applied::Now { .. }));
    assert!(matches!(up(&mut client, &spec, &sample_up()).await.unwrap(), Applied::Earlier { .. }));
    assert_eq!(up(&mut client, &spec, &sql(&["SELECT 1"])).await.unwrap_err().reason, Reason::SqlChanged);
    // What the SQL made is guarded, what it renamed still is, and the balances are captured.
    let triggers = database
        .value(
            "SELECT string_agg(tgrelid::regclass || ' ' || tgenabled::text, ',' ORDER BY \
        tgrelid::regclass::text) FROM pg_trigger WHERE tgname = 'credit_migration_block_writes'",
        )
        .await;
    assert_eq!(
        triggers,
        "credit_packages_v1_archive A,credit_plans A,credit_purchases_v1_archive A,credit_transactions \
            A,subscription_credits A,user_credits A"
    );
    assert!(matches!(control::run_down(&mut client, &spec, &sample_down()).await.unwrap(), Applied::Now { .. }));
    assert!(matches!(control::run_down(&mut client, &spec, &sample_down()).await.unwrap(), Applied::Earlier { .. }));
    assert_eq!(up(&mut client, &spec, &sample_up()).await.unwrap(), Applied::NotApplicable);
    let triggers = database
        .value(
            "SELECT count(*) FROM pg_trigger WHERE tgname = \
        'credit_migration_block_writes'",
        )
        .await;
    assert_eq!(triggers, "4");
}

#[tokio::test]
async fn balances_that_move_to_another_table_stay_guarded_and_captured() {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    let app = database.session("app").await;
    app.batch_execute(
        "UPDATE user_credits SET balance = 5 WHERE user_id = 3; UPDATE user_credits SET updated_at = now()",
    )
    .await
    .unwrap();
    let moved = sql(&[
        GONE,
        "CREATE TABLE fresh (user_id numeric PRIMARY KEY, balance numeric(20, 2) NOT NULL)",
        "INSERT INTO fresh SELECT user_id, balance FROM user_credits",
        "DROP TABLE user_credits; ALTER TABLE fresh RENAME TO user_credits; GRANT ALL ON user_credits TO app",
    ]);
    let applied = up(&mut client, &spec, &moved).await.unwrap();
    assert!(matches!(applied, Applied::Now { reconciled_users: 1, .. }), "{applied:?}");
    let comparison = control::compare(&client, &spec).await.unwrap();
    assert_eq!((comparison.users, comparison.unexplained), (200, 0));
    database.session("app").await.batch_execute("UPDATE user_credits SET balance = 6 WHERE user_id = 4").await.unwrap();
    assert_eq!(control::users_written(&client, &spec).await.unwrap(), 1);
    let failure =
        control::run_down(&mut client, &spec, &sql(&["UPDATE user_credits SET balance = 7 WHERE user_id = 9"]))
            .await
            .unwrap_err();
    assert_eq!(failure.reason, Reason::BalancesUnexplained);
}

#[tokio::test]
async fn a_copy_of_balances_that_loses_one_is_found_by_the_full_comparison() {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    let lossy = sql(&[
        GONE,
        "CREATE TABLE fresh AS SELECT user_id, balance FROM user_credits WHERE user_id <> 9",
        "DROP TABLE user_credits",
        "ALTER TABLE fresh RENAME TO user_credits",
        "GRANT SELECT, INSERT, UPDATE ON user_credits TO app",
    ]);
    up(&mut client, &spec, &lossy).await.unwrap();
    assert_eq!(control::compare(&client, &spec).await.unwrap().unexplained, 1);
}

#[tokio::test]
async fn a_change_under_way_while_the_baseline_is_taken_is_not_missed() {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    let app = database.session("app").await;
    // Captured first, with the smaller id, and committed only after the snapshot.
    app.batch_execute("BEGIN; UPDATE user_credits SET balance = 1 WHERE user_id = 1").await.unwrap();
    database.session("app").await.batch_execute("UPDATE user_credits SET balance = 2 WHERE user_id = 2").await.unwrap();
    assert_eq!(control::refresh_baseline(&mut client, &spec, Direction::Forward).await.unwrap(), 1);
    app.batch_execute("COMMIT").await.unwrap();
    assert_eq!(control::compare(&client, &spec).await.unwrap().unexplained, 1);
    let applied = up(&mut client, &spec, &sample_up()).await.unwrap();
    assert!(matches!(applied, Applied::Now { reconciled_users: 1, .. }), "{applied:?}");
    assert_eq!(control::compare(&client, &spec).await.unwrap().unexplained, 0);
}

/// Answers that verify nothing, and a word of their message.
const NOT_VERIFIED: &[(&str, &str)] = &[
    ("SELECT true WHERE false", "no row"),
    ("SELECT count(*) FROM users", "no boolean column"),
    ("SELECT true, 'x'::text AS t UNION ALL SELECT NULL, 'secret'", "row 2 of 2"),
    ("SELECT false AS good", "column good of row 1 of 1"),
    ("SELECT * FROM missing", "42P01"),
];

#[tokio::test]
async fn verify_down_must_answer_and_be_true() {
    let (database, mut spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    up(&mut client, &spec, &sample_up()).await.unwrap();
    for (query, word) in NOT_VERIFIED {
        spec.verify_down = Some((*query).to_owned());
        let failure = control::run_down(&mut client, &spec, &sample_down()).await.unwrap_err();
        assert_eq!(failure.reason, Reason::VerifyDownFailed);
        assert!(failure.message.contains(word) && !failure.message.contains("secret"), "{failure}");
    }
    assert_eq!(database.value("SELECT to_regclass('credit_plans')").await, "credit_plans", "still on the new schema");
}

#[tokio::test]
async fn verify_up_must_answer_and_be_true() {
    let (database, mut spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    let before = tables(&database).await;
    for (query, word) in NOT_VERIFIED {
        spec.verify_up = Some((*query).to_owned());
        let failure = up(&mut client, &spec, &sample_up()).await.unwrap_err();
        assert_eq!(failure.reason, Reason::VerifyUpFailed);
        assert!(failure.message.contains(word) && !failure.message.contains("secret"), "{failure}");
        assert!(failure.message.contains("correct the up SQL, or spec.migration.verifyUp"), "{failure}");
    }
    assert_eq!(tables(&database).await, before, "still on the old schema");
    assert_eq!(database.value("SELECT count(*) FROM credit_migration.ledger").await, "0");
    // It sees the new schema.
    spec.verify_up = Some("SELECT count(*) = 3 AS plans FROM credit_plans".to_owned());
    up(&mut client, &spec, &sample_up()).await.unwrap();
}
