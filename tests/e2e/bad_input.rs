//! Bad input: each message names the fault, the object and the next command, and nothing is changed.

use credit_migration::api::{CreditMigrationStatus, Phase, Writes};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use serde_json::{Value, json};

use super::{
    cluster::state_file,
    database::{DOWN, UP},
    harness::{APP, FLAG, SQL, Setup, World, e2e},
    migration::{Migration, ready},
};

fn idle() -> Setup {
    Setup { replicas: 0, ..Setup::default() }
}

fn sql(direction: &str, name: &str, key: &str) -> Value {
    json!({"migration": {direction: {"configMapKeyRef": {"name": name, "key": key}}}})
}
fn flag(name: &str, key: &str) -> Value {
    json!({"application": {"flag": {"configMapKeyRef": {"name": name, "key": key}}}})
}
fn workload(name: &str) -> Value {
    json!({"application": {"workloads": [{"kind": "Deployment", "name": name}]}})
}
fn connection(secret: &str, key: &str) -> Value {
    json!({"database": {"connection": {"secretRef": {"name": secret, "key": key}}}})
}
fn store(patch: Value) -> Value {
    json!({"backup": {"store": patch}})
}

/// Name, patch of the spec, reason, parts of the message.
type Case = (&'static str, Value, &'static str, &'static [&'static str]);

fn of_the_cluster() -> Vec<Case> {
    vec![
        (
            "sql-map-missing",
            sql("up", "nowhere", "up.sql"),
            "SqlMissing",
            &["ConfigMap nowhere", "up.sql", "spec.migration.up"],
        ),
        ("sql-key-missing", sql("up", SQL, "none.sql"), "SqlMissing", &["migration-0003", "none.sql"]),
        ("down-missing", sql("down", SQL, "none.sql"), "SqlMissing", &["spec.migration.down", "none.sql"]),
        ("flag-map-missing", flag("nowhere", FLAG), "FlagConfigMapMissing", &["ConfigMap nowhere"]),
        ("flag-key-missing", flag(APP, "NONE"), "FlagKeyMissing", &["watermark-remover", "NONE"]),
        ("flag-immutable", flag("immutable", FLAG), "FlagConfigMapImmutable", &["ConfigMap immutable"]),
        (
            "rollback-not-enabled",
            flag("no-rollback", FLAG),
            "RollbackNotEnabled",
            &["no-rollback", "ENABLE_ROLLBACK", "is missing", "\"true\""],
        ),
        ("flag-not-at-from", flag("at-v2", FLAG), "FlagNotAtFrom", &["at-v2", "\"v2\"", "\"v1\""]),
        ("deployment-missing", workload("nowhere"), "WorkloadMissing", &["Deployment nowhere"]),
        ("deployment-deaf", workload("deaf"), "WorkloadDoesNotReadFlag", &["Deployment deaf", FLAG]),
    ]
}

