//! Whether a session of this program is one with the server, or a pooler gives it another one for each transaction.

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::{
    api::Reason,
    runner::{
        Failure,
        database::{connect_error::pooler, connection::Target},
    },
};

/// Opens a second session while `client` is idle. A server starts a process for it. A pooler that shares processes has
/// one free by now, which is older than this question.
///
/// # Errors
/// `ConnectionInvalid` with what was seen; those of connecting.
pub async fn check(target: &Target, client: &Client) -> Result<String, Failure> {
    // No prepared statement: it may meet another process. The time as a text that every DateStyle reads alike.
    let asked = "SELECT pg_backend_pid(), to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')";
    let [first, now] = row(client, asked).await?;
    let second = target.try_connect("preflight").await.map_err(|error| error.failure)?;
    // A login that acts as another role would not see when its own process started.
    let started = format!(
        "BEGIN; SET LOCAL ROLE NONE;
         SELECT pid, backend_start AT TIME ZONE 'UTC' < timestamp '{now}' FROM pg_stat_activity
         WHERE pid = pg_backend_pid();
         ROLLBACK"
    );
    let [pid, is_older] = row(&second, &started).await?;
    if is_older != "t" && pid != first {
        return Ok(format!("each session has its own process of the server, {first} and {pid}"));
    }
    let seen = format!("a session that was opened just now has a process of the server that is older (pid {pid})");
    Err(pooler(target.host_port(), &seen))
}

async fn row(client: &Client, query: &str) -> Result<[String; 2], Failure> {
    let messages = client.simple_query(query).await?;
    let row = messages.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some([0, 1].map(|index| row.get(index).unwrap_or_default().to_owned())),
        _ => None,
    });
    row.ok_or_else(|| Failure::new(Reason::Internal, "the server does not list the session's own process"))
}
