//! Task `CodeBackup` and its part of Preflight against real git servers, by ssh and by https.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::{net::TcpListener, time::Duration};

use credit_migration::api::Reason;
use rstest::rstest;
use serde_json::json;

use harness::{By, PASSWORD, World, command_lines, folders, servers, wait_for};

const TAG: &str = "refs/tags/pre-credit-migration-v1";
const BRANCH: &str = "refs/heads/backup/pre-credit-migration";

#[rstest]
#[tokio::test]
async fn tag_and_branch_are_pushed_once(#[values(By::Ssh, By::Https)] by: By, #[values(true, false)] filter: bool) {
    let mut world = World::new(by);
    world.git(&format!("config uploadpack.allowFilter {filter}"));
    world.code(|code| code["message"] = json!("#1: before\n\n-m 'it'"));
    let before = world.objects();
    let outcome = world.run().await;
    let message = outcome.result.as_ref().unwrap();
    assert!(message.ends_with("pushed"), "{message}");
    let evidence = outcome.evidence.unwrap();
    assert_eq!((&evidence.commit, evidence.repository), (&world.commits[1], world.url()));
    assert_eq!((evidence.tag.as_str(), evidence.branch.as_str()), (&TAG[10..], &BRANCH[11..]));

    let refs = world.refs();
    let at = &world.commits[1];
    assert!(refs.contains(&format!("{BRANCH} commit {at} ")), "{refs}");
    let tag = refs.lines().find(|line| line.starts_with(&format!("{TAG} tag "))).expect("an annotated tag");
    assert!(tag.ends_with(&format!(" {at}")), "{tag}");
    assert!(world.git(&format!("cat-file tag {TAG}")).ends_with("\n\n#1: before\n\n-m 'it'"));
    assert_eq!(world.objects(), before + 1, "the tag, and nothing that the server has");

    let outcome = world.run().await;
    assert!(outcome.result.unwrap().ends_with("there already"));
    assert_eq!(outcome.evidence.unwrap().commit, *at);
    assert_eq!(world.refs(), refs, "the second time changes nothing");
}

#[rstest]
#[case(TAG, "tag -a -m x pre-credit-migration-v1", 0, "is at ")]
#[case(TAG, "tag pre-credit-migration-v1", 0, "is no annotated tag and at ")]
#[case(TAG, "tag pre-credit-migration-v1", 1, "is no annotated tag and at ")]
// git alone would move it forward
#[case(BRANCH, "branch backup/pre-credit-migration", 0, "is at ")]
#[case(BRANCH, "branch backup/pre-credit-migration", 2, "is at ")]
#[tokio::test]
async fn a_ref_elsewhere_stays_there(
    #[values(By::Ssh, By::Https)] by: By,
    #[case] name: &str,
    #[case] make: &str,
    #[case] at: usize,
    #[case] words: &str,
) {
    let world = World::new(by);
    world.git(&format!("{make} {}", world.commits[at]));
    let before = world.refs();
    let next = format!("--delete {name}");
    for outcome in [world.preflight().await, world.run().await] {
        outcome.failed(Reason::RefElsewhere, &[words, &world.commits[at], &world.commits[1], &next]);
    }
    assert_eq!(world.refs(), before);
}

#[tokio::test]
async fn what_is_there_already_is_not_pushed_again() {
    let world = World::new(By::Https);
    world.git(&format!("tag -a -m mine pre-credit-migration-v1 {}", world.commits[1]));
    let tag = world.git(&format!("rev-parse {TAG}"));
    assert!(world.run().await.result.unwrap().ends_with("pushed"));
    assert_eq!(world.git(&format!("rev-parse {TAG}")), tag);
    assert_eq!(world.git(&format!("rev-parse {BRANCH}")), world.commits[1]);
}

#[rstest]
#[tokio::test]
async fn a_ref_that_appears_meanwhile_is_not_moved(#[values(0, 1)] at: usize) {
    let world = World::new(By::Ssh);
    // After the client has seen that there is none.
    world.hook("pre-receive", &format!("unset GIT_QUARANTINE_PATH; git update-ref {BRANCH} {}", world.commits[at]));
    let outcome = world.run().await;
    assert_eq!(world.git(&format!("rev-parse {BRANCH}")), world.commits[at]);
    assert!(!world.refs().contains(TAG), "one alone: {}", world.refs());
    if at == 0 {
        outcome.failed(Reason::RefElsewhere, &[&world.commits[0], &world.commits[1]]);
    } else {
        outcome.failed(Reason::RepositoryDenied, &[]);
        world.hook("pre-receive", "");
        assert!(world.run().await.result.is_ok(), "the next attempt adds the tag");
    }
}

