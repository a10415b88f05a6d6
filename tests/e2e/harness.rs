//! One test's world: namespace, database, sample application, users; and its removal.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt;
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{ConfigMap, Event, Namespace, Pod, Secret, Service},
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::sync::RwLock;

use super::{
    cluster::{self, MAX_WAIT, SYSTEM, eventually, state_file},
    database::{DOWN, Database, SERVER, UP},
    migration::Migration,
};
use credit_migration::api::{CreditMigration, MigrationDecision, MigrationRun};

/// Name of ConfigMap, Deployment and Service of the sample application.
pub const APP: &str = "watermark-remover";
/// ConfigMap with the SQL.
pub const SQL: &str = "migration-0003";
/// Key of the flag.
pub const FLAG: &str = "CREDIT_SYSTEM_VERSION";
/// Author of all migrations.
pub const AUTHOR: &str = "carol@shop.example";
/// Duration of a stage that only a decision, a breach or a deletion ends.
pub const LASTS: &str = "24h";
/// `maxDuration` of a window whose deadline is to pass: enough for a slow machine to reach the step that the test
/// needs.
pub const DEADLINE: &str = "60s";
/// Users who may approve, abort and roll back.
pub const APPROVERS: [&str; 2] = ["alice@shop.example", "bob@shop.example"];

/// Tests that stop shared components lock it exclusively.
static CLUSTER: RwLock<()> = RwLock::const_new(());

/// What differs between tests.
pub struct Setup {
    /// Pods of the application; 0 for tests that end before the window.
    pub replicas: i32,
    /// The test stops what others need.
    pub exclusive: bool,
    /// Up SQL.
    pub up: String,
    /// Down SQL.
    pub down: String,
    /// Server of the database.
    pub server: &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        Self { replicas: 1, exclusive: false, up: UP.into(), down: DOWN.into(), server: SERVER }
    }
}

/// One test's world.
pub struct World {
    /// Namespace.
    pub namespace: String,
    /// Database.
    pub db: Database,
    /// Cluster administrator.
    pub client: Client,
    replicas: i32,
}

/// Runs a test in a world of its own, which is removed afterwards.
pub async fn e2e<F>(name: &str, setup: Setup, test: impl FnOnce(Arc<World>) -> F)
where
    F: Future<Output = ()>,
{
    e2e_many(name, setup.exclusive, vec![setup], |mut worlds| test(worlds.remove(0))).await;
}

/// Runs a test in several worlds.
pub async fn e2e_many<F>(name: &str, exclusive: bool, setups: Vec<Setup>, test: impl FnOnce(Vec<Arc<World>>) -> F)
where
    F: Future<Output = ()>,
{
    if !cluster::is_here() {
        return println!("not run: it needs the test cluster; run: make test");
    }
    let keep = std::env::var("CREDIT_MIGRATION_E2E").is_ok_and(|value| value == "keep");
    let (_shared, _alone) =
        if exclusive { (None, Some(CLUSTER.write().await)) } else { (Some(CLUSTER.read().await), None) };
    let started = std::time::Instant::now();
    let client = cluster::client(None).await;
    cluster::some_leader(&client).await;
    let mut worlds = vec![];
    for setup in setups {
        worlds.push(Arc::new(World::create(name, setup).await));
    }
    let result = AssertUnwindSafe(test(worlds.clone())).catch_unwind().await;
    println!("{name}: {:.1} s", started.elapsed().as_secs_f64());
    let failed = result.is_err();
    if failed {
        for world in &worlds {
            world.print().await;
        }
    }
    if failed && keep {
        println!("not removed: {:?}", worlds.iter().map(|w| &w.namespace).collect::<Vec<_>>());
        if let Err(error) = result {
            std::panic::resume_unwind(error);
        }
        return;
    }
    let mut left = vec![];
    for world in &worlds {
        left.extend(world.remove().await.err());
    }
    if let Err(error) = result {
        std::panic::resume_unwind(error);
    }
    assert!(left.is_empty(), "{left:?}");
}

