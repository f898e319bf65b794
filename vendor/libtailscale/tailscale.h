/* The C ABI of the tailnet node that is embedded in the program: tsnet behind a few calls.
 *
 * This file is authoritative for both sides: the Go exports include it, so the compiler refuses a
 * signature that differs, and the Rust declarations are generated from it.
 *
 * Rules for every call
 *  - A call returns a tailscale_code. On success `out` (if there is one) holds the result; on
 *    failure it holds the error's message (UTF-8, no NUL at the end). There is no shared "last
 *    error".
 *  - The callee allocates a tailscale_buf with malloc and gives it away; free it with
 *    tailscale_buf_free. A call always sets *out (data NULL, len 0 if there is nothing to return)
 *    and does not free what it held before. `out` may be NULL: the message is then lost. Other
 *    out-parameters are set to 0 (descriptors: -1) on failure.
 *  - Input strings are (pointer, length) and never NUL-terminated. The pointer may be NULL only if
 *    the length is 0. They are copied before the call returns.
 *  - Every exported function recovers from panics: it returns TAILSCALE_PANIC with the panic's
 *    text.
 *  - No call waits for the network. EVERY WAIT IS A DESCRIPTOR: watch, listen, dial and cert return
 *    at once with a SOCK_SEQPACKET unix socket on which messages arrive. Closing that descriptor
 *    cancels the wait and frees everything that belongs to it on the Go side, except accepted
 *    connections (see tailscale_callbacks). These sockets and those of dialled connections are
 *    close-on-exec (receive with MSG_CMSG_CLOEXEC) and already non-blocking. The receiver may
 *    change O_NONBLOCK of a descriptor that it was given.
 *    Exceptions, limited by their argument or by this text: tailscale_start (local work only),
 *    tailscale_logout (timeout_ms), tailscale_close (at most 5.5 s).
 *  - A handle is a number that is never reused in a process and never 0. A closed or unknown one
 *    gives TAILSCALE_CLOSED.
 */
#ifndef TAILBONE_TAILSCALE_H
#define TAILBONE_TAILSCALE_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
  uint8_t *data;
  size_t len;
} tailscale_buf;

/* Bytes lent for the duration of the call. (A typedef because Go cannot express "const".) */
typedef const uint8_t *tailscale_bytes;

enum tailscale_code {            /* int32_t on the wire */
  TAILSCALE_OK = 0,
  TAILSCALE_INVALID = 1,         /* an argument is invalid */
  TAILSCALE_CLOSED = 2,          /* the node is closed or never existed */
  TAILSCALE_STATE = 3,           /* not possible in this state (not started, not running) */
  TAILSCALE_NOT_FOUND = 4,       /* WhoIs: no such peer */
  TAILSCALE_IN_USE = 5,          /* listen: port already taken on this node */
  TAILSCALE_TIMEOUT = 6,
  TAILSCALE_CANCELED = 7,
  TAILSCALE_REFUSED = 8,         /* dial: connection refused / reset; cert: the control server did
                                    not publish the DNS record */
  TAILSCALE_UNREACHABLE = 9,     /* dial: no such host, no route; cert: no way to the authority or
                                    to the control server */
  TAILSCALE_IO = 10,             /* files, sockets, descriptors of this machine */
  TAILSCALE_START = 11,          /* tsnet failed to start. Final: close and make a new node */
  TAILSCALE_PANIC = 12,
  TAILSCALE_INTERNAL = 13,
  TAILSCALE_FORBIDDEN = 14,      /* WhoIs: the peer may not reach the local address */
  TAILSCALE_NO_HTTPS = 15,       /* cert, listen_funnel: HTTPS is not enabled in the tailnet */
  TAILSCALE_ACME = 16,           /* cert: the certificate authority refused */
  TAILSCALE_NO_FUNNEL = 17,      /* listen_funnel: the node has not the attribute "funnel" */
  TAILSCALE_FUNNEL_PORT = 18     /* listen_funnel: the tailnet does not allow this port; the message
                                    names those that it allows */
};

