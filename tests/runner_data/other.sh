# Starts a second throwaway PostgreSQL, without TLS, and ends it when standard input is closed.
#   other.sh FOLDER-OF-POSTGRESQL PORT
# Prints the folder in which everything is, then `started`.
set -e
dir=$(mktemp -d /tmp/credit-other-XXXXXX)
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
[ -z "$as" ] || chown postgres pg
printf 'root-secret' >pw
chmod 644 pw
$as programs/bin/initdb -D "$dir/pg/data" -U postgres -A scram-sha-256 --pwfile="$dir/pw" --no-sync -E UTF8 --locale=C >/dev/null
$as programs/bin/postgres -D "$dir/pg/data" -p "$2" -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off \
  >pg/log 2>&1 &
database=$!
echo "$dir"
echo started
cat >/dev/null
kill -QUIT $database || true
wait || true
