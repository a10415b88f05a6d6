# shellcheck shell=bash
# Sourced by the scripts of this folder: paths, the cache of artefacts, waiting.

shopt -s inherit_errexit   # otherwise a failure inside $(...) is ignored

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034  # used by the scripts that source this file
PROJECT=$(cd "$HERE/../.." && pwd)
CACHE=${CREDIT_MIGRATION_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/credit-migration-operator}
export STATE=${STATE:-/var/tmp/credit-migration-cluster}

log() { echo "$(basename "$0"): $*" >&2; }
die() { log "$*"; exit 1; }

# The key of an artefact: one hash over strings and over the contents of files (given as @path).
key() {
  local input
  for input in "$@"; do
    case $input in
    @*) sha256sum <"${input#@}" ;;
    *) printf '%s\n' "$input" ;;
    esac
  done | sha256sum | cut -c1-32
}

# cached NAME KEY BUILD: prints the folder of the artefact; if it is missing, BUILD is called with an empty folder to fill.
# The folder is renamed only when BUILD has succeeded, so an aborted build never counts as complete.
cached() {
  local name=$1 key=$2 build=$3 target=$CACHE/$1/$2
  if [ ! -d "$target" ]; then
    mkdir -p "$CACHE/$name"
    (
      # two callers must not build the same artefact
      exec 9>"$CACHE/$name/lock"
      flock 9
      [ ! -d "$target" ] || exit 0
      rm -rf "$CACHE/$name/"partial.*      # of killed builds; none is running under the lock
      partial=$(mktemp -d "$CACHE/$name/partial.XXXXXX")
      trap 'rm -rf "$partial"' EXIT
      log "building $name ($key)"
      # not `if "$build"` or `"$build" ||`: either would switch off -e inside the function
      "$build" "$partial" >&2 9>&-
      chmod 755 "$partial"
      mv -T "$partial" "$target"
    )
  fi
  echo "$target"
}

# Longest wait for a state that must come, in seconds
MAX_WAIT=300
# wait_until WHAT COMMAND...: waits for a state, with a deadline
wait_until() {
  local deadline=$((SECONDS + MAX_WAIT)) what=$1
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt "$deadline" ] || { log "waited $MAX_WAIT s for $what"; return 1; }
    sleep 0.1
  done
}

# Space that a cluster with all services and the end-to-end tests takes, in MiB
MIN_FREE=2048
# require_space FOLDER: a full disk is said at once; the node would only leave its pods Pending
require_space() {
  local free
  free=$(df --output=avail -B1M "$1" | tail -n 1)
  [ "$free" -ge $MIN_FREE ] || die "$1 has $((free)) MiB free, the cluster needs $MIN_FREE MiB; free some, or set STATE to a folder of another disk"
}
