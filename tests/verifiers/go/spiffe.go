package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
)

// spiffe validates JWT-SVIDs of the trust domain that is the tailnet of the issuer.
type spiffe struct {
	client    *http.Client
	keys      string
	domain    spiffeid.TrustDomain
	audiences []string
}

func newSPIFFE(issuer, authority string, audiences []string) (*spiffe, error) {
	client, err := clientTrusting(authority)
	if err != nil {
		return nil, err
	}
	s := &spiffe{client: client, audiences: audiences}
	if s.domain, err = domainOf(issuer); err != nil {
		return nil, err
	}
	document, err := s.get(issuer + "/.well-known/openid-configuration")
	if err != nil {
		return nil, err
	}
	var discovery struct {
		Keys string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(document, &discovery); err != nil {
		return nil, err
	}
	s.keys = discovery.Keys
	return s, nil
}

// domainOf is what stands behind the first label of the issuer's name.
func domainOf(issuer string) (spiffeid.TrustDomain, error) {
	parsed, err := url.Parse(issuer)
	if err != nil {
		return spiffeid.TrustDomain{}, err
	}
	host := parsed.Hostname()
	for i := range host {
		if host[i] == '.' {
			return spiffeid.TrustDomainFromString(host[i+1:])
		}
	}
	return spiffeid.TrustDomain{}, fmt.Errorf("%s names no tailnet", issuer)
}

func (s *spiffe) get(url string) ([]byte, error) {
	response, err := s.client.Get(url)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, response.Status)
	}
	return io.ReadAll(response.Body)
}

// The bundle is read for each token, as a source of bundles keeps it fresh.
func (s *spiffe) verify(_ context.Context, token string) (any, error) {
	keys, err := s.get(s.keys)
	if err != nil {
		return nil, err
	}
	bundle, err := jwtbundle.Parse(s.domain, keys)
	if err != nil {
		return nil, err
	}
	svid, err := jwtsvid.ParseAndValidate(token, bundle, s.audiences)
	if err != nil {
		return nil, err
	}
	return map[string]any{"id": svid.ID.String(), "audience": svid.Audience}, nil
}
