// Login as a federated identity: an ID token of an outside issuer is traded for an access token of
// the control server's API, and that one for an auth key.
//
// tsnet's feature/identityfederation does the same, but it links the AWS SDK for Go, which was 2.2
// MB of the program, only to ask AWS for an ID token. The program asks with the SDK that it has
// already (crates/tailnet/src/id_token.rs). Its answer comes over the socket that the configuration
// names, and only if the node has no login in its state.
//
// Invariants: no error contains a token; every wait ends when the node is closed.

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/sys/unix"
	"tailscale.com/client/tailscale"
)

// Limit for each of the two requests.
const maxExchange = 10 * time.Second

// Limit for the message that contains an ID token, in bytes.
const maxIDTokenMessage = maxIDToken + 1<<10

func init() {
	tailscale.I_Acknowledge_This_API_Is_Unstable = true
}

// federatedKey gets an auth key for the federated identity of the configuration.
func (n *Node) federatedKey() (string, error) {
	if len(n.cfg.Tags) == 0 {
		return "", errors.New("a federated identity requires tags")
	}
	clientID, ephemeral, preauthorized, err := clientAttributes(n.cfg.ClientID)
	if err != nil {
		return "", fmt.Errorf("client_id: %w", err)
	}
	idToken := n.cfg.IDToken
	if idToken == "" {
		if idToken, err = n.idTokens.ask(n.ctx); err != nil {
			return "", fmt.Errorf("no ID token for the audience %q: %w", n.cfg.Audience, err)
		}
	}
	access, err := exchangeIDToken(n.ctx, n.cfg.ControlURL, clientID, idToken)
	if err != nil {
		return "", err
	}
	api := tailscale.NewClient("-", tailscale.APIKey(access))
	api.BaseURL = n.cfg.ControlURL
	api.UserAgent = "tailbone"
	api.HTTPClient = &http.Client{Timeout: maxExchange}
	var caps tailscale.KeyCapabilities
	caps.Devices.Create.Ephemeral = ephemeral
	caps.Devices.Create.Preauthorized = preauthorized
	caps.Devices.Create.Tags = n.cfg.Tags
	key, _, err := api.CreateKey(n.ctx, caps)
	if err != nil {
		return "", fmt.Errorf("creating an auth key: %w", err)
	}
	if key == "" {
		return "", errors.New("creating an auth key: the control server's answer contains none")
	}
	return key, nil
}

// clientAttributes splits "ID?ephemeral=BOOL&preauthorized=BOOL". An ID alone stands for an
// ephemeral node; as soon as one attribute is named, each that is absent is false.
func clientAttributes(text string) (id string, ephemeral, preauthorized bool, err error) {
	id, attributes, found := strings.Cut(text, "?")
	if !found {
		return id, true, false, nil
	}
	values, err := url.ParseQuery(attributes)
	if err != nil {
		return "", false, false, err
	}
	for name := range values {
		var into *bool
		switch name {
		case "ephemeral":
			into = &ephemeral
		case "preauthorized":
			into = &preauthorized
		default:
			return "", false, false, fmt.Errorf("unknown attribute %q", name)
		}
		if *into, err = strconv.ParseBool(values.Get(name)); err != nil {
			return "", false, false, fmt.Errorf("%s must be true or false", name)
		}
	}
	return id, ephemeral, preauthorized, nil
}

// exchangeIDToken trades an ID token for an access token. crates/tailnet/src/join.rs tells by the
// text of the error whether trying again is of use.
func exchangeIDToken(ctx context.Context, base, clientID, idToken string) (string, error) {
	ctx = context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Timeout: maxExchange})
	exchange := oauth2.Config{Endpoint: oauth2.Endpoint{TokenURL: base + "/api/v2/oauth/token-exchange"}}
	token, err := exchange.Exchange(ctx, "",
		oauth2.SetAuthURLParam("client_id", clientID),
		oauth2.SetAuthURLParam("jwt", idToken))
	var refused *oauth2.RetrieveError
	switch {
	case errors.As(err, &refused):
		return "", fmt.Errorf("token exchange failed with status %d: %s", refused.Response.StatusCode, refused.Body)
	case err != nil:
		return "", fmt.Errorf("token exchange: %w", err)
	}
	return token.AccessToken, nil
}

// idTokens is the socket on which the program hands out an ID token; its file is nil if there is
// none.
type idTokens struct{ file *os.File }

// newIDTokens duplicates the caller's descriptor, 0 for none.
func newIDTokens(fd int) (idTokens, *Error) {
	if fd == 0 {
		return idTokens{}, nil
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return idTokens{}, errorf(Invalid, "id_token_fd: %d is not an open descriptor", fd)
	}
	if err := unix.SetNonblock(own, true); err != nil {
		unix.Close(own)
		return idTokens{}, errorf(Invalid, "id_token_fd: %v", err)
	}
	return idTokens{os.NewFile(uintptr(own), "id-token")}, nil
}

func (t idTokens) close() {
	if t.file != nil {
		t.file.Close()
	}
}

// ask sends one byte and reads the answer up to its end.
func (t idTokens) ask(ctx context.Context) (string, error) {
	if t.file == nil {
		return "", errors.New("the program offers none")
	}
	stop := context.AfterFunc(ctx, t.close)
	defer stop()
	if _, err := t.file.Write([]byte{0}); err != nil {
		return "", err
	}
	raw, err := io.ReadAll(io.LimitReader(t.file, maxIDTokenMessage))
	if err != nil {
		return "", err
	}
	var answer struct {
		IDToken string `json:"id_token"`
		Error   string `json:"error"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return "", errors.New("the program's answer is not what it should be")
	}
	if answer.IDToken == "" {
		return "", errors.New(answer.Error)
	}
	return answer.IDToken, nil
}
