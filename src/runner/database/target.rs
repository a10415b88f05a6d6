//! Where and how to connect: what the Secret, its certificates and the spec say.

use std::{
    fmt,
    path::Path,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use tokio_postgres::config::ChannelBinding;

use super::{
    hosts::{self, Host},
    server_tls::{Pem, ServerTls, Verification},
};
use crate::{
    api::{Connection, Reason, SslMode},
    runner::Failure,
};

/// Longest time for TCP, TLS and log-in together.
pub(super) const DB_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Start-up option of every session that works, see the head of `connection.rs`.
pub(super) const LIBPQ_OPTIONS: &str = "-c default_transaction_read_only=off";

/// Where and how to connect, and the authorities to trust.
#[derive(Clone)]
pub struct Target {
    /// In the order of the URL; at least one.
    pub(super) hosts: Vec<Host>,
    /// Of the one that was the primary the last time: a dead one is not waited for each time.
    pub(super) last_primary: Arc<AtomicUsize>,
    pub(super) user: String,
    pub(super) password: Option<String>,
    pub(super) database: String,
    pub(super) channel_binding: ChannelBinding,
    pub(super) tls: Option<Arc<ServerTls>>,
    /// The field of the spec that names its Secret.
    pub(super) field: &'static str,
}

/// The field that names the Secret of the database.
const DATABASE_FIELD: &str = "spec.database.connection";

/// A connection whose parts are texts of their own.
#[derive(Clone, Copy)]
pub struct Parts<'a> {
    /// The role.
    pub user: &'a str,
    /// Its password; none where the role authenticates itself by certificate.
    pub password: Option<&'a str>,
    /// `host:port`; several are separated by commas. Empty where the spec names it.
    pub host: &'a str,
    /// Of hosts that name none; several are separated by commas.
    pub port: Option<&'a str>,
    /// The database.
    pub database: &'a str,
}

/// What the spec says of a connection besides its Secret.
#[derive(Clone, Copy, Default)]
pub struct Override<'a> {
    host: Option<&'a str>,
    ssl_mode: Option<SslMode>,
}

impl<'a> From<&'a Connection> for Override<'a> {
    fn from(connection: &'a Connection) -> Self {
        Self { host: connection.host.as_deref(), ssl_mode: connection.ssl_mode }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = self.tls.as_ref().map_or("disable", |tls| tls.verification.sslmode());
        write!(f, "postgresql://{}@{}/{}?sslmode={mode}", self.user, self.host_port(), self.database)
    }
}

impl Target {
    /// Reads a URL whose connection the spec says nothing else of. `ca_pem` holds the certificates of the authorities
    /// to trust, those of the system are trusted when it is `None`.
    ///
    /// # Errors
    /// As [`Target::of_url`].
    pub fn parse(url: &str, ca_pem: Option<&str>) -> Result<Self, Failure> {
        let pem = Pem { authorities: ca_pem.map(str::to_owned), client: None };
        Self::of_url(url, Override::default(), &pem)
    }

    /// Reads `postgresql://role:password@host:port/database?sslmode=verify-full`. There may be several hosts, separated
    /// by commas: the primary among them is connected to.
    ///
    /// # Errors
    /// `ConnectionInvalid` for a URL that cannot be used as it stands, `CertificateNotTrusted` for unusable
    /// authorities.
    pub fn of_url(url: &str, over: Override<'_>, pem: &Pem) -> Result<Self, Failure> {
        let (url, mut hosts) = hosts::split(url.trim()).map_err(invalid)?;
        // The parser's error is not shown in full: nothing of the text but its class may come out, it holds a password.
        let parsed = url::Url::parse(&url).map_err(|e| {
            invalid(format!(
                "the connection URL cannot be read: {e}; next: \
                percent-encode what is special in user and password, / is %2F, @ is %40"
            ))
        })?;
        if !matches!(parsed.scheme(), "postgresql" | "postgres") {
            return Err(invalid("the connection URL must start with postgresql://"));
        }
        let part = |name: &str, text: &str| {
            decode(text).ok_or_else(|| invalid(format!("{name} is not valid percent-encoding of UTF-8")))
        };
        for host in &mut hosts {
            host.name = part("the host", &host.name)?;
        }
        let user = part("the role", parsed.username())?;
        let database = part("the database", parsed.path().trim_start_matches('/'))?;
        let password = parsed.password().map(|text| part("the password", text)).transpose()?;
        let query = Query::read(&parsed)?;
        let ports = hosts.first().map(|host| host.port.to_string());
        Self { channel_binding: query.channel_binding, ..Self::made(hosts, user, password, database)? }.adjusted(
            over,
            ports.as_deref(),
            query.verification,
            pem,
        )
    }

