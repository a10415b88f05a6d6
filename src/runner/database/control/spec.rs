//! What the control schema needs to know of a migration.

use std::time::Duration;

use super::NotOwned;
use crate::{
    api::{CreditMigrationSpec, Credits, Invariant, LostRight, Obstacle, Park, sha256},
    runner::Failure,
    shared::sql,
};

/// What is migrated, under which names, with which limits: the part of a run's spec that the database needs.
#[derive(Clone, Debug)]
pub struct ControlSpec {
    /// UID of the `CreditMigration`.
    pub uid: String,
    /// Its name, for messages.
    pub name: String,
    /// Tables and columns of the ledger, before and after the up SQL.
    pub credits: Credits,
    /// Every table whose writes the window blocks, as the spec writes them.
    pub protected: Vec<String>,
    /// Further ones that may be there only after the up SQL.
    pub protected_after: Vec<String>,
    /// Tables of `credits`, as the spec writes them.
    pub ledger: Vec<String>,
    /// Tables that are moved out of the way.
    pub park: Option<Park>,
    /// Tables that must not exist after the up SQL.
    pub tables_gone: Vec<String>,
    /// Roles of the application.
    pub application_roles: Vec<String>,
    /// Longest wait for one lock.
    pub lock_timeout: Duration,
    /// Longest run of one statement.
    pub statement_timeout: Duration,
    /// Query that verifies the change.
    pub verify_up: Option<String>,
    /// Query that verifies the rollback.
    pub verify_down: Option<String>,
    /// Pairs of queries whose results the SQL must leave equal.
    pub invariants: Vec<Invariant>,
    /// SHA-256 of the schema that the window's SQL was rehearsed on: see
    /// [`SchemaEvidence`](crate::api::SchemaEvidence). `None` where it need not be that one.
    pub rehearsed_schema: Option<String>,
    /// Rights that the application's roles lost in the rehearsal: people have approved it with the plan.
    pub approved_rights_lost: Vec<LostRight>,
    /// On a rehearsal's copy what the migration role owns there alone.
    pub not_owned: NotOwned,
    /// How long creating or dropping one trigger is retried before it fails.
    pub trigger_timeout: Duration,
    /// From when on a transaction that has locked a protected table, or a lock that is refused, is waited for before
    /// writes are blocked.
    pub long_transaction: Duration,
}

impl ControlSpec {
    /// Takes the fields that it needs from a run's `migrationUID`, `migration` and `plan`.
    pub fn new(uid: &str, name: &str, plan: &CreditMigrationSpec) -> Self {
        let migration = &plan.migration;
        let mut ledger = vec![plan.credits.balances.table.clone()];
        ledger.extend(plan.credits.transactions.iter().map(|transactions| transactions.table.clone()));
        let mut protected = ledger.clone();
        let parked = migration.park.iter().flat_map(|park| &park.tables);
        for table in migration.tables_gone.iter().chain(parked).chain(&migration.protected_tables) {
            if !protected.contains(table) {
                protected.push(table.clone());
            }
        }
        let new_version = plan.credits.of_new_version();
        let mut protected_after = vec![new_version.balances.table];
        protected_after.extend(new_version.transactions.map(|transactions| transactions.table));
        protected_after.retain(|table| !protected.contains(table));
        Self {
            uid: uid.to_owned(),
            name: name.to_owned(),
            credits: plan.credits.clone(),
            protected,
            protected_after,
            ledger,
            park: migration.park.clone(),
            tables_gone: migration.tables_gone.clone(),
            application_roles: plan.database.application_roles.clone(),
            lock_timeout: migration.lock_timeout.into(),
            statement_timeout: migration.statement_timeout.into(),
            verify_up: migration.verify_up.clone(),
            verify_down: migration.verify_down.clone(),
            invariants: migration.invariants.clone(),
            rehearsed_schema: None,
            approved_rights_lost: vec![],
            not_owned: NotOwned::default(),
            trigger_timeout: Duration::from_secs(60),
            long_transaction: Duration::from_secs(Obstacle::LONG_SECONDS),
        }
    }
}

/// One file of SQL, split into statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sql {
    /// The file.
    pub text: String,
    /// The statements in their order; none may start or end a transaction.
    pub statements: Vec<String>,
    /// `sha256:` and 64 hex digits of the file.
    pub sha256: String,
}

impl Sql {
    /// Splits a file; `name` says in messages which one it is.
    ///
    /// # Errors
    /// `SqlSyntaxError`, `SqlMetaCommand`, `SqlTransactionControl`, `SqlOutsideTransaction`,
    /// `SqlOutsideDatabase`.
    pub fn read(name: &str, text: String) -> Result<Self, Failure> {
        let statements = sql::for_run(&text).map_err(|problem| Failure::of_sql(name, &problem))?;
        let sha256 = sha256(text.as_bytes());
        Ok(Self { text, statements, sha256 })
    }

    /// Line of each statement in the file, from 1. Empty if only the server can split it: it then runs as one.
    pub fn lines(&self) -> Vec<usize> {
        sql::read(&self.text).unwrap_or_default().iter().map(|statement| statement.line).collect()
    }
}
