//! The object store: S3 and what speaks its protocol.
//!
//! Errors are distinguished by what resolves them: a missing bucket, a refused key, a store that does not answer. Of an
//! answer's body only the error code is repeated: some stores put the access key into the rest.
//!
//! Called by `clients` and `tasks`. Imports `failure` of the runner, `api` and `shared`.

mod answer_code;
mod reading;
mod upload;

use std::{sync::Arc, time::Duration};

use futures::stream::BoxStream;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, ObjectStoreExt, PutPayload, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path,
};

pub use self::upload::Upload;
use self::{
    answer_code::{CodeConnector, StoreError, with_code},
    upload::DEFAULT_MEMORY_BYTES,
};
use crate::{
    api::{Reason, Store},
    runner::Failure,
    shared::quoted::Quoted,
};

/// How long a task before the window retries: longer than a restart of a store takes.
pub const STORE_RETRY_TIMEOUT: Duration = Duration::from_secs(180);

/// What is waited for, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a request is retried.
    pub retry_timeout: Duration,
    /// How long the store may send nothing while something is waited for.
    pub silence: Duration,
    /// How long one part of an upload may take, on a slow line: its bytes go out in silence.
    pub part: Duration,
}

impl Limits {
    /// Those of a task, which differ in how long they retry.
    pub fn new(retry_timeout: Duration) -> Self {
        Self { retry_timeout, silence: Duration::from_secs(30), part: Duration::from_secs(600) }
    }
}

/// What is done with an object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
    Delete,
    /// Gives an upload up.
    Abort,
}

impl Operation {
    /// For messages.
    fn doing(self) -> &'static str {
        match self {
            Self::Read => "reading",
            Self::Write => "writing",
            Self::Delete => "deleting",
            Self::Abort => "aborting",
        }
    }
}

/// Parts of error codes that mean: not with this key. Versity's gateway answers `XAdminUserNotFound`, with status 404.
const DENIED_CODES: &[&str] = &["AccessDenied", "AccessKey", "Signature", "UserNotFound"];

/// Keys of the object store. No `Debug`: it must not get into a log.
pub struct StoreKeys {
    /// Access key.
    pub access_key_id: String,
    /// Secret key.
    pub secret_access_key: String,
    /// PEM certificates of the authorities to trust; those of the system when absent.
    pub ca: Option<String>,
}

/// One bucket and prefix.
#[derive(Clone)]
pub struct StoreClient {
    /// For all but parts: no limit but on silence; otherwise a large object could not be read.
    client: Arc<AmazonS3>,
    /// For parts and the end of an upload: a limit on the whole, since the store sends nothing meanwhile.
    sender: Arc<AmazonS3>,
    bucket: String,
    prefix: String,
    endpoint: String,
    secret: String,
}

impl StoreClient {
    /// Opens the store of a spec. `retry_timeout` is how long a request is retried.
    ///
    /// # Errors
    /// `StoreUnreachable` for a spec or certificate that cannot be used.
    pub fn open(spec: &Store, keys: &StoreKeys, retry_timeout: Duration) -> Result<Self, Failure> {
        Self::within(spec, keys, &Limits::new(retry_timeout))
    }

