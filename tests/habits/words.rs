//! Words: the project says what the field says. Each word that it does not use is listed next to the one that it does.

use regex::{Regex, RegexBuilder};

use crate::{
    File, assert_none,
    source::{pieces_of_rust, prose_of_markdown, without_code_spans},
    tree,
};

/// Phrases of comments, strings and documents: `(not this, but this)`. Regular expressions of whole words, in any case;
/// a blank also matches a hyphen and the end of a line.
const PROSE: &[(&str, &str)] = &[
    ("ways? back", "rollback"),
    ("ways? there", "forward path, migration"),
    ("(go|goes|going|gone|went) back", "roll back; return to"),
    ("gates? (is|are|was|stays?|be|being|been)? ?(open|opened|closed|shut)", "writes (un)blocked"),
    ("(open|opens|opened|opening|close|closes|closed|closing|hold|holds) (the|its|a) gate", "(un)block writes"),
    ("(open|closed) gate", "write block"),
    ("guards", "write-block triggers"),
    ("guard (trigger|function)s?", "write-block trigger"),
    ("capture triggers?|(the|and|or) capture|capture and", "change-tracking trigger"),
    ("tell|tells|told|telling|untold", "notify, report, say"),
    ("hear|hears|heard|hearing", "count, consider, deliver"),
    ("words? to stop|stop word", "request to stop: Abort or Rollback"),
    ("person's word|last word|a word from", "decision"),
    ("look|looks|looked|looking", "check, inspect, read"),
    ("(hold|holds|held|holding) (the|its|a) stage", "block the stage"),
    ("(is|are|was|were|be|been) held|held windows?", "stuck; blocked"),
    ("stand|stands|stood|standing", "be; state"),
    ("begin|begins|began|begun|beginning", "start"),
    ("anew", "again; restart"),
    ("mend|mends|mended|mending", "fix"),
    ("persons? (is|are) needed|person needed|needs? a person|without a person", "manual intervention required"),
    ("whoever|somebody|nobody", "the caller; an operator; no one"),
    ("called off|call off", "cancelled"),
    ("prove|proves|proved|proven|unproven|proving|proofs?", "verify; authenticate"),
    ("beside", "next to; in parallel; in addition to"),
    ("cut-overs?", "cutover"),
    ("(is|are|was|were|be|been) over|over by", "has ended; ended by"),
    ("(put|puts|putting) (up|back)|(take|takes|taken|taking|took) down", "install; restore; remove"),
    ("patience", "time limit; longest wait"),
    ("not to be had", "unavailable; timed out"),
    ("[;,] else|else it", "otherwise"),
    ("tried again|try again|trying again|tries again|another try", "retried; attempt"),
    ("alarms?", "alert"),
    ("of late", "recently"),
];

/// Phrases with a sense of their own: a match inside of one of these is none.
const LEGITIMATE: &[(&str, &str)] = &[
    ("(look|looks|looked|looking) up", "the field's own word for reading by a key"),
    ("(looks|looked|look) like", "resembles"),
    ("as it stands", "unchanged"),
];

/// Identifiers, as their parts in lower case: `(not this, but this)`. `=Name` is that very identifier.
const IDENTIFIERS: &[(&str, &str)] = &[
    ("way_back", "rollback"),
    ("way_there", "forward"),
    ("go_back", "start_rollback, rollback_command"),
    ("goes_back", "rolls_back"),
    ("told", "result, notified, reported"),
    ("untold", "unreported"),
    ("tell", "notify"),
    ("tells", "notifies"),
    ("heard", "delivered, considered"),
    ("in_words", "summary"),
    ("stop_word", "stop_request"),
    ("=look", "check, try_get"),
    ("looked", "checked"),
    ("called_off", "cancelled, interrupted"),
    ("prove", "verify"),
    ("proof", "verification"),
    ("proven", "authenticated"),
    ("unproven", "unauthenticated"),
    ("beside", "background"),
    ("cut_over", "cutover"),
    ("put_up", "install"),
    ("take_down", "remove"),
    ("put_back", "restore"),
    ("patience", "a time-out with a noun of its own"),
    ("mend", "fix"),
    ("anew", "again"),
    ("begin", "start"),
    ("alarm", "alert"),
    ("alarms", "alerts"),
    ("person_needed", "manual_intervention_required"),
    ("guard", "write-block trigger"),
    ("guards", "write-block triggers"),
    ("gate", "write_block"),
    ("=opened", "writes_may_be_blocked"),
    ("=released", "SchemaInPlace"),
    ("=Kept", "OrderCache"),
    ("=Work", "TaskContext"),
    ("=Means", "SourceContext"),
    ("=Letter", "OutgoingMessage"),
    ("=Way", "Transport"),
    ("=Judge", "CheckEvaluator"),
    ("=Lack", "NoValue"),
    ("=Look", "Lookup"),
    ("=Told", "SeenUids"),
    ("=Unfit", "InvalidState"),
    ("=NotLooked", "NotChecked"),
    ("=NotAsItShouldBe", "ProblemsFound"),
    ("=Foreign", "NotOwned"),
    ("=Unguarded", "AdmissionPolicyMissing"),
    ("=Stale", "Conflict"),
    ("=classify", "From<tokio_postgres::Error>"),
    ("=NOT_TOLD", "EXIT_UNREPORTED"),
];

