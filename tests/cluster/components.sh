# shellcheck shell=bash
# Sourced by cluster and node.sh: the processes of the node, in the order in which they start, and how to see that each works.

NODE_IP=172.30.0.1
# shellcheck disable=SC2034
COMPONENTS="etcd kube-apiserver containerd kube-controller-manager kube-scheduler kubelet kube-proxy coredns"

# healthy NAME: to be run inside the cluster's namespaces
healthy() {
  case $1 in
  etcd) curl -sf -m 2 http://127.0.0.1:2379/health ;;
  # /readyz and not a TCP connection: the server answers "not ready" for seconds after it listens
  kube-apiserver) curl -sf -m 2 --cacert "$STATE/pki/ca.crt" --cert "$STATE/pki/admin.crt" --key "$STATE/pki/admin.key" "https://$NODE_IP:6443/readyz" ;;
  containerd) ctr -a "$STATE/containerd.sock" --connect-timeout 1s version ;;
  kube-controller-manager) curl -skf -m 2 https://127.0.0.1:10257/healthz ;;
  kube-scheduler) curl -skf -m 2 https://127.0.0.1:10259/healthz ;;
  kubelet) curl -sf -m 2 http://127.0.0.1:10248/healthz ;;
  kube-proxy) curl -sf -m 2 http://127.0.0.1:10256/livez ;;
  coredns) curl -sf -m 2 http://127.0.0.1:8181/ready ;;
  *) return 2 ;;
  esac
}
