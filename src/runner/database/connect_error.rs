//! The reason why a session could not be opened.
//!
//! Decided by SQLSTATE and by the kind of error, never by a text: that of the server is in its own language.

use std::{
    fmt,
    io::{Error as IoError, ErrorKind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio_postgres::{
    error::{DbError, SqlState},
    tls::{MakeTlsConnect, TlsConnect},
};

use super::hosts::Host;
use crate::{
    api::Reason,
    runner::{Failure, clients::tls},
    shared::quoted::Quoted,
};

/// Why no session was opened.
#[derive(Debug)]
pub struct ConnectError {
    /// Its reason and message.
    pub failure: Failure,
    /// It concerns this role alone: the server gives connections to others.
    pub concerns_role_alone: bool,
    /// The server, the database or the role has no connection left.
    pub none_left: bool,
    /// The server gave a session, and is a standby.
    standby: bool,
}

impl From<Failure> for ConnectError {
    fn from(failure: Failure) -> Self {
        Self { failure, concerns_role_alone: false, none_left: false, standby: false }
    }
}

impl From<tokio_postgres::Error> for ConnectError {
    fn from(error: tokio_postgres::Error) -> Self {
        Failure::from(error).into()
    }
}

/// What is connected to, for messages.
pub(super) struct SessionName<'a> {
    pub host: &'a Host,
    pub role: &'a str,
    pub database: &'a str,
}

/// How far the TLS of a connection got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsState {
    /// None was asked for.
    Off,
    /// Asked for, and the server has not agreed.
    NotOffered,
    /// The server agreed to a handshake.
    Offered,
}

impl ConnectError {
    /// What the refusals of all servers of a URL mean together. What no retry changes is said before what one may.
    pub(super) fn of_all(mut refusals: Vec<Self>) -> Self {
        let concerns_role_alone = refusals.iter().all(|refusal| refusal.concerns_role_alone);
        // A host that is down is no host without a connection left. A standby that answers is not the one that is full.
        let none_left = refusals.iter().any(|refusal| refusal.none_left)
            && refusals.iter().all(|refusal| refusal.none_left || refusal.standby);
        refusals.sort_by_key(|refusal| refusal.failure.is_connection_lost());
        let messages: Vec<String> = refusals.iter().map(|refusal| refusal.failure.message.clone()).collect();
        let reason = refusals.first().map_or(Reason::HostUnreachable, |refusal| refusal.failure.reason);
        Self { failure: Failure::new(reason, messages.join("; ")), concerns_role_alone, none_left, standby: false }
    }

    /// Refusals of the addresses of one host, of which some may lead nowhere: one that is full says it of the host.
    pub(super) fn of_one_host(refusals: &mut [Self]) {
        let none_left = refusals.iter().any(|refusal| refusal.none_left);
        refusals.iter_mut().for_each(|refusal| refusal.none_left = none_left);
    }

    /// A standby, where a primary is needed.
    pub(super) fn standby(host: &Host) -> Self {
        let message = format!(
            "{host} is a standby, which cannot be written to; it is retried; next: let an address in the URL lead to \
             the primary"
        );
        Self { standby: true, ..Failure::new(Reason::HostUnreachable, message).into() }
    }

    /// What an error of opening a session means.
    pub(super) fn new(session: &SessionName<'_>, error: &tokio_postgres::Error, tls: TlsState) -> Self {
        match error.as_db_error() {
            Some(db) => refused(session, db),
            None => not_connected(session, error, tls).into(),
        }
    }
}

/// The session would not be one with the server itself.
pub(in crate::runner) fn pooler(at: impl fmt::Display, seen: &str) -> Failure {
    Failure::new(
        Reason::ConnectionInvalid,
        format!(
            "{at} is a pooler, and not the server itself: {seen}. Locks and settings of a session do not hold through \
             it; next: set host and port in the Secret, or spec.database.connection.host, to the server itself \
             (PgBouncer mostly listens on port 6432, PostgreSQL on 5432)"
        ),
    )
}

