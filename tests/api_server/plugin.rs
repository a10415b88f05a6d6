//! The plugin under kubectl, which finds it by its name.

use std::{os::unix::fs::symlink, process::Command};

use super::cluster::with_cluster;

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
        // As the shell's function asks when somebody presses the tab key.
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
