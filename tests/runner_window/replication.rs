//! Standbys, what a commit waits for, and where a recovery can stop.

use std::sync::Arc;

use credit_migration::{
    api::{Direction, ObstacleKind, Reason, WindowCommand as Order, WindowState as State},
    runner::database::control::{self, ControlSpec, StopSignal},
};
use tokio_postgres::Client;

use crate::{
    harness::{Cluster, Database, Desk, connect, end, plan, sample_down, sample_up, spec},
    window::{sample, writable},
};

/// A database on a server of its own, and a standby that has replayed everything and then pauses.
struct Replicated {
    database: Database,
    /// A session of the standby.
    standby: Client,
    _servers: [Arc<Cluster>; 2],
}

async fn replicated() -> Replicated {
    let start = async |kind: String| {
        let cluster = tokio::task::spawn_blocking(move || Cluster::start_as(&kind)).await.unwrap();
        let session = connect(cluster.port, "postgres", "postgres").await;
        (Arc::new(cluster), session)
    };
    let (primary, _) = start(String::new()).await;
    let database = Database::on(&primary).await;
    let (copy, standby) = start(primary.port.to_string()).await;
    database.until("SELECT count(*) = 1 FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()").await;
    Replicated { database, standby, _servers: [primary, copy] }
}

/// The new version may read from a standby.
#[rstest::rstest]
#[case::which_replays_in_the_end(false)]
#[case::which_does_not(true)]
#[tokio::test]
async fn the_switch_waits_for_a_standby(#[case] overdue: bool) {
    let Replicated { database, standby, _servers } = replicated().await;
    database.session("postgres").await.batch_execute("GRANT pg_read_all_stats TO migrator").await.unwrap();
    let desk = Desk::new();
    database.prepared(&spec()).await;
    let task = desk.start(&database, &sample());
    desk.state(State::Ready).await;
    standby.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    desk.order(Order::BlockWrites);
    let committed = desk.state(State::Migrated).await.recovery.committed_lsn.unwrap();
    desk.order(Order::Switch);
    let behind = |note: Option<&credit_migration::runner::Failure>| {
        note.is_some_and(|note| note.reason == Reason::StandbyBehind && note.message.contains(&committed))
    };
    let progress = desk.until("the standby", |_, note| behind(note)).await;
    let replication = progress.replication.unwrap();
    assert!(replication.visible && replication.standbys[0].behind_bytes > 0, "{replication:?}");
    assert_eq!(replication.standbys[0].name, "walreceiver");
    if overdue {
        desk.pass_deadline();
        let outcome = end(task).await;
        assert_eq!((outcome.progress.state, outcome.progress.switch_acknowledged), (State::RolledBack, false));
        writable(&database, false).await;
        return;
    }
    assert!(!desk.last().switch_acknowledged);
    standby.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    let progress = desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    assert_eq!(progress.replication.unwrap().standbys[0].behind_bytes, 0);
    desk.until("comparison", |progress, _| progress.comparison.is_some()).await;
    desk.order(Order::UnblockWrites);
    assert_eq!(end(task).await.failure, None);
    writable(&database, true).await;
}

/// The switch would wait for it with writes blocked.
#[rstest::rstest]
#[case::paused("SELECT pg_wal_replay_pause()", "SELECT pg_wal_replay_resume()")]
#[case::delayed("ALTER SYSTEM SET recovery_min_apply_delay = '1h'", "ALTER SYSTEM RESET recovery_min_apply_delay")]
#[tokio::test]
async fn a_window_waits_with_writes_open_for_a_standby_that_does_not_replay(#[case] stop: &str, #[case] go: &str) {
    let Replicated { database, standby, _servers } = replicated().await;
    database.session("postgres").await.batch_execute("GRANT pg_read_all_stats TO migrator").await.unwrap();
    database.prepared(&spec()).await;
    database.until("SELECT count(*) = 1 FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()").await;
    let set = async |statement: &str| {
        standby.batch_execute(statement).await.unwrap();
        standby.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    };
    set(stop).await;
    let desk = Desk::new();
    let task = desk.start(&database, &sample());
    // It is known once the window is ready, not some time later: an order could come in between.
    let found = desk.state(State::Ready).await;
    let obstacle = found.obstacles.first().expect("an obstacle in the first report").clone();
    assert_eq!(obstacle.kind, ObstacleKind::StandbyNotReplaying);
    assert_eq!(obstacle.application_name.as_deref(), Some("walreceiver"));
    assert!(obstacle.behind_bytes > Some(0), "{found:?}");
    set(go).await;
    desk.until("nothing in the way", |progress, _| progress.obstacles.is_empty()).await;
    desk.order(Order::BlockWrites);
    desk.state(State::Migrated).await;
    desk.order(Order::Rollback);
    assert_eq!(end(task).await.failure, None);
}

