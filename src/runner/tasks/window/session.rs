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

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_postgres::Client;

use super::{
    Channel, Orders, Outcome, Report, Running, WindowPlan,
    background::{comparison, probe},
};
use crate::{
    api::{Comparison, Reason, WindowCommand, WindowProgress, WindowState},
    runner::{
        Failure,
        database::control::{
            self, Applied, Sql, Step, Stop, Subject,
            write_block::{self, Finished, Snapshot},
            jitter,
        },
        postgres::{Target, classify},
    },
};

/// How often the task looks at clock and orders when nothing wakes it.
const TICK: Duration = Duration::from_millis(50);
/// How often an idle session is tried, so that a lost one is noticed before it is needed.
const PING: Duration = Duration::from_secs(1);
/// How often the baseline is brought up to date while the task stands by.
const REFRESH: Duration = Duration::from_secs(10);
/// How long a task that has opened nothing looks for its database.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a transaction that met a lock is tried again.
const LOCK_TRIES: u32 = 3;
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
            let lost = matches!(failure.reason, Reason::HostUnreachable | Reason::ConnectionLost);
            if gives_up(self.opened, lost, self.orders().command, lost_since.elapsed()) {
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
            Resume::Done(Finished { released, failure }) => {
                // What the pod before reported is evidence; this one must not replace it by an empty report.
                if let Some(intent) = snapshot.intent {
                    self.progress = intent.progress;
                    self.progress.switch_acknowledged = intent.switch_acknowledged;
                }
                self.progress.state = if released { WindowState::Released } else { WindowState::RolledBack };
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
        let old_schema =
            || if closed { Resume::Undone } else { Resume::Done(Finished { released: false, failure: None }) };
        match (self.plan.direction, snapshot.up, snapshot.down) {
            (_, _, true) | (Step::Down, None, false) => old_schema(),
            (Step::Up, Some(_), false) if closed => Resume::Migrated,
            (Step::Up, Some(_), false) => Resume::Done(Finished { released: true, failure: None }),
            (Step::Up, None, false) | (Step::Down, Some(_), false) if closed => Resume::Blocked,
            (Step::Up, None, false) | (Step::Down, Some(_), false) => Resume::Standby,
        }
    }

    /// The gate was closed by an earlier session: lets this one pass, and takes the lock again.
    async fn take_over(&mut self, client: &mut Client) -> Result<(), Failure> {
        self.opened = true;
        let closed_at = write_block::adopt(client, self.subject(), self.plan.direction, self.plan.attempt).await?;
        // Read after it was adopted: what the way there has acknowledged binds the way back.
        if let Some(intent) = write_block::observe(client, self.subject(), self.plan.direction).await?.intent {
            self.deadline = Some(intent.deadline);
            self.progress = intent.progress;
            self.progress.switch_acknowledged = intent.switch_acknowledged;
        }
        self.progress.blocked_at = closed_at;
        // An earlier window's end is not this one's.
        self.progress.released_at = None;
        self.progress.deadline_passed = false;
        Ok(())
    }

    /// Everything is made ready; waits for `BlockWrites`.
    async fn standby(&mut self, mut client: Client) -> Result<Outcome, Failure> {
        let subject = self.subject();
        control::reinstall(&mut client, subject).await?;
        if self.plan.direction == Step::Up {
            if !control::has_baseline(&client, subject).await? && control::compare(&client, subject).await?.users > 0 {
                return Err(Failure::new(
                    Reason::BalancesUnexplained,
                    "no baseline of the balances was taken; next: let the Backup step run again",
                ));
            }
            control::refresh_baseline(&mut client, subject).await?;
        }
        self.progress.state = WindowState::Ready;
        self.report(None);
        let (mut pinged, mut refreshed) = (Instant::now(), Instant::now());
        loop {
            let orders = self.orders();
            match orders.command {
                _ if orders.gone => {
                    return Ok(Outcome { progress: self.progress.clone(), failure: Some(self.overdue_failure()) });
                }
                WindowCommand::Standby => {}
                WindowCommand::Rollback => {
                    self.progress.state = WindowState::RolledBack;
                    return Ok(Outcome { progress: self.progress.clone(), failure: None });
                }
                WindowCommand::BlockWrites | WindowCommand::Switch | WindowCommand::UnblockWrites => {
                    let Some(deadline) = orders.deadline else {
                        return Err(Failure::new(Reason::Internal, "the order to open the window has no deadline"));
                    };
                    return self.open(client, deadline).await;
                }
            }
            self.wait().await;
            if pinged.elapsed() > PING {
                ping(&client).await?;
                pinged = Instant::now();
            }
            if refreshed.elapsed() > REFRESH && self.plan.direction == Step::Up {
                control::refresh_baseline(&mut client, subject).await?;
                refreshed = Instant::now();
            }
        }
    }

    /// Until an order comes in, or a tick is over.
    async fn wait(&mut self) {
        // An error means that the poller is gone, which ends with this task.
        let _ = tokio::time::timeout(TICK, self.orders.changed()).await;
    }

    async fn open(&mut self, mut client: Client, deadline: Timestamp) -> Result<Outcome, Failure> {
        if self.overdue() {
            self.progress.deadline_passed = true;
            self.progress.state =
                if self.plan.direction == Step::Up { WindowState::RolledBack } else { WindowState::Released };
            return Ok(Outcome { progress: self.progress.clone(), failure: Some(self.overdue_failure()) });
        }
        self.progress.state = WindowState::Blocking;
        self.report(None);
        self.deadline = Some(deadline);
        // Set before the call: if the connection is lost in it, the gate may be closed.
        self.opened = true;
        let closed_at =
            match write_block::close(&mut client, self.subject(), self.plan.direction, self.plan.attempt, deadline).await {
                Err(failure) if !lost(&failure) => {
                    // The closing was refused: the gate is open as before.
                    self.opened = false;
                    self.progress.state =
                        if self.plan.direction == Step::Up { WindowState::RolledBack } else { WindowState::Released };
                    return Err(failure);
                }
                result => result?,
            };
        self.progress.blocked_at = Some(closed_at);
        self.blocked(client, closed_at).await
    }

    /// The gate is closed: makes sure that it is, and goes on to the SQL (way there) or waits (way back).
    async fn blocked(&mut self, mut client: Client, closed_at: Timestamp) -> Result<Outcome, Failure> {
        let released = self.plan.direction == Step::Down;
        let secured = if self.called_off() {
            None
        } else {
            let mut secure = pin!(self.secure(&client, closed_at));
            loop {
                tokio::select! {
                    secured = &mut secure => break Some(secured),
                    () = tokio::time::sleep(TICK) => {}
                }
                if self.called_off() {
                    break None;
                }
            }
        };
        match secured {
            Some(Ok((ended, proof))) => {
                self.progress.terminated_sessions += ended;
                self.progress.proof = Some(proof);
            }
            // Whoever holds the tables holds up neither the deadline nor an order.
            None if released || self.overdue() => return self.overdue_end(&mut client, released).await,
            None => return self.finish(&mut client, false, None).await,
            Some(Err(failure)) if lost(&failure) => return Err(failure),
            // The flag may have been flipped on the word of an earlier session: the gate must not open by itself any more.
            Some(Err(failure)) if self.progress.switch_acknowledged => return self.held(failure).await,
            Some(Err(failure)) => return self.finish(&mut client, released, Some(failure)).await,
        }
        self.progress.state = WindowState::Blocked;
        if self.plan.direction == Step::Up {
            self.milestone(&client).await?;
            return match self.up() {
                Ok(Some(up)) => self.migrate(client, up).await,
                Ok(None) => self.finish(&mut client, false, None).await,
                Err(failure) => self.finish(&mut client, false, Some(failure)).await,
            };
        }
        self.progress.users_written_since = match control::users_written_within(&mut client, self.subject()).await {
            Ok(users) => Some(users),
            Err(failure) if lost(&failure) => return Err(failure),
            // A figure for people: not to be had in time, it is unknown.
            Err(failure) => {
                tracing::warn!(message = failure.message, "written users are not counted");
                None
            }
        };
        // The old version is about to be started: its sessions must be ordinary ones, the gate is what blocks.
        self.restore_default(&client).await?;
        self.milestone(&client).await?;
        self.hold(&mut client).await
    }

    /// A default that cannot be put back (the SQL gave the database another owner) must not keep the task from its orders:
    /// `finish` tries again, and tells.
    async fn restore_default(&self, client: &Client) -> Result<(), Failure> {
        match write_block::restore_default(client, self.subject()).await {
            Err(failure) if lost(&failure) => return Err(failure),
            Err(failure) => tracing::error!(message = failure.message, "the read-only default is not put back"),
            Ok(_) => {}
        }
        Ok(())
    }

    /// What is begun before the SQL ends at once: by the deadline, while the switch is not acknowledged, or on the way there by `Rollback`.
    fn called_off(&self) -> bool {
        (self.overdue() && !self.progress.switch_acknowledged)
            || (self.plan.direction == Step::Up && self.orders().command == WindowCommand::Rollback)
    }

    /// Drains and proves. The number of sessions that were ended, and the proof.
    async fn secure(&self, client: &Client, closed_at: Timestamp) -> Result<(u32, String), Failure> {
        // Past an acknowledged switch the deadline ends nothing any more: one that has passed would leave no time to drain, and
        // each way back would fail at once.
        let deadline = self.orders().deadline.or(self.deadline).filter(|_| !self.progress.switch_acknowledged);
        let left = deadline.map_or(Duration::MAX, |deadline| {
            Duration::try_from(deadline.duration_since(self.channel.now())).unwrap_or_default()
        });
        let limit = (self.subject().lock_timeout * 3 + Duration::from_secs(1)).min(left);
        let ended = write_block::drain(client, self.subject(), closed_at, limit).await?;
        Ok((ended, control::prove(self.target, self.subject()).await?))
    }

    /// Runs the up SQL; stops it at the deadline, on `Rollback`, or when the run is gone.
    async fn migrate(&mut self, mut client: Client, up: &Sql) -> Result<Outcome, Failure> {
        let stop = Stop::default();
        let mut tries = 0;
        loop {
            tries += 1;
            let token = client.cancel_token();
            let result = {
                let mut run = pin!(control::run_up(&mut client, self.subject(), up, &stop));
                loop {
                    tokio::select! {
                        result = &mut run => break result,
                        () = tokio::time::sleep(TICK) => {}
                    }
                    if self.overdue() || self.orders().command == WindowCommand::Rollback {
                        stop.stop();
                        // Waited for: a request still under way could hit a later statement.
                        if let Err(failure) = self.target.cancel(token.clone()).await {
                            tracing::warn!(message = failure.message, "statement not cancelled");
                        }
                    }
                }
            };
            if stop.stopped() {
                // Swallows a cancellation that came too late for the SQL; it must not hit the opening of the gate.
                let _ = ping(&client).await;
            }
            match result {
                Ok(Applied::Now { seconds, reconciled_users } | Applied::Before { seconds, reconciled_users }) => {
                    return self.migrated(&mut client, (seconds, reconciled_users)).await;
                }
                Ok(Applied::Nothing) => return self.finish(&mut client, false, None).await,
                Err(failure) if lost(&failure) => return Err(failure),
                Err(_) if stop.stopped() && !self.overdue() => return self.finish(&mut client, false, None).await,
                Err(_) if stop.stopped() => return self.overdue_end(&mut client, false).await,
                Err(failure) if failure.reason == Reason::LockTimeout && tries < LOCK_TRIES => {
                    tokio::time::sleep(jitter(Duration::from_millis(50))).await;
                }
                Err(failure) => return self.finish(&mut client, false, Some(failure)).await,
            }
        }
    }

    /// The up SQL is committed.
    async fn migrated(&mut self, client: &mut Client, (seconds, users): (f64, u64)) -> Result<Outcome, Failure> {
        self.progress.state = self.progress.state.max(WindowState::Migrated);
        self.progress.migrate_seconds = Some(seconds);
        self.progress.reconciled_users = Some(users);
        self.keep_down(client).await?;
        // Sessions of the restarted application must be ordinary ones; the gate is what blocks.
        self.restore_default(client).await?;
        self.milestone(client).await?;
        self.hold(client).await
    }

    /// Waits for the controller with writes blocked. On the way there the full comparison runs beside.
    async fn hold(&mut self, client: &mut Client) -> Result<Outcome, Failure> {
        let up = self.plan.direction == Step::Up;
        if up && !write_block::locked(client).await? {
            // Taken over from an earlier session, whose end gave the lock back.
            let closed_at = self.progress.blocked_at.unwrap_or(Timestamp::UNIX_EPOCH);
            match write_block::drain(client, self.subject(), closed_at, self.subject().lock_timeout * 3).await {
                Err(failure) if lost(&failure) => return Err(failure),
                // The gate's row blocks writes all the same; orders and deadline must not wait for the lock.
                Err(failure) => tracing::warn!(message = failure.message, "the gate's lock is not had again"),
                Ok(_) => {}
            }
        }
        let (target, subject, channel) = (self.target, self.subject(), self.channel);
        let mut comparing = pin!(comparison(target, subject));
        let mut probing = pin!(probe(channel));
        let mut pinged = Instant::now();
        loop {
            let orders = self.orders();
            let acknowledged = self.progress.switch_acknowledged;
            match orders.command {
                WindowCommand::Rollback => return self.undo(client, None).await,
                WindowCommand::UnblockWrites if !up => return self.finish(client, true, None).await,
                WindowCommand::UnblockWrites => match &self.progress.comparison {
                    Some(Comparison { unexplained: 0, .. }) => return self.finish(client, true, None).await,
                    // Released, the way back would lose what was written since; a person or the controller must order the rollback.
                    Some(Comparison { unexplained, users, .. }) => {
                        let message = format!(
                            "{unexplained} of {users} users have a balance that nothing explains, limit 0: the gate stays closed; next: order Rollback"
                        );
                        self.report(Some(Failure::new(Reason::BalancesUnexplained, message)));
                    }
                    None => {}
                },
                _ => {}
            }
            let waiting = orders.command != WindowCommand::UnblockWrites
                || self.progress.comparison.as_ref().is_some_and(|c| c.unexplained > 0);
            if self.overdue() && waiting && self.progress.state != WindowState::Held {
                if acknowledged || orders.command == WindowCommand::UnblockWrites {
                    self.progress.state = WindowState::Held;
                    self.progress.deadline_passed = true;
                    let failure = self.overdue_failure();
                    tracing::error!(
                        message = failure.message,
                        "writes stay blocked: the switch of the application had begun; a person must order UnblockWrites or Rollback"
                    );
                    write_block::save_progress(client, self.subject(), self.plan.direction, &self.progress).await?;
                    self.report(Some(failure));
                } else if up {
                    self.progress.deadline_passed = true;
                    let failure = self.overdue_failure();
                    return self.undo(client, Some(failure)).await;
                } else {
                    return self.overdue_end(client, true).await;
                }
            } else if orders.command >= WindowCommand::Switch && !acknowledged && !self.overdue() {
                write_block::acknowledge_switch(client, self.subject(), self.plan.direction).await?;
                self.progress.switch_acknowledged = true;
                self.milestone(client).await?;
            }
            if self.progress.state == WindowState::Held && orders.last_pod {
                // No order can come any more, and the session would keep whoever goes on waiting.
                return self.held(self.overdue_failure()).await;
            }
            let compare = up && self.progress.comparison.is_none();
            tokio::select! {
                comparison = &mut comparing, if compare => {
                    self.progress.comparison = Some(comparison);
                    self.milestone(client).await?;
                }
                answers = &mut probing => {
                    probing.set(probe(channel));
                    if let Some((version, asked)) = answers {
                        (self.progress.observed_version, self.progress.observed_at) = (Some(version), Some(asked));
                        // What is wrong, if something is, stays told.
                        self.reports.send_modify(|(progress, _)| progress.clone_from(&self.progress));
                    }
                }
                _ = tokio::time::timeout(TICK, self.orders.changed()) => {}
            }
            if pinged.elapsed() > PING {
                ping(client).await?;
                pinged = Instant::now();
            }
        }
    }
}

/// Whether a task that met a failure ends: only one behind which nobody can have closed the gate.
fn gives_up(opened: bool, lost: bool, order: WindowCommand, since: Duration) -> bool {
    !opened && (!lost || (order == WindowCommand::Standby && since > PATIENCE))
}

/// Another session may get over it.
pub(super) fn lost(failure: &Failure) -> bool {
    matches!(failure.reason, Reason::ConnectionLost | Reason::HostUnreachable)
}

pub(super) async fn ping(client: &Client) -> Result<(), Failure> {
    client.batch_execute("SELECT 1").await.map_err(|e| classify(&e))
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
