//go:build !ts_omit_kube

// The store "kube:NAME", which tsnet does not link by itself. Without it node.go refuses the name,
// which tsnet would take for a file name.

package node

import _ "tailscale.com/ipn/store/kubestore"
