//! The Secret with the connection, in the forms in which operators for PostgreSQL and people make it.

use std::{io::ErrorKind, path::PathBuf};

use super::{
    connection::Target,
    server_tls::{ClientPem, Pem},
    target::Parts,
};
use crate::{
    api::{Connection, Reason, mounts},
    runner::Failure,
};

/// Keys with a URL, in this order.
const URL_KEYS: [&str; 2] = ["url", "uri"];
/// How many keys are named that are of no use.
const MAX_NAMED_KEYS: usize = 20;

/// A mounted Secret.
pub(in crate::runner) struct ConnectionSecret<'a> {
    /// Where each key is a file.
    folder: PathBuf,
    namespace: &'a str,
    connection: &'a Connection,
}

impl<'a> ConnectionSecret<'a> {
    pub(in crate::runner) fn new(folder: PathBuf, namespace: &'a str, connection: &'a Connection) -> Self {
        Self { folder, namespace, connection }
    }

    /// What leads to the database `database` of the spec, and the key that names another one if it does not.
    ///
    /// # Errors
    /// `SecretKeyMissing`, and those of [`Target::of_url`].
    pub(in crate::runner) fn target(
        &self,
        database: &str,
        authorities: Option<String>,
    ) -> Result<(Target, &'static str), Failure> {
        let pem = Pem { authorities, client: self.client()? };
        for key in URL_KEYS {
            if let Some(url) = self.value(key)? {
                return Ok((Target::of_url(&url, self.connection.into(), &pem)?, key));
            }
        }
        let [user, password, host, port, name] =
            ["username", "password", "host", "port", "dbname"].map(|key| self.value(key));
        let (user, password, host, port, name) = (user?, password?, host?, port?, name?);
        let missing: Vec<&str> = [
            ("username", user.is_none()),
            ("password", password.is_none() && pem.client.is_none()),
            ("host", host.is_none() && self.connection.host.is_none()),
        ]
        .iter()
        .filter_map(|(key, missing)| missing.then_some(*key))
        .collect();
        let (Some(user), []) = (&user, missing.as_slice()) else { return Err(self.incomplete(&missing)?) };
        let parts = Parts {
            user: user.trim(),
            password: password.as_deref().map(|text| text.trim_end_matches(['\r', '\n'])),
            host: host.as_deref().unwrap_or_default().trim(),
            port: port.as_deref().map(str::trim),
            database: name.as_deref().map_or(database, str::trim),
        };
        Ok((Target::of_parts(parts, self.connection.into(), &pem)?, "dbname"))
    }

    /// With which the role authenticates itself: of the first pair of keys of which there is one.
    ///
    /// # Errors
    /// `SecretKeyMissing` if there is only one of a pair.
    pub(in crate::runner) fn client(&self) -> Result<Option<ClientPem>, Failure> {
        for pair in mounts::CLIENT_CERTIFICATE_KEYS {
            match (self.value(pair[0])?, self.value(pair[1])?) {
                (None, None) => {}
                (Some(certificate), Some(key)) => {
                    return Ok(Some(ClientPem { certificate, key, files: pair.map(|key| self.folder.join(key)) }));
                }
                (certificate, _) => {
                    let [there, missing] = if certificate.is_some() { pair } else { [pair[1], pair[0]] };
                    let message = format!(
                        "Secret {}/{} has key {there} and no key {missing}; next: add it, or remove {there}",
                        self.namespace, self.connection.secret_ref.name
                    );
                    return Err(Failure::new(Reason::SecretKeyMissing, message));
                }
            }
        }
        Ok(None)
    }

    /// `None` if it is missing or empty.
    fn value(&self, key: &str) -> Result<Option<String>, Failure> {
        match std::fs::read_to_string(self.folder.join(key)) {
            Ok(text) => Ok(Some(text).filter(|text| !text.trim().is_empty())),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(self.unreadable(&format!("key {key}"), &error)),
        }
    }

    fn unreadable(&self, what: &str, error: &std::io::Error) -> Failure {
        let (namespace, name) = (self.namespace, &self.connection.secret_ref.name);
        Failure::new(Reason::SecretKeyMissing, format!("{what} of Secret {namespace}/{name} cannot be read: {error}"))
    }

    fn keys(&self) -> Result<Vec<String>, Failure> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
            Err(error) => return Err(self.unreadable("the keys", &error)),
        };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        // The kubelet's own: `..data` and what it points to.
        let mut names: Vec<String> = names.filter(|name| !name.starts_with("..")).collect();
        names.sort();
        Ok(names)
    }

    /// What no form is complete without, next to the keys that are there.
    fn incomplete(&self, missing: &[&str]) -> Result<Failure, Failure> {
        let (namespace, name) = (self.namespace, &self.connection.secret_ref.name);
        let mut keys = self.keys()?;
        let (more, there) = (keys.len().saturating_sub(MAX_NAMED_KEYS), keys.len());
        keys.truncate(MAX_NAMED_KEYS);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let url = "postgresql://ROLE:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full";
        let (found, next) = match missing {
            _ if there == 0 => (
                "it is missing, or has no key".to_owned(),
                format!("kubectl -n {namespace} create secret generic {name} --from-literal=url='{url}'"),
            ),
            ["host"] => (
                format!("it has {}{more}", keys.join(", ")),
                "set spec.database.connection.host to the Service of the server, NAME.NAMESPACE:5432".to_owned(),
            ),
            _ => (
                format!("it has {}{more}", keys.join(", ")),
                "set spec.database.connection.secretRef.key to the key with the URL, or add the missing keys"
                    .to_owned(),
            ),
        };
        Ok(Failure::new(
            Reason::SecretKeyMissing,
            format!(
                "Secret {namespace}/{name} has neither url nor uri, and no {}: {found}; next: {next}",
                missing.join(", no ")
            ),
        ))
    }
}
