//! A throwaway PostgreSQL and S3 server, both with TLS, and runs of the runner's tasks against them.

use std::{
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use credit_migration::{
    api::{Check, CheckResult, Finding, MigrationRunSpec, RunInputs, Task, mounts, sha256},
    runner::{
        Failure, checks,
        clients::pg_tools::Tools,
        context::TaskContext,
        database::{
            connection::Target,
            control::{self, Applied, ControlSpec, Sql, StopSignal},
        },
        report::Progress,
        settings::Settings,
        tasks::{
            backup, cleanup, drop_parked, export_key_users, follow_up, preflight, rehearse, rehearse_rollback,
            verify_backup,
        },
    },
};
use serde_json::{Map, Value, json};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::programs;

/// Users of the sample data.
pub const USERS: u64 = 300;
pub const UP: &str = include_str!("../../examples/watermark-remover/db/0003_simplify_credit_system.sql");
pub const DOWN: &str = include_str!("../../examples/watermark-remover/db/0003_rollback_credit_system.sql");
const SERVER_START_TIMEOUT: Duration = Duration::from_secs(120);

struct Servers {
    dir: PathBuf,
    database: u16,
    store: u16,
    _script: Script,
}

/// A script of this folder that has started servers.
pub struct Script {
    pub dir: PathBuf,
    /// What it says next, once; `None` if it has ended.
    pub said: Option<String>,
    // The shell waits for the end of this pipe.
    _alive: ChildStdin,
}

impl Script {
    // Its shell ends by itself when this process does.
    #[allow(clippy::zombie_processes)]
    pub fn start(name: &str, arguments: &[PathBuf]) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runner_data");
        let mut child = Command::new("sh")
            .arg(folder.join(name))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let dir = PathBuf::from(lines.next().unwrap().unwrap());
        let said = lines.next().transpose().unwrap();
        Self { dir, said, _alive: child.stdin.take().unwrap() }
    }
}

fn start() -> Servers {
    let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (database, store) = (port(), port());
    let ports = [database, store].map(|port| PathBuf::from(port.to_string()));
    let arguments = [programs::SERVER.clone(), versitygw()].into_iter().chain(ports).collect::<Vec<_>>();
    let script = Script::start("start.sh", &arguments);
    assert_eq!(script.said.as_deref(), Some("started"));
    let started = Instant::now();
    while [database, store].iter().any(|port| TcpStream::connect(("127.0.0.1", *port)).is_err()) {
        assert!(started.elapsed() < SERVER_START_TIMEOUT, "the servers do not start, see {}", script.dir.display());
        std::thread::sleep(Duration::from_millis(20));
    }
    Servers { dir: script.dir.clone(), database, store, _script: script }
}

static SERVERS: OnceLock<Servers> = OnceLock::new();
static NEXT: AtomicU32 = AtomicU32::new(0);

/// `VERSITYGW`, or what `tests/cluster/tools` has built.
fn versitygw() -> PathBuf {
    if let Some(path) = std::env::var_os("VERSITYGW") {
        return path.into();
    }
    let cache = std::env::var_os("CREDIT_MIGRATION_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/credit-migration-operator"),
        PathBuf::from,
    );
    let built = std::fs::read_dir(cache.join("versitygw")).into_iter().flatten().flatten();
    let built = built.map(|entry| entry.path().join("versitygw")).find(|path| path.exists());
    built.expect("no versitygw: run tests/cluster/tools ensure, or set VERSITYGW")
}

fn servers() -> &'static Servers {
    SERVERS.get_or_init(start)
}

/// One migration: roles, database, mounts and spec of its own.
pub struct World {
    pub number: u32,
    pub spec: MigrationRunSpec,
    pub root: PathBuf,
    pub tools: Tools,
}

/// What a task left.
pub struct Outcome {
    pub result: Result<String, Failure>,
    pub noted: Map<String, Value>,
}

impl Outcome {
    pub fn failure(&self) -> &Failure {
        self.result.as_ref().unwrap_err()
    }
    pub fn findings(&self) -> Vec<Finding> {
        serde_json::from_value(self.noted["findings"].clone()).unwrap()
    }
}

