package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

// application logs people in with go-oidc.
type application struct {
	provider *oidc.Provider
	config   oauth2.Config
}

// logIn prints the address to which the application sends the browser, reads the address at which
// the browser comes back, and prints what the application learned.
func logIn(ctx context.Context, issuer, authority, id, secret, redirectURI string) error {
	client, err := clientTrusting(authority)
	if err != nil {
		return err
	}
	ctx = oidc.ClientContext(ctx, client)
	provider, err := oidc.NewProvider(ctx, issuer)
	if err != nil {
		return err
	}
	app := application{provider, oauth2.Config{
		ClientID:     id,
		ClientSecret: secret,
		Endpoint:     provider.Endpoint(),
		RedirectURL:  redirectURI,
		Scopes:       []string{oidc.ScopeOpenID, "email", "profile"},
	}}
	const state, nonce = "go-state", "go-nonce"
	verifier := oauth2.GenerateVerifier()
	address := app.config.AuthCodeURL(state, oidc.Nonce(nonce), oauth2.S256ChallengeOption(verifier))
	answers := json.NewEncoder(os.Stdout)
	answers.SetEscapeHTML(false)
	if err := answers.Encode(map[string]string{"authorize": address}); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	if !lines.Scan() {
		return errors.New("the browser does not come back")
	}
	back, err := url.Parse(lines.Text())
	if err != nil {
		return err
	}
	answer := back.Query()
	if answer.Get("state") != state {
		return fmt.Errorf("the answer %s is to another request", back)
	}
	token, err := app.config.Exchange(ctx, answer.Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		return err
	}
	verified, claims, err := app.verified(ctx, token)
	if err != nil {
		return err
	}
	if verified.Nonce != nonce {
		return fmt.Errorf("the nonce is %q", verified.Nonce)
	}
	if err := verified.VerifyAccessToken(token.AccessToken); err != nil {
		return err
	}
	info, err := provider.UserInfo(ctx, oauth2.StaticTokenSource(token))
	if err != nil {
		return err
	}
	var told map[string]any
	if err := info.Claims(&told); err != nil {
		return err
	}
	// Without an access token it takes a new one.
	again, err := app.config.TokenSource(ctx, &oauth2.Token{RefreshToken: token.RefreshToken}).Token()
	if err != nil {
		return err
	}
	_, refreshed, err := app.verified(ctx, again)
	if err != nil {
		return err
	}
	return answers.Encode(map[string]any{"claims": claims, "userinfo": told, "refreshed": refreshed})
}

// verified is the ID token that came with an access token, and all its claims.
func (app *application) verified(ctx context.Context, token *oauth2.Token) (*oidc.IDToken, map[string]any, error) {
	raw, there := token.Extra("id_token").(string)
	if !there {
		return nil, nil, errors.New("no ID token")
	}
	verifier := app.provider.Verifier(&oidc.Config{ClientID: app.config.ClientID})
	verified, err := verifier.Verify(ctx, raw)
	if err != nil {
		return nil, nil, err
	}
	var claims map[string]any
	err = verified.Claims(&claims)
	return verified, claims, err
}

// clientTrusting finds its way by HTTPS_PROXY, and trusts the authority of this file.
func clientTrusting(authority string) (*http.Client, error) {
	roots, err := os.ReadFile(authority)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return nil, fmt.Errorf("%s has no certificate", authority)
	}
	transport := &http.Transport{
		Proxy:           http.ProxyFromEnvironment,
		TLSClientConfig: &tls.Config{RootCAs: pool},
	}
	return &http.Client{Transport: transport}, nil
}
