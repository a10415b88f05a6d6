//! Checks after a day and after a week, before the decision whether to keep the new version or roll back.

use kube::{KubeSchema, core::Duration};
use serde::{Deserialize, Serialize};

use crate::api::{Check, Task};

/// Checks after a day and after a week. A breach is reported, but does not start a rollback.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FollowUps {
    /// After 24 hours.
    #[serde(default)]
    pub day: FollowUp,
    /// After one week.
    #[serde(default)]
    pub week: FollowUp,
    /// Time between two reminders: to approve, to be present at the start, to keep the new version or roll back.
    #[serde(default = "one_day")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1m')")
            .message("reminderInterval must be at least 1m, for example 24h")
    )]
    pub reminder_interval: Duration,
}

impl Default for FollowUps {
    fn default() -> Self {
        Self { day: FollowUp::default(), week: FollowUp::default(), reminder_interval: one_day() }
    }
}

impl FollowUps {
    /// The follow-up that a task carries out; `None` for the other tasks.
    pub fn of(&self, task: Task) -> Option<&FollowUp> {
        match task {
            Task::DayCheck => Some(&self.day),
            Task::WeekReview => Some(&self.week),
            _ => None,
        }
    }

    /// Time from the cutover to the day check.
    pub fn day_after(&self) -> Duration {
        self.day.after.unwrap_or_else(one_day)
    }

    /// Time from the cutover to the week review.
    pub fn week_after(&self) -> Duration {
        self.week.after.unwrap_or_else(|| std::time::Duration::from_secs(7 * 24 * 3600).into())
    }
}

/// Checks at one time after the cutover. Each is measured at its interval for `duration`, then a report is written.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FollowUp {
    /// Time since writes were unblocked on the new version: 24h for the day check, 168h for the week review when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('0s')")
            .message("after must not be negative, for example 24h")
    )]
    pub after: Option<Duration>,
    /// How long the checks are measured.
    #[serde(default = "five_minutes")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('6h')")
            .message("duration must be between 1s and 6h, for example 5m")
    )]
    pub duration: Duration,
    /// The checks.
    #[serde(default)]
    #[schemars(length(max = 32))]
    #[x_kube(
        validation = Rule::new("self.all(c, self.exists_one(d, d.name == c.name))")
            .message("names of checks must be unique")
    )]
    #[x_kube(
        validation = Rule::new("self.all(c, !has(c.workload) && !has(c.job))")
            .message("workload and job checks belong in validation and monitoring: a follow-up is measured by one pod")
    )]
    pub checks: Vec<Check>,
}

impl Default for FollowUp {
    fn default() -> Self {
        Self { after: None, duration: five_minutes(), checks: vec![] }
    }
}

fn one_day() -> Duration {
    std::time::Duration::from_secs(24 * 3600).into()
}
fn five_minutes() -> Duration {
    std::time::Duration::from_secs(300).into()
}
