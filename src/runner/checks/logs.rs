//! Lines in the logs of a workload's pods.
//!
//! # Contract
//! - Each line is counted once: by the time that the kubelet gave it, and by how many lines of that time were counted.
//! - Lines older than the source are not counted: before it, writes were blocked, and the application said so.
//! - What was read when a measurement failed, of another pod's log, is part of the next one that succeeds.
//! - The pods are the Deployment's own, by their owners: another program's may have the same labels.
//! - A line of a container that ended is counted if its pod is still there. No line gets into a message.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use futures::{AsyncBufRead, AsyncBufReadExt};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use kube::{
    Api, Client,
    api::{ListParams, LogParams},
    core::Selector,
};
use regex::bytes::Regex;

use super::evaluator::{Measurement, Value};
use crate::{
    api::{LogsCheck, Time, WorkloadRef},
    runner::clients::kubernetes,
    shared::deployment,
};

/// Longest time for all logs of one measurement.
const LOGS_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a line that are read; the rest is skipped.
const MAX_LINE_BYTES: usize = 64 << 10;
/// Annotation with the container that is meant when none is named.
const DEFAULT_CONTAINER_ANNOTATION: &str = "kubectl.kubernetes.io/default-container";

/// How far the log of one container was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    /// Time of the last counted line.
    last: Time,
    /// Lines of that time that were counted.
    same: u64,
    /// Restarts of the container so far.
    restarts: i32,
}

/// Lines that were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lines {
    all: u64,
    matching: u64,
}

/// Reads one log after a position: what the position has counted is skipped.
struct Counting {
    from: Position,
    skip: u64,
    to: Position,
    lines: Lines,
}

impl Counting {
    fn after(from: Position) -> Self {
        Self { from, skip: from.same, to: from, lines: Lines::default() }
    }

    /// Takes a line with the time before it. What has no time is no line of the application.
    fn take(&mut self, line: &[u8], pattern: &Regex) {
        let Some((at, text)) = timed(line) else { return };
        if at < self.from.last {
            return;
        }
        if at == self.from.last && self.skip > 0 {
            self.skip -= 1;
            return;
        }
        self.lines.all += 1;
        self.lines.matching += u64::from(pattern.is_match(text));
        // Standard output and error are not quite in order: the position never decreases.
        if at > self.to.last {
            (self.to.last, self.to.same) = (at, 1);
        } else if at == self.to.last {
            self.to.same += 1;
        }
    }
}

/// Time and text of a line as the API server gives it: `2026-01-02T03:04:05.000000006Z text`.
fn timed(line: &[u8]) -> Option<(Time, &[u8])> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    // An empty line may be its time alone.
    let end = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
    let (at, rest) = line.split_at(end);
    let at = std::str::from_utf8(at).ok()?.parse().ok()?;
    Some((at, rest.get(1..).unwrap_or_default()))
}

/// Whether a measurement found a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Collected {
    /// At least one container has a log, which may have no new line.
    SomeLog,
    /// No container has started.
    NoLog,
}

/// The positions in all containers.
pub struct LogsSource {
    check: LogsCheck,
    namespace: String,
    service_account: String,
    counted_from: Time,
    positions: HashMap<(String, String), Position>,
    /// Lines up to the positions that no measurement has reported.
    unreported: Lines,
    first: bool,
    client: Option<Client>,
}