/// Between reading the refs of the server and the push: git alone would move the branch forward.
#[tokio::test]
async fn a_branch_that_appears_before_the_push_is_not_moved_forward() {
    let world = World::new(By::Ssh);
    world.hook("before-push", &format!("git -C \"$1\" update-ref {BRANCH} {}", world.commits[0]));
    world.run().await.failed(Reason::RefElsewhere, &[&world.commits[0], &world.commits[1]]);
    assert_eq!(world.git(&format!("rev-parse {BRANCH}")), world.commits[0]);
    assert!(!world.refs().contains(TAG), "one alone: {}", world.refs());
}

#[tokio::test]
async fn a_server_that_cannot_push_both_together_gets_them_one_by_one() {
    let world = World::new(By::Ssh);
    world.git("config receive.advertiseAtomic false");
    world.run().await.result.unwrap();
    assert!(world.refs().contains(TAG) && world.refs().contains(BRANCH));
}

#[rstest]
#[tokio::test]
async fn a_key_or_password_that_is_refused_is_denied(#[values(By::Ssh, By::Https)] by: By) {
    let world = World::new(by);
    match by {
        By::Ssh => {
            let other = std::fs::read_to_string(servers().dir.join("ssh/other")).unwrap();
            world.mount("ssh-privatekey", &other);
        }
        By::Https => world.mount("password", "another-password"),
    }
    for outcome in [world.preflight().await, world.run().await] {
        let message = outcome.failed(Reason::RepositoryDenied, &["correct Secret shop-code"]);
        assert!(!message.contains("another-password"), "{message}");
    }
    if by == By::Ssh {
        world.mount("ssh-privatekey", "no key");
        world.run().await.failed(Reason::RepositoryDenied, &["key ssh-privatekey of Secret shop-code"]);
    }
}

#[rstest]
#[tokio::test]
async fn a_server_that_is_not_the_one_is_not_talked_to(#[values(By::Ssh, By::Https)] by: By) {
    let world = World::new(by);
    let words = match by {
        By::Ssh => {
            let known = std::fs::read_to_string(world.secret("known_hosts")).unwrap();
            let other = std::fs::read_to_string(servers().dir.join("ssh/other.pub")).unwrap();
            world.mount("known_hosts", &format!("{} {other}", known.split(' ').next().unwrap()));
            "known_hosts of Secret shop-code"
        }
        By::Https => {
            std::fs::remove_file(world.secret("ca.crt")).unwrap();
            "ca.crt of Secret shop-code"
        }
    };
    for outcome in [world.preflight().await, world.run().await] {
        outcome.failed(Reason::RepositoryUnreachable, &[words]);
    }
    if by == By::Ssh {
        world.mount("known_hosts", "# no host");
        world.run().await.failed(Reason::RepositoryUnreachable, &[words]);
    }
}

#[rstest]
#[tokio::test]
async fn a_commit_that_the_server_lacks_is_missing(#[values(By::Ssh, By::Https)] by: By) {
    let mut world = World::new(by);
    let before = world.refs();
    world.code(|code| code["commit"] = json!("1".repeat(40)));
    world.run().await.failed(Reason::CommitMissing, &[&"1".repeat(40), "correct spec.code.commit"]);
    let tree = world.git("rev-parse main^{tree}");
    if by == By::Https {
        world.code(|code| code["commit"] = json!(tree));
        world.run().await.failed(Reason::CommitMissing, &["is a tree"]);
    }
    assert_eq!(world.refs(), before);
}

#[rstest]
#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable(#[values("ssh", "https")] scheme: &str) {
    let mut world = World::new(if scheme == "ssh" { By::Ssh } else { By::Https });
    let url = world.url();
    world.code(|code| code["repository"] = json!(format!("{scheme}://127.0.0.1:1/shop.git")));
    for outcome in [world.preflight().await, world.run().await] {
        outcome.failed(Reason::RepositoryUnreachable, &["127.0.0.1:1/shop.git", "check spec.code.repository"]);
    }
    world.code(|code| code["repository"] = json!(url.replace(".git", "-nowhere.git")));
    world.run().await.failed(Reason::RepositoryUnreachable, &["nowhere.git"]);
}

#[rstest]
#[tokio::test]
async fn a_server_that_is_silent_is_not_waited_for(#[values("ssh", "https")] scheme: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap();
    let mut world = World::new(if scheme == "ssh" { By::Ssh } else { By::Https });
    world.code(|code| code["repository"] = json!(format!("{scheme}://{host}/shop.git")));
    let outcome = world.call(&["ls-remote", "origin"], Duration::from_millis(500)).await;
    outcome.failed(Reason::RepositoryUnreachable, &["did not answer git ls-remote within 0.5 s"]);
    wait_for("the end of git's children", || !command_lines().iter().any(|l| l.contains(&host.port().to_string())));
}