impl World {
    /// The sample application's schema and some users.
    pub async fn new() -> Self {
        let servers = tokio::task::spawn_blocking(servers).await.unwrap();
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let root = servers.dir.join(format!("mounts-{number}"));
        let spec = spec(number, servers.store);
        let world = Self { number, spec, root, tools: Tools::in_folder(programs::CLIENT.as_path()) };
        world.mount(mounts::DATABASE_URL, &world.url("migrator-secret"));
        let ca = std::fs::read_to_string(servers.dir.join("tls/ca.crt")).unwrap();
        world.mount(mounts::DATABASE_CA, &ca);
        world.mount(mounts::STORE_CA, &ca);
        world.mount(mounts::STORE_ACCESS_KEY_ID, "key-id");
        world.mount(mounts::STORE_SECRET_ACCESS_KEY, "key-secret");
        let mut world = world;
        world.sql(UP, DOWN);
        let root = world.root_session("postgres").await;
        // PostgreSQL copies a template for one at a time, and roles are the whole cluster's.
        root.batch_execute("SELECT pg_advisory_lock(1)").await.unwrap();
        for statement in [
            format!("CREATE ROLE migrator_{number} LOGIN CREATEDB PASSWORD 'migrator-secret'"),
            format!("CREATE ROLE app_{number} LOGIN PASSWORD 'app-secret'"),
            format!("GRANT app_{number}, pg_signal_backend TO migrator_{number}"),
            format!("CREATE DATABASE shop_{number} OWNER migrator_{number}"),
        ] {
            root.batch_execute(&statement).await.unwrap();
        }
        root.batch_execute("SELECT pg_advisory_unlock(1)").await.unwrap();
        let owner = world.owner().await;
        owner.batch_execute(include_str!("../../examples/watermark-remover/db/schema_v1.sql")).await.unwrap();
        let fill = format!(
            "INSERT INTO users (email, api_token)
                 SELECT n || '@example.com', 'token ' || n FROM generate_series(1, {USERS}) AS n;
             INSERT INTO user_credits (user_id, balance, purchased_credits)
                 SELECT n, n * 10, n % 3 * 50 FROM generate_series(1, {USERS}) AS n;
             INSERT INTO credit_transactions (user_id, type, amount)
                 SELECT n, 'bonus', n * 10 + 5 FROM generate_series(1, {USERS}) AS n;
             INSERT INTO credit_transactions (user_id, type, amount)
                 SELECT n, 'usage', -5 FROM generate_series(1, {USERS}) AS n;
             INSERT INTO credit_packages (name, credits, price_cents) VALUES ('small', 50, 500);
             GRANT USAGE ON SCHEMA public TO app_{number};
             GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO app_{number};
             GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO app_{number}"
        );
        owner.batch_execute(&fill).await.unwrap();
        world
    }

    pub fn url(&self, password: &str) -> String {
        let port = servers().database;
        format!("postgresql://migrator_{0}:{password}@127.0.0.1:{port}/shop_{0}?sslmode=verify-full", self.number)
    }

    pub fn target(&self) -> Target {
        let ca = std::fs::read_to_string(servers().dir.join("tls/ca.crt")).unwrap();
        Target::parse(&self.url("migrator-secret"), Some(&ca)).unwrap()
    }

    /// A session of the owner, as any other program's: with the `search_path` of role and database.
    pub async fn owner(&self) -> Client {
        let owner = self.target().connect("owner").await.unwrap();
        owner.batch_execute("RESET search_path").await.unwrap();
        owner
    }

