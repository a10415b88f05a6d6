//! The transaction of the up or down SQL: exactly once, verified before it is committed.
//!
//! The window runs it on the database, the rehearsal on its copy; the SQL is run nowhere else.
//!
//! # Contract
//! - All or nothing. The ledger's row is part of the transaction: after a lost connection the ledger shows which.
//! - Nothing is run if the ledger has this SQL already, or shows that the migration was rolled back.
//! - Must be called outside of a transaction; leaves the session's settings and role as they were.

use std::time::Instant;

use futures::TryStreamExt;
use serde_json::{Value, json};
use tokio_postgres::{Client, Row, SimpleQueryMessage, Transaction, types::Json};

use super::{
    ControlSpec, LOCK_CHANGE, LOCK_CLASS, Sql, StatementMeter, StopSignal, Table, balances,
    baseline::{UnexplainedBalances, WrittenUsers, compare_with, reconcile},
    functions::create_track_any_change_function,
    ident,
    invariants::{self, NotRun},
    millis,
    outside::SharedObjects,
    owner::sql_role,
    park::{park, unpark},
    protected, rights,
    rights::Rights,
    schema::check_owner,
    schema_objects::require_rehearsed_schema,
    tables::{balances_after, oids},
    triggers::ensure_triggers_in,
    unchanged::{self, Unchanged},
    verify_sql::verify,
};
use crate::{
    api::{Direction, InvariantEvidence, LostRight, Reason, UNEXPLAINED_BALANCES},
    runner::{
        Failure,
        database::{
            connection::{PIN_COMMIT_SQL, PIN_SEARCH_PATH_SQL, USE_OWN_SEARCH_PATH_SQL, pin_settings},
            server_error::statement_failure,
        },
    },
};

/// Attempts to reset the session: a late request to cancel the SQL may stop one.
const RESET_ATTEMPTS: u32 = 3;
/// Characters of a statement that the ledger keeps.
const LEDGER_TEXT: usize = 200;

/// What became of the SQL, by the ledger.
#[derive(Clone, Debug, PartialEq)]
pub enum Applied {
    /// This call ran the SQL and committed it.
    Now {
        /// Seconds from the first lock to the last verification.
        seconds: f64,
        /// Users whose baseline was brought up to date: those whose balance was written since it was taken (rollback:
        /// since the cutover).
        reconciled_users: u64,
        /// Rights that roles of the application have lost by the up SQL.
        rights_lost: Vec<LostRight>,
        /// Invariants of the spec that held.
        invariants: Vec<InvariantEvidence>,
        /// Whether the balances of all users are compared, and not of those alone that were written.
        all_compared: bool,
    },
    /// An earlier call did. Nothing was run.
    Earlier {
        /// As above.
        seconds: f64,
        /// As above.
        reconciled_users: u64,
    },
    /// Forward: the migration was rolled back, and is not run again. Rollback: it never ran. Nothing was run.
    NotApplicable,
}

/// Runs the up SQL. The transaction also stores the down SQL: see [`super::stored_down_sql`].
///
/// # Errors
/// `SqlFailed` with the statement's number, `SqlOutsideDatabase`, `LockTimeout`, `TableNotParked`, `TablesNotGone`,
/// `BalancesUnexplained`, `VerifyUpFailed` if `verifyUp` answers no row, or a boolean that is not true, `RightsLost`,
/// `InvariantBroken`, `SchemaDrifted`, `TableMissing`, `ColumnMissing`, `DatabaseInUse`, `SqlChanged`, `DeadlinePassed`
/// when stopped: nothing was changed. `ConnectionLost`: the ledger shows the result.
pub async fn run_up(
    client: &mut Client,
    spec: &ControlSpec,
    up: &Sql,
    down: &Sql,
    stop: &StopSignal,
) -> Result<Applied, Failure> {
    run(client, spec, up, Run::Up { down }, stop, None).await
}

