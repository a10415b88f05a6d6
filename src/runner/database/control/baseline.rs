//! Every user's balance: recorded, kept current, compared.
//!
//! The change tracking has one row for each user whose balance was written since it was last emptied; each further
//! write gives the row a new, higher number. (A table that an earlier version created has one row for each write.)
//!
//! No watermark is needed to know which tracked changes a snapshot already contains: a change and its tracking row
//! are written by one transaction, so a snapshot sees both or neither. A reader that reads balances in *one*
//! REPEATABLE READ snapshot, and then deletes tracking rows by the numbers that it read there, deletes none that was
//! written since.

use std::time::Duration;

use tokio_postgres::{Client, GenericClient, Transaction};

use super::{BalancesTable, ControlSpec, balances, exists, functions::tracks_once, millis, unchanged};
use crate::{
    api::{Comparison, Direction, Reason},
    runner::{
        Failure,
        database::snapshot::{Access, snapshot},
    },
};

/// Tracking rows that one transaction of a refresh takes.
const ROWS_PER_PASS: i64 = 100_000;
/// Tracking rows that one statement deletes: who writes a balance of one of these users waits for its end.
const ROWS_PER_DELETE: usize = 5_000;
/// Most tracked users whose balances are compared one by one: of more, all are compared.
const MAX_COMPARED_SINGLY: i64 = 100_000;
/// Most users that are listed.
const MAX_LISTED: usize = 10_000;
/// How long the window waits for a figure of the report.
const USERS_WRITTEN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long each statement of a list of unexplained balances may take: the report of them waits for it.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);

/// Records every user's balance as the caller's snapshot shows it. Returns the number of users.
///
/// In: a READ WRITE, REPEATABLE READ transaction after [`super::install`]; the baseline counts from its commit on. An
/// older baseline of the same migration is replaced, that of a migration which no longer owns the database is
/// deleted.
///
/// # Errors
/// `TableMissing`, `ColumnMissing`; `SqlFailed` if the user column is not unique.
pub async fn take_baseline(tx: &Transaction<'_>, spec: &ControlSpec) -> Result<u64, Failure> {
    let balances = balances(tx, spec).await?;
    // The change tracking is left as it is: deleting it in a transaction as long as a dump would block every writer
    // of those users. Users that it lists needlessly are brought up to date once more.
    tx.batch_execute("DELETE FROM credit_migration.baseline").await?;
    // A list of what an earlier window found says nothing of this one. A copy of a database that an earlier version of
    // this program has prepared has no such table.
    if exists(tx, "unexplained_balances").await? {
        tx.batch_execute("DELETE FROM credit_migration.unexplained_balances").await?;
    }
    if exists(tx, "written_users").await? {
        tx.batch_execute("DELETE FROM credit_migration.written_users").await?;
    }
    let users = record_all(tx, spec, &balances).await?;
    let total = "SELECT coalesce(sum(balance), 0)::text FROM credit_migration.baseline WHERE migration_uid = $1";
    let total_balance = tx.query_one(total, &[&spec.uid]).await?.get(0);
    let recorded = Comparison { users, unexplained: 0, total_balance };
    unchanged::store(tx, spec, &balances, Some(&recorded)).await?;
    Ok(users)
}

/// Whether the baseline of this migration has any user.
pub(crate) async fn has_baseline(client: &impl GenericClient, spec: &ControlSpec) -> Result<bool, Failure> {
    let row = client
        .query_one("SELECT EXISTS (SELECT FROM credit_migration.baseline WHERE migration_uid = $1)", &[&spec.uid])
        .await?;
    Ok(row.get(0))
}

