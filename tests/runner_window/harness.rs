//! A throwaway PostgreSQL for the tests of the window, and a controller that does what a test says.

use std::{
    ffi::OsStr,
    io::Read,
    net::TcpListener,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use crate::desk::WAIT_TIMEOUT;
pub use crate::desk::{Desk, end};
use crate::programs;
use credit_migration::{
    api::{CreditMigrationSpec, Direction, RunInputs, WindowCommand, WindowOrder, sha256},
    runner::{
        database::{
            connection::Target,
            control::{self, ControlSpec, Sql, schema_objects::SchemaObjects},
        },
        tasks::window::{WindowOutcome, WindowPlan},
    },
};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

/// Users of the sample data.
pub const USERS: i64 = 200;
/// The server of Debian's package: it has messages in other languages.
const TRANSLATED_SERVER: &str = "/usr/lib/postgresql/15/bin";
/// True in SQL while a session of [`Database::pause_sql`] lives.
pub const PAUSED: &str = "EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 3630 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))";

/// The server: started by the first test of the process, ended by its own shell when this process ends, however it
/// does.
pub struct Cluster {
    pub port: u16,
    made: Mutex<()>,
    // The shell waits for the end of the pipe to it.
    _shell: std::process::Child,
}

static CLUSTER: OnceLock<Cluster> = OnceLock::new();
static NEXT: AtomicU32 = AtomicU32::new(0);

// The programs are copied: the server runs as another user, who may not enter the folder of root's cache.
const START: &str = r#"
set -e
dir=$(mktemp -d /tmp/credit-window-XXXXXX)
trap 'rm -rf "$dir"' EXIT
cp -a "$1/.." "$dir/programs"
as=
if [ "$(id -u)" = 0 ]; then
    # PostgreSQL refuses to run as root.
    as="setpriv --reuid postgres --regid postgres --clear-groups --"
    chown postgres "$dir"
fi
case "$4" in
''|standby)
    $as "$dir/programs/bin/initdb" -D "$dir/data" -U postgres -A trust --no-sync -E UTF8 --locale=C >/dev/null ;;
*)
    # Without -R, which writes options that an older server does not know.
    "$2/pg_basebackup" -D "$dir/data" -h 127.0.0.1 -p "$4" -U postgres --no-sync -c fast
    echo "primary_conninfo = 'host=127.0.0.1 port=$4 user=postgres'" >>"$dir/data/postgresql.auto.conf"
    [ -z "$as" ] || chown -R postgres "$dir/data" ;;
esac
if [ -n "$4" ]; then $as touch "$dir/data/standby.signal"; fi
$as "$dir/programs/bin/postgres" -D "$dir/data" -p "$3" -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
    -c fsync=off -c max_connections=200 -c max_prepared_transactions=5 -c autovacuum_naptime=1s $5 >"$dir/log" 2>&1 &
server=$!
echo started
cat >/dev/null
kill -QUIT $server
wait $server || true
"#;

impl Cluster {
    pub fn start() -> Self {
        Self::start_as("")
    }

    /// With `standby` a server that waits for a primary, and can be read; with the port of a server a standby that
    /// streams from it.
    pub fn start_as(kind: &str) -> Self {
        Self::start_with(kind, "", "")
    }

    /// A server whose messages are in a language, such as `de`; in English if it is empty.
    pub fn speaking(language: &str) -> Self {
        Self::start_with("", if language.is_empty() { "" } else { "-c lc_messages=C.UTF-8" }, language)
    }

    /// A server with logical replication.
    pub fn with_logical_wal() -> Self {
        Self::start_with("", "-c wal_level=logical", "")
    }

