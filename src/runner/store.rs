//! The object store: S3 and what speaks its protocol.
//!
//! Errors are told apart by what mends them: a missing bucket, a refused key, a store that does not answer. Of an
//! answer's body only the error code is repeated: some stores put the access key into the rest.

use std::{error::Error as _, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    BackoffConfig, Certificate, ClientOptions, MultipartUpload, ObjectStoreExt, PutPayload, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path,
};

use super::{Failure, settings::StoreKeys};
use crate::api::{Reason, Store as StoreSpec};

/// Smallest part of a multipart upload.
pub const MIN_PART: u64 = 16 << 20;
/// S3 takes at most 10,000 parts; some are left for a dump that is larger than its database.
const PARTS: u64 = 5_000;

/// How long a task before the window tries again: longer than a restart of a store takes.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Parts of error codes that mean: not with this key. Versity's gateway answers `XAdminUserNotFound`, with status 404.
const DENIALS: &[&str] = &["AccessDenied", "AccessKey", "Signature", "UserNotFound"];

/// One bucket and prefix.
#[derive(Clone)]
pub struct Store {
    client: Arc<AmazonS3>,
    bucket: String,
    prefix: String,
    endpoint: String,
    secret: String,
}

impl Store {
    /// Opens the store of a spec. `patience` is how long a request is retried.
    ///
    /// # Errors
    /// `StoreUnreachable` for a spec or certificate that cannot be used.
    pub fn open(spec: &StoreSpec, keys: &StoreKeys, patience: Duration) -> Result<Self, Failure> {
        let unusable = |what: String| Failure::new(Reason::StoreUnreachable, what);
        let (bucket, prefix) = location(&spec.url)
            .ok_or_else(|| unusable(format!("spec.backup.store.url {:?} must be s3://BUCKET/PREFIX/", spec.url)))?;
        let mut options = ClientOptions::new()
            .with_allow_http(spec.endpoint.as_deref().is_some_and(|e| e.starts_with("http://")))
            .with_connect_timeout(Duration::from_secs(5))
            // A part of a large dump may take long on a slow line; silence may not.
            .with_timeout(Duration::from_secs(600))
            .with_read_timeout(Duration::from_secs(30));
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
            retry_timeout: patience,
        };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&bucket)
            .with_region(&spec.region)
            .with_access_key_id(&keys.access_key_id)
            .with_secret_access_key(&keys.secret_access_key)
            .with_client_options(options)
            .with_retry(retry);
        if let Some(endpoint) = &spec.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
        }
        let client =
            builder.build().map_err(|e| unusable(format!("spec.backup.store cannot be used: {}", root_cause(&e))))?;
        Ok(Self {
            client: Arc::new(client),
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
        self.client
            .put(&path, PutPayload::from(data))
            .await
            .map(|_| ())
            .map_err(|e| self.failure("writing", object, &e))
    }

    /// Removes an object.
    ///
    /// # Errors
    /// `BucketMissing`, `BucketDenied`, `StoreUnreachable`.
    pub async fn delete(&self, object: &str) -> Result<(), Failure> {
        let path = self.path(object)?;
        self.client.delete(&path).await.map_err(|e| self.failure("deleting", object, &e))
    }

    /// Reads an object as a stream of chunks.
    ///
    /// # Errors
    /// `BackupUnreadable` if it is not there; `BucketDenied`, `StoreUnreachable`, also in mid-stream.
    pub async fn get(&self, object: &str) -> Result<BoxStream<'static, Result<bytes::Bytes, Failure>>, Failure> {
        let path = self.path(object)?;
        let answer = self.client.get(&path).await.map_err(|e| self.failure("reading", object, &e))?;
        let (store, name) = (self.clone(), object.to_owned());
        Ok(answer.into_stream().map_err(move |e| store.failure("reading", &name, &e)).boxed())
    }

    /// Begins a multipart upload for something of about `expected` bytes.
    ///
    /// # Errors
    /// `BucketMissing`, `BucketDenied`, `StoreUnreachable`.
    pub async fn upload(&self, object: &str, expected: u64) -> Result<Upload, Failure> {
        let path = self.path(object)?;
        let upload = self.client.put_multipart(&path).await.map_err(|e| self.failure("writing", object, &e))?;
        // All parts have one size: some stores insist on it.
        let part = usize::try_from(MIN_PART.max(expected / PARTS)).unwrap_or(usize::MAX);
        Ok(Upload { upload, store: self.clone(), object: object.to_owned(), part, buffer: Vec::new(), pending: None })
    }

    fn path(&self, object: &str) -> Result<Path, Failure> {
        object
            .strip_prefix(&format!("s3://{}/", self.bucket))
            .and_then(|key| Path::parse(key).ok())
            .ok_or_else(|| Failure::new(Reason::BackupUnreadable, format!("{object} is not in bucket {}", self.bucket)))
    }

    /// What an error of the store means.
    fn failure(&self, doing: &str, object: &str, error: &object_store::Error) -> Failure {
        let text = chain(error);
        let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
        let (bucket, endpoint, secret) = (&self.bucket, &self.endpoint, &self.secret);
        // First: some stores answer 404 to an unknown access key.
        let denied =
            matches!(error, object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. })
                || code.is_some_and(|code| DENIALS.iter().any(|denial| code.contains(denial)));
        if denied {
            let code = code.unwrap_or("no error code");
            let message = format!(
                "{doing} {object}: {endpoint} refused the key of Secret {secret} ({code}); next: allow it s3:PutObject, s3:GetObject, s3:DeleteObject and s3:AbortMultipartUpload on {bucket}, or correct accessKeyId and secretAccessKey"
            );
            return Failure::new(Reason::BucketDenied, message);
        }
        if code == Some("NoSuchBucket") || (doing != "reading" && matches!(error, object_store::Error::NotFound { .. }))
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
            "{doing} {object}: {endpoint} cannot be used: {cause}; next: check spec.backup.store.endpoint and NetworkPolicy, and ca.crt in Secret {secret} if its certificate has a private authority"
        );
        Failure::new(Reason::StoreUnreachable, message)
    }
}