/// Brings the baseline up to date outside of the window, so that the window has little left to do. Returns the number
/// of users brought up to date. Writers are not blocked: the transactions that read are as short as
/// [`ROWS_PER_PASS`], the statements that delete as short as [`ROWS_PER_DELETE`].
///
/// In a rollback the users stay listed in `credit_migration.written_users`: they are counted from the cutover on.
///
/// # Errors
/// Those of [`take_baseline`].
pub async fn refresh_baseline(client: &mut Client, spec: &ControlSpec, direction: Direction) -> Result<u64, Failure> {
    let balances = balances(client, spec).await?;
    // What is written from now on is left to the next refresh: this one ends however much is written.
    let numbers = "SELECT coalesce(min(id), 0) - 1, coalesce(max(id), 0) FROM credit_migration.changed_users";
    let row = client.query_one(numbers, &[]).await?;
    let (mut done, last): (i64, i64) = (row.get(0), row.get(1));
    let mut users = 0;
    while done < last {
        let tx = snapshot(client, Access::Write).await?;
        let taken = "SELECT id FROM credit_migration.changed_users WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3";
        let rows = tx.query(taken, &[&done, &last, &ROWS_PER_PASS]).await?;
        let recorded: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        let Some(newest) = recorded.last().copied() else { break };
        let condition = format!("WHERE c.id > {done} AND c.id <= {newest}");
        if direction == Direction::Rollback {
            list_written(&tx, spec, &balances, &condition).await?;
        }
        users += reconcile_where(&tx, spec, &balances, &condition).await?;
        tx.commit().await?;
        for ids in recorded.chunks(ROWS_PER_DELETE) {
            // A row that was written since has another number. One that is being written is skipped: a writer waits
            // for this statement at most, and this one for no writer, so that neither can be the victim of a deadlock.
            client
                .execute(
                    "DELETE FROM credit_migration.changed_users WHERE id IN
                         (SELECT id FROM credit_migration.changed_users WHERE id = ANY ($1) FOR UPDATE SKIP LOCKED)",
                    &[&ids],
                )
                .await?;
        }
        done = newest;
    }
    Ok(users)
}

/// As [`users_written`], for a window, which cannot wait: at most [`USERS_WRITTEN_TIMEOUT`].
///
/// # Errors
/// `DatabaseUnavailable` if it takes longer; database errors.
pub async fn users_written_within(client: &mut Client, spec: &ControlSpec) -> Result<u64, Failure> {
    users_written(&read_within(client, USERS_WRITTEN_TIMEOUT, USERS_WRITTEN_TIMEOUT).await?, spec).await
}

/// A transaction that reads, with limits for each statement and its locks. It is rolled back when it is dropped.
async fn read_within(client: &mut Client, statement: Duration, lock: Duration) -> Result<Transaction<'_>, Failure> {
    let tx = client.build_transaction().read_only(true).start().await?;
    tx.batch_execute(&limits(statement, lock)).await?;
    Ok(tx)
}

fn limits(statement: Duration, lock: Duration) -> String {
    format!("SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}", millis(statement), millis(lock))
}

/// Distinct users whose balance was written since the change tracking was last emptied, those that a rollback has
/// listed included: since the cutover, once there was one. After a TRUNCATE all that are there.
///
/// # Errors
/// Database errors.
pub async fn users_written(client: &impl GenericClient, spec: &ControlSpec) -> Result<u64, Failure> {
    let listed = exists(client, "written_users").await?
        && client.query_opt("SELECT FROM credit_migration.written_users LIMIT 1", &[]).await?.is_some();
    let query = match (WrittenUsers::tracked(client).await?, listed) {
        (WrittenUsers::All, _) => format!("SELECT count(*) FROM {}", balances(client, spec).await?.table.sql()),
        (WrittenUsers::Tracked, true) => "SELECT (SELECT count(*) FROM credit_migration.written_users)
                + count(DISTINCT c.user_id) FROM credit_migration.changed_users c
             WHERE NOT EXISTS (SELECT FROM credit_migration.written_users w WHERE w.user_id = c.user_id)"
            .to_owned(),
        // Each user has one row, but in a table of an earlier version.
        (WrittenUsers::Tracked, false) if tracks_once(client).await? => {
            "SELECT count(user_id) FROM credit_migration.changed_users".to_owned()
        }
        (WrittenUsers::Tracked, false) => {
            "SELECT count(DISTINCT user_id) FROM credit_migration.changed_users".to_owned()
        }
    };
    let row = client.query_one(&query, &[]).await?;
    Ok(count(&row, 0))
}

