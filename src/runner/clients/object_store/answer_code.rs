//! The error code of a store's answer, read from its body before the crate `object_store` makes a text of it.
//!
//! The crate's errors have the status and the body as text only. [`CodeReader`] is the layer below: it sees each
//! answer. It hands the code up by a variable of the task, which [`with_code`] sets for the requests of one operation.

use std::{cell::RefCell, future::Future, pin::Pin};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
    },
};

tokio::task_local! {
    /// Code of the last answer that is an error.
    static LAST_CODE: RefCell<Option<String>>;
}

/// An error of the store.
#[derive(Debug)]
pub(super) struct StoreError {
    /// What the crate made of it.
    pub(super) error: object_store::Error,
    /// Error code of the last answer, such as `NoSuchBucket`; `None` if there was no answer, or none with a code.
    pub(super) code: Option<String>,
}

/// Result of an operation; an error has the code of the store's last answer.
///
/// # Errors
/// Those of the operation.
pub(super) async fn with_code<T>(operation: impl Future<Output = object_store::Result<T>>) -> Result<T, StoreError> {
    let scoped = async {
        let result = operation.await;
        result.map_err(|error| StoreError { error, code: LAST_CODE.with(RefCell::take) })
    };
    LAST_CODE.scope(RefCell::new(None), scoped).await
}

/// The next chunk of a body: to read on, the crate may send further requests.
pub(super) async fn next_chunk(
    body: &mut BoxStream<'static, object_store::Result<Bytes>>,
) -> Option<Result<Bytes, StoreError>> {
    with_code(async { body.next().await.transpose() }).await.transpose()
}

/// Makes clients that read error codes.
#[derive(Debug)]
pub(super) struct CodeConnector;

impl HttpConnector for CodeConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(CodeReader(ReqwestConnector::default().connect(options)?)))
    }
}

/// A client that reads error codes.
#[derive(Debug)]
struct CodeReader(HttpClient);

impl CodeReader {
    /// Sends a request. The body of an answer that may be an error is read, and handed on as it is.
    async fn execute(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // S3 may answer the end of an upload with status 200 and an error document.
        let is_post = request.method().as_str() == "POST";
        let answer = self.0.execute(request).await?;
        let is_error = answer.status().is_client_error() || answer.status().is_server_error();
        if !is_error && !is_post {
            return Ok(answer);
        }
        let (parts, body) = answer.into_parts();
        let body = match body.bytes().await {
            Ok(body) => body,
            Err(_) if is_error => Bytes::new(),
            // Not retried, as without this layer: the upload may have ended.
            Err(error) => return Err(HttpError::new(HttpErrorKind::Unknown, error)),
        };
        // Outside of an operation there is no one to hand it to.
        let _ = LAST_CODE.try_with(|last| last.replace(code_in(&body)));
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}

impl HttpService for CodeReader {
    // As `async_trait` declares it.
    fn call<'s, 'f>(
        &'s self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(self.execute(request))
    }
}

/// The content of the element `Code` of an error document.
fn code_in(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (code, _) = text.split_once("<Code>")?.1.split_once("</Code>")?;
    Some(code.to_owned())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("<?xml version=\"1.0\"?><Error><Code>NoSuchBucket</Code><Message>m</Message></Error>", Some("NoSuchBucket"))]
    #[case("<Error><Message>m</Message></Error>", None)]
    #[case("<Code>cut", None)]
    #[case("", None)]
    fn the_code_of_an_error_document(#[case] body: &str, #[case] code: Option<&str>) {
        assert_eq!(code_in(body.as_bytes()).as_deref(), code);
    }

    #[tokio::test]
    async fn an_error_has_the_code_of_its_own_operation() {
        let failed = |code: Option<&str>| {
            let code = code.map(str::to_owned);
            with_code(async move {
                LAST_CODE.with(|last| last.replace(code));
                Err::<(), _>(object_store::Error::NotImplemented {
                    operation: String::new(),
                    implementer: String::new(),
                })
            })
        };
        assert_eq!(failed(Some("SlowDown")).await.unwrap_err().code.as_deref(), Some("SlowDown"));
        assert_eq!(failed(None).await.unwrap_err().code, None);
    }
}