/// Runs the down SQL, if the up SQL has run. Balances written since the cutover must stay, and so must all others.
///
/// # Errors
/// As [`run_up`]; `VerifyDownFailed` if `verifyDown` answers no row, or a boolean that is not true.
pub async fn run_down(client: &mut Client, spec: &ControlSpec, sql: &Sql) -> Result<Applied, Failure> {
    run(client, spec, sql, Run::Down, &StopSignal::default(), None).await
}

/// [`run_up`] on the rehearsal's copy; `meter` measures its statements.
///
/// # Errors
/// As [`run_up`]; `PrivilegeMissing` for what only the copy allows.
pub async fn rehearse_up(
    client: &mut Client,
    spec: &ControlSpec,
    up: &Sql,
    down: &Sql,
    meter: Option<&mut StatementMeter<'_>>,
) -> Result<Applied, Failure> {
    run(client, spec, up, Run::RehearsedUp { down }, &StopSignal::default(), meter).await
}

/// [`run_down`] on the rehearsal's copy, where an effect outside of the database is a failure, too. In a window it is
/// not: writes are blocked until the rollback is done. `meter` measures its statements.
///
/// # Errors
/// As [`run_down`]; `SqlOutsideDatabase`; `PrivilegeMissing` for what only the copy allows.
pub async fn rehearse_down(
    client: &mut Client,
    spec: &ControlSpec,
    sql: &Sql,
    meter: Option<&mut StatementMeter<'_>>,
) -> Result<Applied, Failure> {
    run(client, spec, sql, Run::RehearsedDown, &StopSignal::default(), meter).await
}

/// Which SQL is run.
#[derive(Clone, Copy)]
enum Run<'a> {
    Up {
        /// Stored for the rollback.
        down: &'a Sql,
    },
    RehearsedUp {
        down: &'a Sql,
    },
    Down,
    RehearsedDown,
}

async fn run(
    client: &mut Client,
    spec: &ControlSpec,
    sql: &Sql,
    which: Run<'_>,
    stop: &StopSignal,
    meter: Option<&mut StatementMeter<'_>>,
) -> Result<Applied, Failure> {
    let mut unexplained = None;
    let result = transaction(client, spec, sql, which, stop, meter, &mut unexplained).await;
    if let Err(error) = reset(client).await {
        tracing::warn!(%error, "the session could not be reset after the SQL, and is not used any more");
        let outcome = match result {
            Err(lost) if lost.is_connection_lost() => return Err(lost),
            Err(failure) => failure.message,
            Ok(_) => "the ledger shows the result".to_owned(),
        };
        let message = format!("the session could not be reset after the SQL: {}; {outcome}", error.message);
        return Err(Failure::new(Reason::ConnectionLost, message));
    }
    // Only now: the transaction in which they were found has changed nothing.
    if let Some(list) = unexplained {
        list.store(client, spec).await;
    }
    result
}

/// Resets what the SQL may have set to outlive its transaction.
async fn reset(client: &Client) -> Result<(), Failure> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let done = async {
            // The first also ends the role that the login is configured to act as, and the last leaves it as it is.
            client.batch_execute("RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL").await?;
            pin_settings(client).await
        };
        match done.await {
            Err(failure) if attempts < RESET_ATTEMPTS && !failure.is_connection_lost() => {}
            done => return done,
        }
    }
}