/* Head of every message on a listener's or dial's descriptor. Host byte order. 40 bytes. */
typedef struct {
  uint8_t  version;              /* 1 */
  uint8_t  kind;                 /* 0 accepted from the tailnet, 1 accepted through Funnel,
                                    2 dialled, 255 failure */
  uint16_t code;                 /* kind 255: a tailscale_code; the error's message follows this
                                    head (at most 1000 bytes) */
  uint16_t peer_port;
  uint16_t local_port;
  uint8_t  peer_addr[16];        /* IPv6, IPv4 as ::ffff:a.b.c.d */
  uint8_t  local_addr[16];
} tailscale_conn_header;           /* Kinds 0 and 1 are followed by the connection's number (uint64_t,
                                    see tailscale_callbacks). Kind 2 carries exactly one descriptor
                                    (SCM_RIGHTS), a SOCK_STREAM unix socket. For Funnel, peer is the
                                    caller on the internet, and local has the port that it
                                    called. */

/* How a dialled connection ends, seen from the caller's unix socket
 *  - The network's end of stream: read gives 0; the writing side still works.
 *  - An abnormal end (reset, timeout, node closed): read gives 0 (or ECONNRESET), and poll reports
 *    POLLHUP although the caller has not shut down its own writing side. If it has, the two ends
 *    cannot be told apart: poll reports POLLHUP for both.
 *  - shutdown(SHUT_WR) by the caller becomes FIN; close by the caller becomes FIN after what it had
 *    written.
 */

/* Accepted connections have no descriptor. Instead the caller gives the functions that exchange
 * their bytes, once for the process and before the first tailscale_listen. Bytes are exchanged in
 * turns.
 *
 * Rules for these functions
 *  - They are called on Go's threads, those of one connection never at the same time. They must not
 *    throw or unwind, and must not wait, since a thread of Go's waits with them. What they are lent
 *    (in, out, result, ids) is theirs for the duration of the call only.
 *  - open announces a connection by its number, which is never reused. The result stands for the
 *    connection in all calls until free, which is the last one. The message with the number on the
 *    listener's descriptor comes later.
 *  - turn brings what came from the network, at most the room reported by the last turn (65536 at
 *    first), and takes what is to be sent. It is called when something came, when everything taken
 *    before is sent and TAILSCALE_TURN_MORE was reported, and after a kick.
 *  - A kick asks for a turn when something changes outside one (bytes to send, room again after
 *    none, an end): it makes kick_fd readable, and take_kicks then returns the connection's
 *    number. Kicks for connections that are freed already are ignored.
 *  - A listener's descriptor may hold connections that were not taken. To release them, shut it
 *    down for reading, receive what is left, and report TAILSCALE_TURN_CLOSED for each.
 *
 * How a connection ends
 *  - inbound is 1 from the network's end of stream on. Nothing more is brought; sending still
 *    works.
 *  - inbound is 2 at an abnormal end (reset, timeout, node closed). free follows.
 *  - TAILSCALE_TURN_SHUTDOWN becomes FIN after the bytes that are still to be sent.
 *  - TAILSCALE_TURN_CLOSED does as well. The connection has then ended, as it has when both
 *    directions have: free follows. A peer that takes none of the bytes still to be sent is given
 *    up after a minute.
 */
enum tailscale_turn_flag {
  TAILSCALE_TURN_MORE = 1,       /* there is more to send */
  TAILSCALE_TURN_SHUTDOWN = 2,   /* and nothing after it */
  TAILSCALE_TURN_CLOSED = 4      /* nor will anything be read */
};

typedef struct {
  uint32_t out;                  /* bytes written into out */
  uint32_t room;                 /* bytes that the next turn may bring. After 0: kick once
                                    there is room */
  uint32_t flags;                /* of tailscale_turn_flag */
} tailscale_turn_result;

typedef void (*tailscale_turn)(uintptr_t conn, tailscale_bytes in, size_t in_len, uint32_t inbound,
                               uint8_t *out, size_t out_cap, tailscale_turn_result *result);

typedef struct {
  uintptr_t (*open)(uint64_t id);
  tailscale_turn turn;
  void (*free)(uintptr_t conn);
  size_t (*take_kicks)(uint64_t *ids, size_t cap);   /* how many numbers it wrote into ids; called
                                                        again if that is cap */
} tailscale_callbacks;

/* The struct is copied. kick_fd (the reading end of a pipe) is given away, even if the call fails.
 * TAILSCALE_STATE if it was called before. */
int32_t tailscale_set_callbacks(tailscale_callbacks *callbacks, int32_t kick_fd, tailscale_buf *out);

/* JSON out {"tsnet":"1.102.5","go":"go1.26.8","tags":["ts_omit_..."]} */
int32_t tailscale_version(tailscale_buf *out);

