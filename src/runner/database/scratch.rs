//! The scratch database of the rehearsal: made like the original, marked as the operator's, dropped in any case.
//!
//! ```text
//!  CREATE DATABASE credit_migration_scratch_<uid>, no connections ─ mark ─ rights, settings ─ RENAME ─ connections
//! ```
//! A pod that is killed in between leaves a database that is known as the operator's by its mark or, before it has one,
//! by its name and because no one may connect to it. A database without the mark belongs to a user, and is left alone.

use tokio_postgres::Client;

use super::{
    connection::Target,
    control::{ident, literal},
    version::{SET_ROLE_RIGHT, ServerVersion},
};
use crate::{api::Reason, runner::Failure};

/// Advisory lock of who makes or drops scratch databases, in addition to those of the control schema.
pub(in crate::runner) const LOCK_REHEARSAL: i32 = 16;

/// Settings whose stored value is a list that is quoted already.
const LIST_SETTINGS: &[&str] = &[
    "search_path",
    "temp_tablespaces",
    "session_preload_libraries",
    "shared_preload_libraries",
    "local_preload_libraries",
    "unix_socket_directories",
];

/// What `COMMENT ON DATABASE` says of a scratch database of this migration.
fn mark(uid: &str) -> String {
    format!("credit-migration: scratch database of migration {uid}, dropped after its rehearsal")
}

/// Name of a database that has no mark yet; 61 bytes with a UID of the API server, and names are cut at 63.
fn unmarked(uid: &str) -> String {
    format!("credit_migration_scratch_{uid}")
}

/// Everything that rehearsals of this migration have left, under any name.
const LEFTOVERS_SQL: &str = "SELECT datname::text FROM pg_database
    WHERE shobj_description(oid, 'pg_database') = $1 OR datname::text = $2 AND NOT datallowconn";

/// Drops all that rehearsals of this migration have left. Returns how many databases.
///
/// # Errors
/// Those of a database error.
pub async fn sweep(client: &Client, uid: &str) -> Result<usize, Failure> {
    let left = client.query(LEFTOVERS_SQL, &[&mark(uid), &unmarked(uid)]).await?;
    for row in &left {
        remove(client, row.get(0)).await?;
    }
    Ok(left.len())
}

/// Whether a database of that name exists and is a leftover of this migration.
///
/// # Errors
/// `ScratchDatabaseExists` if it exists and belongs to another owner.
pub async fn leftover(client: &Client, name: &str, uid: &str) -> Result<bool, Failure> {
    let row = client
        .query_opt("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname::text = $1", &[&name])
        .await?;
    match row.map(|row| row.get::<_, Option<String>>(0)) {
        None => Ok(false),
        Some(Some(comment)) if comment == mark(uid) => Ok(true),
        Some(_) => Err(Failure::new(
            Reason::ScratchDatabaseExists,
            format!(
                "database {name} exists and is not of this migration; next: DROP DATABASE {}, or set \
                    spec.rehearsal.database to a name that is free",
                ident(name)
            ),
        )),
    }
}