async fn transaction(
    client: &mut Client,
    spec: &ControlSpec,
    sql: &Sql,
    which: Run<'_>,
    stop: &StopSignal,
    meter: Option<&mut StatementMeter<'_>>,
    unexplained: &mut Option<UnexplainedBalances>,
) -> Result<Applied, Failure> {
    let start = Instant::now();
    let (direction, down, stays_inside) = match which {
        Run::Up { down } | Run::RehearsedUp { down } => (Direction::Forward, Some(down), true),
        Run::Down => (Direction::Rollback, None, false),
        Run::RehearsedDown => (Direction::Rollback, None, true),
    };
    let tx = client.build_transaction().read_only(false).start().await?;
    let act = sql_role(&tx, spec).await?.map_or(String::new(), |role| format!("SET LOCAL ROLE {}; ", ident(&role)));
    let settings = format!("{act}{}", transaction_settings(spec));
    tx.batch_execute(&settings).await?;
    tx.batch_execute(&format!("SELECT pg_catalog.pg_advisory_xact_lock({LOCK_CLASS}, {LOCK_CHANGE})")).await?;
    if let Some(applied) = recorded(&tx, spec, sql, direction).await? {
        return Ok(applied);
    }
    check_owner(&tx, spec).await?;
    // From here on the write block lets this transaction pass, and no other one.
    tx.batch_execute(
        "INSERT INTO credit_migration.exempt_transaction (xid) SELECT pg_catalog.pg_current_xact_id()::text",
    )
    .await?;

    let before = StateBefore::read(&tx, spec).await?;
    lock(&tx, &before.tables).await?;
    if direction == Direction::Forward {
        // After the lock, which keeps the protected tables as they are.
        require_rehearsed_schema(&tx, spec).await?;
    }
    let rights = match direction {
        Direction::Forward => Some(Rights::read(&tx, spec).await?),
        // The rehearsals compare all grants after the down SQL; in a rollback writes are blocked until it is done.
        Direction::Rollback => None,
    };
    let balances_before = balances(&tx, spec).await?;
    let reconciled_users = reconcile(&tx, spec, &balances_before).await?;
    let unchanged = Unchanged::read(&tx, spec, &balances_before).await?;
    let forgotten = tracking_deleted(&tx).await?;
    let shared = if stays_inside { Some(SharedObjects::read(&tx).await?) } else { None };

    let not_run = match which {
        Run::Up { .. } | Run::RehearsedUp { .. } | Run::RehearsedDown => NotRun::Refused,
        Run::Down => NotRun::LeftOut,
    };
    let recorded = invariants::record(&tx, spec, direction, not_run).await?;
    match direction {
        Direction::Forward => park(&tx, spec).await?,
        Direction::Rollback => unpark(&tx, spec, &settings).await?,
    }
    // What is parked is out of the way: a name of `tablesGone` does not mean it any more.
    let namesakes = namesakes(&tx, spec).await?;

    if spec.credits.renames_balance_columns() {
        create_track_any_change_function(&tx).await?;
    }
    let not_owned = spec.not_owned.before(&tx).await?;
    let meter = match meter {
        Some(meter) => Some(meter.start(direction, sql).await?),
        None => None,
    };
    let texts = run_statements(&tx, sql, &settings, stop, meter).await?;
    spec.not_owned.require_untouched(&tx, &not_owned, direction.sql_name()).await?;
    if direction == Direction::Forward {
        tables_gone(&tx, spec, &namesakes).await?;
    }
    let rights_lost = match &rights {
        Some(rights) => rights.lost(&tx, spec).await?,
        None => vec![],
    };
    match which {
        Run::Up { .. } => rights::require_approved(&rights_lost, &spec.approved_rights_lost)?,
        Run::RehearsedUp { .. } => rights::require_few(&rights_lost)?,
        Run::Down | Run::RehearsedDown => {}
    }
    let balances_after = balances_after(&tx, spec, direction, &balances_before).await?;
    // What the SQL has written is tracked, unless it went past the triggers.
    let unchanged = match unchanged {
        Some(known)
            if known.holds(&tx, &balances_after).await?
                && forgotten.is_some()
                && tracking_deleted(&tx).await? == forgotten =>
        {
            Some(known)
        }
        _ => None,
    };
    let all_compared = unchanged.is_none();
    let users = match direction {
        // The other users are compared after the commit, during the rollout, while a rollback loses nothing.
        Direction::Forward => WrittenUsers::to_compare(&tx).await?,
        Direction::Rollback if all_compared => WrittenUsers::All,
        Direction::Rollback => WrittenUsers::to_compare(&tx).await?,
    };
    let compared = compare_with(&tx, spec, &balances_after, users).await?;
    let differing = compared.unexplained;
    let compared = match users {
        WrittenUsers::All => Some(compared),
        WrittenUsers::Tracked => unchanged.map(Unchanged::comparison),
    };
    if differing > 0 {
        let which = match which {
            // The rehearsal's copy is dropped.
            Run::RehearsedUp { .. } | Run::RehearsedDown => String::new(),
            Run::Up { .. } | Run::Down => {
                *unexplained = UnexplainedBalances::read(&tx, spec, &balances_after, users).await.ok();
                format!("see which by {UNEXPLAINED_BALANCES}; ")
            }
        };
        let message = format!(
            "the {} SQL changed the balances of {differing} users, limit 0; next: {which}correct the SQL so that it \
                leaves balances alone",
            direction.sql_name()
        );
        return Err(Failure::new(Reason::BalancesUnexplained, message));
    }
    let invariants = invariants::compare(&tx, recorded).await?;
    verify(&tx, spec, direction).await?;
    let mut protected = before.new_tables(&tx).await?;
    protected.extend(before.tables.iter().cloned());
    ensure_triggers_in(&tx, &protected, &balances_after).await?;
    unchanged::store(&tx, spec, &balances_after, compared.as_ref()).await?;
    // From here on the change tracking shows what was written on the new version, or after the rollback.
    tx.batch_execute("DELETE FROM credit_migration.changed_users; DELETE FROM credit_migration.exempt_transaction")
        .await?;

    let seconds = start.elapsed().as_secs_f64();
    tx.execute(
        "INSERT INTO credit_migration.ledger (migration_uid, step, sql_sha256, statements, seconds, reconciled_users, \
            texts, down_sql, started_at, xid)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, pg_catalog.now(), pg_catalog.pg_current_xact_id()::xid::text)",
        &[
            &spec.uid,
            &direction.sql_name(),
            &sql.sha256,
            &i32::try_from(sql.statements.len()).unwrap_or(i32::MAX),
            &seconds,
            &i64::try_from(reconciled_users).unwrap_or(i64::MAX),
            &Json(texts),
            &down.map(|down| down.text.as_str()),
        ],
    )
    .await?;
    stop.check()?;
    match shared {
        Some(shared) => shared.commit_unchanged(tx, &format!("the {} SQL", direction.sql_name()), stop).await?,
        None => tx.commit().await?,
    }
    Ok(Applied::Now { seconds, reconciled_users, rights_lost, invariants, all_compared })
}

