//! Running the up SQL.

use std::{pin::pin, time::Duration};

use tokio_postgres::Client;

use super::{
    Channel, WindowOutcome,
    kept::{KeptSession, ping},
    session::{POLL_INTERVAL, WindowTask},
};
use crate::{
    api::{
        Reason, SchemaInPlace, WindowState,
        window_rules::{Move, WindowActivity},
    },
    runner::{
        Failure, UnlessLost,
        database::control::{self, Applied, LockHolders, Sql, StopSignal, jitter},
    },
};

/// Attempts of a transaction that cannot get a lock.
const SQL_ATTEMPTS: u32 = 3;

impl<C: Channel> WindowTask<'_, C> {
    /// Runs the up SQL; stops it at the deadline, on `Rollback`, or when the run is gone.
    pub(super) async fn apply_sql(
        &mut self,
        mut client: Client,
        up: &Sql,
        down: &Sql,
    ) -> Result<WindowOutcome, Failure> {
        let stop = StopSignal::default();
        let holders = LockHolders::default();
        let pid: i32 = client.query_one("SELECT pg_catalog.pg_backend_pid()", &[]).await.map_err(Failure::from)?.get(0);
        let delay = self.control_spec().lock_timeout / 4;
        let locks = self.kept.locks.clone();
        let mut watching = pin!(watch_holders(&holders, &locks, pid, delay));
        let mut watched = false;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let token = client.cancel_token();
            let result = {
                let mut run = pin!(control::run_up(&mut client, self.control_spec(), up, down, &stop));
                loop {
                    tokio::select! {
                        result = &mut run => break result,
                        () = tokio::time::sleep(POLL_INTERVAL) => {}
                        () = &mut watching, if !watched => watched = true,
                    }
                    if let Move::End(_) = self.next_move(WindowActivity::ApplyingSql) {
                        stop.request();
                        // Awaited: a request that is still under way could cancel a later statement.
                        if let Err(failure) = self.target.cancel(token.clone()).await {
                            tracing::warn!(error = %failure, "statement not cancelled");
                        }
                    }
                }
            };
            if stop.requested() {
                // Absorbs a cancellation that came too late for the SQL: it must not cancel the statement that
                // unblocks writes.
                let _ = ping(&client).await;
            }
            match result.unless_lost()? {
                Ok(Applied::Now { seconds, reconciled_users, .. } | Applied::Earlier { seconds, reconciled_users }) => {
                    return self.sql_applied(&mut client, (seconds, reconciled_users)).await;
                }
                Ok(Applied::NotApplicable) => return self.finish(&mut client, SchemaInPlace::Old, None).await,
                Err(failure)
                    if stop.requested()
                        && let Move::End(ending) = self.next_move(WindowActivity::ApplyingSql) =>
                {
                    return self.end(&mut client, ending, Some(failure)).await;
                }
                Err(failure) if failure.reason == Reason::LockTimeout && attempts < SQL_ATTEMPTS => {
                    tokio::time::sleep(jitter(Duration::from_millis(50))).await;
                }
                Err(failure) => {
                    let named = if failure.reason == Reason::LockTimeout { holders.name_in(failure) } else { failure };
                    return self.finish(&mut client, SchemaInPlace::Old, Some(named)).await;
                }
            }
        }
    }

    /// The up SQL is committed.
    pub(super) async fn sql_applied(
        &mut self,
        client: &mut Client,
        (seconds, users): (f64, u64),
    ) -> Result<WindowOutcome, Failure> {
        self.progress.state = self.progress.state.max(WindowState::Migrated);
        self.progress.migrate_seconds = Some(seconds);
        self.progress.reconciled_users = Some(users);
        // At once: the sessions of the application are ended, so that none has numbers of transactions of before.
        let keeping = control::keep_snapshot(&*client, self.control_spec());
        if let Err(failure) = self.bounded(client, keeping).await.unless_lost()? {
            tracing::warn!(error = %failure, "the snapshot of the cutover is not kept yet");
        }
        self.record_committed(client).await?;
        self.await_cutover(client).await
    }
}

/// Looks up who keeps the session of this pid waiting, once a statement may have waited for `delay`.
async fn watch_holders(holders: &LockHolders, session: &KeptSession, pid: i32, delay: Duration) {
    tokio::time::sleep(delay).await;
    let client = loop {
        match session.take().await {
            Ok(client) => break client,
            Err(failure) => tracing::warn!(error = %failure, "the holders of locks are not looked up yet"),
        }
        tokio::time::sleep(jitter(POLL_INTERVAL)).await;
    };
    holders.watch(&client, pid).await;
}