/// The server refused the session.
fn refused(session: &SessionName<'_>, db: &DbError) -> ConnectError {
    let code = db.code();
    // A server understands what is asked of it.
    if [SqlState::PROTOCOL_VIOLATION, SqlState::FEATURE_NOT_SUPPORTED].contains(code) {
        let seen = format!("it answers {} (SQLSTATE {})", Quoted(db.message()), code.code());
        return pooler(session.host, &seen).into();
    }
    // The routine: the same SQLSTATE also says that the server or the database has no connection left.
    let none_left = *code == SqlState::TOO_MANY_CONNECTIONS;
    let concerns_role_alone = none_left && db.routine() == Some("InitializeSessionUserId");
    let (reason, next) = if [SqlState::INVALID_PASSWORD, SqlState::INVALID_AUTHORIZATION_SPECIFICATION].contains(code) {
        (Reason::AuthenticationFailed, "next: correct the Secret of spec.database.connection.secretRef")
    } else if *code == SqlState::INVALID_CATALOG_NAME {
        (Reason::WrongDatabase, "next: correct the database's name in the Secret of spec.database.connection.secretRef")
    } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        (Reason::PrivilegeMissing, "next: GRANT CONNECT ON DATABASE to the role")
    } else if concerns_role_alone {
        (Reason::HostUnreachable, "next: raise the CONNECTION LIMIT of the role (ALTER ROLE); it is retried")
    } else {
        (Reason::HostUnreachable, "it is retried")
    };
    let message = format!(
        "{} refused role {} on database {}: {} (SQLSTATE {}); {next}",
        session.host,
        session.role,
        session.database,
        db.message(),
        code.code()
    );
    ConnectError { failure: Failure::new(reason, message), concerns_role_alone, none_left, standby: false }
}

/// PostgreSQL did not answer the request for a session.
fn not_connected(session: &SessionName<'_>, error: &tokio_postgres::Error, tls: TlsState) -> Failure {
    let at = session.host;
    if let Some(refusal) = tls::find::<rustls::Error>(error) {
        return tls_refused(at, refusal);
    }
    let cause = root_cause(error);
    if error.is_closed() || tls::find::<IoError>(error).is_some_and(is_of_the_network) {
        let message = format!("{at} cannot be reached: {cause}; next: check host, port and NetworkPolicy");
        return Failure::new(Reason::HostUnreachable, message);
    }
    if tls == TlsState::NotOffered {
        let message = format!("{at} offers no TLS, and sslmode asks for it; next: switch TLS on in the server");
        return Failure::new(Reason::ConnectionInvalid, message);
    }
    // What is left is this side's own: no password, or a method of authentication that cannot be used.
    let message = format!(
        "{at} cannot authenticate role {}: {cause}; next: correct the Secret of \
            spec.database.connection.secretRef",
        session.role
    );
    Failure::new(Reason::AuthenticationFailed, message)
}

