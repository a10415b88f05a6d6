//! Completion: scripts for the plugin's own name, and candidates for kubectl after `kubectl creditmigration`.
//!
//! kubectl runs the program [`COMPLETION_PROGRAM`] with the words of the command line, of which the last is to be
//! completed (KEP-2379, "Shell completion support"). The output has cobra's format: one line per candidate, its
//! description after a tab, then a line with a directive for the shell.

use std::time::Duration;

use clap::{ArgMatches, CommandFactory, FromArgMatches};
use clap_complete::{
    CompletionCandidate,
    engine::{self, ArgValueCandidates},
};
use kube::{ResourceExt, api::ListParams};

use crate::{
    api::CreditMigration,
    plugin::{
        PluginCli,
        connection::{ClusterConnection, ConnectionOptions},
    },
};

/// Name of the program that kubectl runs for completion: a link to the plugin.
pub const COMPLETION_PROGRAM: &str = "kubectl_complete-creditmigration";

/// Longest wait for the names of migrations.
const NAMES_TIMEOUT: Duration = Duration::from_secs(2);
/// Options whose value is a file: the shell completes it.
const FILES: [&str; 3] = ["-f", "--filename", "--kubeconfig"];
/// Cobra's `ShellCompDirective`: no files in addition to the candidates, and the shell's default.
const NO_FILES: &str = ":4";
const DEFAULT: &str = ":0";

/// The script for a shell.
pub(crate) fn script(shell: clap_complete::Shell) -> String {
    let mut script = vec![];
    clap_complete::generate(shell, &mut PluginCli::command(), "kubectl-creditmigration", &mut script);
    String::from_utf8_lossy(&script).trim_end().to_owned()
}

/// Candidates for the last of `words`, in the format of kubectl.
pub fn answer(words: &[String]) -> String {
    if matches!(words, [.., before, _] if FILES.contains(&before.as_str())) {
        return DEFAULT.to_owned();
    }
    let line = line(words);
    let last = line.len().saturating_sub(1);
    let found = engine::complete(&mut PluginCli::command(), line, last, None).unwrap_or_default();
    let candidates = found.iter().filter(|candidate| !candidate.is_hide_set()).map(|candidate| {
        let value = candidate.get_value().to_string_lossy();
        let help = candidate.get_help().map(|help| format!("\t{help}")).unwrap_or_default();
        format!("{value}{help}")
    });
    candidates.chain([NO_FILES.to_owned()]).collect::<Vec<_>>().join("\n")
}

/// The command line in the form that the parser takes.
fn line(words: &[String]) -> Vec<std::ffi::OsString> {
    [COMPLETION_PROGRAM].into_iter().chain(words.iter().map(String::as_str)).map(Into::into).collect()
}

/// Candidates for an argument that names a migration.
pub(crate) fn names() -> ArgValueCandidates {
    ArgValueCandidates::new(ask)
}

/// The migrations in the namespace of this program's command line; none if the API server does not return them.
fn ask() -> Vec<CompletionCandidate> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let names = async {
        let connection = ClusterConnection::new(&options(&words), false).await.ok()?;
        connection.api::<CreditMigration>().list(&ListParams::default()).await.ok()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let list = runtime.ok().and_then(|runtime| {
        runtime.block_on(async { tokio::time::timeout(NAMES_TIMEOUT, names).await.ok().flatten() })
    });
    list.map(|list| list.items).unwrap_or_default().iter().map(candidate).collect()
}

/// The name with its phase: of several migrations usually one is under way.
fn candidate(migration: &CreditMigration) -> CompletionCandidate {
    let phase = migration.status.as_ref().and_then(|status| status.phase);
    CompletionCandidate::new(migration.name_any()).help(phase.map(|phase| phase.as_str().into()))
}

/// Namespace, context and other options of an unfinished command line.
fn options(words: &[String]) -> ConnectionOptions {
    let parsed = PluginCli::command().ignore_errors(true).try_get_matches_from(line(words));
    parsed.ok().and_then(|matches: ArgMatches| ConnectionOptions::from_arg_matches(&matches).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_know_the_verbs() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            assert!(script(shell).contains("rollback"), "{shell}");
        }
    }

    #[rstest::rstest]
    #[case::verb(&["ro"], "rollback\tRoll back to the old version. Without --confirm: show what would be undone\n:4")]
    #[case::option(
        &["rollback", "m", "--conf"],
        "--confirm\tDo it. Without this option the verb only shows what would be undone\n:4"
    )]
    #[case::value(&["watch", "m", "--until", "Mon"], "Monitoring\n:4")]
    #[case::file(&["lint", "-f", "mig"], ":0")]
    #[case::nothing(&["no-such-verb", "m", "x"], ":4")]
    fn kubectl_gets_candidates(#[case] words: &[&str], #[case] expected: &str) {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        assert_eq!(answer(&words), expected);
    }

    #[test]
    fn the_namespace_of_an_unfinished_line_counts() {
        let words = ["-n", "shop", "approve", "--reason"].map(str::to_owned);
        assert_eq!(options(&words).namespace.as_deref(), Some("shop"));
        assert_eq!(
            options(&["status".to_owned(), "--context=prod".to_owned(), String::new()]).context.as_deref(),
            Some("prod")
        );
    }
}
