//! Where and how to connect: what the connection URL and its authorities say.

use std::{
    fmt,
    path::Path,
    sync::{Arc, atomic::AtomicUsize},
};

use tokio_postgres::config::ChannelBinding;

use super::{
    connection::{DB_CONNECT_TIMEOUT, LIBPQ_OPTIONS},
    hosts::{self, Host},
    server_tls::ServerTls,
};
use crate::{api::Reason, runner::Failure};

/// Where and how to connect: the parsed URL and the authorities to trust.
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
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.tls.is_some() { "verify-full" } else { "disable" };
        write!(f, "postgresql://{}@{}/{}?sslmode={mode}", self.user, self.host_port(), self.database)
    }
}

impl Target {
    /// Reads `postgresql://role:password@host:port/database?sslmode=verify-full`. There may be several hosts, separated
    /// by commas: the primary among them is connected to.
    ///
    /// `ca_pem` holds the certificates of the authorities to trust, those of the system are trusted when it is `None`.
    ///
    /// # Errors
    /// `ConnectionInvalid` for a URL that cannot be used as it stands, `CertificateNotTrusted` for unusable `ca_pem`.
    pub fn parse(url: &str, ca_pem: Option<&str>) -> Result<Self, Failure> {
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
        if user.is_empty() {
            return Err(invalid("the connection URL names no role"));
        }
        let database = part("the database", parsed.path().trim_start_matches('/'))?;
        if database.is_empty() {
            return Err(invalid("the connection URL names no database"));
        }
        let password = parsed.password().map(|text| part("the password", text)).transpose()?;
        let query = Query::read(&parsed)?;
        let tls = if query.verify { Some(Arc::new(ServerTls::new(ca_pem)?)) } else { None };
        Ok(Self {
            hosts,
            last_primary: Arc::default(),
            user,
            password,
            database,
            channel_binding: query.channel_binding,
            tls,
        })
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
    /// `ca_file` is the file that holds what [`Target::parse`] got as `ca_pem`. Without a private authority libpq is
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
        env.push(("PGSSLMODE", "verify-full".to_owned()));
        match ca_file.filter(|_| tls.private_authority) {
            Some(path) => env.push(("PGSSLROOTCERT", path.display().to_string())),
            None => env.push(("PGSSLROOTCERT", "system".to_owned())),
        }
        env
    }
}

/// The URL's parameters that have a meaning here.
struct Query {
    verify: bool,
    channel_binding: ChannelBinding,
}

impl Query {
    fn read(url: &url::Url) -> Result<Self, Failure> {
        let mut query = Self { verify: true, channel_binding: ChannelBinding::Prefer };
        for (name, value) in url.query_pairs() {
            match (&*name, &*value) {
                ("sslmode", "verify-full") => query.verify = true,
                ("sslmode", "disable") => query.verify = false,
                ("sslmode", other) => {
                    let message = format!(
                        "sslmode={other} does not check whom it talks to; next: set sslmode=verify-full in the URL \
                            and, for a private authority, spec.database.connection.caSecretRef"
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
