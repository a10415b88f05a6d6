//! Task `CodeBackup`: an annotated tag and a branch at the commit that is deployed.
//!
//! ```text
//!  ls-remote ── both there, on the commit ────────────────────────────── ls-remote ── evidence
//!      ├─ one is elsewhere ── RefElsewhere                                   │
//!      └─ fetch the commit alone ── tag here ── push what is missing ────────┘
//! ```
//!
//! # Contract
//! - Nothing on the server is ever moved or removed. A ref is pushed only on the condition that there is none of its
//!   name (the lease of nothing); git alone would move a branch forward.
//! - A ref that is there on the commit is success: the task may be started twice, and by two pods.
//! - The tag must be an annotated one. A plain tag of its name is `RefElsewhere` also on the same commit: it records
//!   neither when nor why it was made, and to replace it would need force.
//! - Both appear together where the server can do that.
//! - Only the commit is fetched where the server can filter, otherwise also its files; history only if the server gives
//!   no commit by its hash.

use crate::{
    api::{CodeBackup, CodeBackupEvidence, KeyRef, Reason},
    runner::{
        Failure,
        clients::git::{Credentials, GIT_QUERY_TIMEOUT, GIT_TRANSFER_TIMEOUT, Git, GitOutput, RepositoryAddress},
        context::TaskContext,
        settings::Settings,
    },
    telemetry,
};

/// What the server has under the two names.
#[derive(Debug, Default, PartialEq, Eq)]
struct Refs {
    /// Object of the tag.
    tag: Option<String>,
    /// What an annotated tag leads to.
    peeled: Option<String>,
    /// Commit of the branch.
    branch: Option<String>,
}

/// What is not there yet.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    tag: bool,
    branch: bool,
}

impl Missing {
    fn any(&self) -> bool {
        self.tag || self.branch
    }
}

/// Pushes tag and branch. Notes `codeBackup`.
///
/// # Errors
/// `SecretKeyMissing`, `RepositoryUnreachable`, `RepositoryDenied`, `CommitMissing`, `RefElsewhere`.
pub async fn run(context: &TaskContext<'_>) -> Result<String, Failure> {
    let code = code(context)?;
    let git = open(context, code).await?;
    names(&git, code).await?;
    let missing = refs(&git, code).await?.missing(&git, code)?;
    if missing.any() {
        fetch(&git, code).await?;
        if let Err(failure) = push(&git, code, &missing).await {
            // Another process may have been quicker: what counts is what is there.
            if context.stop.is_cancelled() || refs(&git, code).await?.missing(&git, code)?.any() {
                return Err(failure);
            }
        }
    }
    let left = refs(&git, code).await?.missing(&git, code)?;
    if left.any() {
        let message = format!(
            "{} took the push and does not show {}; next: check whether the server hides or removes such names",
            git.repository(),
            if left.tag { format!("tag {}", code.tag) } else { format!("branch {}", code.branch) }
        );
        return Err(Failure::new(Reason::RepositoryDenied, message));
    }
    let evidence = CodeBackupEvidence {
        repository: git.repository().to_owned(),
        commit: code.commit.clone(),
        tag: code.tag.clone(),
        branch: code.branch.clone(),
        verified_at: telemetry::now(),
    };
    context.progress.update(|status| status.code_backup = Some(evidence));
    let pushed = if missing.any() { "pushed" } else { "there already" };
    Ok(format!("tag {} and branch {} at {} {pushed}", code.tag, code.branch, code.commit))
}

/// Prepares access to the repository with the Secret of `spec.code.secretRef`.
///
/// # Errors
/// `SecretKeyMissing`, and those of [`RepositoryAddress::parse`] and [`Git::open`].
pub async fn open(context: &TaskContext<'_>, code: &CodeBackup) -> Result<Git, Failure> {
    let address = RepositoryAddress::parse(&code.repository)?;
    let (settings, secret) = (&context.settings, code.secret_ref.name.as_str());
    let credentials = if address.is_https() {
        let (username, password) = (one_line(settings, secret, "username")?, one_line(settings, secret, "password")?);
        Credentials::Https { username, password, ca: settings.further(secret, "ca.crt")? }
    } else {
        Credentials::Ssh {
            private_key: settings.further_file(&reference(secret, "ssh-privatekey"))?,
            known_hosts: settings.further_file(&reference(secret, "known_hosts"))?,
        }
    };
    Git::open(address, secret, credentials, context.stop.clone()).await
}