/* JSON in {"memory_limit":bytes?,"gc_percent":n?,"max_procs":n?}; nothing or {} only asks. JSON
 * out: the limits in force (memory_limit is null if there is none). */
int32_t tailscale_runtime_set(tailscale_bytes json, size_t len, tailscale_buf *out);

/* JSON out {"goroutines":n,"heap_bytes":n,"sys_bytes":n,"gc_cycles":n,"threads":n,"max_procs":n,
 *  "nodes":n,"conns":n} */
int32_t tailscale_runtime_stats(tailscale_buf *out);

/* Config JSON (unknown members are an error): {"dir" (absolute; may be absent with a store),
 *  "hostname","auth_key","client_secret","client_id","id_token","audience","id_token_fd":n,
 *  "control_url","ephemeral":bool,"tags":[...],"store":"" | "mem:" (only ephemeral) | "kube:NAME",
 *  "log_level":"trace|debug|info|warn|error|off" (default info),"upload_logs":bool,"netns":bool,
 *  "greet_max":n (0 = no greeting)}
 *  upload_logs and netns apply to the process: nodes that live at the same time must agree on
 *  netns, and after a node with upload_logs false no later one can have it true. The first node
 *  without upload_logs adds TS_NO_LOGS_NO_SUPPORT to the process environment (once), so make it
 *  before other threads change the environment.
 *  If no key at all is given, tsnet itself reads TS_AUTHKEY and similar variables from the
 *  environment as it was when the process began; a warning is logged. It never takes the control
 *  URL from there.
 * id_token_fd: a stream socket, which Go duplicates; absent or 0 for none. If the node needs an ID
 *  token for its audience, Go writes one byte on it, once, and reads {"id_token":"..."} or
 *  {"error":"..."} up to the end of the stream.
 * generation: memory of the CALLER (8-byte aligned; NULL for none). Go adds 1 to it atomically at
 *  each change of state or of the network map until tailscale_close has returned. Peers that only
 *  go online or offline or move are not counted.
 * log_fd: given away, even if the call fails; -1 for none. Go writes one JSON object a line
 *  {"level","msg","dropped"?:n}, at most 4096 bytes, and never blocks on it (it drops and counts).
 * Strings that contain NUL, are not UTF-8, or exceed the length limits are refused
 * (TAILSCALE_INVALID), never cut. */
int32_t tailscale_new(tailscale_bytes json, size_t len, uint64_t *generation, int32_t log_fd,
                      uint64_t *node, tailscale_buf *out);

/* If starting needs the network (a client secret or ID token is traded for an auth key, or the
 * state is in Kubernetes), it goes on after the call has returned TAILSCALE_OK. Calls that need the
 * node give TAILSCALE_STATE meanwhile, and a failure shows in the watch's "error". A second start
 * gives the result of the first. */
int32_t tailscale_start(uint64_t node, tailscale_buf *out);

/* Messages: one JSON object each, always the newest complete state (coalesced; the first comes at
 * once):
 * {"generation":n,
 *  "state":"NoState|InUseOtherUser|NeedsLogin|NeedsMachineAuth|Stopped|Starting|Running",
 *  "auth_url","error" (last ErrMessage or registration error of the control server, or why the node
 *  did not start; "" if none),"id" (stable node id),"name" (FQDN without final dot),"hostname",
 *  "addresses":["100.64.0.1","fd7a:..."],"tailnet" (MagicDNS suffix),
 *  "key_expiry" (RFC 3339 or ""),"expired":bool,"tags":[...],
 *  "owner" (login of the node's owner, "" if tagged),
 *  "owner_id" (that user's number, null if tagged),"health":["..."],"in_map_poll":bool,
 *  "control_error" (message of the last failed contact with the control server, "" if none),
 *  "cert_domains":[...] (names of the node that tailscale_cert takes; empty if HTTPS is not enabled
 *  in the tailnet)}
 * May be called before tailscale_start. The descriptor ends when the node is closed. */
int32_t tailscale_watch(uint64_t node, int32_t *fd, tailscale_buf *out);

/* The same object, plus "peers":[{id,name,addresses,online,active,tags,login}] */
int32_t tailscale_status(uint64_t node, tailscale_buf *out);

/* addr "100.64.0.7:1234" or "[fd7a::1]:1234", or without port (and then without brackets). local is
 * empty, or the address and port of this node that the peer is connected to: TAILSCALE_FORBIDDEN
 * then means that the packet filter would not let the peer connect to it now. JSON out:
 * {"node":{"id","name","hostname","addresses":[],"tags":[],"key_expiry","expired":bool,
 *  "sharer":bool,"user_id":n},
 *  "user":{"id":n,"login","display_name","picture"},"caps":{"cap/name":[raw values...]},
 *  "same_tailnet":bool (no foreign MagicDNS suffix, not a sharee)} */
