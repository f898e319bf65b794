// Certificates for the node's own names.
//
// The pair, its file names and the account are those of tsnet (feature/acme), so a state directory
// can be shared with it. The order is our own (acme.go says why).
//
// Invariants
//   - A pair that lasts long enough is given without the network, and before the node is running.
//   - A node makes one order at a time. A second call for the same name gets the pair of the first.
//   - Failed orders and waits asked for by the authority are kept in the node's state, so that no
//     number of calls or restarts orders more often than orderRecord allows.
//   - A failure never touches the pair in the state directory.

package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnlocal"
	"tailscale.com/util/dnsname"
)

const (
	maxCertMessage  = 64 << 10
	maxCertValidity = 10 * 365 * 24 * 3600 // seconds
)

// certLimits is how long an order as a whole may take, and each request to the authority. Control
// may wait for its DNS servers before it says that a record is published.
type certLimits struct{ order, request time.Duration }

var defaultCertLimits = certLimits{5 * time.Minute, time.Minute}

// certPair is a certificate with its key, which belong together.
type certPair struct {
	chain []byte // PEM, the leaf first
	key   []byte // PEM
	leaf  *x509.Certificate
}

// certFailure is why there is no certificate. See tailscale_cert in tailscale.h.
type certFailure struct {
	Code       Code   `json:"code"`
	Message    string `json:"message"`
	ACMEStatus *int   `json:"acme_status"`
	RetryAfter *int64 `json:"retry_after"` // seconds

	wait time.Duration // what RetryAfter is made of
}

func certFailuref(code Code, format string, args ...any) *certFailure {
	return &certFailure{Code: code, Message: fmt.Sprintf(format, args...)}
}

// withStatus and withWait set what is not zero.
func (f *certFailure) withStatus(status int) *certFailure {
	if status != 0 {
		f.ACMEStatus = &status
	}
	return f
}

func (f *certFailure) withWait(wait time.Duration) *certFailure {
	if f.wait = wait; wait > 0 {
		seconds := int64(math.Ceil(wait.Seconds()))
		f.RetryAfter = &seconds
	}
	return f
}

// Cert returns a descriptor on which a certificate for name arrives that is valid for so many
// seconds, or the reason why there is none.
func (n *Node) Cert(name []byte, minValidity int64) (int, *Error) {
	host, err := parseCertName(name)
	if err != nil {
		return -1, err
	}
	if minValidity < -maxCertValidity || minValidity > maxCertValidity {
		return -1, errorf(Invalid, "min_validity_s: must be between -%d and %d", maxCertValidity, maxCertValidity)
	}
	atLeast := time.Duration(minValidity) * time.Second
	lb, err := n.backend()
	if err != nil {
		return -1, err
	}
	r := &certRequest{
		node: n, lb: lb, store: newCertStore(n.store, lb.TailscaleVarRoot()), host: host, atLeast: atLeast, limits: defaultCertLimits,
	}
	return n.oneOutcome("certificate", r.limits.order, func(ctx context.Context, outcome socketEnd) {
		msg := certMessage(r.pair(ctx))
		if err := outcome.send(msg, nil); err != nil && ctx.Err() == nil {
			n.log.printf(levelError, "the certificate for %s could not be handed over: %v", host, err)
		}
	})
}

// certRequest is one call.
type certRequest struct {
	node    *Node
	lb      *ipnlocal.LocalBackend
	store   certStore
	host    string
	atLeast time.Duration
	limits  certLimits
}

func parseCertName(name []byte) (string, *Error) {
	if err := checkText("name", string(name), 254); err != nil {
		return "", err
	}
	host := strings.ToLower(fqdn(string(name)))
	if err := dnsname.ValidHostname(host); err != nil || !strings.Contains(host, ".") {
		return "", errorf(Invalid, "name: %q is not the full name of a node", host)
	}
	return host, nil
}

func certMessage(pair *certPair, failure *certFailure) []byte {
	var v any = failure
	if failure == nil {
		v = struct {
			Cert string `json:"cert"`
			Key  string `json:"key"`
		}{string(pair.chain), string(pair.key)}
	}
	msg, err := json.Marshal(v)
	if err != nil || len(msg) > maxCertMessage {
		msg, _ = json.Marshal(certFailuref(Internal, "the certificate chain is too long: %d bytes", len(msg)))
	}
	return msg
}

