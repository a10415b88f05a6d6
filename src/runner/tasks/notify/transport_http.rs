//! Channels over HTTP: Slack's incoming webhook, and CloudEvents 1.0 in structured mode.

use reqwest::{
    Certificate, Client, Response, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderValue},
};
use serde_json::{Value, json};

use super::{DELIVERY_TIMEOUT, OutgoingMessage, templates::is_internal, untrusted};
use crate::{
    api::{GROUP, KeyRef, Reason, SlackChannel, WebhookChannel},
    runner::{
        Failure,
        clients::{http_probe, tls},
        settings::Settings,
    },
};

/// Longest part of Slack's answer that is read.
const MAX_SLACK_ERROR: usize = 40;

/// A URL that takes notices by `POST`. No `Debug`: anyone who knows the URL can use it.
pub(super) struct Webhook {
    client: Client,
    url: Url,
    /// Header `Authorization`.
    authorization: Option<HeaderValue>,
    slack: bool,
}

impl Webhook {
    /// # Errors
    /// `SecretKeyMissing`, `ConnectionInvalid`, `CertificateNotTrusted`.
    pub(super) fn slack(settings: &Settings<'_>, channel: &SlackChannel) -> Result<Self, Failure> {
        let SlackChannel { url_secret_ref, ca_secret_ref } = channel;
        Ok(Self {
            client: client(settings, ca_secret_ref.as_ref())?,
            url: url(settings, url_secret_ref, "https://hooks.slack.com/services/...")?,
            authorization: None,
            slack: true,
        })
    }