int32_t tailscale_whois(uint64_t node, tailscale_bytes addr, size_t len, tailscale_bytes local,
                        size_t local_len, tailscale_buf *out);

/* addr ":80", "100.64.0.1:80", "[fd7a::1]:80"; TCP on the tailnet only. Port 0 is refused. The node
 * must be started; it need not be running yet. */
int32_t tailscale_listen(uint64_t node, tailscale_bytes addr, size_t len, int32_t *fd,
                         tailscale_buf *out);

/* Connections from the internet, through Funnel, to port 443, 8443 or 10000 of the node's first
 * cert_domain. They come as they are, so TLS is the caller's part; messages of kind 1. Nothing
 * listens on the host. The same port may be listened on for the tailnet as well. While there is
 * such a listener, the node has no other listener on port 1, where ingress nodes connect to.
 * The node must be running (TAILSCALE_STATE) and be allowed to use Funnel (TAILSCALE_NO_HTTPS,
 * TAILSCALE_NO_FUNNEL, TAILSCALE_FUNNEL_PORT). If the tailnet withdraws that later, the descriptor
 * gets a failure with one of these codes and ends. */
int32_t tailscale_listen_funnel(uint64_t node, uint32_t port, int32_t *fd, tailscale_buf *out);

/* addr "100.64.0.7:80", "[fd7a::1]:80", "name:80", "name.tailnet.ts.net:80". Tailnet only.
 * timeout_ms from 1 to 600000. */
int32_t tailscale_dial(uint64_t node, tailscale_bytes addr, size_t len, int64_t timeout_ms,
                       int32_t *fd, tailscale_buf *out);

/* A certificate for name, one of the watch's "cert_domains", that stays valid for min_validity_s
 * seconds or longer. 0 takes one that is valid now; a negative number also one that ended at most
 * so long ago. No more than two thirds of the certificate's life are asked for. One message
 * arrives (at most 65536 bytes), then the descriptor ends:
 * {"cert" (PEM, the chain with the leaf first),"key" (PEM)}, or
 * {"code" (a tailscale_code),"message" (one sentence),"acme_status" (the HTTP status with which the
 *  certificate authority refused, null if it did not),"retry_after" (seconds until another try
 *  makes sense, null if that is not known)}
 * Codes: TAILSCALE_STATE (the node is not running, so it cannot order), TAILSCALE_NO_HTTPS,
 * TAILSCALE_INVALID (not a name of this node), TAILSCALE_ACME, TAILSCALE_REFUSED,
 * TAILSCALE_UNREACHABLE, TAILSCALE_TIMEOUT (an order may take 5 minutes, and a minute for each
 * answer of the authority), TAILSCALE_IO, TAILSCALE_CLOSED.
 *
 * The pair is kept in the state directory (certs/NAME.crt and certs/NAME.key, as tsnet does) or in
 * the Kubernetes secret. One that lasts long enough is given from there, without the network and
 * before the node is running. Otherwise one is ordered at Let's Encrypt, or at the ACME directory
 * that TS_DEBUG_ACME_DIRECTORY_URL names, by dns-01; a node makes one order at a time. Failed
 * orders and waits that the authority asks for are remembered over restarts: until the next order
 * is allowed, a call fails at once with the code and the message of the last failure, and with
 * what is left of the wait. A failure leaves the kept pair as it is. */
int32_t tailscale_cert(uint64_t node, tailscale_bytes name, size_t len, int64_t min_validity_s,
                       int32_t *fd, tailscale_buf *out);

int32_t tailscale_logout(uint64_t node, int64_t timeout_ms, tailscale_buf *out);

/* Idempotent. Afterwards Go no longer touches *generation and holds no descriptor of the node.
 * TAILSCALE_TIMEOUT if tsnet did not stop in time: *generation is not touched after that either,
 * and the rest stops in the background. */
int32_t tailscale_close(uint64_t node, tailscale_buf *out);

void    tailscale_buf_free(tailscale_buf *buf);         /* NULL is fine; leaves data NULL, len 0 */

/* Panics on purpose, to test the recovery. */
int32_t tailscale_test_panic(tailscale_buf *out);

#endif
