//! A notice: its occasion and audiences, and what became of it in each channel.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Phase, Time, variants::variant_names};

/// Who reads a notice.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Audience {
    /// The technical team.
    Team,
    /// Customer support.
    Support,
    /// Users of the application.
    Users,
    /// Followers in social media.
    Social,
    /// The status page.
    StatusPage,
}

/// Why somebody is told.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Occasion {
    /// A migration is being prepared; when it may start.
    Planned,
    /// Maintenance is about to start, in the lead time.
    MaintenanceStarts,
    /// Writes are open again, the new version runs.
    Finished,
    /// A trigger fired; the way back has begun.
    TriggerFired,
    /// The old version runs again.
    RolledBack,
    /// Nothing goes on without a person.
    ManualInterventionRequired,
    /// Report of the day check.
    DayReport,
    /// Report of the week review.
    WeekReport,
    /// Somebody has to decide to keep the new version or roll back.
    DecisionDue,
}

variant_names! {
    Occasion:
    Planned MaintenanceStarts Finished TriggerFired RolledBack ManualInterventionRequired DayReport WeekReport
    DecisionDue
}

impl Occasion {
    /// All of them, in the order of the procedure.
    pub const ALL: &[Occasion] = &[
        Occasion::Planned,
        Occasion::MaintenanceStarts,
        Occasion::Finished,
        Occasion::TriggerFired,
        Occasion::RolledBack,
        Occasion::ManualInterventionRequired,
        Occasion::DayReport,
        Occasion::WeekReport,
        Occasion::DecisionDue,
    ];

    /// Who is told.
    pub fn audiences(self) -> &'static [Audience] {
        use Audience::{Social, StatusPage, Support, Team, Users};
        match self {
            Occasion::MaintenanceStarts | Occasion::Finished | Occasion::RolledBack => {
                &[Team, Support, Users, Social, StatusPage]
            }
            Occasion::Planned | Occasion::TriggerFired | Occasion::ManualInterventionRequired => &[Team, Support],
            Occasion::DayReport | Occasion::WeekReport | Occasion::DecisionDue => &[Team],
        }
    }

    /// Somebody may have to be called: the contacts are in it.
    pub fn is_alarm(self) -> bool {
        matches!(self, Occasion::TriggerFired | Occasion::RolledBack | Occasion::ManualInterventionRequired)
    }
}

/// What is to be told: the order to a run of task `Notify`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// The same in each repetition: a receiver drops what it has seen.
    pub id: String,
    /// Why.
    pub occasion: Occasion,
    /// When it came about.
    pub at: Time,
    /// What has happened, with the next command.
    pub message: String,
    /// Phase of the migration then.
    pub phase: Phase,
    /// When maintenance starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts_at: Option<Time>,
    /// How long writes are expected to be blocked, in seconds, rounded up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_window_seconds: Option<u64>,
    /// `s3://bucket/key` of the report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_object: Option<String>,
    /// Names of the channels that have taken it already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delivered: Vec<String>,
}

/// What became of a notice in one channel.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// Name of the channel.
    pub channel: String,
    /// Whether the channel took it.
    pub state: DeliveryState,
    /// What it answered, without address or text of the notice.
    pub message: String,
    /// When.
    pub at: Time,
}

/// Whether a channel took a notice.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    /// It did.
    Delivered,
    /// It did not; it is tried again.
    Failed,
}

/// A notice and what became of it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NoticeStatus {
    /// What is told.
    pub notice: Notice,
    /// How it stands.
    pub state: NoticeState,
    /// Number of its run; it never repeats.
    pub attempt: u32,
    /// Tries that did not reach every channel.
    #[serde(default)]
    pub failures: u32,
    /// When it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
    /// Each channel's last answer.
    #[serde(default)]
    pub deliveries: Vec<Delivery>,
}

/// How a notice stands.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeState {
    /// Being sent, or tried again.
    Pending,
    /// Every channel took it.
    Delivered,
    /// Given up for at least one channel.
    Undelivered,
}

impl NoticeStatus {
    /// Whether at least one channel took it.
    pub fn reached(&self) -> bool {
        self.deliveries.iter().any(|d| d.state == DeliveryState::Delivered)
    }
}