/// Makes the database on the server of `client`, to which `target` leads, with encoding, locale and settings of
/// `original`. Only its owner may connect: it will hold personal data.
///
/// # Errors
/// `ScratchDatabaseExists`; `PrivilegeMissing` without `CREATEDB`; those of a database error.
pub async fn create(original: &Client, client: &Client, target: &Target, name: &str, uid: &str) -> Result<(), Failure> {
    sweep(client, uid).await?;
    let made = unmarked(uid);
    for name in [name, made.as_str()] {
        // What is there now belongs to another owner.
        leftover(client, name, uid).await?;
    }
    let locale = ServerVersion::of(original).await?.locale_columns();
    let query = format!(
        "SELECT pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text, {locale}, o.rolname::text
         FROM pg_database AS d JOIN pg_roles AS o ON o.oid = d.datdba WHERE d.datname = current_database()"
    );
    let row = original.query_one(&query, &[]).await?;
    let text = |index: usize| literal(row.get::<_, &str>(index));
    // As that of the original, so that its tables get their owners, and another login may drop it.
    let query = format!("SELECT FROM pg_roles WHERE rolname::text = $1 AND pg_has_role(oid, {SET_ROLE_RIGHT})");
    let owner: &str = row.get(5);
    let owner = match client.query_opt(&query, &[&owner]).await? {
        Some(_) => ident(owner),
        None => "CURRENT_USER".to_owned(),
    };
    let mut statement = format!(
        "CREATE DATABASE {} OWNER {owner} TEMPLATE template0 ALLOW_CONNECTIONS false ENCODING {} LC_COLLATE {} \
            LC_CTYPE {}",
        ident(&made),
        text(0),
        text(1),
        text(2)
    );
    let locale = row.get::<_, Option<&str>>(4).map(literal);
    match (row.get::<_, &str>(3), locale) {
        ("i", Some(locale)) => statement.push_str(&format!(" LOCALE_PROVIDER icu ICU_LOCALE {locale}")),
        ("b", Some(locale)) => statement.push_str(&format!(" LOCALE_PROVIDER builtin BUILTIN_LOCALE {locale}")),
        // Another server may have another provider by default. Before 15 there is one.
        _ if ServerVersion::of(client).await?.major >= 15 => statement.push_str(" LOCALE_PROVIDER libc"),
        _ => {}
    }
    let denied = |e: tokio_postgres::Error| match e.code().map(tokio_postgres::error::SqlState::code) {
        Some("42501") => Failure::new(
            Reason::PrivilegeMissing,
            format!(
                "role {user} may not create databases; next: ALTER ROLE {} CREATEDB;",
                ident(target.user()),
                user = target.user()
            ),
        ),
        _ => e.into(),
    };
    client.batch_execute(&statement).await.map_err(denied)?;
    let execute = async |sql: String| client.batch_execute(&sql).await.map_err(Failure::from);
    execute(format!("COMMENT ON DATABASE {} IS {}", ident(&made), literal(&mark(uid)))).await?;
    // A login that inherits nothing acts as the owner only once it is connected.
    execute(format!(
        "REVOKE ALL ON DATABASE {0} FROM PUBLIC; GRANT CONNECT ON DATABASE {0} TO SESSION_USER",
        ident(&made)
    ))
    .await?;
    copy_settings(original, client, &made).await?;
    execute(format!("ALTER DATABASE {} RENAME TO {}", ident(&made), ident(name))).await?;
    execute(format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", ident(name))).await
}

/// `ALTER DATABASE ... SET` of the original, without which the SQL may see another `search_path`.
async fn copy_settings(original: &Client, client: &Client, name: &str) -> Result<(), Failure> {
    let rows = original
        .query(
            "SELECT unnest(s.setconfig) FROM pg_db_role_setting AS s JOIN pg_database AS d ON d.oid = s.setdatabase
             WHERE d.datname = current_database() AND s.setrole = 0",
            &[],
        )
        .await?;
    for row in rows {
        let Some((setting, value)) = row.get::<_, &str>(0).split_once('=') else { continue };
        // A window that is open, or was left so, must not make the copy read-only.
        if setting == "default_transaction_read_only" {
            continue;
        }
        let value =
            if LIST_SETTINGS.contains(&setting) && !value.is_empty() { value.to_owned() } else { literal(value) };
        let statement = format!("ALTER DATABASE {} SET {} TO {value}", ident(name), quoted_setting(setting));
        if let Err(error) = client.batch_execute(&statement).await {
            // Some need a superuser; the SQL shows whether they matter.
            let error = Failure::from(error);
            tracing::warn!(setting, %error, "a database setting is not copied for the rehearsal");
        }
    }
    Ok(())
}

/// `name` or `extension.name`, each part quoted.
fn quoted_setting(setting: &str) -> String {
    setting.split('.').map(ident).collect::<Vec<_>>().join(".")
}

/// Drops the database and ends its connections.
///
/// # Errors
/// Those of a database error.
pub async fn remove(client: &Client, name: &str) -> Result<(), Failure> {
    let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(name));
    client.batch_execute(&statement).await.map_err(Failure::from)
}
