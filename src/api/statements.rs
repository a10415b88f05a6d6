//! What the rehearsal measured of each statement of the SQL. Values and literals of it are not shown.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CreditMigration, Direction, named::named};

/// One statement, as it ran on the copy.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StatementEvidence {
    /// Whose SQL it is of: `Forward` is the up SQL, `Rollback` the down SQL.
    pub direction: Direction,
    /// Line of its first word in that SQL, from 1.
    pub line: u32,
    /// Its first keywords: `ALTER TABLE`.
    #[schemars(length(max = 64))]
    pub keywords: String,
    /// Seconds that it took.
    pub seconds: f64,
    /// Rows that it wrote or returned, by its command tag.
    pub rows: u64,
    /// The strongest lock that it took on a table that was there before the SQL, and that no earlier statement held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<StatementLock>,
}

/// A lock that a statement took.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StatementLock {
    /// Its mode.
    pub mode: LockMode,
    /// The table, quoted, with its schema.
    #[schemars(length(max = 300))]
    pub table: String,
    /// Seconds from the start of the statement to the end of the SQL: the transaction keeps its locks.
    pub held_seconds: f64,
}

/// Mode of a lock on a table, from the weakest to the strongest.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockMode {
    /// `ACCESS SHARE`
    AccessShare,
    /// `ROW SHARE`
    RowShare,
    /// `ROW EXCLUSIVE`
    RowExclusive,
    /// `SHARE UPDATE EXCLUSIVE`
    ShareUpdateExclusive,
    /// `SHARE`
    Share,
    /// `SHARE ROW EXCLUSIVE`
    ShareRowExclusive,
    /// `EXCLUSIVE`
    Exclusive,
    /// `ACCESS EXCLUSIVE`: reads wait, too.
    AccessExclusive,
}

named! {
    LockMode: AccessShare, RowShare, RowExclusive, ShareUpdateExclusive, Share, ShareRowExclusive, Exclusive,
        AccessExclusive
}

impl LockMode {
    /// By its name in `pg_locks`: `AccessShareLock`.
    pub fn of_pg_locks(name: &str) -> Option<Self> {
        let name = name.strip_suffix("Lock")?;
        Self::ALL.iter().copied().find(|mode| mode.as_str() == name)
    }

    /// As SQL writes it: `ACCESS SHARE`.
    pub fn sql(self) -> &'static str {
        match self {
            Self::AccessShare => "ACCESS SHARE",
            Self::RowShare => "ROW SHARE",
            Self::RowExclusive => "ROW EXCLUSIVE",
            Self::ShareUpdateExclusive => "SHARE UPDATE EXCLUSIVE",
            Self::Share => "SHARE",
            Self::ShareRowExclusive => "SHARE ROW EXCLUSIVE",
            Self::Exclusive => "EXCLUSIVE",
            Self::AccessExclusive => "ACCESS EXCLUSIVE",
        }
    }
}

impl StatementEvidence {
    /// Statements that a status has.
    pub const MAX: usize = 30;
    /// From how many seconds on reads that wait are pointed out.
    pub const READS_WAIT_LIMIT: f64 = 1.0;
    /// Statements that one line names.
    const MAX_IN_LINE: usize = 3;

    /// Those that people have to know, of all: the longest first. One that is short and makes reads wait for long is
    /// among them.
    pub fn longest(mut all: Vec<Self>) -> Vec<Self> {
        let weight = |one: &Self| one.seconds.max(one.reads_wait_seconds());
        all.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
        all.truncate(Self::MAX);
        all.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        all
    }

    /// How long reads of a table wait because of it.
    fn reads_wait_seconds(&self) -> f64 {
        match &self.lock {
            Some(lock) if lock.mode == LockMode::AccessExclusive => lock.held_seconds,
            Some(_) | None => 0.0,
        }
    }

    /// `up SQL, line 7`.
    pub fn place(&self) -> String {
        format!("{} SQL, line {}", self.direction.sql_name(), self.line)
    }

