//! The window task, from one connection to the next.
//!
//! ```text
//!  run_session() ─> resume point from write block, window record and ledger
//!     standby ──BlockWrites──> block ──> apply_sql (forward) ──> await_cutover ──UnblockWrites──> finish (new schema)
//!        │Rollback               │fails      │fails               ├──Rollback──> roll_back ───> finish (old schema)
//!        v                       v           v                    └──deadline──> roll_back (forward),
//!      nothing done            finish      finish                                finish (rollback), or stuck
//!                                                                                once the switch is acknowledged
//! ```
//! A lost connection at any point leads back to `run_session()`. Writes stay blocked meanwhile.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_postgres::Client;

use super::{Channel, CurrentSession, Orders, WindowOutcome, WindowPlan, WindowReport, kept::KeptSessions};
use crate::{
    api::{
        Direction, NotShown, NotShownKind, Obstacle, Reason, SchemaInPlace, WindowCommand, WindowProgress, WindowState,
        window_rules::{self, Move, WindowActivity, WindowView},
    },
    runner::{
        Failure, UnlessLost,
        database::{
            connection::Target,
            control::{
                self, ControlSpec, jitter,
                window_record::{self, RecordedEnd, RecordedState},
            },
        },
    },
};

/// How often the task checks clock and orders when nothing wakes it.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How often an idle session is checked, so that a lost one is noticed before it is needed.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(1);
/// How long a task that has not blocked writes tries to reach its database.
const DATABASE_WAIT: Duration = Duration::from_secs(30);
/// How long the session of another task must have been idle before it is ended, the first time.
const FIRST_IDLE_LIMIT: Duration = Duration::from_secs(10);
/// How long the task waits for a control statement. The server's own limits are below it.
pub(super) const CONTROL_LIMIT: Duration = Duration::from_secs(10);

pub(super) struct WindowTask<'a, C> {
    pub(super) channel: &'a C,
    pub(super) target: &'a Target,
    pub(super) plan: &'a WindowPlan,
    pub(super) session: &'a CurrentSession,
    pub(super) kept: KeptSessions,
    pub(super) orders: watch::Receiver<Orders>,
    pub(super) reports: watch::Sender<WindowReport>,
    pub(super) progress: WindowProgress,
    /// Deadline as the database has it, for an order without one.
    pub(super) deadline: Option<Timestamp>,
    /// Writes are blocked, as far as this task knows. Before it has read the database: an earlier pod may have blocked
    /// them.
    pub(super) writes_may_be_blocked: bool,
    /// It was reported that writes stay blocked because of unexplained balances.
    pub(super) unexplained_reported: bool,
    /// Whether what is compared counts.
    pub(super) comparing: Comparing,
    /// The database does not have the progress yet.
    pub(super) unsaved: bool,
    /// How long the session of another task must have been idle before it is ended.
    pub(super) idle_limit: Duration,
    /// The last connection was refused because none is left.
    none_left: bool,
    /// When the present session was connected.
    connected_at: Option<Instant>,
}

/// Whether a comparison of balances counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparing {
    /// As far as is known, writes have been blocked since it started.
    Counts,
    /// Writes may have gone through since, and may still.
    Discarded,
    /// Writes are blocked again: it is to be restarted.
    Restart,
}

/// Where a session resumes.
enum Resume {
    Done(RecordedEnd),
    Standby,
    Blocked,
    Migrated,
    /// The down SQL is committed: what is left is to unblock writes on the old schema.
    RolledBack,
}

impl<'a, C: Channel> WindowTask<'a, C> {
    pub(super) fn new(
        channel: &'a C,
        target: &'a Target,
        plan: &'a WindowPlan,
        session: &'a CurrentSession,
        orders: watch::Receiver<Orders>,
        reports: watch::Sender<WindowReport>,
    ) -> Self {
        Self {
            channel,
            target,
            plan,
            session,
            kept: KeptSessions::new(target),
            orders,
            reports,
            progress: WindowProgress::default(),
            deadline: None,
            writes_may_be_blocked: plan.order.command > WindowCommand::Standby,
            unexplained_reported: false,
            comparing: Comparing::Counts,
            unsaved: false,
            idle_limit: FIRST_IDLE_LIMIT,
            none_left: false,
            connected_at: None,
        }
    }