    /// Opens the store of a spec with other limits.
    ///
    /// # Errors
    /// As [`StoreClient::open`].
    pub fn within(spec: &Store, keys: &StoreKeys, limits: &Limits) -> Result<Self, Failure> {
        let unusable = |what: String| Failure::new(Reason::StoreUnreachable, what);
        let (bucket, prefix) = location(&spec.url).ok_or_else(|| {
            unusable(format!("spec.backup.store.url {} must be s3://BUCKET/PREFIX/", Quoted(&spec.url)))
        })?;
        let mut options = ClientOptions::new()
            .with_allow_http(spec.endpoint.as_deref().is_some_and(|e| e.starts_with("http://")))
            .with_connect_timeout(Duration::from_secs(5));
        if let Some(pem) = &keys.ca {
            let certificates = Certificate::from_pem_bundle(pem.as_bytes()).map_err(|e| {
                unusable(format!("key ca.crt of Secret {} holds no usable PEM: {e}", spec.secret_ref.name))
            })?;
            options = options.with_no_system_certificates(true);
            for certificate in certificates {
                options = options.with_root_certificate(certificate);
            }
        }
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(200),
                max_backoff: Duration::from_secs(10),
                base: 2.,
            },
            max_retries: 10,
            retry_timeout: limits.retry_timeout,
        };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&bucket)
            .with_region(&spec.region)
            .with_access_key_id(&keys.access_key_id)
            .with_secret_access_key(&keys.secret_access_key)
            .with_retry(retry)
            .with_http_connector(CodeConnector);
        if let Some(endpoint) = &spec.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
        }
        let client = |options: ClientOptions| {
            let built = builder.clone().with_client_options(options).build();
            built.map(Arc::new).map_err(|e| unusable(format!("spec.backup.store cannot be used: {}", root_cause(&e))))
        };
        Ok(Self {
            // A limit on the whole would end the reading of a large object, and a rehearsal that builds indexes
            // meanwhile.
            client: client(options.clone().with_timeout_disabled().with_read_timeout(limits.silence))?,
            // Silence is no sign of a failure here: until a part is sent as a whole the store sends nothing.
            sender: client(options.with_timeout(limits.part))?,
            endpoint: spec.endpoint.clone().unwrap_or_else(|| format!("the S3 API of region {}", spec.region)),
            secret: spec.secret_ref.name.clone(),
            bucket,
            prefix,
        })
    }

    /// `s3://bucket/key` of a name below the prefix.
    pub fn object(&self, name: &str) -> String {
        format!("s3://{}/{}{name}", self.bucket, self.prefix)
    }

    /// Writes a small object.
    ///
    /// # Errors
    /// `BucketMissing`, `BucketDenied`, `StoreUnreachable`.
    pub async fn put(&self, object: &str, data: Vec<u8>) -> Result<(), Failure> {
        let path = self.path(object)?;
        let put = with_code(self.client.put(&path, PutPayload::from(data))).await;
        put.map(|_| ()).map_err(|e| self.failure(Operation::Write, object, &e))
    }

    /// Removes an object.
    ///
    /// # Errors
    /// `BucketMissing`, `BucketDenied`, `StoreUnreachable`.
    pub async fn delete(&self, object: &str) -> Result<(), Failure> {
        let path = self.path(object)?;
        with_code(self.client.delete(&path)).await.map_err(|e| self.failure(Operation::Delete, object, &e))
    }

    /// Reads an object as a stream of chunks. A body that breaks off is read on from its last byte.
    ///
    /// # Errors
    /// `BackupUnreadable` if it is not there; `BackupAltered` if it was replaced meanwhile; `BucketDenied`,
    /// `StoreUnreachable`, also in mid-stream.
    pub async fn get(&self, object: &str) -> Result<BoxStream<'static, Result<bytes::Bytes, Failure>>, Failure> {
        Ok(self.get_sized(object).await?.1)
    }

    /// The same, with the bytes of the object.
    ///
    /// # Errors
    /// As [`StoreClient::get`].
    pub async fn get_sized(
        &self,
        object: &str,
    ) -> Result<(u64, BoxStream<'static, Result<bytes::Bytes, Failure>>), Failure> {
        reading::start(self.clone(), object).await
    }

    /// Starts a multipart upload for something of about `expected` bytes.
    ///
    /// # Errors
    /// `BucketMissing`, `BucketDenied`, `StoreUnreachable`.
    pub async fn upload(&self, object: &str, expected: u64) -> Result<Upload, Failure> {
        self.upload_within(object, expected, DEFAULT_MEMORY_BYTES).await
    }

    /// The same with so many bytes of memory for parts that are not sent yet.
    ///
    /// # Errors
    /// As [`StoreClient::upload`].
    pub async fn upload_within(&self, object: &str, expected: u64, memory: u64) -> Result<Upload, Failure> {
        Upload::start(self.clone(), object, expected, memory).await
    }

    fn path(&self, object: &str) -> Result<Path, Failure> {
        object
            .strip_prefix(&format!("s3://{}/", self.bucket))
            .and_then(|key| Path::parse(key).ok())
            .ok_or_else(|| Failure::new(Reason::BackupUnreadable, format!("{object} is not in bucket {}", self.bucket)))
    }

    /// What an error of the store means.
    fn failure(&self, operation: Operation, object: &str, StoreError { error, code }: &StoreError) -> Failure {
        let (doing, code) = (operation.doing(), code.as_deref());
        let (bucket, endpoint, secret) = (&self.bucket, &self.endpoint, &self.secret);
        // First: some stores answer 404 to an unknown access key.
        let denied =
            matches!(error, object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. })
                || code.is_some_and(|code| DENIED_CODES.iter().any(|denial| code.contains(denial)));
        if denied {
            let code = code.unwrap_or("no error code");
            let message = format!(
                "{doing} {object}: {endpoint} refused the key of Secret {secret} ({code}); next: allow it \
                    s3:PutObject, s3:GetObject, s3:DeleteObject and s3:AbortMultipartUpload on {bucket}, or correct \
                    accessKeyId and secretAccessKey"
            );
            return Failure::new(Reason::BucketDenied, message);
        }
        if code == Some("NoSuchBucket")
            || (operation != Operation::Read && matches!(error, object_store::Error::NotFound { .. }))
        {
            let message = format!(
                "{doing} {object}: bucket {bucket} does not exist at {endpoint}; next: aws s3 mb s3://{bucket}"
            );
            return Failure::new(Reason::BucketMissing, message);
        }
        if matches!(error, object_store::Error::NotFound { .. }) {
            return Failure::new(
                Reason::BackupUnreadable,
                format!("{object} does not exist at {endpoint}; next: take the backup again"),
            );
        }
        let cause = code.map_or_else(|| root_cause(error), str::to_owned);
        let message = format!(
            "{doing} {object}: {endpoint} cannot be used: {cause}; next: check spec.backup.store.endpoint and \
                NetworkPolicy, and ca.crt in Secret {secret} if its certificate has a private authority"
        );
        Failure::new(Reason::StoreUnreachable, message)
    }
}

/// Bucket and prefix of `s3://BUCKET/PREFIX/`; the prefix ends with a slash or is empty.
fn location(url: &str) -> Option<(String, String)> {
    let rest = url.strip_prefix("s3://")?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return None;
    }
    let prefix = prefix.trim_matches('/');
    Some((bucket.to_owned(), if prefix.is_empty() { String::new() } else { format!("{prefix}/") }))
}

/// The innermost cause: for a connection that fails it says why; bodies of answers are not in it.
fn root_cause(error: &object_store::Error) -> String {
    let mut innermost: &(dyn std::error::Error + 'static) = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    text.split_once('<').map_or(text.as_str(), |(before, _)| before).chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("s3://b/p/q/", Some(("b", "p/q/")))]
    #[case("s3://b/p", Some(("b", "p/")))]
    #[case("s3://b/", Some(("b", "")))]
    #[case("s3://b", Some(("b", "")))]
    #[case("s3:///p", None)]
    #[case("https://b/p", None)]
    fn locations(#[case] url: &str, #[case] want: Option<(&str, &str)>) {
        assert_eq!(location(url), want.map(|(b, p)| (b.to_owned(), p.to_owned())));
    }
}
