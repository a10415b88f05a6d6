//! The backup: its object store, its format, and the export of key users.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{NameRef, one};
use crate::api::{BackupFormat, named::named};

/// Object store and format of the backup, and export of key users.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("!has(self.jobs) || self.jobs == 1 || (has(self.format) && self.format == 'Directory')")
        .message("backup.jobs needs format Directory: the one stream of format Custom has one job")
)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    /// The object store.
    pub store: Store,
    /// Users whose rows are also exported, as CSV.
    #[serde(default)]
    pub key_users: KeyUsers,
    /// `Custom`: one object. `Directory`: a folder of objects, one for each large table, which are written, read back
    /// and restored by several jobs at a time.
    // Not serialized while it is the default, as the next two: the digests of existing plans stay valid.
    #[serde(default, skip_serializing_if = "BackupFormat::is_default")]
    pub format: BackupFormat,
    /// Programs that dump, read back or restore at the same time. Each has a connection.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = 16))]
    pub jobs: u32,
    /// How rows are compressed; when absent, as `pg_dump` does by itself: gzip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
}

fn is_one(jobs: &u32) -> bool {
    *jobs == 1
}

/// Compression of a dump, as `pg_dump --compress` has it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[x_kube(
    validation = Rule::new("!has(self.level) || (self.method == 'Gzip' && self.level <= 9) || \
        (self.method == 'Lz4' && self.level <= 12) || self.method == 'Zstd'")
        .message("compression.level must be at most 9 for Gzip, 12 for Lz4 and 22 for Zstd; None has no level")
)]
#[serde(rename_all = "camelCase")]
pub struct Compression {
    /// The method.
    pub method: CompressionMethod,
    /// From the fastest to the smallest; the method's own default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 22))]
    pub level: Option<u32>,
}

/// Method of compression.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CompressionMethod {
    None,
    Gzip,
    Lz4,
    Zstd,
}

named! {
    CompressionMethod: None, Gzip, Lz4, Zstd
}

impl Compression {
    /// `zstd:3`, as the option `--compress` takes it.
    pub fn option(&self) -> String {
        let method = self.method.as_str().to_lowercase();
        self.level.map_or_else(|| method.clone(), |level| format!("{method}:{level}"))
    }
}

/// Users whose rows of the balances table are exported to the bucket: those above either limit.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct KeyUsers {
    /// Balance above which a user is a key user, a decimal text in credits. 1000, the checklist's value.
    #[schemars(regex(pattern = r"^-?[0-9]+(\.[0-9]+)?$"))]
    pub balance_over: String,
    /// Purchased credits above which a user is a key user, a decimal text in credits. 0, the checklist's value.
    #[schemars(regex(pattern = r"^-?[0-9]+(\.[0-9]+)?$"))]
    pub purchased_over: String,
}

impl Default for KeyUsers {
    fn default() -> Self {
        Self { balance_over: "1000".into(), purchased_over: "0".into() }
    }
}

/// An S3-compatible object store.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Store {
    /// Bucket and prefix: `s3://backups/credit-migration/`.
    #[x_kube(
        validation = Rule::new("self.startsWith('s3://') && self.size() > 5")
            .message("url must be s3://BUCKET/PREFIX/, for example s3://backups/credit-migration/")
    )]
    pub url: String,
    /// Address of the S3 API; the provider's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = Rule::new("self.startsWith('https://') || self.startsWith('http://')")
            .message("endpoint must start with https:// (or http:// for a test)")
    )]
    pub endpoint: Option<String>,
    /// Region.
    #[serde(default = "region")]
    pub region: String,
    /// Secret with keys `accessKeyId`, `secretAccessKey` and, for a private authority, `ca.crt`.
    pub secret_ref: NameRef,
}

fn region() -> String {
    "us-east-1".into()
}