/// Lists the users of the tracking rows `c` that meet a condition (SQL); all after a TRUNCATE.
async fn list_written(
    tx: &impl GenericClient,
    spec: &ControlSpec,
    balances: &BalancesTable,
    condition: &str,
) -> Result<(), Failure> {
    // The copy of a database that an earlier version of this program has prepared has no such table.
    if !exists(tx, "written_users").await? {
        return Ok(());
    }
    let users = match WrittenUsers::tracked(tx).await? {
        WrittenUsers::Tracked => format!("SELECT DISTINCT c.user_id FROM credit_migration.changed_users c {condition}"),
        WrittenUsers::All => format!("SELECT t.{}::text FROM {} t", balances.user, balances.table.sql()),
    };
    let list =
        format!("INSERT INTO credit_migration.written_users SELECT $1, u.* FROM ({users}) u ON CONFLICT DO NOTHING");
    tx.execute(&list, &[&spec.uid]).await?;
    Ok(())
}

/// By how many credits the balances of those users differ from those at the cutover: the sum of absolute differences,
/// a decimal text. Its cost grows with the number of those users.
///
/// # Errors
/// Database errors.
pub async fn credits_written(client: &impl GenericClient, spec: &ControlSpec) -> Result<String, Failure> {
    let balances = balances(client, spec).await?;
    let query = format!(
        "SELECT coalesce(sum(abs(coalesce(t.balance, 0) - coalesce(b.balance, 0))), 0)::text FROM {}",
        WrittenUsers::tracked(client).await?.joined(&balances)
    );
    Ok(client.query_one(&query, &[&spec.uid]).await?.get(0))
}

/// Sets the baseline of every tracked user to the balance that the transaction sees, and returns how many there are
/// (all, after a TRUNCATE). The change tracking is left as it is.
///
/// Users are looked up by index: the work grows with the changes, not with the number of users.
pub(crate) async fn reconcile(
    tx: &impl GenericClient,
    spec: &ControlSpec,
    balances: &BalancesTable,
) -> Result<u64, Failure> {
    reconcile_where(tx, spec, balances, "").await
}

/// [`reconcile`] for the tracking rows `c` that meet a condition (SQL).
async fn reconcile_where(
    tx: &impl GenericClient,
    spec: &ControlSpec,
    balances: &BalancesTable,
    condition: &str,
) -> Result<u64, Failure> {
    let tracked = format!("FROM credit_migration.changed_users c {condition}");
    let count_users =
        format!("SELECT count(DISTINCT c.user_id), coalesce(bool_or(c.user_id IS NULL), false) {tracked}");
    let row = tx.query_one(&count_users, &[]).await?;
    let (users, all) = (count(&row, 0), row.get::<_, bool>(1));
    if all {
        tx.execute("DELETE FROM credit_migration.baseline WHERE migration_uid = $1", &[&spec.uid]).await?;
        unchanged::adjust(tx, spec, None).await?;
        return record_all(tx, spec, balances).await;
    }
    if users > 0 {
        // An array is looked up by index, whatever the planner believes of tables that have just grown or shrunk.
        let delete = format!(
            "WITH old AS (DELETE FROM credit_migration.baseline
             WHERE migration_uid = $1 AND user_id = ANY (ARRAY (SELECT DISTINCT c.user_id {tracked}))
             RETURNING balance) SELECT count(*), coalesce(sum(balance), 0)::text FROM old"
        );
        let old = tx.query_one(&delete, &[&spec.uid]).await?;
        let BalancesTable { table, user, balance, user_type } = balances;
        let insert = format!(
            "WITH new AS (INSERT INTO credit_migration.baseline (migration_uid, user_id, balance)
             SELECT $1, t.{user}::text, t.{balance}::numeric FROM {} t
             WHERE t.{user} = ANY (ARRAY (SELECT DISTINCT CAST(c.user_id AS {user_type}) {tracked}))
             RETURNING balance)
             SELECT count(*), (coalesce(sum(balance), 0) - $2::text::numeric)::text FROM new",
            table.sql()
        );
        let new = tx.query_one(&insert, &[&spec.uid, &old.get::<_, &str>(1)]).await.map_err(|e| not_unique(&e))?;
        let more = new.get::<_, i64>(0) - old.get::<_, i64>(0);
        unchanged::adjust(tx, spec, Some((more, new.get(1)))).await?;
    }
    Ok(users)
}

