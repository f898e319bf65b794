//! The fence: every call into the Go archive, and all unsafe code of `tailnet`.
//!
//! Invariants
//! - A call returns its own code and message. Only [`error`] turns the code into an [`Error`].
//! - Memory that Go gives away is a [`Buf`], which frees it when dropped.
//! - A descriptor that crosses becomes an `OwnedFd` before anything else happens.
//! - Go calls back into [`callbacks`] only. It lends bytes for the duration of such a call and owns
//!   a share of the connection that it names. No panic leaves.
//! - The generation counter is our memory. Go writes to it until `tailscale_close` has returned: a
//!   [`Handle`] keeps it alive until then, and for ever if closing failed.
//! - Go's runtime starts before `main`. What must be set up before that has its own place in the
//!   start-up order ([`coarse_sleep`], [`environment_of_go`]).
//!
//! `calls.rs` and `embedded.rs` decide which thread may block in here, and what the answers mean.

// The one file of this module that talks to C: only here do Go's pointers and descriptors become
// owned Rust values.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_char, c_int},
    io,
    ops::Deref,
    os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use libtailscale_sys as sys;
use tokio::io::{Interest, unix::AsyncFd};

use super::{CertificateRefusal, Error, FunnelLack, shared_buffer};

/// Length in bytes of the fixed part of each message about a connection.
pub(super) const HEADER: usize = size_of::<sys::tailscale_conn_header>();

/// How much later than asked for a thread of this process may wake from a sleep, in nanoseconds.
/// The kernel's default is a twentieth of it.
#[cfg(target_os = "linux")]
const TIMER_SLACK: std::num::NonZeroU64 = std::num::NonZeroU64::new(1_000_000).unwrap();

/// Go's watchdog thread (`sysmon`) sleeps 20 µs at a time while there is work. With this slack it
/// wakes once a millisecond, which wins no processor time, but keeps the memory under a flood of
/// connections within its limit (docs/design/go-on-half-of-the-cores.md). Go's and tokio's timers
/// count in milliseconds anyway, and sockets wake their readers as before.
///
/// Threads inherit the slack, so it is set before Go starts its first one. Numbered entries of
/// `.init_array` run before all others (GNU ld).
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array.00101")]
static COARSE_SLEEP: extern "C" fn() = coarse_sleep;

#[cfg(target_os = "linux")]
extern "C" fn coarse_sleep() {
    // A failure costs processor time and nothing else.
    let _ = rustix::thread::set_current_timer_slack(Some(TIMER_SLACK));
}

/// Variables by which tsnet would log in where it is given nothing. Here they are settings
/// (`src/config`) or mean something else (`TS_CLIENT_SECRET` belongs to TailSTS), so Go must not
/// see them.
#[cfg(target_os = "linux")]
const NOT_FOR_GO: [&CStr; 7] = [
    c"TS_AUDIENCE",
    c"TS_AUTHKEY",
    c"TS_AUTH_KEY",
    c"TS_CLIENT_ID",
    c"TS_CLIENT_SECRET",
    c"TS_CONTROL_URL",
    c"TS_ID_TOKEN",
];

/// The C runtime passes a library's constructor the same arguments as `main`, among them the
/// kernel's own array of the environment. Go reads that very array, once, when its runtime starts.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array.00102")]
static ENVIRONMENT_OF_GO: extern "C" fn(c_int, *const *const c_char, *mut *const c_char) =
    environment_of_go;

