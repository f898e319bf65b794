// Access to the backend inside tsnet, as one of its extensions.
//
// tsnet keeps its LocalBackend private, and its LocalAPI would add an in-memory HTTP exchange and
// JSON to each WhoIs. But every LocalBackend passes itself to each registered extension when it is
// made, and an extension may hook into its notifications. So we register one extension for the
// process. It finds its node by the state store, which we gave to tsnet.
//
// The hook runs under the backend's lock, after the change that it reports and before anybody can
// ask about it. Unlike a bus watcher it cannot fall behind and be cut off. It must not call back
// into the backend.

package node

import (
	"fmt"
	"sync"

	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnext"
	"tailscale.com/ipn/ipnlocal"
	tslogger "tailscale.com/types/logger"
	"tailscale.com/wgengine/netstack"
)

const extensionName = "tailbone"

var nodesByStore sync.Map // ipn.StateStore -> *Node

func registerStore(st ipn.StateStore, n *Node) { nodesByStore.Store(st, n) }
func unregisterStore(st ipn.StateStore)        { nodesByStore.Delete(st) }

func init() { ipnext.RegisterExtension(extensionName, newExtension) }

func newExtension(_ tslogger.Logf, sb ipnext.SafeBackend) (ipnext.Extension, error) {
	n, ok := nodesByStore.Load(sb.Sys().StateStore.Get())
	if !ok {
		return nil, ipnext.SkipExtension // not one of ours
	}
	lb, ok := sb.(*ipnlocal.LocalBackend)
	if !ok {
		return nil, fmt.Errorf("the backend is a %T", sb)
	}
	// The netstack exists at this point; peers do not yet.
	ns, ok := sb.Sys().Netstack.Get().(*netstack.Impl)
	if !ok || !stackFieldKnown {
		return nil, fmt.Errorf("the node's netstack (%T) is not made as this build expects", sb.Sys().Netstack.Get())
	}
	tun := sb.Sys().Tun.Get()
	collectOneFlowAtATime(tun)
	endTimeWaitOnSyn(tun, ns)
	n.(*Node).funnel.letIngressPass(tun)
	n.(*Node).lb.Store(lb)
	return &extension{n.(*Node)}, nil
}

type extension struct{ node *Node }

func (e *extension) Name() string    { return extensionName }
func (e *extension) Shutdown() error { return nil }

func (e *extension) Init(h ipnext.Host) error {
	h.Hooks().MutateNotifyLocked.Add(e.node.onNotify)
	e.node.funnel.announcePeerAPI(h)
	return nil
}

// onNotify sees every notification of the backend. It changes none.
func (n *Node) onNotify(nt *ipn.Notify) {
	if nt.ErrMessage != nil {
		n.lastErrors.setError(*nt.ErrMessage)
	}
	if nt.LoginFinished != nil || nt.State != nil && *nt.State == ipn.Running {
		n.lastErrors.setError("")
		n.lastErrors.setControl("")
	}
	if mayChangeIdentity(nt) {
		n.gen.bump()
		n.funnel.mayHaveChanged()
	}
	if nt.State != nil && *nt.State == ipn.Running || nt.SelfChange != nil || len(nt.PeersChanged) > 0 || len(nt.PeerChangedPatch) > 0 {
		if n.cfg.GreetMax > 0 {
			n.greet.noteChanges(nt)
		}
	}
	n.changed()
}

// mayChangeIdentity reports whether an answer of WhoIs may differ after this notification. It may
// not after counters, health, and narrow patches of a peer (online, last seen, home relay,
// endpoints: see ipn.Notify). Everything else counts, also what a later tsnet may add, and the
// empty notification of a map without a self node.
func mayChangeIdentity(nt *ipn.Notify) bool {
	relevant := nt.State != nil || nt.SelfChange != nil || nt.NetMap != nil || nt.Prefs != nil || nt.LoginFinished != nil ||
		nt.ErrMessage != nil || len(nt.PeersChanged) > 0 || len(nt.PeersRemoved) > 0 || len(nt.UserProfiles) > 0
	irrelevant := nt.Engine != nil || nt.Health != nil || len(nt.PeerChangedPatch) > 0 || len(nt.PeerState) > 0 ||
		nt.SuggestedExitNode != nil || nt.ClientVersion != nil
	return relevant || !irrelevant
}
