/* The C ABI of the tailnet node that is embedded in the program: tsnet behind a few calls.
 *
 * This file is the truth for both sides: the Go exports include it, so the compiler refuses a signature that differs, and
 * the Rust declarations are generated from it.
 *
 * Rules that hold for every call
 *  - A call returns a tailscale_code. On success `out` (where there is one) holds the result; on failure it holds
 *    the error's words (UTF-8, no NUL end). Nothing is kept in a shared "last error".
 *  - A tailscale_buf is allocated by the callee with malloc and given away; free it with tailscale_buf_free.
 *    A call always sets *out (data NULL, len 0 when there is nothing to say). `out` may be NULL: words are dropped.
 *    What it held before is not freed. Other out-parameters are set to 0 (descriptors: -1) on failure.
 *  - Input strings are (pointer, length); never NUL-ended. pointer may be NULL only when length is 0.
 *    They are copied before the call returns.
 *  - Every exported function recovers from panics: code TAILSCALE_PANIC with the panic's words.
 *  - No call waits for the network. EVERY WAIT IS A DESCRIPTOR: watch, listen and dial return at once with a
 *    SOCK_SEQPACKET unix socket on which messages arrive; closing that descriptor cancels the wait and frees all that
 *    hangs on it on the Go side, but for accepted connections (see tailscale_program). These sockets and those of
 *    dialled connections are close-on-exec (receive with MSG_CMSG_CLOEXEC) and already non-blocking; O_NONBLOCK of a
 *    descriptor that we gave belongs to the receiver.
 *    Exceptions, bounded by their argument or by this text: tailscale_start (local work only),
 *    tailscale_logout (timeout_ms), tailscale_close (at most 5.5 s).
 *  - A handle is a number that is never reused in a process, and never 0; a closed or unknown one gives TAILSCALE_CLOSED.
 */
#ifndef TAILBONE_TAILSCALE_H
#define TAILBONE_TAILSCALE_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
  uint8_t *data;
  size_t len;
} tailscale_buf;

/* Bytes lent for the time of the call. (A name of its own because Go cannot write "const".) */
typedef const uint8_t *tailscale_bytes;

enum tailscale_code {            /* int32_t on the wire */
  TAILSCALE_OK = 0,
  TAILSCALE_INVALID = 1,         /* an argument is not what it must be */
  TAILSCALE_CLOSED = 2,          /* the node is closed or was never there */
  TAILSCALE_STATE = 3,           /* not possible in this state (not started, not running) */
  TAILSCALE_NOT_FOUND = 4,       /* WhoIs: no such peer */
  TAILSCALE_IN_USE = 5,          /* listen: port already taken on this node */
  TAILSCALE_TIMEOUT = 6,
  TAILSCALE_CANCELED = 7,
  TAILSCALE_REFUSED = 8,         /* dial: connection refused / reset */
  TAILSCALE_UNREACHABLE = 9,     /* dial: no such host, no route */
  TAILSCALE_IO = 10,             /* files, sockets, descriptors of this machine */
  TAILSCALE_START = 11,          /* tsnet would not start; words say why. Sticky: close and make a new node */
  TAILSCALE_PANIC = 12,
  TAILSCALE_INTERNAL = 13,
  TAILSCALE_FORBIDDEN = 14       /* WhoIs: the peer may not reach the local address */
};

/* Head of every message on a listener's or dial's descriptor. Host byte order. 40 bytes. */
typedef struct {
  uint8_t  version;              /* 1 */
  uint8_t  kind;                 /* 0 accepted from the tailnet, 1 accepted through Funnel, 2 dialled, 255 failure */
  uint16_t code;                 /* kind 255: a tailscale_code; the error's words follow this head (at most 1000 bytes) */
  uint16_t peer_port;
  uint16_t local_port;
  uint8_t  peer_addr[16];        /* IPv6, IPv4 as ::ffff:a.b.c.d */
  uint8_t  local_addr[16];
} tailscale_conn_head;           /* kinds 0 and 1 are followed by the connection's number (uint64_t, see tailscale_program);
                                    kind 2 carries exactly one descriptor (SCM_RIGHTS): a SOCK_STREAM unix socket.
                                    For Funnel, peer is the real internet source (FunnelConn.Src). */

/* How a dialled connection ends, seen from the caller's unix socket
 *  - The network's end of stream: read gives 0; the writing side still works.
 *  - An abnormal end (reset, timeout, node closed): read gives 0 (or ECONNRESET) and poll says POLLHUP although the
 *    caller has not shut its own writing side. If it had, the two ends cannot be told apart: POLLHUP is there in both.
 *  - shutdown(SHUT_WR) by the caller becomes FIN; close by the caller becomes FIN after what it had written.
 */

