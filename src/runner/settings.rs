//! What the pod has mounted: Secrets and SQL that the migration's spec names.
//!
//! Every mount is optional for Kubernetes, so a missing Secret or key shows here, with the command that fixes it, and
//! not as a pod that never starts.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use super::{
    Failure,
    clients::object_store::StoreKeys,
    database::{connection::Target, connection_secret::ConnectionSecret},
};
use crate::{
    api::{Connection, ConnectionSecretRef, Database, KeyRef, MigrationRunSpec, Reason, SqlSource, mounts, sha256},
    shared::quoted::Quoted,
};

/// Reads below one folder, for one run.
pub struct Settings<'a> {
    root: PathBuf,
    spec: &'a MigrationRunSpec,
    namespace: &'a str,
}

/// Both SQL texts, as the controller saw them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlTexts {
    /// The change.
    pub up: String,
    /// The rollback.
    pub down: String,
}

impl<'a> Settings<'a> {
    /// Settings of a run in a namespace, below `root`.
    pub fn new(root: impl Into<PathBuf>, spec: &'a MigrationRunSpec, namespace: &'a str) -> Self {
        Self { root: root.into(), spec, namespace }
    }

    /// Folder of the further Secrets.
    pub fn secrets(&self) -> PathBuf {
        self.root.join(mounts::SECRETS)
    }

