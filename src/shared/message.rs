//! A message to a user: what was observed, and the command to run next.
//!
//! ```text
//!  1 of 2 people approved sha256:9c1e...; next: kubectl creditmigration -n shop approve m
//!  `------------- text --------------'        `---------------- next ------------------'
//! ```
//! Messages cross the Kubernetes API as one string: [`std::fmt::Display`] writes it, [`Message::parse`] reads it back.

use std::fmt;

/// Link between text and next command.
const LINK: &str = "next: ";

/// A message to a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// What was observed, with value and limit.
    pub text: String,
    /// The next command, or what to do.
    pub next: Option<String>,
}

impl Message {
    /// A message without a next command.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), next: None }
    }

    /// The same message with a next command.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Reads a rendered message: the next command follows the last `; next: `. It may also follow a purpose, as in
    /// `; to retry, next: `.
    pub fn parse(rendered: &str) -> Self {
        if let Some(next) = rendered.strip_prefix(LINK) {
            return Self::new("").next(next);
        }
        match rendered.rsplit_once(LINK) {
            Some((text, next)) if text.ends_with("; ") || text.ends_with(", ") => {
                Self::new(&text[..text.len() - 2]).next(next)
            }
            _ => Self::new(rendered),
        }
    }
}

/// A text without a next command.
impl From<String> for Message {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

/// A text without a next command.
impl From<&str> for Message {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.next {
            Some(next) if self.text.is_empty() => write!(f, "{LINK}{next}"),
            Some(next) => write!(f, "; {LINK}{next}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("no command", "no command", None)]
    #[case("1 of 2; next: kubectl get pods", "1 of 2", Some("kubectl get pods"))]
    #[case("next: kubectl get pods", "", Some("kubectl get pods"))]
    #[case("a; next: b; next: c", "a; next: b", Some("c"))]
    #[case("", "", None)]
    fn what_is_rendered_is_read_back(#[case] rendered: &str, #[case] text: &str, #[case] next: Option<&str>) {
        let message = Message::parse(rendered);
        assert_eq!((message.text.as_str(), message.next.as_deref()), (text, next));
        assert_eq!(message.to_string(), rendered);
    }

    #[test]
    fn a_next_command_may_have_a_purpose() {
        let message = Message::parse("nothing was changed; to retry, next: kubectl get pods");
        assert_eq!(message, Message::new("nothing was changed; to retry").next("kubectl get pods"));
        assert_eq!(Message::parse("the next: one"), Message::new("the next: one"));
    }
}
