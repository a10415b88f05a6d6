//! Raw requests to the API server, with the warnings in its answers.

use std::{
    panic::AssertUnwindSafe,
    path::Path,
    time::{Duration, Instant},
};

use futures::FutureExt;
use k8s_openapi::{
    api::{authentication::v1::SelfSubjectReview, core::v1::Namespace, rbac::v1::ClusterRole},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, PostParams},
    client::Body,
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// Namespace of the operator's release.
pub const SYSTEM: &str = "credit-migration-system";
/// The operator's ServiceAccount.
pub const OPERATOR: &str = "system:serviceaccount:credit-migration-system:credit-migration-operator";

/// Longest wait for the end of migrations.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// An answer of the API server.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub body: Value,
    pub warnings: Vec<String>,
}

impl Answer {
    pub fn ok(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// Message of an error.
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    /// The object; panics if the request was rejected.
    pub fn object(self) -> Value {
        assert!(self.ok(), "{}: {}", self.code, self.message());
        self.body
    }
}

/// A user of the API server, in one namespace.
#[derive(Clone)]
pub struct Person {
    pub client: Client,
    pub namespace: String,
}

impl Person {
    /// One request; `path` is relative to the group's `.../namespaces/NAMESPACE/` unless it starts with a slash.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/apis/creditmigration.io/v1alpha1/namespaces/{}/{path}", self.namespace)
        };
        let mut request = axum::http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.map(|b| serde_json::to_vec(b).unwrap()).unwrap_or_default();
        let response = self.client.send(request.body(Body::from(body)).unwrap()).await.unwrap();
        let warnings = response.headers().get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned()).collect();
        let code = response.status().as_u16();
        let bytes = response.into_body().collect_bytes().await.unwrap();
        Answer { code, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null), warnings }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], None).await
    }

    /// Creates an object with strict validation, optionally as a dry run.
    pub async fn create(&self, plural: &str, object: &Value, dry_run: bool) -> Answer {
        let path = format!("{plural}?fieldValidation=Strict{}", if dry_run { "&dryRun=All" } else { "" });
        self.send("POST", &path, &[("content-type", "application/json")], Some(object)).await
    }

    /// A merge patch with strict validation.
    pub async fn patch(&self, path: &str, patch: &Value) -> Answer {
        let path = format!("{path}?fieldValidation=Strict");
        self.send("PATCH", &path, &[("content-type", "application/merge-patch+json")], Some(patch)).await
    }
}

/// One test's part of the cluster.
pub struct World {
    /// Cluster administrator.
    pub admin: Person,
    /// The operator's ServiceAccount: it alone writes the status of a migration.
    pub operator: Person,
    /// User name of the administrator: users author and decide in their own name only.
    pub name: String,
}

impl World {
    /// The same namespace as another user.
    pub async fn person(&self, user: &str) -> Person {
        impersonate(&self.admin.namespace, &[("impersonate-user", user)]).await
    }

    /// A ServiceAccount with the token of a pod.
    pub async fn pod(&self, user: &str, pod: &str) -> Person {
        let extra = "impersonate-extra-authentication.kubernetes.io%2fpod-name";
        impersonate(&self.admin.namespace, &[("impersonate-user", user), (extra, pod)]).await
    }

    /// The minimal manifest, authored by the administrator.
    pub fn migration(&self, name: &str) -> Value {
        json!({
            "apiVersion": "creditmigration.io/v1alpha1",
            "kind": "CreditMigration",
            "metadata": {"name": name},
            "spec": {
                "requestedBy": self.name,
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
                    "flag": {"configMapKeyRef": {"name": "shop", "key": "VERSION"}},
                    "workloads": [{"kind": "Deployment", "name": "shop"}],
                },
                "backup": {"store": {"url": "s3://backups/x/", "secretRef": {"name": "bucket"}}},
            },
        })
    }

    /// The same with a value that is valid by the schema but not by the operator's types: the operator does not change
    /// its status.
    pub fn undecodable(&self, name: &str) -> Value {
        let mut migration = self.migration(name);
        migration["spec"]["rollback"] = json!({"triggers": {"balanceErrors": {"maxUsers": u64::from(u32::MAX) + 1}}});
        migration
    }

    pub fn decision(&self, name: &str, decision: &str, digest: Option<&str>) -> Value {
        let mut spec = json!({"migration": "m", "migrationUID": "0", "decision": decision, "by": self.name});
        if let Some(digest) = digest {
            spec["digest"] = digest.into();
        }
        json!({
            "apiVersion": "creditmigration.io/v1alpha1",
            "kind": "MigrationDecision",
            "metadata": {"name": name},
            "spec": spec,
        })
    }

    pub fn run(&self, name: &str) -> Value {
        json!({
            "apiVersion": "creditmigration.io/v1alpha1",
            "kind": "MigrationRun",
            "metadata": {"name": name},
            "spec": {
                "migration": "m",
                "migrationUID": "0",
                "task": "Window",
                "attempt": 1,
                "plan": self.migration("m")["spec"],
                "inputs": {"upSha256": "sha256:0", "downSha256": "sha256:0"},
                "window": {"command": "Standby"},
            },
        })
    }
}

