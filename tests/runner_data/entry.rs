//! The program itself, with an API server that fails now and then: what it reports, and how it exits.

use std::{
    future::pending,
    pin::pin,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, Response, StatusCode},
};
use credit_migration::api::{
    MigrationRun, MigrationRunStatus, Reason, RunPhase, Task, WindowCommand, WindowOrder, WindowState, mounts,
};
use serde_json::{Value, json};

use crate::{
    harness::{UP, World},
    notify::Office,
    programs,
};

/// One `MigrationRun`, `None` when deleted.
#[derive(Default)]
struct Server {
    run: Option<MigrationRun>,
    patches: Vec<Value>,
    failures: u32,
    /// Every request is refused: the pod's rights are gone.
    denied: bool,
    /// The namespace is being deleted.
    terminating: bool,
    /// The report of the start hangs. That of the end is answered when the program has given the former up: it could
    /// still be carried out.
    late_start: bool,
    /// Reports of the start that the program waits for.
    starts: u32,
}

type Shared = Arc<Mutex<Server>>;

fn answer(code: StatusCode, body: Value) -> Response<Body> {
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

async fn handle(shared: Shared, request: Request<Body>) -> Response<Body> {
    let patch = request.method() == "PATCH";
    let path = request.uri().path().to_owned();
    let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let late = shared.lock().unwrap().late_start;
    let phase = serde_json::from_slice::<Value>(&body).ok().map(|patch| patch["status"]["phase"].clone());
    if late && phase == Some(json!("Running")) {
        // Dropped here when the program has hung up.
        let _waited_for = Start::new(&shared);
        pending::<()>().await;
    }
    // The program's own end is the deadline.
    while late && phase == Some(json!("Failed")) && shared.lock().unwrap().starts > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    answer_to(&shared, patch, &path, &body)
}

/// A report of the start that the program waits for.
struct Start(Shared);

impl Start {
    fn new(shared: &Shared) -> Self {
        shared.lock().unwrap().starts += 1;
        Self(shared.clone())
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        self.0.lock().unwrap().starts -= 1;
    }
}

fn answer_to(shared: &Shared, patch: bool, path: &str, body: &[u8]) -> Response<Body> {
    let mut server = shared.lock().unwrap();
    let error = |code: u16, reason: &str| {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
            "reason": reason, "message": reason,
        });
        answer(StatusCode::from_u16(code).unwrap(), status)
    };
    if server.failures > 0 {
        server.failures -= 1;
        return error(503, "ServiceUnavailable");
    }
    if server.denied {
        return error(403, "Forbidden");
    }
    if path == "/api/v1/namespaces/shop" {
        let phase = if server.terminating { "Terminating" } else { "Active" };
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}, "status": {"phase": phase}});
        return answer(StatusCode::OK, namespace);
    }
    assert_eq!(path.ends_with("/status"), patch, "{path}");
    let Some(run) = server.run.clone() else { return error(404, "NotFound") };
    if !patch {
        return answer(StatusCode::OK, serde_json::to_value(run).unwrap());
    }
    let patch: Value = serde_json::from_slice(body).unwrap();
    let mut status = serde_json::to_value(run.status.clone().unwrap_or_default()).unwrap();
    json_patch::merge(&mut status, &patch["status"]);
    let run = MigrationRun { status: Some(serde_json::from_value(status).unwrap()), ..run };
    server.patches.push(patch);
    server.run = Some(run.clone());
    answer(StatusCode::OK, serde_json::to_value(run).unwrap())
}

/// Runs the program until it ends; SIGTERM when `term` does.
async fn program(world: &World, shared: &Shared, term: impl Future<Output = ()>) -> Output {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", listener.local_addr().unwrap())}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}],
    });
    world.mount("kubeconfig", &config.to_string());
    let handler = shared.clone();
    let router = Router::new().fallback(move |request| handle(handler.clone(), request));
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let path = format!("{}:{}", programs::CLIENT.display(), std::env::var("PATH").unwrap());
    let child = tokio::process::Command::new(env!("CARGO_BIN_EXE_credit-migration-operator"))
        .arg("runner")
        .env("KUBECONFIG", world.root.join("kubeconfig"))
        .env("PATH", path)
        .env(mounts::ENV_RUN, "r")
        .env(mounts::ENV_NAMESPACE, "shop")
        .env(mounts::ENV_POD, "pod-1")
        .env(mounts::ENV_ROOT, &world.root)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = child.id().unwrap().to_string();
    let mut end = pin!(tokio::time::timeout(Duration::from_secs(120), child.wait_with_output()));
    let ended = tokio::select! {
        ended = &mut end => ended,
        () = term => {
            assert!(std::process::Command::new("kill").arg(pid).status().unwrap().success());
            end.await
        }
    };
    let output = ended.unwrap().unwrap();
    server.abort();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!log.contains("migrator-secret") && !log.contains("key-secret"), "{log}");
    output
}

