//! How far the long part of a task is.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Time, named::named};

/// How far the long part of a task is, as last reported.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct WorkProgress {
    /// What is under way.
    pub work: Activity,
    /// What is counted.
    pub unit: WorkUnit,
    /// How many of them are done.
    pub done: u64,
    /// Of how many; null when that is not known.
    #[serde(default)]
    pub total: Option<u64>,
    /// When this was counted.
    pub at: Time,
}

/// A part of a task that may take hours.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// `pg_dump` into the bucket: bytes that were sent.
    Dump,
    /// The backup is read back: bytes of its object.
    Verify,
    /// The backup is restored into the copy: bytes of its object. Indexes are built after the last one.
    Restore,
    /// The live database is copied for the rehearsal of the rollback: bytes between `pg_dump` and `pg_restore`.
    Copy,
    /// The tables of the copy are read, to compare them.
    Fingerprint,
}

named! {
    Activity: Dump, Verify, Restore, Copy, Fingerprint
}

/// What is counted of a work.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkUnit {
    /// Bytes.
    Bytes,
    /// Tables.
    Tables,
}

named! {
    WorkUnit: Bytes, Tables
}

impl WorkUnit {
    /// `12 tables`, `1.5 GB`.
    fn text(self, count: u64) -> String {
        match self {
            Self::Tables => format!("{count} tables"),
            Self::Bytes => bytes_text(count),
        }
    }
}

/// `1.5 GB`: a number of bytes in units of 1000.
pub fn bytes_text(bytes: u64) -> String {
    let (mut unit, mut size) = ("B", 1);
    for larger in ["kB", "MB", "GB", "TB"] {
        if bytes / size < 1000 {
            break;
        }
        (unit, size) = (larger, size * 1000);
    }
    match size {
        1 => format!("{bytes} B"),
        // Tenths, rounded down.
        _ => format!("{}.{} {unit}", bytes / size, bytes % size / (size / 10)),
    }
}

impl WorkProgress {
    /// Part of the whole in percent, rounded down; `None` when the whole is not known.
    fn percent(&self) -> Option<u64> {
        let total = self.total.filter(|total| *total > 0)?;
        Some(u64::try_from(u128::from(self.done) * 100 / u128::from(total)).unwrap_or(100).min(100))
    }

    /// `Restore 3.1 GB of 9.0 GB, 34 %`.
    pub fn summary(&self) -> String {
        let done = self.unit.text(self.done);
        match (self.total, self.percent()) {
            (Some(total), Some(percent)) => format!("{} {done} of {}, {percent} %", self.work, self.unit.text(total)),
            _ => format!("{} {done}", self.work),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case(WorkUnit::Bytes, 999, None, "Restore 999 B")]
    #[case(WorkUnit::Bytes, 3_190_000_000, Some(9_000_000_000), "Restore 3.1 GB of 9.0 GB, 35 %")]
    #[case(WorkUnit::Bytes, 0, Some(0), "Restore 0 B")]
    #[case(WorkUnit::Bytes, u64::MAX, Some(1), "Restore 18446744.0 TB of 1 B, 100 %")]
    #[case(WorkUnit::Tables, 3, Some(12), "Restore 3 tables of 12 tables, 25 %")]
    fn a_line_says_how_far_it_is(
        #[case] unit: WorkUnit,
        #[case] done: u64,
        #[case] total: Option<u64>,
        #[case] line: &str,
    ) {
        let progress = WorkProgress { work: Activity::Restore, unit, done, total, at: Time::UNIX_EPOCH };
        assert_eq!(progress.summary(), line);
    }
}
