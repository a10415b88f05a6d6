//! `CreditMigration`: the migration that a team wants. Its status is the checklist, checked off by evidence.
//!
//! Called by the callers of `api`, which passes all of it on. Imports `api`.

mod backup;
mod checks;
mod code;
mod connection;
mod coverage;
mod credits;
mod follow_ups;
mod notifications;
mod park;
mod rollback;
mod runner;
mod schedule;
mod sources;
mod triggers;

pub use backup::*;
pub use checks::*;
pub use code::*;
pub use connection::*;
pub use coverage::{Gap, Topic};
pub use credits::*;
pub use follow_ups::*;
pub use notifications::*;
pub use park::*;
pub use rollback::*;
pub use runner::*;
pub use schedule::*;
pub use sources::*;
pub use triggers::*;

use kube::{CustomResource, KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{CreditMigrationStatus, named::named};

/// One change of a credit system's schema, from verified backup to monitored cutover.
///
/// Every object that it names is in its own namespace.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "creditmigration.io",
    version = "v1alpha1",
    kind = "CreditMigration",
    plural = "creditmigrations",
    shortname = "cmig",
    category = "credit-migrations",
    namespaced,
    status = "CreditMigrationStatus",
    derive = "PartialEq",
    doc = "A guarded migration of a live credit system on PostgreSQL, from verified backup to monitored cutover.",
    validation = Rule::new("self.metadata.name.size() <= 40")
        .message("metadata.name must have at most 40 characters: names of Jobs are derived from it"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.phase) || oldSelf.status.phase in \
        ['Preparing', 'AwaitingApproval', 'Failed'] || self.spec == oldSelf.spec")
        .message("spec is immutable once the migration window has started or the migration has ended; to undo it \
            before it is Completed create a MigrationDecision with decision Rollback, to change course create a new \
            CreditMigration"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.progress"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Approvals", type_ = "string", json_path = ".status.approvals"),
    printcolumn(name = "Writes", type_ = "string", json_path = ".status.writes"),
    printcolumn(
        name = "Rollback-Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"RollbackReady\")].status",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct CreditMigrationSpec {
    /// User name (as the API server knows it) of the author. The author's own approval does not count.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("self == oldSelf")
            .message("requestedBy is immutable: the author cannot be changed after the fact")
    )]
    pub requested_by: String,
    /// The database to migrate, and how the runner reaches it.
    pub database: Database,
    /// Tables and columns that hold the credits.
    #[serde(default)]
    pub credits: Credits,
    /// The SQL in both directions, and how both are verified.
    pub migration: Migration,
    /// The application and the flag that chooses its version.
    pub application: Application,
    /// Object store of the backup, and export of key users.
    pub backup: Backup,
    /// Tag and branch for the application's code. When absent, the step is reported as skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<CodeBackup>,
    /// The rehearsal's database.
    #[serde(default)]
    pub rehearsal: Rehearsal,
    /// Required approvals.
    #[serde(default)]
    pub approval: Approval,
    /// When the window may start.
    #[serde(default)]
    pub schedule: Schedule,
    /// Channels of notices, and contacts.
    #[serde(default)]
    pub notifications: Notifications,
    /// The read-only window.
    #[serde(default)]
    pub window: Window,
    /// Checks right after the cutover. All must pass at the end of the stage.
    #[serde(default = "Stage::validation")]
    pub validation: Stage,
    /// Checks that watch the new version before the migration counts as completed.
    #[serde(default = "Stage::monitoring")]
    pub monitoring: Stage,
    /// Checks after a day and after a week.
    #[serde(default)]
    pub follow_ups: FollowUps,
    /// Effect of a breached check.
    #[serde(default)]
    pub rollback: Rollback,
    /// The Jobs' pods.
    #[serde(default)]
    pub runner: Runner,
}

/// Key of a Secret (`secretRef`, `caSecretRef`) or of a ConfigMap (`configMapKeyRef`) in the migration's namespace.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// Name of the Secret or ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Name of a Secret in the migration's namespace.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NameRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The database to migrate.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Database {
    /// Name of the database; must be the one in the connection URL.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = Rule::new("self == oldSelf")
            .message("database.name is immutable: create a new CreditMigration for another database")
    )]
    pub name: String,
    /// How the runner connects: directly, not through a pooler.
    pub connection: Connection,
    /// Roles with which the application connects. Their sessions are ended when the window starts.
    #[schemars(length(min = 1, max = 16))]
    pub application_roles: Vec<String>,
    /// Whether the database may have a publication `FOR ALL TABLES`. It publishes the operator's schema
    /// `credit_migration`, too: a subscriber stops applying, and its slot keeps WAL, until it has these tables.
    #[serde(default)]
    pub all_tables_publications: AllTablesPublications,
}

