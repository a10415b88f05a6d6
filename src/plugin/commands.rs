//! Tests: printed commands can be run as they are.

use clap::Parser;

use super::PluginCli;
use crate::shared::command::{self, PLUGIN_COMMANDS};

/// Asserts of each command in a text that it can be run as it is, and where: in `namespace`. Returns how many there
/// are.
pub(super) fn sound(text: &str, namespace: &str) -> usize {
    let commands: Vec<&str> = text.split("kubectl ").skip(1).collect();
    for command in &commands {
        let command = command.split([';', '\n']).next().unwrap();
        if let Some(words) = command.strip_prefix("creditmigration ") {
            let words = words.replace("\"...\"", "because");
            let cli =
                PluginCli::try_parse_from(["kubectl-creditmigration"].into_iter().chain(words.split_whitespace()));
            let cli = cli.unwrap_or_else(|e| panic!("{command}: {e}"));
            assert_eq!(cli.connection.namespace.as_deref(), Some(namespace), "{command}");
        } else {
            assert!(command.starts_with(&format!("-n {namespace} ")), "{command}");
        }
    }
    commands.len()
}

#[test]
fn those_of_the_machine_can_be_run() {
    for rest in PLUGIN_COMMANDS {
        assert_eq!(sound(&command::plugin("shop", rest), "shop"), 1);
    }
    let text = format!("a; next: {}; b: {}", command::plugin("shop", "abort m"), command::kubectl("shop", "get pods"));
    assert_eq!(sound(&text, "shop"), 2);
}
