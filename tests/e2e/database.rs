//! A small database of the sample application, and queries on it.

use std::collections::BTreeMap;

pub use credit_migration::runner::database::fingerprint::Fingerprint;
use credit_migration::runner::{clients::rate_limit::RateLimit, database::connection::Target};
use tokio_postgres::{Client, SimpleQueryMessage, error::SqlState};

use super::cluster::{eventually, state_file};

/// Users of the sample data; each has five transactions.
pub const USERS: usize = 1000;
/// The up SQL of the sample application.
pub const UP: &str = include_str!("../../examples/watermark-remover/db/0003_simplify_credit_system.sql");
/// Its rollback.
pub const DOWN: &str = include_str!("../../examples/watermark-remover/db/0003_rollback_credit_system.sql");
const SCHEMA: &str = include_str!("../../examples/watermark-remover/db/schema_v1.sql");
const DATA: &str = include_str!("../../examples/watermark-remover/db/generate.sql");

/// One database with its roles `NAME_migrator` and `NAME_app`.
#[derive(Clone)]
pub struct Database {
    /// Its name.
    pub name: String,
    password: String,
    admin: Target,
    server: &'static str,
}

/// Host and port of the cluster's usual server.
pub const SERVER: &str = "postgres.postgres:5432";
/// Those of the oldest and of the newest supported version.
pub const OLDEST: &str = "postgres-oldest.postgres:5432";
/// See [`OLDEST`].
pub const NEWEST: &str = "postgres-newest.postgres:5432";

fn target(server: &str, user: &str, password: &str, database: &str) -> Target {
    let url = format!("postgresql://{user}:{password}@{server}/{database}?sslmode=verify-full");
    Target::parse(&url, Some(&state_file("pki-services/ca.crt"))).unwrap()
}

/// A session as any other program's: with the `search_path` of role and database.
async fn session(target: &Target) -> Result<Client, String> {
    let client = target.connect("e2e").await.map_err(|failure| failure.message)?;
    client.batch_execute("RESET search_path").await.map_err(|e| format!("{e:?}"))?;
    Ok(client)
}

impl Database {
    /// Creates it as a managed PostgreSQL service would: no role is a superuser.
    pub async fn create(server: &'static str, name: &str) -> Self {
        let admin = target(server, "postgres", state_file("postgres-superuser-password").trim(), name);
        let password: String = std::iter::repeat_with(fastrand::alphanumeric).take(24).collect();
        let db = Database { name: name.into(), password, admin, server };
        let (migrator, app, password) = (db.migrator(), db.app(), &db.password);
        let server = db.admin.with_database("postgres").connect("e2e").await.unwrap();
        server
            .batch_execute(&format!(
                "CREATE ROLE {app} LOGIN PASSWORD '{password}';
                 CREATE ROLE {migrator} LOGIN CREATEDB PASSWORD '{password}';
                 GRANT pg_signal_backend, {app} TO {migrator}"
            ))
            .await
            .unwrap();
        server.batch_execute(&format!("CREATE DATABASE {name} OWNER {migrator}")).await.unwrap();
        let owner = session(&target(db.server, &migrator, password, name)).await.unwrap();
        owner.batch_execute(SCHEMA).await.unwrap();
        owner
            .batch_execute(&format!(
                "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {app};
                 ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE ON SEQUENCES TO {app};
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {app};
                 GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {app}"
            ))
            .await
            .unwrap();
        // Without the lines that only psql understands.
        let data: Vec<&str> = DATA.lines().filter(|line| !line.starts_with('\\')).collect();
        let data = data.join("\n").replace("\\g /dev/null", ";").replace(":users", &USERS.to_string());
        owner.batch_execute(&data.replace(":transactions", &(5 * USERS).to_string())).await.unwrap();
        owner.batch_execute("ANALYZE (SKIP_LOCKED)").await.unwrap();
        db
    }

    /// What an operator for PostgreSQL puts into a Secret of the migration role, without a URL and a host.
    pub fn credentials(&self) -> serde_json::Value {
        serde_json::json!({
            "username": self.migrator(), "password": self.password, "port": "5432", "dbname": self.name,
            "pgpass": "nowhere:5432:*:me:x",
        })
    }

    /// Removes database, copies and roles.
    pub async fn remove(&self) {
        let Ok(server) = self.admin.with_database("postgres").connect("e2e").await else { return };
        let (migrator, app) = (self.migrator(), self.app());
        let owner = self.owner();
        let copies = format!(
            "SELECT d.datname::text FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba
             WHERE r.rolname IN ('{migrator}', '{owner}')"
        );
        for row in server.query(&copies, &[]).await.unwrap_or_default() {
            let _ = server.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", row.get::<_, &str>(0))).await;
        }
        if let Err(error) =
            server.batch_execute(&format!("DROP ROLE {migrator}; DROP ROLE {app}; DROP ROLE IF EXISTS {owner}")).await
        {
            println!("roles of {} are not removed: {error:?}", self.name);
        }
    }

    /// Name of the migration's role.
    pub fn migrator(&self) -> String {
        format!("{}_migrator", self.name)
    }

    /// Name of the group role that owns everything after [`Database::give_to_group`].
    fn owner(&self) -> String {
        format!("{}_owner", self.name)
    }

