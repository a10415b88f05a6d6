//! Immutable fields, the status subresource, and the columns of `kubectl get`.

use credit_migration::api::{Phase, WindowCommand};
use serde_json::{Value, json};

use super::cluster::{OPERATOR, with_cluster};

/// A valid change of the spec.
fn edit() -> Value {
    json!({"spec": {"window": {"maxDuration": "4m"}}})
}

#[tokio::test]
async fn spec_is_immutable_once_the_window_was_opened() {
    with_cluster("immutable", async |w| {
        for phase in Phase::ALL {
            let may_change = matches!(phase, Phase::Preparing | Phase::AwaitingApproval | Phase::Failed);
            let phase = phase.as_str();
            let answer = in_phase(w, phase, &edit()).await;
            assert_eq!(answer.ok(), may_change, "{phase}: {}", answer.message());
            if !may_change {
                assert!(
                    answer
                        .message()
                        .contains("spec is immutable once the migration window has started or the migration has ended"),
                    "{phase}: {}",
                    answer.message()
                );
                let label = in_phase(w, phase, &json!({"metadata": {"labels": {"a": "b"}}})).await;
                assert!(label.ok(), "{phase}: a label: {}", label.message());
            }
        }
    })
    .await;
}

/// Patches a migration that is in this phase.
async fn in_phase(w: &super::cluster::World, phase: &str, patch: &Value) -> super::cluster::Answer {
    let name = format!("m-{}", phase.to_lowercase());
    let path = format!("creditmigrations/{name}");
    if w.admin.get(&path).await.code == 404 {
        w.admin.create("creditmigrations", &w.undecodable(&name), false).await.object();
        w.operator.patch(&format!("{path}/status"), &json!({"status": {"phase": phase}})).await.object();
    }
    w.admin.patch(&path, patch).await
}

#[tokio::test]
async fn author_and_database_never_change() {
    with_cluster("author", async |w| {
        w.admin.create("creditmigrations", &w.migration("m"), false).await.object();
        for (patch, text) in [
            (json!({"spec": {"requestedBy": "another-user"}}), "requestedBy is immutable"),
            (
                json!({"spec": {"database": {"name": "other"}}}),
                "database.name is immutable: create a new CreditMigration for another database",
            ),
        ] {
            let answer = w.admin.patch("creditmigrations/m", &patch).await;
            assert!(!answer.ok() && answer.message().contains(text), "{}: {}", answer.code, answer.message());
        }
    })
    .await;
}

#[tokio::test]
async fn decisions_are_the_record() {
    with_cluster("record", async |w| {
        w.admin.create("migrationdecisions", &w.decision("d", "Abort", None), false).await.object();
        for patch in [
            json!({"spec": {"reason": "another"}}),
            json!({"spec": {"decision": "Rollback"}}),
            json!({"spec": {"by": "another-user"}}),
            json!({"spec": {"migrationUID": "1"}}),
        ] {
            let answer = w.admin.patch("migrationdecisions/d", &patch).await;
            assert!(
                !answer.ok() && answer.message().contains("a decision is immutable: create another one"),
                "{patch}: {} {}",
                answer.code,
                answer.message()
            );
        }
        let label = w.admin.patch("migrationdecisions/d", &json!({"metadata": {"labels": {"a": "b"}}})).await;
        assert!(label.ok(), "{}", label.message());
    })
    .await;
}

#[tokio::test]
async fn only_the_order_of_a_run_changes() {
    with_cluster("order", async |w| {
        let operator = w.person(OPERATOR).await;
        operator.create("migrationruns", &w.run("r"), false).await.object();
        for patch in [
            json!({"spec": {"task": "Backup"}}),
            json!({"spec": {"attempt": 2}}),
            json!({"spec": {"migration": "other"}}),
            json!({"spec": {"migrationUID": "1"}}),
            json!({"spec": {"plan": {"window": {"maxDuration": "4m"}}}}),
            json!({"spec": {"inputs": {"upSha256": "sha256:1"}}}),
        ] {
            let answer = operator.patch("migrationruns/r", &patch).await;
            assert!(
                !answer.ok() && answer.message().contains("only spec.window of a MigrationRun may change"),
                "{patch}: {} {}",
                answer.code,
                answer.message()
            );
        }
        let order = json!({"spec": {"window": {"command": "BlockWrites", "deadline": "2030-01-01T00:00:00Z"}}});
        assert_eq!(operator.patch("migrationruns/r", &order).await.object()["spec"]["window"], order["spec"]["window"]);
        for (i, from) in WindowCommand::ALL.iter().enumerate() {
            let name = format!("r-{i}");
            let mut run = w.run(&name);
            run["spec"]["window"]["command"] = json!(from);
            operator.create("migrationruns", &run, false).await.object();
            for to in &WindowCommand::ALL[..i] {
                let lower = json!({"spec": {"window": {"command": to}}});
                let back = operator.patch(&format!("migrationruns/{name}"), &lower).await;
                let text = "spec.window.command only moves forward";
                assert!(
                    !back.ok() && back.message().contains(text),
                    "{from} to {to}: {} {}",
                    back.code,
                    back.message()
                );
            }
        }
        let back = operator.patch("migrationruns/r", &json!({"spec": {"window": null}})).await;
        assert!(back.message().contains("spec.window cannot be taken back"), "{} {}", back.code, back.message());
        let unknown = operator.patch("migrationruns/r", &json!({"spec": {"window": {"command": "Shut"}}})).await;
        assert!(unknown.message().contains("Unsupported value: \"Shut\""), "{}", unknown.message());
        let late = operator.patch("migrationruns/r", &json!({"spec": {"window": {"deadline": "soon"}}})).await;
        assert!(late.message().contains("spec.window.deadline"), "{} {}", late.code, late.message());
    })
    .await;
}