impl LogsSource {
    /// Counts from `counted_from` on. `service_account` is who asks, for messages.
    pub fn new(check: &LogsCheck, namespace: &str, service_account: &str, counted_from: Time) -> Self {
        Self {
            check: check.clone(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            counted_from,
            positions: HashMap::new(),
            unreported: Lines::default(),
            first: true,
            client: None,
        }
    }

    /// Lines that match since the last measurement; the samples are all lines.
    pub async fn measure(&mut self) -> Measurement {
        let lines = match tokio::time::timeout(LOGS_TIMEOUT, self.collect()).await {
            Ok(Ok(Collected::NoLog)) if self.unreported.all == 0 => {
                return Measurement::NoData(
                    format!("Deployment {} has no pod that has started", self.check.workload.name).into(),
                );
            }
            Ok(Ok(Collected::NoLog | Collected::SomeLog)) => std::mem::take(&mut self.unreported),
            Ok(Err(detail)) => return Measurement::Error(detail.into()),
            Err(_) => {
                return Measurement::Error(
                    format!("the logs were not read to their end within {} s", LOGS_TIMEOUT.as_secs()).into(),
                );
            }
        };
        if std::mem::take(&mut self.first) {
            return Measurement::NoData("the first measurement: lines are counted from here on".into());
        }
        let samples = f64::from(u32::try_from(lines.all).unwrap_or(u32::MAX));
        Measurement::Value { value: Value::Number(lines.matching.to_string()), samples: Some(samples) }
    }

    /// Adds to the unreported lines, with the positions pod by pod.
    ///
    /// # Errors
    /// What was refused or broke off, and the next command.
    async fn collect(&mut self) -> Result<Collected, String> {
        let pattern = Regex::new(&self.check.pattern).map_err(|e| format!("pattern: {e}"))?;
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.client.insert(kubernetes::client().await.map_err(|e| e.message)?).clone(),
        };
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        let list = self.pods(&client, &pods).await?;
        let mut collected = Collected::NoLog;
        let mut present = Vec::new();
        for pod in &list {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let Some(container) = container(pod, self.check.container.as_deref())? else { continue };
            let restarts = restarts(pod, &container);
            let key = (name, container);
            let known = self.positions.get(&key).copied();
            let start = known.unwrap_or(Position { last: self.counted_from, same: 0, restarts });
            let mut position = start;
            let (mut read, mut lines) = (false, Lines::default());
            // What a container said before it ended is in the log of its last instance.
            let instances: &[bool] = if restarts > start.restarts { &[true, false] } else { &[false] };
            for previous in instances {
                let Some(counted) = self.read(&pods, &key, position, *previous, &pattern).await? else { continue };
                read = true;
                position = counted.to;
                lines.all += counted.lines.all;
                lines.matching += counted.lines.matching;
            }
            if read {
                // Both or neither: the next pod's log may fail, or the time-out may pass.
                self.positions.insert(key.clone(), Position { restarts, ..position });
                self.unreported.all += lines.all;
                self.unreported.matching += lines.matching;
                collected = Collected::SomeLog;
            }
            present.push(key);
        }
        self.positions.retain(|key, _| present.contains(key));
        Ok(collected)
    }

    async fn pods(&self, client: &Client, pods: &Api<Pod>) -> Result<Vec<Pod>, String> {
        let WorkloadRef { name, .. } = &self.check.workload;
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), &self.namespace);
        let deployment = deployments.get(name).await.map_err(|e| self.refused(&format!("Deployment {name}"), &e))?;
        let selector = deployment.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
        let selector = Selector::try_from(selector).map_err(|e| format!("selector of Deployment {name}: {e}"))?;
        let list = pods.list(&ListParams::default().labels_from(&selector)).await;
        let mut pods = list.map_err(|e| self.refused(&format!("pods of Deployment {name}"), &e))?.items;
        let sets = self.replica_sets(client, &pods).await?;
        // Another program's pods may have the same labels.
        pods.retain(|pod| !deployment::is_foreign(pod, &deployment, &sets));
        Ok(pods)
    }

    /// The ReplicaSets of these pods, as far as they exist.
    async fn replica_sets(&self, client: &Client, pods: &[Pod]) -> Result<Vec<ReplicaSet>, String> {
        let api: Api<ReplicaSet> = Api::namespaced(client.clone(), &self.namespace);
        let names: BTreeSet<&str> = pods.iter().filter_map(deployment::replica_set_of).map(|(name, _)| name).collect();
        let mut sets = Vec::new();
        for name in names {
            sets.extend(api.get_opt(name).await.map_err(|e| self.refused(&format!("ReplicaSet {name}"), &e))?);
        }
        Ok(sets)
    }

    /// The lines of one container after a position. `None` if it has no log (yet, or any more).
    async fn read(
        &self,
        pods: &Api<Pod>,
        (pod, container): &(String, String),
        from: Position,
        previous: bool,
        pattern: &Regex,
    ) -> Result<Option<Counting>, String> {
        let parameters = LogParams {
            container: Some(container.clone()),
            // The API server takes whole seconds; what is too much is skipped line by line.
            since_time: Some(from.last),
            timestamps: true,
            previous,
            ..LogParams::default()
        };
        let log = match pods.log_stream(pod, &parameters).await {
            Ok(log) => log,
            // A container that waits for its start, a last instance that was cleaned up, a pod that is gone.
            Err(kube::Error::Api(status)) if [400, 404].contains(&status.code) => return Ok(None),
            Err(error) => return Err(self.refused(&format!("log of pod {pod}"), &error)),
        };
        count(log, from, pattern).await.map(Some).map_err(|e| format!("log of pod {pod} broke off: {e}"))
    }

    /// What an answer means, and what to do about it.
    fn refused(&self, what: &str, error: &kube::Error) -> String {
        match error {
            kube::Error::Api(status) if status.code == 403 => denied(what, &self.namespace, &self.service_account),
            kube::Error::Api(status) => format!("{what}: {} ({})", status.message, status.code),
            other => format!("{what}: {other}"),
        }
    }
}

