//! Leadership by a Lease, with self-fencing.
//!
//! Expiry is judged by locally observed time, as in client-go: a candidate takes a Lease only after it has observed the
//! same record for the whole duration that the record itself names, by its own clock, so the clocks of two nodes need
//! not agree. The leader stops by
//! itself well before that. Leadership avoids duplicate work; that nothing happens twice rests on resourceVersions and
//! the ledger.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client};
use tracing::{debug, warn};

use super::{Error, post_params};
use crate::telemetry;

/// Share of the lease's duration after which a leader stops that could not renew.
const FENCE: f64 = 0.66;
/// Share of the lease's duration between two renewals.
const RENEW: f64 = 0.2;

/// Shows that this replica leads; checked before each write.
#[derive(Clone)]
pub(super) struct LeaseGuard {
    renewed: Arc<Mutex<Option<Instant>>>,
    fence: Duration,
}

impl LeaseGuard {
    /// `Err(LeaseLost)` when the last renewal is too long ago.
    pub(super) fn check(&self) -> Result<(), Error> {
        let renewed = self.renewed.lock().map_err(|_| Error::LeaseLost)?;
        match *renewed {
            Some(at) if at.elapsed() < self.fence => Ok(()),
            _ => Err(Error::LeaseLost),
        }
    }

    fn set(&self, at: Option<Instant>) {
        if let Ok(mut renewed) = self.renewed.lock() {
            *renewed = at;
        }
    }
}

/// Candidate, then leader.
pub(super) struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    duration: Duration,
    lease: LeaseGuard,
}

/// Whether a candidate may take a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// No one else holds it.
    Free,
    /// Another replica holds it, or may still act on it.
    Held,
    /// Its holder has not renewed it for its whole duration.
    Expired,
}

