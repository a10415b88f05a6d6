# shellcheck shell=bash
# Starts two throwaway git servers, sshd and Apache with git-http-backend, and ends them when standard input is closed,
# however the test process ends.
#   start.sh SSH-PORT HTTPS-PORT
# Prints the folder in which everything is, and the user as whom both run; then `started`.
# The sshd takes no GIT_PROTOCOL: it represents servers of protocol 0. Apache's speaks version 2.
set -e
dir=$(mktemp -d /tmp/credit-code-XXXXXX)
chmod 755 "$dir"
trap 'rm -rf "$dir"' EXIT
as=
user=$(id -un)
if [ "$(id -u)" = 0 ]; then
  # sshd as root would need a user and a folder of the system
  user=postgres
  as="setpriv --reuid postgres --regid postgres --clear-groups --"
fi
cd "$dir"
mkdir tls ssh repos apache
ssh-keygen -q -t ed25519 -N '' -C host -f ssh/host
ssh-keygen -q -t ed25519 -N '' -C key -f ssh/key
ssh-keygen -q -t ed25519 -N '' -C other -f ssh/other
cp ssh/key.pub ssh/authorized_keys
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test-authority \
  -keyout tls/ca.key -out tls/ca.crt 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -keyout tls/server.key -out tls/server.csr 2>/dev/null
printf 'subjectAltName=IP:127.0.0.1' >tls/ext
openssl x509 -req -in tls/server.csr -CA tls/ca.crt -CAkey tls/ca.key -CAcreateserial -days 2 -extfile tls/ext -out tls/server.crt 2>/dev/null
printf 'pusher-name-1:%s\n' "$(openssl passwd -apr1 password-of-pusher)" >apache/users
cat >ssh/config <<END
Port $1
ListenAddress 127.0.0.1
HostKey $dir/ssh/host
PidFile none
UsePAM no
StrictModes no
AuthorizedKeysFile $dir/ssh/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100
ForceCommand $dir/ssh/serve
END
cat >ssh/serve <<'END'
#!/bin/sh
eval "set -- $SSH_ORIGINAL_COMMAND"
if [ "$1" = git-receive-pack ] && [ -x "$2/hooks/before-push" ]; then "$2/hooks/before-push" "$2"; fi
exec git-shell -c "$SSH_ORIGINAL_COMMAND"
END
chmod 755 ssh/serve
cat >apache/config <<END
ServerRoot /usr/lib/apache2
$(for module in mpm_prefork authn_core authn_file authz_core authz_user auth_basic alias cgi env setenvif ssl; do
  echo "LoadModule ${module}_module modules/mod_$module.so"
done)
Listen 127.0.0.1:$2
ServerName localhost
PidFile $dir/apache/pid
DefaultRuntimeDir $dir/apache
Mutex file:$dir/apache default
ErrorLog $dir/apache/log
MaxRequestWorkers 64
SSLEngine on
SSLCertificateFile $dir/tls/server.crt
SSLCertificateKeyFile $dir/tls/server.key
SetEnv GIT_PROJECT_ROOT $dir/repos
SetEnv GIT_HTTP_EXPORT_ALL
SetEnvIf Git-Protocol ".*" GIT_PROTOCOL=\$0
ScriptAlias / /usr/lib/git-core/git-http-backend/
<Location />
  AuthType Basic
  AuthName git
  AuthUserFile $dir/apache/users
  Require valid-user
</Location>
END
[ -z "$as" ] || chown -R postgres ssh repos apache tls
$as /usr/sbin/sshd -D -e -f ssh/config >ssh/log 2>&1 &
ssh=$!
$as /usr/sbin/apache2 -f "$dir/apache/config" -D FOREGROUND >apache/out 2>&1 &
apache=$!
echo "$dir"
echo "$user"
echo started
cat >/dev/null
kill $ssh || true
kill $apache || true
wait || true
