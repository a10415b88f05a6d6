//! The kubectl plugin: shows what would happen, the state of a migration and whether its evidence is valid, and creates
//! `MigrationDecision`s, so that no approver has to search for a UID or a digest.
//!
//! ```text
//!  command line ─> verb ─> read (client) ─> plain values ─> pure part: items, view, decision ─> Output { text, exit }
//! ```
//!
//! Only these verbs change something: `approve`, `ready`, `reject`, `abort`, `rollback --confirm` and `keep`. Each
//! creates one decision under the user name by which the API server knows the caller.
//!
//! Called by the program `kubectl-creditmigration`. Imports `machine`, `api`, `shared` and `telemetry`. Inside: `verbs`
//! imports all others; `connection` and `inspect` import no verb.

#[cfg(test)]
mod commands;
mod connection;
mod error;
mod inspect;
mod output;
mod verbs;

use clap::{Parser, Subcommand};

pub use error::{Exit, PluginError};
pub use output::Output;
pub use verbs::completion;

use self::{
    connection::ClusterConnection,
    verbs::{decide, lint, logs, plan, report, status, verify, watch},
};

/// What each exit code means; part of `--help`.
const EXIT_CODES: &str = "\
Exit codes:
  0  done, without problems
  1  not done: no connection, no permission, no such object
  2  the command line is wrong
  3  problems found: plan found missing objects, lint found errors, verify found missing evidence, status or watch found
     Failed or RollbackFailed, watch found another end than the expected one
  4  the verb does not fit the migration's state; nothing was done
  5  watch --timeout has passed

Examples:
  kubectl creditmigration lint -f migration.yaml
  kubectl creditmigration plan -f migration.yaml
  kubectl creditmigration status simplify-credits
  kubectl creditmigration approve simplify-credits --reason \"rehearsal reviewed\"
  kubectl creditmigration rollback simplify-credits --confirm --reason \"payments fail\"";