fn reference(name: &str, key: &str) -> KeyRef {
    KeyRef { name: name.to_owned(), key: key.to_owned() }
}

/// A key of the Secret that must be one line: a second one would be an order to git.
fn one_line(settings: &Settings<'_>, secret: &str, key: &str) -> Result<String, Failure> {
    let text = settings.further_file(&reference(secret, key))?;
    let text = text.trim();
    if text.contains(char::is_control) {
        let message = format!("key {key} of Secret {secret} has more than one line; next: store the bare value");
        return Err(Failure::new(Reason::SecretKeyMissing, message));
    }
    Ok(text.to_owned())
}

/// For Preflight: the repository can be read and pushed to with the Secret, and neither name is elsewhere. Nothing is
/// pushed.
///
/// # Errors
/// Those of [`run`] but `CommitMissing`.
pub async fn check_access(context: &TaskContext<'_>) -> Result<String, Failure> {
    let code = code(context)?;
    let git = open(context, code).await?;
    names(&git, code).await?;
    let missing = refs(&git, code).await?.missing(&git, code)?;
    let (tag, branch) = (&code.tag, &code.branch);
    if !missing.any() {
        return Ok(format!("{} has tag {tag} and branch {branch} at {}", git.repository(), code.commit));
    }
    // Reading is open to many who may not push. The server is asked, and nothing is sent.
    let tree = git.run_local(&["hash-object", "-w", "-t", "tree", "/dev/null"]).await?;
    let commit = git.run_local(&["commit-tree", "-m", "preflight", &tree]).await?;
    let probe = format!("{commit}:{}", if missing.branch { branch_ref(code) } else { tag_ref(code) });
    let output = git
        .call(&["-c", "push.negotiate=false", "push", "--dry-run", "--porcelain", "origin", &probe], GIT_QUERY_TIMEOUT)
        .await?;
    if !output.success {
        return Err(git.failure("asking to push to", &output));
    }
    Ok(format!("{} can be read and pushed to; tag {tag} and branch {branch} are not elsewhere", git.repository()))
}

fn code<'a>(context: &'a TaskContext<'_>) -> Result<&'a CodeBackup, Failure> {
    context.spec.plan.code.as_ref().ok_or_else(|| Failure::new(Reason::Internal, "spec.code is not set"))
}

fn tag_ref(code: &CodeBackup) -> String {
    format!("refs/tags/{}", code.tag)
}

fn branch_ref(code: &CodeBackup) -> String {
    format!("refs/heads/{}", code.branch)
}

/// Both are names that git takes.
async fn names(git: &Git, code: &CodeBackup) -> Result<(), Failure> {
    for (field, name) in [("tag", tag_ref(code)), ("branch", branch_ref(code))] {
        if !git.call(&["check-ref-format", &name], GIT_QUERY_TIMEOUT).await?.success {
            let message = format!("git takes no {field} named {name}; next: choose another spec.code.{field}");
            return Err(Failure::new(Reason::RepositoryDenied, message));
        }
    }
    Ok(())
}

/// Asks the server.
async fn refs(git: &Git, code: &CodeBackup) -> Result<Refs, Failure> {
    let (tag, branch) = (tag_ref(code), branch_ref(code));
    let peeled = format!("{tag}^{{}}");
    let output = git.call(&["ls-remote", "--quiet", "origin", &tag, &peeled, &branch], GIT_QUERY_TIMEOUT).await?;
    if !output.success {
        return Err(git.failure("reading", &output));
    }
    Ok(Refs::parse(&output.stdout, &tag, &branch))
}

