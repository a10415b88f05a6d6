//! How long a window is expected to take: only from what was measured, or is in a Deployment's spec.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Expected duration of the window, with its parts.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct ExpectedWindow {
    /// Seconds: the SQL, then the longer one of comparison and rollout. The rollout is that of the slowest workload.
    pub seconds: u64,
    /// Seconds of the up SQL with its verification, in the rehearsal.
    pub sql_seconds: u64,
    /// Seconds of the comparison of balances, in the rehearsal.
    pub comparison_seconds: u64,
    /// The rollout of each workload.
    pub rollouts: Vec<ExpectedRollout>,
}

/// Expected duration of a workload's rollout, with its parts.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct ExpectedRollout {
    /// Name of the workload.
    pub workload: String,
    /// Seconds: as often as pods are replaced at once, the time until they are ready; then the end of the last ones.
    pub seconds: u64,
    /// Pods.
    pub replicas: u32,
    /// Pods that are replaced at once: `maxSurge` and `maxUnavailable`.
    pub at_once: u32,
    /// Seconds from the creation of a pod until it counts as available: as measured on the present pods, at least what
    /// the delays of its probes need, and `minReadySeconds`.
    pub ready_seconds: u64,
    /// Seconds that a pod may take to end: `terminationGracePeriodSeconds`.
    pub termination_seconds: u64,
}

impl ExpectedRollout {
    /// The rollout of a workload, from its parts.
    pub fn new(
        workload: impl Into<String>,
        replicas: u32,
        at_once: u32,
        ready_seconds: u64,
        termination_seconds: u64,
    ) -> Self {
        let at_once = at_once.clamp(1, replicas.max(1));
        let waves = u64::from(replicas.div_ceil(at_once));
        // Nothing is replaced where nothing runs.
        let seconds = if replicas == 0 { 0 } else { waves.saturating_mul(ready_seconds) + termination_seconds };
        Self { workload: workload.into(), seconds, replicas, at_once, ready_seconds, termination_seconds }
    }

    fn parts(&self) -> String {
        let Self { workload, seconds, replicas, at_once, ready_seconds, termination_seconds } = self;
        format!(
            "{workload} {seconds} s ({replicas} pods, {at_once} at once, {ready_seconds} s each until available, up to \
             {termination_seconds} s to end)"
        )
    }
}

impl ExpectedWindow {
    /// The window, from what the rehearsal has measured in seconds and from the rollouts.
    pub fn new(sql_seconds: f64, comparison_seconds: f64, rollouts: Vec<ExpectedRollout>) -> Self {
        let (sql_seconds, comparison_seconds) = (whole_seconds(sql_seconds), whole_seconds(comparison_seconds));
        let rollout = rollouts.iter().map(|r| r.seconds).max().unwrap_or_default();
        let seconds = sql_seconds.saturating_add(comparison_seconds.max(rollout));
        Self { seconds, sql_seconds, comparison_seconds, rollouts }
    }

    /// Seconds and parts, in one line.
    pub fn summary(&self) -> String {
        let rollouts: Vec<String> = self.rollouts.iter().map(ExpectedRollout::parts).collect();
        format!(
            "{} s: SQL {} s, then the longest of comparison {} s and rollout of {}",
            self.seconds,
            self.sql_seconds,
            self.comparison_seconds,
            if rollouts.is_empty() { "no workload".to_owned() } else { rollouts.join(", ") }
        )
    }
}

/// Whole seconds, rounded up; never negative.
fn whole_seconds(s: f64) -> u64 {
    std::time::Duration::try_from_secs_f64(s.ceil().max(0.0)).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case::one_after_the_other(8, 1, 45, 30, 390)]
    #[case::three_at_once(8, 3, 45, 30, 165)]
    #[case::all_at_once(2, 9, 20, 5, 25)]
    #[case::a_pod_that_ends_slowly(1, 1, 3, 600, 603)]
    #[case::nothing_runs(0, 1, 45, 30, 0)]
    fn a_rollout_takes_as_many_waves_as_its_strategy_needs(
        #[case] replicas: u32,
        #[case] at_once: u32,
        #[case] ready: u64,
        #[case] termination: u64,
        #[case] seconds: u64,
    ) {
        assert_eq!(ExpectedRollout::new("shop", replicas, at_once, ready, termination).seconds, seconds);
    }

    #[rstest::rstest]
    #[case::the_rollout_is_longer(3.2, 1.0, 10, 14)]
    #[case::the_comparison_is_longer(3.0, 60.5, 10, 64)]
    #[case::nothing_is_measured_yet(0.0, 0.0, 10, 10)]
    fn comparison_and_rollout_run_in_parallel(
        #[case] sql: f64,
        #[case] comparison: f64,
        #[case] rollout: u64,
        #[case] seconds: u64,
    ) {
        let rollouts = vec![ExpectedRollout::new("a", 1, 1, 1, 0), ExpectedRollout::new("b", 1, 1, rollout, 0)];
        let window = ExpectedWindow::new(sql, comparison, rollouts);
        assert_eq!(window.seconds, seconds);
        assert!(window.summary().starts_with(&format!("{seconds} s: ")), "{}", window.summary());
    }
}
