//go:build !ts_omit_kube

// The store "kube:NAME", which tsnet leaves to the program to link. Without it node.go refuses the
// name, which tsnet would take for a file's.

package node

import _ "tailscale.com/ipn/store/kubestore"
