//! The test cluster from inside: clients, components, processes of pods.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    coordination::v1::{Lease, LeaseSpec},
    core::v1::Pod,
};
use kube::{Api, Client, Config, api::DeleteParams, config::AuthInfo};

/// Namespace of the operator's release.
pub const SYSTEM: &str = "credit-migration-system";
const OPERATOR: &str = "credit-migration-operator";

/// Whether this process runs in the test cluster: no other cluster is touched.
pub fn is_here() -> bool {
    std::env::var("KUBECONFIG").is_ok() && state().join(".credit-migration-cluster").exists()
}

/// Folder with the cluster's data.
pub fn state() -> PathBuf {
    PathBuf::from(std::env::var("KUBECONFIG").expect("run by tests/cluster/cluster exec")).parent().unwrap().into()
}

/// A file of that folder.
pub fn state_file(name: &str) -> String {
    fs::read_to_string(state().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A client as cluster administrator, or as the given user.
pub async fn client(user: Option<&str>) -> Client {
    let mut config = Config::infer().await.unwrap();
    config.connect_timeout = Some(Duration::from_secs(30));
    config.read_timeout = Some(Duration::from_secs(60));
    if let Some(user) = user {
        config.headers.push(("impersonate-user".parse().unwrap(), user.parse().unwrap()));
        config.headers.push(("impersonate-group".parse().unwrap(), "system:authenticated".parse().unwrap()));
    }
    Client::try_from(config).unwrap()
}

/// Deletes what is in a namespace that is being deleted; the policy on migrations excepts it.
pub const NAMESPACE_CONTROLLER: &str = "system:serviceaccount:kube-system:namespace-controller";

/// A client with a token, optionally impersonating another user.
pub async fn client_with(token: &str, impersonate: Option<&str>) -> Client {
    let mut config = Config::infer().await.unwrap();
    // Without the certificate of the kubeconfig, which would win over a token.
    config.auth_info = AuthInfo {
        token: Some(token.to_owned().into()),
        impersonate: impersonate.map(str::to_owned),
        ..AuthInfo::default()
    };
    Client::try_from(config).unwrap()
}

/// Longest wait for a state that must come: longer than the kubelet's longest restart delay of a container, 300 s.
pub const MAX_WAIT: Duration = Duration::from_secs(600);

/// Asks every 50 ms until there is an answer. Panics after [`MAX_WAIT`] with the last error.
///
/// Await only states that last: a slow machine misses others.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        let why = match ask().await {
            Ok(answer) => return answer,
            Err(why) => why,
        };
        assert!(started.elapsed() < MAX_WAIT, "waited {} s for {what}: {why}", MAX_WAIT.as_secs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The operator's Lease.
pub async fn lease(client: &Client) -> Option<LeaseSpec> {
    Api::<Lease>::namespaced(client.clone(), SYSTEM).get_opt(OPERATOR).await.ok()??.spec
}

/// Name of the pod that holds the Lease; `None` if that pod is gone.
pub async fn leader(client: &Client) -> Option<String> {
    let holder = lease(client).await?.holder_identity?;
    let pod = Api::<Pod>::namespaced(client.clone(), SYSTEM).get_opt(&holder).await.ok()??;
    pod.metadata.deletion_timestamp.is_none().then_some(holder)
}

/// What the leading replica exposes.
pub async fn metrics(client: &Client) -> Result<String, String> {
    let leader = leader(client).await.ok_or("no replica leads")?;
    let pod = Api::<Pod>::namespaced(client.clone(), SYSTEM).get(&leader).await.map_err(|e| e.to_string())?;
    let ip = pod.status.and_then(|s| s.pod_ip).ok_or("no address")?;
    let answer = reqwest::get(format!("http://{ip}:8080/metrics")).await.map_err(|e| e.to_string())?;
    answer.text().await.map_err(|e| e.to_string())
}

/// Waits until a replica leads.
pub async fn some_leader(client: &Client) -> String {
    eventually("a leading operator (tests/e2e/deploy)", async || {
        leader(client).await.ok_or("no replica leads".to_owned())
    })
    .await
}

/// Waits until another replica than `old` leads.
pub async fn other_leader(client: &Client, old: &str) -> String {
    eventually("another leader", async || match leader(client).await {
        Some(name) if name != old => Ok(name),
        other => Err(format!("{other:?} leads")),
    })
    .await
}

/// Sends SIGKILL to the operator's process, as the out-of-memory killer does. The pod is replaced at once: a container
/// that is killed repeatedly would be restarted after longer and longer delays.
pub async fn kill_operator(client: &Client, pod: &str) {
    assert!(kill(&[("POD_NAME", pod)], "controller") > 0, "no process of {pod}");
    delete_pod(client, SYSTEM, pod).await;
}

/// Adds a tag to the operator's image.
pub fn tag_operator(tag: &str) {
    tag_image(OPERATOR, tag);
}

/// Adds a tag to an image of the node; returns the image's new name.
pub fn tag_image(name: &str, tag: &str) -> String {
    let [old, new] = ["dev", tag].map(|tag| format!("localhost/{name}:{tag}"));
    images(&["tag", "--force", &old, &new]);
    new
}

/// Removes an image from the node. No registry has it.
pub fn remove_image(image: &str) {
    images(&["remove", "--sync", image]);
}

fn images(arguments: &[&str]) {
    let socket = state().join("containerd.sock");
    run(Command::new("ctr").arg("-a").arg(socket).args(["-n", "k8s.io", "images"]).args(arguments));
}

/// Upgrades the operator's release to an image of that tag, and waits until its new pods are ready.
pub fn upgrade_operator(tag: &str) {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/credit-migration-operator");
    let image = format!("image.tag={tag}");
    let options = ["--namespace", SYSTEM, "--reuse-values", "--set", &image, "--wait", "--timeout", "600s"];
    run(Command::new("helm").args(["upgrade", OPERATOR, chart]).args(options));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Deletes a pod without grace.
pub async fn delete_pod(client: &Client, namespace: &str, pod: &str) {
    Api::<Pod>::namespaced(client.clone(), namespace)
        .delete(pod, &DeleteParams::default().grace_period(0))
        .await
        .unwrap_or_else(|e| panic!("delete {pod}: {e}"));
}

/// Sends SIGKILL to every process of the operator's image with these environment variables and this argument. Returns
/// their number.
pub fn kill(variables: &[(&str, &str)], argument: &str) -> usize {
    let pids = processes(variables, argument);
    for pid in &pids {
        // A process that has already exited is fine, too.
        let _ = Command::new("kill").args(["-KILL", pid]).status();
    }
    pids.len()
}

/// Processes of the operator's image with these environment variables and this argument.
fn processes(variables: &[(&str, &str)], argument: &str) -> Vec<String> {
    let entries: Vec<String> = variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let has = |bytes: &[u8], wanted: &str| bytes.split(|b| *b == 0).any(|part| part == wanted.as_bytes());
    let mut found = vec![];
    for dir in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(command) = fs::read(dir.path().join("cmdline")) else { continue };
        let Ok(environment) = fs::read(dir.path().join("environ")) else { continue };
        if command.starts_with(b"/usr/local/bin/credit-migration-operator")
            && has(&command, argument)
            && entries.iter().all(|entry| has(&environment, entry))
        {
            found.push(dir.file_name().into_string().unwrap());
        }
    }
    found
}

/// Sends SIGKILL to a component. Its supervisor restarts it unless it is marked as stopped.
fn kill_component(name: &str) {
    let Ok(pid) = fs::read_to_string(state().join("pids").join(name)) else { return };
    let command = fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
    // The kernel reuses pids.
    if String::from_utf8_lossy(&command).contains(name) {
        let _ = Command::new("kill").args(["-KILL", pid.trim()]).status();
    }
}

/// The API server, kept down until this is dropped.
pub struct ApiServerDown;

impl ApiServerDown {
    /// Kills it as `tests/cluster/cluster stop` does, and returns when its supervisor has acknowledged that it stays
    /// down.
    pub async fn stop() -> Self {
        let down = ApiServerDown;
        fs::write(state().join("stopped/kube-apiserver"), "").unwrap();
        eventually("the API server to stop", async || {
            kill_component("kube-apiserver");
            if state().join("down/kube-apiserver").exists() { Ok(()) } else { Err("it is up".into()) }
        })
        .await;
        down
    }

    /// Starts it and waits until it answers.
    ///
    /// Kubernetes' own components retry with a growing delay of up to two minutes, and the kubelet starts pods with its
    /// cached ConfigMap. They are restarted, too, because the test is not about them.
    pub async fn start(self, client: &Client) {
        drop(self);
        eventually("the API server", async || client.apiserver_version().await.map(drop).map_err(|e| e.to_string()))
            .await;
        for component in ["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "coredns"] {
            kill_component(component);
        }
    }
}

impl Drop for ApiServerDown {
    fn drop(&mut self) {
        let _ = fs::remove_file(state().join("stopped/kube-apiserver"));
    }
}
