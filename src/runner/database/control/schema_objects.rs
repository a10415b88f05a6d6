//! The objects of a schema by their digests: what the rehearsal is valid for, compared again before the up SQL is run.
//!
//! # Contract
//! - Covers the objects of a [`fingerprint`](crate::runner::database::fingerprint), without rows: only the catalog is
//!   read.
//! - The rehearsal's digest is the approved one. The objects that the database keeps serve to name what has changed.

use std::collections::BTreeMap;

use tokio_postgres::{Client, GenericClient, Transaction};

use super::{ControlSpec, exists};
use crate::{
    api::{Reason, SchemaEvidence, sha256},
    runner::{
        Failure,
        database::{
            fingerprint::{FINGERPRINT_SETTINGS, OBJECTS_SQL},
            snapshot::{Access, snapshot},
        },
    },
};

/// Changed objects that a message names.
const MAX_NAMED_OBJECTS: usize = 10;

/// SHA-256 of each object by its kind and quoted name: `table public.users`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemaObjects(BTreeMap<String, String>);

impl SchemaObjects {
    /// Reads the objects as the caller's transaction sees them. Its settings stay as they were.
    ///
    /// # Errors
    /// Those of a database error.
    pub async fn take(tx: &Transaction<'_>) -> Result<Self, Failure> {
        tx.batch_execute(&format!("SAVEPOINT schema_objects; {FINGERPRINT_SETTINGS}")).await?;
        let query = format!(
            "SELECT object, encode(sha256(convert_to(string_agg(line, E'\\n' ORDER BY line COLLATE \"C\"), 'UTF8')), \
                'hex')
             FROM ({OBJECTS_SQL}) AS lines (object, line) GROUP BY 1"
        );
        let rows = tx.query(&query, &[]).await?;
        tx.batch_execute("ROLLBACK TO SAVEPOINT schema_objects; RELEASE SAVEPOINT schema_objects").await?;
        Ok(Self(rows.iter().map(|row| (row.get(0), row.get(1))).collect()))
    }

    /// Keeps the objects in the control schema, in place of earlier ones.
    ///
    /// # Errors
    /// Those of a database error.
    pub async fn record(&self, tx: &Transaction<'_>, spec: &ControlSpec) -> Result<(), Failure> {
        let (objects, digests): (Vec<&str>, Vec<&str>) =
            self.0.iter().map(|(object, digest)| (object.as_str(), digest.as_str())).unzip();
        tx.batch_execute("DELETE FROM credit_migration.schema_objects").await?;
        tx.execute(
            "INSERT INTO credit_migration.schema_objects (migration_uid, object, sha256)
             SELECT $1, * FROM unnest($2::text[], $3::text[])",
            &[&spec.uid, &objects, &digests],
        )
        .await?;
        Ok(())
    }

    /// The objects that the control schema keeps; none if there are none of this migration.
    ///
    /// # Errors
    /// Those of a database error.
    pub async fn recorded(client: &impl GenericClient, spec: &ControlSpec) -> Result<Self, Failure> {
        if !exists(client, "schema_objects").await? {
            return Ok(Self::default());
        }
        let query = "SELECT object, sha256 FROM credit_migration.schema_objects WHERE migration_uid = $1";
        let rows = client.query(query, &[&spec.uid]).await?;
        Ok(Self(rows.iter().map(|row| (row.get(0), row.get(1))).collect()))
    }

    /// Digest and number of the objects; `None` if there are none.
    pub fn evidence(&self) -> Option<SchemaEvidence> {
        let lines = self.0.iter().fold(String::new(), |text, (object, digest)| text + digest + " " + object + "\n");
        let objects = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        (objects > 0).then(|| SchemaEvidence { sha256: sha256(lines.as_bytes()), objects })
    }

    /// What is different in `now`, one text for each object.
    fn differences(&self, now: &Self) -> Vec<String> {
        let mut found: Vec<String> = self
            .0
            .iter()
            .filter_map(|(object, digest)| match now.0.get(object) {
                None => Some(format!("{object} is gone")),
                Some(other) if other != digest => Some(format!("{object} changed")),
                Some(_) => None,
            })
            .collect();
        found.extend(now.0.keys().filter(|object| !self.0.contains_key(*object)).map(|o| format!("{o} is new")));
        found
    }
}

/// An error if the schema is not the one that was rehearsed. Nothing is compared without a rehearsed one: on the
/// rehearsal's own copy, and for a plan of an earlier version.
///
/// # Errors
/// `SchemaDrifted` with the first objects; those of a database error.
pub async fn require_rehearsed_schema(tx: &Transaction<'_>, spec: &ControlSpec) -> Result<(), Failure> {
    let Some(rehearsed) = &spec.rehearsed_schema else { return Ok(()) };
    let now = SchemaObjects::take(tx).await?;
    let digest_of = |objects: &SchemaObjects| objects.evidence().map(|evidence| evidence.sha256);
    if digest_of(&now).as_ref() == Some(rehearsed) {
        return Ok(());
    }
    let was = SchemaObjects::recorded(tx, spec).await?;
    let differences = match digest_of(&was).as_ref() == Some(rehearsed) {
        true => was.differences(&now),
        false => vec!["the objects of the rehearsal are no longer recorded".to_owned()],
    };
    let named: Vec<&str> = differences.iter().take(MAX_NAMED_OBJECTS).map(String::as_str).collect();
    let more = differences.len().saturating_sub(MAX_NAMED_OBJECTS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let message = format!(
        "the schema has changed since the rehearsal: {}{more}; limit 0 objects; no SQL was run; next: approve the plan \
            of the next rehearsal",
        named.join("; ")
    );
    Err(Failure::new(Reason::SchemaDrifted, message))
}

/// As [`require_rehearsed_schema`], in a transaction of its own.
///
/// # Errors
/// As there.
pub async fn require_rehearsed_schema_now(client: &mut Client, spec: &ControlSpec) -> Result<(), Failure> {
    let tx = snapshot(client, Access::Read).await?;
    require_rehearsed_schema(&tx, spec).await?;
    tx.rollback().await.map_err(Failure::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(of: &[(&str, &str)]) -> SchemaObjects {
        SchemaObjects(of.iter().map(|(object, digest)| ((*object).to_owned(), (*digest).to_owned())).collect())
    }

    #[test]
    fn each_object_that_changed_is_named() {
        let was = objects(&[("table a", "1"), ("table b", "2"), ("view c", "3")]);
        let now = objects(&[("table a", "1"), ("table b", "9"), ("type d", "4")]);
        assert_eq!(was.differences(&now), ["table b changed", "view c is gone", "type d is new"]);
        assert!(was.differences(&was).is_empty());
    }

    #[test]
    fn the_digest_depends_on_each_object() {
        let of = |list: &[(&str, &str)]| objects(list).evidence();
        let all = of(&[("table a", "1"), ("table b", "2")]);
        assert_eq!(all.as_ref().map(|e| e.objects), Some(2));
        assert_ne!(all, of(&[("table a", "1"), ("table b", "3")]));
        assert_ne!(all, of(&[("table a", "1"), ("table c", "2")]));
        assert_eq!(of(&[]), None);
    }
}
