// Made from tailscale.h by scripts/bindings. Do not edit.

#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct tailscale_buf {
    pub data: *mut u8,
    pub len: usize,
}
impl Default for tailscale_buf {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
pub type tailscale_bytes = *const u8;
pub const TAILSCALE_OK: tailscale_code = 0;
pub const TAILSCALE_INVALID: tailscale_code = 1;
pub const TAILSCALE_CLOSED: tailscale_code = 2;
pub const TAILSCALE_STATE: tailscale_code = 3;
pub const TAILSCALE_NOT_FOUND: tailscale_code = 4;
pub const TAILSCALE_IN_USE: tailscale_code = 5;
pub const TAILSCALE_TIMEOUT: tailscale_code = 6;
pub const TAILSCALE_CANCELED: tailscale_code = 7;
pub const TAILSCALE_REFUSED: tailscale_code = 8;
pub const TAILSCALE_UNREACHABLE: tailscale_code = 9;
pub const TAILSCALE_IO: tailscale_code = 10;
pub const TAILSCALE_START: tailscale_code = 11;
pub const TAILSCALE_PANIC: tailscale_code = 12;
pub const TAILSCALE_INTERNAL: tailscale_code = 13;
pub const TAILSCALE_FORBIDDEN: tailscale_code = 14;
pub const TAILSCALE_NO_HTTPS: tailscale_code = 15;
pub const TAILSCALE_ACME: tailscale_code = 16;
pub const TAILSCALE_NO_FUNNEL: tailscale_code = 17;
pub const TAILSCALE_FUNNEL_PORT: tailscale_code = 18;
pub type tailscale_code = i32;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct tailscale_conn_header {
    pub version: u8,
    pub kind: u8,
    pub code: u16,
    pub peer_port: u16,
    pub local_port: u16,
    pub peer_addr: [u8; 16usize],
    pub local_addr: [u8; 16usize],
}
pub const TAILSCALE_TURN_MORE: tailscale_turn_flag = 1;
pub const TAILSCALE_TURN_SHUTDOWN: tailscale_turn_flag = 2;
pub const TAILSCALE_TURN_CLOSED: tailscale_turn_flag = 4;
pub type tailscale_turn_flag = u32;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct tailscale_turn_result {
    pub out: u32,
    pub room: u32,
    pub flags: u32,
}
pub type tailscale_turn = ::core::option::Option<
    unsafe extern "C" fn(
        conn: usize,
        in_: tailscale_bytes,
        in_len: usize,
        inbound: u32,
        out: *mut u8,
        out_cap: usize,
        result: *mut tailscale_turn_result,
    ),
>;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct tailscale_callbacks {
    pub open: ::core::option::Option<unsafe extern "C" fn(id: u64) -> usize>,
    pub turn: tailscale_turn,
    pub free: ::core::option::Option<unsafe extern "C" fn(conn: usize)>,
    pub take_kicks:
        ::core::option::Option<unsafe extern "C" fn(ids: *mut u64, cap: usize) -> usize>,
}
unsafe extern "C" {
    pub fn tailscale_set_callbacks(
        callbacks: *mut tailscale_callbacks,
        kick_fd: i32,
        out: *mut tailscale_buf,
    ) -> i32;
    pub fn tailscale_version(out: *mut tailscale_buf) -> i32;
    pub fn tailscale_runtime_set(json: tailscale_bytes, len: usize, out: *mut tailscale_buf)
    -> i32;
    pub fn tailscale_runtime_stats(out: *mut tailscale_buf) -> i32;
    pub fn tailscale_new(
        json: tailscale_bytes,
        len: usize,
        generation: *mut u64,
        log_fd: i32,
        node: *mut u64,
        out: *mut tailscale_buf,
    ) -> i32;
    pub fn tailscale_start(node: u64, out: *mut tailscale_buf) -> i32;
    pub fn tailscale_watch(node: u64, fd: *mut i32, out: *mut tailscale_buf) -> i32;
    pub fn tailscale_status(node: u64, out: *mut tailscale_buf) -> i32;
    pub fn tailscale_whois(
        node: u64,
        addr: tailscale_bytes,
        len: usize,
        local: tailscale_bytes,
        local_len: usize,
        out: *mut tailscale_buf,
    ) -> i32;
    pub fn tailscale_listen(
        node: u64,
        addr: tailscale_bytes,
        len: usize,
        fd: *mut i32,
        out: *mut tailscale_buf,
    ) -> i32;
    pub fn tailscale_listen_funnel(
        node: u64,
        port: u32,
        fd: *mut i32,
        out: *mut tailscale_buf,
    ) -> i32;
    pub fn tailscale_dial(
        node: u64,
        addr: tailscale_bytes,
        len: usize,
        timeout_ms: i64,
        fd: *mut i32,
        out: *mut tailscale_buf,
    ) -> i32;
    pub fn tailscale_cert(
        node: u64,
        name: tailscale_bytes,
        len: usize,
        min_validity_s: i64,
        fd: *mut i32,
        out: *mut tailscale_buf,
    ) -> i32;
    pub fn tailscale_logout(node: u64, timeout_ms: i64, out: *mut tailscale_buf) -> i32;
    pub fn tailscale_close(node: u64, out: *mut tailscale_buf) -> i32;
    pub fn tailscale_buf_free(buf: *mut tailscale_buf);
    pub fn tailscale_test_panic(out: *mut tailscale_buf) -> i32;
}
