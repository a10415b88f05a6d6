//! Latches: SQL in the window or in the rehearsal, a check, the version probe, or the start of a run's Job waits until
//! the test lets it continue.
//!
//! A closed latch is an advisory lock of a session of the test, so it opens when the test ends, also by a panic.
//! Waiting SQL polls `pg_locks`, which lists the locks of all databases: the rehearsal uses a database of its own.

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ResourceQuota, Service},
};
use kube::api::ListParams;
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::{
    cluster::eventually,
    database::{Database, UP},
    harness::{APP, World},
};

/// First key of the advisory locks; the product's own have another one.
const CLASS: i32 = 3630;
/// Service of the version probe.
const PROBE: &str = "probe";
/// Quota of the namespace's Jobs, and what it counts.
const QUOTA: &str = "jobs";
const COUNTED: &str = "count/jobs.batch";

/// What a latch stops.
#[derive(Clone, Copy, Debug)]
pub enum Latch {
    /// The up SQL in the window.
    Migrate = 1,
    /// The up SQL in the rehearsal.
    Rehearse = 2,
    /// A check of stage Validate.
    Validate = 3,
    /// A check of stage Monitor.
    Monitor = 4,
}

/// Keeps a latch closed until it is dropped.
#[must_use]
pub struct Closed {
    _session: Client,
}

impl Latch {
    /// SQL expression that is true while the latch is closed.
    fn closed(self) -> String {
        format!(
            "EXISTS (SELECT FROM pg_catalog.pg_locks
                     WHERE locktype = 'advisory' AND classid = {CLASS} AND objid = {} AND granted AND database =
                     (SELECT oid FROM pg_catalog.pg_database
                      WHERE datname = regexp_replace(current_database(), '_rehearsal$', '')))",
            self as i32
        )
    }

    /// The up SQL behind a statement that waits until the latch is open.
    pub fn up(self) -> String {
        let place = if matches!(self, Latch::Rehearse) { "LIKE" } else { "NOT LIKE" };
        format!(
            "DO $$ BEGIN WHILE current_database() {place} '%\\_rehearsal' AND {}
                         LOOP PERFORM pg_sleep(0.05); END LOOP; END $$;\n{UP}",
            self.closed()
        )
    }

    /// A stage that ends when the latch is open: its only check has no data before.
    pub fn stage(self) -> Value {
        json!({"duration": "0s", "checks": [self.check()]})
    }

    /// A check that has no data while the latch is closed, and passes otherwise.
    pub fn check(self) -> Value {
        let query = format!("SELECT CASE WHEN {} THEN NULL ELSE 0 END", self.closed());
        json!({"name": "latch", "sql": {"query": query}, "interval": "1s", "max": "0"})
    }
}

impl Database {
    /// Closes a latch.
    pub async fn close(&self, latch: Latch) -> Closed {
        let session = self.connect().await;
        let lock = format!("SELECT pg_advisory_lock({CLASS}, {})", latch as i32);
        session.batch_execute(&lock).await.unwrap_or_else(|e| panic!("{lock}: {e:?}"));
        Closed { _session: session }
    }

    /// Waits until the up SQL waits for the closed latch. Nothing of it is committed until the latch opens.
    pub async fn sql_waits(&self, latch: Latch) {
        let database =
            if matches!(latch, Latch::Rehearse) { format!("{}_rehearsal", self.name) } else { self.name.clone() };
        let query = format!(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = '{database}' AND state = 'active' AND query LIKE 'DO $$ BEGIN WHILE%'"
        );
        eventually("the waiting SQL", async || match self.count(&query).await {
            0 => Err("it is not running".into()),
            _ => Ok(()),
        })
        .await;
    }
}

impl World {
    /// Lets no Job start: the operator's are refused, and it retries, until [`World::start_job`].
    pub async fn hold_jobs(&self) {
        let hard = json!({COUNTED: "0"});
        self.create_object::<ResourceQuota>(json!({"metadata": {"name": QUOTA}, "spec": {"hard": hard}})).await;
        self.limit_jobs(0).await;
    }

    /// Creates a quota of pods. Until its controller has counted, it refuses every pod in other words: that is awaited.
    pub async fn quota(&self, name: &str, resource: &str, hard: &str) {
        let quota = json!({"metadata": {"name": name}, "spec": {"hard": {resource: hard}}});
        self.create_object::<ResourceQuota>(quota).await;
        eventually("the quota", async || {
            let status = self.api::<ResourceQuota>().get(name).await.map_err(|e| e.to_string())?.status;
            status.and_then(|s| s.used).map(drop).ok_or_else(|| "not counted".to_owned())
        })
        .await;
    }

    /// Lets one more Job start, and waits for it. No other follows, as long as none is removed.
    pub async fn start_job(&self, name: &str) {
        let there = self.api::<Job>().list_metadata(&ListParams::default()).await.unwrap().items.len();
        self.limit_jobs(there + 1).await;
        self.has_job(name, true).await;
    }

    /// Sets how many Jobs there may be, and waits until that is in force.
    pub async fn limit_jobs(&self, most: usize) {
        let most = most.to_string();
        self.patch::<ResourceQuota>(QUOTA, json!({"spec": {"hard": {COUNTED: most}}})).await;
        eventually("the quota to be in force", async || {
            let quota = self.api::<ResourceQuota>().get(QUOTA).await.map_err(|e| e.to_string())?;
            let hard = quota.status.and_then(|status| status.hard?.remove(COUNTED)).map(|quantity| quantity.0);
            if hard.as_ref() == Some(&most) { Ok(()) } else { Err(format!("{hard:?} instead of {most}")) }
        })
        .await;
    }

    /// Waits until a Job is there, or is removed.
    pub async fn has_job(&self, name: &str, wanted: bool) {
        eventually(&format!("Job {name}: {wanted}"), async || {
            let job = self.api::<Job>().get_metadata_opt(name).await.map_err(|e| e.to_string())?;
            if job.is_some() == wanted { Ok(()) } else { Err("not yet".into()) }
        })
        .await;
    }

    /// Part of a spec: the version probe asks a Service that the test controls.
    pub fn own_probe() -> Value {
        json!({"application": {"versionProbe": {"url": format!("http://{PROBE}/version")}}})
    }

    /// Creates the Service of [`World::own_probe`].
    pub async fn create_probe(&self) {
        let mut service =
            serde_yaml_ng::from_str::<Value>(include_str!("../../examples/watermark-remover/deploy/service.yaml"))
                .unwrap();
        service["metadata"]["name"] = json!(PROBE);
        self.create_object::<Service>(service).await;
    }

    /// Sets whether the version probe is answered. Without an answer the switch of the application does not end, in
    /// either direction.
    pub async fn answer_probe(&self, answered: bool) {
        let name = if answered { APP } else { "none" };
        self.patch::<Service>(PROBE, json!({"spec": {"selector": {"app.kubernetes.io/name": name}}})).await;
        let url = format!("http://{PROBE}.{}/version", self.namespace);
        // The node's network rules follow with a delay.
        eventually("the change of the probe's Service", async || match (reqwest::get(&url).await, answered) {
            (Ok(_), true) | (Err(_), false) => Ok(()),
            (answer, _) => Err(format!("{answer:?}")),
        })
        .await;
    }
}