    /// Namespace of the run.
    pub fn namespace(&self) -> &'a str {
        self.namespace
    }

    /// Where to connect.
    ///
    /// # Errors
    /// `SecretKeyMissing`, `ConnectionInvalid`, `CertificateNotTrusted`, and `WrongDatabase` if the Secret names a
    /// database that is not the spec's.
    pub fn target(&self) -> Result<Target, Failure> {
        let Database { name: database, connection, .. } = &self.spec.plan.database;
        let ConnectionSecretRef { name, key } = &connection.secret_ref;
        let (target, found) = self.connect_by(connection, mounts::DATABASE, mounts::DATABASE_CA, database)?;
        if target.database() != database {
            return Err(Failure::new(
                Reason::WrongDatabase,
                format!(
                    "key {} of Secret {}/{name} leads to database {}, spec.database.name is {}; next: correct one of \
                        them",
                    key.as_deref().unwrap_or(found),
                    self.namespace,
                    Quoted(target.database()),
                    Quoted(database)
                ),
            ));
        }
        Ok(target)
    }

    /// Where the rehearsals make their copy, if that is another server.
    ///
    /// # Errors
    /// As [`Settings::target`], for any database.
    pub fn copy_target(&self) -> Result<Option<Target>, Failure> {
        let Some(connection) = &self.spec.plan.rehearsal.connection else { return Ok(None) };
        const FIELD: &str = "spec.rehearsal.connection";
        let read = self.connect_by(connection, mounts::COPY, mounts::COPY_CA, "postgres");
        let (target, _) = read.map_err(|Failure { reason, message }| {
            Failure::new(reason, message.replace("spec.database.connection", FIELD))
        })?;
        Ok(Some(target.of_field(FIELD)))
    }

    /// By a Secret whose keys are files of a folder; `database` is meant where it names none.
    fn connect_by(
        &self,
        connection: &Connection,
        folder: &str,
        ca_file: &str,
        database: &str,
    ) -> Result<(Target, &'static str), Failure> {
        let ConnectionSecretRef { name, key } = &connection.secret_ref;
        let authorities = match &connection.ca_secret_ref {
            Some(reference) => Some(self.secret_file(ca_file, reference)?),
            None => None,
        };
        if let Some(key) = key {
            self.secret(
                &format!("{folder}/url"),
                &KeyRef { name: name.clone(), key: key.clone() },
                "postgresql://ROLE:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full",
            )?;
        }
        ConnectionSecret::new(self.root.join(folder), self.namespace, connection).target(database, authorities)
    }

    /// The file with the authorities to trust for the server of the copy, for programs that read it themselves.
    pub fn copy_ca_file(&self) -> Option<PathBuf> {
        match &self.spec.plan.rehearsal.connection {
            Some(connection) => connection.ca_secret_ref.as_ref().map(|_| self.root.join(mounts::COPY_CA)),
            None => self.database_ca_file(),
        }
    }

    /// The file with the authorities to trust for the database, for programs that read it themselves.
    pub fn database_ca_file(&self) -> Option<PathBuf> {
        self.spec.plan.database.connection.ca_secret_ref.as_ref().map(|_| self.root.join(mounts::DATABASE_CA))
    }

    /// Keys of the object store.
    ///
    /// # Errors
    /// `SecretKeyMissing`.
    pub fn store_keys(&self) -> Result<StoreKeys, Failure> {
        let name = &self.spec.plan.backup.store.secret_ref.name;
        let key = |key: &str| KeyRef { name: name.clone(), key: key.to_owned() };
        let access_key_id = self.secret(mounts::STORE_ACCESS_KEY_ID, &key("accessKeyId"), "ACCESS_KEY_ID")?;
        let secret_access_key =
            self.secret(mounts::STORE_SECRET_ACCESS_KEY, &key("secretAccessKey"), "SECRET_ACCESS_KEY")?;
        let ca = self.read(mounts::STORE_CA)?;
        Ok(StoreKeys {
            access_key_id: access_key_id.trim().to_owned(),
            secret_access_key: secret_access_key.trim().to_owned(),
            ca,
        })
    }

    /// A key of one of the further Secrets that a task needs, `None` if it is not there.
    ///
    /// # Errors
    /// `SecretKeyMissing` if it cannot be read.
    pub fn further(&self, name: &str, key: &str) -> Result<Option<String>, Failure> {
        self.read(&mounts::secret(name, key))
    }

    /// A value of a further Secret: see [`mounts::secret`]. `example` is its value in the command that makes it.
    ///
    /// # Errors
    /// `SecretKeyMissing`.
    pub fn further_secret(&self, reference: &KeyRef, example: &str) -> Result<String, Failure> {
        self.secret(&mounts::secret(&reference.name, &reference.key), reference, example)
    }

    /// The same for a value that is a file of its own, such as PEM.
    ///
    /// # Errors
    /// `SecretKeyMissing`.
    pub fn further_file(&self, reference: &KeyRef) -> Result<String, Failure> {
        self.secret_file(&mounts::secret(&reference.name, &reference.key), reference)
    }

    /// Templates of notices by key; none when their ConfigMap is missing.
    ///
    /// # Errors
    /// `TemplateInvalid` if the mount cannot be read, or a template is no UTF-8.
    pub fn templates(&self) -> Result<BTreeMap<String, String>, Failure> {
        let unreadable = |e: std::io::Error| {
            Failure::new(Reason::TemplateInvalid, format!("the templates' ConfigMap cannot be read: {e}"))
        };
        let entries = match std::fs::read_dir(self.root.join(mounts::TEMPLATES)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(unreadable(error)),
        };
        let mut all = BTreeMap::new();
        for entry in entries {
            let entry = entry.map_err(unreadable)?;
            let key = entry.file_name().to_string_lossy().into_owned();
            // The kubelet's own: `..data` and what it points to.
            if !key.starts_with("..") {
                all.insert(key, std::fs::read_to_string(entry.path()).map_err(unreadable)?);
            }
        }
        Ok(all)
    }

    /// Folder of all mounts.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Both SQL texts.
    ///
    /// # Errors
    /// Those of [`Settings::up_sql`].
    pub fn sql(&self) -> Result<SqlTexts, Failure> {
        Ok(SqlTexts { up: self.up_sql()?, down: self.down_sql()? })
    }

    /// The up SQL.
    ///
    /// # Errors
    /// `SqlChanged` if it is missing or not the text whose digest is in the run's inputs.
    pub fn up_sql(&self) -> Result<String, Failure> {
        self.sql_text(mounts::UP_SQL, &self.spec.plan.migration.up, &self.spec.inputs.up_sha256)
    }

    /// The down SQL.
    ///
    /// # Errors
    /// As of the up SQL.
    pub fn down_sql(&self) -> Result<String, Failure> {
        self.sql_text(mounts::DOWN_SQL, &self.spec.plan.migration.down, &self.spec.inputs.down_sha256)
    }

    fn sql_text(&self, file: &str, source: &SqlSource, expected: &str) -> Result<String, Failure> {
        let KeyRef { name, key } = &source.config_map_key_ref;
        let object = format!("key {key} of ConfigMap {}/{name}", self.namespace);
        let Some(text) = self.read(file)? else {
            return Err(Failure::new(
                Reason::SqlChanged,
                format!(
                    "{object} is missing; next: kubectl -n {ns} create configmap {name} --from-file={key}; if it \
                        exists, kubectl -n {ns} edit configmap {name}",
                    ns = self.namespace
                ),
            ));
        };
        let found = sha256(text.as_bytes());
        // What was rehearsed and approved must be what runs.
        if found != expected {
            return Err(Failure::new(
                Reason::SqlChanged,
                format!(
                    "{object} has {found}, the controller read {expected}; next: keep it unchanged while the \
                        migration is under way"
                ),
            ));
        }
        Ok(text)
    }

    /// A Secret's value, which must not be empty.
    fn secret(&self, file: &str, reference: &KeyRef, example: &str) -> Result<String, Failure> {
        self.required(file, reference, Example::Value(example))
    }

    /// A Secret's value that is a file of its own.
    fn secret_file(&self, file: &str, reference: &KeyRef) -> Result<String, Failure> {
        self.required(file, reference, Example::File)
    }

    fn required(&self, file: &str, KeyRef { name, key }: &KeyRef, example: Example<'_>) -> Result<String, Failure> {
        match self.read(file)? {
            Some(text) if !text.trim().is_empty() => Ok(text),
            found => {
                let what = if found.is_some() { "is empty" } else { "is missing" };
                let next = set_key(self.namespace, name, key, example, found.is_some());
                Err(Failure::new(
                    Reason::SecretKeyMissing,
                    format!("key {key} of Secret {}/{name} {what}; {next}", self.namespace),
                ))
            }
        }
    }

    fn read(&self, file: &str) -> Result<Option<String>, Failure> {
        read(&self.root.join(file))
    }
}