fn shared(world: &World, task: Task) -> Shared {
    let mut run = MigrationRun::new("r", world.spec.clone());
    run.spec.task = task;
    Arc::new(Mutex::new(Server { run: Some(run), ..Server::default() }))
}

fn status(shared: &Shared) -> MigrationRunStatus {
    shared.lock().unwrap().run.as_ref().unwrap().status.clone().unwrap_or_default()
}

/// Until the run's status is so; the program's own end is the deadline.
async fn until(shared: &Shared, is: impl Fn(&MigrationRunStatus) -> bool) {
    while !is(&status(shared)) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_task_is_reported_through_a_flaky_api_server_and_not_done_twice() {
    let world = World::new().await;
    let shared = shared(&world, Task::Backup);
    shared.lock().unwrap().failures = 3;
    let output = program(&world, &shared, pending()).await;
    assert!(output.status.success(), "{output:?}");
    let reported = status(&shared);
    assert_eq!((reported.phase, reported.reason, reported.pod.as_deref()), (RunPhase::Succeeded, None, Some("pod-1")));
    assert!(
        reported.started_at.is_some()
            && reported.finished_at.is_some()
            && reported.baseline.is_some()
            && reported.backup.is_some()
    );
    assert_eq!(shared.lock().unwrap().patches[0]["status"]["phase"], "Running");

    let (patches, stored) = (shared.lock().unwrap().patches.len(), world.stored().len());
    assert!(program(&world, &shared, pending()).await.status.success());
    assert_eq!((shared.lock().unwrap().patches.len(), world.stored().len()), (patches, stored));
}

#[tokio::test]
async fn a_failure_is_a_report_and_a_deleted_run_an_end() {
    let world = World::new().await;
    world.mount(mounts::DATABASE_URL, &world.url("wrong"));
    let failing = shared(&world, Task::Cleanup);
    assert!(program(&world, &failing, pending()).await.status.success());
    assert_eq!(
        (status(&failing).phase, status(&failing).reason),
        (RunPhase::Failed, Some(Reason::AuthenticationFailed))
    );

    let gone = shared(&world, Task::Cleanup);
    gone.lock().unwrap().run = None;
    assert!(program(&world, &gone, pending()).await.status.success());
}

#[tokio::test]
async fn after_sigterm_it_reports_no_failure() {
    let mut world = World::new().await;
    world.spec.plan.monitoring = serde_json::from_value(json!({
        "duration": "1h", "checks": [{"name": "c", "sql": {"query": "SELECT 1"}, "max": "1", "interval": "1s"}],
    }))
    .unwrap();
    let monitor = shared(&world, Task::Monitor);
    // Not the first in the list: the triggers that are on by default have their own pace.
    let measured_twice =
        |status: &MigrationRunStatus| status.checks.iter().any(|check| check.name == "c" && check.measured >= 2);
    let output = program(&world, &monitor, until(&monitor, measured_twice)).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(status(&monitor).phase, RunPhase::Running);
    assert!(measured_twice(&status(&monitor)));

    world.backed_up().await;
    let window = shared(&world, Task::Window);
    let ready = until(&window, |status| {
        status.phase == RunPhase::Running && status.window.as_ref().is_some_and(|w| w.state == WindowState::Ready)
    });
    let output = program(&world, &window, ready).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!((status(&window).phase, status(&window).reason), (RunPhase::Running, None));
    assert!(status(&window).window.is_some(), "it was ready");
}

/// As in a namespace that is being deleted.
#[tokio::test]
async fn after_sigterm_without_a_run_it_restores_the_old_state() {
    for sign in ["run", "rights", "namespace"] {
        let mut world = World::new().await;
        world.backed_up().await;
        let window = shared(&world, Task::Window);
        let deadline = Some(credit_migration::telemetry::now() + Duration::from_secs(300));
        window.lock().unwrap().run.as_mut().unwrap().spec.window =
            Some(WindowOrder { command: WindowCommand::BlockWrites, deadline });
        let output = program(&world, &window, async {
            until(&window, |status| status.window.as_ref().is_some_and(|w| w.state >= WindowState::Migrated)).await;
            let mut server = window.lock().unwrap();
            match sign {
                "run" => server.run = None,
                "rights" => server.denied = true,
                // Its pods go first: run and rights are still there.
                _ => server.terminating = true,
            }
        })
        .await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(
            world.count("SELECT count(*) FROM credit_migration.write_block WHERE blocked").await,
            0,
            "{output:?}"
        );
        assert_eq!(world.count("SELECT count(*) FROM credit_migration.ledger").await, 2);
    }
}

#[tokio::test]
async fn a_late_report_of_the_start_does_not_overwrite_the_end() {
    let mut world = World::new().await;
    world.spec.inputs.up_sha256 = "sha256:0".to_owned();
    let window = shared(&world, Task::Window);
    window.lock().unwrap().late_start = true;
    assert!(program(&world, &window, pending()).await.status.success());
    assert_eq!((status(&window).phase, status(&window).reason), (RunPhase::Failed, Some(Reason::SqlChanged)));
}

/// A chat that the team reads; its path.
fn chat(office: &Office, world: &mut World) -> String {
    let path = format!("/ok/stuck-{}", world.number);
    world.spec.plan.notifications = serde_json::from_value(json!({
        "channels": [{"name": "chat", "audiences": ["Team"], "slack": {
            "urlSecretRef": {"name": "chat", "key": "url"}, "caSecretRef": {"name": "chat", "key": "ca.crt"}}}],
        "contacts": [{"role": "DBA", "name": "Ada Example", "phone": "+49 30 000000", "duty": "the database"}],
    }))
    .unwrap();
    world.mount(&mounts::secret("chat", "url"), &office.url(&path));
    world.mount(&mounts::secret("chat", "ca.crt"), &office.authority("ca"));
    path
}

/// Gives the window's run orders, all with the same deadline: so long from now on.
fn orders(window: &Shared, limit: Duration) -> impl Fn(WindowCommand) {
    let (window, deadline) = (window.clone(), Some(credit_migration::telemetry::now() + limit));
    move |command| window.lock().unwrap().run.as_mut().unwrap().spec.window = Some(WindowOrder { command, deadline })
}

/// The operator is away, the API server is there: its report is taken at once, and must not end the process before
/// people know.
#[tokio::test]
async fn a_failed_automatic_rollback_notifies_unless_one_is_ordered() {
    for ordered in [false, true] {
        let (office, mut world) = (Office::open().await, World::new().await);
        let path = chat(office, &mut world);
        world.sql(UP, "SELECT 1/0;");
        world.backed_up().await;
        let window = shared(&world, Task::Window);
        let order = orders(&window, Duration::from_secs(6));
        order(WindowCommand::BlockWrites);
        let output = program(&world, &window, async {
            until(&window, |status| status.window.as_ref().is_some_and(|w| w.stuck)).await;
            if ordered {
                order(WindowCommand::Rollback);
            }
            pending::<()>().await;
        })
        .await;
        assert!(output.status.success(), "{output:?}");
        let reported = status(&window);
        assert_eq!((reported.phase, reported.reason), (RunPhase::Failed, Some(Reason::SqlFailed)));
        let window = reported.window.unwrap();
        assert_eq!((window.stuck, window.switch_acknowledged), (true, false));
        let reported = office.web(&path);
        assert_eq!(reported.len(), usize::from(!ordered), "{reported:?}");
    }
}

/// There are no more orders: neither of the operator, nor of an engineer through the API server.
#[tokio::test]
async fn a_stuck_window_without_the_api_server_notifies() {
    let (office, mut world) = (Office::open().await, World::new().await);
    let path = chat(office, &mut world);
    world.backed_up().await;
    let window = shared(&world, Task::Window);
    let order = orders(&window, Duration::from_secs(8));
    order(WindowCommand::BlockWrites);
    let output = program(&world, &window, async {
        until(&window, |status| status.window.as_ref().is_some_and(|w| w.state >= WindowState::Migrated)).await;
        order(WindowCommand::Switch);
        until(&window, |status| status.window.as_ref().is_some_and(|w| w.switch_acknowledged)).await;
        window.lock().unwrap().denied = true;
        office.web_until(&path, 1).await;
        // The window itself goes on as before: it still obeys.
        window.lock().unwrap().denied = false;
        order(WindowCommand::Rollback);
        pending::<()>().await;
    })
    .await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(status(&window).window.unwrap().state, WindowState::RolledBack);
    let reported = office.web(&path);
    assert_eq!(reported.len(), 1, "once: {reported:?}");
    let id = format!("{}-Window-1-stuck.Team.chat", world.spec.migration_uid);
    assert_eq!(reported[0]["headers"]["idempotency-key"], json!(id));
    let text = reported[0]["body"]["text"].as_str().unwrap();
    for words in ["still blocked", "deadline", "rollback simplify-credits --confirm", "+49 30 000000", "emergency.md"] {
        assert!(text.contains(words), "{words} is not in {text}");
    }
    assert!(!String::from_utf8_lossy(&output.stderr).contains(&path));
}
