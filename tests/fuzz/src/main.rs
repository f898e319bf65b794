//! Runs one target, named by `TAILBONE_FUZZ_TARGET`, with libFuzzer. Started by `scripts/fuzz`.

#![no_main]

use std::{env, process::exit, sync::OnceLock};

use tailbone_fuzz::{TARGETS, Target};

static TARGET: OnceLock<Target> = OnceLock::new();

fn choose() {
    let name = env::var("TAILBONE_FUZZ_TARGET").unwrap_or_default();
    match TARGETS.iter().find(|(known, _)| *known == name) {
        Some((_, target)) => {
            let _ = TARGET.set(*target);
        }
        None => {
            eprintln!("TAILBONE_FUZZ_TARGET={name:?} is not one of the targets:");
            for (known, _) in TARGETS {
                eprintln!("  {known}");
            }
            exit(2);
        }
    }
}

libfuzzer_sys::fuzz_target!(init: choose(), |data: &[u8]| {
    if let Some(target) = TARGET.get() {
        target(data);
    }
});