/// One file of SQL.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SqlSource {
    /// ConfigMap key with the SQL text.
    pub config_map_key_ref: KeyRef,
}

/// Two queries whose results must be equal: what the change may restructure, and must not alter.
///
/// `before` runs before the up SQL, under its locks, `after` after it, in the same transaction; in a rollback `after`
/// runs before the down SQL, and `before` after it. Both only read. Rows are compared whatever their order and the
/// names of their columns, and differences are counted, never shown.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Invariant {
    /// Name, for messages.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Query for the old schema: `SELECT user_id, balance FROM user_credits`.
    #[schemars(length(min = 1, max = 4096))]
    pub before: String,
    /// Query for the new schema: `SELECT user_id, sum(amount) FROM credit_entries GROUP BY 1`.
    #[schemars(length(min = 1, max = 4096))]
    pub after: String,
}

/// The SQL in both directions, and how both are verified.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Migration {
    /// The up SQL. It runs in one transaction and must not contain `BEGIN`, `COMMIT` or psql commands.
    pub up: SqlSource,
    /// The down SQL, for the rollback. The same rules apply.
    pub down: SqlSource,
    /// Query that verifies the change, by the same rules as `verifyDown`. It runs in the transaction of the up SQL: if
    /// it fails, nothing is changed. For example `SELECT count(*) = 3 AS plans FROM credit_plans`.
    // Not serialized while it is absent: the digests of existing plans stay valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_up: Option<String>,
    /// Query that verifies the rollback: it must return at least one row, at least one boolean column, and only `true`
    /// in every boolean column. For example `SELECT * FROM verify_rollback()`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_down: Option<String>,
    /// Pairs of queries whose results the change must leave equal.
    // Not serialized while there are none: the digests of existing plans stay valid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub invariants: Vec<Invariant>,
    /// Tables that must not exist in any schema after the change.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub tables_gone: Vec<String>,
    /// Tables that are moved out of the way instead of being dropped.
    // Not serialized while it is absent: the digests of existing plans stay valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub park: Option<Park>,
    /// Further tables whose writes are blocked in the window, in addition to those of `credits`, `tablesGone`
    /// and `park`.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub protected_tables: Vec<String>,
    /// How long one statement may wait for a lock.
    #[serde(default = "secs::<2>")]
    #[x_kube(
        validation = Rule::new("duration(self) > duration('0s') && duration(self) <= duration('1m')")
            .message("lockTimeout must be more than 0s and at most 1m, for example 2s")
    )]
    pub lock_timeout: Duration,
    /// How long one statement may run.
    #[serde(default = "secs::<600>")]
    #[x_kube(
        validation = Rule::new("duration(self) > duration('0s')")
            .message("statementTimeout must be more than 0s, for example 10m")
    )]
    pub statement_timeout: Duration,
}

/// The application and the flag that chooses its version.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Application {
    /// The flag.
    pub flag: Flag,
    /// Workloads that read the flag. They are restarted when it changes.
    #[schemars(length(min = 1, max = 16))]
    pub workloads: Vec<WorkloadRef>,
    /// Address that returns the running version during a switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_probe: Option<VersionProbe>,
}

/// ConfigMap key that chooses the version of the application.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("self.from != self.to")
        .message("flag.from and flag.to must differ, for example v1 and v2")
)]
#[serde(rename_all = "camelCase")]
pub struct Flag {
    /// The key.
    pub config_map_key_ref: KeyRef,
    /// Value before the migration.
    #[serde(default = "v1")]
    pub from: String,
    /// Value after the migration.
    #[serde(default = "v2")]
    pub to: String,
    /// Key of the same ConfigMap that must be `true`: it confirms that the application can be rolled back.
    #[serde(default = "enable_rollback")]
    #[schemars(length(min = 1, max = 253))]
    pub rollback_key: String,
    /// What is done when the flag is changed after the window. `Alert` notifies; `Restore` also sets the flag again.
    // Not serialized while it is the default: the digests of existing plans stay valid.
    #[serde(default, skip_serializing_if = "OnDrift::is_default")]
    pub on_drift: OnDrift,
}

/// What is done when the flag is changed after the window.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnDrift {
    /// Notify.
    #[default]
    Alert,
    /// Notify, and set the flag again.
    Restore,
}

named! {
    OnDrift: Alert, Restore
}

