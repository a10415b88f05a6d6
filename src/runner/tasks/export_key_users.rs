//! Task `ExportKeyUsers`: the rows of key users, as CSV in the bucket next to the dump.
//!
//! ```text
//!  BEGIN REPEATABLE READ READ ONLY ── count ── COPY ─ sha256 ─ parts ── COMMIT ── complete
//! ```
//!
//! # Contract
//! - The object appears only after the server has ended the copy without an error; until then there are parts, and on
//!   any failure they are removed.
//! - Values go into the bucket and nowhere else. The CSV is PostgreSQL's own: a header, NULL is nothing, an empty text
//!   `""`, values with commas, quotes or line breaks are quoted.
//! - Rows are counted by the server in the same snapshot, since a value may hold line breaks.

use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio_postgres::Transaction;

use crate::{
    api::{Balances, KeyUsers, KeyUsersEvidence, Reason, Time, digest_text},
    runner::{
        Failure,
        clients::object_store::{STORE_RETRY_TIMEOUT, StoreClient, Upload},
        context::TaskContext,
        database::{
            control::{existing, ident, literal},
            snapshot::{Access, snapshot},
        },
    },
    shared::quoted::Quoted,
};

/// Digits of a limit; no sum of credits has as many.
const MAX_LIMIT_DIGITS: usize = 100;

/// Exports the rows. Notes `keyUsers`.
///
/// # Errors
/// Those of settings and connection; `LockTimeout`; `SqlFailed` if the table is not as the spec says; those of the
/// store.
pub async fn run(context: &TaskContext<'_>) -> Result<String, Failure> {
    let target = context.settings.target()?;
    let plan = &context.spec.plan;
    let store = StoreClient::open(&plan.backup.store, &context.settings.store_keys()?, STORE_RETRY_TIMEOUT)?;
    let condition = condition(&plan.backup.key_users, &plan.credits.balances)?;
    let mut client = target.connect("export-key-users").await?;
    let transaction = snapshot(&mut client, Access::Read).await?;
    // A policy of row security must be an error and not a shorter list.
    let settings = "SET LOCAL lock_timeout = '60s'; SET LOCAL row_security = off";
    transaction.batch_execute(settings).await?;
    let table = existing(&transaction, &plan.credits.balances.table).await?.sql();
    let count = format!("SELECT count(*), now() FROM {table} WHERE {condition}");
    let row = transaction.query_one(&count, &[]).await?;
    let (users, taken_at): (i64, Time) = (row.get(0), row.get(1));
    let users = u64::try_from(users).unwrap_or(0);

    let object = match &context.spec.inputs.backup_object {
        Some(dump) => format!("{}.key-users.csv", TaskContext::backup_base(dump)),
        None => store.object(&format!("{}.key-users.csv", context.backup_name(taken_at))),
    };
    let mut upload = store.upload(&object, 0).await?;
    let copy = format!("COPY (SELECT * FROM {table} WHERE {condition}) TO STDOUT WITH (FORMAT csv, HEADER true)");
    let export = async {
        let exported = export(transaction, &copy, &mut upload).await?;
        upload.complete().await?;
        Ok(exported)
    };
    let exported = tokio::select! {
        exported = export => exported,
        () = context.stop.cancelled() => Err(Failure::terminated()),
    };
    let (bytes, sha256) = match exported {
        Ok(exported) => exported,
        Err(failure) => {
            upload.abort().await;
            return Err(failure);
        }
    };
    let message = format!("{object}, {bytes} bytes, {users} users");
    let evidence = KeyUsersEvidence { object, users, bytes, sha256, taken_at };
    context.progress.update(|status| status.key_users = Some(evidence));
    Ok(message)
}

/// Streams the copy into the upload and ends the transaction. Bytes and their digest.
async fn export(transaction: Transaction<'_>, copy: &str, upload: &mut Upload) -> Result<(u64, String), Failure> {
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    let mut rows = Box::pin(transaction.copy_out(copy).await?);
    while let Some(data) = rows.next().await {
        let data = data?;
        hash.update(&data);
        bytes += u64::try_from(data.len()).unwrap_or(0);
        upload.write(&data).await?;
    }
    drop(rows);
    // Answered only by a server that is still there: more evidence that the end of the stream was that of the copy.
    transaction.commit().await?;
    Ok((bytes, digest_text(hash)))
}

/// Which rows. COPY takes no parameters, so the limits are literals.
fn condition(limits: &KeyUsers, balances: &Balances) -> Result<String, Failure> {
    let over = |column: &str, field: &str, limit: &str| {
        if !is_decimal(limit) {
            let message =
                format!("spec.backup.keyUsers.{field} {} is no decimal number; next: write it as 1000", Quoted(limit));
            return Err(Failure::new(Reason::Internal, message));
        }
        Ok(format!("{} > {}::numeric", ident(column), literal(limit)))
    };
    let balance = over(&balances.balance_column, "balanceOver", &limits.balance_over)?;
    let Some(purchased) = &balances.purchased_column else { return Ok(balance) };
    let purchased = over(purchased, "purchasedOver", &limits.purchased_over)?;
    Ok(format!("{balance} OR {purchased}"))
}

/// Whether `text` is what the schema admits: digits, perhaps with a sign and a fraction.
fn is_decimal(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
    digits(whole) && digits(fraction) && text.len() <= MAX_LIMIT_DIGITS
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0", true)]
    #[case("-12.50", true)]
    #[case("", false)]
    #[case("1.", false)]
    #[case(".5", false)]
    #[case("1e9", false)]
    #[case("NaN", false)]
    #[case("1'; DROP TABLE users; --", false)]
    #[case("1 OR true", false)]
    fn a_limit_is_a_number_or_refused(#[case] limit: &str, #[case] good: bool) {
        let limits = KeyUsers { balance_over: limit.to_owned(), purchased_over: "0".to_owned() };
        let condition = condition(&limits, &Balances::default());
        assert_eq!(condition.is_ok(), good, "{condition:?}");
    }

    #[test]
    fn both_limits_are_compared_as_numbers() {
        let limits = KeyUsers { balance_over: "-1.5".to_owned(), purchased_over: "0".to_owned() };
        assert_eq!(
            condition(&limits, &Balances::default()).unwrap().split(" OR ").collect::<Vec<_>>(),
            [r#""balance" > E'-1.5'::numeric"#, r#""purchased_credits" > E'0'::numeric"#,]
        );
    }
}
