//! Rights of the operator's and the runner's ServiceAccount.

use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::{OPERATOR, SYSTEM, World, with_cluster};

/// Verb, group, `resource[/subresource]`, name; whether it is granted.
type Right = (&'static str, &'static str, &'static str, &'static str, bool);

async fn review(w: &World, user: &str, namespace: &str, right: &Right) -> bool {
    let (verb, group, resource, name, _) = right;
    let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
    let (_, account) = user.split_once("system:serviceaccount:").unwrap();
    let groups = [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{}", account.split(':').next().unwrap()),
        "system:authenticated".to_owned(),
    ];
    let body = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": groups, "resourceAttributes": {
            "namespace": namespace, "verb": verb, "group": group, "resource": resource, "subresource": sub,
                "name": name,
        }},
    });
    let json_type = [("content-type", "application/json")];
    let answer =
        w.admin.send("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", &json_type, Some(&body)).await;
    answer.object()["status"]["allowed"].as_bool().unwrap()
}

async fn rights(w: &World, user: &str, namespace: &str, rights: &[Right]) {
    let mut wrong = vec![];
    for right in rights {
        if review(w, user, namespace, right).await != right.4 {
            wrong.push(format!("{user} in {namespace}: {right:?}"));
        }
    }
    println!("{} rights of {user}", rights.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn the_operator_can_do_its_work_and_no_more() {
    with_cluster("operator", async |w| {
        const OURS: &str = "creditmigration.io";
        let ns = w.admin.namespace.clone();
        rights(
            w,
            OPERATOR,
            &ns,
            &[
                ("get", "", "secrets", "", false),
                ("list", "", "secrets", "", false),
                ("watch", "", "secrets", "", false),
                ("create", "", "secrets", "", false),
                ("create", "", "configmaps", "", false),
                ("delete", "", "configmaps", "", false),
                ("create", "", "pods", "", false),
                ("delete", "", "pods", "", false),
                ("create", "", "pods/exec", "", false),
                ("get", "", "pods/exec", "", false),
                ("create", "", "pods/portforward", "", false),
                ("get", "", "pods/log", "", false),
                ("update", "", "pods/ephemeralcontainers", "", false),
                ("create", "", "serviceaccounts/token", "", false),
                ("get", "", "namespaces", "", true),
                ("list", "", "namespaces", "", false),
                ("impersonate", "", "users", "", false),
                ("impersonate", "", "serviceaccounts", "", false),
                ("get", "", "nodes", "", false),
                ("get", "", "nodes/proxy", "", false),
                ("create", "apps", "deployments", "", false),
                ("delete", "apps", "deployments", "", false),
                ("patch", "apps", "statefulsets", "", false),
                ("patch", "batch", "jobs", "", false),
                ("bind", "rbac.authorization.k8s.io", "clusterroles", "cluster-admin", false),
                ("escalate", "rbac.authorization.k8s.io", "clusterroles", "", false),
                ("create", "rbac.authorization.k8s.io", "clusterrolebindings", "", false),
                ("create", "rbac.authorization.k8s.io", "clusterroles", "", false),
                ("update", "rbac.authorization.k8s.io", "rolebindings", "", false),
                ("patch", "admissionregistration.k8s.io", "validatingadmissionpolicies", "", false),
                ("delete", "apiextensions.k8s.io", "customresourcedefinitions", "", false),
                ("create", OURS, "creditmigrations", "", false),
                ("delete", OURS, "creditmigrations", "", false),
                ("approve", OURS, "creditmigrations", "", false),
                ("create", OURS, "migrationdecisions", "", false),
                ("patch", OURS, "migrationdecisions", "", false),
                ("patch", OURS, "migrationruns/status", "", false),
                ("update", "coordination.k8s.io", "leases", "", false),
                ("get", OURS, "creditmigrations", "", true),
                ("patch", OURS, "creditmigrations", "", true),
                ("patch", OURS, "creditmigrations/status", "", true),
                ("list", OURS, "migrationdecisions", "", true),
                ("create", OURS, "migrationruns", "", true),
                ("patch", OURS, "migrationruns", "", true),
                ("delete", OURS, "migrationruns", "", true),
                ("get", "", "configmaps", "", true),
                ("patch", "", "configmaps", "", true),
                ("get", "apps", "deployments", "", true),
                ("patch", "apps", "deployments", "", true),
                ("get", "apps", "replicasets", "", true),
                ("patch", "apps", "replicasets", "", false),
                ("list", "", "pods", "", true),
                ("list", "", "events", "", true),
                ("create", "batch", "jobs", "", true),
                ("delete", "batch", "jobs", "", true),
                ("create", "", "serviceaccounts", "", true),
                ("create", "rbac.authorization.k8s.io", "rolebindings", "", true),
                ("bind", "rbac.authorization.k8s.io", "clusterroles", "credit-migration-runner", true),
                ("create", "events.k8s.io", "events", "", true),
            ],
        )
        .await;
        rights(
            w,
            OPERATOR,
            SYSTEM,
            &[
                ("update", "coordination.k8s.io", "leases", "credit-migration-operator", true),
                ("update", "coordination.k8s.io", "leases", "another", false),
                ("get", "", "secrets", "", false),
            ],
        )
        .await;
        // Not only by access review, but also as the operator itself.
        let operator = w.person(OPERATOR).await;
        let secrets = operator.get(&format!("/api/v1/namespaces/{ns}/secrets")).await;
        assert_eq!(secrets.code, 403, "{}", secrets.message());
        let json_type = [("content-type", "application/json")];
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}});
        let path = format!("/api/v1/namespaces/{ns}/configmaps");
        assert_eq!(operator.send("POST", &path, &json_type, Some(&map)).await.code, 403);
        let admin = binding("admin", "cluster-admin", &ns);
        let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/rolebindings");
        let refused = operator.send("POST", &path, &json_type, Some(&admin)).await;
        assert!(refused.code == 403 && refused.message().contains("attempting to grant"), "{}", refused.message());
        let runner = binding("m-runner", "credit-migration-runner", &ns);
        assert!(operator.send("POST", &path, &json_type, Some(&runner)).await.ok());
    })
    .await;
}

