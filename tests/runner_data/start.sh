# Starts a throwaway PostgreSQL and an S3 server, both with a certificate of an authority of their own, and ends them when
# standard input is closed, however the test process ends.
#   start.sh FOLDER-OF-POSTGRESQL VERSITYGW DATABASE-PORT STORE-PORT
# Prints the folder in which everything is, then `started`.
set -e
dir=$(mktemp -d /tmp/credit-data-XXXXXX)
chmod 755 "$dir"
trap 'rm -rf "$dir"' EXIT
as=
if [ "$(id -u)" = 0 ]; then
  # PostgreSQL refuses to run as root.
  as="setpriv --reuid postgres --regid postgres --clear-groups --"
fi
cd "$dir"
mkdir tls store store/backups sidecar pg
# The server's user may not enter the folder of root's cache.
cp -a "$1/.." programs
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test-authority \
  -keyout tls/ca.key -out tls/ca.crt 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -keyout tls/server.key -out tls/server.csr 2>/dev/null
printf 'subjectAltName=IP:127.0.0.1' >tls/ext
openssl x509 -req -in tls/server.csr -CA tls/ca.crt -CAkey tls/ca.key -CAcreateserial -days 2 -extfile tls/ext -out tls/server.crt 2>/dev/null
cp tls/server.crt tls/server.key pg
[ -z "$as" ] || chown -R postgres pg
chmod 600 pg/server.key
printf 'root-secret' >pw
chmod 644 pw
$as programs/bin/initdb -D "$dir/pg/data" -U postgres -A scram-sha-256 --pwfile="$dir/pw" --no-sync -E UTF8 --locale=C >/dev/null
$as programs/bin/postgres -D "$dir/pg/data" -p "$3" -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c max_connections=200 -c wal_level=logical -c shared_preload_libraries=pg_stat_statements \
  -c ssl=on -c ssl_cert_file="$dir/pg/server.crt" -c ssl_key_file="$dir/pg/server.key" >pg/log 2>&1 &
database=$!
"$2" --quiet --port "127.0.0.1:$4" --access key-id --secret key-secret --cert "$dir/tls/server.crt" --key "$dir/tls/server.key" \
  posix --sidecar "$dir/sidecar" "$dir/store" >store.log 2>&1 &
store=$!
echo "$dir"
echo started
cat >/dev/null
kill -QUIT $database || true
kill $store || true
wait || true