impl Refs {
    /// Reads `ls-remote`'s lines. It gives all names that end so: `refs/x/refs/tags/t` is another one.
    fn parse(lines: &str, tag: &str, branch: &str) -> Self {
        let mut refs = Self::default();
        for (hash, name) in lines.lines().filter_map(|line| line.split_once('\t')) {
            let hash = Some(hash.to_owned());
            match name.strip_suffix("^{}") {
                Some(name) if name == tag => refs.peeled = hash,
                None if name == tag => refs.tag = hash,
                None if name == branch => refs.branch = hash,
                _ => {}
            }
        }
        refs
    }

    /// What must be pushed.
    ///
    /// # Errors
    /// `RefElsewhere`.
    fn missing(&self, git: &Git, code: &CodeBackup) -> Result<Missing, Failure> {
        self.missing_at(git.repository(), code)
    }

    fn missing_at(&self, repository: &str, code: &CodeBackup) -> Result<Missing, Failure> {
        let elsewhere = |kind: &str, name: &str, what: String, full: &str| {
            let message = format!(
                "{kind} {name} of {repository} {what}; next: set spec.code.{kind} to a name that is free, or have it \
                    removed: git push {repository} --delete {full}"
            );
            Err(Failure::new(Reason::RefElsewhere, message))
        };
        let (tag, branch, commit) = (tag_ref(code), branch_ref(code), &code.commit);
        match (&self.tag, &self.peeled) {
            (Some(_), Some(at)) if at != commit => {
                return elsewhere("tag", &code.tag, format!("is at {at}, spec.code.commit is {commit}"), &tag);
            }
            (Some(at), None) => {
                let what = format!("is no annotated tag and at {at}, spec.code.commit is {commit}");
                return elsewhere("tag", &code.tag, what, &tag);
            }
            _ => {}
        }
        match &self.branch {
            Some(at) if at != commit => {
                elsewhere("branch", &code.branch, format!("is at {at}, spec.code.commit is {commit}"), &branch)
            }
            _ => Ok(Missing { tag: self.tag.is_none(), branch: self.branch.is_none() }),
        }
    }
}

/// Fetches the commit: alone, or with its files, or with all that the server shows.
async fn fetch(git: &Git, code: &CodeBackup) -> Result<(), Failure> {
    git.run_local(&["config", "remote.origin.promisor", "true"]).await?;
    git.run_local(&["config", "remote.origin.partialclonefilter", "tree:0"]).await?;
    let commit = code.commit.as_str();
    let common = ["fetch", "--quiet", "--no-tags", "--filter=tree:0"];
    let by_hash = git.call(&[&common[..], &["--depth=1", "origin", commit]].concat(), GIT_TRANSFER_TIMEOUT).await?;
    if !by_hash.success {
        let failure = git.failure("fetching from", &by_hash);
        if failure.reason == Reason::RepositoryDenied {
            return Err(failure);
        }
        // Servers have many texts for "no commit by its hash" and for "no such commit": a fetch of all that they show
        // decides.
        let all = ["origin", "+refs/heads/*:refs/fetched/heads/*", "+refs/tags/*:refs/fetched/tags/*"];
        let all = git.call(&[&common[..], &all].concat(), GIT_TRANSFER_TIMEOUT).await?;
        if !all.success {
            return Err(git.failure("fetching from", &all));
        }
    }
    let kind = git.call(&["cat-file", "-t", commit], GIT_QUERY_TIMEOUT).await?;
    match kind.stdout.trim() {
        "commit" => Ok(()),
        other => {
            let what = if other.is_empty() { "is not in".to_owned() } else { format!("is a {other}, no commit, of") };
            let message = format!(
                "{commit} {what} {}; next: push the deployed commit there, or correct spec.code.commit",
                git.repository()
            );
            Err(Failure::new(Reason::CommitMissing, message))
        }
    }
}

