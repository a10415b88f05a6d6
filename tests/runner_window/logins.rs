//! Logins that are not the owner: configured to act as it, rotated, and who else is kept out.

use std::time::Duration;

use credit_migration::{
    api::{Direction, Reason, WindowCommand as Order, WindowState as State},
    runner::{
        database::control::{self, Applied, StopSignal, write_block},
        tasks::{cleanup::cleanup, window::WindowPlan},
    },
};
use jiff::Timestamp;

use crate::{
    harness::{Database, Desk, end, plan, sample_down, sample_up, spec, sql, state_of},
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
    control::drain(&client, &spec(), Some(at), Duration::from_secs(3)).await.unwrap();
    let own = "INSERT INTO credit_migration.exempt_transaction SELECT pg_current_xact_id()::text";
    for login in [&first.login, &second.login] {
        let other = first.session(login).await;
        assert_eq!(state_of(&other, &format!("BEGIN READ WRITE; {own}; DELETE FROM user_credits")).await, "25006");
    }
    let app = first.session("app").await;
    assert_eq!(state_of(&app, &format!("BEGIN READ WRITE; {own}")).await, "42501");
    // The window's own process passes within the transaction that says so, not in the next one.
    let delete = "DELETE FROM public.user_credits WHERE false";
    assert_eq!(state_of(&client, &format!("BEGIN; {own}; {delete}; COMMIT")).await, "ok");
    assert_eq!(state_of(&client, delete).await, "25006");
    let applied = control::run_up(&mut client, &spec(), &writing(), &sample_down(), &StopSignal::default()).await;
    assert!(matches!(applied.unwrap(), Applied::Now { .. }));
}

/// A role that may create schemas could put a view in the place of the write block.
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

/// The baseline has users and balances.
#[tokio::test]
async fn default_privileges_give_nobody_a_right_on_the_control_schema() {
    let database = Database::new().await;
    let root = database.session("postgres").await;
    root.batch_execute(
        "ALTER DEFAULT PRIVILEGES FOR ROLE migrator GRANT ALL ON SCHEMAS TO analyst WITH GRANT OPTION;
         ALTER DEFAULT PRIVILEGES FOR ROLE migrator GRANT ALL ON TABLES TO analyst, PUBLIC;
         ALTER DEFAULT PRIVILEGES FOR ROLE migrator GRANT ALL ON SEQUENCES TO analyst, PUBLIC;
         ALTER DEFAULT PRIVILEGES FOR ROLE migrator GRANT ALL ON FUNCTIONS TO analyst",
    )
    .await
    .unwrap();
    database.prepared(&spec()).await;
    let foreign = "WITH n AS (SELECT oid, nspowner, nspacl FROM pg_namespace WHERE nspname = 'credit_migration'),
        acl AS (SELECT aclexplode(nspacl) AS item, nspowner AS owner FROM n
                UNION ALL SELECT aclexplode(relacl), relowner FROM pg_class, n WHERE relnamespace = n.oid
                UNION ALL SELECT aclexplode(proacl), proowner FROM pg_proc, n WHERE pronamespace = n.oid)
        SELECT count(*) FROM acl WHERE (item).grantee <> owner";
    assert_eq!(database.value(foreign).await, "0");
    let analyst = database.session("analyst").await;
    assert_eq!(state_of(&analyst, "SELECT * FROM credit_migration.baseline").await, "42501");
}

/// Before version 15 everybody may create functions in `public`, and a better match than the server's own is called.
const HOSTILE: &str = "GRANT CREATE ON SCHEMA public TO analyst; SET ROLE analyst;
    CREATE FUNCTION public.captured(varchar, varchar) RETURNS boolean LANGUAGE plpgsql AS
        $$BEGIN RAISE EXCEPTION 'captured as %', current_user; END$$;
    CREATE FUNCTION public.captured(bigint, text) RETURNS bigint LANGUAGE plpgsql AS
        $$BEGIN RAISE EXCEPTION 'captured as %', current_user; END$$;
    CREATE OPERATOR public.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = public.captured);
    CREATE AGGREGATE public.count(text) (SFUNC = public.captured, STYPE = bigint, INITCOND = '0');
    RESET ROLE";

#[tokio::test]
async fn what_another_role_puts_into_public_is_not_called() {
    let (database, desk) = (Database::new().await, Desk::new());
    let root = database.session("postgres").await;
    root.batch_execute(HOSTILE).await.unwrap();
    root.batch_execute(
        "ALTER TABLE user_credits DROP CONSTRAINT user_credits_user_id_fkey;
         ALTER TABLE user_credits ALTER user_id TYPE varchar(20)",
    )
    .await
    .unwrap();
    let owner = database.session("migrator").await;
    for called in ["SELECT FROM user_credits WHERE user_id = '1'::varchar", "SELECT count('x'::text)"] {
        let captured = owner.query(called, &[]).await.unwrap_err();
        assert!(captured.as_db_error().unwrap().message().contains("captured as migrator"), "{called}");
    }
    database.prepared(&spec()).await;
    let written = |user: i32| format!("UPDATE user_credits SET balance = balance + 1 WHERE user_id::text = '{user}'");
    root.batch_execute(&written(7)).await.unwrap();
    // The window, as far as a rollback that gives the balances back.
    let up = sql(&["DROP TABLE credit_purchases; DROP TABLE credit_packages"]);
    let down = sql(&["CREATE TABLE credit_purchases (id int); CREATE TABLE credit_packages (id int)"]);
    let mut plan = plan(Direction::Forward, up, down);
    plan.control_spec.verify_down = None;
    let task = desk.start(&database, &plan);
    desk.state(State::Ready).await;
    root.batch_execute(&written(8)).await.unwrap();
    desk.order(Order::BlockWrites);
    let progress = desk.state(State::Migrated).await;
    assert_eq!(progress.reconciled_users, Some(1));
    let compared = desk.until("comparison", |progress, _| progress.comparison.is_some()).await;
    assert_eq!(compared.comparison.map(|comparison| comparison.unexplained), Some(0));
    desk.order(Order::Rollback);
    let outcome = end(task).await;
    assert_eq!((outcome.failure, outcome.progress.stuck), (None, false));
    assert!(outcome.progress.unblocked_at.is_some(), "{:?}", outcome.progress);
}

