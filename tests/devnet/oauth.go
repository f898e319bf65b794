// The part of Tailscale's HTTP API by which a machine gets an auth key without a person: OAuth
// clients and federated identities.
//
// Routes, on the control server's port: POST /api/v2/oauth/token (client secret), POST
// /api/v2/oauth/token-exchange (client id and an outside ID token), POST
// /api/v2/tailnet/{tailnet}/keys. Invariants: a client gives the tags it was made with and no
// others; an ID token is compared, not verified, so tests need no issuer.
package main

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"
)

type oauthClient struct {
	id     string
	secret string
	tags   []string
	jwt    string // ID token of a federated identity, "" for an OAuth client
}

func (t *tailnet) addClient(tags []string, jwt string) *oauthClient {
	c := &oauthClient{id: "k" + randomText(9) + "CNTRL", tags: tags, jwt: jwt}
	if jwt == "" {
		c.secret = "tskey-client-" + c.id + "-" + randomText(20)
	}
	t.clients = append(t.clients, c)
	return c
}

func (c *control) oauthRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /api/v2/oauth/token", func(w http.ResponseWriter, r *http.Request) {
		secret := r.FormValue("client_secret")
		if _, password, ok := r.BasicAuth(); ok {
			secret = password
		}
		// As the real one: the secret identifies the client, the id is ignored.
		c.issueToken(w, func(o *oauthClient) bool { return o.secret != "" && o.secret == secret })
	})
	mux.HandleFunc("POST /api/v2/oauth/token-exchange", func(w http.ResponseWriter, r *http.Request) {
		id, jwt := r.FormValue("client_id"), r.FormValue("jwt")
		c.issueToken(w, func(o *oauthClient) bool { return o.jwt != "" && o.jwt == jwt && o.id == id })
	})
	mux.HandleFunc("POST /api/v2/tailnet/{tailnet}/keys", c.serveMakeKey)
}

func (c *control) issueToken(w http.ResponseWriter, matches func(*oauthClient) bool) {
	c.tailnet.mu.Lock()
	defer c.tailnet.mu.Unlock()
	i := slices.IndexFunc(c.tailnet.clients, matches)
	if i < 0 {
		writeJSON(w, http.StatusUnauthorized, map[string]string{"message": "API token invalid"})
		return
	}
	token := "tskey-api-" + randomText(20)
	c.tailnet.tokens[token] = c.tailnet.clients[i]
	writeJSON(w, http.StatusOK, map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": 3600, "scope": "auth_keys"})
}

func (c *control) serveMakeKey(w http.ResponseWriter, r *http.Request) {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if user, _, ok := r.BasicAuth(); ok {
		token = user
	}
	var in struct {
		Capabilities struct {
			Devices struct {
				Create struct {
					Reusable      bool     `json:"reusable"`
					Ephemeral     bool     `json:"ephemeral"`
					Preauthorized bool     `json:"preauthorized"`
					Tags          []string `json:"tags"`
				} `json:"create"`
			} `json:"devices"`
		} `json:"capabilities"`
	}
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&in)

	c.tailnet.mu.Lock()
	defer c.tailnet.mu.Unlock()
	client := c.tailnet.tokens[token]
	want := in.Capabilities.Devices.Create
	switch {
	case client == nil:
		writeJSON(w, http.StatusUnauthorized, map[string]string{"message": "API token invalid"})
	case err != nil:
		writeJSON(w, http.StatusBadRequest, map[string]string{"message": err.Error()})
	default:
		if words := (&authKey{tags: client.tags}).refuseTags(want.Tags); words != "" || len(want.Tags) == 0 {
			if words == "" {
				words = strings.Replace(refusedTags, "%s", "", 1)
			}
			writeJSON(w, http.StatusBadRequest, map[string]string{"message": words})
			return
		}
		k := c.tailnet.addKey(authKey{tags: want.Tags, reusable: want.Reusable, ephemeral: want.Ephemeral, preauthorized: want.Preauthorized})
		writeJSON(w, http.StatusOK, map[string]any{"id": k.id, "key": k.text(), "created": time.Now().UTC(), "capabilities": in.Capabilities})
	}
}
