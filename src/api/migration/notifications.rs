//! Notices: who is told what, by which channel; and what became of it.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{KeyRef, NameRef, Phase, Time};

/// Who is told, and by which channels.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Notifications {
    /// Channels. A channel that cannot be reached holds nothing up, but is seen.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.all(c, self.exists_one(d, d.name == c.name))").message("names of channels must be unique"))]
    pub channels: Vec<NotificationChannel>,
    /// People to call; they stand in each alarm.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub contacts: Vec<Contact>,
    /// ConfigMap with templates (MiniJinja). Keys, the most specific wins: `OCCASION.AUDIENCE.subject`,
    /// `OCCASION.subject`, and the same with `body`. What is not there has a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub templates_config_map_ref: Option<NameRef>,
}

/// One way to reach one or more audiences. Exactly one of `slack`, `webhook` and `email` is set.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("[has(self.slack), has(self.webhook), has(self.email)].filter(x, x).size() == 1")
        .message("exactly one of slack, webhook and email must be set"),
    // Else customers would get the alarms, with the contacts' phone numbers.
    validation = Rule::new("!self.audiences.exists(a, a in ['Team', 'Support']) || !self.audiences.exists(a, a in ['Users', 'Social', 'StatusPage'])")
        .message("audiences mix Team or Support, who get alarms with phone numbers, with Users, Social or StatusPage: make two channels")
)]
#[serde(rename_all = "camelCase")]
pub struct NotificationChannel {
    /// Name, unique among the channels.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Who reads it: Team and Support, or Users, Social and StatusPage, not both. A notice comes once, in the words for the first of
    /// them that is told; who wants words of their own needs a channel of their own.
    #[schemars(length(min = 1, max = 5))]
    pub audiences: Vec<Audience>,
    /// Incoming webhook of Slack, or of what understands the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slack: Option<SlackChannel>,
    /// Webhook that takes CloudEvents 1.0 in structured mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookChannel>,
    /// Mail by SMTP with TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<EmailChannel>,
}

impl Notifications {
    /// Whether an audience gets notices in its own words: behind another that is always told, it does not.
    pub fn reaches(&self, audience: Audience) -> bool {
        Occasion::ALL.iter().any(|occasion| self.channels.iter().any(|c| c.words_for(*occasion) == Some(audience)))
    }
}

impl NotificationChannel {
    /// The audience in whose words a notice comes by this channel: the first of `audiences` that is told. `None` if none is.
    pub fn words_for(&self, occasion: Occasion) -> Option<Audience> {
        self.audiences.iter().copied().find(|audience| occasion.audiences().contains(audience))
    }
}

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

/// Incoming webhook of Slack, or of what understands the same.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SlackChannel {
    /// Secret key with the URL: whoever knows it can write into the channel.
    pub url_secret_ref: KeyRef,
    /// Secret key with the PEM certificates of the authorities to trust; the public ones when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<KeyRef>,
}

/// Webhook that takes CloudEvents 1.0.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WebhookChannel {
    /// Secret key with the URL.
    pub url_secret_ref: KeyRef,
    /// Secret key with the value of the header `Authorization`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization_secret_ref: Option<KeyRef>,
    /// Secret key with the PEM certificates of the authorities to trust; the public ones when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<KeyRef>,
}

/// Mail by SMTP with TLS.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EmailChannel {
    /// Host of the server.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// Port of the server.
    #[serde(default = "submission")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// How TLS begins. There is no mail without TLS.
    #[serde(default)]
    pub tls: MailTls,
    /// Sender's address.
    #[schemars(length(min = 3, max = 320), regex(pattern = r"^[^\s@]+@[^\s@]+$"))]
    pub from: String,
    /// Addresses: a list's, rather than people's.
    #[schemars(length(min = 1, max = 32), inner(length(min = 3, max = 320), regex(pattern = r"^[^\s@]+@[^\s@]+$")))]
    pub to: Vec<String>,
    /// Secret with `username` and `password`; nobody logs in when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<NameRef>,
    /// Secret key with the PEM certificates of the authorities to trust; the public ones when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<KeyRef>,
}

/// How TLS begins.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MailTls {
    /// `STARTTLS`, which must succeed: port 587.
    #[default]
    StartTls,
    /// From the first byte: port 465.
    Implicit,
}

/// Somebody to call.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Contact {
    /// Role.
    pub role: ContactRole,
    /// Name.
    #[schemars(length(min = 1, max = 100))]
    pub name: String,
    /// Phone number.
    #[schemars(length(min = 1, max = 40))]
    pub phone: String,
    /// What is theirs to do.
    #[schemars(length(min = 1, max = 200))]
    pub duty: String,
}

/// Role of a contact: those of the checklist.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContactRole {
    /// Database administrator.
    #[serde(rename = "DBA")]
    Dba,
    /// Lead of the backend.
    BackendLead,
    /// Operations.
    DevOps,
    /// Product manager.
    ProductManager,
    /// Chief technology officer.
    #[serde(rename = "CTO")]
    Cto,
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
    PersonNeeded,
    /// Report of the day check.
    DayReport,
    /// Report of the week review.
    WeekReport,
    /// Somebody has to decide to keep or to revert.
    DecisionDue,
}

impl Occasion {
    /// All of them, in the order of the procedure.
    pub const ALL: &[Occasion] = &[
        Occasion::Planned,
        Occasion::MaintenanceStarts,
        Occasion::Finished,
        Occasion::TriggerFired,
        Occasion::RolledBack,
        Occasion::PersonNeeded,
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
            Occasion::Planned | Occasion::TriggerFired | Occasion::PersonNeeded => &[Team, Support],
            Occasion::DayReport | Occasion::WeekReport | Occasion::DecisionDue => &[Team],
        }
    }

    /// Somebody may have to be called: the contacts are in it.
    pub fn is_alarm(self) -> bool {
        matches!(self, Occasion::TriggerFired | Occasion::RolledBack | Occasion::PersonNeeded)
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

fn submission() -> u16 {
    587
}
