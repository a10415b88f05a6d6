#!/usr/bin/env bash
# Tests the services of the running cluster that tests and demo use: the git server, the inbox, pg_stat_statements that a
# role that is no superuser cannot restore, the probe user. Ten seconds; one line for each, exit code 0 only if all are ok.
# shellcheck disable=SC2317,SC2086  # functions are called by `check`; names without blanks
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
NAME=services_test NAMESPACE=services-test REPOSITORY=services-test
DIR=$(mktemp -d)
trap 'rm -rf "$DIR"; inside kubectl delete namespace "$NAMESPACE" --wait=false >/dev/null 2>&1 || true' EXIT
failed=0
inside() { "$HERE/cluster" exec "$@"; }
services() { "$HERE/services" "$@"; }
check() { # WHAT COMMAND...
  if "${@:2}" >"$DIR/log" 2>&1; then echo "ok    $1"; else
    echo "FAIL  $1"
    failed=1
    tail -n 5 "$DIR/log" | sed 's/^/      | /'
  fi
}
fails() { ! "$@"; }
same() { [ "$1" = "$2" ] || { echo "got '$1', expected '$2'"; return 1; }; }
secret_key() { inside kubectl get secret -n $NAMESPACE "$1" -o json | jq -r --arg key "$2" '.data[$key] | @base64d'; }

services database $NAME 100 1000 2>/dev/null
services connect $NAME $NAMESPACE
umask 077
for key in ssh-privatekey known_hosts; do secret_key code-repository $key >"$DIR/$key"; done
for key in ca.crt username password slack-url events-url; do secret_key notices $key >"$DIR/$key"; done

# --- git ------------------------------------------------------------------------------------------------------------
commit=$(services repository $REPOSITORY)
ssh_with() { echo "ssh -i $1 -o UserKnownHostsFile=$2 -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes -o BatchMode=yes"; }
git_with() { inside env GIT_SSH_COMMAND="$(ssh_with "$1" "$2")" git "${@:3}"; }
git_in() { git_with "$DIR/ssh-privatekey" "$DIR/known_hosts" "$@"; }
push() {
  git_in clone -q ssh://git@git.git/srv/$REPOSITORY.git "$DIR/clone" &&
    git_in -C "$DIR/clone" -c user.name=test -c user.email=test@example.com tag -a -m before pre "$commit" &&
    git_in -C "$DIR/clone" push -q origin refs/tags/pre "$commit:refs/heads/backup/pre" &&
    same "$(services git $REPOSITORY rev-parse 'pre^{commit}' backup/pre)" "$commit"$'\n'"$commit"
}
shell() { inside ssh -i "$DIR/ssh-privatekey" -o UserKnownHostsFile="$DIR/known_hosts" -o BatchMode=yes git@git.git id; }
ssh-keygen -q -t ed25519 -N '' -f "$DIR/other"
printf 'git.git %s\n' "$(cut -d' ' -f1,2 "$DIR/other.pub")" >"$DIR/other_hosts"
check "git: the commit is the same each time" same "$(services repository $REPOSITORY)" "$commit"
check "git: a tag and a branch are pushed" push
check "git: another key is refused" fails git_with "$DIR/other" "$DIR/known_hosts" ls-remote ssh://git@git.git/srv/$REPOSITORY.git
check "git: another host key is noticed" fails git_with "$DIR/ssh-privatekey" "$DIR/other_hosts" ls-remote ssh://git@git.git/srv/$REPOSITORY.git
check "git: no shell" fails shell

# --- inbox ----------------------------------------------------------------------------------------------------------
printf 'From: a@example.com\nTo: %s-team@example.com\nSubject: =?utf-8?B?6L+B56e7?=\n\nTwo\nlines\n' $NAMESPACE >"$DIR/mail"
mail() { # CURL'S OPTIONS...
  inside curl -sS -m 10 --cacert "$DIR/ca.crt" smtp://inbox.inbox:587 --mail-from a@example.com --mail-rcpt $NAMESPACE-team@example.com -T "$DIR/mail" "$@"
}
login() { printf 'user = "%s:%s"\n' "$(cat "$DIR/username")" "$1" >"$DIR/login"; }
mailed() {
  login "$(cat "$DIR/password")"
  mail --ssl-reqd -K "$DIR/login" &&
    same "$(services inbox /mail/$NAMESPACE-team@ | jq -r '.[-1] | .subject + "|" + .body')" $'迁移|Two\nlines'
}
mail_with_wrong_password() { login wrong; mail --ssl-reqd -K "$DIR/login"; }
mail_without_tls() { login "$(cat "$DIR/password")"; mail -K "$DIR/login"; }
post() { inside curl -sSf -m 5 --cacert "$DIR/ca.crt" -H 'Content-Type: application/json' -d "$2" "$1"; }
posted() {
  post "$(cat "$DIR/slack-url")" '{"text": "hello"}' && post "$(cat "$DIR/events-url")" '{"specversion": "1.0"}' &&
    same "$(services inbox /$NAMESPACE/ | jq -c 'map(.body)')" '[{"text":"hello"},{"specversion":"1.0"}]' &&
    same "$(services inbox /$NAMESPACE/slack | jq -r '.[0].headers["content-type"]')" application/json
}
forgotten() {
  services forget /$NAMESPACE/ && same "$(services inbox /$NAMESPACE/)" '[]'
}
check "inbox: mail with TLS and login" mailed
check "inbox: mail with a wrong password is refused" fails mail_with_wrong_password
check "inbox: mail without TLS is refused" fails mail_without_tls
check "inbox: posts are kept" posted
check "inbox: /fail/503 refuses" same "$(inside curl -s -o /dev/null -w '%{http_code}' --cacert "$DIR/ca.crt" -d x https://inbox.inbox/fail/503/x)" 503
check "inbox: its certificate is the services' own" fails inside curl -sS -m 5 https://inbox.inbox/
check "inbox: forgets" forgotten

# --- PostgreSQL -----------------------------------------------------------------------------------------------------
secret_key watermark-db url >"$DIR/migrator"
secret_key watermark-app url >"$DIR/app"
psql_by() { inside env PGSSLROOTCERT="$DIR/ca.crt" "$(command -v psql)" -XqAt -v ON_ERROR_STOP=1 "$(cat "$DIR/$1")" -c "$2"; }
statements() {
  psql_by app "SELECT balance AS services_test FROM user_credits WHERE user_id = 1" >/dev/null &&
    same "$(psql_by migrator "SELECT count(*) FROM pg_stat_statements JOIN pg_database ON oid = dbid WHERE datname = current_database() AND query LIKE 'SELECT balance AS services_test %' AND calls >= 1")" 1
}
# what the rehearsal must get over: the extension is in the dump, and the migrator may not create it
not_trusted() {
  same "$(psql_by migrator "SELECT bool_or(trusted) FROM pg_available_extension_versions WHERE name = 'pg_stat_statements'")" f
}
check "PostgreSQL: the migrator reads the application's statements" statements
check "PostgreSQL: the extension is not trusted, as on a stock server" not_trusted
check "the probe user is there" same "$(psql_by migrator "SELECT balance FROM user_credits JOIN users ON id = user_id WHERE email = '$(secret_key probe-user email)'")" 1000
exit $failed
