//! The control schema `credit_migration` in the target database: write block, triggers, baseline, ledger, window
//! record.
//!
//! Called by `context`, `checks`, `tasks` and the rest of `database`. Imports the rest of `database` and `failure` of
//! the runner, `api` and `shared`.
//!
//! ```text
//!  install               claim the database; schema, functions, triggers                      (days before)
//!  take_baseline         every user's balance, in the snapshot of the dump                    (Backup)
//!  compare_untracked     the other balances against the baseline, with writes open            (standby)
//!  write_block::enable   one UPDATE: the triggers refuse writes                               (window)
//!  run_up                the transaction: locks, baseline brought up to date, SQL, verification, ledger
//!  compare_blocked       balances against the baseline: the tracked ones, if the others are known to be unchanged
//!                                                                                            (during the rollout)
//!  run_down              the same transaction for the rollback
//!  write_block::disable  one UPDATE: the triggers allow writes
//!  cleanup               drops triggers and functions; ledger and window record stay          (when no one waits)
//! ```
//!
//! # Assumptions
//! - Tables are named by the spec, and found in the `search_path` of role and database; all else has a schema, or is
//!   the server's own.
//! - A dump leaves out the *data* of this schema. So a restored copy has triggers and no write block: writes are
//!   allowed.
//! - The role is no superuser: owner of database and tables, member of the application's roles, `pg_signal_backend`.

mod apply;
mod baseline;
mod compare;
mod cutover;
mod drain;
mod functions;
mod invariants;
mod not_owned;
mod obstacles;
mod outside;
mod owner;
mod park;
pub mod read_only_default;
mod replication;
mod rights;
mod safeguards;
mod schema;
pub mod schema_objects;
mod sessions;
mod spec;
mod statement_meter;
mod stop_signal;
mod stored_down_sql;
mod tables;
mod triggers;
mod unchanged;
mod verify_sql;
mod verify_writes;
pub mod window_record;
pub mod worker_lock;
pub mod write_block;

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use tokio_postgres::GenericClient;

pub use apply::{Applied, rehearse_down, rehearse_up, run_down, run_statements, run_up};
pub(crate) use baseline::{WrittenUsers, has_baseline};
pub use baseline::{
    compare, credits_written, list_unexplained, refresh_baseline, take_baseline, users_written, users_written_within,
};
pub use compare::{Untracked, compare_blocked, compare_untracked};
pub use cutover::{Cutover, cutover, keep_snapshot};
pub(crate) use cutover::{TransactionsTable, columns, transactions};
pub use drain::{ROLLBACK_REHEARSAL, drain, terminate_readers};
pub use not_owned::{NotOwned, NotOwnedObject};
pub use obstacles::ObstacleFinder;
pub use outside::SharedObjects;
pub(crate) use owner::{check_schema, described_role};
pub use park::drop_parked;
pub(crate) use park::{tables_to_park, with_parked};
pub use replication::{replication, restore_point, wal_position};
pub use safeguards::missing_safeguards;
pub use sessions::LockHolders;
pub use spec::{ControlSpec, Sql};
pub use statement_meter::StatementMeter;
pub use stop_signal::StopSignal;
pub use stored_down_sql::stored_down_sql;
pub(crate) use tables::{
    BalancesTable, balances, credits_now, existing, exists, literal, oids, protected, resolve, with_children,
};
pub use tables::{Table, ident, quoted};
pub(crate) use triggers::{TriggerChange, change_trigger};
pub use triggers::{install, reinstall};
pub use verify_writes::{verify_writes_blocked, verify_writes_unblocked};

use crate::runner::{Failure, database::connection::PIN_SEARCH_PATH_SQL};

/// Name of the control schema.
pub const SCHEMA: &str = "credit_migration";

/// First key of every advisory lock of this program ("cmig"); the second says which. They count within one database.
pub(crate) const LOCK_CLASS: i32 = 0x636d_6967;
/// Taken by the one window task that works; a second pod waits for it.
pub(crate) const LOCK_WORKER: i32 = 1;
/// Taken exclusively while writes are blocked; each transaction that writes to a protected table shares it.
pub(crate) const LOCK_WRITE_BLOCK: i32 = 2;
/// Taken for one transaction that installs, migrates or cleans up.
pub(crate) const LOCK_CHANGE: i32 = 3;

/// SQL: session `a` is this program's, by its name, and of this login or of another one that may act as the owner of
/// the control schema: the login may be another one since the last pod.
pub(crate) const OWN_SESSION: &str = "(a.application_name LIKE 'credit-migration%' AND EXISTS
    (SELECT FROM pg_catalog.pg_roles own WHERE own.oid = a.usesysid AND (own.rolname = session_user OR NOT own.rolsuper
        AND pg_catalog.pg_has_role(own.oid, (SELECT nspowner FROM pg_catalog.pg_namespace
                                             WHERE nspname = 'credit_migration'), 'MEMBER'))))";

/// Runs statements that define objects of this program, in a transaction. What they name is looked up in `pg_catalog`
/// first; the database's own event triggers, which they set off, find theirs on the session's own `search_path`.
pub(crate) async fn define(tx: &impl GenericClient, statements: &str) -> Result<(), Failure> {
    let own_path = "SELECT set_config('search_path', concat_ws(', ', 'pg_catalog', nullif(reset_val, '')), true)
        FROM pg_catalog.pg_settings WHERE name = 'search_path'";
    let statements = format!("{own_path}; {statements}; {PIN_SEARCH_PATH_SQL}");
    tx.batch_execute(&statements).await.map_err(Failure::from)
}

/// Milliseconds for `SET lock_timeout`; never 0, which would mean "wait forever".
pub(crate) fn millis(duration: Duration) -> u128 {
    duration.as_millis().max(1)
}

/// Longest wait for the lock of one trigger: all writers queue behind the wait, on a day without a window.
pub(crate) fn trigger_lock_timeout(spec: &ControlSpec) -> Duration {
    spec.lock_timeout.min(Duration::from_millis(200))
}

/// A pause between `base` and twice `base`, so that retries do not coincide with what blocks them.
pub(crate) fn jitter(base: Duration) -> Duration {
    let noise = u32::try_from(RandomState::new().hash_one(0) % 1000).unwrap_or_default();
    base + base * noise / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_stays_in_its_bounds() {
        for _ in 0..100 {
            let pause = jitter(Duration::from_millis(100));
            assert!((100..200).contains(&pause.as_millis()), "{pause:?}");
        }
    }
}
