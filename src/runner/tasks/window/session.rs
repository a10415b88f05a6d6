//! The window task's logic, from one connection to the next.
//!
//! ```text
//!  session() ─> resume point from gate, intent and ledger
//!     standby ──BlockWrites──> block ──> migrate (way there) ──> hold ──UnblockWrites──> finish(new schema)
//!        │Rollback               │fails      │fails               ├──Rollback───────> undo ──> finish(old schema)
//!        v                       v           v                    └──deadline─> undo (way there) / finish (way back),
//!      nothing done            finish      finish                              or Held once the switch is acknowledged
//! ```
//! A lost connection at any point leads back to `session()`; the gate stays closed meanwhile.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_postgres::Client;

use super::{Channel, Orders, Outcome, Report, Running, WindowPlan};
use crate::{
    api::{Direction, Reason, SchemaInPlace, WindowCommand, WindowProgress, WindowState},
    runner::{
        Failure,
        database::control::{
            self, Sql, Subject, jitter,
            write_block::{self, Finished, Snapshot},
        },
        postgres::Target,
    },
};

/// How often the task looks at clock and orders when nothing wakes it.
pub(super) const TICK: Duration = Duration::from_millis(50);
/// How often an idle session is tried, so that a lost one is noticed before it is needed.
pub(super) const PING: Duration = Duration::from_secs(1);
/// How long a task that has opened nothing looks for its database.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long another task's session is silent before it is ended, the first time.
const STALE: Duration = Duration::from_secs(10);

pub(super) struct Task<'a, C> {
    pub(super) channel: &'a C,
    pub(super) target: &'a Target,
    pub(super) plan: &'a WindowPlan,
    pub(super) running: &'a Running,
    pub(super) orders: watch::Receiver<Orders>,
    pub(super) reports: watch::Sender<Report>,
    pub(super) progress: WindowProgress,
    /// Of the window that is open, if the order does not say.
    pub(super) deadline: Option<Timestamp>,
    /// The gate is closed, as far as this task knows.
    pub(super) opened: bool,
    /// The SQL of the way back.
    pub(super) down: Sql,
    /// How long another task's session must have been silent before it is ended.
    pub(super) stale: Duration,
}

/// Where a session begins.
enum Resume {
    Done(Finished),
    Standby,
    Blocked,
    Migrated,
    /// Nothing is left to do but to open the gate on the old schema.
    Undone,
}

impl<'a, C: Channel> Task<'a, C> {
    pub(super) fn new(
        channel: &'a C,
        target: &'a Target,
        plan: &'a WindowPlan,
        running: &'a Running,
        orders: watch::Receiver<Orders>,
        reports: watch::Sender<Report>,
    ) -> Self {
        Self {
            channel,
            target,
            plan,
            running,
            orders,
            reports,
            progress: WindowProgress::default(),
            deadline: None,
            opened: false,
            down: Sql { statements: vec![], sha256: String::new() },
            stale: STALE,
        }
    }