#[tokio::test]
async fn only_the_operator_writes_a_status() {
    with_cluster("status", async |w| {
        w.admin.create("creditmigrations", &w.migration("m"), false).await.object();
        // A cluster administrator may not write the status.
        let answer = w.admin.patch("creditmigrations/m/status", &json!({"status": {"phase": "Executing"}})).await;
        assert!(!answer.ok() && answer.message().contains("only the operator"), "{} {}", answer.code, answer.message());
        // A patch of the object does not change the status.
        let object = w.admin.patch("creditmigrations/m", &json!({"status": {"phase": "Completed"}})).await.object();
        assert_ne!(object["status"]["phase"], "Completed");
        // A patch of the status does not change the spec.
        let patch = json!({"spec": {"window": {"maxDuration": "4m"}}, "status": {"approvals": "1/2"}});
        let object = w.operator.patch("creditmigrations/m/status", &patch).await.object();
        assert_eq!(object["spec"]["window"]["maxDuration"], "300s");
        assert_eq!(object["status"]["approvals"], "1/2");
        for (status, text) in [
            (json!({"phase": "Somewhere"}), "status.phase: Unsupported value: \"Somewhere\""),
            (json!({"writes": "Perhaps"}), "status.writes: Unsupported value: \"Perhaps\""),
            (json!({"progres": "x"}), "unknown field \"status.progres\""),
            (json!({"approvalsAfter": "yesterday"}), "status.approvalsAfter"),
        ] {
            let answer = w.operator.patch("creditmigrations/m/status", &json!({"status": status})).await;
            assert!(!answer.ok() && answer.message().contains(text), "{status}: {} {}", answer.code, answer.message());
        }
    })
    .await;
}

async fn table(w: &super::cluster::World, plural: &str) -> Vec<(String, Value)> {
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let answer = w.admin.send("GET", plural, &accept, None).await.object();
    let names = answer["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap().to_owned());
    let cells = answer["rows"][0]["cells"].as_array().unwrap().clone();
    names.zip(cells).collect()
}

#[tokio::test]
async fn columns_of_kubectl_get() {
    with_cluster("columns", async |w| {
        w.admin.create("creditmigrations", &w.undecodable("m"), false).await.object();
        let status = json!({"status": {
            "phase": "AwaitingApproval",
            "progress": "6/13 Approve",
            "approvals": "1/2",
            "writes": "Open",
            "conditions": [{
                "type": "Ready", "status": "False", "reason": "ApprovalPending", "message": "1 of 2",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        }});
        w.operator.patch("creditmigrations/m/status", &status).await.object();
        let columns = table(w, "creditmigrations").await;
        let names: Vec<&str> = columns.iter().map(|c| c.0.as_str()).collect();
        assert_eq!(names, ["Name", "Phase", "Step", "Ready", "Reason", "Approvals", "Writes", "Rollback-Ready", "Age"]);
        let cells: Vec<&str> = columns.iter().take(7).map(|c| c.1.as_str().unwrap_or_default()).collect();
        assert_eq!(cells, ["m", "AwaitingApproval", "6/13 Approve", "False", "ApprovalPending", "1/2", "Open"]);

        w.admin.create("migrationdecisions", &w.decision("d", "Abort", None), false).await.object();
        let columns = table(w, "migrationdecisions").await;
        let names: Vec<&str> = columns.iter().map(|c| c.0.as_str()).collect();
        assert_eq!(names, ["Name", "Migration", "Decision", "By", "Reason", "Age"]);
        assert_eq!((&columns[2].1, &columns[3].1), (&json!("Abort"), &json!(w.name)));

        w.person(OPERATOR).await.create("migrationruns", &w.run("r"), false).await.object();
        let columns = table(w, "migrationruns").await;
        let names: Vec<&str> = columns.iter().map(|c| c.0.as_str()).collect();
        assert_eq!(names, ["Name", "Migration", "Task", "Attempt", "Phase", "Reason", "Age"]);
        assert_eq!((&columns[2].1, &columns[3].1), (&json!("Window"), &json!(1)));

        let found = w.admin.get("/apis/creditmigration.io/v1alpha1").await.object();
        for (plural, short) in
            [("creditmigrations", "cmig"), ("migrationdecisions", "cmdec"), ("migrationruns", "cmrun")]
        {
            let kind = found["resources"].as_array().unwrap().iter().find(|r| r["name"] == plural).unwrap();
            assert_eq!((&kind["shortNames"], &kind["categories"]), (&json!([short]), &json!(["credit-migrations"])));
            assert_eq!(kind["namespaced"], true);
        }
    })
    .await;
}
