# Starts a throwaway PostgreSQL with TLS and several certificates of one key, and ends it when standard input is closed.
#   tls.sh FOLDER-OF-POSTGRESQL PORT
# Prints the folder in which everything is, then `started`. A superuser chooses the certificate by ssl_cert_file, and
# connects without TLS; role `certified` connects by certificate, all others by TLS without a password.
set -e
dir=$(mktemp -d /tmp/credit-tls-XXXXXX)
chmod 755 "$dir"
trap 'rm -rf "$dir"' EXIT
as=
if [ "$(id -u)" = 0 ]; then
  # PostgreSQL refuses to run as root.
  as="setpriv --reuid postgres --regid postgres --clear-groups --"
fi
cd "$dir"
mkdir pg
# The server's user may not enter the folder of root's cache.
cp -a "$1/.." programs
curve="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
# authority NAME
authority() { openssl req -x509 $curve -days 2 -subj /CN=test-authority -keyout "$1.key" -out "$1.crt" 2>/dev/null; }
# request NAME SUBJECT
request() { openssl req $curve -subj "/CN=$2" -keyout "$1.key" -out "$1.csr" 2>/dev/null; }
# certificate NAME REQUEST EXTENSIONS OPTION...: without extensions of version 1
certificate() {
  name=$1 csr=$2 ext=
  printf '%s' "$3" >ext
  [ -z "$3" ] || ext="-extfile ext"
  shift 3
  openssl x509 -req -in "$csr" $ext -out "$name" "$@" 2>/dev/null
}
by() { echo "-CA $1.crt -CAkey $1.key -CAcreateserial -days 2"; }
authority ca
authority other
request server project:instance
host=subjectAltName=IP:127.0.0.1
certificate pg/named server.csr "$host" $(by ca)
certificate pg/nameless server.csr basicConstraints=CA:FALSE $(by ca)
certificate pg/authority server.csr "basicConstraints=CA:TRUE
$host" $(by ca)
certificate pg/version-1 server.csr "" $(by ca)
certificate pg/own server.csr basicConstraints=CA:TRUE -signkey server.key -days 2
certificate pg/own-named server.csr "basicConstraints=CA:TRUE
$host" -signkey server.key -days 2
certificate pg/own-expired server.csr "basicConstraints=CA:TRUE
$host" -signkey server.key -days 0
certificate pg/own-version-1 server.csr "" -signkey server.key -days 2
request client certified
certificate client.crt client.csr basicConstraints=CA:FALSE $(by ca)
certificate stranger.crt client.csr basicConstraints=CA:FALSE $(by other)
chmod 644 client.key
cp ca.crt server.key pg
cat >pg/hba <<H
hostnossl all postgres 127.0.0.1/32 trust
hostssl all certified 127.0.0.1/32 cert
hostssl all all 127.0.0.1/32 trust
H
[ -z "$as" ] || chown -R postgres pg
chmod 600 pg/server.key
$as programs/bin/initdb -D "$dir/pg/data" -U postgres -A trust --no-sync -E UTF8 --locale=C >/dev/null
echo "ssl_cert_file = '$dir/pg/named'" >>pg/data/postgresql.conf
$as programs/bin/postgres -D "$dir/pg/data" -p "$2" -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c hba_file="$dir/pg/hba" \
  -c ssl=on -c ssl_key_file="$dir/pg/server.key" -c ssl_ca_file="$dir/pg/ca.crt" >pg/log 2>&1 &
database=$!
echo "$dir"
echo started
cat >/dev/null
kill -QUIT $database || true
wait || true
