//! Reads which modules of the crate a source file names, and checks that against the allowed arrows.
//!
//! A path counts wherever it is: in `use`, also inside braces, in code, and in `cfg(test)` code. `super` and `self` are
//! resolved, also in inline modules. Macros' arguments are code like any other.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use crate::source::pieces_of_rust;

/// A path from the crate's root, without `crate`: `["runner", "checks", "sql"]`.
pub type Names = Vec<String>;

/// One mention of another module's item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mention {
    /// Line, from 1.
    pub line: usize,
    /// What is named, from the crate's root.
    pub path: Names,
    /// It is in code that only tests have.
    pub test: bool,
}

/// The module of a file below `src`: `runner/checks/mod.rs` is `["runner", "checks"]`.
pub fn module_of(file: &Path) -> Names {
    let mut names: Names =
        file.with_extension("").components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
    if matches!(names.last().map(String::as_str), Some("mod" | "lib")) {
        names.pop();
    }
    names
}

/// A word or a sign of the source; comments and texts are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    text: String,
    line: usize,
}

fn tokens(source: &str) -> Vec<Token> {
    let is_of_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut all = vec![];
    for piece in pieces_of_rust(source).into_iter().filter(|piece| piece.is_code) {
        let (mut line, mut rest) = (piece.line, piece.text.as_str());
        while let Some(first) = rest.chars().next() {
            let length = if is_of_word(first) {
                rest.find(|c| !is_of_word(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            let (text, after) = rest.split_at(length);
            if first == '\n' {
                line += 1;
            } else if !first.is_whitespace() {
                all.push(Token { text: text.to_owned(), line });
            }
            rest = after;
        }
    }
    all
}

/// All that a file's code names by `crate`, `super` or `self`, and by the `use` of a child module; and the modules in
/// other files that only tests have.
pub fn mentions(module: &[String], source: &str) -> (Vec<Mention>, Vec<Names>) {
    let tokens = tokens(source);
    let mut reader =
        Reader { tokens: &tokens, at: 0, module: module.to_vec(), found: vec![], only_tests: vec![], test: false };
    reader.read(0);
    (reader.found, reader.only_tests)
}

struct Reader<'a> {
    tokens: &'a [Token],
    at: usize,
    /// The file's module, and the inline modules around the place.
    module: Names,
    found: Vec<Mention>,
    only_tests: Vec<Names>,
    test: bool,
}

impl Reader<'_> {
    fn text(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", |t| t.text.as_str())
    }

    /// Reads to the end of the file, or of the braces around the place.
    fn read(&mut self, depth: usize) {
        let mut test_next = false;
        while self.at < self.tokens.len() {
            match self.text(0) {
                "#" if self.text(1) == "[" && self.text(2) == "cfg" && self.text(4) == "test" => {
                    test_next = true;
                    self.at += 5;
                }
                "mod" if self.text(2) == "{" => {
                    let name = self.text(1).to_owned();
                    self.module.push(name);
                    let outer = self.test;
                    self.test |= test_next;
                    self.at += 3;
                    self.read(depth + 1);
                    self.module.pop();
                    (self.test, test_next) = (outer, false);
                }
                "{" => {
                    let outer = self.test;
                    self.test |= test_next;
                    self.at += 1;
                    self.read(depth + 1);
                    (self.test, test_next) = (outer, false);
                }
                "}" => {
                    self.at += 1;
                    if depth > 0 {
                        return;
                    }
                }
                "use" => {
                    self.at += 1;
                    let outer = self.test;
                    self.test |= test_next;
                    self.tree(vec![]);
                    (self.test, test_next) = (outer, false);
                }
                "mod" if self.text(2) == ";" && test_next => {
                    let name = self.text(1).to_owned();
                    self.only_tests.push(self.module.iter().cloned().chain([name]).collect());
                    test_next = false;
                    self.at += 3;
                }
                ";" => {
                    test_next = false;
                    self.at += 1;
                }
                "crate" | "super" | "self" if self.text(1) == "::" => self.tree(vec![]),
                _ => self.at += 1,
            }
        }
    }

    /// Reads a path, or a tree of paths in braces, below `prefix`.
    fn tree(&mut self, mut prefix: Names) {
        let line = self.tokens.get(self.at).map_or(0, |t| t.line);
        loop {
            match self.text(0) {
                "{" => {
                    self.at += 1;
                    while !matches!(self.text(0), "}" | "") {
                        self.tree(prefix.clone());
                        if self.text(0) == "," {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                "::" => self.at += 1,
                word if word == "*" || word.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                    prefix.push(word.to_owned());
                    self.at += 1;
                    if self.text(0) != "::" {
                        break;
                    }
                }
                _ => break,
            }
        }
        if self.text(0) == "as" {
            self.at += 2;
        }
        if let Some(path) = self.resolve(&prefix) {
            self.found.push(Mention { line, path, test: self.test });
        }
        // Anything else here is no path: continue after it.
        if prefix.is_empty() {
            self.at += 1;
        }
    }

    fn resolve(&self, path: &[String]) -> Option<Names> {
        let (mut base, mut rest) = match path.first()?.as_str() {
            "crate" => (vec![], &path[1..]),
            "self" => (self.module.clone(), &path[1..]),
            "super" => (self.module.clone(), path),
            // A child module, or another crate: only the former is found among the files.
            _ => (self.module.clone(), path),
        };
        while let Some(("super", tail)) = rest.split_first().map(|(first, tail)| (first.as_str(), tail)) {
            base.pop();
            rest = tail;
        }
        base.extend(rest.iter().cloned());
        Some(base)
    }
}

/// Names that a file defines for others, at its top level: `pub struct X`, `pub(super) fn y`.
pub fn definitions(source: &str) -> BTreeSet<String> {
    const KINDS: [&str; 8] = ["struct", "enum", "fn", "const", "static", "type", "trait", "union"];
    let (tokens, mut depth, mut found) = (tokens(source), 0usize, BTreeSet::new());
    for (i, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth = depth.saturating_sub(1),
            kind if depth == 0 && KINDS.contains(&kind) => {
                if let Some(name) = tokens.get(i + 1).filter(|t| t.text != "fn") {
                    found.insert(name.text.clone());
                }
            }
            _ => {}
        }
    }
    found
}

/// The modules of the crate, and what each names.
#[derive(Default)]
pub struct Crate {
    /// By module.
    files: BTreeMap<Names, (BTreeSet<String>, Vec<Mention>)>,
    /// Every module and the folders above it.
    modules: BTreeSet<Names>,
    /// Modules that only tests have.
    only_tests: Vec<Names>,
}

impl Crate {
    /// Adds a file; `file` is its path below `src`.
    pub fn add(&mut self, file: &Path, source: &str) {
        let module = module_of(file);
        let (found, only_tests) = mentions(&module, source);
        self.only_tests.extend(only_tests);
        self.modules.extend((0..=module.len()).map(|n| module[..n].to_vec()));
        self.files.insert(module, (definitions(source), found));
    }

    /// Names of the top modules.
    pub fn top(&self) -> Vec<String> {
        self.files.keys().filter_map(|m| m.first().cloned()).collect()
    }

    /// The module among `parent`'s children in which a path leads: by its name, or by an item that the child defines
    /// and the parent passes on.
    fn child(&self, parent: &[String], path: &[String]) -> Option<String> {
        let next = path.strip_prefix(parent)?.first()?;
        let mut module = parent.to_vec();
        module.push(next.clone());
        if self.modules.contains(&module) {
            return Some(next.clone());
        }
        if self.files.get(parent).is_some_and(|(defined, _)| defined.contains(next)) {
            return None;
        }
        let mut owners = self
            .files
            .iter()
            .filter(|(m, (defined, _))| m.len() > parent.len() && m.starts_with(parent) && defined.contains(next));
        let (owner, _) = owners.next()?;
        // Two with an item of that name: which of them is passed on is not known.
        owners.next().is_none().then(|| owner[parent.len()].clone())
    }

    /// Mentions, with their module, that lead from `from` into another child of its parent than `allowed`.
    ///
    /// `from` is a path such as `runner/tasks`; `allowed` names its siblings.
    pub fn forbidden(&self, from: &str, allowed: &[&str]) -> Vec<String> {
        let from: Names = from.split('/').map(str::to_owned).collect();
        let (name, parent) = from.split_last().unwrap();
        let inside = self.files.iter().filter(|(module, _)| module.starts_with(&from));
        inside
            .flat_map(|(module, (_, mentions))| mentions.iter().map(move |mention| (module, mention)))
            .filter_map(|(module, mention)| {
                let target = self.child(parent, &mention.path)?;
                (target != *name && !allowed.contains(&target.as_str()))
                    .then(|| format!("{}, line {}: {}", module.join("::"), mention.line, mention.path.join("::")))
            })
            .collect()
    }

    /// Circles among the modules of each folder, outside of tests: each once, as `a -> b -> a`.
    pub fn circles(&self) -> Vec<String> {
        let parents: BTreeSet<Names> =
            self.files.keys().filter_map(|m| m.split_last().map(|(_, parent)| parent.to_vec())).collect();
        let mut found = vec![];
        for parent in parents {
            let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for (module, (_, mentions)) in self.files.iter().filter(|(m, _)| m.len() > parent.len()) {
                if self.only_tests.iter().any(|t| module.starts_with(t)) {
                    continue;
                }
                let Some(from) = module.strip_prefix(parent.as_slice()).and_then(|rest| rest.first()) else { continue };
                let to = mentions.iter().filter(|m| !m.test).filter_map(|m| self.child(&parent, &m.path));
                arrows.entry(from.clone()).or_default().extend(to.filter(|to| to != from));
            }
            found.extend(circles_of(&arrows).into_iter().map(|circle| format!("{}: {circle}", parent.join("::"))));
        }
        found
    }
}

/// One circle through each module that is on any: the shortest.
fn circles_of(arrows: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for start in arrows.keys() {
        // Breadth first: the shortest path to the start.
        let mut ways = vec![vec![start.clone()]];
        let mut seen = BTreeSet::new();
        'search: while !ways.is_empty() {
            let mut longer = vec![];
            for way in &ways {
                for next in arrows.get(way.last().unwrap()).into_iter().flatten() {
                    if next == start {
                        let least = (0..way.len()).min_by_key(|i| &way[*i]).unwrap();
                        let mut circle = way.clone();
                        circle.rotate_left(least);
                        circle.push(circle[0].clone());
                        found.insert(circle.join(" -> "));
                        break 'search;
                    }
                    if seen.insert(next.clone()) {
                        longer.push(way.iter().cloned().chain([next.clone()]).collect());
                    }
                }
            }
            ways = longer;
        }
    }
    found
}
