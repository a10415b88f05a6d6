//! A notice: its kind, its audiences, and its delivery to each channel.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Phase, Time, named::named};

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

named! {
    Audience: Team, Support, Users, Social, StatusPage
}

/// Kind of a notice: why it is sent.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Occasion {
    /// A migration is being prepared. Says when it may start.
    Planned,
    /// A plan waits for approvals.
    ApprovalDue,
    /// Maintenance is about to start, in the lead time.
    MaintenanceStarts,
    /// Too few people have confirmed that they are present at the start.
    PresenceDue,
    /// The maintenance of a `MaintenanceStarts` does not take place, or changed nothing.
    CalledOff,
    /// Writes are unblocked, the new version runs.
    Finished,
    /// A trigger fired, and the rollback has started.
    TriggerFired,
    /// The old version runs again.
    RolledBack,
    /// The migration does not continue without manual intervention.
    ManualInterventionRequired,
    /// Report of the day check.
    DayReport,
    /// Report of the week review.
    WeekReport,
    /// An approver has to decide whether to keep the new version or roll back.
    DecisionDue,
}

named! {
    Occasion: Planned, ApprovalDue, MaintenanceStarts, PresenceDue, CalledOff, Finished, TriggerFired, RolledBack,
    ManualInterventionRequired, DayReport, WeekReport, DecisionDue
}

impl Occasion {
    /// Audiences that are notified.
    pub fn audiences(self) -> &'static [Audience] {
        use Audience::{Social, StatusPage, Support, Team, Users};
        match self {
            Occasion::MaintenanceStarts | Occasion::CalledOff | Occasion::Finished | Occasion::RolledBack => {
                &[Team, Support, Users, Social, StatusPage]
            }
            Occasion::Planned | Occasion::TriggerFired | Occasion::ManualInterventionRequired => &[Team, Support],
            Occasion::ApprovalDue
            | Occasion::PresenceDue
            | Occasion::DayReport
            | Occasion::WeekReport
            | Occasion::DecisionDue => &[Team],
        }
    }

    /// Whether the notice is urgent. Then it has the contacts to call.
    pub fn is_alert(self) -> bool {
        matches!(self, Occasion::TriggerFired | Occasion::RolledBack | Occasion::ManualInterventionRequired)
    }
}

/// Part of a notice that a template makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticePart {
    /// One line.
    Subject,
    /// The text.
    Body,
}

named! {
    NoticePart: Subject = "subject", Body = "body"
}

/// Whether a key of the templates' ConfigMap names a template that some notice uses: `OCCASION.PART`, or
/// `OCCASION.AUDIENCE.PART` with an audience of the occasion.
pub fn is_template_key(key: &str) -> bool {
    let (occasion, audience, part) = match *key.split('.').collect::<Vec<_>>() {
        [occasion, part] => (occasion, None, part),
        [occasion, audience, part] => (occasion, Some(audience), part),
        _ => return false,
    };
    let Some(occasion) = Occasion::ALL.iter().find(|known| known.as_str() == occasion) else { return false };
    let addressed = audience.is_none_or(|a| occasion.audiences().iter().any(|known| known.as_str() == a));
    addressed && NoticePart::ALL.iter().any(|known| known.as_str() == part)
}

/// Content of a notice: the order to a run of task `Notify`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// The same in each repetition: a receiver drops an id that it has seen.
    pub id: String,
    /// Its kind.
    pub occasion: Occasion,
    /// When it was created.
    pub at: Time,
    /// What has happened, with the next command.
    pub message: String,
    /// Phase of the migration at that time.
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
    /// Names of the channels that have accepted it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delivered: Vec<String>,
}

/// Delivery of a notice to one channel.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// Name of the channel.
    pub channel: String,
    /// Whether the channel accepted it.
    pub state: DeliveryState,
    /// The channel's answer, without address or text of the notice.
    pub message: String,
    /// When.
    pub at: Time,
}

/// Whether a channel accepted a notice.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    /// Accepted.
    Delivered,
    /// Not accepted; the delivery is retried.
    Failed,
}

named! {
    DeliveryState: Delivered, Failed
}

/// A notice and its deliveries.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NoticeStatus {
    /// The notice.
    pub notice: Notice,
    /// Its state.
    pub state: NoticeState,
    /// Number of its run; it never repeats.
    pub attempt: u32,
    /// Attempts that did not reach every channel.
    #[serde(default)]
    pub failures: u32,
    /// Time of the next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
    /// Each channel's last answer.
    #[serde(default)]
    pub deliveries: Vec<Delivery>,
}

/// State of a notice.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeState {
    /// Being sent or retried.
    Pending,
    /// Every channel accepted it.
    Delivered,
    /// Given up for at least one channel.
    Undelivered,
}

named! {
    NoticeState: Pending, Delivered, Undelivered
}

impl NoticeStatus {
    /// Whether at least one channel accepted it.
    pub fn reached(&self) -> bool {
        self.deliveries.iter().any(|d| d.state == DeliveryState::Delivered)
    }

    /// Whether a channel may have accepted it: an attempt that is under way has not reported.
    pub fn may_have_reached(&self) -> bool {
        self.reached() || (self.state == NoticeState::Pending && self.retry_at.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_key_names_an_occasion_one_of_its_audiences_and_a_part() {
        for key in ["Planned.subject", "MaintenanceStarts.body", "MaintenanceStarts.Users.body", "Planned.Team.subject"]
        {
            assert!(is_template_key(key), "{key}");
        }
        for key in [
            "",
            "Planned",
            "Planned.text",
            "planned.body",
            "Planned.Users.body",
            "Planned.team.body",
            "a.Planned.Team.body",
        ] {
            assert!(!is_template_key(key), "{key}");
        }
    }
}