/// Gives the rest of the process a copy of the environment with everything in it, and removes
/// [`NOT_FOR_GO`] from the array that Go will read. tsnet (v1.102.5) has no option to ignore these
/// variables, and unsetting them later would race with other threads.
#[cfg(target_os = "linux")]
extern "C" fn environment_of_go(
    _argc: c_int,
    _argv: *const *const c_char,
    kernels: *mut *const c_char,
) {
    unsafe extern "C" {
        static mut environ: *mut *const c_char;
    }
    // SAFETY: this runs before `main` and before Go's first thread, so no other code reads or
    // writes the environment. `kernels` is the array that the kernel made; it ends with NULL and
    // lives as long as the process, as do its strings. Entries are replaced and never removed,
    // because Go reads what lies behind the array. The copy is never freed, and glibc takes any
    // array for `environ`.
    unsafe {
        if kernels.is_null() || environ != kernels {
            return;
        }
        let mut all = Vec::new();
        while !(*kernels.add(all.len())).is_null() {
            all.push(*kernels.add(all.len()));
        }
        for (place, entry) in all.iter().enumerate() {
            let entry = CStr::from_ptr(*entry).to_bytes();
            let name = entry.split(|byte| *byte == b'=').next();
            if NOT_FOR_GO
                .iter()
                .any(|hidden| Some(hidden.to_bytes()) == name)
            {
                *kernels.add(place) = c"".as_ptr();
            }
        }
        all.push(std::ptr::null());
        environ = all.leak().as_mut_ptr();
    }
}

/// A node on the Go side: its number and generation counter. Dropping does not close it, as that
/// can take seconds.
pub(super) struct Handle {
    node: u64,
    /// `None` only while dropping.
    generation: Option<Arc<AtomicU64>>,
    closed: AtomicBool,
}

impl Handle {
    /// `tailscale_new`. Go owns `log` from here on, even if it refuses the settings.
    pub(super) fn open(
        settings: &[u8],
        generation: Arc<AtomicU64>,
        log: Option<OwnedFd>,
    ) -> Result<Self, Error> {
        let log: RawFd = log.map_or(-1, IntoRawFd::into_raw_fd);
        // Made first, so that the counter outlives the call whatever its outcome.
        let mut handle = Self {
            node: 0,
            generation: Some(generation),
            closed: AtomicBool::new(false),
        };
        let counter = handle
            .generation
            .as_ref()
            .map_or(std::ptr::null_mut(), |g| g.as_ptr());
        // SAFETY: `settings` is borrowed for the call with its length. The counter is owned by
        // `handle`, which keeps it until close has returned, and both sides access it atomically.
        // `log` was given up by `into_raw_fd` above. `node` and `sent` are locals of this thread.
        let outcome = call(|out| unsafe {
            sys::tailscale_new(
                settings.as_ptr(),
                settings.len(),
                counter,
                log,
                &raw mut handle.node,
                out,
            )
        });
        if let Err(error) = outcome {
            // No node was made, so nobody writes to the counter. After a panic there may be one:
            // then the counter must stay.
            let panicked = matches!(error, Error::Panic(_));
            handle.closed.store(!panicked, Ordering::Release);
            return Err(error);
        }
        Ok(handle)
    }

    /// Local work only. A failure is final for this node.
    pub(super) fn start(&self) -> Result<(), Error> {
        // SAFETY: a number and a local out-pointer; Go keeps neither.
        call(|out| unsafe { sys::tailscale_start(self.node, out) }).map(drop)
    }

    /// A descriptor on which states of the node arrive.
    pub(super) fn watch(&self) -> Result<OwnedFd, Error> {
        // SAFETY: a number and local out-pointers, used by this thread during the call alone.
        descriptor(|fd, out| unsafe { sys::tailscale_watch(self.node, fd, out) })
    }

    /// A descriptor on which connections arrive.
    pub(super) fn listen(&self, addr: &str) -> Result<OwnedFd, Error> {
        // SAFETY: `addr` is borrowed for the call with its length; local out-pointers.
        descriptor(|fd, out| unsafe {
            sys::tailscale_listen(self.node, addr.as_ptr(), addr.len(), fd, out)
        })
    }

    /// As [`Self::listen`], for connections from the internet.
    pub(super) fn listen_funnel(&self, port: u16) -> Result<OwnedFd, Error> {
        // SAFETY: numbers and local out-pointers, used by this thread during the call alone.
        descriptor(|fd, out| unsafe {
            sys::tailscale_listen_funnel(self.node, port.into(), fd, out)
        })
    }