    pub(super) fn subject(&self) -> &'a Subject {
        &self.plan.subject
    }

    /// Works until the window has ended; connects again whenever the connection is lost.
    pub(super) async fn run(mut self) -> Outcome {
        let mut lost_since = Instant::now();
        loop {
            let begin = Instant::now();
            let failure = match self.session().await {
                Ok(outcome) => return outcome,
                Err(failure) => failure,
            };
            if begin.elapsed() > PING {
                lost_since = Instant::now();
            }
            if gives_up(self.opened, failure.is_connection_lost(), self.orders().command, lost_since.elapsed()) {
                return Outcome { progress: self.progress, failure: Some(failure) };
            }
            // From here on writes may be blocked. Giving up would leave them so with nobody at work on it.
            tracing::error!(reason = %failure.reason, message = failure.message, "window interrupted, going on");
            // One that began with an order beyond `Standby` may have been preceded by one that closed the gate.
            let closed = self.opened || self.plan.order.command > WindowCommand::Standby;
            if closed && self.overdue() {
                (self.progress.state, self.progress.deadline_passed) = (WindowState::Held, true);
            }
            self.report(Some(failure));
            tokio::time::sleep(jitter(Duration::from_millis(200))).await;
        }
    }

    pub(super) fn orders(&self) -> Orders {
        self.orders.borrow().clone()
    }

    /// The deadline has passed, or there is nobody any more who could give an order.
    pub(super) fn overdue(&self) -> bool {
        let orders = self.orders();
        let deadline = orders.deadline.or(self.deadline);
        orders.gone || deadline.is_some_and(|deadline| self.channel.now() >= deadline)
    }

    /// Why the task ends a window without an order.
    pub(super) fn overdue_failure(&self) -> Failure {
        let orders = self.orders();
        let message = match (orders.gone, orders.deadline.or(self.deadline)) {
            (false, Some(deadline)) => format!("the window's deadline {deadline} passed at order {:?}", orders.command),
            _ => format!("the MigrationRun is gone at order {:?}", orders.command),
        };
        Failure::new(Reason::DeadlinePassed, message)
    }

    pub(super) fn report(&self, note: Option<Failure>) {
        self.reports.send_replace((self.progress.clone(), note));
    }

    /// Reports, and keeps it in the database for whoever must go on.
    pub(super) async fn milestone(&self, client: &Client) -> Result<(), Failure> {
        self.report(None);
        write_block::save_progress(client, self.subject(), self.plan.direction, &self.progress).await
    }

    /// One connection's work. An error is a lost connection, or one that another session may get over.
    async fn session(&mut self) -> Result<Outcome, Failure> {
        let mut client = self.target.connect("window").await?;
        self.running.is(client.cancel_token());
        self.take_the_work(&client).await?;
        let snapshot = match control::exists(&client, "window_record").await? {
            true => write_block::observe(&client, self.subject(), self.plan.direction).await?,
            false => Snapshot::default(),
        };
        let resume = self.resume(&snapshot);
        if matches!(resume, Resume::Standby) {
            self.up()?;
        }
        if !matches!(resume, Resume::Done(_)) {
            self.down = self.down(&client).await?;
        }
        if snapshot.closed_at.is_some() {
            self.take_over(&mut client).await?;
        }
        match resume {
            Resume::Done(Finished { schema, failure }) => {
                // What the pod before reported is evidence; this one must not replace it by an empty report.
                if let Some(intent) = snapshot.intent {
                    self.progress = intent.progress;
                    self.progress.switch_acknowledged = intent.switch_acknowledged;
                }
                self.progress.state = schema.final_state();
                Ok(Outcome { progress: self.progress.clone(), failure })
            }
            Resume::Undone => self.undone(&mut client, None).await,
            Resume::Standby => self.standby(client).await,
            Resume::Blocked => self.blocked(client, snapshot.closed_at.unwrap_or(Timestamp::UNIX_EPOCH)).await,
            Resume::Migrated => {
                let up = snapshot.up.unwrap_or_default();
                self.migrated(&mut client, up).await
            }
        }
    }

    fn resume(&self, snapshot: &Snapshot) -> Resume {
        let closed = snapshot.closed_at.is_some();
        if let Some(intent) = &snapshot.intent
            && let Some(finished) = &intent.finished
            && !closed
            && intent.attempt == self.plan.attempt
        {
            return Resume::Done(finished.clone());
        }
        let old_schema = || {
            if closed { Resume::Undone } else { Resume::Done(Finished { schema: SchemaInPlace::Old, failure: None }) }
        };
        match (self.plan.direction, snapshot.up, snapshot.down) {
            (_, _, true) | (Direction::Rollback, None, false) => old_schema(),
            (Direction::Forward, Some(_), false) if closed => Resume::Migrated,
            (Direction::Forward, Some(_), false) => {
                Resume::Done(Finished { schema: SchemaInPlace::New, failure: None })
            }
            (Direction::Forward, None, false) | (Direction::Rollback, Some(_), false) if closed => Resume::Blocked,
            (Direction::Forward, None, false) | (Direction::Rollback, Some(_), false) => Resume::Standby,
        }
    }
}

/// Whether a task that met a failure ends: only one behind which nobody can have closed the gate.
fn gives_up(opened: bool, lost: bool, order: WindowCommand, since: Duration) -> bool {
    !opened && (!lost || (order == WindowCommand::Standby && since > PATIENCE))
}

pub(super) async fn ping(client: &Client) -> Result<(), Failure> {
    client.batch_execute("SELECT 1").await.map_err(Failure::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_have_closed_the_gate_does_not_give_up_its_database() {
        let (soon, late) = (PATIENCE / 2, PATIENCE * 2);
        for (opened, lost, order, since, ends) in [
            (false, true, WindowCommand::Standby, soon, false),
            (false, true, WindowCommand::Standby, late, true),
            // As a restarted container keeps it.
            (false, true, WindowCommand::BlockWrites, late, false),
            (false, true, WindowCommand::Rollback, late, false),
            (false, false, WindowCommand::BlockWrites, soon, true),
            (true, false, WindowCommand::Standby, late, false),
            (true, true, WindowCommand::Standby, late, false),
        ] {
            assert_eq!(gives_up(opened, lost, order, since), ends, "{opened} {lost} {order:?} {since:?}");
        }
    }
}
