//! `spec.credits`: the names of the ledger.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Tables and columns that hold the credits. Defaults are the names of the checklist.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Credits {
    /// One row per user.
    pub balances: Balances,
    /// One row per change of a balance. With `null` there is no such table: nothing explains the balances that the new
    /// version writes.
    pub transactions: Option<Transactions>,
    /// Names that the up SQL gives the ledger, where they are others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<CreditsAfter>,
}

impl Default for Credits {
    fn default() -> Self {
        Self { balances: Balances::default(), transactions: Some(Transactions::default()), after: None }
    }
}

impl Credits {
    /// The names after the up SQL.
    pub fn of_new_version(&self) -> Self {
        let Some(CreditsAfter { balances, transactions }) = &self.after else { return self.clone() };
        let name = |after: &Option<String>, before: &String| after.as_ref().unwrap_or(before).clone();
        Self {
            balances: Balances {
                table: name(&balances.table, &self.balances.table),
                user_column: name(&balances.user_column, &self.balances.user_column),
                balance_column: name(&balances.balance_column, &self.balances.balance_column),
                purchased_column: self.balances.purchased_column.clone(),
            },
            transactions: self.transactions.as_ref().map(|before| Transactions {
                table: name(&transactions.table, &before.table),
                user_column: name(&transactions.user_column, &before.user_column),
                type_column: before.type_column.as_ref().map(|column| name(&transactions.type_column, column)),
                amount_column: name(&transactions.amount_column, &before.amount_column),
                created_at_column: name(&transactions.created_at_column, &before.created_at_column),
                created_at_time_zone: before.created_at_time_zone.clone(),
            }),
            after: None,
        }
    }

    /// Whether the up SQL gives a column of the balances another name.
    pub fn renames_balance_columns(&self) -> bool {
        let (old, new) = (&self.balances, self.of_new_version().balances);
        (&old.user_column, &old.balance_column) != (&new.user_column, &new.balance_column)
    }
}

/// Names of the new version, where the up SQL renames or moves what `credits` names. Each defaults to the old name.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct CreditsAfter {
    /// The table of balances.
    pub balances: BalancesAfter,
    /// The table of transactions, if `credits` has one.
    pub transactions: TransactionsAfter,
}

/// Names of the new version's balances.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct BalancesAfter {
    /// Table, optionally with its schema.
    #[schemars(length(min = 1, max = 127))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Column with the user, unique in the table.
    #[schemars(length(min = 1, max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_column: Option<String>,
    /// Column with the balance, any exact numeric type.
    #[schemars(length(min = 1, max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance_column: Option<String>,
}

/// Names of the new version's transactions.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct TransactionsAfter {
    /// Table, optionally with its schema.
    #[schemars(length(min = 1, max = 127))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Column with the user.
    #[schemars(length(min = 1, max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_column: Option<String>,
    /// Column with the kind of transaction.
    #[schemars(length(min = 1, max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub type_column: Option<String>,
    /// Column with the signed amount in credits.
    #[schemars(length(min = 1, max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount_column: Option<String>,
    /// Column with the time of the transaction, in the zone of the old one if it has none of its own.
    #[schemars(length(min = 1, max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at_column: Option<String>,
}

/// The table of balances.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Balances {
    /// Table, optionally with its schema: `user_credits` or `billing.user_credits`.
    #[schemars(length(min = 1, max = 127))]
    pub table: String,
    /// Column with the user, unique in the table.
    #[schemars(length(min = 1, max = 63))]
    pub user_column: String,
    /// Column with the balance, any exact numeric type.
    #[schemars(length(min = 1, max = 63))]
    pub balance_column: String,
    /// Column with the purchased credits; only read before the migration. `null`: there is none.
    #[schemars(length(min = 1, max = 63))]
    pub purchased_column: Option<String>,
}

impl Default for Balances {
    fn default() -> Self {
        Self {
            table: "user_credits".into(),
            user_column: "user_id".into(),
            balance_column: "balance".into(),
            purchased_column: Some("purchased_credits".into()),
        }
    }
}

/// The table of transactions.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Transactions {
    /// Table, optionally with its schema.
    #[schemars(length(min = 1, max = 127))]
    pub table: String,
    /// Column with the user.
    #[schemars(length(min = 1, max = 63))]
    pub user_column: String,
    /// Column with the kind of transaction. `null`: there is none, and all count as one kind, `all`.
    #[schemars(length(min = 1, max = 63))]
    pub type_column: Option<String>,
    /// Column with the signed amount in credits.
    #[schemars(length(min = 1, max = 63))]
    pub amount_column: String,
    /// Column with the time of the transaction.
    #[schemars(length(min = 1, max = 63))]
    pub created_at_column: String,
    /// IANA name of the time zone of a `timestamp` column: `Europe/Berlin`. A `timestamptz` column needs none.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$"))]
    pub created_at_time_zone: String,
}

impl Default for Transactions {
    fn default() -> Self {
        Self {
            table: "credit_transactions".into(),
            user_column: "user_id".into(),
            type_column: Some("type".into()),
            amount_column: "amount".into(),
            created_at_column: "created_at".into(),
            created_at_time_zone: "UTC".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_the_new_version_does_not_change_is_the_old_one() {
        let text = r#"{"balances": {"table": "old", "purchasedColumn": null},
            "transactions": {"typeColumn": null, "createdAtTimeZone": "Europe/Berlin"},
            "after": {"balances": {"table": "new"}, "transactions": {"typeColumn": "kind", "amountColumn": "delta"}}}"#;
        let credits: Credits = serde_json::from_str(text).unwrap();
        let after = credits.of_new_version();
        let wanted = Credits {
            balances: Balances { table: "new".into(), ..credits.balances.clone() },
            // There is no kind that could have another name.
            transactions: credits.transactions.clone().map(|t| Transactions { amount_column: "delta".into(), ..t }),
            after: None,
        };
        assert_eq!(after, wanted);
        assert_eq!(Credits::default().of_new_version(), Credits::default());
    }
}
