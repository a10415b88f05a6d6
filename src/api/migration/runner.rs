//! How the pods of runs are made and retried.

use kube::{KubeSchema, core::Duration};
use serde::{Deserialize, Serialize};

use super::{NameRef, secs};

/// The Jobs' pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Runner {
    /// Attempts of a step before the window until the migration fails.
    #[serde(default = "Runner::default_max_attempts")]
    #[schemars(range(min = 1, max = 10))]
    pub max_attempts: u32,
    /// Time limit of a step before the window.
    #[serde(default = "secs::<21600>")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('10s')")
            .message("stepTimeout must be at least 10s, for example 6h")
    )]
    pub step_timeout: Duration,
    /// Secrets for pulling the runner's image, in the migration's namespace.
    // Not serialized while empty: the digests of existing plans stay valid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub image_pull_secrets: Vec<NameRef>,
}

impl Default for Runner {
    fn default() -> Self {
        Self { max_attempts: Self::default_max_attempts(), step_timeout: secs::<21600>(), image_pull_secrets: vec![] }
    }
}

impl Runner {
    fn default_max_attempts() -> u32 {
        3
    }
}