// pair gives the pair in the state directory if it lasts long enough, and orders one otherwise.
func (r *certRequest) pair(ctx context.Context) (pair *certPair, failure *certFailure) {
	defer func() {
		if p := recover(); p != nil {
			r.node.log.printf(levelError, "the order of a certificate panicked: %v\n%s", p, debug.Stack())
			pair, failure = nil, certFailuref(Panic, "the order of a certificate panicked: %v", p)
		}
	}()
	if pair, failure = r.keptPair(); failure != nil || pair.lasts(time.Now(), r.atLeast) {
		return pair, failure
	}
	if failure := r.mayOrder(); failure != nil {
		return nil, failure
	}
	select {
	case r.node.ordering <- struct{}{}:
		defer func() { <-r.node.ordering }()
	case <-ctx.Done():
		return nil, r.contextFailure(ctx, "waiting for another order")
	}
	if pair, failure = r.keptPair(); failure != nil || pair.lasts(time.Now(), r.atLeast) {
		return pair, failure // made by another call in the meantime
	}
	o := newCertOrder(r, pair)
	if failure := o.record.refusal(time.Now()); failure != nil {
		return nil, failure
	}
	return o.run(ctx)
}

// mayOrder checks that the control server will publish the DNS record for this name.
func (r *certRequest) mayOrder() *certFailure {
	nm := r.lb.NetMapNoPeers()
	if s := r.lb.State(); s != ipn.Running || nm == nil {
		return certFailuref(BadState, "a certificate for %s cannot be ordered yet: the node's state is %v, not Running", r.host, s)
	}
	domains := nm.DNS.CertDomains
	if len(domains) == 0 {
		return certFailuref(NoHTTPS, "HTTPS is not enabled in this tailnet: "+
			"enable \"HTTPS Certificates\" on the DNS page of the admin console (https://login.tailscale.com/admin/dns)")
	}
	if !slices.Contains(domains, r.host) {
		return certFailuref(Invalid, "%s is not a name of this node, which can have a certificate for %s", r.host, strings.Join(domains, ", "))
	}
	return nil
}

// contextFailure says how the context ended, and during what.
func (r *certRequest) contextFailure(ctx context.Context, step string) *certFailure {
	if r.node.ctx.Err() != nil {
		return &certFailure{Code: errClosed.Code, Message: errClosed.Message}
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return certFailuref(Timeout, "there was no certificate after %v; the time ended while %s", r.limits.order, step)
	}
	return certFailuref(Canceled, "the request for a certificate was canceled")
}

// keptPair returns the pair in the store, or nil if there is none that works.
func (r *certRequest) keptPair() (*certPair, *certFailure) {
	chain, key, err := r.store.pair(r.host)
	if err != nil {
		return nil, certFailuref(IO, "the certificate for %s in the node's state cannot be read: %v", r.host, err)
	}
	if chain == nil {
		return nil, nil
	}
	pair, err := newCertPair(r.host, chain, key)
	if err != nil {
		r.node.log.printf(levelWarn, "the certificate for %s in the node's state is not used: %v", r.host, err)
		return nil, nil
	}
	return pair, nil
}

func newCertPair(host string, chain, key []byte) (*certPair, error) {
	c, err := tls.X509KeyPair(chain, key) // also checks that they belong together
	if err != nil {
		return nil, err
	}
	if err := c.Leaf.VerifyHostname(host); err != nil {
		return nil, err
	}
	return &certPair{chain, key, c.Leaf}, nil
}

// lasts reports whether the certificate is valid for atLeast from now on. No more than two thirds
// of its life are asked for, because a short-lived one would otherwise be replaced at each call.
// That it may not be valid yet is not checked: then the clock is wrong, and another certificate
// would not be better.
func (p *certPair) lasts(now time.Time, atLeast time.Duration) bool {
	if p == nil {
		return false
	}
	life := p.leaf.NotAfter.Sub(p.leaf.NotBefore)
	return p.leaf.NotAfter.Sub(now) >= min(atLeast, life*2/3)
}
