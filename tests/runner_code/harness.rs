//! Two git servers, and runs of the runner's task against them.

use std::{
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use credit_migration::{
    api::{CodeBackupEvidence, MigrationRunSpec, Reason, RunInputs, Task, mounts},
    runner::{
        Failure, clients::pg_tools::Tools, context::TaskContext, report::Progress, settings::Settings,
        tasks::code_backup,
    },
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub const PASSWORD: &str = "password-of-pusher";
pub const USER: &str = "pusher-name-1";
pub const SECRET: &str = "shop-code";
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

pub struct Servers {
    pub dir: PathBuf,
    user: String,
    ssh: u16,
    https: u16,
    // The shell waits for the end of this pipe.
    _alive: ChildStdin,
}

// Its shell ends by itself when this process does.
#[allow(clippy::zombie_processes)]
fn start() -> Servers {
    let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (ssh, https) = (port(), port());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/runner_code/start.sh");
    let mut child = Command::new("sh")
        .args([script.to_owned(), ssh.to_string(), https.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let dir = PathBuf::from(lines.next().unwrap().unwrap());
    let user = lines.next().unwrap().unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "started");
    wait_for("the servers, see their logs", || {
        [ssh, https].iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok())
    });
    Servers { dir, user, ssh, https, _alive: child.stdin.take().unwrap() }
}

static SERVERS: OnceLock<Servers> = OnceLock::new();
static NEXT: AtomicU32 = AtomicU32::new(0);

pub fn servers() -> &'static Servers {
    SERVERS.get_or_init(start)
}

/// Waits until it is so; panics after a while.
pub fn wait_for(what: &str, is: impl Fn() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < WAIT_TIMEOUT, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Ssh,
    Https,
}

/// A repository of its own with three commits on `main`, and a migration that backs the second one up.
pub struct World {
    pub spec: MigrationRunSpec,
    pub root: PathBuf,
    /// On the server's disk.
    pub repository: PathBuf,
    pub commits: Vec<String>,
    pub stop: CancellationToken,
}

#[derive(Debug)]
pub struct Outcome {
    pub result: Result<String, Failure>,
    pub evidence: Option<CodeBackupEvidence>,
}

impl Outcome {
    /// Asserts how it failed; the message.
    pub fn failed(&self, reason: Reason, words: &[&str]) -> &str {
        let failure = self.result.as_ref().unwrap_err();
        assert_eq!(failure.reason, reason, "{failure}");
        for word in words.iter().chain(&["; next: "]) {
            assert!(failure.message.contains(word), "no {word} in {failure}");
        }
        assert_eq!(self.evidence, None);
        &failure.message
    }
}

impl World {
    pub fn new(by: By) -> Self {
        let servers = servers();
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let repository = servers.dir.join(format!("repos/{number}.git"));
        let root = servers.dir.join(format!("mounts-{number}"));
        let url = match by {
            By::Ssh => format!("ssh://{}@127.0.0.1:{}{}", servers.user, servers.ssh, repository.display()),
            By::Https => format!("https://127.0.0.1:{}/{number}.git", servers.https),
        };
        let spec = spec(&url);
        let mut world = Self { spec, root, repository, commits: vec![], stop: CancellationToken::new() };
        let seed = r#"git init -q --bare -b main "$0" && cd "$0" || exit
            for n in 1 2 3; do
              blob=$(head -c 100000 /dev/urandom | git hash-object -w --stdin)
              tree=$(printf '100644 blob %s\tfile\n' "$blob" | git mktree)
              commit=$(git commit-tree -m "$n" ${commit:+-p $commit} "$tree")
              echo "$commit"
            done
            git update-ref refs/heads/main "$commit""#;
        world.commits = world.shell(seed).lines().map(str::to_owned).collect();
        let commit = json!(world.commits[1]);
        world.code(|code| code["commit"] = commit);
        let file = |name: &str| std::fs::read_to_string(servers.dir.join(name)).unwrap();
        match by {
            By::Ssh => {
                world.mount("ssh-privatekey", &file("ssh/key"));
                world.mount("known_hosts", &format!("[127.0.0.1]:{} {}", servers.ssh, file("ssh/host.pub")));
            }
            By::Https => {
                world.mount("username", USER);
                world.mount("password", &format!("{PASSWORD}\n"));
                world.mount("ca.crt", &file("tls/ca.crt"));
            }
        }
        world
    }

    /// Changes `spec.code`.
    pub fn code(&mut self, change: impl FnOnce(&mut Value)) {
        let mut code = serde_json::to_value(self.spec.plan.code.as_ref().unwrap()).unwrap();
        change(&mut code);
        self.spec.plan.code = Some(serde_json::from_value(code).unwrap());
    }

    pub fn mount(&self, key: &str, text: &str) {
        let path = self.secret(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn secret(&self, key: &str) -> PathBuf {
        self.root.join(mounts::secret(SECRET, key))
    }

    /// Runs a script as the servers' user, with the repository as `$0`; its output.
    pub fn shell(&self, script: &str) -> String {
        let mut command = Command::new("setpriv");
        if servers().user == "postgres" {
            command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]);
        }
        command.args(["--", "sh", "-c", script]).arg(&self.repository).current_dir("/");
        for name in ["GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"] {
            command.env(name, "committer");
        }
        let output = command.env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Calls git in the server's repository.
    pub fn git(&self, arguments: &str) -> String {
        self.shell(&format!("git -C \"$0\" {arguments}"))
    }

    /// All refs of the server.
    pub fn refs(&self) -> String {
        self.git("for-each-ref --format='%(refname) %(objecttype) %(objectname) %(*objectname)'")
    }

    pub fn objects(&self) -> usize {
        self.git("cat-file --batch-all-objects --batch-check").lines().count()
    }

    /// Puts a hook into the server's repository. In addition to git's own, `before-push` runs before a push by ssh is
    /// answered.
    pub fn hook(&self, name: &str, script: &str) {
        std::fs::write(self.root.join("hook"), format!("#!/bin/sh\n{script}\n")).unwrap();
        let hook = self.root.join("hook");
        self.shell(&format!("install -m 755 {} \"$0/hooks/{name}\"", hook.display()));
    }

    pub async fn run(&self) -> Outcome {
        self.carry_out(async |context| code_backup::run(context).await).await
    }

    pub async fn preflight(&self) -> Outcome {
        let before = self.refs();
        let outcome = self.carry_out(async |context| code_backup::check_access(context).await).await;
        assert_eq!(self.refs(), before, "Preflight changed something");
        outcome
    }

    /// Calls git as the task does, with a limit.
    pub async fn call(&self, arguments: &[&str], limit: Duration) -> Outcome {
        let code = self.spec.plan.code.clone().unwrap();
        self.carry_out(async |context| {
            let git = code_backup::open(context, &code).await?;
            git.call(arguments, limit).await.map(|answer| answer.stdout)
        })
        .await
    }

    async fn carry_out(&self, task: impl AsyncFnOnce(&TaskContext<'_>) -> Result<String, Failure>) -> Outcome {
        let progress = Progress::default();
        let context = TaskContext {
            spec: &self.spec,
            settings: Settings::new(&self.root, &self.spec, "shop"),
            tools: Tools::in_path(),
            progress: progress.clone(),
            stop: self.stop.clone(),
        };
        let result = task(&context).await;
        let noted = progress.fields();
        for text in [format!("{result:?}"), Value::from(noted.clone()).to_string()] {
            for secret in self.secrets() {
                assert!(!text.contains(&secret), "{secret} in {text}");
            }
        }
        let evidence = noted.get("codeBackup").map(|e| serde_json::from_value(e.clone()).unwrap());
        Outcome { result, evidence }
    }

    /// What must be shown nowhere.
    pub fn secrets(&self) -> Vec<String> {
        let key = std::fs::read_to_string(self.secret("ssh-privatekey")).unwrap_or_default();
        let line = key.lines().nth(1).unwrap_or("PRIVATE KEY").to_owned();
        vec![PASSWORD.to_owned(), USER.to_owned(), line]
    }

    pub fn url(&self) -> String {
        self.spec.plan.code.as_ref().unwrap().repository.clone()
    }
}

/// Command lines of all processes that run now.
pub fn command_lines() -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("cmdline"));
    all.filter_map(|path| std::fs::read(path).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .collect()
}

/// The task's folders, of all tests.
pub fn folders() -> Vec<PathBuf> {
    let mine = format!("code-{}-", std::process::id());
    let entries = ["/dev/shm", "/tmp"].iter().filter_map(|folder| std::fs::read_dir(Path::new(folder)).ok()).flatten();
    entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(&mine)).map(|e| e.path()).collect()
}

fn spec(url: &str) -> MigrationRunSpec {
    let sql = |key: &str| json!({"configMapKeyRef": {"name": "migration-0003", "key": key}});
    let plan = json!({
        "requestedBy": "dba",
        "database": {
            "name": "shop", "connection": {"secretRef": {"name": "shop-db", "key": "url"}}, "applicationRoles": ["app"],
        },
        "migration": {"up": sql("up.sql"), "down": sql("down.sql")},
        "application": {
            "flag": {"configMapKeyRef": {"name": "shop", "key": "CREDIT_SYSTEM_VERSION"}},
            "workloads": [{"kind": "Deployment", "name": "shop"}],
        },
        "backup": {"store": {"url": "s3://backups/", "secretRef": {"name": "backup-bucket"}}},
        "code": {"repository": url, "commit": "0".repeat(40), "secretRef": {"name": SECRET}},
    });
    MigrationRunSpec {
        migration: "simplify-credits".to_owned(),
        migration_uid: "0d9f2c11".to_owned(),
        task: Task::CodeBackup,
        attempt: 1,
        plan: serde_json::from_value(plan).unwrap(),
        inputs: RunInputs::default(),
        window: None,
    }
}