/* Accepted connections have no descriptor: the caller gives functions to which their bytes are brought, once for the
 * process and before the first tailscale_listen.
 *
 * Rules for these functions
 *  - They are called on threads of Go's, those of one connection never at the same time. They must not throw or unwind, and
 *    not wait: a thread of Go's waits with them. What they are lent (in, out, told, ids) is theirs for the call alone.
 *  - open announces a connection by its number, which is never used again. What it gives stands for the connection in all
 *    calls up to free, which is the last one. The message on the listener's descriptor that carries the number comes after.
 *  - turn brings what came from the network, at most the room that the turn before told (65536 at first), and takes what is
 *    to be sent. It comes when something came, when what was taken before is gone and TAILSCALE_TELLS_MORE was told, and after
 *    a kick.
 *  - Who has something to say outside of a turn (bytes to send, room again after none, an end) lets kicked tell the
 *    connection's number and makes kick_fd readable. Kicks for connections that are free already are no mistake.
 *  - A listener's descriptor may hold connections that nobody took. They are let go by shutting it for reading,
 *    receiving what is left, and telling TAILSCALE_TELLS_CLOSED for each.
 *
 * How a connection ends
 *  - end is 1 from the network's end of stream on, and nothing is brought any more; sending still works.
 *  - end is 2 at an abnormal end (reset, timeout, node closed). free follows.
 *  - TAILSCALE_TELLS_SHUT becomes FIN after what was told to be sent.
 *  - TAILSCALE_TELLS_CLOSED too, and then the connection is at its end, as it is when it has ended both ways: free follows. A peer
 *    that does not take what is still to be sent has one minute at a time.
 */
enum tailscale_flag {
  TAILSCALE_TELLS_MORE = 1,            /* there is more to be sent */
  TAILSCALE_TELLS_SHUT = 2,            /* and nothing after it */
  TAILSCALE_TELLS_CLOSED = 4         /* nor will anything be read */
};

typedef struct {
  uint32_t out;                  /* bytes put into out */
  uint32_t room;                 /* bytes that the next turn may bring. After 0: kick when there is room */
  uint32_t flags;                /* of tailscale_flag */
} tailscale_told;

typedef void (*tailscale_turn)(uintptr_t conn, tailscale_bytes in, size_t in_len, uint32_t end, uint8_t *out, size_t out_cap,
                               tailscale_told *told);

typedef struct {
  uintptr_t (*open)(uint64_t id);
  tailscale_turn turn;
  void (*free)(uintptr_t conn);
  size_t (*kicked)(uint64_t *ids, size_t cap);    /* how many were put into ids; asked again if all places were taken */
} tailscale_program;

/* The struct is copied. kick_fd (the reading end of a pipe) is given away, also when the call fails. TAILSCALE_STATE when
 * it was called before. */
int32_t tailscale_set_program(tailscale_program *program, int32_t kick_fd, tailscale_buf *out);

int32_t tailscale_version(tailscale_buf *out);          /* JSON {"tsnet":"1.102.5","go":"go1.26.8","tags":["ts_omit_..."]} */

/* JSON in {"memory_limit":bytes?,"gc_percent":n?,"max_procs":n?}; nothing or {} only asks. JSON out: what is in force
 * (memory_limit is null when there is none). */
int32_t tailscale_runtime_set(tailscale_bytes json, size_t len, tailscale_buf *out);

/* {"goroutines":n,"heap_bytes":n,"sys_bytes":n,"gc_cycles":n,"threads":n,"max_procs":n,"nodes":n,"conns":n} */
int32_t tailscale_runtime_stats(tailscale_buf *out);

