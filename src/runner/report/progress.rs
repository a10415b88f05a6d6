//! What a task notes before its end, for the status of its run.

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::watch;

/// What a task has to tell before its end: a status that grows. Cheap to clone, never waits.
#[derive(Clone, Debug)]
pub struct Progress(watch::Sender<Map<String, Value>>);

impl Default for Progress {
    fn default() -> Self {
        Self(watch::Sender::new(Map::new()))
    }
}

impl Progress {
    /// Sets one field of the status; `field` is its name in JSON.
    pub fn note(&self, field: &str, value: &impl Serialize) {
        match serde_json::to_value(value) {
            Ok(value) => self.0.send_modify(|status| {
                status.insert(field.to_owned(), value);
            }),
            Err(error) => tracing::error!(field, %error, "a report cannot be written as JSON"),
        }
    }

    /// All that was noted.
    pub fn so_far(&self) -> Map<String, Value> {
        self.0.borrow().clone()
    }

    /// Notifies of each note.
    pub(super) fn subscribe(&self) -> watch::Receiver<Map<String, Value>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn progress_keeps_all_fields() {
        let progress = Progress::default();
        progress.note("baseline", &1);
        progress.note("backup", &2);
        progress.note("backup", &3);
        assert_eq!(Value::from(progress.so_far()), json!({"baseline": 1, "backup": 3}));
    }
}