/// A multipart upload. It must be ended by [`Upload::complete`] or [`Upload::abort`]: parts of one that is only dropped
/// stay in the bucket and cost money.
pub struct Upload {
    upload: Box<dyn MultipartUpload>,
    store: Store,
    object: String,
    part: usize,
    buffer: Vec<u8>,
    pending: Option<tokio::task::JoinHandle<object_store::Result<()>>>,
}

impl Upload {
    /// Adds data. At most two parts are in memory: one that is filled, one that is sent.
    ///
    /// # Errors
    /// `BucketMissing`, `BucketDenied`, `StoreUnreachable`.
    pub async fn write(&mut self, mut data: &[u8]) -> Result<(), Failure> {
        while !data.is_empty() {
            let (now, later) = data.split_at(data.len().min(self.part - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            data = later;
            if self.buffer.len() == self.part {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        self.settle().await?;
        if !self.buffer.is_empty() {
            let part = self.upload.put_part(PutPayload::from(std::mem::take(&mut self.buffer)));
            self.pending = Some(tokio::spawn(part));
        }
        Ok(())
    }

    /// Waits for the part that is being sent.
    async fn settle(&mut self) -> Result<(), Failure> {
        let Some(part) = self.pending.take() else { return Ok(()) };
        match part.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.store.failure("writing", &self.object, &error)),
            Err(error) => Err(Failure::new(Reason::Internal, format!("writing {}: {error}", self.object))),
        }
    }

    /// Makes the object appear.
    ///
    /// # Errors
    /// `BucketMissing`, `BucketDenied`, `StoreUnreachable`; the upload is aborted then.
    pub async fn complete(mut self) -> Result<(), Failure> {
        let ended = match self.finish().await {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        self.abort().await;
        Err(ended)
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        self.flush().await?;
        self.settle().await?;
        let ended = self.upload.complete().await;
        ended.map(|_| ()).map_err(|e| self.store.failure("writing", &self.object, &e))
    }

    /// Gives the upload up and removes its parts.
    pub async fn abort(mut self) {
        // A part that is still being sent would arrive after the abort and stay.
        let _ = self.settle().await;
        if let Err(error) = self.upload.abort().await {
            let failure = self.store.failure("aborting", &self.object, &error);
            tracing::warn!(reason = %failure.reason, "parts of an aborted upload may be left: {}", failure.message);
        }
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

/// All causes in one text, for looking up codes; never shown.
fn chain(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
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
