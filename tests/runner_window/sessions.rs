//! What every session of the runner is like, whatever role and database set.

use credit_migration::{
    api::{Direction, Reason, SchemaInPlace, WindowCommand},
    runner::{
        Failure,
        database::{
            connection::Target,
            control::{self, StopSignal, read_only_default, window_record::RecordedEnd, write_block},
        },
        tasks::cleanup::cleanup,
    },
};
use jiff::Timestamp;

use crate::{
    harness::{Cluster, Database, Desk, connect, end, sample_down, sample_up, spec, state_of},
    window::{sample, writable},
};

#[tokio::test]
async fn every_session_sets_all_time_outs_that_its_server_knows() {
    let database = Database::new().await;
    let root = database.session("postgres").await;
    // By the server, not by a list: each version may add one. These two are of the network and of replication.
    let known = "SELECT name FROM pg_settings WHERE name LIKE '%timeout' AND context = 'user'
        AND name NOT IN ('tcp_user_timeout', 'wal_sender_timeout')";
    let names: Vec<String> = root.query(known, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    let version: i32 = root.query_one("SELECT current_setting('server_version_num')::int", &[]).await.unwrap().get(0);
    for (name, since) in [("idle_session_timeout", 140_000), ("transaction_timeout", 170_000)] {
        assert_eq!(names.iter().any(|known| known == name), version >= since, "{name} in {names:?}");
    }
    for name in &names {
        let set = format!("ALTER ROLE migrator IN DATABASE {} SET {name} = '59s'", database.name);
        root.batch_execute(&set).await.unwrap();
    }
    let target = database.target();
    let shown = async |client: &tokio_postgres::Client| {
        let mut shown = Vec::new();
        for name in &names {
            let value: String = client.query_one(&format!("SHOW {name}"), &[]).await.unwrap().get(0);
            shown.push((name.clone(), value));
        }
        shown
    };
    let zero: Vec<_> = names.iter().map(|name| (name.clone(), "0".to_owned())).collect();
    let mut client = target.connect("test").await.unwrap();
    assert_eq!(shown(&client).await, zero);
    // The SQL of a migration is followed by RESET ALL.
    control::install(&mut client, &spec()).await.unwrap();
    control::run_up(&mut client, &spec(), &sample_up(), &sample_down(), &StopSignal::default()).await.unwrap();
    assert_eq!(shown(&client).await, zero);
    let control = target.connect_for_control("test").await.unwrap();
    for (name, value) in shown(&control).await {
        let wanted = match name.as_str() {
            "statement_timeout" => "5s",
            "lock_timeout" => "2s",
            _ => "0",
        };
        assert_eq!(value, wanted, "{name}");
    }
}

/// After a failover an address may lead to a standby, on which advisory locks work.
#[tokio::test]
async fn a_standby_is_not_taken_for_the_primary() {
    let standby = tokio::task::spawn_blocking(|| Cluster::start_as("standby")).await.unwrap();
    // Until it can be read.
    drop(connect(standby.port, "postgres", "postgres").await);
    let url = format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", standby.port);
    let target = Target::parse(&url, None).unwrap();
    let failure = target.connect("test").await.unwrap_err();
    assert!(failure.is_connection_lost() && failure.message.contains("is a standby"), "{failure}");
    // For a check that only asks whether the server answers.
    target.try_connect("test").await.unwrap();
}

/// After a failover either of the hosts may be the primary, and the other one down.
#[tokio::test]
async fn of_several_hosts_the_primary_is_connected_to() {
    let database = Database::new().await;
    let standby = tokio::task::spawn_blocking(|| Cluster::start_as("standby")).await.unwrap();
    let waiting = connect(standby.port, "postgres", "postgres").await;
    let primary = database.value("SELECT current_setting('port')").await;
    let (standby, absent) = (format!("127.0.0.1:{}", standby.port), "127.0.0.1:1");
    let own = format!("localhost:{primary}");
    let at = |hosts: &[&str]| {
        let url = format!("postgresql://postgres@{}/postgres?sslmode=disable", hosts.join(","));
        Target::parse(&(url + "&target_session_attrs=read-write"), None).unwrap()
    };
    let port = async |target: &Target| {
        let client = target.connect("test").await?;
        Ok::<_, Failure>(client.query_one("SELECT current_setting('port')", &[]).await.unwrap().get::<_, String>(0))
    };
    for hosts in [[&standby, absent, &own], [absent, &own, &standby], [&own, &standby, absent]] {
        let target = at(&hosts);
        assert_eq!(port(&target).await.unwrap(), primary, "{hosts:?}");
        target.connect_for_observation("test").await.unwrap();
    }
    let target = at(&[absent, &standby]);
    let failure = target.connect("test").await.unwrap_err();
    assert!(failure.is_connection_lost(), "{failure}");
    assert!(failure.message.contains(&format!("{standby} is a standby")), "{failure}");
    assert!(failure.message.contains(&format!("{absent} cannot be reached")), "{failure}");
    // A statement that only a primary takes is no wrong SQL.
    for statement in ["START TRANSACTION READ WRITE", "SELECT pg_current_wal_lsn()"] {
        let failure = Failure::from(waiting.batch_execute(statement).await.unwrap_err());
        assert!(failure.is_connection_lost(), "{failure}");
        waiting.batch_execute("ROLLBACK").await.unwrap();
    }
    // The failover ends.
    waiting.batch_execute("SELECT pg_promote()").await.unwrap();
    assert_eq!(format!("127.0.0.1:{}", port(&target).await.unwrap()), standby);
}

/// The whole window, with a server that is down before its own.
#[tokio::test]
async fn a_window_runs_on_the_primary_of_its_hosts() {
    let mut database = Database::new().await;
    database.hosts = "127.0.0.1:1,".to_owned();
    database.prepared(&spec()).await;
    let desk = Desk::new();
    let task = desk.start(&database, &sample());
    desk.order(WindowCommand::BlockWrites);
    desk.until("comparison", |progress, _| progress.comparison.is_some()).await;
    desk.order(WindowCommand::Rollback);
    assert_eq!(end(task).await.failure, None);
    writable(&database, false).await;
}

#[tokio::test]
async fn rows_that_the_sql_writes_have_the_recorded_number() {
    let database = Database::new().await;
    let mut client = database.prepared(&spec()).await;
    let mut up = sample_up();
    let write = "INSERT INTO credit_transactions (user_id, type, amount, created_at)
        VALUES (1, 'bonus', 0, clock_timestamp())";
    up.statements.push(write.to_owned());
    control::run_up(&mut client, &spec(), &up, &sample_down(), &StopSignal::default()).await.unwrap();
    let own = "SELECT count(*) FROM credit_transactions t, credit_migration.ledger l WHERE t.xmin::text = l.xid
        AND t.created_at > l.started_at";
    assert_eq!(database.value(own).await, "1");
    let written = control::cutover(&client, &spec()).await.unwrap().unwrap();
    assert_eq!(database.value("SELECT started_at < applied_at FROM credit_migration.ledger").await, "true");
    let since = format!("SELECT started_at = '{}' FROM credit_migration.ledger", written.since);
    assert_eq!(database.value(&since).await, "true");
}

#[tokio::test]
async fn an_opening_is_shown_by_an_ordinary_session_of_the_application() {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    let (target, root) = (database.target(), database.session("postgres").await);
    let verified = control::verify_writes_unblocked(&target, &spec).await.unwrap();
    assert_eq!(verified, "4 writes of the application succeeded");
    // Only new sessions are read-only, and only the row blocks.
    let default = format!("ALTER DATABASE {} SET default_transaction_read_only = on", database.name);
    root.batch_execute(&default).await.unwrap();
    let refused = control::verify_writes_unblocked(&target, &spec).await.unwrap_err();
    assert_eq!(refused.reason, Reason::WritesStillBlocked);
    root.batch_execute(&default.replace("SET default_transaction_read_only = on", "RESET ALL")).await.unwrap();
    let deadline = Timestamp::from_second(1_790_000_300).unwrap();
    write_block::enable(&mut client, &spec, Direction::Forward, 1, deadline).await.unwrap();
    read_only_default::restore_default(&client, &spec).await.unwrap();
    let refused = control::verify_writes_unblocked(&target, &spec).await.unwrap_err();
    assert_eq!(refused.reason, Reason::WritesStillBlocked);
    let end = RecordedEnd { schema: SchemaInPlace::Old, failure: None };
    write_block::disable(&mut client, &spec, Direction::Forward, &end, &Default::default()).await.unwrap();
    control::verify_writes_unblocked(&target, &spec).await.unwrap();
}

/// The usual right on an append-only table.
#[tokio::test]
async fn a_table_on_which_the_application_may_only_insert_is_verified() {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    let root = database.session("postgres").await;
    root.batch_execute("REVOKE UPDATE ON credit_transactions FROM app; REVOKE ALL ON credit_packages FROM app")
        .await
        .unwrap();
    let deadline = Timestamp::from_second(1_790_000_300).unwrap();
    write_block::enable(&mut client, &spec, Direction::Forward, 1, deadline).await.unwrap();
    let verifying = database.target().connect("verification").await.unwrap();
    let verified = control::verify_writes_blocked(&verifying, &spec).await.unwrap();
    assert!(verified.starts_with("3 writes refused, 1 not tried for lack of a right"), "{verified}");
    root.batch_execute("ALTER TABLE credit_transactions DISABLE TRIGGER ALL").await.unwrap();
    let failure = control::verify_writes_blocked(&verifying, &spec).await.unwrap_err();
    assert!(failure.reason == Reason::WritesNotBlocked && failure.message.contains("credit_transactions"), "{failure}");
}

/// Another migration's write block is neither taken over nor removed.
#[tokio::test]
async fn a_write_block_of_another_migration_stays() {
    let (database, first) = (Database::new().await, spec());
    let mut client = database.prepared(&first).await;
    let deadline = Timestamp::from_second(1_790_000_300).unwrap();
    write_block::enable(&mut client, &first, Direction::Forward, 1, deadline).await.unwrap();
    let second = control::ControlSpec { uid: "uid-2".to_owned(), ..spec() };
    let refused = write_block::enable(&mut client, &second, Direction::Forward, 1, deadline).await.unwrap_err();
    assert_eq!(refused.reason, Reason::DatabaseInUse);
    client.batch_execute("UPDATE credit_migration.claim SET migration_uid = 'uid-2'").await.unwrap();
    let refused = write_block::enable(&mut client, &second, Direction::Forward, 1, deadline).await.unwrap_err();
    assert_eq!(refused.reason, Reason::DatabaseInUse);
    assert_eq!(database.value("SELECT migration_uid FROM credit_migration.write_block WHERE blocked").await, "uid-1");
    assert_eq!(database.value("SELECT count(*) FROM credit_migration.window_record").await, "1");
}

#[tokio::test]
async fn a_trigger_of_the_same_name_with_another_function_is_replaced() {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    let owner = database.session("migrator").await;
    owner
        .batch_execute(
            "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
             DROP TRIGGER credit_migration_block_writes ON user_credits;
             CREATE TRIGGER credit_migration_block_writes BEFORE UPDATE ON user_credits FOR EACH STATEMENT
                 EXECUTE FUNCTION nothing();
             ALTER TABLE user_credits ENABLE ALWAYS TRIGGER credit_migration_block_writes",
        )
        .await
        .unwrap();
    control::install(&mut client, &spec).await.unwrap();
    let functions = "SELECT string_agg(DISTINCT tgfoid::regproc::text, ',') FROM pg_trigger
        WHERE tgname = 'credit_migration_block_writes'";
    assert_eq!(database.value(functions).await, "credit_migration.block_writes");
}

/// A waiter makes it give way after deadlock_timeout only.
#[tokio::test]
async fn an_autovacuum_gives_way_to_a_trigger() {
    let (database, mut spec) = (Database::new().await, spec());
    spec.trigger_timeout = std::time::Duration::from_secs(60);
    let root = database.session("postgres").await;
    root.batch_execute(
        "ALTER TABLE user_credits SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1,
             autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0);
         INSERT INTO users (id, email, api_token) OVERRIDING SYSTEM VALUE
             SELECT n, n || '@example.org', 'more ' || n FROM generate_series(100001, 120000) n;
         INSERT INTO user_credits (user_id, balance) SELECT n, 0 FROM generate_series(100001, 120000) n;
         UPDATE user_credits SET balance = 1 WHERE user_id > 100000",
    )
    .await
    .unwrap();
    let at_work = "SELECT count(*) > 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE l.relation = 'user_credits'::regclass AND l.granted AND a.backend_type = 'autovacuum worker'";
    database.until(at_work).await;
    let mut client = database.target().connect("test").await.unwrap();
    control::install(&mut client, &spec).await.unwrap();
    // And it is waited for in the same way when the triggers go.
    database.until(at_work).await;
    cleanup(&mut client, &spec).await.unwrap();
    assert_eq!(state_of(&root, "UPDATE user_credits SET balance = balance WHERE user_id = 1").await, "ok");
}