fn binding(name: &str, role: &str, namespace: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    })
}

#[tokio::test]
async fn a_runner_can_report_and_no_more() {
    with_cluster("runner", async |w| {
        const OURS: &str = "creditmigration.io";
        let ns = w.admin.namespace.clone();
        let json_type = [("content-type", "application/json")];
        let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/rolebindings");
        let bound = binding("m-runner", "credit-migration-runner", &ns);
        w.admin.send("POST", &path, &json_type, Some(&bound)).await.object();
        let user = format!("system:serviceaccount:{ns}:m-runner");
        // The API server grants it when its own watch has seen the binding.
        let granted = async {
            while !review(w, &user, &ns, &("get", OURS, "migrationruns", "", true)).await {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), granted).await.expect("the binding grants nothing");
        rights(
            w,
            &user,
            &ns,
            &[
                ("get", OURS, "migrationruns", "", true),
                ("patch", OURS, "migrationruns/status", "", true),
                ("list", OURS, "migrationruns", "", false),
                ("watch", OURS, "migrationruns", "", false),
                ("patch", OURS, "migrationruns", "", false),
                ("create", OURS, "migrationruns", "", false),
                ("delete", OURS, "migrationruns", "", false),
                ("update", OURS, "migrationruns/status", "", false),
                ("patch", "", "namespaces", "", false),
                ("delete", "", "namespaces", "", false),
                ("get", OURS, "creditmigrations", "", false),
                ("patch", OURS, "creditmigrations/status", "", false),
                ("create", OURS, "migrationdecisions", "", false),
                ("get", "", "secrets", "", false),
                ("get", "", "configmaps", "", false),
                ("patch", "", "configmaps", "", false),
                ("list", "", "pods", "", false),
                ("create", "", "pods/exec", "", false),
                ("create", "batch", "jobs", "", false),
                ("patch", "apps", "deployments", "", false),
                ("create", "rbac.authorization.k8s.io", "rolebindings", "", false),
                ("create", "", "serviceaccounts/token", "", false),
            ],
        )
        .await;
        // Only in its own namespace.
        rights(
            w,
            &user,
            "default",
            &[("get", OURS, "migrationruns", "", false), ("patch", OURS, "migrationruns/status", "", false)],
        )
        .await;

        w.person(OPERATOR).await.create("migrationruns", &w.run("r"), false).await.object();
        let nobody = w.person(&user).await;
        // Not by access review: for a namespace object the API server decides where the right must be bound.
        let own = nobody.get(&format!("/api/v1/namespaces/{ns}")).await;
        assert_eq!(own.object()["metadata"]["name"], json!(ns));
        for other in ["/api/v1/namespaces/default", "/api/v1/namespaces"] {
            assert_eq!(nobody.get(other).await.code, 403, "{other}");
        }
        let refused = nobody.patch("migrationruns/r/status", &json!({"status": {"phase": "Running"}})).await;
        assert!(refused.code == 403 && refused.message().contains("only a pod of r"), "{}", refused.message());
        let runner = w.pod(&user, "r-x7k2p").await;
        let report = runner.patch("migrationruns/r/status", &json!({"status": {"phase": "Running"}})).await;
        assert_eq!(report.object()["status"]["phase"], "Running");
        let order = runner.patch("migrationruns/r", &json!({"spec": {"window": {"command": "UnblockWrites"}}})).await;
        assert_eq!(order.code, 403, "{}", order.message());
        // A spec that comes with a report is ignored.
        let both = json!({"spec": {"window": {"command": "UnblockWrites"}}, "status": {"phase": "Running"}});
        assert_eq!(
            runner.patch("migrationruns/r/status", &both).await.object()["spec"]["window"]["command"],
            "Standby"
        );
    })
    .await;
}