/// SQL of the spec, and the owner's triggers that it sets off: at once, deferred, and by the tried writes.
#[tokio::test]
async fn sql_and_triggers_of_the_owner_have_the_search_path_of_the_database() {
    let (database, desk) = (Database::new().await, Desk::new());
    let root = database.session("postgres").await;
    root.batch_execute(&format!("ALTER DATABASE {} SET search_path = shop, public", database.name)).await.unwrap();
    let owner = database.session("migrator").await;
    owner
        .batch_execute(
            "CREATE SCHEMA shop; GRANT USAGE ON SCHEMA shop TO app; CREATE TABLE shop.audit (n int);
             GRANT SELECT, INSERT ON shop.audit TO app; ALTER TABLE credit_packages SET SCHEMA shop;
             CREATE FUNCTION shop.audit() RETURNS trigger LANGUAGE plpgsql AS
                 $$BEGIN INSERT INTO audit VALUES (1); RETURN NULL; END$$;
             CREATE TRIGGER audit AFTER UPDATE ON user_credits EXECUTE FUNCTION shop.audit();
             CREATE CONSTRAINT TRIGGER audit AFTER UPDATE ON users DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION shop.audit()",
        )
        .await
        .unwrap();
    database.prepared(&spec()).await;
    let up =
        sql(&["UPDATE users SET email = email WHERE id = 1; DROP TABLE credit_purchases; DROP TABLE credit_packages"]);
    let down = sql(&["UPDATE users SET email = email WHERE id = 1; CREATE TABLE credit_purchases (id int); \
        CREATE TABLE credit_packages (id int)"]);
    let mut plan = plan(Direction::Forward, up, down);
    plan.control_spec.verify_up = Some("SELECT count(*) = 1 AS one FROM audit".to_owned());
    plan.control_spec.verify_down = Some("SELECT count(*) = 2 AS two FROM audit".to_owned());
    let task = desk.start(&database, &plan);
    desk.order(Order::BlockWrites);
    desk.until("comparison", |progress, _| progress.comparison.is_some()).await;
    assert_eq!(database.value("SELECT count(*) FROM shop.audit").await, "1", "deferred");
    desk.order(Order::Switch);
    desk.until("acknowledgement", |progress, _| progress.switch_acknowledged).await;
    desk.order(Order::UnblockWrites);
    assert_eq!(end(task).await.failure, None);
    let missing = control::missing_safeguards(&database.target(), &plan.control_spec, &plan.inputs.down_sha256).await;
    assert_eq!(missing.unwrap(), []);

    let desk = Desk::new();
    let task = desk.start(&database, &WindowPlan { direction: Direction::Rollback, ..plan });
    desk.order(Order::BlockWrites);
    desk.state(State::Blocked).await;
    desk.order(Order::Rollback);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None));
    assert_eq!(database.value("SELECT count(*) FROM shop.audit").await, "2", "deferred, in the rollback");
}

/// Each statement that makes or removes what is the operator's, from the backup to the end.
#[tokio::test]
async fn event_triggers_have_the_search_path_of_the_database() {
    let (database, desk) = (Database::new().await, Desk::new());
    let root = database.session("postgres").await;
    root.batch_execute(&format!("ALTER DATABASE {} SET search_path = public, shop", database.name)).await.unwrap();
    root.batch_execute(
        "CREATE SCHEMA shop; CREATE TABLE shop.changes (tag text);
         GRANT USAGE ON SCHEMA shop TO PUBLIC; GRANT INSERT ON shop.changes TO PUBLIC;
         CREATE FUNCTION shop.note() RETURNS event_trigger LANGUAGE plpgsql AS
             $$BEGIN INSERT INTO changes VALUES (tg_event || ' ' || tg_tag); END$$;
         CREATE EVENT TRIGGER note_ends ON ddl_command_end EXECUTE FUNCTION shop.note();
         CREATE EVENT TRIGGER note_drops ON sql_drop EXECUTE FUNCTION shop.note()",
    )
    .await
    .unwrap();
    let mut client = database.prepared(&spec()).await;
    let task = desk.start(&database, &plan(Direction::Forward, writing(), sample_down()));
    desk.order(Order::BlockWrites);
    desk.until("comparison", |progress, _| progress.comparison.is_some()).await;
    desk.order(Order::Rollback);
    let outcome = end(task).await;
    assert_eq!((outcome.progress.state, outcome.failure), (State::RolledBack, None));
    cleanup(&mut client, &spec()).await.unwrap();
    for tag in ["CREATE SCHEMA", "CREATE FUNCTION", "CREATE TRIGGER", "REVOKE", "DROP TRIGGER", "DROP FUNCTION"] {
        let noted = format!("SELECT count(*) > 0 FROM shop.changes WHERE tag = 'ddl_command_end {tag}'");
        assert_eq!(database.value(&noted).await, "true", "{tag}");
    }
    let dropped = "SELECT count(*) > 0 FROM shop.changes WHERE tag = 'sql_drop DROP TABLE'";
    assert_eq!(database.value(dropped).await, "true");
}