    pub async fn root_session(&self, database: &str) -> Client {
        let ca = std::fs::read_to_string(servers().dir.join("tls/ca.crt")).unwrap();
        let port = servers().database;
        let url = format!("postgresql://postgres:root-secret@127.0.0.1:{port}/{database}?sslmode=verify-full");
        let target = Target::parse(&url, Some(&ca)).unwrap();
        let started = Instant::now();
        loop {
            match target.connect("test").await {
                Ok(client) => {
                    client.batch_execute("RESET search_path").await.unwrap();
                    return client;
                }
                Err(failure) => assert!(started.elapsed() < SERVER_START_TIMEOUT, "{failure}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A superuser's connection, for libpq.
    pub fn superuser_env(&self) -> [(&'static str, String); 6] {
        let servers = servers();
        [
            ("PGHOST", "127.0.0.1".to_owned()),
            ("PGPORT", servers.database.to_string()),
            ("PGUSER", "postgres".to_owned()),
            ("PGPASSWORD", "root-secret".to_owned()),
            ("PGSSLMODE", "verify-full".to_owned()),
            ("PGSSLROOTCERT", servers.dir.join("tls/ca.crt").to_string_lossy().into_owned()),
        ]
    }

    /// Runs SQL as superuser in this world's database.
    pub async fn alter(&self, sql: &str) {
        let sql = sql.replace("{n}", &self.number.to_string());
        self.root_session(&format!("shop_{}", self.number)).await.batch_execute(&sql).await.unwrap();
    }

    pub async fn count(&self, query: &str) -> i64 {
        let root = self.root_session(&format!("shop_{}", self.number)).await;
        root.query_one(&query.replace("{n}", &self.number.to_string()), &[]).await.unwrap().get(0)
    }

    /// Installs an extension on the server that an ordinary role may create.
    pub fn add_extension(name: &str, script: &str) {
        let folder = servers().dir.join("programs/share/postgresql/extension");
        std::fs::write(folder.join(format!("{name}.control")), "default_version = '1'\nsuperuser = false\n").unwrap();
        std::fs::write(folder.join(format!("{name}--1.sql")), script).unwrap();
    }

    pub async fn has_scratch(&self) -> bool {
        self.count("SELECT count(*) FROM pg_database WHERE datname = 'scratch_{n}'").await > 0
    }

    pub fn mount(&self, file: &str, text: &str) {
        let path = self.root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn unmount(&self, file: &str) {
        std::fs::remove_file(self.root.join(file)).unwrap();
    }

    /// Mounts both texts, and makes them what the controller saw.
    pub fn sql(&mut self, up: &str, down: &str) {
        self.mount(mounts::UP_SQL, up);
        self.mount(mounts::DOWN_SQL, down);
        self.spec.inputs.up_sha256 = sha256(up.as_bytes());
        self.spec.inputs.down_sha256 = sha256(down.as_bytes());
    }

    /// What a task gets.
    pub fn context(&self, progress: &Progress) -> TaskContext<'_> {
        TaskContext {
            spec: &self.spec,
            settings: Settings::new(&self.root, &self.spec, "shop"),
            tools: self.tools.clone(),
            progress: progress.clone(),
            stop: CancellationToken::new(),
        }
    }

    pub fn control_spec(&self) -> ControlSpec {
        self.context(&Progress::default()).control_spec()
    }

    /// Takes the backup, and runs an up SQL by the call that the window makes.
    pub async fn cutover(&mut self, up: &str) {
        self.backed_up().await;
        let up = Sql::read("up SQL", up.to_owned()).unwrap();
        let down = Sql::read("down SQL", "SELECT 1".to_owned()).unwrap();
        let mut client = self.target().connect("window").await.unwrap();
        let applied =
            control::run_up(&mut client, &self.control_spec(), &up, &down, &StopSignal::default()).await.unwrap();
        assert!(matches!(applied, Applied::Now { .. }), "{applied:?}");
        control::keep_snapshot(&client, &self.control_spec()).await.unwrap();
    }

    /// Measures until each check that is the runner's was measured so often; the last results.
    pub async fn watched(&self, checks: &[Check], times: u64) -> Vec<CheckResult> {
        let (progress, stop) = (Progress::default(), CancellationToken::new());
        let context = self.context(&progress);
        let wanted = checks.iter().filter(|check| !check.by_controller()).count();
        let measured = async {
            loop {
                let noted = progress.fields().get("checks").cloned().unwrap_or_default();
                let results: Vec<CheckResult> = serde_json::from_value(noted).unwrap_or_default();
                if results.len() == wanted && results.iter().all(|result| result.measured >= times) {
                    stop.cancel();
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let both = async { tokio::join!(checks::watch(&context, checks, &[], &stop), measured) };
        let results =
            tokio::time::timeout(Duration::from_secs(60), both).await.expect("not measured so often").0.unwrap();
        let text = serde_json::to_string(&results).unwrap();
        for secret in ["migrator-secret", "key-secret", "root-secret", "@example.com", "token 1"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        results
    }

    pub async fn run(&self, task: Task) -> Outcome {
        let progress = Progress::default();
        let context = self.context(&progress);
        let result = match task {
            Task::Preflight => preflight::run(&context).await,
            Task::Backup => backup::run(&context).await,
            Task::VerifyBackup => verify_backup::run(&context).await,
            Task::ExportKeyUsers => export_key_users::run(&context).await,
            Task::Rehearse => rehearse::run(&context).await,
            Task::RehearseRollback => rehearse_rollback::run(&context).await,
            Task::Cleanup => cleanup::run(&context).await,
            Task::DropParked => drop_parked::run(&context).await,
            Task::DayCheck | Task::WeekReview => {
                assert_eq!(self.spec.task, task);
                follow_up::run(&context, &[]).await
            }
            other => panic!("{other:?}"),
        };
        for text in [format!("{result:?}"), Value::from(progress.fields()).to_string()] {
            for secret in ["migrator-secret", "key-secret", "root-secret", "@example.com", "token 1"] {
                assert!(!text.contains(secret), "{secret} in {text}");
            }
        }
        Outcome { result, noted: progress.fields() }
    }

    /// Takes a backup and hands it on as the controller does.
    pub async fn backed_up(&mut self) -> Outcome {
        let outcome = self.run(Task::Backup).await;
        outcome.result.as_ref().unwrap();
        self.spec.inputs.backup_object = Some(outcome.noted["backup"]["object"].as_str().unwrap().to_owned());
        self.spec.inputs.backup_sha256 = Some(outcome.noted["backup"]["sha256"].as_str().unwrap().to_owned());
        outcome
    }

    /// The backup's object as a file of the store.
    pub fn object_file(&self) -> PathBuf {
        self.file_of(self.spec.inputs.backup_object.as_ref().unwrap())
    }

    /// `s3://bucket/key` as a file of the store.
    pub fn file_of(&self, object: &str) -> PathBuf {
        servers().dir.join("store").join(object.strip_prefix("s3://").unwrap())
    }

    /// Files of this world in the bucket, and parts of uploads.
    pub fn stored(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        list(&servers().dir.join(format!("store/{}", bucket(self.number))), &mut files);
        files
    }
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => list(&path, files),
            path => files.push(path),
        }
    }
}

fn bucket(number: u32) -> String {
    format!("backups-{number}")
}

fn spec(number: u32, store: u16) -> MigrationRunSpec {
    std::fs::create_dir_all(servers().dir.join("store").join(bucket(number))).unwrap();
    let sql = |key: &str| json!({"configMapKeyRef": {"name": "migration-0003", "key": key}});
    let plan = json!({
        "requestedBy": "dba",
        "database": {
            "name": format!("shop_{number}"),
            "connection": {
                "secretRef": {"name": "shop-db", "key": "url"}, "caSecretRef": {"name": "shop-db", "key": "ca.crt"},
            },
            "applicationRoles": [format!("app_{number}")],
        },
        "migration": {
            "up": sql("up.sql"), "down": sql("down.sql"), "verifyDown": "SELECT * FROM verify_rollback()",
            "tablesGone": ["credit_packages", "credit_purchases"],
        },
        "application": {
            "flag": {"configMapKeyRef": {"name": "shop", "key": "CREDIT_SYSTEM_VERSION"}},
            "workloads": [{"kind": "Deployment", "name": "shop"}],
        },
        "backup": {"store": {
            "url": format!("s3://{}/credit-migration/", bucket(number)),
            "endpoint": format!("https://127.0.0.1:{store}"),
            "secretRef": {"name": "backup-bucket"},
        }},
        "rehearsal": {"database": format!("scratch_{number}")},
    });
    MigrationRunSpec {
        migration: "simplify-credits".to_owned(),
        migration_uid: format!("0d9f2c11-{number:04}"),
        task: Task::Preflight,
        attempt: 1,
        plan: serde_json::from_value(plan).unwrap(),
        inputs: RunInputs::default(),
        window: None,
    }
}
