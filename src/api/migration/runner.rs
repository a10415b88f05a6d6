//! How the pods of runs are made and retried.

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{NameRef, secs};
use crate::shared::quantity;

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
    /// What the pods request, and their limits.
    // Not serialized while it is the default, as the next: the digests of existing plans stay valid.
    #[serde(default, skip_serializing_if = "RunnerResources::is_default")]
    pub resources: RunnerResources,
    /// How fast rows are read from the server.
    #[serde(default, skip_serializing_if = "RateLimits::is_default")]
    pub limits: RateLimits,
}

/// Memory that a pod may use by default.
const MEMORY_LIMIT: &str = "512Mi";
/// Processors that a pod requests by default.
const CPU_REQUEST: &str = "50m";

/// Resources of the pods. What is left out keeps its default: 50m CPU, 64Mi memory (a window's pod: all of its limit),
/// and a limit of 512Mi memory.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[x_kube(
    validation = Rule::new("!has(self.limits) || !has(self.limits.memory) || \
        quantity(self.limits.memory).compareTo(quantity('128Mi')) >= 0")
        .message("resources.limits.memory must be at least 128Mi, which the runner needs"),
    validation = Rule::new("!has(self.limits) || !has(self.requests) || \
        ((!has(self.limits.memory) || !has(self.requests.memory) || \
        quantity(self.requests.memory).compareTo(quantity(self.limits.memory)) <= 0) && \
        (!has(self.limits.cpu) || !has(self.requests.cpu) || \
        quantity(self.requests.cpu).compareTo(quantity(self.limits.cpu)) <= 0) && \
        (!has(self.limits.ephemeralStorage) || !has(self.requests.ephemeralStorage) || \
        quantity(self.requests.ephemeralStorage).compareTo(quantity(self.limits.ephemeralStorage)) <= 0))")
        .message("resources.requests must not be above resources.limits")
)]
#[serde(rename_all = "camelCase")]
pub struct RunnerResources {
    /// What the pods request.
    #[serde(default, skip_serializing_if = "ResourceAmounts::is_default")]
    pub requests: ResourceAmounts,
    /// What the pods may use.
    #[serde(default, skip_serializing_if = "ResourceAmounts::is_default")]
    pub limits: ResourceAmounts,
}

/// Amounts of resources, as Kubernetes writes them: `500m`, `1Gi`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceAmounts {
    /// Processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^[0-9]+(\.[0-9]+)?m?$"))]
    pub cpu: Option<String>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^[0-9]+(\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$"))]
    pub memory: Option<String>,
    /// Disk of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^[0-9]+(\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$"))]
    pub ephemeral_storage: Option<String>,
}

impl RunnerResources {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Memory that a pod may use. A request alone raises the default: Kubernetes refuses a limit below it.
    pub fn memory_limit(&self) -> &str {
        let request = self.requests.memory.as_deref().filter(|request| bytes_of(request) > bytes_of(MEMORY_LIMIT));
        self.limits.memory.as_deref().or(request).unwrap_or(MEMORY_LIMIT)
    }

    /// The same in bytes.
    pub fn memory_limit_bytes(&self) -> u64 {
        bytes_of(self.memory_limit()).unwrap_or(0)
    }

    /// Processors that a pod requests.
    pub fn cpu_request(&self) -> &str {
        let limit = self.limits.cpu.as_deref().filter(|limit| quantity::milli(limit) < quantity::milli(CPU_REQUEST));
        self.requests.cpu.as_deref().or(limit).unwrap_or(CPU_REQUEST)
    }
}

impl ResourceAmounts {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How fast the runner reads rows from the server, for each of its tasks. No limit when absent.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct RateLimits {
    /// Bytes per second of the dump, of all jobs together, as it leaves `pg_dump`: compressed. `50Mi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[1-9][0-9]{0,5}(k|M|G|Ki|Mi|Gi)$"))]
    pub dump_per_second: Option<String>,
    /// Bytes per second of the tables that are compared after the rehearsal's rollback, as they lie on the server's
    /// disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[1-9][0-9]{0,5}(k|M|G|Ki|Mi|Gi)$"))]
    pub fingerprint_per_second: Option<String>,
}

impl RateLimits {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Bytes per second of the dump.
    pub fn dump(&self) -> Option<u64> {
        self.dump_per_second.as_deref().and_then(bytes_of)
    }

    /// Bytes per second of the fingerprint.
    pub fn fingerprint(&self) -> Option<u64> {
        self.fingerprint_per_second.as_deref().and_then(bytes_of)
    }
}

/// Bytes of an amount; `None` if it is none.
fn bytes_of(amount: &str) -> Option<u64> {
    u64::try_from(quantity::milli(amount)? / 1_000).ok()
}

impl Default for Runner {
    fn default() -> Self {
        Self {
            max_attempts: Self::default_max_attempts(),
            step_timeout: secs::<21600>(),
            image_pull_secrets: vec![],
            resources: RunnerResources::default(),
            limits: RateLimits::default(),
        }
    }
}

impl Runner {
    fn default_max_attempts() -> u32 {
        3
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::default(None, None, 512 << 20)]
    #[case::given(None, Some("1Gi"), 1 << 30)]
    #[case::lower(None, Some("128Mi"), 128 << 20)]
    #[case::a_request_alone_raises_it(Some("2Gi"), None, 2 << 30)]
    #[case::a_small_request_does_not(Some("100Mi"), None, 512 << 20)]
    fn the_limit_of_memory_is_at_least_the_request(
        #[case] request: Option<&str>,
        #[case] limit: Option<&str>,
        #[case] want: u64,
    ) {
        let amounts =
            |memory: Option<&str>| ResourceAmounts { memory: memory.map(str::to_owned), ..ResourceAmounts::default() };
        let resources = RunnerResources { requests: amounts(request), limits: amounts(limit) };
        assert_eq!(resources.memory_limit_bytes(), want);
    }

    #[test]
    fn a_rate_is_bytes_per_second() {
        let limits = RateLimits { dump_per_second: Some("50Mi".into()), fingerprint_per_second: None };
        assert_eq!((limits.dump(), limits.fingerprint()), (Some(50 << 20), None));
    }
}