    /// # Errors
    /// `SecretKeyMissing`, `ConnectionInvalid`, `CertificateNotTrusted`.
    pub(super) fn events(settings: &Settings<'_>, channel: &WebhookChannel) -> Result<Self, Failure> {
        let WebhookChannel { url_secret_ref, authorization_secret_ref, ca_secret_ref } = channel;
        let authorization = match authorization_secret_ref {
            None => None,
            Some(reference) => {
                let text = settings.further_secret(reference, "Bearer TOKEN")?;
                let mut value = HeaderValue::from_str(text.trim()).map_err(|_| {
                    unusable(settings, reference, "is no value of a header: it has a line break or a control character")
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self {
            client: client(settings, ca_secret_ref.as_ref())?,
            url: url(settings, url_secret_ref, "https://HOST/PATH")?,
            authorization,
            slack: false,
        })
    }

    /// What Preflight reports of it.
    pub(super) fn description(&self) -> String {
        let kind = if self.slack { "Slack webhook" } else { "CloudEvents webhook" };
        if self.url.scheme() == "https" { kind.to_owned() } else { format!("{kind}, without TLS") }
    }

    /// # Errors
    /// What the server answered, without address and text.
    pub(super) async fn send(&self, outgoing: &OutgoingMessage<'_>) -> Result<(), String> {
        let (kind, body) = if self.slack {
            ("application/json", slack(outgoing))
        } else {
            ("application/cloudevents+json; charset=utf-8", event(outgoing))
        };
        let mut request = self
            .client
            .post(self.url.clone())
            .timeout(DELIVERY_TIMEOUT)
            .header(CONTENT_TYPE, kind)
            // The body for Slack has no field for the id. One notice is a message for each audience and channel: a
            // gateway that takes several of them must not drop all but the first.
            .header("Idempotency-Key", format!("{}.{}.{}", outgoing.notice.id, outgoing.audience, outgoing.channel))
            .body(body.to_string());
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization.clone());
        }
        let answer = request.send().await.map_err(|error| {
            tls::refusal(&error).unwrap_or_else(|| {
                if error.is_timeout() { super::too_late() } else { format!("no answer: {}", http_probe::cause(&error)) }
            })
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let hint = self.hint(answer).await;
        let redirect = if status.is_redirection() { "; redirects are not followed" } else { "" };
        Err(format!("answered {}{hint}{redirect}", code(status)))
    }

    /// Slack says why in one word (`channel_is_archived`). Nothing else of an answer is repeated: it may hold what was
    /// sent.
    async fn hint(&self, mut answer: Response) -> String {
        if !self.slack {
            return String::new();
        }
        let Ok(Some(bytes)) = answer.chunk().await else { return String::new() };
        match std::str::from_utf8(&bytes) {
            Ok(word)
                if word.len() <= MAX_SLACK_ERROR
                    && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
                    && !self.url.as_str().contains(word) =>
            {
                format!(" ({word})")
            }
            _ => String::new(),
        }
    }
}

fn code(status: StatusCode) -> u16 {
    status.as_u16()
}

fn unusable(settings: &Settings<'_>, KeyRef { name, key }: &KeyRef, what: &str) -> Failure {
    let namespace = settings.namespace();
    Failure::new(
        Reason::ConnectionInvalid,
        format!("key {key} of Secret {namespace}/{name} {what}; next: kubectl -n {namespace} edit secret {name}"),
    )
}

fn url(settings: &Settings<'_>, reference: &KeyRef, example: &str) -> Result<Url, Failure> {
    let text = settings.further_secret(reference, example)?;
    // The parser's words are left out with what it read.
    let url = Url::parse(text.trim()).map_err(|_| unusable(settings, reference, "is no URL"))?;
    if !matches!(url.scheme(), "https" | "http") || !url.has_host() {
        return Err(unusable(settings, reference, "is no URL of a web server (https://...)"));
    }
    Ok(url)
}

fn client(settings: &Settings<'_>, ca: Option<&KeyRef>) -> Result<Client, Failure> {
    let Some(reference) = ca else { return http_probe::client(None) };
    let authorities = tls::authorities(&settings.further_file(reference)?)
        .and_then(|all| {
            all.iter()
                .map(|der| Certificate::from_der(der))
                .collect::<Result<_, _>>()
                .map_err(|e| http_probe::cause(&e))
        })
        .map_err(|what| untrusted(settings, reference, &what))?;
    http_probe::client(Some(authorities))
}

/// Slack's own escapes; anything else would be read as a link or a mention of everybody.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn slack(outgoing: &OutgoingMessage<'_>) -> Value {
    let mut text = format!("*{}*\n{}", escape(&outgoing.text.subject), escape(&outgoing.text.body));
    if is_internal(outgoing.audience) {
        text.push_str(&format!("\n\n_notice {}_", escape(&outgoing.notice.id)));
    }
    json!({ "text": text })
}

/// An event for each notice and audience: `source` and `id` together name it, in each repetition the same.
fn event(outgoing: &OutgoingMessage<'_>) -> Value {
    let OutgoingMessage { notice, channel: _, audience, text, notice_context } = outgoing;
    let (namespace, migration) = (notice_context.namespace, notice_context.migration);
    let mut data = json!({
        "occasion": notice.occasion, "audience": audience, "subject": text.subject, "body": text.body,
        "migration": migration, "namespace": namespace, "phase": notice.phase,
        "startsAt": notice.starts_at, "expectedWindowSeconds": notice.expected_window_seconds,
    });
    // Free text of the operator, and where the bucket is: nothing for a status page.
    if is_internal(*audience) {
        data["message"] = json!(notice.message);
        data["reportObject"] = json!(notice.report_object);
    }
    let contacts = notice_context.contacts_for(notice.occasion, *audience);
    if !contacts.is_empty() {
        data["contacts"] = json!(contacts);
    }
    if let Some(fields) = data.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    json!({
        "specversion": "1.0",
        "id": notice.id,
        "source": format!(
            "/apis/{GROUP}/v1alpha1/namespaces/{namespace}/creditmigrations/{migration}/audiences/{audience}"
        ),
        "type": format!("io.creditmigration.notice.{}", notice.occasion),
        "time": notice.at,
        "subject": migration,
        "datacontenttype": "application/json",
        "data": data,
    })
}
