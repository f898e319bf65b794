//! A token of SoftHSM for tests. SoftHSM finds its tokens by a variable of the process, so a test
//! runs in a process of its own.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use tailbone_keys::remote::pkcs11::Pkcs11Settings;
use tailbone_values::Secret;

pub const PIN: &str = "1234";

/// Makes a token, and says how it is reached. Only for a process that was started with
/// [`variable`].
pub fn new_token() -> Pkcs11Settings {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let label = format!("test-{}", COUNT.fetch_add(1, Ordering::SeqCst));
    let made = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", &label])
        .args(["--pin", PIN, "--so-pin", "5678"])
        .stdin(Stdio::null())
        .output()
        .expect("softhsm2-util: run scripts/setup --tests");
    assert!(made.status.success(), "{made:?}");
    Pkcs11Settings {
        module: module(),
        token: label,
        pin: Secret::new(PIN),
        sessions: 4,
    }
}

/// The variable for processes that use SoftHSM, with a configuration in this folder.
pub fn variable(folder: &Path) -> (&'static str, PathBuf) {
    let tokens = folder.join("tokens");
    std::fs::create_dir_all(&tokens).unwrap();
    let path = folder.join("softhsm2.conf");
    let config = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        tokens.display()
    );
    std::fs::write(&path, config).unwrap();
    ("SOFTHSM2_CONF", path)
}

fn module() -> PathBuf {
    let known = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",
        "/usr/local/lib/softhsm/libsofthsm2.so",
    ];
    let found = known.iter().map(PathBuf::from).find(|path| path.exists());
    found.expect("SoftHSM's module: run scripts/setup --tests")
}
