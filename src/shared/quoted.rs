//! A text in quotes, for messages: its start and end are visible, and it stays on one line.

use std::fmt::{self, Write as _};

/// Displays a text in double quotes. Quotes, backslashes and control characters in it are escaped.
#[derive(Clone, Copy)]
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c.is_control() => write!(f, "{}", c.escape_default())?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("v1", r#""v1""#)]
    #[case("", r#""""#)]
    #[case("it's ü", r#""it's ü""#)]
    #[case("a \"b\" \\c", r#""a \"b\" \\c""#)]
    #[case("a\n\tb\u{7}", r#""a\n\tb\u{7}""#)]
    fn a_text_in_quotes(#[case] text: &str, #[case] quoted: &str) {
        assert_eq!(Quoted(text).to_string(), quoted);
    }
}