/// One side refused the certificate of the other, or both have no way of TLS in common.
fn tls_refused(host: &Host, refusal: &rustls::Error) -> Failure {
    use rustls::{AlertDescription as Alert, CertificateError as Wrong, Error};
    let (reason, what, next) = match refusal {
        Error::AlertReceived(
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError,
        ) => (
            Reason::AuthenticationFailed,
            "refuses the certificate of this client",
            "put a certificate that the server's ssl_ca_file trusts, and its key, into keys tls.crt and tls.key of the \
             Secret of spec.database.connection.secretRef"
                .to_owned(),
        ),
        Error::InvalidCertificate(Wrong::NotValidForName | Wrong::NotValidForNameContext { .. }) => (
            Reason::CertificateNotTrusted,
            "has a certificate of a trusted authority, for another name",
            "connect by a name that is in the certificate. If it has none, or none that can be reached, and its \
             authority signs for this server alone, set sslmode=verify-ca"
                .to_owned(),
        ),
        Error::InvalidCertificate(
            Wrong::Expired | Wrong::ExpiredContext { .. } | Wrong::NotValidYet | Wrong::NotValidYetContext { .. },
        ) => (
            Reason::CertificateNotTrusted,
            "has a certificate that is not valid at this time",
            "renew it, or correct the clock that is off".to_owned(),
        ),
        Error::InvalidCertificate(Wrong::UnknownIssuer | Wrong::BadSignature | Wrong::Revoked) => (
            Reason::CertificateNotTrusted,
            "has a certificate that is not trusted",
            "put the authority that signed it into the Secret key of spec.database.connection.caSecretRef".to_owned(),
        ),
        Error::InvalidCertificate(_) => (
            Reason::CertificateNotTrusted,
            "has a certificate that is none of a server by today's rules: X.509 version 3, no authority itself, for \
             servers, signed with SHA-256 or better by a key of RSA with 2048 bits or more, or of an elliptic curve",
            format!(
                "printf 'basicConstraints=CA:FALSE\\nsubjectAltName={}' >ext; openssl x509 -req -in server.csr \
                 -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -sha256 -extfile ext -out server.crt",
                host.alternative_name()
            ),
        ),
        _ => (
            Reason::CertificateNotTrusted,
            "and this client do not agree on TLS",
            "switch on TLS 1.2 or 1.3 in the server".to_owned(),
        ),
    };
    let refusal = match refusal {
        // Its name alone, not that of what wraps it.
        Error::InvalidCertificate(Wrong::Other(kind)) => kind.to_string(),
        other => other.to_string(),
    };
    Failure::new(reason, format!("{host} {what}: {refusal}; next: {next}"))
}

/// The text of the innermost cause.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Whether the network failed. The exchange of passwords reports what does not fit as the other kinds.
fn is_of_the_network(error: &IoError) -> bool {
    !matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::InvalidData | ErrorKind::Other)
}

/// A connector that knows whether it was asked for a handshake: it is once the server has agreed to TLS.
#[derive(Clone)]
pub(super) struct ObservedTls<T> {
    connector: T,
    offered: Arc<AtomicBool>,
}

impl<T> ObservedTls<T> {
    pub(super) fn new(connector: T) -> Self {
        Self { connector, offered: Arc::default() }
    }

    pub(super) fn state(&self) -> TlsState {
        if self.offered.load(Ordering::SeqCst) { TlsState::Offered } else { TlsState::NotOffered }
    }
}

impl<S, T: MakeTlsConnect<S>> MakeTlsConnect<S> for ObservedTls<T> {
    type Stream = T::Stream;
    type TlsConnect = ObservedTls<T::TlsConnect>;
    type Error = T::Error;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Self::TlsConnect, Self::Error> {
        let connector = self.connector.make_tls_connect(domain)?;
        Ok(ObservedTls { connector, offered: self.offered.clone() })
    }
}

impl<S, T: TlsConnect<S>> TlsConnect<S> for ObservedTls<T> {
    type Stream = T::Stream;
    type Error = T::Error;
    type Future = T::Future;

    fn connect(self, stream: S) -> Self::Future {
        self.offered.store(true, Ordering::SeqCst);
        self.connector.connect(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case::full(&["full"], true)]
    #[case::both_full(&["full", "full"], true)]
    #[case::the_other_is_down(&["full", "down"], false)]
    #[case::the_other_is_a_standby(&["full", "standby"], true)]
    #[case::standbys(&["standby", "standby"], false)]
    fn no_connection_is_left_if_no_host_has_one(#[case] hosts: &[&str], #[case] expected: bool) {
        let refusals = hosts.iter().map(|state| ConnectError {
            none_left: *state == "full",
            standby: *state == "standby",
            ..Failure::new(Reason::HostUnreachable, *state).into()
        });
        assert_eq!(ConnectError::of_all(refusals.collect()).none_left, expected);
    }
}