/// Rows of the change tracking that this transaction has deleted; `None` if the server does not count them.
async fn tracking_deleted(tx: &Transaction<'_>) -> Result<Option<i64>, Failure> {
    let query = "SELECT coalesce(sum(n_tup_del), 0)::bigint, current_setting('track_counts')::boolean
        FROM pg_catalog.pg_stat_xact_user_tables WHERE relid = 'credit_migration.changed_users'::pg_catalog.regclass";
    let row = tx.query_one(query, &[]).await?;
    Ok(row.get::<_, bool>(1).then(|| row.get(0)))
}

/// Runs the statements of one SQL text, one by one, in a transaction with these settings (`SET LOCAL`), which hold
/// again afterwards, and with the session's own `search_path`. Returns what the ledger keeps of each. Windows and
/// rehearsals run all SQL texts by this; a rehearsal has them measured from another session.
///
/// # Errors
/// `SqlFailed` with the statement's number, `SqlTransactionControl`, `DeadlinePassed` when stopped.
pub async fn run_statements(
    tx: &Transaction<'_>,
    sql: &Sql,
    settings: &str,
    stop: &StopSignal,
    mut meter: Option<&mut StatementMeter<'_>>,
) -> Result<Vec<Value>, Failure> {
    let number = "SELECT pg_catalog.pg_current_xact_id()::text";
    let xid: String = tx.query_one(number, &[]).await?.get(0);
    tx.batch_execute(USE_OWN_SEARCH_PATH_SQL).await?;
    let mut texts = Vec::with_capacity(sql.statements.len());
    for (index, statement) in sql.statements.iter().enumerate() {
        stop.check()?;
        let start = Instant::now();
        let rows = rows_of(tx, statement).await.map_err(|e| statement_failure(&e, index + 1, sql.statements.len()))?;
        let seconds = start.elapsed().as_secs_f64();
        let text: String = statement.trim().chars().take(LEDGER_TEXT).collect();
        texts.push(json!({"number": index + 1, "text": text, "seconds": seconds}));
        if let Some(meter) = &mut meter {
            meter.note(index, statement, seconds, rows).await?;
        }
    }
    check_deferred(tx, sql.statements.len()).await?;
    if let Some(meter) = meter {
        meter.stop();
    }

    // The SQL may have changed any of these, and what follows must not depend on it.
    tx.batch_execute(&format!("{PIN_SEARCH_PATH_SQL}; RESET SESSION AUTHORIZATION; RESET ROLE; {settings}")).await?;
    if tx.query_one(number, &[]).await?.get::<_, String>(0) != xid {
        return Err(Failure::new(
            Reason::SqlTransactionControl,
            "the SQL ended the transaction it was run in; next: remove its COMMIT or ROLLBACK",
        ));
    }
    Ok(texts)
}