/// The placeholder of a value in a command.
#[derive(Clone, Copy)]
pub(super) enum Example<'a> {
    /// Itself.
    Value(&'a str),
    /// A file.
    File,
}

/// The commands that give a Secret a key: whether there is a Secret without it, or none at all, a pod does not know
/// unless it has read it (`exists`). One that exists is patched: its other keys stay.
pub(super) fn set_key(namespace: &str, name: &str, key: &str, example: Example<'_>, exists: bool) -> String {
    let (option, patch) = match example {
        Example::Value(value) => {
            (format!("--from-literal={key}='{value}'"), format!(r#"'{{"stringData": {{"{key}": "{value}"}}}}'"#))
        }
        Example::File => {
            (format!("--from-file={key}=FILE"), format!(r#""{{\"data\": {{\"{key}\": \"$(base64 -w0 FILE)\"}}}}""#))
        }
    };
    let patch = format!("kubectl -n {namespace} patch secret {name} -p {patch}");
    match exists {
        true => format!("next: {patch}"),
        false => {
            format!("next: kubectl -n {namespace} create secret generic {name} {option}; if it exists, {patch}")
        }
    }
}

fn read(path: &Path) -> Result<Option<String>, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => {
            Err(Failure::new(Reason::SecretKeyMissing, format!("{} cannot be read: {error}", path.display())))
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::unknown(Example::Value("VALUE"), false,
        concat!(
            "next: kubectl -n shop create secret generic db --from-literal=url='VALUE'; if it exists, ",
            r#"kubectl -n shop patch secret db -p '{"stringData": {"url": "VALUE"}}'"#
        ))]
    #[case::empty(
        Example::Value("VALUE"),
        true,
        r#"next: kubectl -n shop patch secret db -p '{"stringData": {"url": "VALUE"}}'"#
    )]
    #[case::a_file(
        Example::File,
        true,
        r#"next: kubectl -n shop patch secret db -p "{\"data\": {\"url\": \"$(base64 -w0 FILE)\"}}""#
    )]
    fn a_key_is_set_whether_the_secret_exists_or_not(
        #[case] example: Example<'_>,
        #[case] exists: bool,
        #[case] want: &str,
    ) {
        assert_eq!(set_key("shop", "db", "url", example, exists), want);
    }
}