pub(super) async fn record_all(
    tx: &impl GenericClient,
    spec: &ControlSpec,
    balances: &BalancesTable,
) -> Result<u64, Failure> {
    let BalancesTable { table, user, balance, .. } = balances;
    tx.execute(
        &format!(
            "INSERT INTO credit_migration.baseline (migration_uid, user_id, balance)
             SELECT $1, t.{user}::text, t.{balance}::numeric FROM {} t",
            table.sql()
        ),
        &[&spec.uid],
    )
    .await
    .map_err(|e| not_unique(&e))
}

/// Compares every user's balance with the baseline. Meaningful while writes are blocked.
///
/// A user without baseline, a baseline without user, and another balance each count as unexplained.
///
/// # Errors
/// `TableMissing`, `ColumnMissing`, database errors.
pub async fn compare(client: &impl GenericClient, spec: &ControlSpec) -> Result<Comparison, Failure> {
    let balances = balances(client, spec).await?;
    compare_with(client, spec, &balances, WrittenUsers::All).await
}

/// Whose balances may have been written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WrittenUsers {
    /// Each one.
    All,
    /// Those that are tracked, looked up by index: the others were not written.
    Tracked,
}

impl WrittenUsers {
    /// The tracked ones; all after a TRUNCATE.
    pub(crate) async fn tracked(client: &impl GenericClient) -> Result<Self, Failure> {
        let query = "SELECT EXISTS (SELECT FROM credit_migration.changed_users WHERE user_id IS NULL)";
        Ok(if client.query_one(query, &[]).await?.get(0) { Self::All } else { Self::Tracked })
    }

    /// As [`WrittenUsers::tracked`], to compare them: of many, all are compared.
    pub(super) async fn to_compare(client: &impl GenericClient) -> Result<Self, Failure> {
        let query = format!(
            "SELECT count(*) FROM (SELECT FROM credit_migration.changed_users LIMIT {MAX_COMPARED_SINGLY} + 1) c"
        );
        let many = client.query_one(&query, &[]).await?.get::<_, i64>(0) > MAX_COMPARED_SINGLY;
        if many { Ok(Self::All) } else { Self::tracked(client).await }
    }

    /// SQL: baseline `b` and balance `t` of each user. `$1` is the migration's UID.
    pub(super) fn joined(self, balances: &BalancesTable) -> String {
        let BalancesTable { table, user, balance, user_type } = balances;
        let (of_baseline, of_balances) = match self {
            Self::All => (String::new(), String::new()),
            Self::Tracked => {
                let tracked = |id: &str| format!("ARRAY (SELECT DISTINCT {id} FROM credit_migration.changed_users c)");
                let cast = format!("CAST(c.user_id AS {user_type})");
                (
                    format!("AND user_id = ANY ({})", tracked("c.user_id")),
                    format!("WHERE {user} = ANY ({})", tracked(&cast)),
                )
            }
        };
        format!(
            "(SELECT user_id, balance FROM credit_migration.baseline WHERE migration_uid = $1 {of_baseline}) b
             FULL JOIN (SELECT {user}::text AS id, {balance}::numeric AS balance FROM {} {of_balances}) t
             ON t.id = b.user_id",
            table.sql()
        )
    }
}

/// SQL: a row of [`WrittenUsers::joined`] differs.
pub(super) const DIFFERS: &str = "(b.user_id IS NULL OR t.id IS NULL OR b.balance IS DISTINCT FROM t.balance)";

pub(crate) async fn compare_with(
    client: &impl GenericClient,
    spec: &ControlSpec,
    balances: &BalancesTable,
    users: WrittenUsers,
) -> Result<Comparison, Failure> {
    let query = format!(
        "SELECT count(*), count(*) FILTER (WHERE {DIFFERS}), coalesce(sum(t.balance), 0)::text FROM {}",
        users.joined(balances)
    );
    let row = client.query_one(&query, &[&spec.uid]).await?;
    Ok(Comparison { users: count(&row, 0), unexplained: count(&row, 1), total_balance: row.get(2) })
}

