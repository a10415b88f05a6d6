//! Paths at which a runner's pod finds what the migration's spec names. The job builder writes them, the runner reads
//! them.
//!
//! Each mount is optional: a missing Secret or key leads to a message of the runner instead of a pod that never starts.

/// Folder of all mounts.
pub const ROOT: &str = "/etc/credit-migration";
/// Folder with the Secret of the connection, or with what of it is used, below [`ROOT`].
pub const DATABASE: &str = "database";
/// Keys of that Secret with the certificate of the role and its private key: the first pair that is there is used.
pub const CLIENT_CERTIFICATE_KEYS: [[&str; 2]; 2] = [["tls.crt", "tls.key"], ["sslcert", "sslkey"]];
/// Connection URL, below [`ROOT`]; in the Secret's own key, unless the spec names another one.
pub const DATABASE_URL: &str = "database/url";
/// PEM certificates of the authorities to trust for the database, below [`ROOT`].
pub const DATABASE_CA: &str = "database-ca/ca.crt";
/// Folder with the Secret of the connection to the server of the copy, below [`ROOT`].
pub const COPY: &str = "copy";
/// PEM certificates of the authorities to trust for that server, below [`ROOT`].
pub const COPY_CA: &str = "copy-ca/ca.crt";
/// Access key of the store, below [`ROOT`].
pub const STORE_ACCESS_KEY_ID: &str = "store/accessKeyId";
/// Secret key of the store, below [`ROOT`].
pub const STORE_SECRET_ACCESS_KEY: &str = "store/secretAccessKey";
/// PEM certificates of the authorities to trust for the store, below [`ROOT`]; may be absent.
pub const STORE_CA: &str = "store/ca.crt";
/// Up SQL, below [`ROOT`].
pub const UP_SQL: &str = "sql/up.sql";
/// Down SQL, below [`ROOT`].
pub const DOWN_SQL: &str = "sql/down.sql";
/// Folder with a folder for each further Secret that a task needs, below [`ROOT`]: see [`secret`].
pub const SECRETS: &str = "secrets";
/// Folder with the templates of notices, one file per key, below [`ROOT`]; may be absent.
pub const TEMPLATES: &str = "templates";

/// File of a key of a further Secret, below [`ROOT`].
pub fn secret(name: &str, key: &str) -> String {
    format!("{SECRETS}/{name}/{key}")
}

/// Environment variable with the name of the `MigrationRun`.
pub const ENV_RUN: &str = "MIGRATION_RUN";
/// Environment variable with its namespace.
pub const ENV_NAMESPACE: &str = "MIGRATION_NAMESPACE";
/// Environment variable with the pod's name.
pub const ENV_POD: &str = "POD_NAME";
/// Environment variable that replaces [`ROOT`], for tests outside of a pod.
pub const ENV_ROOT: &str = "CREDIT_MIGRATION_ROOT";