    /// Reads what a Secret has in keys of its own.
    ///
    /// # Errors
    /// As [`Target::of_url`].
    pub fn of_parts(parts: Parts<'_>, over: Override<'_>, pem: &Pem) -> Result<Self, Failure> {
        let Parts { user, password, host, port, database } = parts;
        let hosts = hosts::read(over.host.unwrap_or(host), port).map_err(invalid)?;
        Self::made(hosts, user.to_owned(), password.map(str::to_owned), database.to_owned())?.adjusted(
            over,
            port,
            Some(Verification::Full),
            pem,
        )
    }

    /// With nothing but what is sent.
    fn made(hosts: Vec<Host>, user: String, password: Option<String>, database: String) -> Result<Self, Failure> {
        for (what, text) in [("role", &user), ("database", &database)] {
            if text.is_empty() {
                return Err(invalid(format!("the connection names no {what}")));
            }
        }
        let channel_binding = ChannelBinding::Prefer;
        Ok(Self {
            hosts,
            last_primary: Arc::default(),
            user,
            password,
            database,
            channel_binding,
            tls: None,
            field: DATABASE_FIELD,
        })
    }

    /// What the spec says goes before what the Secret says.
    fn adjusted(
        mut self,
        over: Override<'_>,
        ports: Option<&str>,
        verification: Option<Verification>,
        pem: &Pem,
    ) -> Result<Self, Failure> {
        if let Some(host) = over.host {
            self.hosts = hosts::read(host, ports).map_err(invalid)?;
        }
        let verification = match over.ssl_mode {
            None => verification,
            Some(SslMode::VerifyFull) => Some(Verification::Full),
            Some(SslMode::VerifyCa) => Some(Verification::Authority),
        };
        self.tls = verification.map(|verification| ServerTls::new(verification, pem).map(Arc::new)).transpose()?;
        Ok(self)
    }

    /// The same, by the Secret that this field of the spec names: for messages.
    pub fn of_field(self, field: &'static str) -> Self {
        Self { field, ..self }
    }

    /// A failure to connect, with the field that this one is of.
    pub(super) fn named(&self, failure: Failure) -> Failure {
        Failure { message: failure.message.replace(DATABASE_FIELD, self.field), ..failure }
    }

    /// Same server and role, other database.
    pub fn with_database(&self, name: &str) -> Self {
        Self { database: name.to_owned(), ..self.clone() }
    }

    /// Name of the database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Name of the role.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// `host:port`, of each host, for messages.
    pub fn host_port(&self) -> String {
        self.each_host(ToString::to_string)
    }

    fn each_host(&self, text: impl Fn(&Host) -> String) -> String {
        self.hosts.iter().map(text).collect::<Vec<_>>().join(",")
    }

    /// The environment in which `pg_dump` and `pg_restore` connect as this target does: nothing of it may be in
    /// their arguments, which every process of the node can read.
    ///
    /// `ca_file` is the file that holds the authorities of [`Pem`]. Without a private authority libpq is
    /// configured to trust those of the system, which it understands from version 16 on.
    pub fn libpq_env(&self, ca_file: Option<&Path>) -> Vec<(&'static str, String)> {
        let mut env = vec![
            ("PGHOST", self.each_host(|host| host.name.clone())),
            ("PGPORT", self.each_host(|host| host.port.to_string())),
            // As here: the primary.
            ("PGTARGETSESSIONATTRS", "read-write".to_owned()),
            ("PGUSER", self.user.clone()),
            ("PGDATABASE", self.database.clone()),
            ("PGOPTIONS", LIBPQ_OPTIONS.to_owned()),
            ("PGAPPNAME", "credit-migration".to_owned()),
            ("PGCONNECT_TIMEOUT", DB_CONNECT_TIMEOUT.as_secs().to_string()),
        ];
        if let Some(password) = &self.password {
            env.push(("PGPASSWORD", password.clone()));
        }
        let Some(tls) = &self.tls else {
            env.push(("PGSSLMODE", "disable".to_owned()));
            return env;
        };
        env.push(("PGSSLMODE", tls.verification.sslmode().to_owned()));
        // Of mounted Secrets, which are in memory. libpq accepts a private key that root owns and its group may read.
        if let Some([certificate, key]) = &tls.client_files {
            env.push(("PGSSLCERT", certificate.display().to_string()));
            env.push(("PGSSLKEY", key.display().to_string()));
        }
        match ca_file.filter(|_| tls.private_authority) {
            Some(path) => env.push(("PGSSLROOTCERT", path.display().to_string())),
            None => env.push(("PGSSLROOTCERT", "system".to_owned())),
        }
        env
    }
}

/// The URL's parameters that have a meaning here.
struct Query {
    /// `None`: without TLS.
    verification: Option<Verification>,
    channel_binding: ChannelBinding,
}