/// Users whose balance is not that of the baseline, at most [`MAX_LISTED`].
#[derive(Debug, Default)]
pub(crate) struct UnexplainedBalances {
    users: Vec<String>,
    expected: Vec<Option<String>>,
    found: Vec<Option<String>>,
}

impl UnexplainedBalances {
    /// In: a transaction that does nothing else afterwards. Its limits are set to [`LIST_TIMEOUT`].
    ///
    /// # Errors
    /// `DatabaseUnavailable` if it takes longer; database errors.
    pub(crate) async fn read(
        tx: &Transaction<'_>,
        spec: &ControlSpec,
        balances: &BalancesTable,
        users: WrittenUsers,
    ) -> Result<Self, Failure> {
        let query = format!(
            "SELECT coalesce(b.user_id, t.id, ''), b.balance::text, t.balance::text FROM {} WHERE {DIFFERS}
             ORDER BY 1 LIMIT {MAX_LISTED}",
            users.joined(balances)
        );
        let mut list = Self::default();
        tx.batch_execute(&limits(LIST_TIMEOUT, LIST_TIMEOUT)).await?;
        for row in tx.query(&query, &[&spec.uid]).await? {
            list.users.push(row.get(0));
            list.expected.push(row.get(1));
            list.found.push(row.get(2));
        }
        Ok(list)
    }

    /// Lists them in the database in place of those of an earlier comparison. It is a help and no evidence, and must
    /// not keep writes blocked: each statement has a limit of [`LIST_TIMEOUT`], the commit waits for no standby, and a
    /// failure is logged.
    pub(crate) async fn store(&self, client: &mut Client, spec: &ControlSpec) {
        let store = async {
            let tx = client.build_transaction().read_only(false).start().await?;
            tx.batch_execute(&format!(
                "{}; SET LOCAL synchronous_commit = local; DELETE FROM credit_migration.unexplained_balances",
                limits(LIST_TIMEOUT, LIST_TIMEOUT)
            ))
            .await?;
            let insert = "INSERT INTO credit_migration.unexplained_balances
                SELECT $1, l.user_id, l.expected::numeric, l.found::numeric, clock_timestamp()
                FROM unnest($2::text[], $3::text[], $4::text[]) AS l (user_id, expected, found)
                ON CONFLICT DO NOTHING";
            tx.execute(insert, &[&spec.uid, &self.users, &self.expected, &self.found]).await?;
            tx.commit().await.map_err(Failure::from)
        };
        match store.await {
            Ok(()) => tracing::warn!(rows = self.users.len(), "unexplained balances are listed in the database"),
            Err(error) => tracing::warn!(%error, "unexplained balances are not listed in the database"),
        }
    }
}

/// Lists in the database whose balances a full comparison has found to differ, if that takes no longer than a few
/// seconds.
pub async fn list_unexplained(client: &mut Client, spec: &ControlSpec) {
    let read = async {
        let tx = read_within(client, LIST_TIMEOUT, LIST_TIMEOUT).await?;
        let balances = balances(&tx, spec).await?;
        UnexplainedBalances::read(&tx, spec, &balances, WrittenUsers::All).await
    };
    match read.await {
        Ok(list) => list.store(client, spec).await,
        Err(error) => tracing::warn!(%error, "unexplained balances are not listed in the database"),
    }
}

pub(super) fn count(row: &tokio_postgres::Row, index: usize) -> u64 {
    u64::try_from(row.get::<_, i64>(index)).unwrap_or_default()
}

fn not_unique(error: &tokio_postgres::Error) -> Failure {
    match error.code().map(|code| code.code()) {
        Some("23505" | "23502") => Failure::new(
            Reason::SqlFailed,
            "a user has several balances, or a balance no user; next: name a unique column in \
                spec.credits.balances.userColumn",
        ),
        _ => Failure::from(error),
    }
}