/// Identifiers that are named by others, or have a sense of their own.
const LEGITIMATE_IDENTIFIERS: &[(&str, &str)] = &[
    ("DeserializeGuard", "of the crate kube"),
    ("MutexGuard", "of the standard library"),
    ("LeaseGuard", "holds a lease until it is dropped"),
    ("drop_guard", "of the crate tokio-util"),
    ("Begin", "a statement of the crate squawk-syntax"),
];

/// What a file may say all the same: `(prefix of its path, the listed word, why)`.
const EXCEPTIONS: &[(&str, &str, &str)] = &[("tests/habits/words.rs", "", "the list itself")];

/// A listed word and how it is found.
struct Word {
    listed: &'static str,
    instead: &'static str,
    pattern: Regex,
}

/// All lists, ready for the search.
struct Lists {
    words: Vec<Word>,
    identifiers: &'static [(&'static str, &'static str)],
    legitimate: Vec<Regex>,
    legitimate_identifiers: Vec<&'static str>,
    exceptions: Vec<(&'static str, &'static str)>,
}

impl Lists {
    fn new() -> Self {
        let word = |&(listed, instead)| Word { listed, instead, pattern: whole_words(listed) };
        Self {
            words: PROSE.iter().map(word).collect(),
            identifiers: IDENTIFIERS,
            legitimate: LEGITIMATE.iter().map(|(phrase, _)| whole_words(phrase)).collect(),
            legitimate_identifiers: LEGITIMATE_IDENTIFIERS.iter().map(|(name, _)| *name).collect(),
            exceptions: EXCEPTIONS.iter().map(|(path, word, _)| (*path, *word)).collect(),
        }
    }

    fn is_excepted(&self, file: &File, listed: &str) -> bool {
        self.exceptions.iter().any(|(path, word)| file.path.starts_with(path) && (word.is_empty() || *word == listed))
    }

    /// All that these files say in words that the project does not use.
    fn findings(&self, files: &[File]) -> Vec<String> {
        files.iter().flat_map(|file| self.of_file(file)).collect()
    }

    fn of_file(&self, file: &File) -> Vec<String> {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        match file.extension() {
            "rs" => pieces_of_rust(&file.text)
                .iter()
                .flat_map(|p| match p.is_code {
                    true => self.in_code(file, p.line, &p.text),
                    false => self.in_prose(file, p.line, &p.text),
                })
                .collect(),
            // Names in these languages are those of their libraries.
            "c" | "go" => pieces_of_rust(&file.text)
                .iter()
                .filter(|p| !p.is_code)
                .flat_map(|p| self.in_prose(file, p.line, &p.text))
                .collect(),
            "md" => self.in_prose(file, 1, &prose_of_markdown(&file.text)),
            "yaml" | "tpl" | "txt" | "sql" | "json" | "toml" => self.in_prose(file, 1, &file.text),
            _ if matches!(name, "Makefile" | "Dockerfile") => self.in_prose(file, 1, &file.text),
            "py" => self.in_prose(file, 1, &prose_of_python(&file.text)),
            "" if first_line(file).contains("python") => self.in_prose(file, 1, &prose_of_python(&file.text)),
            "sh" | "dockerignore" | "helmignore" => self.in_prose(file, 1, &comments(&file.text)),
            "" if first_line(file).starts_with("#!") => self.in_prose(file, 1, &comments(&file.text)),
            _ => vec![],
        }
    }

    /// Listed phrases in prose that starts at a line.
    fn in_prose(&self, file: &File, line: usize, prose: &str) -> Vec<String> {
        let prose = without_code_spans(prose);
        let fine: Vec<_> = self.legitimate.iter().flat_map(|l| l.find_iter(&prose)).map(|m| m.range()).collect();
        let mut found = vec![];
        for word in self.words.iter().filter(|w| !self.is_excepted(file, w.listed)) {
            for hit in word.pattern.find_iter(&prose) {
                // `BEGIN` is SQL.
                let is_keyword = !hit.as_str().contains(char::is_lowercase);
                if !is_keyword && !fine.iter().any(|f| f.start <= hit.start() && hit.end() <= f.end) {
                    let at = line + prose[..hit.start()].matches('\n').count();
                    let said = hit.as_str().split_whitespace().collect::<Vec<_>>().join(" ");
                    found.push(format!("{}:{at}: \"{said}\", say: {}", file.path, word.instead));
                }
            }
        }
        found
    }

    /// Listed identifiers in code that starts at a line.
    fn in_code(&self, file: &File, line: usize, code: &str) -> Vec<String> {
        let mut found = vec![];
        for (at, name) in identifiers_of(code).filter(|(_, name)| !self.legitimate_identifiers.contains(name)) {
            for (listed, instead) in self.identifiers.iter().filter(|(l, _)| !self.is_excepted(file, l)) {
                if is_listed(name, listed) {
                    let at = line + code[..at].matches('\n').count();
                    found.push(format!("{}:{at}: `{name}`, name it: {instead}", file.path));
                }
            }
        }
        found
    }
}

