// HTTPS of the tailnet: which names a node can have certificates for, and the DNS records that
// prove it to an ACME server. The wire part is POST /machine/set-dns inside Noise.
package main

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const challengePrefix = "_acme-challenge."

// dnsRecord is a TXT record that a node had published.
type dnsRecord struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (t *tailnet) certDomainsOf(n *node) []string {
	if !t.config.HTTPS {
		return nil
	}
	return []string{n.host + "." + t.suffix}
}

// serveSetDNS publishes a record for a node of this machine, and only one that proves a name of its
// own. The refusals are those of testcontrol, which is Tailscale's.
func (c *control) serveSetDNS(w http.ResponseWriter, r *http.Request, machine key.MachinePublic) {
	req := new(tailcfg.SetDNSRequest)
	if !readRequest(w, r, req) {
		return
	}
	record := dnsRecord{req.Name, req.Value}
	if status, words := c.tailnet.checkRecord(req, machine); status != 0 {
		http.Error(w, words, status)
		return
	}
	if c.publish != nil {
		if err := c.publish(r.Context(), record); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	c.tailnet.mu.Lock()
	c.tailnet.records = append(c.tailnet.records, record)
	c.tailnet.mu.Unlock()
	writeJSON(w, http.StatusOK, &tailcfg.SetDNSResponse{})
}

func (t *tailnet) checkRecord(req *tailcfg.SetDNSRequest, machine key.MachinePublic) (status int, words string) {
	switch {
	case req.Type != "TXT":
		return http.StatusBadRequest, "only TXT records are supported"
	case req.Name == "" || req.Value == "":
		return http.StatusBadRequest, "missing name or value"
	case req.NodeKey.IsZero():
		return http.StatusBadRequest, "missing node key"
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byKey(req.NodeKey)
	switch {
	case n == nil:
		return http.StatusForbidden, "unknown node key"
	case n.machine != machine:
		return http.StatusForbidden, "node key does not belong to machine"
	case !n.approved || n.expired(time.Now()):
		return http.StatusForbidden, "node is not part of the tailnet"
	}
	name, ok := strings.CutPrefix(req.Name, challengePrefix)
	if !ok || !slices.Contains(t.certDomainsOf(n), name) {
		return http.StatusForbidden, "name is not an ACME challenge for a cert domain"
	}
	return 0, ""
}