/// Runs a statement. Returns the number of its rows, by its command tag; what it returns is not kept.
async fn rows_of(tx: &Transaction<'_>, statement: &str) -> Result<u64, tokio_postgres::Error> {
    let answers = tx.client().simple_query_raw(statement).await?;
    let count = async |rows: u64, answer| match answer {
        SimpleQueryMessage::CommandComplete(of_statement) => Ok(rows + of_statement),
        _ => Ok(rows),
    };
    std::pin::pin!(answers).try_fold(0, count).await
}

/// Checks what the SQL has deferred to the end of the transaction, as the commit would: a constraint that is violated
/// is the SQL's, and a table with a check that is pending could not be given its triggers.
async fn check_deferred(tx: &Transaction<'_>, statements: usize) -> Result<(), Failure> {
    tx.batch_execute("SET CONSTRAINTS ALL IMMEDIATE").await.map_err(|e| {
        let Failure { reason, message } = Failure::from(&e);
        Failure::new(reason, format!("deferred constraints, after {statements} statements: {message}"))
    })
}

/// What the ledger has already, `None` if the SQL must be run.
async fn recorded(
    tx: &Transaction<'_>,
    spec: &ControlSpec,
    sql: &Sql,
    direction: Direction,
) -> Result<Option<Applied>, Failure> {
    let rows = tx
        .query(
            "SELECT step, sql_sha256, seconds, reconciled_users FROM credit_migration.ledger WHERE migration_uid = $1",
            &[&spec.uid],
        )
        .await?;
    let row_of = |wanted: Direction| rows.iter().find(|row| row.get::<_, &str>(0) == wanted.sql_name());
    let applied = |row: &Row| -> Result<Applied, Failure> {
        let recorded: &str = row.get(1);
        if recorded != sql.sha256 {
            let message = format!(
                "the {} SQL was run before with {recorded}, now it is {}; it is not run again",
                direction.sql_name(),
                sql.sha256
            );
            return Err(Failure::new(Reason::SqlChanged, message));
        }
        Ok(Applied::Earlier {
            seconds: row.get(2),
            reconciled_users: u64::try_from(row.get::<_, i64>(3)).unwrap_or_default(),
        })
    };
    match (direction, row_of(Direction::Forward), row_of(Direction::Rollback)) {
        (Direction::Forward, _, Some(_)) | (Direction::Rollback, None, None) => Ok(Some(Applied::NotApplicable)),
        (Direction::Forward, Some(row), None) | (Direction::Rollback, _, Some(row)) => applied(row).map(Some),
        (Direction::Forward, None, None) | (Direction::Rollback, Some(_), None) => Ok(None),
    }
}

/// The database before the SQL.
struct StateBefore {
    tables: Vec<Table>,
    oids: Vec<u32>,
}

