//! Standby: everything is prepared, and the task waits for the order to block writes.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::{
    Channel, WindowOutcome,
    session::{PING_INTERVAL, POLL_INTERVAL, WindowTask, ping},
};
use crate::{
    api::{
        Direction, Reason, WindowState,
        window_rules::{Move, WindowActivity},
    },
    runner::{
        Failure,
        database::{control, schema_objects::require_rehearsed_schema_now},
    },
};

/// How often the baseline is brought up to date on standby.
const REFRESH_INTERVAL: Duration = Duration::from_secs(10);

impl<C: Channel> WindowTask<'_, C> {
    /// Prepares everything, and waits for `BlockWrites`.
    pub(super) async fn standby(&mut self, mut client: Client) -> Result<WindowOutcome, Failure> {
        let spec = self.control_spec();
        // What is prepared takes its time, and writes are not blocked.
        client.batch_execute("SET lock_timeout = 0; SET statement_timeout = 0").await?;
        control::reinstall(&mut client, spec).await?;
        if self.plan.direction == Direction::Forward {
            if !control::has_baseline(&client, spec).await? && control::compare(&client, spec).await?.users > 0 {
                return Err(Failure::new(
                    Reason::BalancesUnexplained,
                    "no baseline of the balances was taken; next: let the Backup step run again",
                ));
            }
            control::refresh_baseline(&mut client, spec).await?;
            // What has changed is found while writes are open; the transaction of the SQL compares once more.
            require_rehearsed_schema_now(&mut client, spec).await?;
        }
        self.enter(WindowState::Ready);
        self.report(None);
        let (mut pinged, mut refreshed) = (Instant::now(), Instant::now());
        loop {
            match self.next_move(WindowActivity::Standby) {
                Move::End(ending) => return self.end(&mut client, ending, None).await,
                Move::BlockWrites => {
                    let Some(deadline) = self.orders().deadline else {
                        return Err(Failure::new(Reason::Internal, "the order to block writes has no deadline"));
                    };
                    client.batch_execute("RESET lock_timeout; RESET statement_timeout").await?;
                    return self.block_writes(client, deadline).await;
                }
                _ => {}
            }
            self.wait().await;
            if pinged.elapsed() > PING_INTERVAL {
                ping(&client).await?;
                pinged = Instant::now();
            }
            if refreshed.elapsed() > REFRESH_INTERVAL && self.plan.direction == Direction::Forward {
                control::refresh_baseline(&mut client, spec).await?;
                refreshed = Instant::now();
            }
        }
    }

    /// Waits for an order, for one interval at most.
    pub(super) async fn wait(&mut self) {
        // An error means that the poller has ended, which ends with this task.
        let _ = tokio::time::timeout(POLL_INTERVAL, self.orders.changed()).await;
    }
}
