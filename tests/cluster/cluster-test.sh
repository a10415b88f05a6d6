#!/usr/bin/env bash
# Tests the test cluster: comes up, runs a pod, survives the API server's absence, and leaves nothing behind.
# It uses a cluster of its own, and takes about a minute.
set -euo pipefail      # with it, "COMMAND | grep -q" fails when grep ends first: hence grep >/dev/null
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
STATE=$(mktemp -d /var/tmp/cluster-test.XXXXXX)
export STATE
cluster() { "$HERE/cluster" "$@"; }
kubectl() { cluster exec kubectl "$@"; }
fail() { log "FAILED: $*"; exit 1; }
step() { log "$(date +%T) $*"; }
trap 'cluster why >&2' ERR      # a wait that ended without its state
trap 'cluster down' EXIT

# state of the machine before and after: the paths where a node's programs may leave files
traces() {
  local place
  for place in /run/containerd /run/netns /var/log/pods /var/log/containers /var/lib/cni /var/lib/kubelet /var/lib/containerd \
    /opt/containerd /usr/libexec/kubernetes /var/lib/containers /run/containers; do
    if [ -e "$place" ]; then find "$place" | sort; fi
  done
  ip -brief link | sed 's/@.*//'
  find /sys/fs/cgroup -maxdepth 2 -type d -name k8s.io
}
# pid and start time of a process and its descendants: a pid alone may be reused
tree() {
  local child
  [ ! -r "/proc/$1/stat" ] || echo "$1 $(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20)"
  for child in $(pgrep -P "$1" || true); do tree "$child"; done
}

step "before"
"$HERE/tools" ensure
before=$(traces)

step "up"
cluster up
cluster up      # again: nothing to do
"$HERE/images" ensure pause base

step "a Job under the restricted Pod Security Standard, with limits, that resolves a name"
kubectl create namespace restricted >/dev/null
kubectl label namespace restricted pod-security.kubernetes.io/enforce=restricted >/dev/null
! kubectl run root --image=localhost/base:dev -n restricted >/dev/null 2>&1 || fail "Pod Security is not enforced"
kubectl apply -f - >/dev/null <<'Y'
apiVersion: batch/v1
kind: Job
metadata: {name: hello, namespace: restricted}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: hello
        image: localhost/base:dev
        command: [bash, -ec, "getent hosts kubernetes.default.svc; pg_dump --version; </dev/tcp/kubernetes.default.svc/443; echo done"]
        securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
        resources: {limits: {memory: 64Mi, cpu: 500m}}
Y
kubectl wait --for=condition=Complete job/hello -n restricted --timeout="${MAX_WAIT}s" >/dev/null
kubectl logs -n restricted job/hello | grep '^done' >/dev/null || fail "the Job's log is not complete"
kubectl get validatingadmissionpolicies >/dev/null

step "exec: exit code, names of services, and an end with its caller"
code=0
cluster exec bash -c 'exit 7' || code=$?
[ $code = 7 ] || fail "exec gave exit code $code for 7"
cluster exec getent hosts kubernetes.default >/dev/null || fail "names of services do not resolve in exec"
"$HERE/cluster" exec sleep 4321 &      # not the function: the pid would be that of a shell around it
caller=$!
wait_until "sleep to start" pgrep -fx "sleep 4321"
kill "$caller"
wait "$caller" 2>/dev/null || true
no_sleep() { ! pgrep -fx "sleep 4321"; }
wait_until "sleep to end with its caller" no_sleep

step "stop and start the API server"
cluster stop kube-apiserver
! kubectl get nodes --request-timeout=2s >/dev/null 2>&1 || fail "the API server answers though stopped"
rm "$STATE/down/kube-apiserver"
wait_until "the supervisor to keep it down once more" test -e "$STATE/down/kube-apiserver"
! kubectl get nodes --request-timeout=2s >/dev/null 2>&1 || fail "the API server came back by itself"
cluster status | grep '^kube-apiserver .* stopped$' >/dev/null || fail "status does not say stopped"
cluster start kube-apiserver
kubectl get nodes >/dev/null || fail "start returned before the API server worked"

step "each other component too"
# shellcheck source=components.sh
. "$HERE/components.sh"
for name in $COMPONENTS; do
  [ "$name" = kube-apiserver ] || { cluster stop "$name" && cluster start "$name"; }
done
all_healthy() { ! cluster status | grep -v ' healthy$'; }
wait_until "all components to be healthy" all_healthy

step "a killed component is restarted"
cluster exec bash -c "kill -KILL $(cat "$STATE/pids/kube-scheduler")"
wait_until "the scheduler" all_healthy
kubectl delete job hello -n restricted >/dev/null
kubectl run again --image=localhost/base:dev --restart=Never --command -- true >/dev/null
kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/again --timeout="${MAX_WAIT}s" >/dev/null
kubectl run stays --image=localhost/base:dev --restart=Never --command -- sleep 3600 >/dev/null
kubectl wait --for=condition=Ready pod/stays --timeout="${MAX_WAIT}s" >/dev/null

step "down"
processes=$(tree "$(cat "$STATE/unshare.pid")")
[ "$(wc -l <<<"$processes")" -gt 15 ] || fail "the list of processes is too short to show anything"
containers=$(find "$STATE/containerd-run/io.containerd.runtime.v2.task/k8s.io" -mindepth 1 -maxdepth 1 -printf '%f\n')
cgroups() { for id in $containers; do find /sys/fs/cgroup -maxdepth 3 -path "*/k8s.io/$id"; done; }
[ -n "$(cgroups)" ] || fail "the running pod has no cgroup to check for"
cluster down
trap - EXIT
[ -z "$(cgroups)" ] || fail "cgroups are left: $(cgroups)"
while read -r pid start; do
  now=$(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null || true)
  # a zombie has ended; its parent has not reaped it yet
  [[ -z $now || $now == Z* || $(cut -d' ' -f20 <<<"$now") != "$start" ]] || fail "process $pid is left: $(tr '\0' ' ' <"/proc/$pid/cmdline")"
done <<<"$processes"
! grep -F "$STATE" /proc/self/mountinfo || fail "mounts are left"
[ ! -e "$STATE" ] || fail "$STATE is left"
after=$(traces)
[ "$before" = "$after" ] || { diff <(echo "$before") <(echo "$after") >&2 || true; fail "traces are left"; }
step "passed"