fn whole_words(pattern: &str) -> Regex {
    let pattern = format!(r"\b(?:{})\b", pattern.replace(' ', r"[\s-]+"));
    // `[;,]` is no word: there is no border before it.
    let pattern = pattern.replace(r"\b(?:[;,]", r"(?:[;,]");
    RegexBuilder::new(&pattern).case_insensitive(true).build().unwrap()
}

/// Identifiers in code, with their places.
fn identifiers_of(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = code.split(move |c| !is_of_word(c)).filter(|word| word.starts_with(|c: char| !c.is_ascii_digit()));
    words.map(|word| (word.as_ptr() as usize - code.as_ptr() as usize, word))
}

/// The parts of an identifier in lower case, joined by `_`: `WayBack` and `WAY_BACK` are `way_back`.
fn parts(identifier: &str) -> String {
    let mut joined = String::new();
    let mut before = '_';
    for c in identifier.chars() {
        if c.is_uppercase() && before.is_lowercase() {
            joined.push('_');
        }
        joined.extend(c.to_lowercase());
        before = c;
    }
    joined
}

fn is_listed(identifier: &str, listed: &str) -> bool {
    match listed.strip_prefix('=') {
        Some(exact) => identifier == exact,
        None => format!("_{}_", parts(identifier)).contains(&format!("_{listed}_")),
    }
}

fn first_line(file: &File) -> &str {
    file.text.lines().next().unwrap_or_default()
}

/// Comments of a script or a list; their lines keep their numbers.
fn comments(text: &str) -> String {
    text.lines().map(|l| l.split_once("# ").map_or("", |(_, c)| c)).collect::<Vec<_>>().join("\n")
}

/// Comments and documentation of Python; their lines keep their numbers.
fn prose_of_python(text: &str) -> String {
    let parts = text.split("\"\"\"").enumerate();
    parts.map(|(n, part)| if n % 2 == 1 { part.to_owned() } else { comments(part) }).collect()
}

#[test]
fn the_project_says_what_the_field_says() {
    assert_none("words that the project does not use", &Lists::new().findings(&tree()));
}

#[test]
fn a_listed_word_would_be_found() {
    for (path, text, count) in [
        ("a.rs", "/// The way\n/// back.\n", 1),
        ("a.rs", "// see `way back`", 0),
        ("a.rs", "let x = \"told\"; // heard", 2),
        ("a.rs", "fn begin_way_back() {} struct WayBack;", 3),
        ("a.rs", "fn look() {} fn lookup() {}", 1),
        ("a.rs", "fn a() { if b { c } else { d } } // BEGIN", 0),
        ("a.rs", "// looks it up; look-up; look up", 1),
        ("a.md", "It waits; else\n```sh\nmend\n```\n", 1),
        ("a.sh", "#!/bin/sh\ntell # nobody\n", 1),
        ("a.sh", "# sourced: nobody runs it\n", 1),
        ("a.yaml", "summary: a person is needed\n", 1),
        ("a.json", "{\"title\": \"Way back\"}", 1),
        ("a.c", "/* ends when told to */ int told;", 1),
        ("a.py", "\"\"\"Nobody\nknows.\"\"\"\nbegin()  # anew\n", 2),
        ("a", "#!/usr/bin/env python3\n\"\"\"Nobody.\"\"\"\n", 1),
        ("Makefile", "demo: ## One goes back\n", 1),
        ("b/Dockerfile", "# Whoever comes\n", 1),
        ("a.rs", "// a way-back; untold; stand in; looks up", 3),
    ] {
        let file = File { path: path.to_owned(), text: text.to_owned() };
        let found = Lists::new().findings(&[file]);
        assert_eq!(found.len(), count, "{text}: {found:?}");
    }
}

/// Without any one of its entries a list makes findings in the files that the entry is about.
#[test]
fn every_exception_is_needed() {
    let files = tree();
    let mut needless = vec![];
    let mut check = |entry: &str, without: Lists, is_about: &dyn Fn(&File) -> bool| {
        let complete = Lists::new();
        let mut about = files.iter().filter(|file| is_about(file));
        if !about.any(|file| without.of_file(file).len() > complete.of_file(file).len()) {
            needless.push(entry.to_owned());
        }
    };
    for (at, (path, word, _)) in EXCEPTIONS.iter().enumerate() {
        let mut without = Lists::new();
        without.exceptions.remove(at);
        check(&format!("{path}: {word}"), without, &|file| file.path.starts_with(path));
    }
    for (at, (phrase, _)) in LEGITIMATE.iter().enumerate() {
        let mut without = Lists::new();
        let pattern = without.legitimate.remove(at);
        check(phrase, without, &|file| pattern.is_match(&file.text));
    }
    for (at, (name, _)) in LEGITIMATE_IDENTIFIERS.iter().enumerate() {
        let mut without = Lists::new();
        without.legitimate_identifiers.remove(at);
        check(name, without, &|file| file.text.contains(name));
    }
    assert_none("exceptions are not needed", &needless);
}
