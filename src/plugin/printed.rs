//! Commands that are printed, for somebody to copy: each names its namespace, since the one of the reader's context may be another.

use std::fmt::Display;

use crate::machine::commands;

/// Stands where no namespace is known.
pub(super) const UNKNOWN: &str = "NAMESPACE";

/// A command of this plugin; `rest` is the verb, the name and options.
pub(super) fn plugin(namespace: &str, rest: impl Display) -> String {
    commands::plugin(known(namespace), rest)
}

/// A command of kubectl itself; `rest` is what follows the namespace.
pub(super) fn kubectl(namespace: &str, rest: impl Display) -> String {
    commands::kubectl(known(namespace), rest)
}

fn known(namespace: &str) -> &str {
    if namespace.is_empty() { UNKNOWN } else { namespace }
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;
    use crate::plugin::Cli;

    /// Asserts of each command in a text that it can be run as it stands, and where: in `namespace`. Gives how many there are.
    pub(in crate::plugin) fn sound(text: &str, namespace: &str) -> usize {
        let commands: Vec<&str> = text.split("kubectl ").skip(1).collect();
        for command in &commands {
            let command = command.split([';', '\n']).next().unwrap();
            if let Some(words) = command.strip_prefix("creditmigration ") {
                let words = words.replace("\"...\"", "because");
                let cli = Cli::try_parse_from(["kubectl-creditmigration"].into_iter().chain(words.split_whitespace()));
                let cli = cli.unwrap_or_else(|e| panic!("{command}: {e}"));
                assert_eq!(cli.connection.namespace.as_deref(), Some(namespace), "{command}");
            } else {
                assert!(command.starts_with(&format!("-n {namespace} ")), "{command}");
            }
        }
        commands.len()
    }

    #[test]
    fn each_names_its_namespace() {
        assert_eq!(plugin("shop", "watch m"), "kubectl creditmigration -n shop watch m");
        assert_eq!(kubectl("", "get pods"), "kubectl -n NAMESPACE get pods");
        assert_eq!(
            sound(&format!("a; next: {}; b: {}", plugin("shop", "abort m"), kubectl("shop", "get pods")), "shop"),
            2
        );
    }
}
