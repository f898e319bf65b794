//! Builds the Go archive and tells cargo how to link it.
//!
//! Reads: our Go module beside this crate, and the variables named in `VARIABLES` (plus what the
//! `cc` crate reads to find a C compiler). Writes: only below `OUT_DIR`; Go's own cache is used if
//! it can be written. Everything about the target comes from cargo's variables, never from `cfg!`,
//! which describes the host.
//!
//! The build tags are in `tags.txt` and the required version of Go in `go.mod`, both in the Go
//! module.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, exit},
};

/// Each variable that changes what is built, besides cargo's own.
const VARIABLES: [&str; 7] = [
    "GO",
    "TAILBONE_GO_ARCHIVE",
    "DOCS_RS",
    "GOCACHE",
    "GOFLAGS",
    "GOARM",
    "GOAMD64",
];

fn main() {
    for name in VARIABLES {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if let Err(words) = run() {
        eprintln!("libtailscale-sys: {words}");
        exit(1);
    }
}

fn run() -> Result<(), String> {
    let module = PathBuf::from(cargo("CARGO_MANIFEST_DIR")?).join("../libtailscale");
    let module = module.canonicalize().map_err(|e| {
        format!(
            "the Go module beside this crate ({}) cannot be read: {e}",
            module.display()
        )
    })?;
    for input in inputs(&module)? {
        println!("cargo:rerun-if-changed={}", input.display());
    }
    let gomod = read(&module.join("go.mod"))?;
    let tags = tags(&read(&module.join("tags.txt"))?);
    let tsnet = tsnet_version(&gomod)?;
    println!("cargo:tsnet_version={tsnet}");
    println!("cargo:tags={}", tags.join(","));

    if env::var_os("DOCS_RS").is_some() {
        // There is no network and no Go there. The declarations are checked in, and documentation
        // links nothing.
        println!("cargo:go_version=none");
        return Ok(());
    }
    let target = Target::from_cargo()?;
    let out = PathBuf::from(cargo("OUT_DIR")?);
    let archive = match env::var_os("TAILBONE_GO_ARCHIVE") {
        Some(path) => {
            println!("cargo:go_version=prebuilt");
            prebuilt(Path::new(&path), &out)?
        }
        None => {
            let go = Go::find(&gomod)?;
            println!("cargo:go_version={}", go.version);
            go.build(&module, &target, &tags, tsnet, &out)?
        }
    };
    let dir = archive.parent().expect("the archive lies in a directory");
    println!("cargo:rustc-link-search=native={}", dir.display());
    println!("cargo:rustc-link-lib=static=tailscale");
    println!("cargo:root={}", dir.display());
    println!("cargo:include={}", module.display());
    target.system_libraries();
    Ok(())
}

/// What we build for, in Go's terms.
struct Target {
    triple: String,
    os: &'static str,
    arch: &'static str,
}

impl Target {
    fn from_cargo() -> Result<Self, String> {
        let triple = cargo("TARGET")?;
        if env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("musl") {
            return Err(format!(
                "{triple}: a Go archive does not run with musl (its start-up code needs glibc); \
                 use a gnu target, or TAILBONE_GO_ARCHIVE with an archive that you know to work"
            ));
        }
        let os = match cargo("CARGO_CFG_TARGET_OS")?.as_str() {
            "linux" => "linux",
            "macos" => "darwin",
            "freebsd" => "freebsd",
            other => {
                return Err(format!(
                    "{triple}: the node is not built for {other} (linux, macos and freebsd are known)"
                ));
            }
        };
        let little = env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() != Ok("big");
        let arch = match cargo("CARGO_CFG_TARGET_ARCH")?.as_str() {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "arm" => "arm",
            "riscv64" => "riscv64",
            "s390x" => "s390x",
            "loongarch64" => "loong64",
            "powerpc64" if little => "ppc64le",
            other => return Err(format!("{triple}: Go has no c-archive for {other}")),
        };
        Ok(Self { triple, os, arch })
    }

    /// GOARM for 32-bit ARM: what the triple promises, unless the user sets it.
    fn arm(&self) -> Option<String> {
        (self.arch == "arm").then(|| {
            let by_triple =
                if self.triple.starts_with("armv7") || self.triple.starts_with("thumbv7") {
                    "7"
                } else if self.triple.contains("hf") {
                    "6"
                } else {
                    "5"
                };
            env::var("GOARM").unwrap_or_else(|_| by_triple.to_owned())
        })
    }

    /// What the Go runtime needs besides libc. With the tags netgo and osusergo it resolves names
    /// by itself.
    fn system_libraries(&self) {
        match self.os {
            "darwin" => {
                for framework in ["CoreFoundation", "Security", "IOKit"] {
                    println!("cargo:rustc-link-lib=framework={framework}");
                }
                println!("cargo:rustc-link-lib=resolv");
            }
            _ => println!("cargo:rustc-link-lib=pthread"),
        }
    }
}

struct Go {
    program: PathBuf,
    version: String,
}

impl Go {
    fn find(gomod: &str) -> Result<Self, String> {
        let program = env::var_os("GO").map_or_else(|| PathBuf::from("go"), PathBuf::from);
        let needed = gomod
            .lines()
            .find_map(|l| l.strip_prefix("go "))
            .ok_or("the Go module's go.mod has no go line")?
            .trim()
            .to_owned();
        // GOTOOLCHAIN=local: a build must not download another Go without the user's knowledge.
        let said = Command::new(&program)
            .args(["env", "GOVERSION"])
            .env("GOTOOLCHAIN", "local")
            .env("GOFLAGS", "")
            .current_dir(cargo("OUT_DIR")?)
            .output()
            .map_err(|e| {
                format!(
                    "Go {needed} or newer is needed to build the tailnet node, and `{}` cannot be run: {e}; \
                     install it, or set GO to its path, or TAILBONE_GO_ARCHIVE to a prebuilt archive",
                    program.display()
                )
            })?;
        let version = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        if !said.status.success() || !version.starts_with("go") {
            return Err(format!(
                "`{} env GOVERSION` did not tell a version: {}",
                program.display(),
                String::from_utf8_lossy(&said.stderr)
            ));
        }
        if numbers(&version) < numbers(&needed) {
            return Err(format!(
                "Go {needed} or newer is needed to build the tailnet node, `{}` is {version}; \
                 install a newer one, or set GO to its path",
                program.display()
            ));
        }
        Ok(Self { program, version })
    }

    fn build(
        &self,
        module: &Path,
        target: &Target,
        tags: &[String],
        tsnet: &str,
        out: &Path,
    ) -> Result<PathBuf, String> {
        let archive = out.join("libtailscale.a");
        let compiler = cc::Build::new()
            .cargo_metadata(false)
            .cargo_warnings(false)
            .opt_level(2)
            .try_get_compiler()
            .map_err(|e| {
                format!(
                    "a C compiler for {} is needed to build the tailnet node: {e}",
                    target.triple
                )
            })?;
        let mut go = Command::new(&self.program);
        go.current_dir(module)
            .args([
                "build",
                "-buildmode=c-archive",
                "-trimpath",
                "-mod=readonly",
                "-buildvcs=false",
            ])
            .args(["-ldflags", &format!("-s -w {}", stamps(tsnet))])
            .args(["-tags", &tags.join(",")])
            .arg("-o")
            .arg(&archive)
            .arg(".")
            .env("CGO_ENABLED", "1")
            .env("GOOS", target.os)
            .env("GOARCH", target.arch)
            .env("CC", compiler.path())
            .env("GOTOOLCHAIN", "local")
            .env("GOWORK", "off");
        if let Some(arm) = target.arm() {
            go.env("GOARM", arm);
        }
        if env::var_os("GOCACHE").is_none() && !self.cache_is_writable() {
            go.env("GOCACHE", out.join("go-cache"));
        }
        let status = go
            .status()
            .map_err(|e| format!("`{}` cannot be run: {e}", self.program.display()))?;
        if !status.success() {
            return Err(format!(
                "Go could not build the tailnet node ({status}); its messages are above"
            ));
        }
        Ok(archive)
    }

    fn cache_is_writable(&self) -> bool {
        let Ok(said) = Command::new(&self.program)
            .args(["env", "GOCACHE"])
            .env("GOTOOLCHAIN", "local")
            .output()
        else {
            return false;
        };
        let dir = PathBuf::from(String::from_utf8_lossy(&said.stdout).trim());
        let probe = dir.join(format!(".tailbone-{}", std::process::id()));
        let writable = fs::create_dir_all(&dir).is_ok() && fs::write(&probe, b"").is_ok();
        let _ = fs::remove_file(&probe);
        writable
    }
}

/// Copies a prebuilt archive to where the linker finds it, under the name it expects.
fn prebuilt(path: &Path, out: &Path) -> Result<PathBuf, String> {
    println!("cargo:rerun-if-changed={}", path.display());
    let head =
        fs::read(path).map_err(|e| format!("TAILBONE_GO_ARCHIVE={}: {e}", path.display()))?;
    if !head.starts_with(b"!<arch>\n") {
        return Err(format!(
            "TAILBONE_GO_ARCHIVE={}: not a static library",
            path.display()
        ));
    }
    let archive = out.join("libtailscale.a");
    fs::write(&archive, head).map_err(|e| format!("{}: {e}", archive.display()))?;
    Ok(archive)
}

/// The files that the archive is built from, sorted: Go and C sources without tests, go.mod,
/// go.sum, tags.txt.
fn inputs(module: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    let mut folders = vec![module.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        for entry in entries {
            let path = entry
                .map_err(|e| format!("{}: {e}", folder.display()))?
                .path();
            let name = path
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            if path.is_dir() {
                if !name.starts_with('.') && name != "testdata" {
                    folders.push(path);
                }
            } else if matches!(name, "go.mod" | "go.sum" | "tags.txt")
                || name.ends_with(".h")
                || name.ends_with(".go") && !name.ends_with("_test.go")
            {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn tags(text: &str) -> Vec<String> {
    text.lines()
        .map(|l| l.split('#').next().unwrap_or_default().trim())
        .filter(|l| !l.is_empty())
        .map(str::to_owned)
        .collect()
}

fn tsnet_version(gomod: &str) -> Result<&str, String> {
    gomod
        .split_whitespace()
        .skip_while(|w| *w != "tailscale.com")
        .nth(1)
        .and_then(|v| v.strip_prefix('v'))
        .ok_or_else(|| "the Go module's go.mod does not require tailscale.com".to_owned())
}

/// The version that the node reports to the control server. Without this stamp it would report that
/// its build information is missing, since it is built as a part of another module.
fn stamps(tsnet: &str) -> String {
    let of = "-X tailscale.com/version";
    format!("{of}.shortStamp={tsnet} {of}.longStamp={tsnet}-tailbone")
}

/// The numbers in a version, so that 1.26.10 compares greater than 1.26.9.
fn numbers(version: &str) -> Vec<u64> {
    version
        .trim_start_matches("go")
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|n| n.parse().ok())
        .collect()
}

fn cargo(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("{name} is not set; this is a build script of cargo"))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}