async fn count(log: impl AsyncBufRead, from: Position, pattern: &Regex) -> std::io::Result<Counting> {
    let mut log = std::pin::pin!(log);
    let (mut counting, mut line) = (Counting::after(from), Vec::new());
    loop {
        let chunk = log.fill_buf().await?;
        if chunk.is_empty() {
            break;
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(chunk.len(), |at| at + 1);
        let room = MAX_LINE_BYTES.saturating_sub(line.len());
        line.extend_from_slice(chunk.get(..used.min(room)).unwrap_or_default());
        log.consume_unpin(used);
        if end.is_some() {
            counting.take(&line, pattern);
            line.clear();
        }
    }
    if !line.is_empty() {
        counting.take(&line, pattern);
    }
    Ok(counting)
}

/// That `what` may not be read, and the command that allows it.
fn denied(what: &str, namespace: &str, service_account: &str) -> String {
    format!(
        "{what} may not be read (403); next: kubectl -n {namespace} create rolebinding credit-migration-runner-logs \
            --clusterrole=credit-migration-runner-logs --serviceaccount={namespace}:{service_account}"
    )
}

/// The container that is meant. `None` if the pod has none of that name.
fn container(pod: &Pod, named: Option<&str>) -> Result<Option<String>, String> {
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let annotated =
        pod.metadata.annotations.as_ref().and_then(|all| all.get(DEFAULT_CONTAINER_ANNOTATION)).map(String::as_str);
    match (named.or(annotated), containers) {
        (Some(name), all) => Ok(all.iter().find(|c| c.name == name).map(|c| c.name.clone())),
        (None, [one]) => Ok(Some(one.name.clone())),
        (None, all) => {
            let names: Vec<&str> = all.iter().map(|c| c.name.as_str()).collect();
            Err(format!(
                "the pods have {} containers; next: set logs.container to one of {}",
                all.len(),
                names.join(", ")
            ))
        }
    }
}

fn restarts(pod: &Pod, container: &str) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    statuses.iter().find(|status| status.name == container).map_or(0, |status| status.restart_count)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    };

    use axum::http::StatusCode;
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn position(last: &str, same: u64) -> Position {
        Position { last: last.parse().unwrap(), same, restarts: 0 }
    }

    fn counted(log: &str, from: Position) -> Counting {
        let pattern = Regex::new(r"\b(ERROR|FATAL|PANIC)\b").unwrap();
        futures::executor::block_on(count(log.as_bytes(), from, &pattern)).unwrap()
    }

    const LOG: &str = "2026-01-02T03:04:05.000000001Z INFO start
