//! Evidence: what tasks found and made. Runs report it, and the migration's status stores it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BackupFormat, LeftOutObjects, Reason, StatementEvidence, TableUsers, Time, named::named};

/// Tag and branch, read back from the server.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CodeBackupEvidence {
    /// Repository, as in the spec.
    pub repository: String,
    /// Commit to which both lead, read back from the server.
    pub commit: String,
    /// Name of the tag.
    pub tag: String,
    /// Name of the branch.
    pub branch: String,
    /// When it was read back.
    pub verified_at: Time,
}

/// Result of one check of Preflight.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What was checked.
    pub name: String,
    /// Class of the problem; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Whether the application says that it holds the old and the new version; absent when it does not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds_both_versions: Option<bool>,
    /// What a rehearsal's copy would go without.
    #[serde(flatten)]
    pub left_out: LeftOutObjects,
    /// What else uses the tables.
    #[serde(flatten)]
    pub users: TableUsers,
    /// Observed value, and the command that fixes the problem.
    pub message: String,
}

impl Finding {
    /// Name of the finding about the versions that the application reports.
    pub const VERSION_PROBE: &str = "version probe";
    /// Name of the finding about what a copy of the database goes without.
    pub const COPY: &str = "copy of the database";
    /// Name of the finding about what else uses the tables.
    pub const TABLE_USERS: &str = "users of the tables";
}

/// Statistics of the credit system, from one snapshot. Amounts are decimal texts in credits.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BaselineEvidence {
    /// Distinct users.
    pub users: u64,
    /// Sum of balances.
    pub total_balance: String,
    /// Sum of purchased credits; absent without `balances.purchasedColumn`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_purchased: Option<String>,
    /// Average balance.
    pub average_balance: String,
    /// Largest balance.
    pub max_balance: String,
    /// Transactions by type.
    pub transactions: Vec<TransactionStatistics>,
    /// Time of the snapshot.
    pub taken_at: Time,
}

impl BaselineEvidence {
    /// Users and sums in one line.
    pub fn summary(&self) -> String {
        let purchased = self.total_purchased.as_ref().map_or_else(String::new, |sum| format!(", {sum} purchased"));
        format!("{} users, {} credits{purchased}", self.users, self.total_balance)
    }
}

/// Transactions of one type.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TransactionStatistics {
    /// The type.
    #[serde(rename = "type")]
    pub kind: String,
    /// How many.
    pub count: u64,
    /// Sum of absolute amounts in credits, a decimal text.
    pub total_amount: String,
}

/// The uploaded dump.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BackupEvidence {
    /// `s3://bucket/key` of the dump; of a `Directory`, of its manifest, which has bytes and SHA-256 of each archive.
    pub object: String,
    /// `s3://bucket/key` of the statistics of the same snapshot, as JSON.
    pub statistics_object: String,
    /// Size of all archives in bytes.
    pub bytes: u64,
    /// `sha256:` and 64 hex digits of `object`, taken while streaming.
    pub sha256: String,
    /// How it lies in the store.
    #[serde(default)]
    pub format: BackupFormat,
    /// Archives of which it consists.
    #[serde(default = "one")]
    pub archives: u32,
    /// Programs that dumped at the same time.
    #[serde(default = "one")]
    pub jobs: u32,
    /// Version of pg_dump.
    pub pg_dump_version: String,
    /// End of the upload.
    pub finished_at: Time,
}

impl BackupEvidence {
    /// Object, bytes and digest in one line.
    pub fn summary(&self) -> String {
        let of = match self.format {
            BackupFormat::Custom => String::new(),
            BackupFormat::Directory => format!(" in {} archives by {} jobs", self.archives, self.jobs),
        };
        format!("{}, {} bytes{of}, {}", self.object, self.bytes, self.sha256)
    }
}

fn one() -> u32 {
    1
}

/// The dump, read back.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VerificationEvidence {
    /// Size of all archives in bytes as downloaded.
    pub bytes: u64,
    /// SHA-256 of the object as downloaded. Those of the archives that a manifest names were equal to it.
    pub sha256: String,
    /// Entries in the tables of contents of all archives.
    pub entries: u64,
}

/// The export of key users' rows. These rows are in the bucket and nowhere else.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct KeyUsersEvidence {
    /// `s3://bucket/key` of the CSV, with a header.
    pub object: String,
    /// Users in it.
    pub users: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// `sha256:` and 64 hex digits, taken while streaming.
    pub sha256: String,
    /// Time of the snapshot.
    pub taken_at: Time,
}

