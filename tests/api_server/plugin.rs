//! The plugin, called by kubectl.

use std::{
    os::unix::fs::symlink,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::cluster::{set, with_cluster};

#[tokio::test]
async fn kubectl_completes_verbs_and_names() {
    with_cluster("completion", async |w| {
        for name in ["simplify-credits", "other"] {
            w.admin.create("creditmigrations", &w.migration(name), false).await.object();
        }
        let folder = std::env::temp_dir().join(&w.admin.namespace);
        std::fs::create_dir(&folder).unwrap();
        for name in ["kubectl-creditmigration", "kubectl_complete-creditmigration"] {
            symlink(env!("CARGO_BIN_EXE_kubectl-creditmigration"), folder.join(name)).unwrap();
        }
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        // As the shell's completion function does.
        let complete = |words: &[&str]| {
            let mut kubectl = Command::new("kubectl");
            kubectl.env("PATH", &path).args(["__complete", "creditmigration"]).args(words);
            let output = kubectl.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let (verbs, names) = (complete(&["roll"]), complete(&["approve", "-n", &w.admin.namespace, "simp"]));
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(verbs.starts_with("rollback\t"), "{verbs}");
        assert!(names.starts_with("simplify-credits") && !names.contains("other"), "{names}");
    })
    .await;
}

/// A field that the file lacks is removed, as by `kubectl apply`; a rejection by the server is reported with exit code
/// 3.
#[tokio::test]
async fn a_plan_of_a_file_is_what_would_be_applied() {
    with_cluster("plan", async |w| {
        let mut live = w.migration("m");
        set(&mut live, "spec/schedule", json!({"startAt": "2031-03-04T01:00:00Z"}));
        let before = w.admin.create("creditmigrations", &live, false).await.object();
        let file = std::env::temp_dir().join(format!("{}.yaml", w.admin.namespace));
        let plan = |object: &Value| {
            std::fs::write(&file, object.to_string()).unwrap();
            let mut plugin = Command::new(env!("CARGO_BIN_EXE_kubectl-creditmigration"));
            let output = plugin.args(["plan", "-n", &w.admin.namespace, "-f"]).arg(&file).output().unwrap();
            (String::from_utf8(output.stdout).unwrap(), output.status.code())
        };
        let (text, _) = plan(&live);
        assert!(text.contains("not before 2031-03-04") && text.contains("a dry run was accepted"), "{text}");
        let (text, _) = plan(&w.migration("m"));
        assert!(!text.contains("not before") && text.contains("a dry run was accepted"), "{text}");
        let (text, _) = plan(&w.migration("another"));
        assert!(text.contains("not on the server") && text.contains("a dry run was accepted"), "{text}");
        for (path, value, words) in [
            ("spec/requestedBy", json!("another-user"), "requestedBy is immutable"),
            ("spec/windoww", json!({}), "unknown field \"spec.windoww\""),
        ] {
            let mut wrong = w.migration("m");
            set(&mut wrong, path, value);
            let (text, code) = plan(&wrong);
            assert!(text.contains(words) && code == Some(3), "{code:?} {text}");
        }
        std::fs::remove_file(&file).unwrap();
        let after = w.admin.get("creditmigrations/m").await.object();
        // The cluster's operator may have written its status.
        assert_eq!(after["spec"], before["spec"], "nothing was changed");
    })
    .await;
}

/// What the preview of a rollback shows is what the operator has persisted: these values pass the schema.
#[tokio::test]
async fn a_rollback_without_confirmation_shows_its_last_rehearsal() {
    with_cluster("preview", async |w| {
        let mut migration = w.migration("m");
        set(&mut migration, "spec/rollback", json!({"rehearsal": {"mode": "Never"}}));
        w.admin.create("creditmigrations", &migration, false).await.object();
        let passed = json!({
            "finishedAt": "2030-01-02T00:00:00Z", "rows": 900, "users": 300, "usersWritten": 7,
            "creditsWritten": "120.5", "durationSeconds": 20.0, "rollbackSeconds": 2.0, "compareSeconds": 1.5,
            "message": "each balance kept",
        });
        let status = json!({
            "phase": "Observing", "usersWritten": 7, "creditsWritten": "120.5",
            "rollbackRehearsal": {"passed": passed, "expectedWindowSeconds": 33},
        });
        w.operator.patch("creditmigrations/m/status", &json!({"status": status})).await.object();
        let plugin = |words: &[&str]| {
            let mut plugin = Command::new(env!("CARGO_BIN_EXE_kubectl-creditmigration"));
            let output = plugin.args(words).args(["-n", &w.admin.namespace]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let text = plugin(&["rollback", "m"]);
        for part in [
            "at 2030-01-02T00:00:00Z: rolled back a copy of 900 rows and 300 users in 2.0 s",
            "7 users and 120.5 credits were written on the new version",
            "flag: key VERSION of ConfigMap shop from v2 to v1",
            "writes are blocked for about 33s (as rehearsed at 2030-01-02T00:00:00Z",
            "nothing was done; next: kubectl creditmigration",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        let preview: Value = serde_json::from_str(&plugin(&["rollback", "m", "-o", "json"])).unwrap();
        assert_eq!(
            (&preview["done"], &preview["usersWritten"], &preview["creditsWritten"]),
            (&json!(false), &json!(7), &json!("120.5"))
        );
        let status = plugin(&["status", "m"]);
        assert!(status.contains("written:   7 users and 120.5 credits since the cutover"), "{status}");
        assert_eq!(w.admin.get("migrationdecisions").await.object()["items"], json!([]), "nothing was decided");
    })
    .await;
}

/// A caller who may only read: `plan` cannot say whether the object would be accepted, and a decision names who grants
/// the permission.
#[tokio::test]
async fn a_missing_permission_is_no_fault_of_the_object() {
    const RBAC: &str = "rbac.authorization.k8s.io";
    with_cluster("permission", async |w| {
        w.admin.create("creditmigrations", &w.migration("m"), false).await.object();
        let namespace = &w.admin.namespace;
        let role = json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "Role", "metadata": {"name": "reader"},
            "rules": [{"apiGroups": ["creditmigration.io"], "resources": ["creditmigrations"], "verbs": ["get"]}],
        });
        let binding = json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "RoleBinding", "metadata": {"name": "reader"},
            "subjects": [{"apiGroup": RBAC, "kind": "User", "name": "dave"}],
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": "reader"},
        });
        for (plural, object) in [("roles", role), ("rolebindings", binding)] {
            let path = format!("/apis/{RBAC}/v1/namespaces/{namespace}/{plural}");
            w.admin.send("POST", &path, &[("content-type", "application/json")], Some(&object)).await.object();
        }
        let dave = w.person("dave").await;
        let started = Instant::now();
        while !dave.get("creditmigrations/m").await.ok() {
            assert!(started.elapsed() < Duration::from_secs(30), "the role has no effect");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let plugin = |words: &[&str]| {
            let mut plugin = Command::new(env!("CARGO_BIN_EXE_kubectl-creditmigration"));
            let output = plugin.args(words).args(["-n", namespace, "--as", "dave"]).output().unwrap();
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
        };
        let file = std::env::temp_dir().join(format!("{namespace}.yaml"));
        for name in ["m", "another"] {
            std::fs::write(&file, w.migration(name).to_string()).unwrap();
            let (text, errors) = plugin(&["plan", "-f", file.to_str().unwrap()]);
            let line = text.lines().find(|line| line.contains("the API server accepts it"));
            let is_refused = |line: &str| line.starts_with("not checked") && line.contains("User \"dave\" cannot ");
            assert!(line.is_some_and(is_refused), "{name}: {text}{errors}");
        }
        std::fs::remove_file(&file).unwrap();
        let (_, errors) = plugin(&["abort", "m"]);
        let next = "; next: ask a cluster administrator for a RoleBinding of dave to ClusterRole \
                    credit-migration-responder in this namespace\n";
        assert!(errors.contains("User \"dave\" cannot create resource") && errors.ends_with(next), "{errors}");
    })
    .await;
}
