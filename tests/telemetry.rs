//! What the program itself writes to its log, with an API server made of a few answers.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fmt,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Method, Request, Response, StatusCode},
};
use credit_migration::api::{MigrationRun, MigrationRunSpec, mounts};
use serde::{Deserialize, de};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// A line of the log. A key that is there twice is an error: most readers would keep one of the two.
struct Line(Map<String, Value>);

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> de::Visitor<'de> for Once {
            type Value = Map<String, Value>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object whose keys differ")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut map = Map::new();
                while let Some((key, value)) = entries.next_entry::<String, Value>()? {
                    if map.contains_key(&key) {
                        return Err(de::Error::custom(format!("key {key} twice")));
                    }
                    map.insert(key, value);
                }
                Ok(map)
            }
        }
        deserializer.deserialize_map(Once).map(Self)
    }
}

impl Line {
    fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    fn message(&self) -> &str {
        self.0["message"].as_str().unwrap()
    }

    fn has(&self, wanted: &[(&str, Value)]) {
        for (key, value) in wanted {
            assert_eq!(self.0.get(*key), Some(value), "{key} of {:?}", self.0);
        }
    }
}

/// Objects by path; what is not there is a 404, and `Err` a code.
type Objects = Arc<Mutex<BTreeMap<String, Result<Value, u16>>>>;

async fn answer(objects: Objects, request: Request<Body>) -> Response<Body> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let watch = request.uri().query().unwrap_or_default().contains("watch=");
    let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let mut objects = objects.lock().unwrap();
    let found = match method {
        _ if watch => None,
        Method::POST | Method::PUT => {
            let mut object: Value = serde_json::from_slice(&body).unwrap();
            object["metadata"]["resourceVersion"] = json!("1");
            let path = match method {
                Method::POST => format!("{path}/{}", object["metadata"]["name"].as_str().unwrap()),
                _ => path,
            };
            objects.insert(path, Ok(object.clone()));
            Some(Ok(object))
        }
        Method::PATCH => Some(Ok(objects[path.trim_end_matches("/status")].clone().unwrap())),
        _ => Some(objects.get(&path).cloned().unwrap_or(Err(404))),
    };
    let (code, body) = match found {
        None => (200, Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>())),
        Some(Ok(object)) => (200, Body::from(object.to_string())),
        Some(Err(code)) => {
            let reason = if code == 404 { "NotFound" } else { "InternalError" };
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure",
                "code": code, "reason": reason, "message": "no",
            });
            (code, Body::from(status.to_string()))
        }
    };
    let response = Response::builder().status(StatusCode::from_u16(code).unwrap());
    response.header("content-type", "application/json").body(body).unwrap()
}

/// The program, with these objects in its API server. It ends with the value.
async fn start(folder: &std::path::Path, objects: Vec<(String, Result<Value, u16>)>, arguments: &[&str]) -> Child {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", listener.local_addr().unwrap())}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}],
    });
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("kubeconfig"), config.to_string()).unwrap();
    let objects: Objects = Arc::new(Mutex::new(objects.into_iter().collect()));
    let router = Router::new().fallback(move |request| answer(objects.clone(), request));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Command::new(env!("CARGO_BIN_EXE_credit-migration-operator"))
        .args(arguments)
        .env("KUBECONFIG", folder.join("kubeconfig"))
        .env("RUST_LOG", "info")
        .env(mounts::ENV_RUN, "m-notify-2")
        .env(mounts::ENV_NAMESPACE, "shop")
        .env(mounts::ENV_POD, "pod-1")
        .env(mounts::ENV_ROOT, folder)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Its log up to and including the line with this message, or all of it if it ends before.
async fn log_until(child: &mut Child, message: &str) -> Vec<Line> {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut all: Vec<Line> = vec![];
    let reading = async {
        while let Some(text) = lines.next_line().await.unwrap() {
            all.push(Line::read(&text));
            if all.last().is_some_and(|line| line.message() == message) {
                break;
            }
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(30), reading).await;
    let seen: Vec<&str> = all.iter().map(Line::message).collect();
    assert!(in_time.is_ok() && seen.contains(&message), "{seen:?}");
    all
}

fn spec() -> Value {
    json!({
        "requestedBy": "alice",
        "database": {
            "name": "shop",
            "connection": {"secretRef": {"name": "shop-db", "key": "url"}},
            "applicationRoles": ["shop"],
        },
        "migration": {
            "up": {"configMapKeyRef": {"name": "sql", "key": "up.sql"}},
            "down": {"configMapKeyRef": {"name": "sql", "key": "down.sql"}},
        },
        "application": {
            "flag": {"configMapKeyRef": {"name": "shop", "key": "CREDIT_SYSTEM_VERSION"}},
            "workloads": [{"kind": "Deployment", "name": "shop"}],
        },
        "backup": {"store": {"url": "s3://backups/", "secretRef": {"name": "bucket"}}},
        "notifications": {"channels": [
            {"name": "chat", "audiences": ["Team"], "slack": {"urlSecretRef": {"name": "chat", "key": "url"}}},
        ]},
    })
}

fn folder(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("telemetry-{name}"))
}