/// The list of balances that nothing explains. Its rows are in the bucket and nowhere else.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct UnexplainedEvidence {
    /// `s3://bucket/key` of the CSV: user, before, transactions since, expected, now.
    pub object: String,
    /// Users in it, at most 10,000.
    pub rows: u64,
    /// `sha256:` and 64 hex digits.
    pub sha256: String,
    /// When it was written.
    pub taken_at: Time,
}

/// Writes of the new version's kind, and the rollback after them.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WritesEvidence {
    /// Rows that were inserted, updated or deleted.
    pub rows: u64,
    /// Users whose balance was written.
    pub users: u64,
    /// Seconds for the down SQL with its verification, with these rows.
    pub rollback_seconds: f64,
}

/// The objects of a schema: tables, columns, constraints, indexes, triggers, views, functions, types, owners, grants.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SchemaEvidence {
    /// `sha256:` and 64 hex digits, over the digests of all objects.
    pub sha256: String,
    /// Number of objects.
    pub objects: u32,
}

/// A pair of queries of `migration.invariants` whose results were equal before and after the up SQL.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct InvariantEvidence {
    /// Its name.
    pub name: String,
    /// Rows that were compared.
    pub rows: u64,
}

/// Rights on one object that a role of the application had before the up SQL, and has not after it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LostRight {
    /// The role.
    #[schemars(length(max = 128))]
    pub role: String,
    /// The object, as `GRANT` names it: `TABLE public.users`.
    #[schemars(length(max = 300))]
    pub object: String,
    /// `SELECT`; `UPDATE (email)` is the right on a column.
    #[schemars(length(max = 500))]
    pub privileges: Vec<String>,
}

/// Most privileges that a rehearsal may lose: people have to judge them.
pub const MAX_LOST_RIGHTS: usize = 500;

impl LostRight {
    /// Entries that a message names.
    const MAX_NAMED: usize = 10;

    /// The statement that gives them again.
    fn grant(&self) -> String {
        format!("GRANT {} ON {} TO {};", self.privileges.join(", "), self.object, self.role)
    }

    /// The statements that give the first of them again, in one line.
    pub fn grants(lost: &[Self]) -> String {
        let mut grants: Vec<String> = lost.iter().take(Self::MAX_NAMED).map(Self::grant).collect();
        match lost.len().saturating_sub(Self::MAX_NAMED) {
            0 => {}
            more => grants.push(format!("and {more} more")),
        }
        grants.join(" ")
    }

    /// How many privileges they are.
    pub fn count(lost: &[Self]) -> usize {
        lost.iter().map(|of| of.privileges.len()).sum()
    }
}

/// Result of the rehearsal.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RehearsalEvidence {
    /// Users restored.
    pub users: u64,
    /// Seconds to restore.
    pub restore_seconds: f64,
    /// Seconds for the up SQL with its verification.
    pub migrate_seconds: f64,
    /// Seconds for the down SQL with its verification.
    pub rollback_seconds: f64,
    /// Tables that were equal after the rollback. The rehearsal fails unless all are.
    pub tables_equal: u32,
    /// `sql` and `balances` checks that were measured on the migrated copy, before the rollback.
    #[serde(default)]
    pub checks_measured: u32,
    /// Those checks that did not pass there, with observed value and limit. The copy has no traffic, so approvers judge
    /// the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks_not_passing: Vec<String>,
    /// Seconds for the comparison of balances after the up SQL, as the window does it.
    #[serde(default)]
    pub compare_seconds: f64,
    /// What `rehearsal.writes` wrote on the new version, and the rollback after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes: Option<WritesEvidence>,
    /// The schema that it is valid for: that of the backup. A window is not opened on another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<SchemaEvidence>,
    /// What the copy went without.
    #[serde(flatten)]
    pub left_out: LeftOutObjects,
    /// Rights that roles of the application lose by the up SQL, on objects that are there after it. Approved with the
    /// plan: a window in which others are lost does not commit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 500))]
    pub rights_lost: Vec<LostRight>,
    /// Invariants that held over the up SQL, each with the rows that were compared. One over no row says nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub invariants: Vec<InvariantEvidence>,
    /// The server of the copy, if that is not the original's: version and address. Times are that server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The statements of both SQL texts as they were measured, the longest first; at most 30.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 30))]
    pub statements: Vec<StatementEvidence>,
    /// The window compares the balances of all users with writes blocked, in `compareSeconds`: the up SQL rewrites or
    /// replaces their table. Otherwise it compares those that were written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub up_compares_all: bool,
    /// The same in a rollback, as part of `rollbackSeconds`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub down_compares_all: bool,
}

