//! Words: the project says what the field says. Each word that it does not use is listed next to the one that it does.

use regex::{Regex, RegexBuilder};

use crate::{
    File, assert_none,
    source::{pieces_of_rust, prose_of_markdown, without_code_spans},
    tree,
};

/// Phrases of comments, strings and documents: `(not this, but this)`. Regular expressions of whole words, in any case;
/// a blank also matches the end of a line.
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
    ("tell|tells|told|telling", "notify, report, say"),
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
    ("prove|proves|proved|proven|proving|proofs?", "verify; authenticate"),
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
    ("(look|looks|looked|looking)[ -]up", "the field's own word for reading by a key"),
    ("(looks|looked|look) like", "resembles"),
    ("as it stands", "unchanged"),
    ("stand[- ]?alone|stand[- ]?by|stand[- ]?in", "one word"),
    ("try again later", "what servers answer"),
];

/// Identifiers, as their parts in lower case: `(not this, but this)`. `=Name` is that very identifier.
const IDENTIFIERS: &[(&str, &str)] = &[
    ("way_back", "rollback"),
    ("way_there", "forward"),
    ("go_back", "start_rollback, rollback_command"),
    ("goes_back", "rolls_back"),
    ("told", "result, notified, reported"),
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
    ("LeaseGuard", "holds a lease until it is dropped"),
    ("DropGuard", "of the crate tokio-util"),
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

fn whole_words(pattern: &str) -> Regex {
    let pattern = format!(r"\b(?:{})\b", pattern.replace(' ', r"\s+"));
    // `[;,]` is no word: there is no border before it.
    let pattern = pattern.replace(r"\b(?:[;,]", r"(?:[;,]");
    RegexBuilder::new(&pattern).case_insensitive(true).build().unwrap()
}

fn phrases() -> Vec<Word> {
    PROSE.iter().map(|&(listed, instead)| Word { listed, instead, pattern: whole_words(listed) }).collect()
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

fn is_excepted(file: &File, listed: &str) -> bool {
    EXCEPTIONS.iter().any(|(path, word, _)| file.path.starts_with(path) && (word.is_empty() || *word == listed))
}

/// Listed phrases in prose that starts at a line.
fn in_prose(file: &File, line: usize, prose: &str, words: &[Word], legitimate: &[Regex]) -> Vec<String> {
    let prose = without_code_spans(prose);
    let fine: Vec<_> = legitimate.iter().flat_map(|l| l.find_iter(&prose)).map(|m| m.range()).collect();
    let mut found = vec![];
    for word in words.iter().filter(|w| !is_excepted(file, w.listed)) {
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
fn in_code(file: &File, line: usize, code: &str, identifier: &Regex) -> Vec<String> {
    let mut found = vec![];
    for name in identifier.find_iter(code).filter(|n| !LEGITIMATE_IDENTIFIERS.iter().any(|(l, _)| *l == n.as_str())) {
        for (listed, instead) in IDENTIFIERS.iter().filter(|(l, _)| !is_excepted(file, l)) {
            if is_listed(name.as_str(), listed) {
                let at = line + code[..name.start()].matches('\n').count();
                found.push(format!("{}:{at}: `{}`, name it: {instead}", file.path, name.as_str()));
            }
        }
    }
    found
}

/// Comments of a shell script, Python or YAML; their lines keep their numbers.
fn comments(text: &str) -> String {
    text.lines().map(|l| l.split_once("# ").map_or("", |(_, c)| c)).collect::<Vec<_>>().join("\n")
}

/// All that a file says in words that the project does not use.
fn findings(file: &File, words: &[Word], legitimate: &[Regex], identifier: &Regex) -> Vec<String> {
    match file.extension() {
        "rs" => pieces_of_rust(&file.text)
            .iter()
            .flat_map(|p| match p.is_code {
                true => in_code(file, p.line, &p.text, identifier),
                false => in_prose(file, p.line, &p.text, words, legitimate),
            })
            .collect(),
        "md" => in_prose(file, 1, &prose_of_markdown(&file.text), words, legitimate),
        "yaml" | "tpl" | "txt" | "sql" => in_prose(file, 1, &file.text, words, legitimate),
        "" | "sh" | "py" if file.text.starts_with("#!") => in_prose(file, 1, &comments(&file.text), words, legitimate),
        _ => vec![],
    }
}

fn all_findings(files: &[File]) -> Vec<String> {
    let words = phrases();
    let legitimate: Vec<Regex> = LEGITIMATE.iter().map(|(l, _)| whole_words(l)).collect();
    let identifier = Regex::new("[A-Za-z_][A-Za-z0-9_]*").unwrap();
    files.iter().flat_map(|f| findings(f, &words, &legitimate, &identifier)).collect()
}

#[test]
fn the_project_says_what_the_field_says() {
    assert_none("words that the project does not use", &all_findings(&tree()));
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
        ("a.yaml", "summary: a person is needed\n", 1),
    ] {
        let file = File { path: path.to_owned(), text: text.to_owned() };
        let found = all_findings(&[file]);
        assert_eq!(found.len(), count, "{text}: {found:?}");
    }
}

#[test]
fn every_exception_is_needed() {
    let files = tree();
    for (path, word, why) in EXCEPTIONS {
        assert!(files.iter().any(|f| f.path.starts_with(path)), "{path} is gone: {why}");
        assert!(!why.is_empty() && (word.is_empty() || listed(word)), "{path}: {word} is not in the lists");
    }
}

fn listed(word: &str) -> bool {
    PROSE.iter().chain(IDENTIFIERS).any(|(l, _)| *l == word)
}
