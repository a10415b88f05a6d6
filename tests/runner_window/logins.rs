//! Logins that are not the owner: configured to act as it, rotated, and who else is kept out.

use std::time::Duration;

use credit_migration::{
    api::{Direction, Reason, WindowCommand as Order, WindowState as State},
    runner::database::control::{self, Applied, StopSignal, write_block},
};
use jiff::Timestamp;

use crate::{
    harness::{Database, Desk, end, plan, sample_down, sample_up, spec, state_of},
    window::{blocked, ledger, writable},
};

/// How the logins of a group get to its rights.
#[derive(Clone, Copy, PartialEq)]
enum Login {
    /// `ALTER ROLE login SET role`, and nothing is inherited.
    Acts,
    /// A member that inherits.
    Inherits,
}

/// A database that belongs to a group without a login, with all its tables; two logins of the group.
async fn of_group(login: Login) -> [Database; 2] {
    let database = Database::new().await;
    let (name, root) = (&database.name, database.session("postgres").await);
    let mut statements = format!(
        "CREATE ROLE owner_{name} NOLOGIN; GRANT app, pg_signal_backend TO owner_{name};
         ALTER DATABASE {name} OWNER TO owner_{name};
         DO $$ DECLARE c record; BEGIN
             FOR c IN SELECT oid::regclass AS name FROM pg_class
                      WHERE relkind IN ('r', 'p', 'v') AND relnamespace = 'public'::regnamespace
             LOOP EXECUTE format('ALTER TABLE %s OWNER TO owner_{name}', c.name); END LOOP;
             FOR c IN SELECT oid::regprocedure AS name FROM pg_proc WHERE pronamespace = 'public'::regnamespace
             LOOP EXECUTE format('ALTER ROUTINE %s OWNER TO owner_{name}', c.name); END LOOP;
         END $$;"
    );
    for number in [1, 2] {
        let role = format!("login_{number}_{name}");
        statements += &match login {
            Login::Acts => format!(
                "CREATE ROLE {role} LOGIN NOINHERIT; GRANT owner_{name} TO {role};
                 ALTER ROLE {role} SET role = 'owner_{name}';"
            ),
            Login::Inherits => format!("CREATE ROLE {role} LOGIN; GRANT owner_{name} TO {role};"),
        };
    }
    root.batch_execute(&statements).await.unwrap();
    [1, 2].map(|number| database.with_login(&format!("login_{number}_{name}")))
}

/// The sample with a statement that writes to a protected table.
fn writing() -> control::Sql {
    let mut up = sample_up();
    up.statements.push("UPDATE user_credits SET updated_at = now()".to_owned());
    up
}

#[rstest::rstest]
#[case::that_acts_as_the_owner(Login::Acts)]
#[case::that_inherits(Login::Inherits)]
#[tokio::test]
async fn a_window_goes_on_under_another_login_of_the_owner(#[case] login: Login) {
    let [first, second] = of_group(login).await;
    first.prepared(&spec()).await;
    let plan = plan(Direction::Forward, writing(), sample_down());
    let (desk, other) = (Desk::new(), Desk::new());
    let task = desk.start(&first, &plan);
    desk.order(Order::BlockWrites);
    let progress = desk.state(State::Migrated).await;
    assert!(progress.verification.unwrap().starts_with("4 writes refused"));
    task.abort();
    let task = other.start(&second, &plan);
    other.order(Order::Switch);
    other.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    blocked(&second).await;
    other.order(Order::Rollback);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None));
    writable(&second, false).await;
    assert_eq!(ledger(&second).await, "up,down");
}