/// Ordinary and partitioned tables of users: not the system's, not the control schema's, not temporary ones.
const USER_TABLES: &str = "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', \
    'information_schema', 'credit_migration')
      AND n.nspname NOT LIKE 'pg\\_toast%'";

impl StateBefore {
    async fn read(tx: &Transaction<'_>, spec: &ControlSpec) -> Result<Self, Failure> {
        let tables = protected(tx, spec).await?;
        let oids = tx.query(&format!("SELECT c.oid {USER_TABLES}"), &[]).await?;
        Ok(Self { tables, oids: oids.iter().map(|row| row.get(0)).collect() })
    }

    /// Tables that the SQL created.
    async fn new_tables(&self, tx: &Transaction<'_>) -> Result<Vec<Table>, Failure> {
        let rows = tx
            .query(
                // Joined: versions before 15 look up an array row by row.
                &format!(
                    "SELECT n.nspname::text, c.relname::text {USER_TABLES}
                       AND NOT EXISTS (SELECT FROM unnest($1::oid[]) AS known (oid) WHERE known.oid = c.oid)"
                ),
                &[&self.oids],
            )
            .await?;
        Ok(rows.iter().map(|row| Table { schema: row.get(0), name: row.get(1) }).collect())
    }
}

/// Locks out every writer, also one that no trigger stops, and no reader: the SQL takes further locks by itself, and
/// tables that it does not change stay readable.
async fn lock(tx: &Transaction<'_>, tables: &[Table]) -> Result<(), Failure> {
    if tables.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = tables.iter().map(Table::sql).collect();
    tx.batch_execute(&format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", names.join(", "))).await.map_err(|e| {
        let Failure { reason, message } = Failure::from(&e);
        Failure::new(reason, format!("the protected tables cannot be locked: {message}"))
    })
}

/// Relations with a name of `tablesGone`, in any schema. Temporary ones belong to other sessions.
const NAMED_GONE: &str = "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' AND c.relname::text = ANY ($1)
      AND n.nspname NOT IN ('pg_catalog', 'information_schema')";

/// Names of `tablesGone` without their schema.
fn names_gone(spec: &ControlSpec) -> Vec<&str> {
    spec.tables_gone.iter().map(|name| name.rsplit_once('.').map_or(name.as_str(), |(_, table)| table)).collect()
}

/// Relations that were there before the SQL under a name of `tablesGone`, and that the spec does not mean.
async fn namesakes(tx: &Transaction<'_>, spec: &ControlSpec) -> Result<Vec<u32>, Failure> {
    let meant: Vec<u32> = oids(tx, &spec.tables_gone).await?.into_iter().flatten().collect();
    let query = format!("SELECT c.oid {NAMED_GONE} AND c.oid <> ALL ($2)");
    let rows = tx.query(&query, &[&names_gone(spec), &meant]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The checklist's count of dropped tables must be 0, in every schema: one that was only moved counts.
async fn tables_gone(tx: &Transaction<'_>, spec: &ControlSpec, namesakes: &[u32]) -> Result<(), Failure> {
    let query = format!("SELECT n.nspname || '.' || c.relname {NAMED_GONE} AND c.oid <> ALL ($2) ORDER BY 1");
    let rows = tx.query(&query, &[&names_gone(spec), &namesakes]).await?;
    if rows.is_empty() {
        return Ok(());
    }
    let left: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    let message = format!(
        "{} tables that must be gone are there: {}; limit 0; next: correct the up SQL or spec.migration.tablesGone",
        left.len(),
        left.join(", ")
    );
    Err(Failure::new(Reason::TablesNotGone, message))
}

/// `SET LOCAL` of the limits that every transaction of a migration has.
fn transaction_settings(spec: &ControlSpec) -> String {
    format!(
        "SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}; SET LOCAL idle_in_transaction_session_timeout \
            = 0;
         SET LOCAL client_min_messages = warning; {PIN_COMMIT_SQL}",
        millis(spec.lock_timeout),
        millis(spec.statement_timeout)
    )
}
