//! The reports of one task, from its start to its end.

use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::Instrument;

use super::{Progress, Reporter, Unreported, progress::fields_of};
use crate::{api::Time, runner::Failure};

/// Reports of a task that is under way. It owns what reports in the background, and stops that at the end: a report
/// that is still in mid-request could overwrite the end with what was before it.
pub(in crate::runner) struct StatusReporting {
    reporter: Reporter,
    progress: Progress,
    /// The report of the start, if the task does not wait for it.
    start: Option<JoinHandle<Result<(), Unreported>>>,
    /// Sends the progress.
    following: JoinHandle<()>,
}

impl StatusReporting {
    /// Reports the start, and from then on the progress.
    ///
    /// # Errors
    /// [`Unreported`].
    pub async fn new(reporter: &Reporter, progress: &Progress, started: Time) -> Result<Self, Unreported> {
        reporter.started(started).await?;
        Ok(Self::following(reporter, progress, None))
    }

    /// The same for a task that does not wait until its start is reported.
    pub fn new_in_background(reporter: &Reporter, progress: &Progress, started: Time) -> Self {
        let starting = reporter.clone();
        let start = tokio::spawn(async move { starting.started(started).await }.in_current_span());
        Self::following(reporter, progress, Some(start))
    }

    fn following(reporter: &Reporter, progress: &Progress, start: Option<JoinHandle<Result<(), Unreported>>>) -> Self {
        let following = follow(reporter, progress);
        Self { reporter: reporter.clone(), progress: progress.clone(), start, following }
    }

    /// Reports the end, with all progress.
    ///
    /// # Errors
    /// [`Unreported`].
    pub async fn finish(self, result: &Result<String, Failure>) -> Result<(), Unreported> {
        let (reporter, progress) = self.stop().await;
        reporter.finished(result, &progress).await
    }

    /// Reports nothing more: another process of the run may go on.
    pub async fn abandon(self) {
        self.stop().await;
    }

    async fn stop(self) -> (Reporter, Progress) {
        let Self { reporter, progress, start, following } = self;
        following.abort();
        let _ = following.await;
        if let Some(start) = start {
            start.abort();
            let _ = start.await;
        }
        (reporter, progress)
    }
}

/// Sends what is noted while the task is under way, at most once per second, in a task of its own.
fn follow(reporter: &Reporter, progress: &Progress) -> JoinHandle<()> {
    let (reporter, mut noted) = (reporter.clone(), progress.subscribe());
    let following = async move {
        while noted.changed().await.is_ok() {
            let fields = fields_of(&noted.borrow_and_update());
            match reporter.patch_once(&fields).await {
                Ok(()) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => return,
                Err(error) => {
                    tracing::warn!(%error, "progress did not get through, retrying");
                    noted.mark_changed();
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::spawn(following.in_current_span())
}