#[rstest]
#[tokio::test]
async fn a_refusing_hook_is_reported(#[values(By::Ssh, By::Https)] by: By) {
    let world = World::new(by);
    let before = world.refs();
    let hook = format!("echo 'tags need a ticket {PASSWORD} https://ann:word-of-ann@h/x' >&2; exit 1");
    world.hook("pre-receive", &hook);
    // Only a password that this task has can be known as one.
    let shown = if by == By::Ssh { hook.replace(PASSWORD, "x") } else { hook };
    world.hook("pre-receive", &shown);
    let outcome = world.run().await;
    let message = outcome.failed(Reason::RepositoryDenied, &["tags need a ticket", "https://h/x", "hook declined"]);
    assert!(!message.contains("word-of-ann"), "{message}");
    assert_eq!(world.refs(), before);
}

#[rstest]
#[case(By::Ssh, &["ssh-privatekey", "known_hosts"])]
#[case(By::Https, &["username", "password"])]
#[tokio::test]
async fn a_key_of_the_secret_that_is_missing_is_named(#[case] by: By, #[case] keys: &[&str]) {
    for key in keys {
        let world = World::new(by);
        std::fs::remove_file(world.secret(key)).unwrap();
        world.preflight().await.failed(Reason::SecretKeyMissing, &[key, "shop/shop-code"]);
        world.mount(key, " \n");
        world.run().await.failed(Reason::SecretKeyMissing, &[key, "is empty"]);
        if by == By::Https {
            world.mount(key, "value\nhost=elsewhere");
            world.run().await.failed(Reason::SecretKeyMissing, &[key, "more than one line"]);
        }
    }
}

#[tokio::test]
async fn a_key_without_its_last_line_break_is_good() {
    let world = World::new(By::Ssh);
    let key = std::fs::read_to_string(world.secret("ssh-privatekey")).unwrap();
    world.mount("ssh-privatekey", &key.trim_end().replace('\n', "\r\n"));
    world.run().await.result.unwrap();
}

#[tokio::test]
async fn preflight_reports_who_may_not_push() {
    let world = World::new(By::Https);
    let found = world.preflight().await.result.unwrap();
    assert!(found.contains("can be read and pushed to"), "{found}");
    world.git("config http.receivepack false");
    world.preflight().await.failed(Reason::RepositoryDenied, &["asking to push"]);
    world.git("config http.receivepack true");
    world.run().await.result.unwrap();
    world.git("config http.receivepack false");
    let found = world.preflight().await.result.unwrap();
    assert!(found.contains(&format!("at {}", world.commits[1])), "{found}");
}

#[tokio::test]
async fn a_name_that_git_refuses_is_reported() {
    let mut world = World::new(By::Ssh);
    world.code(|code| code["branch"] = json!("a..b"));
    world.preflight().await.failed(Reason::RepositoryDenied, &["refs/heads/a..b", "spec.code.branch"]);
}

/// A user in the address is a token, for some servers.
#[tokio::test]
async fn a_user_in_the_address_is_left_out() {
    let mut world = World::new(By::Https);
    let url = world.url();
    world.code(|code| code["repository"] = json!(url.replace("https://", "https://word-of-ann@")));
    let outcome = world.run().await;
    assert!(!format!("{outcome:?}").contains("word-of-ann"), "{outcome:?}");
    assert_eq!(outcome.evidence.unwrap().repository, url);
}

/// While a hook delays the push: nothing secret in any command line. After SIGTERM: no process and no file is left.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_cut_off_leaves_nothing(#[values(By::Ssh, By::Https)] by: By) {
    let world = World::new(by);
    let before = world.refs();
    let here = format!("{}/here", world.repository.display());
    world.hook(
        "pre-receive",
        &format!("touch {here}; i=0; while [ -e {here} ] && [ $i -lt 600 ]; do sleep 0.1; i=$((i+1)); done; exit 1"),
    );
    let watched = async {
        tokio::task::spawn_blocking({
            let here = here.clone();
            move || wait_for("the hook", || std::path::Path::new(&here).exists())
        })
        .await
        .unwrap();
        let lines = command_lines();
        assert!(lines.iter().any(|line| line.contains("push --quiet")), "{lines:?}");
        for secret in world.secrets() {
            assert!(!lines.iter().any(|line| line.contains(&secret)), "{secret} in {lines:?}");
        }
        // Those of other tests, too; they end by themselves.
        let folders = folders();
        assert!(folders.len() >= 2, "{folders:?}");
        world.stop.cancel();
        folders
    };
    let (outcome, folders) = tokio::join!(world.run(), watched);
    assert_eq!(outcome.result.unwrap_err().reason, Reason::PodFailed);
    let mine = match by {
        By::Ssh => world.repository.display().to_string(),
        By::Https => world.url(),
    };
    let client = |line: &String| line.contains(&mine) && (line.starts_with("ssh ") || line.contains("remote-https"));
    wait_for("the end of git's children", || !command_lines().iter().any(client));
    world.shell("rm \"$0/here\"");
    assert_eq!(world.refs(), before);
    wait_for("the end of all folders", || !folders.iter().any(|folder| folder.exists()));
}
