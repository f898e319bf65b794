// An order of a certificate at an ACME authority (RFC 8555): Let's Encrypt, or the directory that
// TS_DEBUG_ACME_DIRECTORY_URL names. The control server publishes the DNS record that proves whose
// name it is.
//
// tsnet can order (LocalBackend.GetCertPEM), and we use its ACME client, account and files. The
// steps are our own, because those of tailscale.com v1.102.5
//   - repeat a request that was refused (429, 5xx) inside of the call until its context ends, so
//     that nobody learns about a limit;
//   - first try tls-alpn-01 when a name of Funnel is renewed, which needs a listener that answers;
//     a failed validation counts against the authority's limits. Here all orders use dns-01, which
//     needs no listener;
//   - repeat an order that is refused because of the certificate that it replaces, until that one
//     has expired (tailscale/tailscale#18251);
//   - may wait 5 s for the authority before they give a kept pair.
//
// This file can go when none of these is true any more.

package node

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"tailscale.com/envknob"
	"tailscale.com/net/tlsdial"
	"tailscale.com/tempfork/acme"
)

const (
	maxACMEBody = 1 << 20

	// Requests that failed for a reason that may pass are repeated so often, and only if the
	// authority does not ask for a longer wait. A nonce that was used up is no failure.
	maxRepeats   = 2
	repeatAfter  = time.Second
	maxRepeat    = 5 * time.Second
	maxBadNonces = 10

	// How long to wait after a 429 that does not say how long.
	defaultRateLimitWait = time.Hour
)

type certOrder struct {
	*certRequest
	previous  *certPair // nil if there is none
	directory string
	authority string // host of directory, for messages
	record    orderRecord
	client    *acme.Client
	step      string // what goes on, for messages
}

func newCertOrder(r *certRequest, previous *certPair) *certOrder {
	o := &certOrder{certRequest: r, previous: previous}
	if o.directory = envknob.String("TS_DEBUG_ACME_DIRECTORY_URL"); o.directory == "" {
		o.directory = acme.LetsEncryptURL
	}
	o.authority = o.directory
	if u, err := url.Parse(o.directory); err == nil && u.Host != "" {
		o.authority = u.Host
	}
	o.record = readOrderRecord(r.node.orderState(), r.host, o.directory)
	return o
}

// run orders a certificate, keeps it and returns it.
func (o *certOrder) run(ctx context.Context) (*certPair, *certFailure) {
	pair, err := o.order(ctx)
	if err != nil {
		failure := o.failure(ctx, err)
		o.node.log.printf(levelWarn, "certificate for %s: %s", o.host, failure.Message)
		if o.record.fail(failure, time.Now()) {
			o.writeRecord()
		}
		return nil, failure
	}
	if err := o.store.setPair(o.host, pair.chain, pair.key); err != nil {
		o.node.log.printf(levelError, "the new certificate for %s could not be kept, and will be ordered again at the next start: %v", o.host, err)
	}
	o.node.log.printf(levelInfo, "a certificate for %s was issued; it is valid until %s", o.host, pair.leaf.NotAfter.UTC().Format(time.RFC3339))
	if pair.lasts(time.Now(), o.atLeast) {
		o.record.succeed(time.Now())
	} else {
		// The next call would order again. This goes on being counted as a failure.
		o.record.Why = fmt.Sprintf("the new certificate is valid until %s only; is the clock right?", pair.leaf.NotAfter.UTC().Format(time.RFC3339))
		o.node.log.printf(levelWarn, "certificate for %s: %s", o.host, o.record.Why)
	}
	o.writeRecord()
	return pair, nil
}

func (o *certOrder) writeRecord() error {
	err := o.record.write(o.node.orderState(), o.host)
	if err != nil {
		o.node.log.printf(levelWarn, "the outcome of the order for %s could not be kept: %v", o.host, err)
	}
	return err
}

// stateError is an error of the node's own state.
type stateError struct{ error }

func (e stateError) Unwrap() error { return e.error }

// dnsError is the control server's refusal to publish the record.
type dnsError struct{ error }

func (e dnsError) Unwrap() error { return e.error }

