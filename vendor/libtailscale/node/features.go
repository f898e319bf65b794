// Parts of Tailscale that tsnet leaves to the program to link: imported for what they register.
package node

import (
	_ "tailscale.com/feature/identityfederation" // client_id with id_token or audience
	_ "tailscale.com/ipn/store/kubestore"        // store "kube:NAME"
)