impl World {
    async fn create(name: &str, setup: Setup) -> Self {
        let id: String = std::iter::repeat_with(|| fastrand::char('a'..='z')).take(5).collect();
        let namespace = format!("e2e-{name}-{id}");
        let client = cluster::client(None).await;
        let db = Database::create(setup.server, &namespace.replace('-', "_")).await;
        let world = World { namespace, db, client, replicas: setup.replicas };
        let restricted = json!({"metadata": {"name": world.namespace,
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
        let namespaces: Api<Namespace> = Api::all(world.client.clone());
        namespaces.create(&PostParams::default(), &serde_json::from_value(restricted).unwrap()).await.unwrap();
        world.secrets().await;
        world.config_map(SQL, json!({"up.sql": setup.up, "down.sql": setup.down})).await;
        world.role_bindings().await;
        world.application().await;
        world
    }

    async fn secrets(&self) {
        let ca = state_file("pki-services/ca.crt");
        let (migrator, app) = (self.db.migrator(), self.db.app());
        self.secret("watermark-db", json!({"url": self.db.url(&migrator), "ca.crt": ca})).await;
        self.secret("watermark-app", json!({"url": self.db.url(&app), "ca.crt": ca})).await;
        let keys = state_file("s3-root.env");
        let key = |name: &str| {
            keys.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default().to_owned()
        };
        let [id, secret] = ["accessKeyId", "secretAccessKey"].map(key);
        self.secret("backup-bucket", json!({"accessKeyId": id, "secretAccessKey": secret, "ca.crt": ca})).await;
    }

    async fn role_bindings(&self) {
        // The author names Secrets in the spec, and has to be allowed to read each of them.
        let rules = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]);
        self.create_object::<Role>(json!({"metadata": {"name": "author-secrets"}, "rules": rules})).await;
        let group = "rbac.authorization.k8s.io";
        self.create_object::<RoleBinding>(json!({
            "metadata": {"name": "author-secrets"},
            "subjects": [{"kind": "User", "name": AUTHOR, "apiGroup": group}],
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "author-secrets"},
        }))
        .await;
        for (role, users) in
            [("credit-migration-approver", &APPROVERS[..]), ("credit-migration-edit", &[AUTHOR]), ("view", &[AUTHOR])]
        {
            let subjects: Vec<Value> = users
                .iter()
                .map(|p| json!({"kind": "User", "name": p, "apiGroup": "rbac.authorization.k8s.io"}))
                .collect();
            let binding = json!({
                "metadata": {"name": role}, "subjects": subjects,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            });
            self.create_object::<RoleBinding>(binding).await;
        }
    }

    async fn application(&self) {
        let read = |text: &str| serde_yaml_ng::from_str::<Value>(text).unwrap();
        let mut deployment = read(include_str!("../../examples/watermark-remover/deploy/deployment.yaml"));
        deployment["spec"]["replicas"] = json!(self.replicas);
        self.create_object::<ConfigMap>(read(include_str!("../../examples/watermark-remover/deploy/configmap.yaml")))
            .await;
        self.create_object::<Service>(read(include_str!("../../examples/watermark-remover/deploy/service.yaml"))).await;
        self.create_object::<Deployment>(deployment).await;
        eventually("the application", async || {
            let status = self.api::<Deployment>().get(APP).await.map_err(|e| e.to_string())?.status.unwrap_or_default();
            let ready = status.available_replicas.unwrap_or_default();
            if ready >= self.replicas { Ok(()) } else { Err(format!("{ready} of {} available", self.replicas)) }
        })
        .await;
    }

    /// The namespace's objects of a kind.
    pub fn api<K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates an object from JSON.
    pub async fn create_object<K>(&self, object: Value) -> K
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned
            + serde::Serialize,
    {
        let typed: K = serde_json::from_value(object).unwrap();
        let name = typed.name_any();
        self.api::<K>().create(&PostParams::default(), &typed).await.unwrap_or_else(|e| panic!("create {name}: {e}"))
    }

    /// Creates a Secret.
    pub async fn secret(&self, name: &str, data: Value) {
        self.create_object::<Secret>(json!({"metadata": {"name": name}, "stringData": data})).await;
    }

    /// Creates a ConfigMap.
    pub async fn config_map(&self, name: &str, data: Value) {
        self.create_object::<ConfigMap>(json!({"metadata": {"name": name}, "data": data})).await;
    }