#[tokio::test]
async fn each_line_of_a_runner_has_its_run() {
    let order: MigrationRunSpec = serde_json::from_value(json!({
        "migration": "m", "migrationUID": "1", "task": "Notify", "attempt": 2, "plan": spec(),
        "inputs": {
            "upSha256": "sha256:0", "downSha256": "sha256:0",
            "notice": {
                "id": "n", "occasion": "Finished", "at": "2030-01-01T00:00:00Z",
                "message": "done", "phase": "Completed",
            },
        },
    }))
    .unwrap();
    let mut run = MigrationRun::new("m-notify-2", order);
    run.metadata.namespace = Some("shop".into());
    let path = "/apis/creditmigration.io/v1alpha1/namespaces/shop/migrationruns/m-notify-2".to_owned();
    let mut runner = start(&folder("runner"), vec![(path, Ok(serde_json::to_value(run).unwrap()))], &["runner"]).await;
    let log = log_until(&mut runner, "failed").await;
    assert!(runner.wait().await.unwrap().success());
    for line in &log {
        line.has(&[
            ("namespace", json!("shop")),
            ("migration", json!("m")),
            ("run", json!("m-notify-2")),
            ("task", json!("Notify")),
            ("attempt", json!(2)),
        ]);
    }
    let cause = |message: &str| log.iter().find(|line| line.message() == message).map(|line| line.0["error"].clone());
    let (undelivered, failed) = (cause("not delivered").unwrap(), cause("failed").unwrap());
    assert!(undelivered.as_str().unwrap().contains("key url of Secret shop/chat is missing"), "{undelivered}");
    assert!(failed.as_str().unwrap().starts_with("NoticeUndelivered: 1 of 1 channels"), "{failed}");
}

/// What the controller needs to run, with one migration of this spec, which it can list and cannot get.
fn cluster(spec: &Value) -> Vec<(String, Result<Value, u16>)> {
    let migration = json!({
        "apiVersion": "creditmigration.io/v1alpha1", "kind": "CreditMigration",
        "metadata": {"name": "m", "namespace": "shop", "uid": "1", "resourceVersion": "1"}, "spec": spec,
    });
    let list = |kind: &str, items: Value| {
        Ok(json!({"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}))
    };
    let group = "/apis/creditmigration.io/v1alpha1";
    let mut objects = vec![
        (format!("{group}/creditmigrations"), list("CreditMigrationList", json!([migration]))),
        (format!("{group}/namespaces/shop/creditmigrations/m"), Err(500)),
        (format!("{group}/migrationdecisions"), list("MigrationDecisionList", json!([]))),
    ];
    for path in ["/apis/batch/v1/jobs", "/api/v1/configmaps", "/apis/apps/v1/deployments"] {
        objects.push((path.to_owned(), list("PartialObjectMetadataList", json!([]))));
    }
    objects.push((format!("{group}/migrationruns"), list("PartialObjectMetadataList", json!([]))));
    objects
}

#[tokio::test]
async fn each_line_of_a_reconciliation_has_its_migration() {
    let arguments = ["controller", "--runner-image", "r", "--listen", "127.0.0.1:0"];
    // The one line is of the reconciliation itself, the other of what follows its failure.
    for (spec, message, level, cause) in [
        (json!({}), "cannot decode this CreditMigration", "ERROR", "Missing field requestedBy"),
        (spec(), "reconciliation failed; retried", "WARN", "Kubernetes API: "),
    ] {
        let mut controller = start(&folder("controller"), cluster(&spec), &arguments).await;
        let log = log_until(&mut controller, message).await;
        controller.kill().await.unwrap();
        let line = log.last().unwrap();
        line.has(&[("namespace", json!("shop")), ("migration", json!("m")), ("level", json!(level))]);
        assert!(line.0["error"].as_str().unwrap().contains(cause), "{:?}", line.0);
        assert!(log.iter().any(|line| line.message() == "leading" && !line.0.contains_key("migration")));
    }
}

/// Series of an exposition, by name and labels.
fn series(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

#[tokio::test]
async fn metrics_cover_the_controllers_own_work() {
    // A port that was free a moment ago.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listen = address.to_string();
    let arguments = ["controller", "--runner-image", "r", "--listen", &listen];
    let mut controller = start(&folder("metrics"), cluster(&spec()), &arguments).await;
    log_until(&mut controller, "reconciliation failed; retried").await;
    let answer = reqwest::get(format!("http://{listen}/metrics")).await.unwrap();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    let text = answer.text().await.unwrap();
    controller.kill().await.unwrap();
    assert!(kind.starts_with("application/openmetrics-text") && text.ends_with("# EOF\n"), "{kind}: {text}");
    let all = series(&text);
    let at_least_one = |name: &str| assert!(all.get(name).is_some_and(|value| *value >= 1.0), "{name}: {text}");
    at_least_one("credit_migration_leader");
    at_least_one("credit_migration_reconcile_failures_total{class=\"kubernetes\"}");
    at_least_one("credit_migration_reconcile_duration_seconds_count{outcome=\"failure\"}");
    at_least_one("credit_migration_kubernetes_request_duration_seconds_count{verb=\"create\",outcome=\"success\"}");
    at_least_one("credit_migration_kubernetes_request_duration_seconds_count{verb=\"get\",outcome=\"server_error\"}");
    assert!(all.contains_key("credit_migration_reconciles_in_progress"), "{text}");
    assert_eq!(all["credit_migration_watch_errors_total{stage=\"list\"}"], 0.0);
    assert_eq!(all["credit_migration_reconciles_total"], 0.0);
}