func (o *certOrder) order(ctx context.Context) (*certPair, error) {
	account, err := o.accountKey()
	if err != nil {
		return nil, stateError{fmt.Errorf("the key of the ACME account: %w", err)}
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = tlsdial.Config(o.lb.HealthTracker(), transport.TLSClientConfig)
	defer transport.CloseIdleConnections()
	o.client = &acme.Client{
		Key:          account,
		DirectoryURL: o.directory,
		UserAgent:    "tailbone tsnet/" + tsnetVersion(),
		HTTPClient:   &http.Client{Transport: limitedTransport{transport}, Timeout: o.limits.request},
		RetryBackoff: repeatRequest,
	}

	o.step = "fetching the directory"
	dir, err := o.client.Discover(ctx)
	if err != nil {
		return nil, err
	}
	o.step = "registering the account"
	if _, err := o.client.Register(ctx, &acme.Account{}, acme.AcceptTOS); err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return nil, err
	}

	// Counted before it is made: a crash must not hide it. If that cannot be written, neither can
	// the certificate.
	o.record.begin(time.Now())
	if err := o.writeRecord(); err != nil {
		return nil, stateError{err}
	}
	o.step = "ordering the certificate"
	order, err := o.authorize(ctx, dir)
	if err != nil {
		return nil, err
	}
	for _, u := range order.AuthzURLs {
		if err := o.prove(ctx, u); err != nil {
			return nil, err
		}
	}
	o.step = "validating the name"
	ready, err := o.client.WaitOrder(ctx, order.URI)
	if err != nil {
		return nil, o.validationError(ctx, order, err)
	}

	o.step = "issuing the certificate"
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	// Without a common name, which may have 64 bytes at most: authorities take the alternative
	// name.
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{o.host}}, key)
	if err != nil {
		return nil, err
	}
	chain, _, err := o.client.CreateOrderCert(ctx, ready.FinalizeURL, csr, true)
	if err != nil {
		return nil, err
	}
	var chainPEM []byte
	for _, der := range chain {
		chainPEM = append(chainPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	pair, err := newCertPair(o.host, chainPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("the authority issued another certificate than was ordered: %w", err)
	}
	return pair, nil
}

// authorize makes the order. It names the certificate that it replaces, because renewals are exempt
// from some limits of the authority. If the authority does not accept that (the account is another
// one, or an earlier renewal was lost after it was issued), it orders without.
func (o *certOrder) authorize(ctx context.Context, dir acme.Directory) (*acme.Order, error) {
	id := acme.DomainIDs(o.host)
	if p := o.previous; p == nil || dir.RenewalInfoURL == "" || len(p.leaf.AuthorityKeyId) == 0 || !p.lasts(time.Now(), 0) {
		return o.client.AuthorizeOrder(ctx, id)
	}
	order, err := o.client.AuthorizeOrder(ctx, id, acme.WithOrderReplacesCert(o.previous.leaf))
	var refused *acme.Error
	if errors.As(err, &refused) && strings.Contains(strings.ToLower(refused.ProblemType+" "+refused.Detail), "replace") {
		return o.client.AuthorizeOrder(ctx, id)
	}
	return order, err
}

// prove has the DNS record of an authorization published and the authority look at it.
func (o *certOrder) prove(ctx context.Context, authorization string) error {
	a, err := o.client.GetAuthorization(ctx, authorization)
	if err != nil {
		return err
	}
	if a.Status == acme.StatusValid {
		return nil // from an earlier order
	}
	for _, c := range a.Challenges {
		if c.Type != "dns-01" {
			continue
		}
		value, err := o.client.DNS01ChallengeRecord(c.Token)
		if err != nil {
			return err
		}
		o.step = "publishing the DNS record"
		if err := o.lb.SetDNS(ctx, "_acme-challenge."+a.Identifier.Value, value); err != nil {
			return dnsError{err}
		}
		o.step = "validating the name"
		_, err = o.client.Accept(ctx, c)
		return err
	}
	return errors.New("the authority does not offer dns-01")
}

// validationError finds out why the authority has given up an order.
func (o *certOrder) validationError(ctx context.Context, order *acme.Order, err error) error {
	var failed *acme.OrderError
	if !errors.As(err, &failed) {
		return err
	}
	for _, u := range order.AuthzURLs {
		a, err := o.client.GetAuthorization(ctx, u)
		if err != nil {
			break
		}
		for _, c := range a.Challenges {
			if why := new(acme.Error); errors.As(c.Error, &why) {
				return why
			}
		}
	}
	if failed.Problem != nil {
		return failed.Problem
	}
	return err
}

// failure says in one sentence why an order has failed.
func (o *certOrder) failure(ctx context.Context, err error) *certFailure {
	if ctx.Err() != nil {
		return o.contextFailure(ctx, o.step)
	}
	var (
		state   stateError
		dns     dnsError
		refused *acme.Error
		network *url.Error
	)
	switch {
	case errors.As(err, &state):
		return certFailuref(IO, "the node's state cannot be used: %v", err)
	case errors.As(err, &dns):
		code := Unreachable
		if strings.Contains(err.Error(), "set-dns response") {
			code = Refused // it answered
		}
		return certFailuref(code, "the control server did not publish the DNS record for the certificate: %s", singleLine(err.Error()))
	case errors.As(err, &refused):
		wait, limit := retryAfter(refused.Header, time.Now()), ""
		if refused.StatusCode == http.StatusTooManyRequests {
			limit = " (rate limit)"
			if wait == 0 {
				wait = defaultRateLimitWait
			}
		}
		return certFailuref(ACME, "the certificate authority %s answered %d%s while %s: %s",
			o.authority, refused.StatusCode, limit, o.step, singleLine(refused.Detail)).
			withStatus(refused.StatusCode).withWait(wait)
	case errors.As(err, &network) && network.Timeout():
		return certFailuref(Timeout, "the certificate authority %s did not answer within %v while %s", o.authority, o.limits.request, o.step)
	case errors.As(err, &network):
		return certFailuref(Unreachable, "the certificate authority %s cannot be reached: %s", o.authority, singleLine(network.Err.Error()))
	}
	return certFailuref(ACME, "the certificate authority %s gave an answer that makes no sense while %s: %s", o.authority, o.step, singleLine(err.Error()))
}

// singleLine makes foreign text fit for a message.
func singleLine(s string) string {
	return truncate(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, s), 300)
}

