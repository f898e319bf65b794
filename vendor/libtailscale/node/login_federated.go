//go:build !ts_omit_identityfederation

// Login with client_id and an ID token or an audience, which tsnet does not link by itself.

package node

import _ "tailscale.com/feature/identityfederation"
