//! The `git` program, with the Secret of `spec.code.secretRef`, on one repository of a server.
//!
//! # Contract
//! - Nothing secret is an argument, part of an address or in the environment: git and ssh read it from files that only
//!   this user may read. They lie in memory where there is `/dev/shm`, and go when the [`Git`] is dropped.
//! - The environment holds nothing of the parent's but `PATH`; neither the system's nor a user's configuration counts.
//! - Each call has a limit, and is cut off when the process receives SIGTERM. All processes that git has started end
//!   with it.
//! - What git and the server say is repeated in short, without credentials.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{pg_tools::keep_beginning, private_folder::PrivateFolder};
use crate::{api::Reason, runner::Failure, telemetry};

/// Longest wait for an answer that moves no data.
pub const GIT_QUERY_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest transfer.
pub const GIT_TRANSFER_TIMEOUT: Duration = Duration::from_secs(1800);
/// Characters repeated of what git said.
const MAX_GIT_MESSAGE: usize = 400;
/// Who made tag objects; servers may refuse a tagger without an address.
const GIT_IDENTITY: &str = "credit-migration-operator";

/// Where a repository is. Without credentials, and by https without a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryAddress {
    url: String,
    /// `https://host:port`; empty by ssh.
    server: String,
}

impl RepositoryAddress {
    /// Reads `ssh://git@HOST/PATH.git` or `https://HOST/PATH.git`.
    ///
    /// # Errors
    /// `RepositoryUnreachable` for an address that cannot be used.
    pub fn parse(repository: &str) -> Result<Self, Failure> {
        let unusable = |why: &str| {
            Failure::new(
                Reason::RepositoryUnreachable,
                format!(
                    "spec.code.repository {why}; next: write it as ssh://git@HOST/PATH.git or https://HOST/PATH.git"
                ),
            )
        };
        let mut url = Url::parse(repository).map_err(|e| unusable(&format!("cannot be read: {e}")))?;
        let host = url.host_str().ok_or_else(|| unusable("names no host"))?.to_owned();
        url.set_password(None).map_err(|()| unusable("cannot be used"))?;
        match url.scheme() {
            "ssh" => Ok(Self { url: url.into(), server: String::new() }),
            "https" => {
                // Who it is says the Secret; a user in the address is often a token.
                url.set_username("").map_err(|()| unusable("cannot be used"))?;
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                Ok(Self { url: url.into(), server: format!("https://{host}{port}") })
            }
            _ => Err(unusable("starts with neither ssh:// nor https://")),
        }
    }

    /// Whether the server is talked to by https, not by ssh.
    pub fn is_https(&self) -> bool {
        !self.server.is_empty()
    }
}

/// What the server asks for. No `Debug`: it must not get into a log.
pub enum Credentials {
    /// Of a user by https.
    Https {
        /// Name of the user; one line.
        username: String,
        /// Password or token; one line.
        password: String,
        /// PEM certificates of the authorities to trust; those of the system when absent.
        ca: Option<String>,
    },
    /// Of a key by ssh.
    Ssh {
        /// Private key without passphrase.
        private_key: String,
        /// The server's public keys, as in a `known_hosts` file.
        known_hosts: String,
    },
}

/// A private repository on this side, with the server's as its `origin`.
pub struct Git {
    repository: String,
    secret: String,
    folder: PrivateFolder,
    // Dropped with it: the files that the environment names.
    _keys: PrivateFolder,
    env: Vec<(String, String)>,
    credentials: Vec<String>,
    stop: CancellationToken,
}

/// Result of a call.
#[derive(Debug)]
pub struct GitOutput {
    /// It ended with 0.
    pub success: bool,
    /// Standard output, at most 16 KiB.
    pub stdout: String,
    /// Standard error, at most 16 KiB. Not to be shown as it is: see [`Git::failure`].
    pub stderr: String,
}

