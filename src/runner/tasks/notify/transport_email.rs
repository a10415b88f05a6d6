//! Mail by SMTP. Mail is sent over TLS only. Of a server's answer only the code is repeated, since its text may contain
//! addresses.

use std::time::{Duration, SystemTime};

use lettre::{
    Address, Message,
    message::{
        Mailbox,
        header::{ContentType, HeaderName, HeaderValue},
    },
    transport::smtp::{
        Error,
        authentication::{Credentials, Mechanism},
        client::{AsyncSmtpConnection, Certificate, CertificateStore, TlsParameters},
        commands::{Data, Mail, Rcpt},
        extension::{ClientId, Extension, MailParameter},
    },
};

use super::{DELIVERY_TIMEOUT, OutgoingMessage, untrusted};
use crate::{
    api::{EmailChannel, KeyRef, MailTls, Reason, sha256},
    runner::{Failure, clients::tls, settings::Settings},
};

/// Longest wait for the server's good-bye, when it has taken the mail already.
const SMTP_QUIT_TIMEOUT: Duration = Duration::from_secs(1);

/// A mail server, and who writes to whom. No `Debug`: it holds the password.
pub(super) struct Mailer {
    host: String,
    port: u16,
    tls: MailTls,
    parameters: TlsParameters,
    login: Option<Credentials>,
    from: Address,
    to: Vec<Address>,
}

impl Mailer {
    /// # Errors
    /// `SecretKeyMissing`, `ConnectionInvalid` for an address, `CertificateNotTrusted`.
    pub(super) fn new(settings: &Settings<'_>, channel: &EmailChannel) -> Result<Self, Failure> {
        let EmailChannel { host, port, tls, from, to, secret_ref, ca_secret_ref } = channel;
        let login = match secret_ref {
            None => None,
            Some(secret) => {
                let key = |key: &str| KeyRef { name: secret.name.clone(), key: key.to_owned() };
                let user = settings.further_secret(&key("username"), "USER")?;
                let password = settings.further_secret(&key("password"), "PASSWORD")?;
                Some(Credentials::new(user.trim().to_owned(), password.trim_end_matches(['\r', '\n']).to_owned()))
            }
        };
        Ok(Self {
            host: host.clone(),
            port: *port,
            tls: *tls,
            parameters: parameters(settings, host, ca_secret_ref.as_ref())?,
            login,
            from: address(from, "from")?,
            to: to.iter().map(|to| address(to, "to")).collect::<Result<_, _>>()?,
        })
    }

    /// What Preflight reports of it.
    pub(super) fn description(&self) -> String {
        let login = if self.login.is_some() { "with login" } else { "without login" };
        format!("mail by {}:{} to {} addresses, {login}", self.host, self.port, self.to.len())
    }

    /// What the server took. The mail counts as delivered if one address was taken: otherwise one that is wrong would
    /// delay a start, and the others would get the mail again and again.
    ///
    /// # Errors
    /// What the server answered, without addresses and text.
    pub(super) async fn send(&self, outgoing: &OutgoingMessage<'_>) -> Result<String, String> {
        let mail = self.mail(outgoing)?;
        let mut connection = self.connect().await?;
        let mut parameters = Vec::new();
        if !std::iter::once(&self.from).chain(&self.to).all(|address| AsRef::<str>::as_ref(address).is_ascii()) {
            if !connection.server_info().supports_feature(Extension::SmtpUtfEight) {
                return Err("the server takes no addresses beyond ASCII".to_owned());
            }
            parameters.push(MailParameter::SmtpUtfEight);
        }
        let mail_from = Mail::new(Some(self.from.clone()), parameters);
        connection.command(mail_from).await.map_err(|e| describe("the sender was refused", &e))?;
        // One address that is refused must not keep the mail from the others.
        let mut refused = Vec::new();
        for (n, to) in self.to.iter().enumerate() {
            if let Err(error) = connection.command(Rcpt::new(to.clone(), vec![])).await {
                match error.status() {
                    Some(code) => refused.push(format!("number {} ({code})", n + 1)),
                    None => return Err(describe("the connection broke off", &error)),
                }
            }
        }
        let taken = self.to.len() - refused.len();
        if taken > 0 {
            connection.command(Data).await.map_err(|e| describe("the mail was refused", &e))?;
            connection.message(&mail).await.map_err(|e| describe("the mail was refused", &e))?;
        }
        // The server has taken the mail, even if the connection fails now.
        let _ = tokio::time::timeout(SMTP_QUIT_TIMEOUT, connection.quit()).await;
        if refused.is_empty() {
            return Ok("taken".to_owned());
        }
        let answer = format!("taken for {taken} of {} addresses; refused: {}", self.to.len(), refused.join(", "));
        if taken > 0 { Ok(answer) } else { Err(answer) }
    }