impl RehearsalEvidence {
    /// The result in one line.
    pub fn summary(&self) -> String {
        format!(
            "restored {} users in {:.1} s, migrated in {:.1} s, compared in {:.1} s, rolled back in {:.1} s, {} of {5} \
             tables equal; {}; {}{}",
            self.users,
            self.restore_seconds,
            self.migrate_seconds,
            self.compare_seconds,
            self.rollback_seconds,
            self.tables_equal,
            self.writes_summary(),
            self.checks_summary(),
            self.appended(),
        )
    }

    /// It has passed, but people should know more than that: a check that fails on the copy may start a rollback on the
    /// new version, what the copy went without was not rehearsed, the application loses rights, an invariant has
    /// compared no row, reads wait for long, or the times are those of another server.
    pub fn has_reservations(&self) -> bool {
        !self.checks_not_passing.is_empty()
            || !self.left_out.is_empty()
            || !self.rights_lost.is_empty()
            || self.invariants.iter().any(|invariant| invariant.rows == 0)
            || self.server.is_some()
            || StatementEvidence::long_locks(&self.statements).is_some()
    }

    /// What the copy went without, which invariants held, which rights are lost and which reads wait for long, as the
    /// end of another line.
    pub fn appended(&self) -> String {
        let long_locks = StatementEvidence::long_locks(&self.statements);
        let server = self.server.as_ref();
        let server = server.map(|server| format!("the copy was on another server, {server}: the times are that one's"));
        let parts = [
            self.comparison_summary(),
            self.left_out.summary(),
            self.invariants_summary(),
            self.rights_summary(),
            long_locks,
            server,
        ];
        parts.into_iter().flatten().map(|part| format!("; {part}")).collect()
    }

    /// In which directions a window takes the longer the more users there are, in one line; `None` if in none.
    fn comparison_summary(&self) -> Option<String> {
        let which = match (self.up_compares_all, self.down_compares_all) {
            (false, false) => return None,
            (true, false) => "the window",
            (false, true) => "a rollback",
            (true, true) => "the window, and a rollback,",
        };
        Some(format!(
            "{which} compares the balances of all {} users with writes blocked, because the SQL rewrites or replaces \
             their table",
            self.users
        ))
    }

    /// Which invariants held, in one line; `None` if there is none.
    fn invariants_summary(&self) -> Option<String> {
        let held: Vec<String> = self.invariants.iter().map(|i| format!("{} over {} rows", i.name, i.rows)).collect();
        (!held.is_empty()).then(|| format!("invariants that held: {}", held.join(", ")))
    }

    /// Which rights are lost, with the statements that keep them, in one line; `None` if none is.
    fn rights_summary(&self) -> Option<String> {
        let (rights, grants) = (LostRight::count(&self.rights_lost), LostRight::grants(&self.rights_lost));
        let text = format!("roles of the application lose {rights} rights; to keep them add to the up SQL: {grants}");
        (rights > 0).then_some(text)
    }

    /// What was written on the new version before it was rolled back, in one line.
    pub fn writes_summary(&self) -> String {
        match &self.writes {
            Some(WritesEvidence { rows, users, rollback_seconds }) => format!(
                "{rows} rows and {users} balances written on the new version, rolled back in {rollback_seconds:.1} s"
            ),
            None => "no rows were written on the new version (spec.rehearsal.writes)".to_owned(),
        }
    }

    /// Results of the checks on the migrated copy, in one line.
    pub fn checks_summary(&self) -> String {
        let measured = format!("{} checks measured on the migrated copy", self.checks_measured);
        match self.checks_not_passing.as_slice() {
            [] => measured,
            not => format!("{measured}, {} did not pass there: {}", not.len(), not.join("; ")),
        }
    }
}

