//! Log calls name their fields alike.

use crate::{files, root};

/// Fields of log calls that must not be: a call's text is `message` already, and the cause of a failure is `error`.
fn misnamed(text: &str) -> Vec<String> {
    let calls = ["trace!(", "debug!(", "info!(", "warn!(", "error!("];
    let fields = calls.iter().flat_map(|call| text.split(call).skip(1)).map(|rest| rest.split('"').next().unwrap());
    fields
        .flat_map(|fields| fields.split(','))
        .map(|field| field.split('=').next().unwrap().trim().trim_start_matches(['%', '?']))
        .filter(|name| ["message", "cause"].contains(name))
        .map(str::to_owned)
        .collect()
}

#[test]
fn log_calls_name_their_fields_alike() {
    for (line, count) in [
        (r#"tracing::warn!(channel = name, message, "not delivered");"#, 1),
        (r#"warn!(reason = %r, message = failure.message, "no");"#, 1),
        (r#"debug!(cause = %e, "no");"#, 1),
        (r#"debug!(error = %e, "a message, cause unknown");"#, 0),
    ] {
        assert_eq!(misnamed(line).len(), count, "{line}");
    }
    for file in files(&root().join("src")) {
        let found = misnamed(&std::fs::read_to_string(&file).unwrap());
        assert!(found.is_empty(), "{}: {found:?}", file.display());
    }
}
