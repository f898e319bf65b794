//! With the real library: the archive answers, its memory can be freed, and a panic inside Go comes
//! back as a code.
//!
//! Everything runs in one test, because a Go runtime is state of the whole process.

use libtailscale_sys::*;
use std::{mem, ptr, slice, str, sync::atomic::AtomicU64, time::Instant};

const _: () = {
    assert!(mem::size_of::<tailscale_conn_header>() == 40);
    assert!(mem::offset_of!(tailscale_conn_header, code) == 2);
    assert!(mem::offset_of!(tailscale_conn_header, peer_port) == 4);
    assert!(mem::offset_of!(tailscale_conn_header, local_port) == 6);
    assert!(mem::offset_of!(tailscale_conn_header, peer_addr) == 8);
    assert!(mem::offset_of!(tailscale_conn_header, local_addr) == 24);
    assert!(mem::size_of::<tailscale_buf>() == 2 * mem::size_of::<usize>());
};

/// Makes a call, copies its message, and frees it.
fn call(f: impl FnOnce(*mut tailscale_buf) -> i32) -> (i32, String) {
    let mut out = tailscale_buf {
        data: ptr::dangling_mut(),
        len: 77,
    };
    let code = f(&mut out);
    let words = if out.len == 0 {
        assert!(out.data.is_null(), "nothing to say means a NULL pointer");
        String::new()
    } else {
        // SAFETY: a call with a message gives `len` bytes at `data`, which are ours until they are
        // freed.
        str::from_utf8(unsafe { slice::from_raw_parts(out.data, out.len) })
            .expect("words are UTF-8")
            .to_owned()
    };
    // SAFETY: `out` was filled by a call and not freed yet; the second call finds NULL, which is
    // allowed.
    unsafe {
        tailscale_buf_free(&mut out);
        tailscale_buf_free(&mut out);
        tailscale_buf_free(ptr::null_mut());
    }
    (code, words)
}

fn new(config: &str, generation: &AtomicU64, node: &mut u64) -> (i32, String) {
    // SAFETY: the text is lent for the call, the counter outlives the node (it is leaked), `node`
    // is ours.
    call(|out| unsafe {
        tailscale_new(
            config.as_ptr(),
            config.len(),
            generation.as_ptr(),
            -1,
            node,
            out,
        )
    })
}

#[test]
fn the_archive_answers() {
    // SAFETY (all blocks below): `out` points to a buffer that lives during the call; handles are
    // numbers.
    let (code, words) = call(|out| unsafe { tailscale_version(out) });
    assert_eq!(code, TAILSCALE_OK, "{words}");
    let inside = env!("CARGO_PKG_VERSION")
        .split_once("+tsnet.")
        .expect("the version names tsnet")
        .1;
    assert!(
        words.contains(&format!("\"tsnet\":\"{inside}\"")),
        "{words} against {inside} in Cargo.toml"
    );
    assert!(
        words.contains("ts_omit_ssh"),
        "the tags of the build are told: {words}"
    );

    let (code, words) = call(|out| unsafe { tailscale_test_panic(out) });
    assert_eq!(code, TAILSCALE_PANIC);
    assert!(words.contains("asked for"), "{words}");
    assert_eq!(
        unsafe { tailscale_test_panic(ptr::null_mut()) },
        TAILSCALE_PANIC,
        "words may be dropped"
    );

    let (code, words) =
        call(|out| unsafe { tailscale_runtime_set(b"{\"max_procs\":0}".as_ptr(), 15, out) });
    assert_eq!(code, TAILSCALE_INVALID, "{words}");
    let (code, words) = call(|out| unsafe { tailscale_runtime_set(ptr::null(), 3, out) });
    assert_eq!(code, TAILSCALE_INVALID, "{words}");
    let (code, words) = call(|out| unsafe { tailscale_runtime_set(ptr::null(), 0, out) });
    assert_eq!(code, TAILSCALE_OK, "{words}");

    let generation: &'static AtomicU64 = Box::leak(Box::default());
    let mut node = 99;
    let (code, words) = new("{\"dir\":\"relative\"}", generation, &mut node);
    assert_eq!((code, node), (TAILSCALE_INVALID, 0), "{words}");

    // A node that never reaches its control server: it starts, reports that, and closes at once.
    let dir = std::env::temp_dir().join(format!("libtailscale-sys-{}", std::process::id()));
    let config = format!(
        "{{\"dir\":{dir:?},\"hostname\":\"abi\",\"control_url\":\"http://127.0.0.1:1\",\"auth_key\":\"x\"}}"
    );
    let (code, words) = new(&config, generation, &mut node);
    assert_eq!(code, TAILSCALE_OK, "{words}");
    let mut fd = 0;
    let (code, words) =
        call(|out| unsafe { tailscale_listen(node, b":80".as_ptr(), 3, &mut fd, out) });
    assert_eq!((code, fd), (TAILSCALE_STATE, -1), "{words}");
    let (code, words) = call(|out| unsafe { tailscale_start(node, out) });
    assert_eq!(code, TAILSCALE_OK, "{words}");
    let (code, words) = call(|out| unsafe { tailscale_status(node, out) });
    assert_eq!(code, TAILSCALE_OK, "{words}");
    assert!(words.contains("\"peers\":[]"), "{words}");
    let began = Instant::now();
    let (code, words) = call(|out| unsafe { tailscale_close(node, out) });
    assert_eq!(code, TAILSCALE_OK, "{words}");
    assert!(
        began.elapsed().as_millis() < 2000,
        "closing took {:?}: something waits to be uploaded",
        began.elapsed()
    );
    let (code, words) = call(|out| unsafe { tailscale_close(node, out) });
    assert_eq!(code, TAILSCALE_OK, "closing twice: {words}");
    let (code, words) = call(|out| unsafe { tailscale_status(node, out) });
    assert_eq!(code, TAILSCALE_CLOSED, "{words}");
    let _ = std::fs::remove_dir_all(dir);
}