async fn impersonate(namespace: &str, headers: &[(&str, &str)]) -> Person {
    let mut config = Config::infer().await.unwrap();
    config.headers.extend(headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())));
    Person { client: Client::try_from(config).unwrap(), namespace: namespace.to_owned() }
}

/// Sets the value at a path of keys and indices, such as `spec/database/name`; `null` removes it.
pub fn set(object: &mut Value, path: &str, value: Value) {
    let (parents, last) = path.rsplit_once('/').unwrap_or(("", path));
    let mut at = object;
    for key in parents.split('/').filter(|k| !k.is_empty()) {
        at = match key.parse::<usize>() {
            Ok(i) => &mut at[i],
            Err(_) => &mut at[key],
        };
    }
    match (last.parse::<usize>(), value) {
        (Ok(i), value) => at[i] = value,
        (Err(_), Value::Null) => drop(at.as_object_mut().unwrap().remove(last)),
        (Err(_), value) => at[last] = value,
    }
}

/// Whether this process runs in the test cluster: no other cluster is touched.
fn is_here() -> bool {
    std::env::var("KUBECONFIG")
        .is_ok_and(|path| Path::new(&path).parent().unwrap().join(".credit-migration-cluster").exists())
}

/// Runs a test in a namespace of its own, which is removed afterwards.
pub async fn with_cluster(name: &str, test: impl AsyncFnOnce(&World)) {
    if !is_here() {
        return println!("not run: it needs the test cluster; run: make test");
    }
    let client = Client::try_default().await.unwrap();
    installed(&client).await;
    let namespace = format!("api-{name}-{}", std::process::id());
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let wanted: Namespace = serde_json::from_value(json!({"metadata": {"name": namespace}})).unwrap();
    namespaces.create(&PostParams::default(), &wanted).await.unwrap();
    let me = Api::<SelfSubjectReview>::all(client.clone())
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .unwrap();
    let name = me.status.and_then(|s| s.user_info).and_then(|u| u.username).unwrap();
    let operator = impersonate(&namespace, &[("impersonate-user", OPERATOR)]).await;
    let world = World { admin: Person { client, namespace: namespace.clone() }, operator, name };
    let result = AssertUnwindSafe(test(&world)).catch_unwind().await;
    let left = remove_migrations(&world).await;
    namespaces.delete(&namespace, &DeleteParams::default()).await.unwrap();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
    assert!(left.is_empty(), "left in {namespace}: {left:?}");
}

/// Ends and deletes all migrations: the operator's finalizer would block the deletion of the namespace.
async fn remove_migrations(World { admin, operator, .. }: &World) -> Vec<String> {
    let mut left = vec![];
    let started = Instant::now();
    while started.elapsed() < MAX_WAIT {
        let list = admin.get("creditmigrations").await.object();
        left = list["items"].as_array().unwrap().iter().map(|m| m["metadata"]["name"].to_string()).collect();
        if left.is_empty() {
            break;
        }
        for name in &left {
            let path = format!("creditmigrations/{}", name.trim_matches('"'));
            let ended = json!({"status": {"phase": "Cancelled", "steps": [], "window": null}});
            // Each of these may find it already deleted.
            operator.patch(&format!("{path}/status"), &ended).await;
            admin.send("DELETE", &path, &[], None).await;
            admin.patch(&path, &json!({"metadata": {"finalizers": null}})).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    left
}

/// CRDs as they are in `crds/`, and the chart's roles.
async fn installed(client: &Client) {
    static ONCE: OnceCell<()> = OnceCell::const_new();
    ONCE.get_or_init(|| async {
        let roles: Api<ClusterRole> = Api::all(client.clone());
        for role in ["credit-migration-operator", "credit-migration-runner"] {
            assert!(
                roles.get_opt(role).await.unwrap().is_some(),
                "ClusterRole {role} is missing: the chart is not installed; run: tests/e2e/deploy"
            );
        }
        let person = Person { client: client.clone(), namespace: String::new() };
        for crd in credit_migration::api::crds().unwrap() {
            let applied = try_crd(&person, &crd).await;
            assert!(applied.ok(), "{}: {}", applied.code, applied.message());
            let live = person.get(&crd_path(&crd)).await.body;
            // The installed CRD must be that of this tree. It is not applied here: Helm would find another owner of its
            // fields.
            assert_eq!(
                live["metadata"]["generation"],
                applied.body["metadata"]["generation"],
                "{} in the cluster is another one; run: tests/e2e/deploy",
                crd_path(&crd)
            );
        }
    })
    .await;
}

fn crd_path(crd: &CustomResourceDefinition) -> String {
    format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}", crd.metadata.name.as_deref().unwrap())
}

/// Applies a CRD server-side, as a dry run.
pub async fn try_crd(person: &Person, crd: &CustomResourceDefinition) -> Answer {
    let path = format!("{}?fieldManager=api-server-test&force=true&fieldValidation=Strict&dryRun=All", crd_path(crd));
    let mut object = serde_json::to_value(crd).unwrap();
    object["apiVersion"] = "apiextensions.k8s.io/v1".into();
    object["kind"] = "CustomResourceDefinition".into();
    person.send("PATCH", &path, &[("content-type", "application/apply-patch+yaml")], Some(&object)).await
}
