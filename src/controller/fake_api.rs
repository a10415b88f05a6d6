//! An API server in memory, for tests of what the controller writes: objects by their path, resourceVersions, merge
//! patches, dry runs, preconditions, and writes that come between two requests.
//!
//! Called by `controller::tests`. Imports nothing of the project.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    ops::DerefMut,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{self, Poll},
};

use axum::http::{Method, Request, Response, Uri};
use kube::client::Body;
use serde_json::{Value, json};
use tower::Service;

/// Its state is shared by all clones.
#[derive(Clone, Default)]
pub(super) struct FakeApi {
    state: Arc<Mutex<State>>,
}

/// What happens at the next request of a method to a path that ends in a text.
type Hook = Box<dyn FnOnce(&mut State) + Send>;

#[derive(Default)]
pub(super) struct State {
    version: u64,
    objects: BTreeMap<String, Value>,
    writes: Vec<String>,
    dry_runs: Vec<Value>,
    refused: Vec<(Method, &'static str, u16)>,
    denied: Vec<&'static str>,
    hooks: Vec<(Method, &'static str, Hook)>,
}

/// Status of an answer, and its body.
type Answer = (u16, Value);

impl State {
    /// Stores an object under its path, with a new resourceVersion.
    pub(super) fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", self.version).into();
        }
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    /// Another writer changes a label of the object at this path.
    pub(super) fn touch(&mut self, path: &str) {
        let mut object = self.objects.get(path).cloned().expect("the object is there");
        object["metadata"]["labels"]["touched"] = "true".into();
        self.store(path, object);
    }

    /// Forgets which writes there were.
    pub(super) fn forget_writes(&mut self) {
        self.writes.clear();
    }

    fn answer(&mut self, method: &Method, uri: &Uri, body: &Value) -> Answer {
        let path = uri.path().strip_suffix("/status").unwrap_or(uri.path()).to_owned();
        if let Some(i) = self.hooks.iter().position(|(of, end, _)| of == method && path.ends_with(end)) {
            let (_, _, hook) = self.hooks.remove(i);
            hook(self);
        }
        let dry_run = uri.query().unwrap_or_default().split('&').any(|parameter| parameter == "dryRun=All");
        if dry_run {
            self.dry_runs.push(body.clone());
        } else if *method != Method::GET {
            self.writes.push(format!("{method} {}", uri.path()));
        }
        let refused = |(of, end, _): &&(Method, &str, u16)| of == method && path.ends_with(end);
        if let Some((_, _, code)) = self.refused.iter().find(refused) {
            let reason = if *code == 400 { "BadRequest" } else { "Refused" };
            return failure(*code, reason);
        }
        let changes = *method != Method::GET && *body != json!({});
        if changes && self.denied.iter().any(|end| path.ends_with(end)) {
            return failure(400, "BadRequest");
        }
        match *method {
            Method::GET if is_collection(&path) => (200, json!({"metadata": {}, "items": self.list(&path, uri)})),
            Method::POST => self.create(&path, body),
            _ => match self.objects.get(&path).cloned() {
                None => failure(404, "NotFound"),
                Some(found) if dry_run => {
                    let (stored, version) = (self.objects.clone(), self.version);
                    let answer = self.on_object(method, &path, found, body);
                    (self.objects, self.version) = (stored, version);
                    answer
                }
                Some(found) => self.on_object(method, &path, found, body),
            },
        }
    }

    fn list(&self, collection: &str, uri: &Uri) -> Vec<Value> {
        let query = uri.query().unwrap_or_default();
        let selector = query.split('&').find_map(|part| part.strip_prefix("labelSelector=")).unwrap_or_default();
        let selector = selector.replace("%3D", "=").replace("%2F", "/");
        let matches = |object: &Value| match selector.split_once('=') {
            Some((label, value)) => object["metadata"]["labels"][label] == value,
            None => true,
        };
        let of_collection = self.objects.iter().filter(|(path, _)| {
            path.strip_prefix(collection).is_some_and(|name| name.starts_with('/') && !name[1..].contains('/'))
        });
        of_collection.map(|(_, object)| object.clone()).filter(matches).collect()
    }

    fn create(&mut self, collection: &str, body: &Value) -> Answer {
        let path = format!("{collection}/{}", body["metadata"]["name"].as_str().unwrap_or("generated"));
        if self.objects.contains_key(&path) {
            return failure(409, "AlreadyExists");
        }
        (201, self.store(&path, body.clone()))
    }

    fn on_object(&mut self, method: &Method, path: &str, found: Value, body: &Value) -> Answer {
        let version = &found["metadata"]["resourceVersion"];
        let expected = match *method {
            Method::DELETE => &body["preconditions"]["resourceVersion"],
            _ => &body["metadata"]["resourceVersion"],
        };
        if *method != Method::GET && !expected.is_null() && expected != version {
            return failure(409, "Conflict");
        }
        match *method {
            Method::PUT => (200, self.store(path, body.clone())),
            Method::PATCH => {
                let mut merged = found;
                json_patch::merge(&mut merged, body);
                (200, self.store(path, merged))
            }
            Method::DELETE => {
                self.objects.remove(path);
                (200, found)
            }
            _ => (200, found),
        }
    }
}

/// Whether a path names a collection: `.../namespaces/NS/PLURAL`, or a cluster's `.../VERSION/PLURAL`.
fn is_collection(path: &str) -> bool {
    match path.split_once("/namespaces/") {
        Some((_, rest)) => rest.split('/').count() == 2,
        None => false,
    }
}

fn failure(code: u16, reason: &str) -> Answer {
    (code, json!({"kind": "Status", "status": "Failure", "reason": reason, "message": reason, "code": code}))
}

impl FakeApi {
    pub(super) fn state(&self) -> impl DerefMut<Target = State> + '_ {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores an object.
    pub(super) fn store(&self, path: &str, object: Value) -> Value {
        self.state().store(path, object)
    }

    /// The object at this path; `Null` if it is not there.
    pub(super) fn object(&self, path: &str) -> Value {
        self.state().objects.get(path).cloned().unwrap_or_default()
    }

    /// Method and path of each write so far, oldest first, with those that were refused.
    pub(super) fn writes(&self) -> Vec<String> {
        self.state().writes.clone()
    }

    /// Bodies of the writes so far that were to have no effect, oldest first.
    pub(super) fn dry_runs(&self) -> Vec<Value> {
        self.state().dry_runs.clone()
    }

    /// Refuses requests of this method to paths that end so, with a status.
    pub(super) fn refuse(&self, method: Method, end: &'static str, code: u16) {
        self.state().refused.push((method, end, code));
    }

    /// Refuses what changes objects at paths that end so, as a webhook does that denies with 400 `BadRequest`.
    pub(super) fn deny_changes(&self, end: &'static str) {
        self.state().denied.push(end);
    }

    /// Refuses none any more to paths that end so.
    pub(super) fn allow(&self, end: &str) {
        let mut state = self.state();
        state.refused.retain(|(_, refused, _)| *refused != end);
        state.denied.retain(|denied| *denied != end);
    }

    /// Does something right before the next request of this method to a path that ends so.
    pub(super) fn before(&self, method: Method, end: &'static str, hook: impl FnOnce(&mut State) + Send + 'static) {
        self.state().hooks.push((method, end, Box::new(hook)));
    }
}

impl Service<Request<Body>> for FakeApi {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let api = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap_or_default();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let (code, answer) = api.state().answer(&parts.method, &parts.uri, &body);
            let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
            *response.status_mut() = code.try_into().expect("a status of HTTP");
            Ok(response)
        })
    }
}
