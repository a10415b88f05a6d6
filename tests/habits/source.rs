//! Takes sources apart: identifiers on the one side, comments and strings on the other.

/// A run of code, of comment lines, or the content of a string.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// Line of its first character, from 1.
    pub line: usize,
    pub is_code: bool,
    pub text: String,
}

/// The pieces of Rust source, in order. Comment lines that follow each other are one piece, so that a phrase is found
/// across the end of a line.
pub fn pieces_of_rust(text: &str) -> Vec<Piece> {
    let mut reader = Reader { rest: text, line: 1, pieces: vec![] };
    while !reader.rest.is_empty() {
        reader.step();
    }
    reader.pieces
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
    pieces: Vec<Piece>,
}

impl Reader<'_> {
    fn step(&mut self) {
        if self.rest.starts_with("//") {
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.comment(end);
        } else if self.rest.starts_with("/*") {
            let end = self.rest.find("*/").map_or(self.rest.len(), |at| at + 2);
            self.comment(end);
        } else if let Some(hashes) = raw_string(self.rest) {
            let open = self.rest.find('"').unwrap() + 1;
            let close = format!("\"{}", "#".repeat(hashes));
            let length = self.rest[open..].find(&close).unwrap_or(self.rest.len() - open);
            self.string(open, length, close.len());
        } else if self.rest.starts_with('"') {
            self.string(1, end_of_string(&self.rest[1..]), 1);
        } else if let Some(length) = char_literal(self.rest) {
            self.code(length);
        } else {
            // A word at once, so that the `r` of an identifier starts no raw string.
            let word = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
            let length = if word > 0 { word } else { self.rest.chars().next().map_or(0, char::len_utf8) };
            self.code(length);
        }
    }

    fn take(&mut self, length: usize) -> String {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        self.line += taken.matches('\n').count();
        taken.to_owned()
    }

    fn code(&mut self, length: usize) {
        let line = self.line;
        let text = self.take(length);
        match self.pieces.last_mut() {
            Some(last) if last.is_code => last.text.push_str(&text),
            _ => self.pieces.push(Piece { line, is_code: true, text }),
        }
    }

    fn comment(&mut self, length: usize) {
        let line = self.line;
        let text = self.take(length).trim_start_matches(['/', '!', '*']).to_owned();
        // The blanks between two comment lines are code of no word.
        if let [.., before, blank] = self.pieces.as_mut_slice()
            && !before.is_code
            && blank.is_code
            && blank.text.trim().is_empty()
            && before.line + before.text.matches('\n').count() + 1 == line
        {
            before.text.push('\n');
            before.text.push_str(&text);
            self.pieces.pop();
            return;
        }
        self.pieces.push(Piece { line, is_code: false, text });
    }

    fn string(&mut self, open: usize, length: usize, close: usize) {
        self.code(open);
        let line = self.line;
        let text = self.take(length);
        self.pieces.push(Piece { line, is_code: false, text });
        let close = close.min(self.rest.len());
        self.code(close);
    }
}

/// Number of `#` of the raw string that starts here.
fn raw_string(text: &str) -> Option<usize> {
    let text = text.strip_prefix('b').unwrap_or(text).strip_prefix('r')?;
    let hashes = text.len() - text.trim_start_matches('#').len();
    text[hashes..].starts_with('"').then_some(hashes)
}

/// Length of a string's content, up to the quote that ends it.
fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at,
            _ => {}
        }
    }
    text.len()
}

/// Length of the character literal that starts here; a lifetime is none.
fn char_literal(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('\'')?;
    if let Some(escape) = inner.strip_prefix('\\') {
        let first = escape.chars().next()?.len_utf8();
        return escape[first..].find('\'').map(|at| at + first + 3);
    }
    let first = inner.chars().next()?.len_utf8();
    inner[first..].starts_with('\'').then_some(first + 2)
}

/// Markdown without its blocks of code; lines keep their numbers.
pub fn prose_of_markdown(text: &str) -> String {
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        if !fenced && !fence {
            prose.push_str(line);
        }
        fenced ^= fence;
        prose.push('\n');
    }
    prose
}

/// Text whose `code` is blanked: names in it are not prose.
pub fn without_code_spans(text: &str) -> String {
    let mut inside = false;
    text.chars()
        .map(|c| {
            inside ^= c == '`';
            if inside && c != '\n' { '`' } else { c }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_strings_and_code_are_separated() {
        let text = "/// One\n/// two.\nfn a<'a>(c: char) { x('\"', '\\'', r#\"raw \"s\"#, \"s \\\" // no\") } // end\n";
        let pieces = pieces_of_rust(text);
        let prose: Vec<(usize, &str)> =
            pieces.iter().filter(|p| !p.is_code).map(|p| (p.line, p.text.as_str())).collect();
        assert_eq!(prose, [(1, " One\n two."), (3, "raw \"s"), (3, "s \\\" // no"), (3, " end")]);
        let code: String = pieces.iter().filter(|p| p.is_code).map(|p| p.text.as_str()).collect();
        assert_eq!(code, "\nfn a<'a>(c: char) { x('\"', '\\'', r#\"\"#, \"\") } \n");
    }

    #[test]
    fn markdown_loses_code_and_keeps_lines() {
        assert_eq!(prose_of_markdown("a\n```sh\nb\n```\nc"), "a\n\n\n\nc\n");
        assert_eq!(without_code_spans("a `b` c"), "a ``` c");
    }
}
