//! `watch`: shows the status of a migration until it ends.

use std::{
    io::{IsTerminal as _, Write as _},
    pin::pin,
};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use futures::TryStreamExt as _;
use kube::{
    core::Duration,
    runtime::watcher::{self, Event, watcher},
};

use super::{completion, status::View};
use crate::{
    api::{CreditMigration, Phase, WorkProgress},
    plugin::{
        Exit, PluginError,
        connection::ClusterConnection,
        output::{Output, one_line},
    },
    shared::time::to_signed,
    telemetry,
};

pub(crate) const EXAMPLES: &str = "\
On a terminal each change redraws the screen of `status`; otherwise each change is a line.
Exit code 0: Completed, or the phase of --until was reached. 3: another end, or RollbackFailed. 5: --timeout has passed.

Examples:
  kubectl creditmigration watch simplify-credits
  kubectl creditmigration watch simplify-credits --until AwaitingApproval --timeout 2h";

/// What to watch, and how long.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Name of the CreditMigration.
    #[arg(add = completion::names())]
    name: String,
    /// End when this phase is reached.
    #[arg(long, value_parser = phase_parser(), value_name = "PHASE")]
    until: Option<Phase>,
    /// End after this time, such as 30m.
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Duration>,
}

/// Reads a phase by its name in the status.
fn phase_parser() -> impl TypedValueParser<Value = Phase> {
    PossibleValuesParser::new(Phase::ALL.iter().map(|phase| phase.as_str()))
        .try_map(|name| Phase::ALL.iter().copied().find(|phase| phase.as_str() == name).ok_or("no phase"))
}

/// Watches the migration.
pub(crate) async fn run(connection: &ClusterConnection, args: &Args) -> Result<Output, PluginError> {
    // A migration that does not exist would be watched forever.
    connection.migration(&args.name).await?;
    let follow = follow(connection, args);
    match args.timeout {
        None => follow.await,
        Some(timeout) => match tokio::time::timeout(to_signed(timeout).unsigned_abs(), follow).await {
            Ok(answer) => answer,
            Err(_) => Ok(Output { text: format!("{timeout} have passed"), exit: Exit::TimedOut }),
        },
    }
}

async fn follow(connection: &ClusterConnection, args: &Args) -> Result<Output, PluginError> {
    let config = watcher::Config::default().fields(&format!("metadata.name={}", args.name));
    let mut events = pin!(watcher(connection.api::<CreditMigration>(), config));
    let terminal = std::io::stdout().is_terminal();
    let (mut last, mut seen) = (None::<View>, false);
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return Err(PluginError::NotFound("the API server ended the watch".into())),
            Err(error) if is_permanent(&error) => return Err(PluginError::Content(error.to_string())),
            // The API server may be unavailable for a while; the watcher lists again.
            Err(error) => {
                eprintln!("{error}; retrying");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                continue;
            }
        };
        let migration = match event {
            Event::Apply(m) | Event::InitApply(m) => m,
            Event::Init => {
                seen = false;
                continue;
            }
            Event::InitDone if seen => continue,
            Event::Delete(_) | Event::InitDone => {
                return Ok(Output { text: format!("{} was deleted", args.name), exit: Exit::ProblemsFound });
            }
        };
        seen = true;
        let view = View::of(&migration, telemetry::now());
        let text = if terminal {
            // Clear the screen and start at the top.
            format!("\x1b[H\x1b[2J{}\n", view.screen())
        } else {
            let now = telemetry::now();
            changes(last.as_ref(), &view).into_iter().map(|line| format!("{now:.0} {line}\n")).collect()
        };
        let mut out = std::io::stdout();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            // The reader has ended.
            return Ok(Output::success(""));
        }
        if let Some(exit) = end(view.phase, args.until) {
            return Ok(Output { text: String::new(), exit });
        }
        last = Some(view);
    }
}

/// Whether a retry cannot help.
fn is_permanent(error: &watcher::Error) -> bool {
    let refused = |e: &kube::Error| matches!(e, kube::Error::Api(status) if [401, 403, 404].contains(&status.code));
    match error {
        watcher::Error::InitialListFailed(e) | watcher::Error::WatchStartFailed(e) => refused(e),
        _ => false,
    }
}

/// Exit code when this phase ends the watch.
fn end(phase: Option<Phase>, until: Option<Phase>) -> Option<Exit> {
    let phase = phase?;
    if Some(phase) == until {
        return Some(Exit::Success);
    }
    match phase {
        Phase::Completed if until.is_none() => Some(Exit::Success),
        Phase::Completed | Phase::RolledBack | Phase::Cancelled | Phase::Failed | Phase::RollbackFailed => {
            Some(Exit::ProblemsFound)
        }
        Phase::Preparing
        | Phase::AwaitingApproval
        | Phase::Executing
        | Phase::Validating
        | Phase::Monitoring
        | Phase::Observing
        | Phase::RollingBack => None,
    }
}