    /// A descriptor on which one message arrives: the connection, or the reason why there is none.
    pub(super) fn dial(&self, addr: &str, timeout_ms: i64) -> Result<OwnedFd, Error> {
        // SAFETY: `addr` is borrowed for the call with its length; local out-pointers.
        descriptor(|fd, out| unsafe {
            sys::tailscale_dial(self.node, addr.as_ptr(), addr.len(), timeout_ms, fd, out)
        })
    }

    /// A descriptor on which one message arrives: the pair, or the reason why there is none.
    pub(super) fn certificate(&self, name: &str, min_validity_s: i64) -> Result<OwnedFd, Error> {
        // SAFETY: `name` is borrowed for the call with its length; local out-pointers.
        descriptor(|fd, out| unsafe {
            sys::tailscale_cert(
                self.node,
                name.as_ptr(),
                name.len(),
                min_validity_s,
                fd,
                out,
            )
        })
    }

    /// `local` may be empty.
    pub(super) fn whois(&self, addr: &[u8], local: &[u8]) -> Result<Buf, Error> {
        // SAFETY: both addresses are borrowed for the call with their lengths; a local out-pointer.
        call(|out| unsafe {
            sys::tailscale_whois(
                self.node,
                addr.as_ptr(),
                addr.len(),
                local.as_ptr(),
                local.len(),
                out,
            )
        })
    }

    pub(super) fn status(&self) -> Result<Buf, Error> {
        // SAFETY: a number and a local out-pointer; Go keeps neither.
        call(|out| unsafe { sys::tailscale_status(self.node, out) })
    }

    pub(super) fn logout(&self, timeout_ms: i64) -> Result<(), Error> {
        // SAFETY: a number and a local out-pointer; Go keeps neither.
        call(|out| unsafe { sys::tailscale_logout(self.node, timeout_ms, out) }).map(drop)
    }

    /// Blocks until Go has closed the node, 5.5 s at most.
    pub(super) fn close(&self) -> Result<(), Error> {
        // SAFETY: a number and a local out-pointer. The counter is still owned by `self`.
        call(|out| unsafe { sys::tailscale_close(self.node, out) })?;
        // Only a close that succeeded promises that Go writes no more.
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.closed.load(Ordering::Acquire) {
            // Go may still write to the counter: leaking eight bytes is better than a write to
            // freed memory.
            std::mem::forget(self.generation.take());
        }
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Handle").field(&self.node).finish()
    }
}

/// Registers [`callbacks`] with Go; once for the process.
pub(super) fn set_callbacks() -> Result<(), Error> {
    static SET: parking_lot::Mutex<bool> = parking_lot::Mutex::new(false);
    let mut set = SET.lock();
    if *set {
        return Ok(());
    }
    let (woken, wake) = rustix::pipe::pipe_with(
        rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK,
    )
    .map_err(io::Error::from)?;
    shared_buffer::KICKS.set_pipe(wake);
    let mut callbacks = sys::tailscale_callbacks {
        open: Some(callbacks::open),
        turn: Some(callbacks::turn),
        free: Some(callbacks::free),
        take_kicks: Some(callbacks::take_kicks),
    };
    // SAFETY: a struct of this thread that is copied during the call, and local out-pointers; the
    // descriptor was given up.
    call(|out| unsafe {
        sys::tailscale_set_callbacks(&raw mut callbacks, woken.into_raw_fd(), out)
    })?;
    *set = true;
    Ok(())
}