/// Result of a rehearsal of the rollback, on a copy of the live database.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RollbackRehearsalEvidence {
    /// Its end.
    pub finished_at: Time,
    /// Rows of all tables of the copy.
    pub rows: u64,
    /// Users of the copy.
    pub users: u64,
    /// Users whose balance was written on the new version since the cutover.
    pub users_written: u64,
    /// Credits by which the balances of those users differ from those at the cutover: the sum of absolute differences,
    /// a decimal text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credits_written: Option<String>,
    /// Users whose balance the transactions since the cutover do not explain. A rollback keeps these balances as they
    /// are. Absent: not compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unexplained: Option<u64>,
    /// Transactions since the cutover, by type; at most 20 types.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transactions: Vec<TransactionStatistics>,
    /// Seconds of the rehearsal, from the dump to the last comparison.
    pub duration_seconds: f64,
    /// Seconds for the down SQL with its verification.
    pub rollback_seconds: f64,
    /// Seconds for the comparison of balances after the down SQL, as the window does it.
    pub compare_seconds: f64,
    /// A rollback compares the balances of all users with writes blocked, as part of `rollbackSeconds`: the down SQL
    /// rewrites or replaces their table. Otherwise it compares those that were written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compares_all: bool,
    /// The schema of the live database, from which it was rolled back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<SchemaEvidence>,
    /// What the copy went without.
    #[serde(flatten)]
    pub left_out: LeftOutObjects,
    /// What was compared, and what could not be.
    pub message: String,
}

impl RollbackRehearsalEvidence {
    /// The result in one line.
    pub fn summary(&self) -> String {
        format!(
            "rolled back a copy of {} rows and {} users in {:.1} s, compared in {:.1} s; {} written since the cutover; \
             {}{}",
            self.rows,
            self.users,
            self.rollback_seconds,
            self.compare_seconds,
            written(self.users_written, self.credits_written.as_deref()),
            self.message,
            self.left_out.appended(),
        )
    }
}

/// `7 users and 120 credits`: what was written on the new version.
pub fn written(users: u64, credits: Option<&str>) -> String {
    match credits {
        Some(credits) => format!("{users} users and {credits} credits"),
        None => format!("{users} users"),
    }
}

/// The full comparison of every user's balance with the baseline.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// Users compared.
    pub users: u64,
    /// Users whose balance nothing explains. Must be 0.
    pub unexplained: u64,
    /// Sum of balances, a decimal text in credits.
    pub total_balance: String,
}

/// SQL: whose balances the last comparison inside a window found to differ, at most 10,000 users. The list stays in the
/// database: it has personal data.
pub const UNEXPLAINED_BALANCES: &str = "SELECT * FROM credit_migration.unexplained_balances";

impl Comparison {
    /// How many users differ, in words.
    pub fn differences(&self) -> String {
        format!("{} of {} balances are unexplained (limit 0)", self.unexplained, self.users)
    }
}

/// Result of one measurement.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    /// Within the limit.
    Pass,
    /// Beyond the limit.
    Fail,
    /// The check could not be measured.
    Error,
    /// Measured, but without a value or with too few samples. Never counts as success.
    NoData,
}

named! {
    CheckOutcome: Pass, Fail, Error, NoData
}

/// State of a check.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CheckResult {
    /// Name of the check.
    pub name: String,
    /// Result of the last measurement.
    pub outcome: CheckOutcome,
    /// Failed measurements among the last `failures.of`.
    pub failed: u32,
    /// The last `failures.of` measurements of a `workload` or `job` check, oldest first: `.` good, `x` failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub recent: String,
    /// Measurements so far.
    pub measured: u64,
    /// Whether `failures.count` was ever reached.
    pub breached: bool,
    /// Why the container of a `job` check's current Job has not started: `ImagePullBackOff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    /// Observed value and limit: `0.21 > 0.05, 3 of 3 samples (1204 requests)`.
    pub message: String,
    /// Time of the last measurement.
    pub at: Time,
}

/// A report of DayCheck or WeekReview in the bucket.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ReportEvidence {
    /// `s3://bucket/key` of the report, JSON.
    pub object: String,
    /// Size in bytes.
    pub bytes: u64,
    /// `sha256:` and 64 hex digits.
    pub sha256: String,
    /// Checks that passed.
    pub passed: u32,
    /// Checks.
    pub checks: u32,
    /// Results in one line: checks that did not pass, users, sum of balances and transactions since the cutover.
    pub summary: String,
    /// What else uses the tables of the migration, parked ones included. Of the roles those that did meanwhile.
    #[serde(flatten)]
    pub users: TableUsers,
    /// Time of the figures.
    pub taken_at: Time,
}