2026-01-02T03:04:05.000000002Z ERROR first
2026-01-02T03:04:05.000000002Z ERROR second
unable to retrieve container logs
2026-01-02T03:04:06Z TERROR is no error
2026-01-02T03:04:07Z
2026-01-02T03:04:08Z PANIC without line break";

    #[rstest]
    #[case::all("2026-01-02T03:04:00Z", 0, 6, 3)]
    #[case::after_the_first("2026-01-02T03:04:05.000000001Z", 1, 5, 3)]
    #[case::between_lines_of_one_time("2026-01-02T03:04:05.000000002Z", 1, 4, 2)]
    #[case::nothing_more("2026-01-02T03:04:08Z", 1, 0, 0)]
    fn only_what_is_new(#[case] last: &str, #[case] same: u64, #[case] all: u64, #[case] matching: u64) {
        assert_eq!(counted(LOG, position(last, same)).lines, Lines { all, matching });
    }

    #[test]
    fn each_line_once_however_the_log_grows() {
        let mut at = position("2026-01-02T03:04:00Z", 0);
        let mut lines = Lines::default();
        let ends: Vec<usize> = LOG.match_indices('\n').map(|(n, _)| n + 1).chain([LOG.len(), LOG.len()]).collect();
        for end in ends {
            // The API server answers from the whole second on: what is known comes again.
            let counted = counted(&LOG[..end], at);
            at = counted.to;
            lines.all += counted.lines.all;
            lines.matching += counted.lines.matching;
        }
        assert_eq!(lines, Lines { all: 6, matching: 3 });
        assert_eq!(at, position("2026-01-02T03:04:08Z", 1));
    }

    #[test]
    fn only_the_start_of_an_endless_line_is_read() {
        let long = "x".repeat(200_000);
        let log = format!(
            "2026-01-02T03:04:06Z ERROR {long} ERROR\n2026-01-02T03:04:07Z {long} ERROR\n2026-01-02T03:04:08Z ERROR\n"
        );
        let counted = counted(&log, position("2026-01-02T03:04:00Z", 0));
        assert_eq!((counted.lines, counted.to), (Lines { all: 3, matching: 2 }, position("2026-01-02T03:04:08Z", 1)));
    }

    /// An API server with a Deployment of two pods; the log of the second cannot be read while `fails` says so.
    async fn api_server(logs: Arc<Mutex<[String; 2]>>, fails: Arc<AtomicBool>) -> Client {
        let handle = move |uri: axum::http::Uri| async move {
            let path = uri.path();
            let owned = |kind: &str, uid: &str| {
                let owner = json!({"apiVersion": "apps/v1", "kind": kind, "name": uid, "uid": uid, "controller": true});
                json!([owner])
            };
            let pod = |name: &str, set: &str| {
                let metadata = json!({"name": name, "ownerReferences": owned("ReplicaSet", set)});
                json!({"metadata": metadata, "spec": {"containers": [{"name": "app"}]}})
            };
            let set = |uid: &str, of: &str| {
                let metadata = json!({"name": uid, "uid": uid, "ownerReferences": owned("Deployment", of)});
                json!({"metadata": metadata, "spec": {"selector": {}}}).to_string()
            };
            if path.ends_with("/b/log") && fails.load(Ordering::SeqCst) {
                return (StatusCode::INTERNAL_SERVER_ERROR, "{}".to_owned());
            }
            let logs = logs.lock().unwrap().clone();
            let body = match path {
                "/apis/apps/v1/namespaces/shop/deployments/shop" => {
                    let spec = json!({"selector": {"matchLabels": {"app": "shop"}}, "template": {}});
                    json!({"metadata": {"name": "shop", "uid": "shop"}, "spec": spec}).to_string()
                }
                // Those of another Deployment, and of none, have the same labels. Their logs are not read.
                "/api/v1/namespaces/shop/pods" => {
                    let bare = json!({"metadata": {"name": "bare"}, "spec": {"containers": [{"name": "app"}]}});
                    let items = [pod("a", "old"), pod("b", "gone"), pod("canary", "canary"), bare];
                    json!({"metadata": {}, "items": items}).to_string()
                }
                "/apis/apps/v1/namespaces/shop/replicasets/old" => set("old", "shop"),
                "/apis/apps/v1/namespaces/shop/replicasets/canary" => set("canary", "shop-canary"),
                "/apis/apps/v1/namespaces/shop/replicasets/gone" => {
                    let status = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"});
                    return (StatusCode::NOT_FOUND, status.to_string());
                }
                "/api/v1/namespaces/shop/pods/a/log" => logs[0].clone(),
                "/api/v1/namespaces/shop/pods/b/log" => logs[1].clone(),
                other => panic!("{other}"),
            };
            (StatusCode::OK, body)
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(handle)).await.unwrap() });
        let mut config = kube::Config::new(uri);
        config.default_retry = false;
        Client::try_from(config).unwrap()
    }

    #[tokio::test]
    async fn lines_of_a_failed_measurement_are_reported_by_the_next() {
        let check: LogsCheck =
            serde_json::from_value(json!({"workload": {"kind": "Deployment", "name": "shop"}, "pattern": "ERROR"}))
                .unwrap();
        let (lines, fails) = (Arc::new(Mutex::new([(); 2].map(|()| String::new()))), Arc::new(AtomicBool::new(false)));
        let mut logs = LogsSource::new(&check, "shop", "m-runner", "2026-01-02T03:00:00Z".parse().unwrap());
        logs.client = Some(api_server(lines.clone(), fails.clone()).await);
        assert!(
            matches!(logs.measure().await, Measurement::NoData(detail) if detail.text.contains("first measurement"))
        );

        let add = |pod: usize, second: u32| {
            lines.lock().unwrap()[pod]
                .push_str(&format!("2026-01-02T03:04:{second:02}Z ERROR\n2026-01-02T03:04:{second:02}Z fine\n"));
        };
        let value = |matching: &str, all: f64| Measurement::Value {
            value: Value::Number(matching.to_owned()),
            samples: Some(all),
        };
        add(0, 1);
        add(1, 1);
        fails.store(true, Ordering::SeqCst);
        assert!(matches!(logs.measure().await, Measurement::Error(detail) if detail.text.contains("log of pod b")));
        add(0, 2);
        assert!(matches!(logs.measure().await, Measurement::Error(_)));
        fails.store(false, Ordering::SeqCst);
        assert_eq!(logs.measure().await, value("3", 6.0), "a's first and second, b's first");
        assert_eq!(logs.measure().await, value("0", 0.0), "each once");
    }

    #[test]
    fn a_line_out_of_order_does_not_bring_others_back() {
        let log = "2026-01-02T03:04:09Z a\n2026-01-02T03:04:08.5Z ERROR b\n";
        let first = counted(log, position("2026-01-02T03:04:08Z", 1));
        assert_eq!((first.lines, first.to), (Lines { all: 2, matching: 1 }, position("2026-01-02T03:04:09Z", 1)));
        assert_eq!(counted(log, first.to).lines, Lines::default());
    }

    #[rstest]
    #[case::named(&["app", "proxy"], None, Some("proxy"), Ok(Some("proxy")))]
    #[case::named_but_not_there(&["app"], None, Some("proxy"), Ok(None))]
    #[case::the_only_one(&["app"], None, None, Ok(Some("app")))]
    #[case::the_default_one(&["proxy", "app"], Some("app"), None, Ok(Some("app")))]
    #[case::unclear(&["proxy", "app"], None, None, Err("the pods have 2 containers; next: set logs.container to one \
        of proxy, app"))]
    fn the_container_that_is_meant(
        #[case] containers: &[&str],
        #[case] annotated: Option<&str>,
        #[case] named: Option<&str>,
        #[case] want: Result<Option<&str>, &str>,
    ) {
        let annotations = annotated.map(|name| json!({DEFAULT_CONTAINER_ANNOTATION: name})).unwrap_or(json!({}));
        let containers: Vec<_> = containers.iter().map(|name| json!({"name": name})).collect();
        let pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers}});
        let found = container(&serde_json::from_value(pod).unwrap(), named);
        assert_eq!(found, want.map(|name| name.map(str::to_owned)).map_err(str::to_owned));
    }

    #[test]
    fn a_denial_names_the_command() {
        let detail = denied("pods of Deployment shop", "shop", "m-runner");
        assert!(
            detail.ends_with(
                "kubectl -n shop create rolebinding credit-migration-runner-logs \
            --clusterrole=credit-migration-runner-logs --serviceaccount=shop:m-runner"
            ),
            "{detail}"
        );
    }
}