impl Query {
    fn read(url: &url::Url) -> Result<Self, Failure> {
        let mut query = Self { verification: Some(Verification::Full), channel_binding: ChannelBinding::Prefer };
        for (name, value) in url.query_pairs() {
            match (&*name, &*value) {
                ("sslmode", "verify-full") => query.verification = Some(Verification::Full),
                ("sslmode", "verify-ca") => query.verification = Some(Verification::Authority),
                ("sslmode", "disable") => query.verification = None,
                ("sslmode", other) => {
                    let message = format!(
                        "sslmode={other} does not check whom it talks to; next: set sslmode=verify-full in the URL \
                            and, for a private authority, spec.database.connection.caSecretRef; verify-ca, if the \
                            certificate names no host"
                    );
                    return Err(invalid(message));
                }
                ("channel_binding", "require") => query.channel_binding = ChannelBinding::Require,
                ("channel_binding", "disable") => query.channel_binding = ChannelBinding::Disable,
                ("channel_binding", "prefer") | ("sslrootcert", "system") => {}
                ("sslrootcert", _) => {
                    return Err(invalid(
                        "sslrootcert names a file that the runner does not have; next: use \
                            spec.database.connection.caSecretRef",
                    ));
                }
                ("sslcert" | "sslkey", _) => {
                    return Err(invalid(format!(
                        "{name} names a file that the runner does not have; next: put certificate and key into keys \
                            tls.crt and tls.key of the Secret, and remove sslcert and sslkey from the URL"
                    )));
                }
                // The runner sets these itself.
                (
                    "application_name" | "connect_timeout" | "keepalives" | "keepalives_idle" | "keepalives_interval",
                    _,
                ) => {}
                ("target_session_attrs", "any" | "read-write" | "primary") => {}
                (other, _) => {
                    return Err(invalid(format!(
                        "parameter {other} of the connection URL is not supported; next: remove it"
                    )));
                }
            }
        }
        Ok(query)
    }
}

/// `text` without percent-encoding; `None` if it is none.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Reason::ConnectionInvalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Target, Failure> {
        Target::parse(url, None)
    }

    #[test]
    fn a_url_is_taken_apart_and_its_password_never_shown() {
        let target = parse("postgresql://mi%40grator:s%3Acret%2F1@[::1]:6543/my%20db?sslmode=disable").unwrap();
        assert_eq!((target.user(), target.database()), ("mi@grator", "my db"));
        assert_eq!(target.host_port(), "[::1]:6543");
        let env = target.libpq_env(None);
        assert!(env.contains(&("PGPASSWORD", "s:cret/1".to_owned())));
        assert!(env.contains(&("PGSSLMODE", "disable".to_owned())));
        assert!(!format!("{target:?}").contains("cret"), "{target:?}");
        assert_eq!(target.with_database("other").database(), "other");
    }

    #[rstest::rstest]
    #[case("postgresql://a:hunter2@h/d?sslmode=require", "verify-full")]
    #[case("postgresql://a:hunter2@h/d?sslmode=prefer", "verify-full")]
    #[case("postgresql://a:hunter2@h/d?sslrootcert=/tmp/ca", "caSecretRef")]
    #[case("postgresql://a:hunter2@h/d?sslmode=verify-ca", "caSecretRef")]
    #[case("postgresql://a:hunter2@h/d?sslcert=/tmp/c&sslkey=/tmp/k", "tls.crt")]
    #[case("postgresql://a:hunter2@h/d?sslmode=disable&service=x", "service")]
    #[case("mysql://a:hunter2@h/d", "postgresql://")]
    #[case("postgresql://a:hunter2@h/", "database")]
    #[case("postgresql://:hunter2@h/d", "role")]
    #[case("postgresql:///d", "host")]
    #[case("postgresql://a:hunter2@h:port/d", "port")]
    fn what_cannot_be_used_is_refused_with_its_cause(#[case] url: &str, #[case] word: &str) {
        let failure = parse(url).unwrap_err();
        assert_eq!(failure.reason, Reason::ConnectionInvalid);
        assert!(failure.message.contains(word) && !failure.message.contains("hunter2"), "{failure}");
    }

    #[test]
    fn an_authority_that_is_none_is_refused() {
        for pem in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let failure = Target::parse("postgresql://a@h/d?sslmode=verify-full", Some(pem)).unwrap_err();
            assert_eq!(failure.reason, Reason::CertificateNotTrusted);
        }
    }

    #[tokio::test]
    async fn a_port_without_a_server_is_unreachable() {
        let failure = parse("postgresql://a@127.0.0.1:1/d?sslmode=disable").unwrap().connect("test").await.unwrap_err();
        assert_eq!(failure.reason, Reason::HostUnreachable);
        assert!(failure.message.contains("127.0.0.1:1"), "{failure}");
    }
}
