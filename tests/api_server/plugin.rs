//! The plugin, called by kubectl.

use std::{os::unix::fs::symlink, process::Command};

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