impl Git {
    /// Prepares access to a repository, and an empty one on this side. `secret` is the name of the Secret with the
    /// credentials, for messages; `stop` ends each call.
    ///
    /// # Errors
    /// `Internal` without git or without a folder to write to.
    pub async fn open(
        address: RepositoryAddress,
        secret: &str,
        credentials: Credentials,
        stop: CancellationToken,
    ) -> Result<Self, Failure> {
        let keys = PrivateFolder::make(&[Path::new("/dev/shm"), &std::env::temp_dir()])?;
        let folder = PrivateFolder::make(&[&std::env::temp_dir()])?;
        let mut env: Vec<(String, String)> = [
            ("LC_ALL", "C"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            // A redirect must not lead to a transport that does not authenticate the server.
            (
                "GIT_ALLOW_PROTOCOL",
                match credentials {
                    Credentials::Https { .. } => "https",
                    Credentials::Ssh { .. } => "ssh",
                },
            ),
            ("GIT_AUTHOR_NAME", GIT_IDENTITY),
            ("GIT_AUTHOR_EMAIL", "credit-migration-operator@localhost"),
            ("GIT_COMMITTER_NAME", GIT_IDENTITY),
            ("GIT_COMMITTER_EMAIL", "credit-migration-operator@localhost"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let now = format!("@{} +0000", telemetry::now().as_second());
        env.push(("GIT_AUTHOR_DATE".to_owned(), now.clone()));
        env.push(("GIT_COMMITTER_DATE".to_owned(), now));
        env.push(("HOME".to_owned(), folder.path().to_string_lossy().into_owned()));
        env.push(("GIT_DIR".to_owned(), folder.path().to_string_lossy().into_owned()));
        let mut config = vec![
            ("core.hooksPath".to_owned(), "/dev/null".to_owned()),
            ("gc.auto".to_owned(), "0".to_owned()),
            // Asks what the server has: a commit on no tip of a branch is not uploaded with all its files.
            ("push.negotiate".to_owned(), "true".to_owned()),
            // The pod's memory is limited.
            ("pack.threads".to_owned(), "1".to_owned()),
            ("pack.windowMemory".to_owned(), "64m".to_owned()),
            ("http.lowSpeedLimit".to_owned(), "100".to_owned()),
            ("http.lowSpeedTime".to_owned(), "60".to_owned()),
        ];
        let credentials = match credentials {
            Credentials::Https { username, password, ca } => {
                let file = keys.write("credentials", &format!("username={username}\npassword={password}\n"))?;
                env.push(("CODE_CREDENTIALS".to_owned(), file));
                // For this server alone: one that it redirects to gets nothing.
                let helper = r#"!f() { [ "$1" != get ] || cat "$CODE_CREDENTIALS"; }; f"#;
                config.push((format!("credential.{}.helper", address.server), helper.to_owned()));
                if let Some(ca) = ca {
                    config.push(("http.sslCAInfo".to_owned(), keys.write("ca.crt", &ca)?));
                }
                vec![password, username]
            }
            Credentials::Ssh { private_key, known_hosts } => {
                // ssh refuses a key without its last line break, which many ways of making a Secret strip.
                let key = keys.write("key", &format!("{}\n", private_key.replace('\r', "").trim_end()))?;
                let known = keys.write("known_hosts", &format!("{}\n", known_hosts.trim_end()))?;
                env.push(("GIT_SSH_VARIANT".to_owned(), "ssh".to_owned()));
                env.push(("GIT_SSH_COMMAND".to_owned(), ssh(&key, &known)));
                vec![]
            }
        };
        env.push(("GIT_CONFIG_COUNT".to_owned(), config.len().to_string()));
        for (n, (name, value)) in config.into_iter().enumerate() {
            env.push((format!("GIT_CONFIG_KEY_{n}"), name));
            env.push((format!("GIT_CONFIG_VALUE_{n}"), value));
        }
        let repository = address.url;
        let git = Self { repository, secret: secret.to_owned(), folder, _keys: keys, env, credentials, stop };
        git.run_local(&["init", "--quiet", "--bare", "--template="]).await?;
        git.run_local(&["config", "remote.origin.url", &git.repository]).await?;
        Ok(git)
    }

    /// The server's repository, for messages: without user by https.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// A call that needs no server and must succeed: its output without the line break.
    ///
    /// # Errors
    /// `Internal`, with what git said.
    pub async fn run_local(&self, arguments: &[&str]) -> Result<String, Failure> {
        let output = self.call(arguments, GIT_QUERY_TIMEOUT).await?;
        if output.success {
            return Ok(output.stdout.trim_end().to_owned());
        }
        let name = arguments.first().unwrap_or(&"");
        Err(Failure::new(Reason::Internal, format!("git {name}: {}", self.safe_output(&output))))
    }

    /// Calls git with arguments, for at most `limit`.
    ///
    /// # Errors
    /// `Internal` if it cannot be started, `RepositoryUnreachable` if it takes longer, `PodFailed` after SIGTERM.
    pub async fn call(&self, arguments: &[&str], limit: Duration) -> Result<GitOutput, Failure> {
        let mut command = Command::new("git");
        command.args(arguments).current_dir(self.folder.path()).env_clear().envs(self.env.iter().map(|(n, v)| (n, v)));
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        // A group of its own: ssh or git-remote-https, waiting for a server, would outlive a killed git.
        command.process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let internal = |what: String| Failure::new(Reason::Internal, format!("git {what}"));
        let mut child = command.spawn().map_err(|e| internal(format!("cannot be started: {e}")))?;
        let mut group = ProcessGroup(child.id());
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(internal("has no output".to_owned()));
        };
        let (stdout, stderr) = (tokio::spawn(keep_beginning(stdout)), tokio::spawn(keep_beginning(stderr)));
        let status = tokio::select! {
            status = tokio::time::timeout(limit, child.wait()) => status,
            () = self.stop.cancelled() => return Err(Failure::terminated()),
        };
        let Ok(status) = status else {
            let message = format!(
                "{} did not answer git {} within {} s; next: check that pods of this namespace can reach it",
                self.repository,
                arguments.first().unwrap_or(&""),
                limit.as_secs_f64()
            );
            return Err(Failure::new(Reason::RepositoryUnreachable, message));
        };
        let status = status.map_err(|e| internal(format!("cannot be waited for: {e}")))?;
        group.0 = None;
        Ok(GitOutput {
            success: status.success(),
            stdout: stdout.await.unwrap_or_default(),
            stderr: stderr.await.unwrap_or_default(),
        })
    }

    /// What a call that failed at the server means.
    pub fn failure(&self, doing: &str, output: &GitOutput) -> Failure {
        let (reason, next) = classify_output(&format!("{}\n{}", output.stderr, output.stdout));
        let next = next.replace("SECRET", &self.secret);
        Failure::new(reason, format!("{doing} {}: {}; next: {next}", self.repository, self.safe_output(output)))
    }

    /// What git said, in short.
    fn safe_output(&self, output: &GitOutput) -> String {
        // With --porcelain, the line of a refused ref is on standard output.
        let refused = output.stdout.lines().filter(|line| line.starts_with("!\t"));
        shortened(refused.chain(output.stderr.lines()), &self.credentials)
    }
}

/// The processes of a call, ended when it is dropped before its end: one shared number, and no name.
struct ProcessGroup(Option<u32>);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        let Some(group) = self.0 else { return };
        // The leader is not waited for yet, so the number is still its own.
        let ended = std::process::Command::new("sh")
            .args(["-c", r#"kill -s KILL -- "-$1""#, "sh", &group.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if let Err(error) = ended {
            tracing::warn!(%error, "processes of git may be left");
        }
    }
}

/// How git calls ssh: with this key and these hosts only, and without ever asking.
fn ssh(key: &str, known_hosts: &str) -> String {
    let options = [
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "GlobalKnownHostsFile=/dev/null",
        "UpdateHostKeys=no",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "PreferredAuthentications=publickey",
        "LogLevel=ERROR",
        "ConnectTimeout=15",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=4",
    ]
    .map(|option| format!("-o {option}"))
    .join(" ");
    // Both paths are our own, without blanks or quotes unless TMPDIR has them.
    format!("ssh -F /dev/null -i '{key}' -o UserKnownHostsFile='{known_hosts}' {options}")
}

/// Reason and next command of git's output; `SECRET` is replaced by the Secret's name.
///
/// This is the one place where the words of a program decide: git ends with one exit code, whether the server is away,
/// refuses the key or refuses the ref, and passes on what ssh, curl and the server say as text.
fn classify_output(output_text: &str) -> (Reason, &'static str) {
    let output_text = output_text.to_lowercase();
    let any = |markers: &[&str]| markers.iter().any(|marker| output_text.contains(marker));
    if any(&["host key verification failed", "remote host identification has changed"]) {
        let next = "put the host's line (ssh-keyscan -p PORT HOST, compared with what the host's owner says) into key \
            known_hosts of Secret SECRET";
        return (Reason::RepositoryUnreachable, next);
    }
    if any(&["certificate"]) {
        return (
            Reason::RepositoryUnreachable,
            "put the authority that signed the certificate into key ca.crt of Secret SECRET",
        );
    }
    if any(&["no user exists for uid"]) {
        return (Reason::Internal, "run the pod as the image's user 65532");
    }
    if any(&["error in libcrypto", "invalid format"]) {
        return (
            Reason::RepositoryDenied,
            "put a private key without passphrase into key ssh-privatekey of Secret SECRET",
        );
    }
    if any(&[
        "permission denied",
        "authentication failed",
        "access denied",
        "could not read username",
        "error: 401",
        "error: 403",
    ]) {
        return (Reason::RepositoryDenied, "correct Secret SECRET, and let its user read and push");
    }
    if any(&["rejected]", "declined", "not allowed", "read-only", "read only", "denied"]) {
        return (Reason::RepositoryDenied, "let the user of Secret SECRET create this tag and this branch");
    }
    (Reason::RepositoryUnreachable, "check spec.code.repository, and that pods of this namespace can reach it")
}

/// Lines that say something, joined and cut, without credentials.
fn shortened<'a>(lines: impl Iterator<Item = &'a str>, credentials: &[String]) -> String {
    const NOISE_PREFIXES: &[&str] =
        &["@@", "hint:", "Please make sure", "and the repository exists", "warning: ", "To ", "Done"];
    let mut text = String::new();
    for line in lines {
        let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let line = line.trim();
        if line.is_empty() || line == "remote:" || NOISE_PREFIXES.iter().any(|noise| line.starts_with(noise)) {
            continue;
        }
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(&without_userinfo(line));
    }
    // A user's name may be a token; one as short as `git` is none, and would be cut out of every word.
    for credential in credentials.iter().enumerate().filter(|(n, c)| *n == 0 || c.len() >= 12).map(|(_, c)| c) {
        text = text.replace(credential.as_str(), "…");
    }
    if text.is_empty() {
        return "git gave no message".to_owned();
    }
    text.chars().take(MAX_GIT_MESSAGE).collect()
}