/// Judges a record that has been the same for `unchanged`, by the candidate's own clock. While a new duration is rolled
/// out the holder acts by the one of its record, and the candidate by its own: the longer one counts.
fn judge(record: Option<&LeaseSpec>, identity: &str, own_duration: Duration, unchanged: Duration) -> Standing {
    let holder = record.and_then(|r| r.holder_identity.as_deref()).filter(|holder| !holder.is_empty());
    if holder.is_none_or(|holder| holder == identity) {
        return Standing::Free;
    }
    let of_record = record.and_then(|r| r.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
    let duration = own_duration.max(Duration::from_secs(of_record.unwrap_or_default()));
    if unchanged > duration { Standing::Expired } else { Standing::Held }
}

/// Whether a Lease that was read is this replica's to renew.
fn is_renewable(lease: Option<&Lease>, identity: &str) -> bool {
    let record = lease.and_then(|lease| lease.spec.as_ref());
    record.and_then(|record| record.holder_identity.as_deref()) == Some(identity)
}

/// The record that was last observed, and since when by the local clock.
struct SeenLease {
    version: Option<String>,
    since: Instant,
}

impl Elector {
    pub(super) fn new(client: Client, namespace: &str, name: &str, identity: &str, duration: Duration) -> Self {
        let lease = LeaseGuard { renewed: Arc::default(), fence: duration.mul_f64(FENCE) };
        Self { api: Api::namespaced(client, namespace), name: name.into(), identity: identity.into(), duration, lease }
    }

    pub(super) fn lease(&self) -> LeaseGuard {
        self.lease.clone()
    }

    /// Waits until this replica has the Lease.
    pub(super) async fn acquire(&self) {
        let mut seen: Option<SeenLease> = None;
        loop {
            // A request that hangs until the client's time-out would leave the operator without a leader for minutes.
            match tokio::time::timeout(self.duration.mul_f64(RENEW), self.try_take(&mut seen)).await {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => debug!(%error, "cannot read the lease"),
                Err(_) => debug!("reading the lease timed out"),
            }
            tokio::time::sleep(self.duration.mul_f64(RENEW)).await;
        }
    }

    /// Renews the Lease until that fails for so long that another replica may lead.
    pub(super) async fn keep(&self) {
        loop {
            tokio::time::sleep(self.duration.mul_f64(RENEW)).await;
            let started = Instant::now();
            match tokio::time::timeout(self.duration.mul_f64(RENEW), self.renew()).await {
                // Counted from before the request: the API server may have stored the renewal at any time since.
                Ok(Ok(true)) => self.lease.set(Some(started)),
                Ok(Ok(false)) => return self.lease.set(None),
                Ok(Err(error)) => warn!(%error, "cannot renew the lease"),
                Err(_) => warn!("renewal of the lease timed out"),
            }
            if self.lease.check().is_err() {
                return;
            }
        }
    }

    /// Gives the Lease back, so that the next replica need not wait for its expiry.
    pub(super) async fn release(&self) {
        self.lease.set(None);
        if let Ok(Some(mut lease)) = self.api.get_opt(&self.name).await
            && lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()) == Some(&self.identity)
        {
            if let Some(spec) = &mut lease.spec {
                spec.holder_identity = None;
            }
            // Best effort: without it the next replica waits for the expiry.
            let _ = self.api.replace(&self.name, &post_params(), &lease).await;
        }
    }

    async fn try_take(&self, seen: &mut Option<SeenLease>) -> Result<bool, kube::Error> {
        let started = Instant::now();
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            let fresh = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..Default::default() },
                spec: Some(self.record(None)),
            };
            return self.won(started, self.api.create(&post_params(), &fresh).await);
        };
        let version = lease.metadata.resource_version.clone();
        if seen.as_ref().is_none_or(|s| s.version != version) {
            *seen = Some(SeenLease { version, since: started });
        }
        let unchanged = seen.as_ref().map_or(Duration::ZERO, |s| s.since.elapsed());
        match judge(lease.spec.as_ref(), &self.identity, self.duration, unchanged) {
            Standing::Held => return Ok(false),
            Standing::Free | Standing::Expired => {}
        }
        let taken = Lease { spec: Some(self.record(lease.spec.as_ref())), ..lease };
        self.won(started, self.api.replace(&self.name, &post_params(), &taken).await)
    }

    fn won(&self, started: Instant, result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
        match result {
            Ok(_) => {
                self.lease.set(Some(started));
                Ok(true)
            }
            // Another candidate was faster.
            Err(kube::Error::Api(e)) if e.code == 409 => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// `false` when another replica has it.
    async fn renew(&self) -> Result<bool, kube::Error> {
        loop {
            let lease = self.api.get_opt(&self.name).await?;
            let Some(lease) = lease.filter(|lease| is_renewable(Some(lease), &self.identity)) else { return Ok(false) };
            let renewed = Lease { spec: Some(self.record(lease.spec.as_ref())), ..lease };
            match self.api.replace(&self.name, &post_params(), &renewed).await {
                Ok(_) => return Ok(true),
                // Not every write is another leader's: a label is one too. What is stored now says so. The caller
                // bounds the time.
                Err(kube::Error::Api(e)) if e.code == 409 => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn record(&self, old: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(telemetry::now());
        let mine = old.and_then(|o| o.holder_identity.as_deref()) == Some(&self.identity);
        let transitions = old.and_then(|o| o.lease_transitions).unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.duration.as_secs()).ok(),
            acquire_time: if mine { old.and_then(|o| o.acquire_time.clone()) } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(if mine { transitions } else { transitions + 1 }),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holder: &str, seconds: Option<i32>) -> LeaseSpec {
        LeaseSpec { holder_identity: Some(holder.into()), lease_duration_seconds: seconds, ..Default::default() }
    }

    #[rstest::rstest]
    #[case::given_back("", Some(5), 0, Standing::Free)]
    #[case::own_of_an_earlier_process("me", Some(5), 0, Standing::Free)]
    #[case::just_renewed("other", Some(5), 0, Standing::Held)]
    #[case::at_its_end("other", Some(5), 5, Standing::Held)]
    #[case::expired("other", Some(5), 6, Standing::Expired)]
    // Its leader renews every 6 s.
    #[case::a_longer_one_than_the_own("other", Some(30), 6, Standing::Held)]
    #[case::a_longer_one_that_expired("other", Some(30), 31, Standing::Expired)]
    #[case::a_shorter_one_than_the_own("other", Some(1), 4, Standing::Held)]
    #[case::without_a_duration("other", None, 6, Standing::Expired)]
    #[case::with_a_broken_duration("other", Some(-1), 4, Standing::Held)]
    fn a_lease_is_taken_when_its_holder_cannot_act_on_it(
        #[case] holder: &str,
        #[case] seconds: Option<i32>,
        #[case] unchanged: u64,
        #[case] expected: Standing,
    ) {
        let record = record(holder, seconds);
        let unchanged = Duration::from_secs(unchanged);
        assert_eq!(judge(Some(&record), "me", Duration::from_secs(5), unchanged), expected);
    }

    #[test]
    fn a_lease_without_a_record_is_free() {
        assert_eq!(judge(None, "me", Duration::from_secs(5), Duration::ZERO), Standing::Free);
    }

    #[rstest::rstest]
    #[case::own("me", true)]
    #[case::taken_by_another("other", false)]
    #[case::given_back("", false)]
    fn after_a_conflict_the_stored_record_decides(#[case] holder: &str, #[case] renewable: bool) {
        let lease = Lease { spec: Some(record(holder, Some(5))), ..Default::default() };
        assert_eq!(is_renewable(Some(&lease), "me"), renewable);
        assert!(!is_renewable(None, "me"), "deleted");
    }
}
