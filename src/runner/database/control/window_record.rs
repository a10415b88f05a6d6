//! What the database records of a window: everything that a pod needs to resume it.

use jiff::Timestamp;
use tokio_postgres::{Client, types::Json};

use super::{ControlSpec, exists};
use crate::{
    api::{Direction, Reason, SchemaInPlace, WindowProgress},
    runner::Failure,
};

/// What the database records of a window: everything that another pod needs to resume it.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct RecordedState {
    /// The up SQL is committed: seconds it took, users reconciled.
    pub up: Option<(f64, u64)>,
    /// The down SQL is committed.
    pub down: bool,
    /// Since when writes are blocked, if they are.
    pub blocked_at: Option<Timestamp>,
    /// The last window in this direction.
    pub record: Option<WindowRecord>,
}

/// A window in which writes were blocked.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowRecord {
    /// Attempt of its run.
    pub attempt: u32,
    /// When it must have ended.
    pub deadline: Timestamp,
    /// The runner acknowledged `Switch`.
    pub switch_acknowledged: bool,
    /// How it ended, if it did.
    pub finished: Option<RecordedEnd>,
    /// What was reported of it.
    pub progress: WindowProgress,
}

/// How a window ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedEnd {
    /// The schema that is in place.
    pub schema: SchemaInPlace,
    /// Why it ended without success.
    pub failure: Option<Failure>,
}

/// Reads window record, ledger and write block.
///
/// # Errors
/// `DatabaseInUse` if another migration blocks writes; database errors.
pub async fn recorded_state(
    client: &Client,
    spec: &ControlSpec,
    direction: Direction,
) -> Result<RecordedState, Failure> {
    let mut snapshot = RecordedState::default();
    let ledger = client
        .query(
            "SELECT step, seconds, reconciled_users FROM credit_migration.ledger WHERE migration_uid = $1",
            &[&spec.uid],
        )
        .await?;
    for row in ledger {
        match row.get::<_, &str>(0) {
            "up" => snapshot.up = Some((row.get(1), u64::try_from(row.get::<_, i64>(2)).unwrap_or_default())),
            _ => snapshot.down = true,
        }
    }
    // Cleanup drops the write block and leaves ledger and record: a migrated database must not appear unmigrated.
    let write_block = match exists(client, "write_block").await? {
        true => {
            client
                .query_opt("SELECT migration_uid, blocked_at FROM credit_migration.write_block WHERE blocked", &[])
                .await?
        }
        false => None,
    };
    if let Some(row) = write_block {
        if row.get::<_, &str>(0) != spec.uid {
            let message =
                format!("writes are blocked by migration uid {}; next: let it end its window", row.get::<_, &str>(0));
            return Err(Failure::new(Reason::DatabaseInUse, message));
        }
        snapshot.blocked_at = Some(row.get(1));
    }
    let record = client
        .query_opt(
            "SELECT attempt, deadline, switch_acknowledged_at IS NOT NULL, finished_at IS NOT NULL, outcome, reason, \
                message, progress
             FROM credit_migration.window_record WHERE migration_uid = $1 AND direction = $2",
            &[&spec.uid, &direction.sql_name()],
        )
        .await?;
    snapshot.record = record.map(|row| WindowRecord {
        attempt: u32::try_from(row.get::<_, i32>(0)).unwrap_or_default(),
        deadline: row.get(1),
        switch_acknowledged: row.get(2),
        finished: row.get::<_, bool>(3).then(|| RecordedEnd {
            schema: match row.get::<_, Option<&str>>(4) {
                Some("unblocked") => SchemaInPlace::New,
                _ => SchemaInPlace::Old,
            },
            failure: row.get::<_, Option<&str>>(5).map(|reason| {
                let reason =
                    Reason::ALL.iter().copied().find(|known| known.as_str() == reason).unwrap_or(Reason::Internal);
                Failure::new(reason, row.get::<_, Option<String>>(6).unwrap_or_default())
            }),
        }),
        progress: row.get::<_, Option<Json<WindowProgress>>>(7).map(|Json(progress)| progress).unwrap_or_default(),
    });
    Ok(snapshot)
}

/// Records that the controller is about to change the flag. Done before the acknowledgement is reported.
///
/// # Errors
/// Database errors.
pub async fn acknowledge_switch(client: &Client, spec: &ControlSpec, direction: Direction) -> Result<(), Failure> {
    client
        .execute(
            "UPDATE credit_migration.window_record SET switch_acknowledged_at = coalesce(switch_acknowledged_at, \
                clock_timestamp())
             WHERE migration_uid = $1 AND direction = $2",
            &[&spec.uid, &direction.sql_name()],
        )
        .await?;
    Ok(())
}

/// Stores the progress of the window, for a pod that may have to resume it.
///
/// # Errors
/// Database errors.
pub async fn save_progress(
    client: &Client,
    spec: &ControlSpec,
    direction: Direction,
    progress: &WindowProgress,
) -> Result<(), Failure> {
    client
        .execute(
            "UPDATE credit_migration.window_record SET progress = $3 WHERE migration_uid = $1 AND direction = $2",
            &[&spec.uid, &direction.sql_name(), &Json(progress)],
        )
        .await?;
    Ok(())
}