/// Changes, one line each. Passing time is no change.
fn changes(old: Option<&View>, new: &View) -> Vec<String> {
    let mut lines = vec![];
    if old.is_none_or(|o| o.phase != new.phase) {
        lines.push(format!("phase {}", new.phase_text()));
    }
    if old.and_then(|o| o.writes) != new.writes
        && let Some(writes) = new.writes
    {
        lines.push(format!("writes {writes}"));
    }
    for step in &new.steps {
        let before = old.and_then(|o| o.steps.iter().find(|s| s.name == step.name));
        if before.is_none_or(|b| (b.state, &b.evidence) != (step.state, &step.evidence)) {
            lines.push(format!("step {} {} {}", step.name, step.state, step.evidence).trim_end().to_owned());
        }
    }
    let work_of = |view: &View| view.work.as_ref().map(WorkProgress::summary);
    let (old_work, work) = (old.and_then(work_of), work_of(new));
    for (what, before, now) in [
        ("work", old_work.as_ref(), &work),
        ("approvals", old.and_then(|o| o.approvals.as_ref()), &new.approvals),
        ("presence", old.and_then(|o| o.presence.as_ref()), &new.presence),
    ] {
        if let Some(now) = now
            && before != Some(now)
        {
            lines.push(format!("{what} {now}"));
        }
    }
    for check in &new.checks {
        let before = old.and_then(|o| o.checks.iter().find(|c| c.name == check.name));
        if before.is_none_or(|b| (b.outcome, b.breached) != (check.outcome, check.breached)) {
            let breached = if check.breached { " (breached)" } else { "" };
            lines.push(format!("check {} {}{breached} {}", check.name, check.outcome, check.message));
        }
    }
    for notice in &new.notices {
        let before = old.and_then(|o| o.notices.iter().find(|n| (&n.occasion, n.at) == (&notice.occasion, notice.at)));
        if before.is_none_or(|b| b.state != notice.state) {
            lines.push(format!("notice {} {}", notice.occasion, notice.state));
        }
    }
    if old.is_none_or(|o| (&o.reason, &o.message) != (&new.reason, &new.message)) {
        lines.push(format!("now {}: {}", new.reason, new.message));
    }
    lines.into_iter().map(one_line).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::json;

    use super::*;
    use crate::{
        api::{StepState, Writes},
        plugin::{
            PluginCli,
            verbs::status::tests::{time, waiting},
        },
    };

    #[rstest::rstest]
    #[case(Phase::Completed, None, Some(Exit::Success))]
    #[case(Phase::Completed, Some(Phase::Monitoring), Some(Exit::ProblemsFound))]
    #[case(Phase::RolledBack, None, Some(Exit::ProblemsFound))]
    #[case(Phase::RolledBack, Some(Phase::RolledBack), Some(Exit::Success))]
    #[case(Phase::RollbackFailed, None, Some(Exit::ProblemsFound))]
    #[case(Phase::Monitoring, Some(Phase::Monitoring), Some(Exit::Success))]
    #[case(Phase::Monitoring, None, None)]
    fn ends(#[case] phase: Phase, #[case] until: Option<Phase>, #[case] exit: Option<Exit>) {
        assert_eq!(end(Some(phase), until), exit);
        assert_eq!(end(None, until), None);
    }

    #[test]
    fn a_line_per_change() {
        let (mut m, now) = (waiting(), time("2030-01-01T00:12:00Z"));
        let first = View::of(&m, now);
        let lines = changes(None, &first);
        assert_eq!(lines.first().map(String::as_str), Some("phase AwaitingApproval"));
        assert!(lines.contains(&"step Preflight Succeeded 12 of 12 as they should be".to_owned()), "{lines:?}");
        // Passing time is no change.
        assert_eq!(changes(Some(&first), &View::of(&m, time("2030-01-01T00:13:00Z"))), Vec::<String>::new());
        let status = m.status.as_mut().unwrap();
        status.approvals = Some("2/2".into());
        status.writes = Some(Writes::Blocked);
        status.steps[1].state = StepState::Succeeded;
        let second = View::of(&m, now);
        assert_eq!(
            changes(Some(&first), &second),
            ["writes Blocked", "step Approve Succeeded AwaitingApproval", "approvals 2/2"]
        );
        let work = json!({"work": "Verify", "unit": "Bytes", "done": 1500, "total": 6000, "at": now});
        m.status.as_mut().unwrap().work = serde_json::from_value(work).unwrap();
        let third = View::of(&m, now);
        assert_eq!(changes(Some(&second), &third), ["work Verify 1.5 kB of 6.0 kB, 25 %"]);
        assert!(third.screen().contains("\n  work:      Verify 1.5 kB of 6.0 kB, 25 %"), "{}", third.screen());
    }

    #[test]
    fn every_phase_can_be_waited_for() {
        for phase in Phase::ALL {
            let line = ["kubectl-creditmigration", "watch", "m", "--until", phase.as_str()];
            assert!(PluginCli::try_parse_from(line).is_ok(), "{phase}");
        }
    }
}