// repeatRequest says how long to wait before a request is repeated, 0 for not at all. The client
// asks after a nonce that was used up (400), a 429, a 5xx, and other answers that it does not know.
func repeatRequest(n int, _ *http.Request, res *http.Response) time.Duration {
	switch {
	case res.StatusCode == http.StatusBadRequest && n <= maxBadNonces:
		return time.Millisecond
	case res.StatusCode >= 500 && n <= maxRepeats:
		wait := max(retryAfter(res.Header, time.Now()), repeatAfter)
		if wait <= maxRepeat {
			return wait
		}
	}
	return 0
}

// retryAfter returns how long an answer asks to wait, 0 if it does not.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if seconds, err := strconv.ParseInt(v, 10, 32); err == nil {
		return max(time.Duration(seconds)*time.Second, 0)
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}

// limitedTransport cuts bodies that are longer than any of ACME.
type limitedTransport struct{ http.RoundTripper }

func (t limitedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := t.RoundTripper.RoundTrip(r)
	if err == nil {
		res.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(res.Body, maxACMEBody), res.Body}
	}
	return res, err
}

// accountKey reads the key of the ACME account, or makes one.
func (o *certOrder) accountKey() (crypto.Signer, error) {
	text, err := o.store.accountKey()
	if err != nil {
		return nil, err
	}
	if text != nil {
		return decodeKey(text)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if text, err = encodeKey(key); err != nil {
		return nil, err
	}
	return key, o.store.setAccountKey(text)
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// decodeKey decodes an account's key in each form that tsnet reads.
func decodeKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("it is not PEM; remove it, and another account will be made")
	}
	if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
	}
	return nil, errors.New("it is not a private key; remove it, and another account will be made")
}