/// `text` with every `://user:password@` as `://`.
fn without_userinfo(text: &str) -> String {
    let mut parts = text.split("://");
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        clean.push_str("://");
        let end = part.find(|c: char| c == '/' || c.is_whitespace() || c == '\'').unwrap_or(part.len());
        let (authority, rest) = part.split_at(end);
        clean.push_str(authority.rsplit_once('@').map_or(authority, |(_, host)| host));
        clean.push_str(rest);
    }
    clean
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("ssh://git@h.example:22/shop.git", "ssh://git@h.example:22/shop.git", None)]
    #[case("https://h.example/shop.git", "https://h.example/shop.git", Some("https://h.example"))]
    #[case("https://token@h.example:8443/s", "https://h.example:8443/s", Some("https://h.example:8443"))]
    fn an_address_loses_its_credentials(#[case] given: &str, #[case] url: &str, #[case] host: Option<&str>) {
        let address = RepositoryAddress::parse(given).unwrap();
        assert_eq!((address.url.as_str(), address.is_https()), (url, host.is_some()));
        assert_eq!(address.server, host.unwrap_or_default());
    }

    #[rstest]
    #[case("file:///etc")]
    #[case("ext::sh -c id")]
    #[case("git@h:shop.git")]
    #[case("http://h/shop.git")]
    fn other_transports_are_refused(#[case] given: &str) {
        assert_eq!(RepositoryAddress::parse(given).unwrap_err().reason, Reason::RepositoryUnreachable);
    }

    #[rstest]
    #[case("Host key verification failed.", Reason::RepositoryUnreachable, "known_hosts")]
    #[case(
        "fatal: unable to access 'x': server certificate verification failed. CAfile: none",
        Reason::RepositoryUnreachable,
        "ca.crt"
    )]
    #[case("git@h: Permission denied (publickey).", Reason::RepositoryDenied, "read and push")]
    #[case("fatal: Authentication failed for 'https://h/'", Reason::RepositoryDenied, "read and push")]
    #[case("!\ta:b\t[remote rejected] (pre-receive hook declined)", Reason::RepositoryDenied, "create this tag")]
    #[case("remote: ERROR: deploy key is read-only", Reason::RepositoryDenied, "create this tag")]
    #[case("ssh: connect to host h port 22: Connection refused", Reason::RepositoryUnreachable, "reach it")]
    #[case("No user exists for uid 12", Reason::Internal, "65532")]
    fn output_has_a_reason_and_a_next_step(#[case] output_text: &str, #[case] reason: Reason, #[case] marker: &str) {
        let (found, next) = classify_output(output_text);
        assert_eq!(found, reason);
        assert!(next.contains(marker), "{next}");
    }

    #[test]
    fn credentials_and_noise_are_not_repeated() {
        let output_text =
            "@@@@\nremote: hello hunter2\u{7}\n\nfatal: cannot read 'https://ann:hunter2@h/x' now\nhint: try\n";
        let short = shortened(output_text.lines(), &["hunter2".to_owned(), "git".to_owned()]);
        assert_eq!(short, "remote: hello …; fatal: cannot read 'https://h/x' now");
        assert_eq!(shortened(["x".repeat(999)].iter().map(String::as_str), &[]).len(), MAX_GIT_MESSAGE);
    }
}