    /// A session that is encrypted, and logged in if there is a login.
    async fn connect(&self) -> Result<AsyncSmtpConnection, String> {
        let hello = ClientId::default();
        let implicit = (self.tls == MailTls::Implicit).then(|| self.parameters.clone());
        let server = (self.host.as_str(), self.port);
        let mut connection =
            AsyncSmtpConnection::connect_tokio1(server, Some(DELIVERY_TIMEOUT), &hello, implicit, None)
                .await
                .map_err(|e| describe("no connection", &e))?;
        if self.tls == MailTls::StartTls {
            // Without this the mail could be read on its way.
            if !connection.can_starttls() {
                return Err("the server offers no STARTTLS".to_owned());
            }
            connection.starttls(self.parameters.clone(), &hello).await.map_err(|e| describe("STARTTLS failed", &e))?;
        }
        if let Some(login) = &self.login {
            connection
                .auth(&[Mechanism::Plain, Mechanism::Login], login)
                .await
                .map_err(|e| describe("the login was refused", &e))?;
        }
        Ok(connection)
    }

    fn mail(&self, outgoing: &OutgoingMessage<'_>) -> Result<Vec<u8>, String> {
        let mut builder = Message::builder()
            .from(Mailbox::new(None, self.from.clone()))
            .message_id(Some(self.message_id(outgoing)))
            .date(SystemTime::from(outgoing.notice.at))
            .subject(outgoing.text.subject.as_str())
            .header(ContentType::TEXT_PLAIN)
            // Keeps absence notes from answering.
            .raw_header(HeaderValue::new(
                HeaderName::new_from_ascii_str("Auto-Submitted"),
                "auto-generated".to_owned(),
            ));
        for to in &self.to {
            builder = builder.to(Mailbox::new(None, to.clone()));
        }
        let mail = builder.body(outgoing.text.body.clone()).map_err(|e| format!("the mail cannot be made: {e}"))?;
        Ok(mail.formatted())
    }

    /// The same in each repetition, and another one for each audience: a recipient may be of two.
    fn message_id(&self, outgoing: &OutgoingMessage<'_>) -> String {
        let id = &outgoing.notice.id;
        let plain = id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let id = if plain { id.clone() } else { sha256(id.as_bytes()).replace(':', "-") };
        format!("<{id}.{}@{}>", outgoing.audience, self.from.domain())
    }
}

fn address(text: &str, field: &str) -> Result<Address, Failure> {
    // Not repeated: it may be personal data.
    text.parse().map_err(|_| {
        let message = format!("an address in email.{field} is none; next: correct spec.notifications.channels");
        Failure::new(Reason::ConnectionInvalid, message)
    })
}

fn parameters(settings: &Settings<'_>, host: &str, ca: Option<&KeyRef>) -> Result<TlsParameters, Failure> {
    let mut builder = TlsParameters::builder(host.to_owned());
    if let Some(reference) = ca {
        let bad = |what: String| untrusted(settings, reference, &what);
        builder = builder.certificate_store(CertificateStore::None);
        for der in tls::authorities(&settings.further_file(reference)?).map_err(bad)? {
            builder = builder.add_root_certificate(
                Certificate::from_der(der.to_vec()).map_err(|_| bad("holds an unusable certificate".to_owned()))?,
            );
        }
    }
    builder.build().map_err(|_| Failure::new(Reason::Internal, "TLS for mail cannot be set up"))
}

/// What went wrong: the server's code, or what TLS or the network said.
fn describe(doing: &str, error: &Error) -> String {
    if let Some(code) = error.status() {
        return format!("{doing} ({code})");
    }
    if let Some(why) = tls::refusal(error) {
        return why;
    }
    if error.is_timeout() {
        return super::too_late();
    }
    match tls::find::<std::io::Error>(error) {
        Some(io) => format!("{doing}: {io}"),
        None if error.is_client() => format!("{doing}: the server does not offer what is needed"),
        None => format!("{doing}: the server's answer cannot be understood"),
    }
}