#[tokio::test]
async fn a_standby_that_the_role_cannot_see_is_not_waited_for() {
    let Replicated { database, standby, _servers } = replicated().await;
    let desk = Desk::new();
    database.prepared(&spec()).await;
    standby.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    let task = desk.start(&database, &sample());
    desk.order(Order::BlockWrites);
    desk.state(State::Migrated).await;
    desk.order(Order::Switch);
    let progress = desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    let replication = progress.replication.unwrap();
    assert!(!replication.visible && replication.standbys.is_empty(), "{replication:?}");
    desk.order(Order::Rollback);
    assert_eq!(end(task).await.failure, None);
}

#[tokio::test]
async fn a_commit_is_synchronous_whatever_role_and_sql_say() {
    let database = Database::new().await;
    let root = database.session("postgres").await;
    let shown =
        async |client: &Client| -> String { client.query_one("SHOW synchronous_commit", &[]).await.unwrap().get(0) };
    for (set, expected) in [("off", "on"), ("local", "on"), ("remote_write", "on"), ("remote_apply", "remote_apply")] {
        root.batch_execute(&format!(
            "ALTER ROLE migrator IN DATABASE {} SET synchronous_commit = {set}",
            database.name
        ))
        .await
        .unwrap();
        let client = database.target().connect_for_control("test").await.unwrap();
        assert_eq!(shown(&client).await, expected, "{set}");
    }
    root.batch_execute(&format!("ALTER ROLE migrator IN DATABASE {} SET synchronous_commit = off", database.name))
        .await
        .unwrap();
    let mut client = database.prepared(&spec()).await;
    // As the commit finds it, whatever the SQL and its deferred triggers set.
    let owner = database.session("migrator").await;
    owner
        .batch_execute(
            "CREATE TABLE deferred (id int);
             CREATE FUNCTION set_off() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM
             set_config('synchronous_commit', 'off', false); RETURN NULL; END$$;
             CREATE CONSTRAINT TRIGGER t AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE
             FUNCTION set_off()",
        )
        .await
        .unwrap();
    let mut up = sample_up();
    up.statements.push("INSERT INTO deferred VALUES (1); SET synchronous_commit = off".to_owned());
    let found = "SELECT current_setting('synchronous_commit') = 'on' AS synchronous";
    let spec = ControlSpec { verify_up: Some(found.to_owned()), ..spec() };
    control::run_up(&mut client, &spec, &up, &sample_down(), &StopSignal::default()).await.unwrap();
    assert_eq!(shown(&client).await, "on");
}

#[rstest::rstest]
#[case::with_the_right_to_restore_points(true)]
#[case::without(false)]
#[tokio::test]
async fn where_a_recovery_can_stop_is_recorded(#[case] granted: bool) {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let login = format!("recorder_{}", database.name);
    let root = database.session("postgres").await;
    let mut statements = format!("CREATE ROLE {login} LOGIN; GRANT migrator, pg_signal_backend TO {login};");
    if granted {
        statements += &format!("GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO {login}");
    }
    root.batch_execute(&statements).await.unwrap();
    let database = database.with_login(&login);
    let task = desk.start(&database, &sample());
    desk.order(Order::BlockWrites);
    desk.until("comparison", |progress, _| progress.comparison.is_some()).await;
    desk.order(Order::Switch);
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    desk.order(Order::UnblockWrites);
    let forward = end(task).await;
    assert_eq!(forward.failure, None);
    let desk = Desk::new();
    let task = desk.start(&database, &plan(Direction::Rollback, sample_up(), sample_down()));
    desk.order(Order::BlockWrites);
    desk.state(State::Blocked).await;
    desk.order(Order::Rollback);
    let rollback = end(task).await;
    assert_eq!(rollback.failure, None);
    let named = [forward.progress.recovery, rollback.progress.recovery].map(|points| {
        assert!(points.restore_point.is_some() == granted, "{points:?}");
        [points.blocked_lsn, points.committed_lsn, points.unblocked_lsn].map(Option::unwrap)
    });
    let order = named.as_flattened().windows(2).map(|pair| format!("'{}'::pg_lsn <= '{}'::pg_lsn", pair[0], pair[1]));
    let order = format!("SELECT {}", order.collect::<Vec<_>>().join(" AND "));
    assert_eq!(database.value(&order).await, "true", "{order}");
    let recorded =
        "SELECT progress->'recovery'->>'committedLsn' FROM credit_migration.window_record WHERE direction = ";
    assert_eq!(database.value(&format!("{recorded} 'up'")).await, named[0][1]);
    assert_eq!(database.value(&format!("{recorded} 'down'")).await, named[1][1]);
}