    /// Statements that make reads of a table wait for long, in one line; `None` if there is none.
    pub fn long_locks(all: &[Self]) -> Option<String> {
        let mut long: Vec<&Self> =
            all.iter().filter(|one| one.reads_wait_seconds() >= Self::READS_WAIT_LIMIT).collect();
        long.sort_by(|a, b| b.reads_wait_seconds().total_cmp(&a.reads_wait_seconds()));
        let more = long.len().saturating_sub(Self::MAX_IN_LINE);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let named: Vec<String> = long
            .iter()
            .take(Self::MAX_IN_LINE)
            .filter_map(|one| {
                let StatementLock { mode, table, held_seconds } = one.lock.as_ref()?;
                let (place, keywords, mode) = (one.place(), &one.keywords, mode.sql());
                Some(format!("{table} for {held_seconds:.1} s ({place}: {keywords} takes {mode})"))
            })
            .collect();
        (!named.is_empty()).then(|| {
            format!(
                "reads wait for more than {} s: {}{more}; next: move these statements to the end of the SQL, or what \
                    is long before the migration",
                Self::READS_WAIT_LIMIT,
                named.join(", ")
            )
        })
    }

    /// Head of a table of statements.
    pub const COLUMNS: [&str; 5] = ["SQL", "STATEMENT", "SECONDS", "ROWS", "STRONGEST LOCK"];

    /// Its row in that table.
    pub fn row(&self) -> Vec<String> {
        let lock = self.lock.as_ref().map_or_else(String::new, |StatementLock { mode, table, held_seconds }| {
            format!("{} on {table}, held for {held_seconds:.1} s", mode.sql())
        });
        vec![self.place(), self.keywords.clone(), format!("{:.1}", self.seconds), self.rows.to_string(), lock]
    }
}

impl CreditMigration {
    /// The statements of its SQL as the rehearsal measured them; none before it.
    pub fn measured_statements(&self) -> Vec<StatementEvidence> {
        let rehearsal = self.status.as_ref().and_then(|status| status.rehearsal.as_ref());
        rehearsal.map_or_else(Vec::new, |rehearsal| rehearsal.statements.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(line: u32, seconds: f64, lock: Option<(LockMode, f64)>) -> StatementEvidence {
        StatementEvidence {
            direction: Direction::Forward,
            line,
            keywords: "ALTER TABLE".to_owned(),
            seconds,
            rows: 0,
            lock: lock.map(|(mode, held_seconds)| StatementLock {
                mode,
                table: "public.users".to_owned(),
                held_seconds,
            }),
        }
    }

    #[test]
    fn the_longest_come_first_and_a_short_one_that_makes_reads_wait_stays() {
        let mut all: Vec<_> = (1..=40).map(|line| statement(line, f64::from(line), None)).collect();
        all.push(statement(41, 0.1, Some((LockMode::AccessExclusive, 800.0))));
        all.push(statement(42, 0.1, Some((LockMode::ShareRowExclusive, 800.0))));
        let lines: Vec<u32> = StatementEvidence::longest(all).iter().map(|one| one.line).collect();
        let wanted: Vec<u32> = (12..=40).rev().chain([41]).collect();
        assert_eq!(lines, wanted);
    }

    #[test]
    fn what_makes_reads_wait_is_named_with_its_limit() {
        let exclusive = Some(LockMode::AccessExclusive);
        for (mode, held, named) in [
            (None, 0.0, false),
            (Some(LockMode::Exclusive), 900.0, false),
            (exclusive, 0.9, false),
            (exclusive, 42.04, true),
        ] {
            let one = statement(7, 0.5, mode.map(|mode| (mode, held)));
            let line = StatementEvidence::long_locks(&[one]);
            assert_eq!(line.is_some(), named, "{line:?}");
            if let Some(line) = line {
                let wanted = "more than 1 s: public.users for 42.0 s (up SQL, line 7: ALTER TABLE takes ACCESS \
                    EXCLUSIVE); next: ";
                assert!(line.contains(wanted), "{line}");
            }
        }
    }

    #[test]
    fn each_mode_is_known_by_the_name_of_the_server() {
        for mode in LockMode::ALL {
            assert_eq!(LockMode::of_pg_locks(&format!("{mode}Lock")), Some(*mode));
            let name: String =
                mode.sql().split(' ').map(|word| format!("{}{}", &word[..1], word[1..].to_lowercase())).collect();
            assert_eq!(name, mode.as_str());
        }
        assert_eq!(LockMode::of_pg_locks("SIReadLock"), None);
    }
}
