package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// useWorkloadAPI is a workload: it gets an SVID for the audience from the socket, checks it with
// the keys that the API hands out, and lets the API check it, for the audience and for another one.
func useWorkloadAPI(socket, audience, other string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+socket))
	if err != nil {
		return err
	}
	defer client.Close()
	svid, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return err
	}
	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return err
	}
	parsed, err := jwtsvid.ParseAndValidate(svid.Marshal(), bundles, []string{audience})
	if err != nil {
		return fmt.Errorf("with the keys of the API: %w", err)
	}
	validated, err := client.ValidateJWTSVID(ctx, svid.Marshal(), audience)
	if err != nil {
		return fmt.Errorf("by the API: %w", err)
	}
	said := map[string]any{
		"id":        parsed.ID.String(),
		"audience":  parsed.Audience,
		"validated": validated.ID.String(),
		"keys":      0,
	}
	var domains []string
	for _, bundle := range bundles.Bundles() {
		domains = append(domains, bundle.TrustDomain().Name())
		said["keys"] = len(bundle.JWTAuthorities())
	}
	said["domains"] = domains
	if _, err := client.ValidateJWTSVID(ctx, svid.Marshal(), other); err != nil {
		said["refused"] = err.Error()
	}
	return json.NewEncoder(os.Stdout).Encode(said)
}