fn of_preflight() -> Vec<Case> {
    let key = |key: &str| sql("up", "bad-sql", key);
    vec![
        ("secret-missing", connection("nowhere", "url"), "SecretKeyMissing", &["nowhere", "url"]),
        ("secret-key-missing", connection("watermark-db", "none"), "SecretKeyMissing", &["watermark-db", "none"]),
        (
            "wrong-password",
            connection("wrong-password", "url"),
            "AuthenticationFailed",
            &["postgres.postgres:5432", "_migrator"],
        ),
        ("host-unknown", connection("host-unknown", "url"), "HostUnreachable", &["nowhere.postgres:5432"]),
        ("port-closed", connection("port-closed", "url"), "HostUnreachable", &["postgres.postgres:5433"]),
        (
            "not-trusted",
            json!({"database": {"connection": {"caSecretRef": {"name": "other-ca", "key": "ca.crt"}}}}),
            "CertificateNotTrusted",
            &["postgres.postgres:5432", "caSecretRef"],
        ),
        ("no-privileges", connection("watermark-app", "url"), "PrivilegeMissing", &["_app", "GRANT"]),
        ("role-missing", json!({"database": {"applicationRoles": ["nobody_here"]}}), "RoleMissing", &["nobody_here"]),
        ("table-missing", json!({"credits": {"balances": {"table": "no_credits"}}}), "TableMissing", &["no_credits"]),
        (
            "column-missing",
            json!({"credits": {"balances": {"balanceColumn": "no_balance"}}}),
            "ColumnMissing",
            &["no_balance", "user_credits"],
        ),
        ("sql-syntax", key("syntax.sql"), "SqlSyntaxError", &["up SQL", "line 2"]),
        ("sql-meta", key("meta.sql"), "SqlMetaCommand", &["up SQL", "line 2"]),
        ("sql-commit", key("commit.sql"), "SqlTransactionControl", &["up SQL", "COMMIT"]),
        ("sql-outside", key("outside.sql"), "SqlOutsideTransaction", &["up SQL", "CONCURRENTLY"]),
        ("bucket-missing", store(json!({"url": "s3://nowhere/x/"})), "BucketMissing", &["nowhere"]),
        ("bucket-denied", store(json!({"secretRef": {"name": "wrong-keys"}})), "BucketDenied", &["backups"]),
        (
            "store-unreachable",
            store(json!({"endpoint": "https://s3.storage:7071"})),
            "StoreUnreachable",
            &["s3.storage:7071"],
        ),
    ]
}

async fn objects(world: &World) {
    let (db, ca) = (&world.db, state_file("pki-services/ca.crt"));
    let migrator = db.migrator();
    let url = |host: &str, password: &str| json!({"url": db.url_at(&migrator, host, password), "ca.crt": ca});
    world.secret("wrong-password", url("postgres.postgres:5432", "wrong")).await;
    world.secret("host-unknown", url("nowhere.postgres:5432", "x")).await;
    world.secret("port-closed", url("postgres.postgres:5433", "x")).await;
    world.secret("other-ca", json!({"ca.crt": state_file("pki/ca.crt")})).await;
    world.secret("wrong-keys", json!({"accessKeyId": "unknown", "secretAccessKey": "else", "ca.crt": ca})).await;
    world
        .config_map(
            "bad-sql",
            json!({
                "syntax.sql": "SELECT 1;\nALTER TABEL user_credits ADD COLUMN x int;\n",
                "meta.sql": "SELECT 1;\n\\i other.sql\n",
                "commit.sql": "ALTER TABLE user_credits ADD COLUMN x int;\nCOMMIT;\n",
                "outside.sql": "CREATE INDEX CONCURRENTLY i ON user_credits (balance);\n",
            }),
        )
        .await;
    world.config_map("at-v2", json!({FLAG: "v2"})).await;
    world.config_map("no-rollback", json!({FLAG: "v1"})).await;
    world
        .create_object::<ConfigMap>(json!({"metadata": {"name": "immutable"}, "immutable": true, "data": {FLAG: "v1"}}))
        .await;
    let labels = json!({"app": "deaf"});
    world
        .create_object::<Deployment>(json!({"metadata": {"name": "deaf"}, "spec": {
            "replicas": 0, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels},
                         "spec": {"containers": [{"name": "deaf", "image": "localhost/pause:dev"}]}},
        }}))
        .await;
}

/// Checks the reason, the message with object and next command, and the event.
async fn assert_reported(m: &Migration, reason: &str, parts: &[&str]) -> Result<(), String> {
    let status = m.until(reason, |s| ready(s).0 == reason || s.phase == Some(Phase::AwaitingApproval)).await;
    let (observed, message) = ready(&status);
    let mut wrong = vec![];
    if observed != reason {
        wrong.push(format!("reason is {observed}"));
    }
    for part in parts.iter().chain(&["next:"]) {
        if !message.contains(part) {
            wrong.push(format!("does not name {part}"));
        }
    }
    m.event(reason, "").await;
    if wrong.is_empty() { Ok(()) } else { Err(format!("{}: {}: {message:?}", m.name, wrong.join(", "))) }
}

