//go:build !ts_omit_identityfederation

// Logging in with client_id and an ID token or an audience, which tsnet leaves to the program to link.

package node

import _ "tailscale.com/feature/identityfederation"
