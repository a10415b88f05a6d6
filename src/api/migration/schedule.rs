//! When the window may start, and what must be fulfilled before.

use kube::{KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{Time, named::named};

/// When the window may start. Without `startAt` and `allowedHours` this is any time after the lead time.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("duration(self.leadTime) < duration(self.backupMaxAge)")
        .message("leadTime must be less than backupMaxAge: otherwise the backup is too old when the lead time has \
            passed")
)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// Earliest start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at: Option<Time>,
    /// Hours in which the window may start; at any hour when empty.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub allowed_hours: Vec<AllowedHours>,
    /// Time between the maintenance notice and the start. One hour, the checklist's phase 1.
    #[serde(default = "hours::<1>")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('0s') && duration(self) <= duration('168h')")
            .message("leadTime must be between 0s and 168h, for example 1h")
    )]
    pub lead_time: Duration,
    /// Largest age of the backup at the start. With an older one preparation is repeated.
    #[serde(default = "hours::<24>")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1m')")
            .message("backupMaxAge must be at least 1m, for example 24h")
    )]
    pub backup_max_age: Duration,
    /// Required presence.
    #[serde(default)]
    pub presence: Presence,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            start_at: None,
            allowed_hours: vec![],
            lead_time: hours::<1>(),
            backup_max_age: hours::<24>(),
            presence: Presence::default(),
        }
    }
}

/// Hours in which the window may start.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("self.from != self.to")
        .message("from and to must differ; for a whole day write from: \"00:00\", to: \"24:00\"")
)]
#[serde(rename_all = "camelCase")]
pub struct AllowedHours {
    /// Days on which the hours start; every day when empty.
    #[serde(default)]
    #[schemars(length(max = 7))]
    pub days: Vec<Weekday>,
    /// Start, `HH:MM`.
    #[schemars(regex(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub from: String,
    /// End, `HH:MM`, exclusive. An end that is not later than `from` is on the next day.
    #[schemars(regex(pattern = r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$"))]
    pub to: String,
    /// IANA name: `Europe/Berlin`.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
}

/// Day of the week.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Weekday {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

named! {
    Weekday: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
}

/// Required presence at the start of the window: people with a recent `Ready` decision.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Presence {
    /// Number of people. At least 2, by the checklist's second reminder.
    #[serde(default = "two")]
    #[schemars(range(min = 2, max = 10))]
    pub required: u32,
    /// How long a `Ready` decision is valid. One hour, the checklist's phase 1.
    #[serde(default = "hours::<1>")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('24h')")
            .message("within must be between 1m and 24h, for example 1h")
    )]
    pub within: Duration,
}

impl Default for Presence {
    fn default() -> Self {
        Self { required: 2, within: hours::<1>() }
    }
}

fn hours<const N: u64>() -> Duration {
    std::time::Duration::from_secs(N * 3600).into()
}
fn utc() -> String {
    "UTC".into()
}
fn two() -> u32 {
    2
}
