// What is remembered about the orders for one name, so that failing ones do not reach the limits of
// the authority, whatever happens in between. Let's Encrypt allows five failed validations of a
// name in an hour.
//
// Invariants: everything depends on the time that is passed. A record of another directory, or of a
// clock that ran ahead, is as good as none.

package node

import (
	"encoding/json"
	"time"

	"tailscale.com/ipn"
)

// orderWaits is how long no order is made after so many have failed, one after the other.
var orderWaits = []time.Duration{0, 10 * time.Second, time.Minute, 5 * time.Minute, 30 * time.Minute, time.Hour}

const (
	maxOrderWait = 8 * 24 * time.Hour // above the longest that Let's Encrypt asks for, a week
	maxClockStep = time.Hour
)

// orderRecord is what the node's state holds for a name. Times are in seconds.
type orderRecord struct {
	Directory string `json:"directory"`
	Failures  int    `json:"failures"` // since the last certificate
	Last      int64  `json:"last"`     // when the record changed
	Until     int64  `json:"until"`    // when the authority allows the next order; 0 if it has not said
	Code      Code   `json:"code"`     // of the last failure, as are the next two
	Status    int    `json:"status"`
	Why       string `json:"why"`

	begun bool // by this attempt
}

func orderRecordKey(host string) ipn.StateKey { return ipn.StateKey("_tailbone-cert-" + host) }

func readOrderRecord(st ipn.StateStore, host, directory string) orderRecord {
	var r orderRecord
	if raw, err := st.ReadState(orderRecordKey(host)); err == nil {
		if json.Unmarshal(raw, &r) != nil || r.Directory != directory || r.Failures < 0 {
			r = orderRecord{}
		}
	}
	r.Directory = directory
	return r
}

func (r *orderRecord) write(st ipn.StateStore, host string) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return st.WriteState(orderRecordKey(host), raw)
}

// begin counts an order as failed until succeed is called.
func (r *orderRecord) begin(now time.Time) {
	r.begun = true
	r.Failures++
	r.Last, r.Until = now.Unix(), 0
	r.Code, r.Status, r.Why = Canceled, 0, "the last order was interrupted"
}

// fail records why an attempt failed. It returns false if there is nothing to remember: the attempt
// was interrupted, or no order was made and the authority did not ask to wait.
func (r *orderRecord) fail(f *certFailure, now time.Time) bool {
	if f.Code == Canceled || f.Code == Closed || !r.begun && f.wait == 0 {
		return false
	}
	r.Last = now.Unix()
	r.Until = 0
	if f.wait > 0 {
		r.Until = now.Add(min(f.wait, maxOrderWait)).Unix()
	}
	r.Code, r.Status, r.Why = f.Code, 0, f.Message
	if f.ACMEStatus != nil {
		r.Status = *f.ACMEStatus
	}
	return true
}

func (r *orderRecord) succeed(now time.Time) {
	*r = orderRecord{Directory: r.Directory, Last: now.Unix()}
}

// refusal returns why no order may be made yet, or nil.
func (r *orderRecord) refusal(now time.Time) *certFailure {
	last := time.Unix(r.Last, 0)
	if last.Sub(now) > maxClockStep {
		return nil
	}
	until := last.Add(orderWaits[min(r.Failures, len(orderWaits)-1)])
	if told := time.Unix(r.Until, 0); r.Until != 0 && told.After(until) {
		until = told
	}
	wait := min(until.Sub(now), maxOrderWait)
	if wait <= 0 {
		return nil
	}
	f := certFailuref(r.Code, "the next order of a certificate waits for %v: %s", wait.Round(time.Second), r.Why)
	return f.withStatus(r.Status).withWait(wait)
}
