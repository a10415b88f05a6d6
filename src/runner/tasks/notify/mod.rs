//! Task `Notify`: sends a notice by every channel that has one of its audiences.
//!
//! ```text
//!  notice ─> channels of its audiences that have not taken it ─┬─> text for it ─> Slack ──────┐
//!                                                              ├─> text for it ─> webhook ────┼─> deliveries
//!                                                              └─> text for it ─> mail ───────┘
//! ```
//!
//! # Contract
//! - A channel gets one message, even if the notice goes to several of its audiences: that of the first of `audiences`.
//! - Each channel has [`DELIVERY_TIMEOUT`], and none waits for another.
//! - Each delivery is noted when it is known: a pod that dies leaves few that are repeated. What is repeated has the
//!   same id (`id` of the event, `Idempotency-Key`, `Message-ID`), so that a receiver can drop it.
//! - URLs, logins and addresses are in no message.
//!
//! Called by the runner's dispatch, `preflight` and `window`. Imports `findings` of the tasks, `clients`, `context`,
//! `settings` and `failure` of the runner, `api`, `shared` and `telemetry`.

mod alert;
mod defaults;
mod templates;
mod transport_email;
mod transport_http;

use std::time::Duration;

use futures::{StreamExt, stream::FuturesUnordered};

pub use alert::{ALERT_GRACE, Alert};

use self::{
    templates::{NoticeContext, RenderedNotice, Templates},
    transport_email::Mailer,
    transport_http::Webhook,
};
use super::findings::Findings;
use crate::{
    api::{Audience, Delivery, DeliveryState, KeyRef, MigrationRunSpec, Notice, NotificationChannel, Occasion, Reason},
    runner::{Failure, context::TaskContext, settings::Settings},
    telemetry,
};

/// Longest wait for one channel.
pub const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// One notice to one audience.
struct OutgoingMessage<'a> {
    notice: &'a Notice,
    /// Name of the channel.
    channel: &'a str,
    audience: Audience,
    text: RenderedNotice,
    notice_context: NoticeContext<'a>,
}

/// How a channel is reached.
enum Transport {
    Webhook(Webhook),
    Mail(Box<Mailer>),
}

/// Sends `inputs.notice`. Reports `deliveries`, one for each channel that was tried.
///
/// # Errors
/// `NoticeUndelivered` if not every channel took it, with what each answered.
pub async fn run(context: &TaskContext<'_>) -> Result<String, Failure> {
    let Some(notice) = &context.spec.inputs.notice else {
        return Err(Failure::new(Reason::Internal, "the run has no notice to send"));
    };
    let deliveries = send_all(&context.settings, context.spec, notice, |deliveries| {
        context.progress.update(|status| status.deliveries = deliveries.to_vec());
    })
    .await;
    result(&deliveries, notice)
}

/// The task's result.
fn result(deliveries: &[Delivery], notice: &Notice) -> Result<String, Failure> {
    let all = deliveries.len();
    let answer = |delivery: &Delivery| format!("{}: {}", delivery.channel, delivery.message);
    let failed: Vec<String> = deliveries.iter().filter(|d| d.state == DeliveryState::Failed).map(answer).collect();
    if failed.is_empty() {
        let before = match notice.delivered.len() {
            0 => String::new(),
            before => format!("; {before} had it before"),
        };
        let answers: String = deliveries.iter().map(|delivery| format!("; {}", answer(delivery))).collect();
        return Ok(format!("{all} of {all} channels took it{before}{answers}"));
    }
    let message = format!(
        "{} of {all} channels did not take it: {}; next: correct spec.notifications.channels or the Secrets that it \
            names, and check NetworkPolicy",
        failed.len(),
        failed.join("; ")
    );
    Err(Failure::new(Reason::NoticeUndelivered, message))
}

/// The channels that a notice goes to, each with the audience whose message it gets.
fn recipients<'a>(
    channels: &'a [NotificationChannel],
    occasion: Occasion,
    delivered: &[String],
) -> Vec<(&'a NotificationChannel, Audience)> {
    let due = channels.iter().filter(|channel| !delivered.contains(&channel.name));
    due.filter_map(|channel| Some((channel, channel.audience_for(occasion)?))).collect()
}

/// Sends a notice by every channel that it goes to; `so_far` gets all deliveries whenever there is one more. Returns
/// them in the order of the channels.
async fn send_all(
    settings: &Settings<'_>,
    spec: &MigrationRunSpec,
    notice: &Notice,
    mut so_far: impl FnMut(&[Delivery]),
) -> Vec<Delivery> {
    let notifications = &spec.plan.notifications;
    let notice_context = NoticeContext {
        migration: &spec.migration,
        namespace: settings.namespace(),
        contacts: &notifications.contacts,
    };
    let (templates, unreadable) = match settings.templates() {
        Ok(own) => (Templates::new(own), None),
        Err(failure) => (Templates::new(std::collections::BTreeMap::new()), Some(failure.message)),
    };
    let channels = recipients(&notifications.channels, notice.occasion, &notice.delivered);
    let mut sending: FuturesUnordered<_> = channels
        .iter()
        .enumerate()
        .map(|(n, (channel, audience))| {
            let mut text = templates.render(notice, *audience, notice_context);
            text.unusable.extend(unreadable.clone());
            let outgoing =
                OutgoingMessage { notice, channel: &channel.name, audience: *audience, text, notice_context };
            async move { (n, deliver(settings, channel, &outgoing).await) }
        })
        .collect();
    let mut done: Vec<(usize, Delivery)> = Vec::new();
    while let Some(one) = sending.next().await {
        done.push(one);
        done.sort_by_key(|(n, _)| *n);
        so_far(&done.iter().map(|(_, delivery)| delivery.clone()).collect::<Vec<_>>());
    }
    done.into_iter().map(|(_, delivery)| delivery).collect()
}