/// The functions that Go calls, from its own threads.
mod callbacks {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::Arc,
    };

    use super::{
        shared_buffer::{self, InboundState, KICKS, SharedBuffer},
        sys,
    };

    pub(super) extern "C" fn open(id: u64) -> usize {
        Arc::into_raw(shared_buffer::open(id)).expose_provenance()
    }

    pub(super) unsafe extern "C" fn turn(
        shared: usize,
        input: *const u8,
        input_len: usize,
        end: u32,
        out: *mut u8,
        out_len: usize,
        result: *mut sys::tailscale_turn_result,
    ) {
        // SAFETY: Go got this reference from `open` and has not freed it.
        let shared: &SharedBuffer = unsafe { &*std::ptr::with_exposed_provenance(shared) };
        let input = match input_len {
            0 => &[],
            // SAFETY: lent by Go for the call, with its length.
            n => unsafe { std::slice::from_raw_parts(input, n) },
        };
        let out = match out_len {
            0 => &mut [],
            // SAFETY: lent by Go for the call, with its length; nothing else reads or writes it
            // meanwhile.
            n => unsafe { std::slice::from_raw_parts_mut(out, n) },
        };
        let end = match end {
            0 => InboundState::Open,
            1 => InboundState::Ended,
            _ => InboundState::Broken,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| shared.turn(input, end, out)));
        let answer = match outcome {
            Ok(result) => sys::tailscale_turn_result {
                out: number(result.sent),
                room: number(result.room),
                flags: flag(result.more, sys::TAILSCALE_TURN_MORE)
                    | flag(result.shutdown, sys::TAILSCALE_TURN_SHUTDOWN)
                    | flag(result.closed, sys::TAILSCALE_TURN_CLOSED),
            },
            // Whatever went wrong, this connection is not served any further.
            Err(_) => sys::tailscale_turn_result {
                out: 0,
                room: 0,
                flags: flag(true, sys::TAILSCALE_TURN_CLOSED),
            },
        };
        // SAFETY: lent by Go for the call.
        unsafe { *result = answer };
    }

    pub(super) unsafe extern "C" fn free(shared: usize) {
        // SAFETY: Go got this reference from `open` and frees it once.
        let shared: Arc<SharedBuffer> =
            unsafe { Arc::from_raw(std::ptr::with_exposed_provenance(shared)) };
        let _ = catch_unwind(AssertUnwindSafe(move || shared.freed()));
    }

    pub(super) unsafe extern "C" fn take_kicks(ids: *mut u64, cap: usize) -> usize {
        // SAFETY: lent by Go for the call, with its length.
        let ids = unsafe { std::slice::from_raw_parts_mut(ids, cap) };
        KICKS.take(ids)
    }

    #[allow(clippy::unnecessary_cast)] // The type is whatever bindgen picks.
    fn flag(set: bool, flag: sys::tailscale_turn_flag) -> u32 {
        if set { flag as u32 } else { 0 }
    }

    /// Both buffers are far shorter.
    fn number(n: usize) -> u32 {
        u32::try_from(n).unwrap_or(u32::MAX)
    }
}

/// Versions of tsnet and Go, and the build tags, as JSON.
pub(super) fn version() -> Result<Buf, Error> {
    // SAFETY: a local out-pointer.
    call(|out| unsafe { sys::tailscale_version(out) })
}

/// Limits of the Go runtime; JSON in, JSON out.
pub(super) fn limit_runtime(limits: &[u8]) -> Result<Buf, Error> {
    // SAFETY: `limits` is borrowed for the call with its length; a local out-pointer.
    call(|out| unsafe { sys::tailscale_runtime_set(limits.as_ptr(), limits.len(), out) })
}

/// Counts of the Go runtime as JSON.
pub(super) fn runtime_stats() -> Result<Buf, Error> {
    // SAFETY: a local out-pointer.
    call(|out| unsafe { sys::tailscale_runtime_stats(out) })
}

/// Panics inside Go on purpose.
#[cfg(test)]
pub(super) fn panic_in_go() -> Result<(), Error> {
    // SAFETY: a local out-pointer.
    call(|out| unsafe { sys::tailscale_test_panic(out) }).map(drop)
}

/// Bytes that Go allocated and gave to us.
pub(super) struct Buf(sys::tailscale_buf);

