//! Events on migrations, at most one object for each fact. The library merges events of one reason and keeps the first
//! note, so users would read the evidence of an earlier attempt. Here events with the same note are merged, whatever
//! was reported in between.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, Recorder, Reporter},
};

/// Number of facts that are remembered. Beyond it the oldest is forgotten, and its repetition becomes a new Event.
const MAX_FACTS: usize = 1000;

/// Publishes events.
pub(crate) struct Events {
    client: Client,
    reporter: Reporter,
    recorders: Mutex<Recent<Fact, Recorder>>,
}

/// What an Event says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Fact {
    /// UID of the object.
    uid: String,
    reason: String,
    note: Option<String>,
}

impl Events {
    /// A publisher without events.
    pub(super) fn new(client: Client, reporter: Reporter) -> Self {
        Self { client, reporter, recorders: Mutex::new(Recent::new(MAX_FACTS)) }
    }

    /// Publishes an event, or counts it as a repetition.
    ///
    /// # Errors
    /// Those of the client.
    pub(super) async fn publish(&self, event: &Event, about: &ObjectReference) -> kube::Result<()> {
        let uid = about.uid.clone().unwrap_or_default();
        let fact = Fact { uid, reason: event.reason.clone(), note: event.note.clone() };
        self.recorder(fact).publish(event, about).await
    }

    /// The recorder that counts repetitions of this fact.
    fn recorder(&self, fact: Fact) -> Recorder {
        let fresh = || Recorder::new(self.client.clone(), self.reporter.clone());
        self.recorders.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fact, fresh).clone()
    }
}

/// The values of the latest keys.
struct Recent<K, V> {
    limit: usize,
    values: HashMap<K, V>,
    /// The oldest first.
    order: VecDeque<K>,
}

impl<K: Clone + Eq + std::hash::Hash, V> Recent<K, V> {
    fn new(limit: usize) -> Self {
        Self { limit, values: HashMap::new(), order: VecDeque::new() }
    }

    /// The value of the key; a new one if the key is not known, which may make the oldest key unknown.
    fn get_or_insert(&mut self, key: K, fresh: impl FnOnce() -> V) -> &mut V {
        if !self.values.contains_key(&key) {
            if self.order.len() >= self.limit
                && let Some(oldest) = self.order.pop_front()
            {
                self.values.remove(&oldest);
            }
            self.order.push_back(key.clone());
        }
        self.values.entry(key).or_insert_with(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(note: &str) -> Fact {
        Fact { uid: "1".into(), reason: "CheckBreached".into(), note: Some(note.into()) }
    }

    #[test]
    fn facts_that_take_turns_are_two_objects() {
        let mut objects = 0;
        let mut recent = Recent::new(MAX_FACTS);
        for _ in 0..100 {
            for note in ["a: 2 > 0", "b: 3 > 0"] {
                recent.get_or_insert(fact(note), || objects += 1);
            }
        }
        assert_eq!(objects, 2);
    }

    #[test]
    fn only_the_oldest_fact_is_forgotten() {
        let mut recent = Recent::new(2);
        for (n, note) in ["a", "b", "c"].into_iter().enumerate() {
            recent.get_or_insert(fact(note), || n);
        }
        assert_eq!(*recent.get_or_insert(fact("b"), || 9), 1);
        assert_eq!(*recent.get_or_insert(fact("c"), || 9), 2);
        assert_eq!(*recent.get_or_insert(fact("a"), || 9), 9);
        assert_eq!((recent.values.len(), recent.order.len()), (2, 2));
    }
}
