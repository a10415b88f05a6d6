//! A value for each migration, by namespace and name, in the memory of this controller alone.

use std::{
    collections::HashMap,
    ops::DerefMut,
    sync::{Mutex, PoisonError},
};

type Values<T> = HashMap<(String, String), T>;

/// A value for each migration.
pub(super) struct PerMigration<T>(Mutex<Values<T>>);

impl<T> Default for PerMigration<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Default> PerMigration<T> {
    fn lock(&self) -> impl DerefMut<Target = Values<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads or changes the value of one migration, which starts as the default.
    pub(super) fn change<R>(&self, namespace: &str, name: &str, change: impl FnOnce(&mut T) -> R) -> R {
        change(self.lock().entry((namespace.to_owned(), name.to_owned())).or_default())
    }

    /// Forgets a migration: a successor of the same name has a value of its own.
    pub(super) fn forget(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Migrations with such a value.
    pub(super) fn count(&self, counts: impl Fn(&T) -> bool) -> usize {
        self.lock().values().filter(|value| counts(value)).count()
    }
}
