//! What a task finds out before its end, for the status of its run.

use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::api::{MigrationRunStatus, WindowProgress};

/// What a task has to report before its end: a status that grows. Cheap to clone, never waits.
#[derive(Clone, Debug)]
pub struct Progress(watch::Sender<MigrationRunStatus>);

impl Default for Progress {
    fn default() -> Self {
        Self(watch::Sender::new(MigrationRunStatus::default()))
    }
}

impl Progress {
    /// Changes the status. Its phase is not a task's to set: it is reported at the start and at the end.
    pub fn update(&self, change: impl FnOnce(&mut MigrationRunStatus)) {
        self.0.send_modify(change);
    }

    /// All fields of the status that were set, by their names in JSON.
    pub fn fields(&self) -> Map<String, Value> {
        fields_of(&self.0.borrow())
    }

    /// Notifies of each change.
    pub(super) fn subscribe(&self) -> watch::Receiver<MigrationRunStatus> {
        self.0.subscribe()
    }
}

/// The fields of a merge patch that writes `status` without its phase. What was under way and is done is removed.
pub(super) fn fields_of(status: &MigrationRunStatus) -> Map<String, Value> {
    let mut fields = match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) => Map::new(),
        Err(error) => {
            tracing::error!(%error, "a report cannot be written as JSON");
            Map::new()
        }
    };
    fields.remove("phase");
    // What is not named a merge patch leaves alone.
    fields.entry("work").or_insert(Value::Null);
    if let Some(window) = &status.window {
        fields.insert("window".to_owned(), window_fields(window));
    }
    fields
}

/// A window's progress with all of its fields, those that are absent as null: a merge patch leaves alone what it does
/// not name, and a comparison of the forward path would remain as evidence of the rollback.
pub(in crate::runner) fn window_fields(progress: &WindowProgress) -> Value {
    const OPTIONAL_FIELDS: [&str; 11] = [
        "blockedAt",
        "verification",
        "migrateSeconds",
        "reconciledUsers",
        "comparison",
        "usersWrittenSince",
        "observedVersion",
        "observedAt",
        "unblockedAt",
        "recovery",
        "replication",
    ];
    let mut all = json!(progress);
    if let Some(fields) = all.as_object_mut() {
        for field in OPTIONAL_FIELDS {
            fields.entry(field).or_insert(Value::Null);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{
        Comparison, NotShown, NotShownKind, Obstacle, ObstacleKind, RecoveryPoints, Replication, Time, WindowState,
    };

    #[test]
    fn what_is_absent_clears_what_was_reported_before() {
        let now = Some(Time::UNIX_EPOCH);
        // Without `..`: a new field has to be thought of here, and in `window_fields`.
        let full = WindowProgress {
            state: WindowState::Migrated,
            stuck: true,
            obstacles: vec![Obstacle::new(ObstacleKind::Vacuum)],
            blocked_at: now,
            verification: Some("p".into()),
            terminated_sessions: 1,
            migrate_seconds: Some(1.0),
            reconciled_users: Some(1),
            comparison: Some(Comparison { users: 1, unexplained: 0, total_balance: "1".into() }),
            users_written_since: Some(1),
            switch_acknowledged: true,
            observed_version: Some("v1".into()),
            observed_at: now,
            unblocked_at: now,
            deadline_passed: true,
            recovery: RecoveryPoints { blocked_lsn: Some("0/1".into()), ..RecoveryPoints::default() },
            replication: Some(Replication::default()),
            not_shown: vec![NotShown { kind: NotShownKind::WritesBlocked, message: "m".into() }],
        };
        let mut status = window_fields(&full);
        // As the API server merges it.
        for (field, value) in window_fields(&WindowProgress::default()).as_object().unwrap() {
            match value {
                Value::Null => status.as_object_mut().unwrap().remove(field),
                value => status.as_object_mut().unwrap().insert(field.clone(), value.clone()),
            };
        }
        assert_eq!(serde_json::from_value::<WindowProgress>(status).unwrap(), WindowProgress::default());
    }

    #[test]
    fn only_what_was_set_is_a_field() {
        let progress = Progress::default();
        assert_eq!(Value::from(progress.fields()), json!({"work": null}));
        progress.update(|status| status.users_written = Some(1));
        progress.update(|status| status.message = Some("x".to_owned()));
        progress.update(|status| status.users_written = Some(3));
        assert_eq!(Value::from(progress.fields()), json!({"usersWritten": 3, "message": "x", "work": null}));
    }
}
