//! A controller that does what a test says, for window tasks.
//!
//! A module of `runner_window` and of `runner_data`.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use credit_migration::{
    api::{WindowCommand, WindowOrder, WindowProgress, WindowState},
    runner::{
        Failure,
        database::connection::Target,
        tasks::window::{self, Channel, ChannelError, WindowOutcome, WindowPlan},
    },
};
use jiff::Timestamp;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Longest wait for anything.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

/// The controller's side: orders that a test gives, reports that it waits for, a clock that it moves.
pub struct Desk {
    order: Mutex<Result<WindowOrder, ChannelError>>,
    hangs: Mutex<bool>,
    reports: watch::Sender<(WindowProgress, Option<Failure>)>,
    versions: Mutex<VecDeque<String>>,
    orders_asked: watch::Sender<u32>,
    in_vain: watch::Sender<u32>,
    start: Instant,
    moved: Mutex<Duration>,
    /// SIGTERM.
    pub stop: CancellationToken,
}

impl Desk {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            order: Mutex::new(Ok(WindowOrder { command: WindowCommand::Standby, deadline: None })),
            hangs: Mutex::new(false),
            reports: watch::Sender::new((WindowProgress::default(), None)),
            versions: Mutex::new(VecDeque::new()),
            orders_asked: watch::Sender::new(0),
            in_vain: watch::Sender::new(0),
            start: Instant::now(),
            moved: Mutex::new(Duration::ZERO),
            stop: CancellationToken::new(),
        })
    }

    pub fn order(&self, command: WindowCommand) {
        let deadline = Some(Timestamp::from_second(1_790_000_300).unwrap());
        *self.order.lock().unwrap() = Ok(WindowOrder { command, deadline });
    }

    /// The API server answers no more, or reports that the run is gone.
    pub fn fails(&self, error: ChannelError) {
        *self.order.lock().unwrap() = Err(error);
    }

    /// Every call from now on takes for ever.
    pub fn hangs(&self) {
        *self.hangs.lock().unwrap() = true;
    }

    /// The application's pods run these versions and answer in turn; none answers if it is empty.
    pub fn answers(&self, versions: &str) {
        *self.versions.lock().unwrap() = versions.split_whitespace().map(str::to_owned).collect();
    }

    /// Until the version was asked for this many times more, without an answer.
    pub async fn asked_in_vain(&self, times: u32) {
        counted(&self.in_vain, times, "the version asked for").await;
    }

    /// Until orders were asked for this many times more, whatever the answer.
    pub async fn asked_for_orders(&self, times: u32) {
        counted(&self.orders_asked, times, "orders asked for").await;
    }

    /// Lets the deadline pass.
    pub fn pass_deadline(&self) {
        *self.moved.lock().unwrap() = Duration::from_secs(400);
    }

    pub async fn until(&self, what: &str, is: impl Fn(&WindowProgress, Option<&Failure>) -> bool) -> WindowProgress {
        let mut reports = self.reports.subscribe();
        let found =
            tokio::time::timeout(WAIT_TIMEOUT, reports.wait_for(|(progress, note)| is(progress, note.as_ref()))).await;
        match found {
            Ok(found) => found.unwrap().0.clone(),
            Err(_) => panic!("not within {WAIT_TIMEOUT:?}: {what}; last report: {:?}", self.reports.borrow()),
        }
    }

    /// Until writes are reported to stay blocked.
    pub async fn stuck(&self) -> WindowProgress {
        self.until("stuck", |progress, _| progress.stuck).await
    }

    pub async fn state(&self, state: WindowState) -> WindowProgress {
        self.until(&format!("{state:?}"), |progress, _| progress.state == state).await
    }

    pub fn last(&self) -> WindowProgress {
        self.reports.borrow().0.clone()
    }

    /// Starts a window task. It dies like a killed pod when the handle is aborted.
    pub fn start_on(self: &Arc<Self>, target: Target, plan: &WindowPlan) -> JoinHandle<WindowOutcome> {
        let (desk, plan) = (self.clone(), plan.clone());
        tokio::spawn(async move { window::run(&*desk, &target, &plan, &desk.stop).await })
    }

    async fn hang(&self) {
        if *self.hangs.lock().unwrap() {
            std::future::pending::<()>().await;
        }
    }
}

impl Channel for Desk {
    async fn order(&self) -> Result<WindowOrder, ChannelError> {
        self.hang().await;
        self.orders_asked.send_modify(|count| *count += 1);
        self.order.lock().unwrap().clone()
    }

    async fn report(&self, progress: &WindowProgress, note: Option<&Failure>) -> Result<(), ChannelError> {
        self.hang().await;
        self.reports.send_replace((progress.clone(), note.cloned()));
        Ok(())
    }

    async fn probe_version(&self) -> Option<String> {
        let mut versions = self.versions.lock().unwrap();
        let Some(answer) = versions.pop_front() else {
            self.in_vain.send_modify(|count| *count += 1);
            return None;
        };
        versions.push_back(answer.clone());
        Some(answer)
    }

    fn now(&self) -> Timestamp {
        let passed = self.start.elapsed() + *self.moved.lock().unwrap();
        Timestamp::from_second(1_790_000_000).unwrap() + passed
    }
}

/// Until something was counted this many times more.
async fn counted(counter: &watch::Sender<u32>, times: u32, what: &str) {
    let wanted = *counter.borrow() + times;
    let mut counted = counter.subscribe();
    let found = tokio::time::timeout(WAIT_TIMEOUT, counted.wait_for(|count| *count >= wanted)).await;
    assert!(found.is_ok(), "not within {WAIT_TIMEOUT:?}: {what} {times} times");
}

/// The end of a task.
pub async fn end(task: JoinHandle<WindowOutcome>) -> WindowOutcome {
    tokio::time::timeout(WAIT_TIMEOUT, task).await.expect("the window task does not end").unwrap()
}
