//! A window task's order, kept where it survives the container: the pod's own temporary folder. It holds no secret.
//!
//! # Contract
//! - Written whenever the order changes, whole or not at all: a container that is restarted while the API server is
//!   away must know that writes may be blocked, and until when.
//! - What cannot be written is a warning: the window goes on.

use std::{path::PathBuf, time::Duration};

use crate::api::MigrationRun;

/// Where one run is kept.
pub(in crate::runner) struct OrderCache {
    path: PathBuf,
    name: String,
}

impl OrderCache {
    /// The place of the run called `name`.
    pub fn in_temporary_folder(name: &str) -> Self {
        Self { path: std::env::temp_dir().join(format!("{name}.json")), name: name.to_owned() }
    }

    /// What was kept, `None` if nothing was.
    pub fn read(&self) -> Option<MigrationRun> {
        let run: MigrationRun = serde_json::from_slice(&std::fs::read(&self.path).ok()?).ok()?;
        (run.metadata.name.as_deref() == Some(self.name.as_str())).then_some(run)
    }

    /// What was kept, after a while; `None` (at once) if nothing was.
    pub async fn read_after(&self, wait: Duration) -> Option<MigrationRun> {
        let run = self.read()?;
        tokio::time::sleep(wait).await;
        Some(run)
    }

    /// Keeps `run` as it is now.
    pub fn write(&self, run: &MigrationRun) {
        // By another name first: a process that is killed in the middle must leave the last one whole.
        let new = self.path.with_extension("new");
        let written = serde_json::to_vec(run)
            .map_err(std::io::Error::other)
            .and_then(|json| std::fs::write(&new, json))
            .and_then(|()| std::fs::rename(&new, &self.path));
        if let Err(error) = written {
            tracing::warn!(%error, "the order is not kept; a restarted container will need the API server");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{MigrationRunSpec, WindowCommand, WindowOrder};

    fn run(command: WindowCommand) -> MigrationRun {
        let spec: MigrationRunSpec = serde_json::from_value(serde_json::json!({
            "migration": "m", "migrationUID": "u", "task": "Window", "attempt": 1, "plan": crate::api::fixtures::spec(),
            "inputs": {"upSha256": "sha256:up", "downSha256": "sha256:down"},
        }))
        .unwrap();
        MigrationRun::new("kept", MigrationRunSpec { window: Some(WindowOrder { command, deadline: None }), ..spec })
    }

    #[test]
    fn the_newest_order_is_kept_and_half_a_file_is_none() {
        let path = std::env::temp_dir().join(format!("kept-{}.json", std::process::id()));
        let cache = OrderCache { path: path.clone(), name: "kept".to_owned() };
        assert!(cache.read().is_none());
        for command in [WindowCommand::Standby, WindowCommand::BlockWrites] {
            cache.write(&run(command));
            assert_eq!(cache.read().unwrap().spec.window.unwrap().command, command);
        }
        assert!(OrderCache { path: path.clone(), name: "another".to_owned() }.read().is_none());
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(cache.read().is_none());
        std::fs::remove_file(&path).unwrap();
    }
}