    /// Patches an object as the cluster's administrator.
    pub async fn patch<K>(&self, name: &str, patch: Value)
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let patched = self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        patched.unwrap_or_else(|e| panic!("patch {name}: {e}"));
    }

    /// The spec of an ordinary migration of this world, changed by a merge patch.
    pub fn spec(&self, patch: Value) -> Value {
        let sql = |key: &str| json!({"configMapKeyRef": {"name": SQL, "key": key}});
        let mut spec = json!({
            "requestedBy": AUTHOR,
            "database": {
                "name": self.db.name,
                "connection": {"secretRef": {"name": "watermark-db", "key": "url"},
                    "caSecretRef": {"name": "watermark-db", "key": "ca.crt"}},
                "applicationRoles": [self.db.app()],
            },
            "migration": {
                "up": sql("up.sql"), "down": sql("down.sql"), "verifyDown": "SELECT * FROM verify_rollback()",
                "tablesGone": ["credit_packages", "credit_purchases"],
            },
            "application": {
                "flag": {"configMapKeyRef": {"name": APP, "key": FLAG}},
                "workloads": [{"kind": "Deployment", "name": APP}],
            },
            "backup": {"store": {"url": format!("s3://backups/{}/", self.namespace),
                "endpoint": "https://s3.storage:7070", "secretRef": {"name": "backup-bucket"}}},
            "rehearsal": {"database": format!("{}_rehearsal", self.db.name)},
            "window": {"maxDuration": "30m"},
            "validation": {"duration": "2s", "checks": [
                {"name": "available", "interval": "1s", "workload": {"kind": "Deployment", "name": APP}}]},
            "monitoring": {"duration": "3s", "checks": [
                {"name": "negative-balances", "interval": "1s", "max": "0",
                 "sql": {"query": "SELECT count(*) FROM user_credits WHERE balance < 0"}}]},
            "followUps": {"day": {"after": "1s", "duration": "1s"}, "week": {"after": "2s", "duration": "1s"}},
            "rollback": {"rehearsal": {"mode": "Never"}},
        });
        if self.replicas > 0 {
            spec["application"]["versionProbe"] = json!({"url": format!("http://{APP}/version")});
        }
        json_patch::merge(&mut spec, &patch);
        spec
    }

    /// The version probe always reads v1, so the switch never ends.
    pub fn never_switched() -> Value {
        json!({"application": {"versionProbe": {"jsonPath": "$.contains[0]"}}})
    }

    /// Applies a migration as its author.
    pub async fn migrate(self: &Arc<Self>, name: &str, patch: Value) -> Migration {
        self.try_migrate(name, patch).await.unwrap_or_else(|e| panic!("create {name}: {e}"))
    }

    /// Applies a migration that may be refused.
    pub async fn try_migrate(self: &Arc<Self>, name: &str, patch: Value) -> kube::Result<Migration> {
        Migration::create(self.clone(), name, self.spec(patch)).await
    }

    /// Value of the flag.
    pub async fn flag(&self) -> String {
        let map = self.api::<ConfigMap>().get(APP).await.unwrap();
        map.data.unwrap_or_default().remove(FLAG).unwrap_or_default()
    }

    /// Version that the application reports.
    pub async fn running(&self) -> String {
        let url = format!("http://{APP}.{}/version", self.namespace);
        eventually("the application's version", async || {
            let answer: Value =
                reqwest::get(&url).await.map_err(|e| e.to_string())?.json().await.map_err(|e| e.to_string())?;
            answer["running"].as_str().map(str::to_owned).ok_or(answer.to_string())
        })
        .await
    }

    /// Takes credits from a user through the application; returns the balance.
    pub async fn deduct(&self, user: i64, amount: i64) -> i64 {
        let base = format!("http://{APP}.{}", self.namespace);
        let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
        let post = async |path: &str, body: Value, token: &str| -> Result<Value, String> {
            let request =
                http.post(format!("{base}{path}")).header("content-type", "application/json").bearer_auth(token);
            let answer = request.body(body.to_string()).send().await.map_err(|e| e.to_string())?;
            let status = answer.status();
            let text = answer.text().await.map_err(|e| e.to_string())?;
            if status.is_success() { Ok(serde_json::from_str(&text).unwrap()) } else { Err(format!("{status} {text}")) }
        };
        // Retried: neither a login nor a refused deduction has an effect.
        eventually("a deduction", async || {
            let login = post("/login", json!({"email": format!("user{user}@example.com")}), "").await?;
            let token = login["token"].as_str().unwrap_or_default();
            let answer = post("/credits/deduct", json!({"amount": amount, "reason": "e2e"}), token).await?;
            answer["balance"].as_i64().ok_or(answer.to_string())
        })
        .await
    }

    /// Reasons and notes of the events on a migration.
    pub async fn events(&self, migration: &str) -> Vec<(String, String)> {
        let of = ListParams::default()
            .fields(&format!("involvedObject.kind=CreditMigration,involvedObject.name={migration}"));
        let events = self.api::<Event>().list(&of).await.unwrap();
        events.items.into_iter().map(|e| (e.reason.unwrap_or_default(), e.message.unwrap_or_default())).collect()
    }

    /// Pods of a run.
    pub async fn pods_of(&self, run: &str) -> Vec<Pod> {
        let of = ListParams::default().labels(&format!("job-name={run}"));
        self.api::<Pod>().list(&of).await.map(|l| l.items).unwrap_or_default()
    }

    /// Deletes all migrations, waits until their finalizers are gone, and removes namespace and database.
    async fn remove(&self) -> Result<(), String> {
        // In whatever phase the test has left them.
        let controller = cluster::client(Some(cluster::NAMESPACE_CONTROLLER)).await;
        let migrations: Api<CreditMigration> = Api::namespaced(controller, &self.namespace);
        let mut result = Ok(());
        let _ = migrations.delete_collection(&DeleteParams::default(), &ListParams::default()).await;
        let started = std::time::Instant::now();
        loop {
            // Metadata only: one of them may not be decodable.
            let left = migrations.list_metadata(&ListParams::default()).await.map(|l| l.items).unwrap_or_default();
            if left.is_empty() {
                break;
            }
            if started.elapsed() > MAX_WAIT {
                self.print().await;
                let names: Vec<String> = left.iter().map(ResourceExt::name_any).collect();
                for name in &names {
                    let free = json!({"metadata": {"finalizers": null}});
                    let _ = migrations.patch(name, &PatchParams::default(), &Patch::Merge(&free)).await;
                }
                result = Err(format!("{}: {names:?} did not go within {} s", self.namespace, MAX_WAIT.as_secs()));
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let _ = namespaces.delete(&self.namespace, &DeleteParams::default()).await;
        self.db.remove().await;
        result
    }

    /// Prints what helps to understand a failed test.
    async fn print(&self) {
        println!("=== {}", self.namespace);
        let all = ListParams::default();
        for m in self.api::<CreditMigration>().list(&all).await.map(|l| l.items).unwrap_or_default() {
            let status = serde_json::to_value(&m.status).unwrap_or_default();
            println!("--- CreditMigration {} {:?}\n{status:#}", m.name_any(), m.metadata.deletion_timestamp);
            for (reason, note) in self.events(&m.name_any()).await {
                println!("event {reason}: {note}");
            }
        }
        for r in self.api::<MigrationRun>().list(&all).await.map(|l| l.items).unwrap_or_default() {
            println!("--- MigrationRun {} {}", r.name_any(), json!({"window": r.spec.window, "status": r.status}));
        }
        for d in self.api::<MigrationDecision>().list(&all).await.map(|l| l.items).unwrap_or_default() {
            println!("--- MigrationDecision {}", json!(d.spec));
        }
        for j in self.api::<Job>().list(&all).await.map(|l| l.items).unwrap_or_default() {
            println!("--- Job {} {}", j.name_any(), json!(j.status));
        }
        self.print_pods(&self.namespace, 40, "").await;
        // Of the operator's logs what concerns this namespace, and warnings.
        self.print_pods(SYSTEM, 400, &self.namespace).await;
    }

    async fn print_pods(&self, namespace: &str, lines: i64, about: &str) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        for p in pods.list(&ListParams::default()).await.map(|l| l.items).unwrap_or_default() {
            let status = p.status.clone().unwrap_or_default();
            let containers: Vec<Value> = status
                .container_statuses
                .unwrap_or_default()
                .iter()
                .map(|c| json!([c.restart_count, c.state]))
                .collect();
            println!("--- pod {} {:?} {}", p.name_any(), status.phase, json!(containers));
            let tail = LogParams { tail_lines: Some(lines), ..Default::default() };
            let log = pods.logs(&p.name_any(), &tail).await.unwrap_or_else(|e| e.to_string());
            let noise =
                |l: &&str| !l.contains("tokio_postgres::connection") && (l.contains(about) || !l.contains("\"INFO\""));
            for line in log.lines().filter(noise) {
                println!("{}", line.split(",\"span\"").next().unwrap_or(line));
            }
        }
    }
}
