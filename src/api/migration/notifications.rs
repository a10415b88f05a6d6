//! Notifications: the channels by which audiences are notified, and whom to call.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{Audience, KeyRef, NameRef, Occasion, named::named};

/// Channels by which audiences are notified, and people to call.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Notifications {
    /// Channels. A channel that cannot be reached delays nothing, and is reported.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(
        validation = Rule::new("self.all(c, self.exists_one(d, d.name == c.name))")
            .message("names of channels must be unique")
    )]
    pub channels: Vec<NotificationChannel>,
    /// People to call. Each urgent notice lists them.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub contacts: Vec<Contact>,
    /// ConfigMap with templates (MiniJinja). Keys, of which the most specific wins: `OCCASION.AUDIENCE.subject`,
    /// `OCCASION.subject`, and the same with `body`. A missing key has a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub templates_config_map_ref: Option<NameRef>,
}

/// A channel that reaches one or more audiences. Exactly one of `slack`, `webhook` and `email` is set.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("[has(self.slack), has(self.webhook), has(self.email)].filter(x, x).size() == 1")
        .message("exactly one of slack, webhook and email must be set"),
    // Otherwise customers would get urgent notices with the contacts' phone numbers.
    validation = Rule::new("!self.audiences.exists(a, a in ['Team', 'Support']) || !self.audiences.exists(a, a in \
        ['Users', 'Social', 'StatusPage'])")
        .message("audiences mix Team or Support, who get notices with phone numbers, with Users, Social or \
            StatusPage: make two channels")
)]
#[serde(rename_all = "camelCase")]
pub struct NotificationChannel {
    /// Name, unique among the channels.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Readers of the channel: Team and Support, or Users, Social and StatusPage, not both. It gets a notice once, in
    /// the text for the first of its audiences that is notified. An audience that needs its own text needs its own
    /// channel.
    #[schemars(length(min = 1, max = 5))]
    pub audiences: Vec<Audience>,
    /// Incoming webhook of Slack, or of a compatible service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slack: Option<SlackChannel>,
    /// Webhook that accepts CloudEvents 1.0 in structured mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookChannel>,
    /// Email by SMTP with TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<EmailChannel>,
}

impl Notifications {
    /// Whether an audience gets notices in its own text. It does not if another audience of each of its channels comes
    /// first.
    pub fn reaches(&self, audience: Audience) -> bool {
        Occasion::ALL.iter().any(|occasion| self.channels.iter().any(|c| c.audience_for(*occasion) == Some(audience)))
    }
}

impl NotificationChannel {
    /// The audience whose text this channel gets: the first of `audiences` that is notified; `None` if none is.
    pub fn audience_for(&self, occasion: Occasion) -> Option<Audience> {
        self.audiences.iter().copied().find(|audience| occasion.audiences().contains(audience))
    }
}

/// Incoming webhook of Slack, or of a compatible service.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SlackChannel {
    /// Secret key with the URL. Anyone who knows the URL can write to the channel.
    pub url_secret_ref: KeyRef,
    /// Secret key with the PEM certificates of the authorities to trust; the public ones when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<KeyRef>,
}

/// Webhook that accepts CloudEvents 1.0.
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

/// Email by SMTP with TLS.
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
    /// How TLS starts. Email is never sent without TLS.
    #[serde(default)]
    pub tls: MailTls,
    /// Sender's address.
    #[schemars(length(min = 3, max = 320), regex(pattern = r"^[^\s@]+@[^\s@]+$"))]
    pub from: String,
    /// Recipients' addresses, preferably of a mailing list.
    #[schemars(length(min = 1, max = 32), inner(length(min = 3, max = 320), regex(pattern = r"^[^\s@]+@[^\s@]+$")))]
    pub to: Vec<String>,
    /// Secret with `username` and `password`; no login when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<NameRef>,
    /// Secret key with the PEM certificates of the authorities to trust; the public ones when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<KeyRef>,
}

/// How TLS starts.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MailTls {
    /// `STARTTLS`, which must succeed: port 587.
    #[default]
    StartTls,
    /// From the first byte: port 465.
    Implicit,
}

/// A person to call.
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
    /// Duty of this person.
    #[schemars(length(min = 1, max = 200))]
    pub duty: String,
}

/// Role of a contact, as the checklist has them.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContactRole {
    /// Database administrator.
    #[serde(rename = "DBA")]
    Dba,
    /// Backend lead.
    BackendLead,
    /// Operations.
    DevOps,
    /// Product manager.
    ProductManager,
    /// Chief technology officer.
    #[serde(rename = "CTO")]
    Cto,
}

named! {
    ContactRole: Dba = "DBA", BackendLead, DevOps, ProductManager, Cto = "CTO"
}

fn submission() -> u16 {
    587
}