async fn deliver(settings: &Settings<'_>, channel: &NotificationChannel, outgoing: &OutgoingMessage<'_>) -> Delivery {
    let sent = async {
        match transport(settings, channel).map_err(|failure| failure.message)? {
            Transport::Webhook(hook) => hook.send(outgoing).await.map(|()| "taken".to_owned()),
            Transport::Mail(mailer) => mailer.send(outgoing).await,
        }
    };
    let sent = tokio::time::timeout(DELIVERY_TIMEOUT, sent).await.unwrap_or_else(|_| Err(too_late()));
    let (state, mut message) = match sent {
        Ok(answer) => (DeliveryState::Delivered, answer),
        Err(why) => (DeliveryState::Failed, why),
    };
    for why in &outgoing.text.unusable {
        message = format!("{message}; {why}");
    }
    let name = &channel.name;
    match state {
        DeliveryState::Delivered => tracing::info!(channel = name, detail = message, "delivered"),
        DeliveryState::Failed => tracing::warn!(channel = name, error = message, "not delivered"),
    }
    Delivery { channel: name.clone(), state, message, at: telemetry::now() }
}

/// Reads a channel's Secrets and makes everything ready, without a connection.
fn transport(settings: &Settings<'_>, channel: &NotificationChannel) -> Result<Transport, Failure> {
    let NotificationChannel { name, audiences: _, slack, webhook, email } = channel;
    match (slack, webhook, email) {
        (Some(slack), None, None) => Ok(Transport::Webhook(Webhook::slack(settings, slack)?)),
        (None, Some(webhook), None) => Ok(Transport::Webhook(Webhook::events(settings, webhook)?)),
        (None, None, Some(email)) => Ok(Transport::Mail(Box::new(Mailer::new(settings, email)?))),
        // The schema lets none of them through.
        _ => Err(Failure::new(Reason::Internal, format!("channel {name} has not exactly one way"))),
    }
}

/// Preflight's part: the Secrets of each channel, and the templates. Sends nothing.
pub fn check(context: &TaskContext<'_>, findings: &mut Findings) {
    let (settings, notifications) = (&context.settings, &context.spec.plan.notifications);
    for channel in &notifications.channels {
        let description = transport(settings, channel).map(|transport| match transport {
            Transport::Webhook(hook) => hook.description(),
            Transport::Mail(mailer) => mailer.description(),
        });
        let audiences = channel.audiences.iter().map(|a| a.as_str()).collect::<Vec<_>>().join(", ");
        findings.add(
            format!("notification channel {}", channel.name),
            description.map(|description| format!("{description}, for {audiences}; nothing was sent")),
        );
    }
    if let Some(reference) = &notifications.templates_config_map_ref {
        let found = settings.templates().and_then(|own| check_templates(context, &reference.name, own));
        findings.add("notification templates", found);
    }
}

fn check_templates(
    context: &TaskContext<'_>,
    name: &str,
    own: std::collections::BTreeMap<String, String>,
) -> Result<String, Failure> {
    let (namespace, notifications) = (context.settings.namespace(), &context.spec.plan.notifications);
    let invalid = |what: String| Failure::new(Reason::TemplateInvalid, what);
    if own.is_empty() {
        return Err(invalid(format!(
            "ConfigMap {namespace}/{name} is missing or empty; next: kubectl -n {namespace} create configmap {name} \
                --from-file=Finished.Users.body=FILE; if it exists, kubectl -n {namespace} edit configmap {name}"
        )));
    }
    let audiences: Vec<Audience> = notifications.channels.iter().flat_map(|c| c.audiences.iter().copied()).collect();
    let notice_context =
        NoticeContext { migration: &context.spec.migration, namespace, contacts: &notifications.contacts };
    let count = own.len();
    let problems = Templates::new(own).problems(&audiences, notice_context);
    if problems.is_empty() {
        return Ok(format!("{count} of {count} templates of ConfigMap {namespace}/{name} render"));
    }
    Err(invalid(format!(
        "ConfigMap {namespace}/{name}: {}; next: kubectl -n {namespace} edit configmap {name}",
        problems.join("; ")
    )))
}

fn untrusted(settings: &Settings<'_>, KeyRef { name, key }: &KeyRef, what: &str) -> Failure {
    let namespace = settings.namespace();
    Failure::new(
        Reason::CertificateNotTrusted,
        format!("key {key} of Secret {namespace}/{name} {what}; next: put the authority's PEM certificate there"),
    )
}

fn too_late() -> String {
    format!("no answer within {} s", DELIVERY_TIMEOUT.as_secs())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_channel_gets_the_message_of_its_first_notified_audience() {
        let channels: Vec<NotificationChannel> = serde_json::from_value(json!([
            {"name": "a", "audiences": ["Support", "Team"]},
            {"name": "b", "audiences": ["StatusPage"]},
            {"name": "c", "audiences": ["Team"]},
        ]))
        .unwrap();
        let names = |occasion, delivered: &[String]| {
            let recipients = recipients(&channels, occasion, delivered);
            recipients.iter().map(|(channel, audience)| format!("{} {audience}", channel.name)).collect::<Vec<_>>()
        };
        assert_eq!(names(Occasion::Finished, &[]), ["a Support", "b StatusPage", "c Team"]);
        assert_eq!(names(Occasion::ManualInterventionRequired, &[]), ["a Support", "c Team"]);
        assert_eq!(names(Occasion::DayReport, &[]), ["a Team", "c Team"]);
        assert_eq!(names(Occasion::DayReport, &["a".to_owned()]), ["c Team"]);
    }
}