    pub(super) fn control_spec(&self) -> &'a ControlSpec {
        &self.plan.control_spec
    }

    /// Works until the window has ended, and connects again whenever the connection is lost.
    pub(super) async fn run(mut self) -> WindowOutcome {
        let mut lost_since = Instant::now();
        loop {
            let failure = match self.run_session().await {
                Ok(outcome) => return outcome,
                Err(failure) => failure,
            };
            // A server without a free connection is waited for, like any other obstacle. Time spent connecting in vain
            // is none in which it was there.
            if self.none_left || self.connected_at.is_some_and(|at| at.elapsed() > PING_INTERVAL) {
                lost_since = Instant::now();
            }
            let interrupted = WindowActivity::Interrupted {
                writes_may_be_blocked: self.writes_may_be_blocked,
                resumed: self.plan.order.command > WindowCommand::Standby,
                connection_lost: failure.is_connection_lost(),
                wait_exhausted: lost_since.elapsed() > DATABASE_WAIT,
            };
            match self.next_move(interrupted) {
                Move::End(_) => return WindowOutcome { progress: self.progress, failure: Some(failure) },
                Move::BecomeStuck => (self.progress.stuck, self.progress.deadline_passed) = (true, true),
                _ => {}
            }
            // From here on writes may be blocked. Giving up would leave them blocked with no one working on it.
            tracing::error!(reason = %failure.reason, error = %failure, "window interrupted, connecting again");
            self.report(Some(failure));
            tokio::time::sleep(jitter(Duration::from_millis(200))).await;
        }
    }

    pub(super) fn orders(&self) -> Orders {
        self.orders.borrow().clone()
    }

    /// Enters a state, in which the window is not stuck.
    pub(super) fn enter(&mut self, state: WindowState) {
        (self.progress.state, self.progress.stuck) = (state, false);
    }

    /// The next move by the rules, given what the task knows now.
    pub(super) fn next_move(&self, activity: WindowActivity) -> Move {
        let orders = self.orders();
        window_rules::next_move(&WindowView {
            direction: self.plan.direction,
            activity,
            command: orders.command,
            overdue: self.overdue(),
            run_gone: orders.gone,
            last_pod: orders.last_pod,
            switch_acknowledged: self.progress.switch_acknowledged,
            stuck: self.progress.stuck,
            unexplained_balances: self.progress.comparison.as_ref().map(|comparison| comparison.unexplained),
            unexplained_reported: self.unexplained_reported,
        })
    }

    /// The deadline has passed, or no order can come any more.
    pub(super) fn overdue(&self) -> bool {
        let orders = self.orders();
        let deadline = orders.deadline.or(self.deadline);
        orders.gone || deadline.is_some_and(|deadline| self.channel.now() >= deadline)
    }

    /// Why the task ends a window without an order.
    pub(super) fn overdue_failure(&self) -> Failure {
        let orders = self.orders();
        let message = match (orders.gone, orders.deadline.or(self.deadline)) {
            (false, Some(deadline)) => format!("the window's deadline {deadline} passed at order {}", orders.command),
            _ => format!("the MigrationRun is gone at order {}", orders.command),
        };
        Failure::new(Reason::DeadlinePassed, message)
    }

    /// Notes what could not be shown; the window goes on. It is reported with what comes next.
    pub(super) fn note_not_shown(&mut self, kind: NotShownKind, failure: Failure) {
        tracing::warn!(%kind, error = %failure, "not shown");
        self.progress.not_shown.retain(|known| known.kind != kind);
        self.progress.not_shown.push(NotShown { kind, message: failure.message });
    }

    pub(super) fn report(&self, note: Option<Failure>) {
        self.reports.send_replace((self.progress.clone(), note));
    }

    /// Reports the progress, and stores it in the database for a pod that must resume.
    pub(super) async fn save_and_report(&mut self, client: &Client) -> Result<(), Failure> {
        self.report(None);
        self.save(client).await
    }

    /// Stores the progress. If that fails it is left to [`WindowTask::save_again`]: it must not keep the task from its
    /// orders.
    pub(super) async fn save(&mut self, client: &Client) -> Result<(), Failure> {
        let saving = window_record::save_progress(client, self.control_spec(), self.plan.direction, &self.progress);
        let saved = self.bounded(client, saving).await.unless_lost()?;
        self.unsaved = saved.is_err();
        if let Err(failure) = saved {
            tracing::warn!(error = %failure, "the progress is not stored, will be retried");
        }
        Ok(())
    }

    /// Stores what [`WindowTask::save`] could not.
    pub(super) async fn save_again(&mut self, client: &Client) -> Result<(), Failure> {
        if self.unsaved { self.save(client).await } else { Ok(()) }
    }

    /// Awaits a control statement of the session, for a few seconds at most.
    pub(super) async fn bounded<T>(
        &self,
        client: &Client,
        statement: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.target.bounded(client.cancel_token(), CONTROL_LIMIT, statement).await
    }

    /// The work of one connection. An error is a lost connection, or one that another session may recover from.
    async fn run_session(&mut self) -> Result<WindowOutcome, Failure> {
        let connected = self.target.connect_for_control("window").await;
        self.none_left = connected.as_ref().is_err_and(|refused| refused.none_left);
        self.connected_at = connected.is_ok().then(Instant::now);
        let mut client = connected.map_err(|refused| {
            // After another refusal what was found before may still be there.
            if refused.none_left && !self.writes_may_be_blocked {
                self.progress.obstacles = vec![Obstacle::too_few_connections(0)];
            }
            refused.failure
        })?;
        // What an earlier session has found is found again, or gone.
        self.progress.obstacles.clear();
        self.session.set(client.cancel_token());
        self.acquire_worker_lock(&client).await?;
        if let Err(failure) = control::check_schema(&client, self.control_spec()).await.unless_lost()? {
            // A window that an earlier pod has started must not be left.
            if self.plan.order.command == WindowCommand::Standby {
                return Err(failure);
            }
            tracing::error!(error = %failure, "the control schema is not as it was created");
        }
        let snapshot = self.recorded_state(&client).await?;
        let resume = self.resume_point(&snapshot);
        if matches!(resume, Resume::Standby) {
            // Without them writes are not blocked. Once they are, each is needed only where it is run.
            self.approved_up_sql()?;
            self.approved_down_sql(&client).await?;
        }
        if snapshot.blocked_at.is_some() {
            self.resume_block(&mut client).await?;
        }
        match resume {
            Resume::Done(RecordedEnd { schema, failure }) => {
                // What the previous pod reported is evidence: it must not be replaced by an empty report.
                if let Some(record) = snapshot.record {
                    self.progress = record.progress;
                    self.progress.switch_acknowledged = record.switch_acknowledged;
                }
                self.enter(schema.final_state());
                Ok(self.verified_end(failure).await)
            }
            Resume::RolledBack => self.rolled_back(&mut client, None).await,
            Resume::Standby => self.standby(client).await,
            Resume::Blocked => self.secure_block(client, snapshot.blocked_at.unwrap_or(Timestamp::UNIX_EPOCH)).await,
            Resume::Migrated => {
                let up = snapshot.up.unwrap_or_default();
                self.sql_applied(&mut client, up).await
            }
        }
    }

    /// What the database records. From here on the task knows whether writes are blocked.
    async fn recorded_state(&mut self, client: &Client) -> Result<RecordedState, Failure> {
        let state = match control::exists(client, "window_record").await? {
            true => window_record::recorded_state(client, self.control_spec(), self.plan.direction).await,
            false => Ok(RecordedState::default()),
        };
        match &state {
            Ok(state) => self.writes_may_be_blocked = state.blocked_at.is_some(),
            // They are blocked by another migration.
            Err(failure) if failure.reason == Reason::DatabaseInUse => self.writes_may_be_blocked = false,
            Err(_) => {}
        }
        state
    }

    fn resume_point(&self, snapshot: &RecordedState) -> Resume {
        let blocked = snapshot.blocked_at.is_some();
        if let Some(record) = &snapshot.record
            && let Some(finished) = &record.finished
            && !blocked
            && record.attempt == self.plan.attempt
        {
            return Resume::Done(finished.clone());
        }
        let old_schema = || {
            if blocked {
                Resume::RolledBack
            } else {
                Resume::Done(RecordedEnd { schema: SchemaInPlace::Old, failure: None })
            }
        };
        match (self.plan.direction, snapshot.up, snapshot.down) {
            (_, _, true) | (Direction::Rollback, None, false) => old_schema(),
            (Direction::Forward, Some(_), false) if blocked => Resume::Migrated,
            (Direction::Forward, Some(_), false) => {
                Resume::Done(RecordedEnd { schema: SchemaInPlace::New, failure: None })
            }
            (Direction::Forward, None, false) | (Direction::Rollback, Some(_), false) if blocked => Resume::Blocked,
            (Direction::Forward, None, false) | (Direction::Rollback, Some(_), false) => Resume::Standby,
        }
    }
}