impl Buf {
    const fn empty() -> Self {
        Self(sys::tailscale_buf {
            data: std::ptr::null_mut(),
            len: 0,
        })
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.0.data.is_null() {
            return &[];
        }
        // SAFETY: Go gave us `len` bytes at `data`, which live until our `Drop` and which nothing
        // changes.
        unsafe { std::slice::from_raw_parts(self.0.data, self.0.len) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if !self.0.data.is_null() {
            // SAFETY: owned by us alone, and freed here alone; the call may come from any thread.
            unsafe { sys::tailscale_buf_free(&raw mut self.0) }
        }
    }
}

/// Registers a descriptor with the reactor, to wait until it is readable.
pub(super) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `OwnedFd` is open, is moved in, always returns the same number, and is closed
    // only when the `AsyncFd` is dropped, after it was removed from the reactor.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// The error that a code of the C ABI stands for.
pub(super) fn error(code: i64, message: &[u8]) -> Error {
    let message = String::from_utf8_lossy(message).into_owned();
    match code {
        code::INVALID => Error::Invalid(message),
        code::CLOSED => Error::Closed,
        code::STATE => Error::State(message),
        code::NOT_FOUND => Error::NotFound,
        code::IN_USE => Error::InUse(message),
        code::TIMEOUT => Error::Timeout(message),
        code::CANCELED => Error::Canceled,
        code::REFUSED => Error::Refused(message),
        code::UNREACHABLE => Error::Unreachable(message),
        code::IO => Error::Io(message),
        code::START => Error::Start(message),
        code::PANIC => Error::Panic(message),
        code::INTERNAL => Error::Internal(message),
        code::FORBIDDEN => Error::Forbidden(message),
        code::NO_HTTPS => no_funnel(FunnelLack::Https, message),
        code::NO_FUNNEL => no_funnel(FunnelLack::Attribute, message),
        code::FUNNEL_PORT => no_funnel(FunnelLack::Port, message),
        other => Error::Internal(format!("unknown code {other} from the node: {message}")),
    }
}

/// What a code of the C ABI means for a certificate that did not come.
pub(super) fn certificate_refusal(code: i64, acme_status: Option<u16>) -> CertificateRefusal {
    match code {
        code::ACME => CertificateRefusal::Authority {
            status: acme_status,
        },
        code::REFUSED => CertificateRefusal::Control,
        code::NO_HTTPS => CertificateRefusal::NoHttps,
        code::CANCELED => CertificateRefusal::Interrupted,
        code::CLOSED => CertificateRefusal::NodeGone,
        code::STATE => CertificateRefusal::NotRunning,
        code::INVALID => CertificateRefusal::OtherName,
        code::TIMEOUT | code::UNREACHABLE => CertificateRefusal::Unreachable,
        _ => CertificateRefusal::Own,
    }
}

fn no_funnel(lack: FunnelLack, message: String) -> Error {
    Error::NoFunnel { lack, message }
}

/// Makes a call that returns bytes.
fn call(go: impl FnOnce(*mut sys::tailscale_buf) -> i32) -> Result<Buf, Error> {
    let mut out = Buf::empty();
    match i64::from(go(&raw mut out.0)) {
        code::OK => Ok(out),
        other => Err(error(other, &out)),
    }
}

/// Makes a call that returns a descriptor.
fn descriptor(go: impl FnOnce(*mut i32, *mut sys::tailscale_buf) -> i32) -> Result<OwnedFd, Error> {
    let mut fd: RawFd = -1;
    let outcome = call(|out| go(&raw mut fd, out));
    let fd = owned(fd);
    outcome?;
    fd.ok_or_else(|| Error::Internal("the node answered well but gave no descriptor".into()))
}

fn owned(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: by the contract of the ABI this descriptor is ours: Go has forgotten it and nothing
    // else closes it.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The codes of the header, widened to fit whatever integer type bindgen picks for them.
#[allow(clippy::unnecessary_cast)]
mod code {
    use super::sys;

    pub(super) const OK: i64 = sys::TAILSCALE_OK as i64;
    pub(super) const INVALID: i64 = sys::TAILSCALE_INVALID as i64;
    pub(super) const CLOSED: i64 = sys::TAILSCALE_CLOSED as i64;
    pub(super) const STATE: i64 = sys::TAILSCALE_STATE as i64;
    pub(super) const NOT_FOUND: i64 = sys::TAILSCALE_NOT_FOUND as i64;
    pub(super) const IN_USE: i64 = sys::TAILSCALE_IN_USE as i64;
    pub(super) const TIMEOUT: i64 = sys::TAILSCALE_TIMEOUT as i64;
    pub(super) const CANCELED: i64 = sys::TAILSCALE_CANCELED as i64;
    pub(super) const REFUSED: i64 = sys::TAILSCALE_REFUSED as i64;
    pub(super) const UNREACHABLE: i64 = sys::TAILSCALE_UNREACHABLE as i64;
    pub(super) const IO: i64 = sys::TAILSCALE_IO as i64;
    pub(super) const START: i64 = sys::TAILSCALE_START as i64;
    pub(super) const PANIC: i64 = sys::TAILSCALE_PANIC as i64;
    pub(super) const INTERNAL: i64 = sys::TAILSCALE_INTERNAL as i64;
    pub(super) const FORBIDDEN: i64 = sys::TAILSCALE_FORBIDDEN as i64;
    pub(super) const NO_HTTPS: i64 = sys::TAILSCALE_NO_HTTPS as i64;
    pub(super) const ACME: i64 = sys::TAILSCALE_ACME as i64;
    pub(super) const NO_FUNNEL: i64 = sys::TAILSCALE_NO_FUNNEL as i64;
    pub(super) const FUNNEL_PORT: i64 = sys::TAILSCALE_FUNNEL_PORT as i64;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(settings: &[u8]) -> Result<Handle, Error> {
        Handle::open(settings, Arc::new(AtomicU64::new(0)), None)
    }

    fn settings(member: &str, value: &str) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let mut all = serde_json::json!({ "dir": dir.path(), "hostname": "fence", "netns": false });
        all[member] = serde_json::json!(value);
        serde_json::to_vec(&all).unwrap()
    }

    #[test]
    fn a_panic_in_go_is_an_error_with_its_words() {
        assert!(matches!(panic_in_go(), Err(Error::Panic(message)) if !message.is_empty()));
        // And the process goes on.
        assert!(!version().unwrap().is_empty());
    }

    #[test]
    fn a_setting_with_nul_is_refused() {
        for member in ["hostname", "auth_key", "control_url", "dir"] {
            let refused = open(&settings(member, "a\0b"));
            assert!(
                matches!(refused, Err(Error::Invalid(_))),
                "{member}: {refused:?}"
            );
        }
    }

    #[test]
    fn an_over_long_setting_is_refused() {
        for member in ["hostname", "auth_key", "control_url", "dir"] {
            let refused = open(&settings(member, &"a".repeat(100_000)));
            assert!(
                matches!(refused, Err(Error::Invalid(_))),
                "{member}: {refused:?}"
            );
        }
    }

    #[test]
    fn settings_that_are_not_utf8_are_refused() {
        let mut bytes = settings("hostname", "nodeXname");
        let at = bytes.iter().position(|b| *b == b'X').unwrap();
        bytes[at] = 0xff;
        let refused = open(&bytes);
        assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    }

    #[test]
    fn empty_and_foreign_settings_are_refused() {
        for bytes in [&b""[..], b"[]", b"{\"no_such_member\":1}", b"{"] {
            let refused = open(bytes);
            assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
        }
    }

    #[test]
    fn addresses_that_are_not_addresses_are_refused() {
        let handle = open(&settings("hostname", "addresses")).unwrap();
        for addr in [&b""[..], b"\xff\xfe", b"100.64.0.1\0:80", b"nonsense"] {
            let refused = handle.whois(addr, b"").map(|_| ());
            assert!(
                matches!(refused, Err(Error::Invalid(_) | Error::State(_))),
                "{addr:?}: {refused:?}"
            );
        }
        handle.close().unwrap();
        handle.close().unwrap();
        assert!(matches!(handle.status().map(|_| ()), Err(Error::Closed)));
    }

    #[test]
    fn a_code_that_we_do_not_know_is_told() {
        assert!(matches!(error(4711, b"x"), Error::Internal(message) if message.contains("4711")));
    }
}
