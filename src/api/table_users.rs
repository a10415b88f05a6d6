//! What else uses the tables that a migration changes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::named::named;

/// Something that uses a table.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct TableUser {
    /// What it is.
    pub kind: TableUserKind,
    /// Its quoted name.
    #[schemars(length(max = 512))]
    pub name: String,
    /// The table, with its schema; absent for a slot, which decodes all tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub table: Option<String>,
}

/// What uses a table.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableUserKind {
    /// A role that is neither the application's nor the migration's has run statements that name it, by
    /// `pg_stat_statements`.
    Role,
    /// A publication publishes it.
    Publication,
    /// A logical replication slot of the database.
    Slot,
    /// A view reads it, also by another view.
    View,
    /// The same, of a materialized view.
    MaterializedView,
    /// A foreign key of a table that is not one of these refers to it.
    ForeignKey,
    /// The server has on record that a function needs it.
    Function,
    /// Its name is in the text of a function.
    FunctionText,
}

named! {
    TableUserKind: Role, Publication, Slot, View, MaterializedView, ForeignKey, Function, FunctionText
}

/// Whether `pg_stat_statements` says which roles use a table.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatementStatistics {
    /// It was read.
    Read,
    /// The extension is not in the database.
    NotInstalled,
    /// The migration role may not read the statements of others, or the server collects none.
    NotReadable,
}

named! {
    StatementStatistics: Read, NotInstalled, NotReadable
}

/// What else uses the tables. Names alone: no text of a statement.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct TableUsers {
    /// What uses them; the first 50.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub used_by: Vec<TableUser>,
    /// How many further ones there are.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_used_by: u32,
    /// Whether the roles among them are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement_statistics: Option<StatementStatistics>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

fn cut(name: &str) -> String {
    name.chars().take(TableUsers::MAX_NAME).collect()
}

impl TableUsers {
    /// Those that a status names.
    const MAX_NAMED: usize = 50;
    /// Those that one line names.
    const MAX_IN_LINE: usize = 10;
    /// Characters of a name: a function's has its arguments. The schema refuses a status with a longer one.
    const MAX_NAME: usize = 512;

    /// Of all that use the tables, in any order.
    pub fn new(mut all: Vec<TableUser>, statement_statistics: StatementStatistics) -> Self {
        for user in &mut all {
            user.name = cut(&user.name);
            user.table = user.table.as_deref().map(cut);
        }
        all.sort();
        all.dedup();
        let more = all.len().saturating_sub(Self::MAX_NAMED);
        all.truncate(Self::MAX_NAMED);
        let more_used_by = u32::try_from(more).unwrap_or(u32::MAX);
        Self { used_by: all, more_used_by, statement_statistics: Some(statement_statistics) }
    }

    /// All of it in one line; `None` if it was not read.
    pub fn summary(&self) -> Option<String> {
        let statistics = self.statement_statistics?;
        let count = self.used_by.len() + usize::try_from(self.more_used_by).unwrap_or(usize::MAX);
        let named: Vec<String> = self.used_by.iter().take(Self::MAX_IN_LINE).map(TableUser::to_string).collect();
        let more = count.saturating_sub(named.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let used = match count {
            0 => "nothing else that the database has on record uses the tables".to_owned(),
            _ => format!("other users of the tables ({count}): {}{more}", named.join(", ")),
        };
        let unknown = match statistics {
            StatementStatistics::Read => "",
            StatementStatistics::NotInstalled => "; other roles are not known: no pg_stat_statements in the database",
            StatementStatistics::NotReadable => {
                "; other roles are not known: to read pg_stat_statements the migration role needs pg_read_all_stats"
            }
        };
        Some(format!("{used}{unknown}"))
    }

    /// The same as the end of another line, if something uses them.
    pub fn appended(&self) -> String {
        let summary = self.summary().filter(|_| !self.used_by.is_empty());
        summary.map_or_else(String::new, |summary| format!("; {summary}"))
    }
}

impl std::fmt::Display for TableUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.table {
            Some(table) => write!(f, "{} ({}, {table})", self.name, self.kind),
            None => write!(f, "{} ({})", self.name, self.kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(kind: TableUserKind, name: &str) -> TableUser {
        TableUser { kind, name: name.to_owned(), table: Some("public.orders".to_owned()) }
    }

    #[test]
    fn a_name_is_no_longer_than_the_schema_allows() {
        let user = TableUser { kind: TableUserKind::Function, name: "ä".repeat(600), table: Some("t".repeat(600)) };
        let users = TableUsers::new(vec![user], StatementStatistics::Read);
        assert_eq!((users.used_by[0].name.chars().count(), users.used_by[0].table.as_ref().unwrap().len()), (512, 512));
    }

    #[test]
    fn a_status_names_the_first_and_counts_the_rest() {
        let views = (0..60).map(|n| user(TableUserKind::View, &format!("public.v{n:02}"))).rev();
        let all = views.chain([user(TableUserKind::Role, "etl"), user(TableUserKind::Role, "etl")]).collect();
        let users = TableUsers::new(all, StatementStatistics::Read);
        assert_eq!((users.used_by.len(), users.more_used_by), (50, 11));
        let summary = users.summary().unwrap();
        let start = "other users of the tables (61): etl (Role, public.orders), public.v00 (View, public.orders), ";
        assert!(summary.starts_with(start) && summary.ends_with(" and 51 more"), "{summary}");
    }

    #[test]
    fn nothing_is_reported_of_what_was_not_read() {
        let none = TableUsers::default();
        assert_eq!((none.summary(), none.appended().as_str()), (None, ""));
        assert_eq!(serde_json::to_value(&none).unwrap(), serde_json::json!({}));
        let unread = TableUsers::new(vec![], StatementStatistics::NotReadable);
        assert!(unread.summary().unwrap().ends_with("needs pg_read_all_stats"));
        assert_eq!(unread.appended(), "");
    }
}