impl OnDrift {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Kind of workload.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadKind {
    /// `apps/v1` Deployment.
    Deployment,
}

named! {
    WorkloadKind: Deployment
}

/// A workload in the migration's namespace.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadRef {
    /// Its kind.
    pub kind: WorkloadKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// URL that returns the application's running version.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VersionProbe {
    /// Address, called from the migration's namespace without following redirects.
    #[x_kube(
        validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')")
            .message("url must start with http:// or https://")
    )]
    pub url: String,
    /// JSONPath (RFC 9535) of the version in the response.
    #[serde(default = "running")]
    pub json_path: String,
}

/// The rehearsal's database.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Rehearsal {
    /// Scratch database. The operator creates, uses and drops it; it must not exist before.
    #[schemars(length(min = 1, max = 63))]
    pub database: String,
    /// Another server for the scratch database, of the same or a newer major version; the original's when absent. The
    /// database that its Secret names is only connected to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<Connection>,
    /// Without `connection`: the largest database that is copied next to the original, in bytes, `Mi`, `Gi` or `Ti`.
    /// SQL does not see how much space is free.
    #[serde(skip_serializing_if = "is_usual_size")]
    #[schemars(length(max = 16), regex(pattern = r"^[1-9][0-9]*(Mi|Gi|Ti)?$"))]
    pub max_size: String,
    /// SQL that writes as the new version does: new users, purchases, deductions. The rehearsal runs it between the up
    /// and the down SQL, as the first of `database.applicationRoles`, so that a down SQL that fails on new rows is
    /// found before anybody approves. It is run on the copy alone.
    // Not serialized while it is absent: the digests of existing plans stay valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16384))]
    pub writes: Option<String>,
}

impl Default for Rehearsal {
    fn default() -> Self {
        Self { database: "test_credit_migration".into(), connection: None, max_size: usual_size(), writes: None }
    }
}

fn usual_size() -> String {
    "100Gi".into()
}

// Not serialized while it is the default: the digests of existing plans stay valid.
fn is_usual_size(size: &String) -> bool {
    *size == usual_size()
}

/// Required approvals.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Approval {
    /// Number of people other than the author who must approve the plan's digest. At least 2, by the checklist's second
    /// reminder.
    #[schemars(range(min = 2, max = 10))]
    pub required: u32,
}

impl Default for Approval {
    fn default() -> Self {
        Self { required: 2 }
    }
}

/// The read-only window.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// Longest time for which writes may stay blocked. Then the migration is undone.
    #[serde(default = "secs::<300>")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('15s') && duration(self) <= duration('1h')")
            .message("maxDuration must be between 15s and 1h, for example 5m")
    )]
    pub max_duration: Duration,
    /// How often the window is started on the same approvals, within the same allowed hours, when a lock of another
    /// session or a lack of the server's resources ended it without effect: after 1, 5, then 10 minutes. People must be
    /// present at each start.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10))]
    pub attempts: u32,
}

impl Default for Window {
    fn default() -> Self {
        Self { max_duration: secs::<300>(), attempts: one() }
    }
}

/// A period of time with its checks.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// How long it lasts.
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('0s')")
            .message("duration must not be negative, for example 30m")
    )]
    pub duration: Duration,
    /// Checks of the stage, in addition to the triggers of `rollback`. The stage ends when its duration has passed and
    /// each check that is not `Warn` passes.
    #[serde(default)]
    #[schemars(length(max = 32))]
    #[x_kube(
        validation = Rule::new("self.all(c, self.exists_one(d, d.name == c.name))")
            .message("names of checks must be unique")
    )]
    #[x_kube(
        validation = Rule::new("self.all(c, !(c.name in ['balance-errors', 'payment-processing', 'core-function', \
            'database-connection', 'error-rate']))")
            .message("balance-errors, payment-processing, core-function, database-connection and error-rate are the \
                names of spec.rollback.triggers: configure them there, or choose another name")
    )]
    pub checks: Vec<Check>,
}

impl Stage {
    /// 30 minutes, the checklist's phase 3.
    fn validation() -> Self {
        Self { duration: secs::<1800>(), checks: vec![] }
    }
    /// 2 hours, the checklist's phase 4.
    fn monitoring() -> Self {
        Self { duration: secs::<7200>(), checks: vec![] }
    }
}

/// `N` seconds; a function for serde's defaults.
fn secs<const N: u64>() -> Duration {
    std::time::Duration::from_secs(N).into()
}
fn one() -> u32 {
    1
}
fn v1() -> String {
    "v1".into()
}
fn v2() -> String {
    "v2".into()
}
fn enable_rollback() -> String {
    "ENABLE_ROLLBACK".into()
}
fn running() -> String {
    "$.running".into()
}