    fn start_with(kind: &str, settings: &str, language: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = if language.is_empty() { programs::SERVER.as_os_str() } else { OsStr::new(TRANSLATED_SERVER) };
        let mut child = Command::new("sh")
            .args(["-c", START, "sh"])
            .args([server, programs::CLIENT.as_os_str()])
            .args([&port.to_string(), kind, settings])
            .env("LANGUAGE", language)
            .current_dir("/tmp")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0; 7]).unwrap();
        Self { port, made: Mutex::new(()), _shell: child }
    }
}

/// A database of its own, with the sample application's schema v1.
pub struct Database {
    pub name: String,
    /// As which the window connects.
    pub login: String,
    /// Hosts that the window's URL names before the server's own.
    pub hosts: String,
    port: u16,
}

impl Database {
    pub async fn new() -> Self {
        Self::made(|| CLUSTER.get_or_init(Cluster::start))
    }

    /// On a server of its own.
    pub async fn on(cluster: &Arc<Cluster>) -> Self {
        let cluster = cluster.clone();
        Self::made(move || cluster)
    }

    fn made<C: std::ops::Deref<Target = Cluster>>(cluster: impl FnOnce() -> C + Send + 'static) -> Self {
        let (name, port) = std::thread::spawn(move || {
            let cluster = cluster();
            let number = NEXT.fetch_add(1, Ordering::SeqCst);
            let name = format!("watermark_{number}");
            let made = cluster.made.lock().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let root = connect(cluster.port, "postgres", "postgres").await;
                if root.query_opt("SELECT FROM pg_database WHERE datname = 'template_v1'", &[]).await.unwrap().is_none()
                {
                    make_template(cluster.port, &root).await;
                }
                root.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template_v1 OWNER migrator"))
                    .await
                    .unwrap();
            });
            drop(made);
            (name, cluster.port)
        })
        .join()
        .unwrap();
        Self { name, login: "migrator".to_owned(), hosts: String::new(), port }
    }

    /// The same database, with another login of the window.
    pub fn with_login(&self, login: &str) -> Self {
        Self { name: self.name.clone(), login: login.to_owned(), hosts: self.hosts.clone(), port: self.port }
    }

    /// A session as `role`.
    pub async fn session(&self, role: &str) -> Client {
        connect(self.port, role, &self.name).await
    }

    pub fn target(&self) -> Target {
        let Self { name, login, hosts, port } = self;
        let url = format!("postgresql://{login}@{hosts}127.0.0.1:{port}/{name}?sslmode=disable");
        Target::parse(&url, None).unwrap()
    }

    /// Triggers installed, baseline taken: as after the Backup step.
    pub async fn prepared(&self, spec: &ControlSpec) -> Client {
        let mut client = self.target().connect("test").await.unwrap();
        control::install(&mut client, spec).await.unwrap();
        let tx = client
            .build_transaction()
            .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
            .start()
            .await
            .unwrap();
        assert_eq!(control::take_baseline(&tx, spec).await.unwrap(), u64::try_from(USERS).unwrap());
        tx.commit().await.unwrap();
        client
    }

    /// As [`Database::prepared`], with the schema that was rehearsed: what the window of a plan is valid for.
    pub async fn rehearsed(&self, mut plan: WindowPlan) -> WindowPlan {
        let mut client = self.prepared(&plan.control_spec).await;
        let tx = client.transaction().await.unwrap();
        let schema = SchemaObjects::take(&tx).await.unwrap();
        schema.record(&tx, &plan.control_spec).await.unwrap();
        tx.commit().await.unwrap();
        plan.control_spec.rehearsed_schema = Some(schema.evidence().unwrap().sha256);
        plan
    }

    /// One value of a query, as text.
    pub async fn value(&self, query: &str) -> String {
        let root = self.session("postgres").await;
        root.query_one(&format!("SELECT ({query})::text"), &[])
            .await
            .unwrap()
            .get::<_, Option<String>>(0)
            .unwrap_or_default()
    }

    /// Transactions per second of one balance's update, as the application, by pgbench with 2 clients for `seconds`.
    pub fn update_rate(&self, seconds: u32) -> f64 {
        let script = std::env::temp_dir().join(format!("{}-{}.sql", self.name, std::process::id()));
        std::fs::write(
            &script,
            format!(
                "\\set id random(1, {USERS})\nUPDATE user_credits SET balance = balance + 1 WHERE user_id = :id;\n"
            ),
        )
        .unwrap();
        let output = Command::new("pgbench")
            .args([
                "-n",
                "-M",
                "prepared",
                "-c",
                "2",
                "-T",
                &seconds.to_string(),
                "-h",
                "127.0.0.1",
                "-p",
                &self.port.to_string(),
                "-U",
                "app",
                "-f",
            ])
            .args([script.as_os_str(), self.name.as_ref()])
            .output()
            .unwrap();
        std::fs::remove_file(&script).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find(|line| line.starts_with("tps")).unwrap_or_else(|| panic!("{text}"));
        line.split_whitespace().nth(2).unwrap().parse().unwrap()
    }

    /// All balances in one text.
    pub async fn balances(&self) -> String {
        self.value("SELECT string_agg(user_id || ':' || balance, ',' ORDER BY user_id) FROM user_credits").await
    }

    /// A session that has changed another setting of the database, and has not committed.
    pub async fn changing_a_setting(&self) -> Client {
        let session = self.session("postgres").await;
        session
            .batch_execute(&format!("BEGIN READ WRITE; ALTER DATABASE {} SET work_mem = '8MB'", self.name))
            .await
            .unwrap();
        session
    }

    /// The read-only default of the database, empty if there is none.
    pub async fn read_only_default(&self) -> String {
        self.value(
            "SELECT string_agg(c, ',') FROM pg_db_role_setting, unnest(setconfig) AS c, pg_database d WHERE \
            d.oid = setdatabase AND datname = current_database() AND setrole = 0",
        )
        .await
    }

    /// Until `query` is true.
    pub async fn until(&self, query: &str) {
        let root = self.session("postgres").await;
        let start = Instant::now();
        while !root.query_one(&format!("SELECT coalesce(({query}), false)"), &[]).await.unwrap().get::<_, bool>(0) {
            assert!(start.elapsed() < WAIT_TIMEOUT, "not within {WAIT_TIMEOUT:?}: {query}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// SQL of [`crate::window::pausing`] waits while the returned session lives.
    pub async fn pause_sql(&self) -> Client {
        let session = self.session("postgres").await;
        session.batch_execute("SELECT pg_advisory_lock(3630, 1)").await.unwrap();
        session
    }

    /// Ends the sessions of the window task, as a restart of the server or a dead network would.
    pub async fn kill_window(&self) {
        let killed = self
            .value(
                "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity WHERE \
            datname = current_database() AND application_name = 'credit-migration/window'",
            )
            .await;
        assert_ne!(killed, "0");
    }
}

pub async fn connect(port: u16, role: &str, database: &str) -> Client {
    let start = Instant::now();
    loop {
        let config = format!("host=127.0.0.1 port={port} user={role} dbname={database}");
        match tokio_postgres::connect(&config, NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                return client;
            }
            Err(error) => assert!(start.elapsed() < WAIT_TIMEOUT, "{role}@{database}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn make_template(port: u16, root: &Client) {
    root.batch_execute(
        "CREATE ROLE migrator LOGIN CREATEDB; CREATE ROLE app LOGIN; CREATE ROLE analyst LOGIN; GRANT \
        app TO migrator; GRANT pg_signal_backend TO migrator",
    )
    .await
    .unwrap();
    root.batch_execute("CREATE DATABASE template_v1 OWNER migrator").await.unwrap();
    let owner = connect(port, "migrator", "template_v1").await;
    owner.batch_execute(include_str!("../../examples/watermark-remover/db/schema_v1.sql")).await.unwrap();
    owner
        .batch_execute(&format!(
            "INSERT INTO users (email, api_token) SELECT n || '@example.com', 'token ' || n FROM generate_series(1, \
                {USERS}) n;
             INSERT INTO user_credits (user_id, balance) SELECT n, 1000 + n FROM generate_series(1, {USERS}) n;
             INSERT INTO credit_transactions (user_id, type, amount) SELECT n, 'bonus', 1000 + n FROM \
             generate_series(1, {USERS}) n;
             INSERT INTO credit_packages (name, credits, price_cents) VALUES ('small', 50, 500);
             GRANT USAGE ON SCHEMA public TO app, analyst;
             GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO app; GRANT USAGE ON ALL SEQUENCES IN \
             SCHEMA public TO app;
             GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO analyst"
        ))
        .await
        .unwrap();
    drop(owner);
    let start = Instant::now();
    while root
        .query_one("SELECT count(*) FROM pg_stat_activity WHERE datname = 'template_v1'", &[])
        .await
        .unwrap()
        .get::<_, i64>(0)
        > 0
    {
        assert!(start.elapsed() < WAIT_TIMEOUT);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The sample's manifest, as far as the database needs it.
pub fn spec() -> ControlSpec {
    let plan: CreditMigrationSpec = serde_json::from_value(serde_json::json!({
        "requestedBy": "ann",
        "database": {"name": "watermark", "connection": {"secretRef": {"name": "db", "key": "url"}},
            "applicationRoles": ["app"]},
        "migration": {
            "up": {"configMapKeyRef": {"name": "sql", "key": "up.sql"}},
                "down": {"configMapKeyRef": {"name": "sql", "key": "down.sql"}},
            "verifyDown": "SELECT * FROM verify_rollback()", "tablesGone": ["credit_packages", "credit_purchases"],
            "lockTimeout": "500ms", "statementTimeout": "20s"
        },
        "application": {"flag": {"configMapKeyRef": {"name": "flags", "key": "VERSION"}},
            "workloads": [{"kind": "Deployment", "name": "web"}]},
        "backup": {"store": {"url": "s3://backups/x/", "secretRef": {"name": "store"}}}
    }))
    .unwrap();
    ControlSpec { trigger_timeout: Duration::from_secs(10), ..ControlSpec::new("uid-1", "credit-v2", &plan) }
}

pub fn sql(statements: &[&str]) -> Sql {
    let text = statements.join(";\n");
    Sql {
        statements: statements.iter().map(|text| (*text).to_owned()).collect(),
        sha256: sha256(text.as_bytes()),
        text,
    }
}

pub fn sample_up() -> Sql {
    sql(&[include_str!("../../examples/watermark-remover/db/0003_simplify_credit_system.sql")])
}

pub fn sample_down() -> Sql {
    sql(&[include_str!("../../examples/watermark-remover/db/0003_rollback_credit_system.sql")])
}

pub fn plan(direction: Direction, up: Sql, down: Sql) -> WindowPlan {
    let inputs = RunInputs { up_sha256: up.sha256.clone(), down_sha256: down.sha256.clone(), ..RunInputs::default() };
    let order = WindowOrder { command: WindowCommand::Standby, deadline: None };
    let poll = Duration::from_millis(10);
    WindowPlan { control_spec: spec(), direction, attempt: 1, up: Ok(up), down: Ok(down), inputs, order, poll }
}

impl Desk {
    /// Starts a window task. It dies like a killed pod when the handle is aborted.
    pub fn start(self: &Arc<Self>, database: &Database, plan: &WindowPlan) -> JoinHandle<WindowOutcome> {
        self.start_on(database.target(), plan)
    }
}

/// SQLSTATE of a statement, "ok" if it went through.
pub async fn state_of(client: &Client, statement: &str) -> String {
    match client.batch_execute(statement).await {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.code().map_or_else(|| format!("{error:?}"), |code| code.code().to_owned()),
    }
}