/// Command line.
#[derive(Parser, Debug)]
#[command(
    name = "kubectl-creditmigration",
    bin_name = "kubectl creditmigration",
    version,
    about = "Plan credit migrations, decide on them, and follow them",
    after_help = EXIT_CODES
)]
pub struct PluginCli {
    #[command(flatten)]
    connection: connection::ConnectionOptions,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Show what would happen and what is missing, without changing anything.
    #[command(after_help = plan::EXAMPLES)]
    Plan(plan::Args),
    /// Check files without a cluster: schema, rules, SQL, templates, time zones.
    #[command(after_help = lint::EXAMPLES)]
    Lint(lint::Args),
    /// Show the state of a migration; without a name, of all in the namespace.
    #[command(after_help = status::EXAMPLES)]
    Status(status::Args),
    /// Show the state of a migration until it ends.
    #[command(after_help = watch::EXAMPLES)]
    Watch(watch::Args),
    /// Approve the current plan.
    #[command(after_help = decide::APPROVE)]
    Approve(decide::DecisionArgs),
    /// Confirm that you are present for the execution.
    #[command(after_help = decide::READY)]
    Ready(decide::DecisionArgs),
    /// Reject the current plan.
    #[command(after_help = decide::REJECT)]
    Reject(decide::DecisionArgs),
    /// Stop: before the window nothing has changed, afterwards the change is undone.
    #[command(after_help = decide::ABORT)]
    Abort(decide::DecisionArgs),
    /// Roll back to the old version. Without --confirm: show what would be undone.
    #[command(after_help = decide::ROLLBACK)]
    Rollback(decide::RollbackArgs),
    /// Keep the new version.
    #[command(after_help = decide::KEEP)]
    Keep(decide::DecisionArgs),
    /// Check that the evidence exists and is consistent.
    #[command(after_help = verify::EXAMPLES)]
    Verify(verify::Args),
    /// Write the whole record of a migration: the checklist, checked off by evidence.
    #[command(after_help = report::EXAMPLES)]
    Report(report::Args),
    /// Print the logs of a migration's pods, those of its newest run by default.
    #[command(after_help = logs::EXAMPLES)]
    Logs(logs::Args),
    /// Print a completion script for a shell.
    #[command(after_help = COMPLETION)]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

const COMPLETION: &str = "\
The script completes the plugin's own name, kubectl-creditmigration. For `kubectl creditmigration` link the plugin to
the name that kubectl calls; names of migrations are completed as well.

Examples:
  ln -s kubectl-creditmigration /usr/local/bin/kubectl_complete-creditmigration
  source <(kubectl creditmigration completion bash)
  kubectl creditmigration completion zsh >\"${fpath[1]}/_kubectl-creditmigration\"";

/// Runs one verb; returns what to print and the exit code.
///
/// # Errors
/// [`PluginError`], whose [`PluginError::exit`] is the exit code.
pub async fn run(cli: PluginCli) -> Result<Output, PluginError> {
    let PluginCli { connection: options, verb } = cli;
    let streams = matches!(verb, Verb::Watch(_) | Verb::Logs(_));
    let connect = || ClusterConnection::new(&options, streams);
    match verb {
        Verb::Lint(args) => lint::run(&args),
        Verb::Completion { shell } => Ok(Output::success(completion::script(shell))),
        Verb::Plan(args) => plan::run(connect().await?, options.namespace.as_deref(), &args).await,
        Verb::Status(args) => status::run(&connect().await?, &args).await,
        Verb::Watch(args) => watch::run(&connect().await?, &args).await,
        Verb::Approve(target) => decide::decide(&connect().await?, crate::api::DecisionKind::Approve, target).await,
        Verb::Ready(target) => decide::decide(&connect().await?, crate::api::DecisionKind::Ready, target).await,
        Verb::Reject(target) => decide::decide(&connect().await?, crate::api::DecisionKind::Reject, target).await,
        Verb::Abort(target) => decide::decide(&connect().await?, crate::api::DecisionKind::Abort, target).await,
        Verb::Keep(target) => decide::decide(&connect().await?, crate::api::DecisionKind::Keep, target).await,
        Verb::Rollback(args) => decide::rollback(&connect().await?, args).await,
        Verb::Verify(args) => verify::run(&connect().await?, &args).await,
        Verb::Report(args) => report::run(&connect().await?, &args).await,
        Verb::Logs(args) => logs::run(&connect().await?, &args).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        PluginCli::command().debug_assert();
    }

    #[test]
    fn every_verb_has_an_example() {
        let mut command = PluginCli::command();
        assert!(command.render_help().to_string().contains("Examples:"));
        let verbs: Vec<String> =
            command.get_subcommands().map(|c| c.get_name().to_owned()).filter(|verb| verb != "help").collect();
        assert_eq!(
            verbs,
            [
                "plan",
                "lint",
                "status",
                "watch",
                "approve",
                "ready",
                "reject",
                "abort",
                "rollback",
                "keep",
                "verify",
                "report",
                "logs",
                "completion"
            ]
        );
        for verb in verbs {
            let help = command.find_subcommand_mut(&verb).unwrap().render_help().to_string();
            let example = format!("kubectl creditmigration {verb}");
            assert!(help.contains("Examples:") && help.contains(&example), "{verb}:\n{help}");
        }
    }

    #[test]
    fn the_help_lists_the_exit_codes() {
        let help = PluginCli::command().render_help().to_string();
        for exit in [Exit::Success, Exit::Error, Exit::Usage, Exit::ProblemsFound, Exit::InvalidState, Exit::TimedOut] {
            assert!(help.contains(&format!("\n  {}  ", exit as u8)), "{exit:?}:\n{help}");
        }
        assert_eq!(PluginError::InvalidState(String::new()).exit(), Exit::InvalidState);
        assert_eq!(PluginError::NotFound(String::new()).exit(), Exit::Error);
    }

    #[rstest::rstest]
    #[case(&["rollback", "m", "--confirm"], false)]
    #[case(&["rollback", "m", "--confirm", "--reason", "r"], true)]
    #[case(&["rollback", "m"], true)]
    #[case(&["abort", "m"], true)]
    #[case(&["plan"], false)]
    #[case(&["plan", "m"], true)]
    #[case(&["plan", "-f", "x.yaml"], true)]
    #[case(&["plan", "m", "-f", "x.yaml"], false)]
    #[case(&["lint"], false)]
    #[case(&["lint", "-f", "a", "-f", "b"], true)]
    #[case(&["status", "-o", "json"], true)]
    #[case(&["status", "-o", "wide"], false)]
    #[case(&["watch", "m", "--until", "Completed", "--timeout", "5m"], true)]
    #[case(&["watch", "m", "--until", "Done"], false)]
    #[case(&["watch", "m", "--timeout", "5"], false)]
    #[case(&["logs", "m", "--task", "window", "-f"], true)]
    #[case(&["logs", "m", "--task", "Window"], true)]
    #[case(&["logs", "m", "--task", "x"], false)]
    #[case(&["approve", "m", "--as-group", "g"], false)]
    fn command_lines(#[case] line: &[&str], #[case] good: bool) {
        let parsed = PluginCli::try_parse_from([&["kubectl-creditmigration"], line].concat());
        assert_eq!(parsed.is_ok(), good, "{parsed:?}");
        if let Err(error) = parsed {
            assert_eq!(error.exit_code(), Exit::Usage as i32);
        }
    }
}