/// Pushes what is missing, together if the server can.
async fn push(git: &Git, code: &CodeBackup, missing: &Missing) -> Result<(), Failure> {
    let (tag, branch) = (tag_ref(code), branch_ref(code));
    let mut refs = Vec::new();
    if missing.tag {
        git.run_local(&["tag", "-a", "--cleanup=verbatim", "-m", &code.message, "--", &code.tag, &code.commit]).await?;
        refs.push((format!("--force-with-lease={tag}:"), format!("{tag}:{tag}")));
    }
    if missing.branch {
        refs.push((format!("--force-with-lease={branch}:"), format!("{}:{branch}", code.commit)));
    }
    let together: &[&str] = if refs.len() > 1 { &["--atomic"] } else { &[] };
    let mut output = push_once(git, &refs, together).await?;
    if !output.success && !together.is_empty() && lacks_atomic(git, &refs).await? {
        output = push_once(git, &refs, &[]).await?;
    }
    if output.success { Ok(()) } else { Err(git.failure("pushing to", &output)) }
}

/// Whether the server takes the refs one by one only: it accepts them without `--atomic`, and with it not even for a
/// dry run. A server that refuses a ref itself does so only when the ref is pushed.
async fn lacks_atomic(git: &Git, refs: &[(String, String)]) -> Result<bool, Failure> {
    Ok(!push_once(git, refs, &["--dry-run", "--atomic"]).await?.success
        && push_once(git, refs, &["--dry-run"]).await?.success)
}

/// Pushes the refs on the condition that none of them is there. `options` are further ones of `git push`.
async fn push_once(git: &Git, refs: &[(String, String)], options: &[&str]) -> Result<GitOutput, Failure> {
    let mut arguments = vec!["push", "--quiet", "--porcelain"];
    arguments.extend(options);
    arguments.extend(refs.iter().map(|(lease, _)| lease.as_str()));
    arguments.push("origin");
    arguments.extend(refs.iter().map(|(_, refspec)| refspec.as_str()));
    git.call(&arguments, GIT_TRANSFER_TIMEOUT).await
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const HERE: &str = "1111111111111111111111111111111111111111";
    const OTHER: &str = "2222222222222222222222222222222222222222";
    const OBJECT: &str = "3333333333333333333333333333333333333333";

    fn code() -> CodeBackup {
        let code = serde_json::json!({
            "repository": "ssh://git@h/s.git", "commit": HERE, "tag": "t", "branch": "b", "secretRef": {"name": "s"},
        });
        serde_json::from_value(code).unwrap()
    }

    #[rstest]
    #[case("", Ok((true, true)))]
    #[case("3 refs/tags/t,1 refs/tags/t^{},1 refs/heads/b", Ok((false, false)))]
    #[case("3 refs/tags/t,1 refs/tags/t^{}", Ok((false, true)))]
    #[case("1 refs/heads/b", Ok((true, false)))]
    #[case("2 refs/x/refs/heads/b,2 refs/x/refs/tags/t", Ok((true, true)))]
    #[case("3 refs/tags/t,2 refs/tags/t^{}", Err("tag t of ssh://git@h/s.git is at 2222"))]
    #[case("1 refs/tags/t", Err("no annotated tag"))]
    #[case("2 refs/tags/t", Err("no annotated tag and at 2222"))]
    #[case("2 refs/heads/b", Err("branch b of ssh://git@h/s.git is at 2222"))]
    fn what_is_there_decides(#[case] lines: &str, #[case] want: Result<(bool, bool), &str>) {
        let lines: String = lines
            .split(',')
            .filter_map(|line| line.split_once(' '))
            .map(|(hash, name)| {
                let hash = match hash {
                    "1" => HERE,
                    "2" => OTHER,
                    _ => OBJECT,
                };
                format!("{hash}\t{name}\n")
            })
            .collect();
        let found = Refs::parse(&lines, "refs/tags/t", "refs/heads/b").missing_at("ssh://git@h/s.git", &code());
        match (found, want) {
            (Ok(Missing { tag, branch }), Ok(want)) => assert_eq!((tag, branch), want),
            (Err(failure), Err(word)) => {
                assert_eq!(failure.reason, Reason::RefElsewhere);
                assert!(failure.message.contains(word) && failure.message.contains(HERE), "{failure}");
                assert!(failure.message.contains("--delete refs/"), "{failure}");
            }
            (found, want) => panic!("{found:?}, not {want:?}"),
        }
    }
}