async fn all(name: &str, cases: Vec<Case>) {
    e2e(name, idle(), |world| async move {
        objects(&world).await;
        let before = world.db.fingerprint().await;
        let generation = world.api::<Deployment>().get(APP).await.unwrap().metadata.generation;
        let mut migrations = vec![];
        for (name, patch, ..) in &cases {
            migrations.push(world.migrate(name, patch.clone()).await);
        }
        let mut wrong = vec![];
        for (m, (.., reason, parts)) in migrations.iter().zip(&cases) {
            wrong.extend(assert_reported(m, reason, parts).await.err());
            // Each waits for the fix; only SQL that can never run has failed.
            assert_eq!(
                m.status().await.phase.unwrap(),
                if reason.starts_with("Sql") && *reason != "SqlMissing" { Phase::Failed } else { Phase::Preparing }
            );
            m.delete().await;
            m.gone().await;
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert_eq!(world.db.fingerprint().await, before);
        assert_eq!(world.db.ask("SELECT to_regnamespace('credit_migration')").await, None);
        assert_eq!(world.flag().await, "v1");
        assert_eq!(world.api::<Deployment>().get(APP).await.unwrap().metadata.generation, generation);
    })
    .await;
}

#[tokio::test]
async fn what_the_cluster_is_missing() {
    all("missing", of_the_cluster()).await;
}

#[tokio::test]
async fn what_preflight_finds() {
    all("preflight", of_preflight()).await;
}

#[tokio::test]
async fn a_fixed_fault_lets_the_migration_continue() {
    e2e("fixed", idle(), |world| async move {
        let mut spec = connection("late", "url");
        json_patch::merge(&mut spec, &flag("late", FLAG));
        json_patch::merge(&mut spec, &workload("late"));
        let m = world.migrate("simplify", spec).await;
        m.reason("FlagConfigMapMissing").await;
        world.config_map("late", json!({FLAG: "v1", "ENABLE_ROLLBACK": "true"})).await;
        m.reason("WorkloadMissing").await;
        let mut deployment = world.api::<Deployment>().get(APP).await.unwrap();
        deployment.metadata = serde_json::from_value(json!({"name": "late"})).unwrap();
        let mut deployment = serde_json::to_value(&deployment).unwrap();
        deployment["spec"]["template"]["spec"]["containers"][0]["env"][0]["valueFrom"]["configMapKeyRef"]["name"] =
            json!("late");
        deployment.as_object_mut().unwrap().remove("status");
        world.create_object::<Deployment>(deployment).await;
        let message = m.reason("SecretKeyMissing").await;
        assert!(message.contains("late"), "{message}");
        world.secret("late", json!({"url": world.db.url(&world.db.migrator())})).await;
        m.phase(Phase::AwaitingApproval).await;
    })
    .await;
}

/// Patch of the spec, reason, parts of the message.
type Rehearsed = (Value, &'static str, &'static [&'static str]);

/// One migration, edited from one fault to the next; once corrected, it waits for approval.
async fn rehearsed(name: &str, cases: Vec<Rehearsed>) {
    e2e(name, idle(), |world| async move {
        let before = world.db.fingerprint().await;
        world
            .config_map(
                "rehearsed",
                json!({
                    "midway.sql": UP.replace("CREATE TABLE credit_plans", "SELECT 1 / 0;\nCREATE TABLE credit_plans"),
                    "nothing.sql": "SELECT 1;",
                    "slow.sql": format!("{UP}\nSELECT pg_sleep(16);"),
                    "greedy.sql": format!("{UP}\nUPDATE user_credits SET balance = balance + 1 WHERE user_id = 5;"),
                    "down-fails.sql": DOWN.replace("credit_purchases_v1_archive", "no_such_table"),
                    "down-loses.sql": format!("{DOWN}\nDELETE FROM credit_purchases WHERE id = 1;"),
                }),
            )
            .await;
        // Each edit fixes the previous fault and introduces the next one.
        let good = world.spec(json!({"migration": {"verifyUp": "SELECT count(*) > 0 FROM users", "invariants": []}}));
        let mut first = None;
        let mut wrong = vec![];
        for (patch, reason, parts) in cases {
            let mut spec = good.clone();
            json_patch::merge(&mut spec, &patch);
            let m: Migration = match first.take() {
                None => world.migrate("simplify", patch).await,
                Some(m) => m,
            };
            m.edit(spec).await.unwrap();
            let failed = |s: &CreditMigrationStatus| s.phase == Some(Phase::Failed) && ready(s).0 == reason;
            m.until(reason, failed).await;
            wrong.extend(assert_reported(&m, reason, parts).await.err());
            let message = ready(&m.status().await).1;
            assert!(message.contains("nothing was changed"), "{message}");
            m.cleaned().await;
            assert_eq!(world.db.fingerprint().await, before, "{reason}");
            first = Some(m);
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let m = first.unwrap();
        m.edit(good).await.unwrap();
        m.until("the step Approve", |s| s.phase == Some(Phase::AwaitingApproval)).await;
    })
    .await;
}

#[tokio::test]
async fn what_the_rehearsal_finds_in_the_up_sql() {
    let up = |key: &str| sql("up", "rehearsed", key);
    let mut slow = up("slow.sql");
    json_patch::merge(&mut slow, &json!({"window": {"maxDuration": "15s"}}));
    rehearsed(
        "rehearsal-up",
        vec![
            (slow, "WindowTooShort", &["spec.window.maxDuration is 15.0 s"]),
            (up("midway.sql"), "SqlFailed", &["division by zero", "ConfigMap rehearsed"]),
            (up("nothing.sql"), "TablesNotGone", &["credit_packages"]),
            (json!({"migration": {"verifyUp": "SELECT count(*) = 0 FROM users"}}), "VerifyUpFailed", &["verifyUp"]),
            (
                json!({"migration": {"invariants": [
                    {"name": "users", "before": "SELECT count(*) FROM user_credits", "after": "SELECT 0"},
                ]}}),
                "InvariantBroken",
                &["invariant users: of 1 rows before the up SQL 1 are not there after it, 1 others are, limit 0"],
            ),
            (up("greedy.sql"), "BalancesUnexplained", &["1 users"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn what_the_rehearsal_finds_in_the_down_sql() {
    let down = |key: &str| sql("down", "rehearsed", key);
    rehearsed(
        "rehearsal-down",
        vec![
            (down("down-fails.sql"), "SqlFailed", &["no_such_table", "rehearsed"]),
            (down("down-loses.sql"), "RollbackNotEqual", &["credit_purchases"]),
            (
                json!({"migration": {"verifyDown": "SELECT count(*) = 0 FROM users"}}),
                "VerifyDownFailed",
                &["verifyDown"],
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_window_waits_for_a_lock_with_writes_open() {
    e2e("lock", Setup::default(), |world| async move {
        let m = world.migrate("simplify", json!({"migration": {"lockTimeout": "500ms"}})).await;
        m.phase(Phase::AwaitingApproval).await;
        // A superuser's session, which the migration's role cannot terminate.
        let mut holder = world.db.connect().await;
        let transaction = holder.transaction().await.unwrap();
        transaction.batch_execute("LOCK TABLE user_credits IN ACCESS SHARE MODE").await.unwrap();
        m.approve().await;
        let message = m.reason("TableLocked").await;
        assert!(message.contains("writes are open") && message.contains("pg_terminate_backend"), "{message}");
        m.event("TableLocked", "only a superuser can end it").await;
        let status = m.status().await;
        assert_eq!((status.phase, status.writes), (Some(Phase::Executing), Some(Writes::Open)));
        assert!(status.problems.iter().any(|problem| problem.reason == "TableLocked"), "{:?}", status.problems);
        m.assert_old("").await;
        // It goes on by itself, with the same approvals.
        transaction.rollback().await.unwrap();
        m.completed().await;
        m.assert_new().await;
        m.cleaned().await;
    })
    .await;
}
