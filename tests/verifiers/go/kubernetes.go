package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	api "k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/install"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	authenticationcel "k8s.io/apiserver/pkg/authentication/cel"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/plugin/pkg/authenticator/token/oidc"
)

// The API server asks for the discovery document every 10 s until it has it.
const healthyWithin = 30 * time.Second

// kubernetes is what the API server makes of the first entry of --authentication-config.
type kubernetes struct {
	authenticator oidc.AuthenticatorTokenWithHealthCheck
}

func newKubernetes(ctx context.Context, file string) (*kubernetes, error) {
	config, err := readConfiguration(file)
	if err != nil {
		return nil, err
	}
	compiler := authenticationcel.NewDefaultCompiler()
	if err := validation.ValidateAuthenticationConfiguration(compiler, config, nil).ToAggregate(); err != nil {
		return nil, err
	}
	issuer := config.JWT[0].Issuer
	authority, err := dynamiccertificates.NewStaticCAContent("issuer", []byte(issuer.CertificateAuthority))
	if err != nil {
		return nil, err
	}
	made, err := oidc.New(ctx, oidc.Options{
		JWTAuthenticator:     config.JWT[0],
		CAContentProvider:    authority,
		Compiler:             compiler,
		SupportedSigningAlgs: oidc.AllValidSigningAlgorithms(),
	})
	if err != nil {
		return nil, err
	}
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		err := made.HealthCheck()
		if err == nil {
			return &kubernetes{made}, nil
		}
		if time.Since(began) > healthyWithin {
			return nil, err
		}
	}
}

func readConfiguration(file string) (*api.AuthenticationConfiguration, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	utilruntime.Must(api.AddToScheme(scheme))
	install.Install(scheme)
	// Strict, as in the API server: an unknown member is a mistake.
	codecs := serializer.NewCodecFactory(scheme, serializer.EnableStrict)
	read, err := runtime.Decode(codecs.UniversalDecoder(), text)
	if err != nil {
		return nil, err
	}
	config, ok := read.(*api.AuthenticationConfiguration)
	if !ok || len(config.JWT) == 0 {
		return nil, fmt.Errorf("%s has no issuer", file)
	}
	return config, nil
}

func (k *kubernetes) verify(ctx context.Context, token string) (any, error) {
	response, ok, err := k.authenticator.AuthenticateToken(ctx, token)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errors.New("no authenticator for this issuer")
	}
	return userOf(response), nil
}

func userOf(response *authenticator.Response) map[string]any {
	return map[string]any{
		"username": response.User.GetName(),
		"uid":      response.User.GetUID(),
		"groups":   response.User.GetGroups(),
		"extra":    response.User.GetExtra(),
	}
}
