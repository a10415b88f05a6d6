//! Command lines that messages print for operators to copy.
//!
//! Each command has its namespace: messages are sent in notices, and the current context of a reader may be a namespace
//! in which another migration has the same name. Text that is not part of a command comes before it or after a `;`.

use std::fmt::Display;

/// Printed when the namespace is not known.
const UNKNOWN_NAMESPACE: &str = "NAMESPACE";

/// The plugin's command lines that messages name, after the namespace. The machine's tests accept no others; the
/// plugin's tests parse each of them.
#[cfg(test)]
pub(crate) const PLUGIN_COMMANDS: &[&str] = &[
    "plan NAME",
    "approve NAME",
    "ready NAME",
    "abort NAME",
    "keep NAME",
    "report NAME",
    "rollback NAME --confirm --reason WHY",
];

/// `kubectl creditmigration -n NAMESPACE REST`; `rest` is the verb, the name and options.
pub fn plugin(namespace: &str, rest: impl Display) -> String {
    format!("kubectl creditmigration -n {} {rest}", known(namespace))
}

/// `kubectl -n NAMESPACE REST`.
pub fn kubectl(namespace: &str, rest: impl Display) -> String {
    format!("kubectl -n {} {rest}", known(namespace))
}

fn known(namespace: &str) -> &str {
    if namespace.is_empty() { UNKNOWN_NAMESPACE } else { namespace }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_names_its_namespace() {
        assert_eq!(plugin("shop", "watch m"), "kubectl creditmigration -n shop watch m");
        assert_eq!(kubectl("", "get pods"), "kubectl -n NAMESPACE get pods");
    }
}