/* Config JSON (unknown members are an error): {"dir" (absolute; may be absent with a store),"hostname","auth_key",
 *  "client_secret","client_id","id_token","audience","control_url","ephemeral":bool,"tags":[...],
 *  "store":"" | "mem:" (only ephemeral) | "kube:NAME","log_level":"trace|debug|info|warn|error|off" (default info),
 *  "upload_logs":bool,"netns":bool,"greet_max":n (0 = no greeting)}
 *  upload_logs and netns hold for the process: nodes that live at a time must agree on netns, and once a node had
 *  upload_logs false no later one can have it true. The first node without upload_logs adds TS_NO_LOGS_NO_SUPPORT to the
 *  process environment (once), so make it before other threads begin to change the environment.
 *  Where no key at all is given, tsnet itself reads TS_AUTHKEY and its kin from the environment as it was when the
 *  process began; a warning is logged. The control URL is never taken from there.
 * generation: memory of the CALLER (8-byte aligned; NULL for none); Go adds 1 to it atomically at each change of state or
 *  of the network map until tailscale_close has returned. Not counted: peers that only go online or offline or move.
 * log_fd: given away, also when the call fails; -1 for none; Go writes one JSON object a line
 *  {"level","msg","dropped"?:n}, at most 4096 bytes, never blocks on it (drops and counts).
 * Strings with NUL, not UTF-8, or over the length bounds are refused (TAILSCALE_INVALID), never cut. */
int32_t tailscale_new(tailscale_bytes json, size_t len, uint64_t *generation, int32_t log_fd, uint64_t *node, tailscale_buf *out);

/* Where starting needs the network (a client secret or ID token is traded for an auth key, state in Kubernetes) it goes on
 * after the call has returned TAILSCALE_OK, calls that need the node give TAILSCALE_STATE meanwhile, and a failure shows
 * in the watch's "error". A second start gives the result of the first. */
int32_t tailscale_start(uint64_t node, tailscale_buf *out);

/* Messages: one JSON object each, the newest whole picture (coalesced; the first comes at once):
 * {"generation":n,"state":"NoState|InUseOtherUser|NeedsLogin|NeedsMachineAuth|Stopped|Starting|Running","auth_url","error" (last ErrMessage
 *  or registration error of control, or why it did not start; "" when none),"id" (stable node id),"name" (FQDN without final dot),"hostname","addresses":["100.64.0.1","fd7a:..."],
 *  "tailnet" (MagicDNS suffix),"key_expiry" (RFC 3339 or ""),"expired":bool,"tags":[...],"owner" (login of the node's owner, "" when tagged),"owner_id" (that user's number, null when tagged),"health":["..."],"in_map_poll":bool,"control_error" (""|words of the last failed contact with control)}
 * May be called before tailscale_start. The descriptor reaches its end when the node is closed. */
int32_t tailscale_watch(uint64_t node, int32_t *fd, tailscale_buf *out);

/* The same object, plus "peers":[{id,name,addresses,online,active,tags,login}] */
int32_t tailscale_status(uint64_t node, tailscale_buf *out);

/* addr "100.64.0.7:1234" or "[fd7a::1]:1234" or without port (and then without brackets). local is empty, or the address
 * and port of this node that the peer is connected to: TAILSCALE_FORBIDDEN then tells that the packet filter would not let
 * the peer connect to it now. JSON out:
 * {"node":{"id","name","hostname","addresses":[],"tags":[],"key_expiry","expired":bool,"sharer":bool,"user_id":n},
 *  "user":{"id":n,"login","display_name","picture"},"caps":{"cap/name":[raw values...]},"same_tailnet":bool (no foreign MagicDNS suffix, not a sharee)} */
int32_t tailscale_whois(uint64_t node, tailscale_bytes addr, size_t len, tailscale_bytes local, size_t local_len, tailscale_buf *out);

/* addr ":80", "100.64.0.1:80", "[fd7a::1]:80"; network is tcp on the tailnet only. Port 0 is refused. The node must be
 * started, it need not be running yet. */
int32_t tailscale_listen(uint64_t node, tailscale_bytes addr, size_t len, int32_t *fd, tailscale_buf *out);

/* addr "100.64.0.7:80", "[fd7a::1]:80", "name:80", "name.tailnet.ts.net:80". Tailnet only. timeout_ms from 1 to 600000. */
int32_t tailscale_dial(uint64_t node, tailscale_bytes addr, size_t len, int64_t timeout_ms, int32_t *fd, tailscale_buf *out);

int32_t tailscale_logout(uint64_t node, int64_t timeout_ms, tailscale_buf *out);

/* Idempotent; afterwards Go no longer touches *generation and holds no fd of the node. TAILSCALE_TIMEOUT when tsnet did not
 * come to an end in time: *generation is left alone from then on as well, the rest goes in the background. */
int32_t tailscale_close(uint64_t node, tailscale_buf *out);

void    tailscale_buf_free(tailscale_buf *buf);         /* NULL is fine; leaves data NULL, len 0 */

int32_t tailscale_test_panic(tailscale_buf *out);       /* panics on purpose, to test the recovery */

#endif
