//! Standby: everything is prepared, and the task waits for the order to block writes.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::{
    Channel, WindowOutcome,
    session::{POLL_INTERVAL, WindowTask},
};
use crate::{
    api::{
        Direction, Obstacle, ObstacleKind, Reason, WindowState,
        window_rules::{Move, WindowActivity},
    },
    runner::{
        Failure, UnlessLost,
        database::control::{self, ObstacleFinder, schema_objects::require_rehearsed_schema_now},
    },
};

/// How often it searches for what would keep writes from being blocked. A lost session is noticed by it, too.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);
/// Users whose baseline the transaction of the SQL may bring up to date: more are left to another refresh, before.
const USERS_LEFT: u64 = 10_000;
/// How often the baseline is brought up to date on standby.
const REFRESH_INTERVAL: Duration = Duration::from_secs(10);

impl<C: Channel> WindowTask<'_, C> {
    /// Prepares everything, and waits for `BlockWrites`.
    pub(super) async fn standby(&mut self, mut client: Client) -> Result<WindowOutcome, Failure> {
        let spec = self.control_spec();
        // What is prepared takes its time, and writes are not blocked.
        client.batch_execute("SET lock_timeout = 0; SET statement_timeout = 0").await?;
        control::reinstall(&mut client, spec).await?;
        let direction = self.plan.direction;
        if direction == Direction::Forward
            && !control::has_baseline(&client, spec).await?
            && control::compare(&client, spec).await?.users > 0
        {
            return Err(Failure::new(
                Reason::BalancesUnexplained,
                "no baseline of the balances was taken; next: let the Backup step run again",
            ));
        }
        // Each refresh is shorter than the one before, and so is what was written during it. One that is not has
        // reached what the application writes all the time.
        let mut before = u64::MAX;
        loop {
            let users = control::refresh_baseline(&mut client, spec, direction).await?;
            if users <= USERS_LEFT || users >= before {
                break;
            }
            before = users;
        }
        // What the window need not do. A rollback does not wait for it, if it is known already.
        self.compare_untracked(&mut client, direction == Direction::Forward).await?;
        if direction == Direction::Forward {
            // What has changed is found while writes are open; the transaction of the SQL compares once more.
            require_rehearsed_schema_now(&mut client, spec).await?;
        }
        let mut finder = ObstacleFinder::default();
        self.find_obstacles(&client, &mut finder).await?;
        // Otherwise the order would come before it is known.
        while finder.awaits_standbys() {
            self.wait().await;
            self.find_obstacles(&client, &mut finder).await?;
        }
        self.enter(WindowState::Ready);
        self.report(None);
        let (mut searched, mut refreshed, mut refused) = (Instant::now(), Instant::now(), None);
        loop {
            match self.next_move(WindowActivity::Standby) {
                Move::End(ending) => return self.end(&mut client, ending, None).await,
                Move::BlockWrites => {
                    let Some(deadline) = self.orders().deadline else {
                        return Err(Failure::new(Reason::Internal, "the order to block writes has no deadline"));
                    };
                    // Once more: with writes blocked it would be too late.
                    if self.find_obstacles(&client, &mut finder).await? {
                        self.report(None);
                    }
                    // It took its time: an end may have been ordered meanwhile.
                    if self.next_move(WindowActivity::Standby) != Move::BlockWrites {
                        continue;
                    }
                    if self.progress.obstacles.is_empty() {
                        client.batch_execute("RESET lock_timeout; RESET statement_timeout").await?;
                        return self.block_writes(client, deadline).await;
                    }
                    if refused.get_or_insert_with(Instant::now).elapsed() >= spec.lock_timeout {
                        self.enter(self.plan.direction.schema_before().final_state());
                        return Err(self.obstructed());
                    }
                }
                _ => {}
            }
            self.wait().await;
            if searched.elapsed() > SEARCH_INTERVAL {
                if self.find_obstacles(&client, &mut finder).await? {
                    self.report(None);
                }
                searched = Instant::now();
            }
            if refreshed.elapsed() > REFRESH_INTERVAL {
                control::refresh_baseline(&mut client, spec, direction).await?;
                self.compare_untracked(&mut client, false).await?;
                refreshed = Instant::now();
            }
        }
    }

    /// Compares what is not tracked, so that the window need not. Where that is not possible, it compares all.
    async fn compare_untracked(&self, client: &mut Client, again: bool) -> Result<(), Failure> {
        let compared = control::compare_untracked(client, self.control_spec(), self.plan.direction, again).await;
        let known = match compared {
            // Who has the lock is an obstacle of its own, and orders have to be read.
            Err(failure) if failure.reason == Reason::LockTimeout => false,
            compared => compared?.known,
        };
        if !known {
            tracing::warn!("the window compares the balances of all users: the catalogs do not show who was written");
        }
        Ok(())
    }

    /// Finds what would keep writes from being blocked, after it has opened the sessions that the window needs in
    /// addition to its own. Returns whether that has changed.
    async fn find_obstacles(&mut self, client: &Client, finder: &mut ObstacleFinder) -> Result<bool, Failure> {
        let sessions_open = match self.kept.open().await.unless_lost() {
            Ok(all) => all.map(|()| true)?,
            Err(lost) => {
                tracing::warn!(error = %lost, "a session of the window is not open, will be retried");
                false
            }
        };
        let finding = finder.find(client, self.control_spec(), self.plan.direction, sessions_open);
        let found = self.bounded(client, finding).await.unless_lost()?.unwrap_or_else(|failure| {
            // Writes would be blocked without knowing whether the way out is open.
            vec![Obstacle { detail: Some(failure.message), ..Obstacle::new(ObstacleKind::SearchFailed) }]
        });
        let changed = found != self.progress.obstacles;
        if changed {
            tracing::info!(obstacles = found.len(), "what keeps writes from being blocked has changed");
            self.progress.obstacles = found;
        }
        Ok(changed)
    }

    /// Why writes are not blocked although it is ordered.
    fn obstructed(&self) -> Failure {
        let first = self.progress.obstacles.first();
        let message = first.map(|obstacle| obstacle.message().to_string()).unwrap_or_default();
        let reason = match first.map(|obstacle| obstacle.kind) {
            Some(ObstacleKind::TooFewConnections) => Reason::DatabaseUnavailable,
            Some(ObstacleKind::StandbyNotReplaying) => Reason::StandbyBehind,
            _ => Reason::LockTimeout,
        };
        Failure::new(reason, format!("writes were not blocked: {message}"))
    }

    /// Waits for an order, for one interval at most.
    pub(super) async fn wait(&mut self) {
        // An error means that the poller has ended, which ends with this task.
        let _ = tokio::time::timeout(POLL_INTERVAL, self.orders.changed()).await;
    }
}