#[rstest::rstest]
#[case::that_acts_as_the_owner(Login::Acts)]
#[case::that_inherits(Login::Inherits)]
#[tokio::test]
async fn what_one_login_migrated_another_one_rolls_back(#[case] login: Login) {
    let [first, second] = of_group(login).await;
    first.prepared(&spec()).await;
    let desk = Desk::new();
    let task = desk.start(&first, &plan(Direction::Forward, writing(), sample_down()));
    desk.order(Order::BlockWrites);
    desk.until("comparison", |progress, _| progress.comparison.is_some()).await;
    desk.order(Order::Switch);
    desk.order(Order::UnblockWrites);
    assert_eq!(end(task).await.failure, None);
    writable(&first, true).await;
    let desk = Desk::new();
    let task = desk.start(&second, &plan(Direction::Rollback, writing(), sample_down()));
    desk.order(Order::BlockWrites);
    desk.state(State::Blocked).await;
    desk.order(Order::Rollback);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None));
    writable(&second, false).await;
    let owner = format!("owner_{}", first.name);
    let owners = "SELECT string_agg(DISTINCT o, ',') FROM (
        SELECT nspowner::regrole::text AS o FROM pg_namespace WHERE nspname = 'credit_migration'
        UNION ALL SELECT relowner::regrole::text FROM pg_class WHERE relnamespace = 'public'::regnamespace) t";
    assert_eq!(first.value(owners).await, owner);
}

/// Neither a session of the owner with the number of its own transaction, nor one with the window's.
#[tokio::test]
async fn no_other_session_passes_the_write_block_under_any_login() {
    let [first, second] = of_group(Login::Inherits).await;
    let mut client = first.prepared(&spec()).await;
    let deadline = Timestamp::from_second(1_790_000_300).unwrap();
    let at = write_block::enable(&mut client, &spec(), Direction::Forward, 1, deadline).await.unwrap();
    control::drain(&client, &spec(), at, Duration::from_secs(3)).await.unwrap();
    let own = "INSERT INTO credit_migration.exempt_transaction SELECT pg_current_xact_id()::text";
    for login in [&first.login, &second.login] {
        let other = first.session(login).await;
        assert_eq!(state_of(&other, &format!("BEGIN READ WRITE; {own}; DELETE FROM user_credits")).await, "25006");
    }
    let app = first.session("app").await;
    assert_eq!(state_of(&app, &format!("BEGIN READ WRITE; {own}")).await, "42501");
    // The window's own process passes within the transaction that says so, not in the next one.
    assert_eq!(state_of(&client, &format!("BEGIN; {own}; DELETE FROM user_credits WHERE false; COMMIT")).await, "ok");
    assert_eq!(state_of(&client, "DELETE FROM user_credits WHERE false").await, "25006");
    let applied = control::run_up(&mut client, &spec(), &writing(), &sample_down(), &StopSignal::default()).await;
    assert!(matches!(applied.unwrap(), Applied::Now { .. }));
}

/// Whoever may create schemas could put a view in the place of the write block.
#[rstest::rstest]
#[case::a_schema_of_the_application("SET ROLE app; CREATE SCHEMA credit_migration", "belongs to role app")]
#[case::a_schema_of_another("SET ROLE analyst; CREATE SCHEMA credit_migration", "belongs to role analyst")]
#[case::a_view(
    "SET ROLE migrator; CREATE SCHEMA credit_migration; CREATE VIEW credit_migration.write_block AS SELECT false AS b",
    "view write_block of role migrator"
)]
#[case::another_owner_s_table(
    "SET ROLE migrator; CREATE SCHEMA credit_migration; GRANT ALL ON SCHEMA credit_migration TO app; SET ROLE app;
     CREATE TABLE credit_migration.baseline (id int)",
    "table baseline of role app"
)]
#[tokio::test]
async fn a_control_schema_of_another_is_refused(#[case] made: &str, #[case] words: &str) {
    let database = Database::new().await;
    let root = database.session("postgres").await;
    root.batch_execute(&format!("GRANT CREATE ON DATABASE {} TO app, analyst; {made}", database.name)).await.unwrap();
    let mut client = database.target().connect("test").await.unwrap();
    let failure = control::install(&mut client, &spec()).await.unwrap_err();
    assert_eq!(failure.reason, Reason::PrivilegeMissing);
    assert!(failure.message.contains(words), "{failure}");
    // Neither does the window read it.
    let outcome = end(Desk::new().start(&database, &plan(Direction::Forward, writing(), sample_down()))).await;
    assert!(outcome.failure.as_ref().is_some_and(|f| f.message.contains(words)), "{outcome:?}");
}
