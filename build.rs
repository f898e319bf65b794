//! Records what `tailbone version` prints (version, commit, the versions of Go and tsnet inside),
//! and generates the gRPC code.
//!
//! It never fails for lack of Git. `TAILBONE_VERSION` and `TAILBONE_COMMIT` override what is found,
//! for builds without `.git`.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use protox::prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    stamp(
        "TAILBONE_VERSION",
        given("TAILBONE_VERSION").or_else(|| env::var("CARGO_PKG_VERSION").ok()),
    );
    stamp("TAILBONE_COMMIT", given("TAILBONE_COMMIT").or_else(commit));
    // Exported by the crate that builds the Go archive (`links = "tailscale"`).
    stamp(
        "TAILBONE_GO_VERSION",
        env::var("DEP_TAILSCALE_GO_VERSION").ok(),
    );
    stamp(
        "TAILBONE_TSNET_VERSION",
        env::var("DEP_TAILSCALE_TSNET_VERSION").ok(),
    );
    link();
    grpc()
}

/// Go's type tables hold 150 000 addresses relative to where the program is loaded. Packed, they
/// take a thirtieth of the space. glibc has unpacked them since 2.36; a linker that cannot pack
/// them warns and goes on.
fn link() {
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The admin API from `proto/admin.proto` and `proto/oidc.proto`, without a protoc: server and
/// client, descriptors for reflection, and the path of each method, against which
/// `src/components/admin/authorize.rs` is checked. SPIFFE's Workload API is none of our own and has
/// none of these.
fn grpc() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let descriptors = protox::compile(["proto/admin.proto", "proto/oidc.proto"], ["proto"])?;
    fs::write(
        out.join("admin_descriptors.bin"),
        descriptors.encode_to_vec(),
    )?;
    let mut paths = Vec::new();
    for file in &descriptors.file {
        for service in &file.service {
            let methods = service
                .method
                .iter()
                .map(|method| format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            paths.extend(methods);
        }
    }
    fs::write(out.join("admin_methods.rs"), format!("&{paths:?}"))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    let spiffe = protox::compile(["proto/spiffe.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(spiffe)?;
    Ok(())
}

fn stamp(name: &str, value: Option<String>) {
    // A line end would let a value inject further instructions to Cargo.
    let value = value
        .map(|value| value.trim().replace(['\r', '\n'], " "))
        .filter(|value| !value.is_empty())
        .unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env={name}={value}");
}

fn given(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// The commit of this very repository. A source tree unpacked inside another repository must not
/// take that one's commit.
fn commit() -> Option<String> {
    let root = env::var("CARGO_MANIFEST_DIR").ok()?;
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(&root).canonicalize().ok()? {
        return None;
    }
    for name in ["HEAD", "packed-refs"] {
        rerun_on(name);
    }
    if let Some(branch) = git(&["symbolic-ref", "--quiet", "HEAD"]) {
        rerun_on(&branch);
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

/// Only for files that exist: Cargo would rerun this script every time for one that does not.
fn rerun_on(name: &str) {
    if let Some(path) = git(&["rev-parse", "--git-path", name])
        && Path::new(&path).exists()
    {
        println!("cargo::rerun-if-changed={path}");
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| output.status.success() && !text.is_empty())
}
