//! What runs in parallel to the session of the window: the version probe, the full comparison.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;

use super::{Channel, kept::KeptSession};
use crate::{
    api::Comparison,
    runner::{
        Failure,
        database::control::{self, ControlSpec, millis},
    },
};

/// How often the version probe is asked.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// Answers that make one observation: each comes from one pod behind the Service.
const PROBES_PER_OBSERVATION: u32 = 4;

/// Asks for the version several times in a row. Returns all answers, `v1, v2` if they differ, and when the first was
/// asked for; `None` if one is missing.
pub(super) async fn probe<C: Channel>(channel: &C) -> Option<(String, Timestamp)> {
    let start = channel.now();
    let mut versions = BTreeSet::new();
    for _ in 0..PROBES_PER_OBSERVATION {
        tokio::time::sleep(PROBE_INTERVAL).await;
        versions.insert(channel.probe_version().await?);
    }
    Some((versions.into_iter().collect::<Vec<_>>().join(", "), start))
}

/// The full comparison, once, on a session of its own, which is kept also if it fails: the server may have no other
/// one. It starts after `pause`.
///
/// # Errors
/// What it fails with. The caller reports it, and retries it.
pub(super) async fn comparison(
    session: &KeptSession,
    spec: &ControlSpec,
    pause: Duration,
) -> Result<Comparison, Failure> {
    tokio::time::sleep(pause).await;
    let mut client = session.take().await?;
    let compared = async {
        let limit = format!("SET statement_timeout = {}", millis(spec.statement_timeout));
        client.batch_execute(&limit).await?;
        let (compared, _) = control::compare_blocked(&mut client, spec).await?;
        if compared.unexplained > 0 {
            // Before it is reported: the rollback that follows changes what was found.
            control::list_unexplained(&mut client, spec).await;
        }
        Ok(compared)
    };
    let compared = compared.await;
    session.keep(client);
    compared
}