    /// A group role owns the database and all in it, and the migration's role acts as that group: `SET role`.
    pub async fn give_to_group(&self) {
        let (migrator, owner, app) = (self.migrator(), self.owner(), self.app());
        self.run(&format!(
            "CREATE ROLE {owner} NOLOGIN CREATEDB; GRANT pg_signal_backend, {app} TO {owner};
             REASSIGN OWNED BY {migrator} TO {owner}; DROP OWNED BY {migrator};
             ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public
                 GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {app};
             ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public GRANT USAGE ON SEQUENCES TO {app};
             ALTER ROLE {migrator} NOINHERIT; GRANT {owner} TO {migrator};
             ALTER ROLE {migrator} SET role = '{owner}'"
        ))
        .await;
    }

    /// Name of the application's role.
    pub fn app(&self) -> String {
        format!("{}_app", self.name)
    }

    /// URL of one of the two roles.
    pub fn url(&self, role: &str) -> String {
        self.url_at(role, self.server, &self.password)
    }

    /// URL of a role at the given host, with the given password.
    pub fn url_at(&self, role: &str, host: &str, password: &str) -> String {
        format!("postgresql://{role}:{password}@{host}/{}?sslmode=verify-full", self.name)
    }

    /// A session as superuser.
    pub async fn connect(&self) -> Client {
        // The cluster's DNS answers late while the API server is down or the machine is busy.
        eventually("a connection to PostgreSQL", async || session(&self.admin).await).await
    }

    /// Locks the balances exclusively, or queues for the lock. Dropping the returned session releases it.
    pub async fn lock_balances(&self) -> Client {
        let session = self.connect().await;
        let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        // Not awaited: the lock is granted once those before it in the queue are released.
        let lock = session.simple_query_raw("BEGIN; LOCK TABLE user_credits IN ACCESS EXCLUSIVE MODE");
        drop(lock.await.unwrap());
        eventually("the queued lock", async || {
            let query = format!("SELECT count(*) FROM pg_locks WHERE pid = {pid} AND mode = 'AccessExclusiveLock'");
            if self.count(&query).await > 0 { Ok(()) } else { Err("not yet".into()) }
        })
        .await;
        session
    }

    /// Runs statements as superuser.
    pub async fn run(&self, sql: &str) {
        self.connect().await.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// First column of the first row, as text; `None` for NULL and for no row.
    pub async fn ask(&self, sql: &str) -> Option<String> {
        let rows = self.connect().await.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        rows.into_iter().find_map(|m| match m {
            SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        })?
    }

    /// A number.
    pub async fn count(&self, sql: &str) -> i64 {
        self.ask(sql).await.unwrap_or_else(|| panic!("{sql}: no row")).parse().unwrap()
    }

    /// Fingerprint of all objects and data of the application.
    pub async fn fingerprint(&self) -> Fingerprint {
        Fingerprint::take(&mut self.connect().await, &RateLimit::new(None), |_, _| {}).await.unwrap()
    }

    /// Balance of each user.
    pub async fn balances(&self) -> BTreeMap<i64, i64> {
        let rows = self.connect().await.query("SELECT user_id, balance FROM user_credits", &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// Users whose balance is not the sum of their transactions.
    pub async fn unexplained(&self) -> i64 {
        self.count(
            "SELECT count(*) FROM user_credits AS c
             LEFT JOIN (SELECT user_id, sum(amount) AS total FROM credit_transactions GROUP BY 1) AS t
             USING (user_id) WHERE c.balance IS DISTINCT FROM coalesce(t.total, 0)",
        )
        .await
    }

    /// `v1` or `v2`, judged by the tables.
    pub async fn schema(&self) -> String {
        self.ask(
            "SELECT CASE (to_regclass('credit_packages') IS NULL, to_regclass('credit_plans') IS NULL)
                    WHEN (false, true) THEN 'v1' WHEN (true, false) THEN 'v2' ELSE 'neither' END",
        )
        .await
        .unwrap()
    }

    /// Number of the operator's triggers.
    pub async fn triggers(&self) -> i64 {
        self.count("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'credit_migration_%'").await
    }

    /// Applied steps of all migrations, in order: `up,down`.
    pub async fn ledger(&self) -> String {
        if self.ask("SELECT to_regclass('credit_migration.ledger')").await.is_none() {
            return String::new();
        }
        self.ask("SELECT coalesce(string_agg(step, ',' ORDER BY applied_at), '') FROM credit_migration.ledger")
            .await
            .unwrap()
    }

    /// Whether the row of the write block says that writes are blocked.
    pub async fn writes_blocked(&self) -> bool {
        let query = "SELECT 1 FROM credit_migration.write_block WHERE blocked";
        match self.connect().await.query(query, &[]).await {
            Ok(rows) => !rows.is_empty(),
            // Cleanup may drop the table at any moment.
            Err(e) if e.code() == Some(&SqlState::UNDEFINED_TABLE) => false,
            Err(e) => panic!("{query}: {e:?}"),
        }
    }

    /// The application's role can write to the credit tables in an ordinary session.
    pub async fn writable(&self) -> Result<(), String> {
        let url = Target::parse(&self.url(&self.app()), Some(&state_file("pki-services/ca.crt"))).unwrap();
        let client = session(&url).await?;
        let tried = client
            .batch_execute(
                "BEGIN; UPDATE user_credits SET balance = balance WHERE user_id = 1;
                 UPDATE credit_transactions SET amount = amount WHERE id = 1; ROLLBACK",
            )
            .await;
        tried.map_err(|e| format!("{e:?}"))?;
        let setting = self
            .ask(
                "SELECT count(*) FROM pg_db_role_setting AS s JOIN pg_database AS d ON d.oid = s.setdatabase
                 WHERE d.datname = current_database()",
            )
            .await;
        if setting.as_deref() == Some("0") { Ok(()) } else { Err("the read-only default is still set".into()) }
    }
}
