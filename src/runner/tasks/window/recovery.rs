//! What the window records for a point-in-time recovery, and its wait for the standbys.

use tokio_postgres::Client;

use super::{Channel, session::WindowTask};
use crate::{
    api::{Direction, NotShownKind, Reason, Replication, Standby},
    runner::{Failure, UnlessLost, database::control},
};

impl<C: Channel> WindowTask<'_, C> {
    /// Writes are blocked and the SQL has not run: here a recovery can stop. A pod that takes over keeps what is
    /// recorded.
    pub(super) async fn record_blocked(&mut self, client: &Client) -> Result<(), Failure> {
        if self.progress.recovery.blocked_lsn.is_some() {
            return Ok(());
        }
        let direction = match self.plan.direction {
            Direction::Forward => "window",
            Direction::Rollback => "rollback",
        };
        // At most 63 bytes.
        let name = format!("credit-{direction}-{}-{}", self.plan.attempt, self.control_spec().uid);
        let creating = self.bounded(client, control::restore_point(client, &name)).await.unless_lost()?;
        if creating == Ok(true) {
            self.progress.recovery.restore_point = Some(name);
        }
        self.progress.recovery.blocked_lsn = self.wal_position(client).await?;
        Ok(())
    }

    /// The SQL is committed.
    pub(super) async fn record_committed(&mut self, client: &Client) -> Result<(), Failure> {
        if self.progress.recovery.committed_lsn.is_none() {
            self.progress.recovery.committed_lsn = self.wal_position(client).await?;
        }
        Ok(())
    }

    /// Writes are about to be unblocked.
    pub(super) async fn record_unblocked(&mut self, client: &Client) -> Result<(), Failure> {
        self.progress.recovery.unblocked_lsn = self.wal_position(client).await?;
        Ok(())
    }

    async fn wal_position(&self, client: &Client) -> Result<Option<String>, Failure> {
        Ok(self.bounded(client, control::wal_position(client)).await.unless_lost()?.unwrap_or_default())
    }

    /// Whether the streaming standbys have replayed the commit of the up SQL: the new version may read from them, and
    /// would find the old schema. Reports it if not. A role that cannot see them waits for none.
    pub(super) async fn standbys_have_replayed(&mut self, client: &Client) -> Result<bool, Failure> {
        let (Direction::Forward, Some(committed)) = (self.plan.direction, self.progress.recovery.committed_lsn.clone())
        else {
            return Ok(true);
        };
        let asked = self.bounded(client, control::replication(client, &committed)).await.unless_lost()?;
        let replication = match asked {
            Ok(replication) => replication,
            // A view that cannot be read must not keep writes blocked up to the deadline.
            Err(failure) => {
                self.note_not_shown(NotShownKind::StandbysReplayed, failure);
                return Ok(true);
            }
        };
        let behind: Vec<String> = replication
            .standbys
            .iter()
            .filter(|standby| standby.behind_bytes > 0)
            .map(|Standby { name, behind_bytes }| format!("{name} by {behind_bytes} bytes"))
            .collect();
        if !replication.visible && self.progress.replication.as_ref().is_none_or(|known| known.visible) {
            tracing::warn!(
                "how far standbys are is hidden from the migration role, so none is waited for; next: GRANT \
                 pg_read_all_stats TO the role"
            );
        }
        // By their names: how many bytes are missing changes each time.
        let names = |known: &Replication| known.standbys.iter().map(|standby| standby.name.clone()).collect::<Vec<_>>();
        let changed = self.progress.replication.as_ref().map(names) != Some(names(&replication));
        self.progress.replication = Some(replication);
        if behind.is_empty() {
            return Ok(true);
        }
        if changed {
            let message = format!(
                "standbys have not replayed the commit at {committed}: {}, limit 0; the switch waits for them; \
                 next: on the standby: SELECT pg_wal_replay_resume(), and end queries that conflict",
                behind.join(", ")
            );
            self.report(Some(Failure::new(Reason::StandbyBehind, message)));
        }
        Ok(false)
    }
}
