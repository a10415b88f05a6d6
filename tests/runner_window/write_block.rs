//! What the write block stops, whom it lets through, and what it costs others to put it up and take it down.

use std::time::Duration;

use credit_migration::{
    api::{Direction, Reason, SchemaInPlace},
    runner::{
        database::control::{self, ControlSpec, read_only_default, window_record::RecordedEnd, write_block},
        tasks::cleanup::cleanup,
    },
};
use jiff::Timestamp;
use tokio_postgres::Client;

use crate::{
    harness::{Database, spec, state_of},
    programs::MAJOR,
};

const DEADLINE: i64 = 1_790_000_300;

/// A session waits for a lock on the balances.
const QUEUED: &str = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'user_credits'::regclass
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))";

/// Blocks writes as the window does, up to the lock.
async fn close(client: &mut Client, spec: &ControlSpec) -> u32 {
    let blocked_at =
        write_block::enable(client, spec, Direction::Forward, 1, Timestamp::from_second(DEADLINE).unwrap())
            .await
            .unwrap();
    control::drain(client, spec, Some(blocked_at), Duration::from_secs(3)).await.unwrap()
}

async fn open(client: &mut Client, spec: &ControlSpec) {
    read_only_default::restore_default(client, spec).await.unwrap();
    let end = RecordedEnd { schema: SchemaInPlace::Old, failure: None };
    assert!(write_block::disable(client, spec, Direction::Forward, &end, &Default::default()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_write_block_stops_every_kind_of_write_and_none_when_it_is_off() {
    let (database, spec) = (Database::new().await, spec());
    let root = database.session("postgres").await;
    // A partitioned table, and one with an inheritance child, among the protected ones.
    root.batch_execute(
        "SET ROLE migrator;
         CREATE TABLE ledger (id bigint, at int) PARTITION BY RANGE (at);
         CREATE TABLE ledger_1 PARTITION OF ledger FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (at);
         CREATE TABLE ledger_1a PARTITION OF ledger_1 FOR VALUES FROM (0) TO (5);
         CREATE TABLE parent (id bigint); CREATE TABLE child () INHERITS (parent); RESET ROLE",
    )
    .await
    .unwrap();
    let mut spec = spec;
    spec.protected.extend(["ledger".to_owned(), "public.parent".to_owned()]);
    let mut client = database.prepared(&spec).await;
    let writes = [
        "INSERT INTO user_credits (user_id, balance) SELECT 1, 1 WHERE false",
        "UPDATE user_credits SET balance = balance + 1 WHERE user_id = 1",
        "DELETE FROM credit_purchases",
        "TRUNCATE credit_purchases",
        "INSERT INTO ledger VALUES (1, 1)",
        "INSERT INTO ledger_1 VALUES (1, 1)",
        "INSERT INTO ledger_1a VALUES (1, 1)",
        "DELETE FROM child",
        "BEGIN READ WRITE; UPDATE user_credits SET balance = balance + 1; ROLLBACK",
        "SET session_replication_role = replica; UPDATE user_credits SET balance = balance; RESET \
            session_replication_role",
        "MERGE INTO user_credits c USING (SELECT 1 AS id) s ON c.user_id = s.id WHEN MATCHED THEN UPDATE SET balance = \
            0",
        "COPY credit_purchases (user_id) FROM PROGRAM 'true'",
    ];
    // MERGE is there since 15.
    let writes = writes.into_iter().filter(|write| !write.starts_with("MERGE") || *MAJOR >= 15);
    for write in writes.clone().take(9) {
        assert_eq!(state_of(&root, write).await, "ok", "{write}");
    }
    close(&mut client, &spec).await;
    // `root` is older than the closing, superuser, and owner of nothing it could not get around by right.
    for write in writes {
        assert_eq!(state_of(&root, write).await, "25006", "{write}");
        state_of(&root, "ROLLBACK; RESET session_replication_role").await;
    }
    assert_eq!(
        state_of(&root, "UPDATE users SET email = email").await,
        "ok",
        "tables that the spec does not name stay \
        writable"
    );
    let owner = database.session("migrator").await;
    assert_eq!(
        state_of(
            &owner,
            "BEGIN READ WRITE; INSERT INTO credit_migration.exempt_transaction SELECT pg_current_xact_id()::text; \
            UPDATE \
            user_credits SET balance = 0"
        )
        .await,
        "25006"
    );
    assert_eq!(
        state_of(&client, "UPDATE public.user_credits SET balance = balance").await,
        "25006",
        "the window's own session needs to say so"
    );
    let error = owner.batch_execute("ROLLBACK; BEGIN READ WRITE; DELETE FROM user_credits").await.unwrap_err();
    assert_eq!(
        error.as_db_error().unwrap().message(),
        "writes to public.user_credits are blocked by migration uid-1 until at most 2026-09-21T14:18:20Z"
    );
    open(&mut client, &spec).await;
    assert_eq!(state_of(&root, "UPDATE user_credits SET balance = balance").await, "ok");
    assert_eq!(database.read_only_default().await, "");
}

#[tokio::test]
async fn a_snapshot_older_than_the_closing_does_not_slip_through() {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    let analyst = database.session("analyst").await;
    analyst.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM users").await.unwrap();
    close(&mut client, &spec).await;
    // It holds nothing of the protected tables, so it was left alone; its snapshot shows writes as unblocked.
    assert_eq!(state_of(&analyst, "UPDATE user_credits SET balance = 0").await, "25006");
    open(&mut client, &spec).await;
}

#[tokio::test]
async fn the_window_waits_for_a_writer_under_way_and_then_ends_it() {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    let (app, analyst) = (database.session("app").await, database.session("analyst").await);
    app.batch_execute("BEGIN; UPDATE user_credits SET balance = 0 WHERE user_id = 1").await.unwrap();
    analyst.batch_execute("BEGIN; UPDATE user_credits SET balance = 0 WHERE user_id = 2").await.unwrap();
    assert_eq!(close(&mut client, &spec).await, 1, "sessions of the application that were ended");
    assert!(app.is_closed() || state_of(&app, "SELECT 1").await != "ok");
    assert!(analyst.is_closed() || state_of(&analyst, "SELECT 1").await != "ok");
    // A pool that reconnects meanwhile gets a read-only session; it must not outlive the window.
    let reconnected = database.session("app").await;
    assert_eq!(state_of(&reconnected, "UPDATE users SET email = email").await, "25006");
    open(&mut client, &spec).await;
    database
        .until("SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND usename = 'app'")
        .await;
    let app = database.session("app").await;
    assert_eq!(state_of(&app, "UPDATE user_credits SET balance = balance WHERE user_id = 1").await, "ok");
    assert_eq!(database.value("SELECT count(*) FROM user_credits WHERE balance = 0").await, "0");
}

/// Of every role, and whether or not its start is visible: a session that started inside the window is ended, no other.
#[tokio::test]
async fn no_session_stays_read_only_and_none_is_ended_twice() {
    let (database, mut spec) = (Database::new().await, spec());
    // The migration role may act as the application, and inherits nothing of it.
    let (hidden, bridge) = (format!("hidden_{}", database.name), format!("bridge_{}", database.name));
    let root = database.session("postgres").await;
    root.batch_execute(&format!(
        "CREATE ROLE {hidden} LOGIN; CREATE ROLE {bridge} NOINHERIT; GRANT {hidden} TO {bridge}; GRANT {bridge} TO \
            migrator;
         GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO {hidden}"
    ))
    .await
    .unwrap();
    spec.application_roles = vec![hidden.clone()];
    let mut client = database.prepared(&spec).await;
    let pid =
        async |session: &Client| session.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0);
    // The migration role sees the start of neither role.
    let before = database.session("analyst").await;
    let before_pid = pid(&before).await;
    close(&mut client, &spec).await;
    let mut inside = Vec::new();
    for role in ["app", "analyst", &hidden, "migrator"] {
        let session = database.session(role).await;
        assert_eq!(state_of(&session, "UPDATE users SET email = email WHERE false").await, "25006", "{role}");
        inside.push((role.to_owned(), pid(&session).await, session));
    }
    let root_inside = database.session("postgres").await;
    read_only_default::restore_default(&client, &spec).await.unwrap();
    for (_, pid, _) in &inside {
        database.until(&format!("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = {pid}")).await;
    }
    // The new version's, which start while writes are still blocked.
    let mut after = Vec::new();
    for role in ["app", "analyst", &hidden] {
        let session = database.session(role).await;
        after.push((role.to_owned(), pid(&session).await, session));
    }
    let until = read_only_default::restore_default(&client, &spec).await.unwrap().unwrap();
    open(&mut client, &spec).await;
    read_only_default::terminate_read_only_sessions(&client, until).await.unwrap();
    for (role, _, session) in &after {
        assert_eq!(
            state_of(session, "UPDATE user_credits SET balance = balance WHERE user_id = 1").await,
            "ok",
            "{role}"
        );
    }
    assert_eq!((pid(&before).await, state_of(&root_inside, "SELECT 1").await.as_str()), (before_pid, "ok"));
}

#[tokio::test]
async fn the_application_can_neither_read_nor_disable_the_write_block() {
    let (database, spec) = (Database::new().await, spec());
    let mut client = database.prepared(&spec).await;
    let app = database.session("app").await;
    for forbidden in [
        "SELECT * FROM credit_migration.write_block",
        "SELECT * FROM credit_migration.baseline",
        "UPDATE credit_migration.write_block SET blocked = false",
        "INSERT INTO credit_migration.changed_users (user_id) VALUES ('1')",
        "ALTER TABLE user_credits DISABLE TRIGGER credit_migration_block_writes",
        "DROP TRIGGER credit_migration_block_writes ON user_credits",
        "SET session_replication_role = replica",
        "SELECT credit_migration.block_writes()",
        "CREATE TEMP TABLE t (i int); CREATE TRIGGER g BEFORE INSERT ON t EXECUTE FUNCTION \
            credit_migration.track_changes()",
    ] {
        assert_eq!(state_of(&app, forbidden).await, "42501", "{forbidden}");
    }
    // Neither can it pass by name: the trigger does not read objects of its own in its temporary schema.
    app.batch_execute("CREATE TEMP TABLE write_block (blocked boolean); SET search_path = pg_temp, public")
        .await
        .unwrap();
    close(&mut client, &spec).await;
    let app = database.session("app").await;
    assert_eq!(
        state_of(
            &app,
            "BEGIN READ WRITE; INSERT INTO credit_migration.exempt_transaction SELECT pg_current_xact_id()::text"
        )
        .await,
        "42501"
    );
    assert_eq!(state_of(&app, "ROLLBACK; BEGIN READ WRITE; UPDATE user_credits SET balance = 0").await, "25006");
    open(&mut client, &spec).await;
}

#[tokio::test]
async fn triggers_are_installed_next_to_a_long_writer_without_queueing_others_for_long() {
    let (database, mut spec) = (Database::new().await, spec());
    spec.lock_timeout = Duration::from_millis(200);
    let writer = database.session("analyst").await;
    writer.batch_execute("BEGIN; UPDATE user_credits SET balance = balance WHERE user_id = 1").await.unwrap();
    let target = database.target();
    let installing = tokio::spawn({
        let spec = spec.clone();
        async move { control::install(&mut target.connect("install").await.unwrap(), &spec).await }
    });
    database.until(QUEUED).await;
    let app = database.session("app").await;
    for _ in 0..20 {
        // Queued behind the trigger at times, but never for as long as the writer takes, which ends only after this.
        app.batch_execute("UPDATE user_credits SET balance = balance WHERE user_id = 2").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!installing.is_finished());
    // It gives way and comes again: each try is a transaction of its own.
    database.until(QUEUED).await;
    database.until(&format!("SELECT NOT ({})", &QUEUED["SELECT ".len()..])).await;
    writer.batch_execute("COMMIT").await.unwrap();
    installing.await.unwrap().unwrap();

    // And removed again during a long read.
    let reader = database.session("analyst").await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM user_credits").await.unwrap();
    let target = database.target();
    let cleaning = tokio::spawn({
        let spec = spec.clone();
        async move { cleanup(&mut target.connect("cleanup").await.unwrap(), &spec).await }
    });
    database.until(QUEUED).await;
    app.batch_execute("SELECT count(*) FROM user_credits").await.unwrap();
    assert!(!cleaning.is_finished());
    reader.batch_execute("COMMIT").await.unwrap();
    cleaning.await.unwrap().unwrap();
}

#[tokio::test]
async fn one_migration_at_a_time_and_cleanup_gives_the_database_free() {
    let (database, first) = (Database::new().await, spec());
    let mut client = database.target().connect("test").await.unwrap();
    cleanup(&mut client, &first).await.unwrap();
    drop(client);
    let mut client = database.prepared(&first).await;
    control::install(&mut client, &first).await.unwrap();
    let second = ControlSpec { uid: "uid-2".to_owned(), name: "credit-v3".to_owned(), ..spec() };
    let refused = control::install(&mut client, &second).await.unwrap_err();
    assert_eq!(refused.reason, Reason::DatabaseInUse);
    assert!(refused.message.contains("credit-v2 (uid uid-1) since "), "{refused}");
    cleanup(&mut client, &second).await.unwrap();
    let triggers = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'credit_migration%'";
    assert_eq!(
        database.value(triggers).await,
        "6",
        "4 write-block and 2 change-tracking triggers: cleanup of another \
        migration touches nothing"
    );

    close(&mut client, &first).await;
    let refused = cleanup(&mut client, &first).await.unwrap_err();
    assert_eq!(refused.reason, Reason::DatabaseInUse, "triggers stay while writes are blocked");
    open(&mut client, &first).await;
    client.batch_execute("DROP TABLE public.credit_purchases").await.unwrap();
    for _ in 0..2 {
        cleanup(&mut client, &first).await.unwrap();
        assert_eq!(database.value(triggers).await, "0");
    }
    let left = database
        .value(
            "SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class WHERE relnamespace = \
        'credit_migration'::regnamespace AND relkind = 'r'",
        )
        .await;
    assert_eq!(left, "ledger,window_record");
    assert_eq!(state_of(&client, "UPDATE public.user_credits SET balance = balance").await, "ok");
    let missing = control::install(&mut client, &second).await.unwrap_err();
    assert_eq!(missing.reason, Reason::TableMissing, "{missing}");
    client.batch_execute("CREATE TABLE public.credit_purchases ()").await.unwrap();
    control::install(&mut client, &second).await.unwrap();
}

/// Not a property but a figure: `cargo test --test runner_window -- --ignored --nocapture cost`.
#[tokio::test]
#[ignore = "a measurement of half a minute"]
async fn cost_of_the_triggers() {
    let (database, spec) = (Database::new().await, spec());
    database.update_rate(2);
    let bare = [database.update_rate(4), database.update_rate(4)];
    let client = database.prepared(&spec).await;
    let guarded = [database.update_rate(4), database.update_rate(4)];
    client
        .batch_execute("ALTER TABLE public.user_credits DISABLE TRIGGER credit_migration_track_changes")
        .await
        .unwrap();
    let write_block_only = [database.update_rate(4), database.update_rate(4)];
    println!(
        "updates per second: bare {bare:.0?}, both triggers {guarded:.0?}, write block alone \
        {write_block_only:.0?}"
    );
}
