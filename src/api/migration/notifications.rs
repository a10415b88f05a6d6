//! Notifications: the channels by which audiences are notified, and whom to call.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{Audience, KeyRef, NameRef, Occasion};

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

fn submission() -> u16 {
    587
}
