// Verifies tokens as programs in Go do that are not ours: Kubernetes' API server, with its own
// authenticator, and go-spiffe. Logs people in with go-oidc.
//
//	verifiers kubernetes CONFIG
//	verifiers spiffe ISSUER CA_FILE AUDIENCE…
//	verifiers workload-api SOCKET AUDIENCE OTHER_AUDIENCE
//	verifiers login ISSUER CA_FILE CLIENT_ID SECRET REDIRECT_URI
//
// workload-api is a workload and reads no tokens: it gets one by the Workload API, and prints one
// line. login is a web application and reads no tokens either: it prints the address to which it
// sends the browser, reads the one at which the browser comes back, and prints what it learned.
//
// CONFIG is what the API server takes as --authentication-config.
// Each line of standard input is a token. Each line of standard output is what the library says of
// it, as JSON: {"accepted": …} or {"refused": "the library's own words"}. HTTPS_PROXY is the way to
// the issuer.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
)

// A verifier says whose token it is, in a form that can be shown as JSON.
type verifier interface {
	verify(ctx context.Context, token string) (any, error)
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "verifiers:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	ctx := context.Background()
	var v verifier
	var err error
	switch {
	case len(arguments) == 4 && arguments[0] == "workload-api":
		return useWorkloadAPI(arguments[1], arguments[2], arguments[3])
	case len(arguments) == 6 && arguments[0] == "login":
		return logIn(ctx, arguments[1], arguments[2], arguments[3], arguments[4], arguments[5])
	case len(arguments) == 2 && arguments[0] == "kubernetes":
		v, err = newKubernetes(ctx, arguments[1])
	case len(arguments) > 3 && arguments[0] == "spiffe":
		v, err = newSPIFFE(arguments[1], arguments[2], arguments[3:])
	default:
		err = fmt.Errorf("unknown arguments %q", arguments)
	}
	if err != nil {
		return err
	}
	answers := json.NewEncoder(os.Stdout)
	tokens := bufio.NewScanner(os.Stdin)
	tokens.Buffer(nil, 1<<20)
	for tokens.Scan() {
		answer := map[string]any{}
		if who, err := v.verify(ctx, tokens.Text()); err != nil {
			answer["refused"] = err.Error()
		} else {
			answer["accepted"] = who
		}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
	return tokens.Err()
}
