//! Storms of signals while the node is under load.
//!
//! The handlers are installed as Go requires of a program that contains it: on the alternate stack,
//! restarting system calls, doing almost nothing. The daemon's own signal handling is tested with
//! the whole program.

// `sigaction` has no safe wrapper here.
#![allow(unsafe_code)]

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Signal, getpid, kill_process};
use testkit::{
    node_contract::interleaved,
    tailnet::{DevnetTailnet, Owner, Tailnet},
};

use crate::alone;

static SEEN: AtomicU64 = AtomicU64::new(0);

extern "C" fn count(_: libc::c_int) {
    SEEN.fetch_add(1, Ordering::Relaxed);
}

fn count_signal(signal: libc::c_int) {
    // SAFETY: the action is complete (zeroed, then filled in), and the handler only adds to an
    // atomic number, which is allowed in every thread at any time.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigemptyset(&raw mut action.sa_mask);
        assert_eq!(
            libc::sigaction(signal, &raw const action, std::ptr::null_mut()),
            0
        );
    }
}

#[test]
fn storms_of_signals_under_load_mix_up_no_connection() {
    alone(async {
        count_signal(libc::SIGTERM);
        count_signal(libc::SIGHUP);
        let tailnet = DevnetTailnet::new();
        let server = tailnet
            .node("server", Owner::User("alice@example.com"))
            .await;
        let caller = tailnet.node("caller", Owner::User("bob@example.com")).await;

        static OVER: AtomicBool = AtomicBool::new(false);
        let storm = std::thread::spawn(|| {
            let mut sent = 0_u64;
            while !OVER.load(Ordering::Relaxed) {
                // Go uses URG itself for preemption; one from outside must do no harm.
                for signal in [Signal::TERM, Signal::HUP, Signal::URG] {
                    kill_process(getpid(), signal).unwrap();
                    sent += 1;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            sent
        });
        let began = Instant::now();
        let mixed_up = interleaved(&server, &[caller], 1_000, 16).await;
        // The node also closes under the storm.
        tailnet.end().await;
        OVER.store(true, Ordering::Relaxed);
        let sent = storm.join().unwrap();
        eprintln!(
            "1000 connections in {:?} under {sent} signals, {} of them handled by us",
            began.elapsed(),
            SEEN.load(Ordering::Relaxed)
        );
        assert_eq!(mixed_up, 0);
        assert!(SEEN.load(Ordering::Relaxed) > 100);
    });
}
