//! Events on migrations. The library merges events of one reason and keeps the first note, so users would read the
//! evidence of an earlier attempt. Here only events with the same note are merged.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, Recorder, Reporter},
};

/// Number of objects and reasons whose last note is stored. Beyond it all are dropped, and a repetition becomes a new
/// Event.
const MAX_LAST_NOTES: usize = 1000;

/// Publishes events.
pub(crate) struct Events {
    client: Client,
    reporter: Reporter,
    /// By UID and reason.
    last: Mutex<HashMap<(String, String), Last>>,
}

/// The last note, and the recorder that counts its repetitions.
struct Last {
    note: Option<String>,
    recorder: Recorder,
}

impl Events {
    /// A publisher without events.
    pub(super) fn new(client: Client, reporter: Reporter) -> Self {
        Self { client, reporter, last: Mutex::default() }
    }

    /// Publishes an event, or counts it as a repetition.
    ///
    /// # Errors
    /// Those of the client.
    pub(super) async fn publish(&self, event: &Event, about: &ObjectReference) -> kube::Result<()> {
        self.recorder(about.uid.clone().unwrap_or_default(), event).publish(event, about).await
    }

    /// The recorder of the same reason and note on the same object, otherwise a new one.
    fn recorder(&self, uid: String, event: &Event) -> Recorder {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() >= MAX_LAST_NOTES {
            last.clear();
        }
        let fresh =
            || Last { note: event.note.clone(), recorder: Recorder::new(self.client.clone(), self.reporter.clone()) };
        let known = last.entry((uid, event.reason.clone())).or_insert_with(fresh);
        if known.note != event.note {
            *known = fresh();
        }
        known.recorder.clone()
    }
}
