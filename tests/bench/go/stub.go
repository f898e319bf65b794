// What the program talks to in a run, on loopback: a backend for the reverse proxy, an issuer with
// its keys, and a token endpoint for the exchange. It answers as fast as net/http does and checks
// nothing, since it is not what is measured.
package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"time"
)

func stub(args []string) error {
	if err := parse(flag.NewFlagSet("stub", flag.ContinueOnError), args); err != nil {
		return err
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	url := "http://" + listener.Addr().String()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	token, err := jwt(key, map[string]any{
		"iss": url, "sub": "bench", "aud": "bench",
		"iat": time.Now().Unix(), "exp": time.Now().Add(12 * time.Hour).Unix(),
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/jwks", constant(map[string]any{"keys": []any{map[string]any{
		"kty": "RSA", "kid": "bench", "alg": "RS256", "use": "sig",
		"n": base64.RawURLEncoding.EncodeToString(key.N.Bytes()),
		"e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(key.E)).Bytes()),
	}}}))
	mux.HandleFunc("/token", constant(map[string]any{
		"access_token": "tskey-api-bench", "token_type": "Bearer", "expires_in": 3600, "scope": "acls",
	}))
	bodies := constants(4096)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(bodies[r.URL.Path])
	})
	go func() {
		fmt.Fprintln(os.Stderr, http.Serve(listener, mux))
	}()
	if err := say(map[string]any{"url": url, "jwt": token}); err != nil {
		return err
	}
	untilClosed()
	return nil
}

func constant(value any) http.HandlerFunc {
	body, _ := json.Marshal(value)
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	}
}

func jwt(key *rsa.PrivateKey, claims map[string]any) (string, error) {
	body, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	message := encode([]byte(`{"alg":"RS256","kid":"bench","typ":"JWT"}`)) + "." + encode(body)
	sum := sha256.Sum256([]byte(message))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		return "", err
	}
	return message + "." + encode(signature), nil
}
