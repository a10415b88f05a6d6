//! Who holds a lock that a window meets is named.

use credit_migration::api::{Direction, Reason, WindowCommand as Order, WindowState as State};

use crate::{
    harness::{Database, Desk, end, plan, sample_down, sample_up, spec},
    window::writable,
};

/// The table is not protected, so no one is ended for it.
#[tokio::test]
async fn who_holds_a_lock_that_the_sql_waits_for_is_named() {
    let (database, desk) = (Database::new().await, Desk::new());
    database.prepared(&spec()).await;
    let root = database.session("postgres").await;
    root.batch_execute("CREATE TABLE reports (id int); ALTER TABLE reports OWNER TO migrator").await.unwrap();
    root.batch_execute("SET application_name = 'nightly report'; BEGIN; LOCK TABLE reports").await.unwrap();
    let pid: i32 = root.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let mut up = sample_up();
    up.statements.push("ALTER TABLE reports ADD COLUMN total int".into());
    let task = desk.start(&database, &plan(Direction::Forward, up, sample_down()));
    desk.state(State::Ready).await;
    desk.order(Order::BlockWrites);
    let outcome = end(task).await;
    let failure = outcome.failure.unwrap();
    assert_eq!(failure.reason, Reason::LockTimeout, "{failure}");
    let holder = format!("the lock was held by pid {pid} (role postgres, application \"nightly report\")");
    assert!(failure.message.contains(&holder), "{holder} is not in {failure}");
    assert!(!failure.message.contains("LOCK TABLE"), "what it does is not named: {failure}");
    assert_eq!(outcome.progress.state, State::RolledBack);
    writable(&database, false).await;
}
