//! Instructions of the pure parts of a request, counted by valgrind and compared with a baseline in
//! the tree. More than a tenth above it is a failure.
//!
//! Part of `cargo test`, so it counts unoptimised code: that shows what is done, not how well it
//! was compiled, and needs no second build. Two runs give exactly the same numbers: time, ids and
//! keys are arguments, what is done once per process is done before the count begins, and the Go
//! runtime in the process is kept from sending signals. Another compiler gives other numbers, so
//! each has its own baseline; without one nothing is compared.
//!
//! `TAILBONE_UPDATE_COUNTS=1 cargo test --package tailbone-bench` writes the baseline.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs,
    hint::black_box,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use http::Method;
use jiff::Timestamp;
use tailbone::{
    config::{KeySpec, TokenSettings},
    identity::{Caller, Visitor},
    issuer::IssuerClaims,
    jwks::Document,
    keys::{PrivateJwk, PublicJwk, Signer},
    policy::{self, CAPABILITY, Host, Rules, Target, Who},
    tailnet::WhoIs,
};
use uuid::Uuid;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What the node reports about a machine with tags and a grant, as it crosses the fence.
const MACHINE: &str = r#"{"node":{"id":"nKx1CNTRL","name":"ci-runner-7.example-devnet.ts.net","hostname":"ci-runner-7",
"addresses":["100.64.0.7","fd7a:115c:a1e0::7"],"tags":["tag:ci","tag:build"],"key_expiry":"","expired":false,"sharer":false,
"user_id":3},"user":{"id":3,"login":"tagged-devices","display_name":"Tagged Devices","picture":""},
"caps":{"tailbone.dev/cap/gate":[{"hosts":["wiki.example.com"],"paths":["/docs"]}]},"same_tailnet":true}"#;

const USER: &str = r#"{"node":{"id":"nAx1CNTRL","name":"laptop.example-devnet.ts.net","hostname":"laptop",
"addresses":["100.64.0.2","fd7a:115c:a1e0::2"],"tags":[],"key_expiry":"2030-01-02T03:04:05Z","expired":false,"sharer":false,
"user_id":7},"user":{"id":7,"login":"alice@example.com","display_name":"Alice Example","picture":"https://example.com/a.png"},
"caps":{},"same_tailnet":true}"#;

/// Number of calls within one count.
const TIMES: u32 = 10;

/// Set in the process that runs under valgrind.
const INSIDE: &str = "TAILBONE_COUNT_INSIDE";
const UPDATE: &str = "TAILBONE_UPDATE_COUNTS";
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../counts.json");

/// Instructions of each part, by name.
type Counts = BTreeMap<String, u64>;

fn main() -> Outcome<()> {
    if env::var_os(INSIDE).is_some() {
        whois()?;
        tokens()?;
        policy()?;
        return jwks();
    }
    // Filters work as for any other test: `cargo test SOMETHING_ELSE` skips this one.
    let mut words = env::args().skip(1);
    if words.any(|word| word == "--list" || !(word.starts_with('-') || "counts".contains(&word))) {
        return Ok(());
    }
    let Some(counts) = counted()? else {
        println!(
            "counts: nothing was counted, since there is no valgrind (scripts/setup --tests installs it)"
        );
        return Ok(());
    };
    if env::var_os(UPDATE).is_some() {
        return write_baseline(counts);
    }
    compare(&counts)
}

/// Runs this program under valgrind. `None` if valgrind is not installed.
fn counted() -> Outcome<Option<Counts>> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("counts");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let out = folder.join("out");
    let run = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--quiet",
            "--vgdb=no",
            "--collect-atstart=no",
        ])
        .args([
            "--toggle-collect=counts::measured",
            "--dump-after=counts::measured",
        ])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(env::current_exe()?)
        .env(INSIDE, "1")
        // The Go runtime is linked in and starts, although nothing calls it. callgrind cannot
        // handle its signals between threads.
        .envs([
            ("GODEBUG", "asyncpreemptoff=1"),
            ("GOMAXPROCS", "1"),
            ("GOGC", "off"),
        ])
        .output();
    let run = match run {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        run => run?,
    };
    let names = said(&run)?;
    let mut counts = Counts::new();
    for (number, name) in names.lines().enumerate() {
        let total = total(&folder.join(format!("out.{}", number + 1)))?;
        counts.insert(name.to_owned(), total / u64::from(TIMES));
    }
    Ok(Some(counts))
}

fn said(run: &Output) -> Outcome<&str> {
    if !run.status.success() {
        return Err(format!("{}: {}", run.status, String::from_utf8_lossy(&run.stderr)).into());
    }
    Ok(std::str::from_utf8(&run.stdout)?)
}

/// The number in one dump.
fn total(dump: &Path) -> Outcome<u64> {
    let text = fs::read_to_string(dump)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("summary: "))
        .ok_or("a dump without a summary")?;
    Ok(line.trim().parse()?)
}

fn compare(counts: &Counts) -> Outcome<()> {
    let (all, compiler) = (baselines()?, compiler()?);
    let Some(baseline) = all.get(&compiler) else {
        println!(
            "counts: not compared, since there is no baseline for {compiler}; {UPDATE}=1 makes one"
        );
        return Ok(());
    };
    if !counts.keys().eq(baseline.keys()) {
        return Err(format!("the baseline counts other parts; {UPDATE}=1 writes it anew").into());
    }
    let mut worse = Vec::new();
    for (name, count) in counts {
        let before = baseline[name];
        let permille = i128::from(*count) * 1000 / i128::from(before.max(1)) - 1000;
        println!("counts: {name}: {count} instructions, {before} before ({permille:+} ‰)");
        if *count > before + before / 10 {
            worse.push(name.as_str());
        }
    }
    if worse.is_empty() {
        return Ok(());
    }
    Err(format!(
        "more than a tenth above the baseline: {}; if it is worth it, {UPDATE}=1",
        worse.join(", ")
    )
    .into())
}

fn write_baseline(counts: Counts) -> Outcome<()> {
    let mut all = baselines()?;
    all.insert(compiler()?, counts);
    let mut text = serde_json::to_string_pretty(&all)?;
    text.push('\n');
    Ok(fs::write(BASELINE, text)?)
}

fn baselines() -> Outcome<BTreeMap<String, Counts>> {
    match fs::read(BASELINE) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        text => Ok(serde_json::from_slice(&text?)?),
    }
}

/// What makes the same source compile to other instructions.
fn compiler() -> Outcome<String> {
    let version = Command::new("rustc").arg("--version").output()?;
    let kind = if cfg!(debug_assertions) {
        "unoptimised"
    } else {
        "optimised"
    };
    Ok(format!(
        "{}, {}, {kind}",
        said(&version)?.trim(),
        env::consts::ARCH
    ))
}

/// Only the instructions of this function count. Its calls are matched with the printed names by
/// their order.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    for _ in 0..TIMES {
        work();
    }
}

fn count<T>(name: &str, mut work: impl FnMut() -> Outcome<T>) -> Outcome<()> {
    // A part that fails would look cheap.
    work()?;
    measured(&mut || {
        let _ = black_box(work());
    });
    println!("{name}");
    Ok(())
}

fn whois() -> Outcome<()> {
    for (name, json) in [("whois of a user", USER), ("whois of a machine", MACHINE)] {
        count(name, || {
            Ok(Caller::from_whois(serde_json::from_slice::<WhoIs>(
                black_box(json).as_bytes(),
            )?)?)
        })?;
    }
    Ok(())
}

fn tokens() -> Outcome<()> {
    let settings = TokenSettings {
        issuer: "tailbone".to_owned(),
        expiry: Duration::from_secs(1200),
        skew: Duration::from_secs(60),
    };
    let now: Timestamp = "2026-01-02T03:04:05Z".parse()?;
    let id = Uuid::from_u128(0x0123_4567_89ab_4def_8123_4567_89ab_cdef);
    let user = Caller::from_whois(serde_json::from_str(USER)?)?;
    let machine = Caller::from_whois(serde_json::from_str(MACHINE)?)?;
    for (name, caller) in [
        ("claims of a user", &user),
        ("claims of a machine", &machine),
    ] {
        count(name, || {
            Ok(serde_json::to_vec(&IssuerClaims::new(
                black_box(caller),
                &settings,
                now,
                id,
            ))?)
        })?;
    }
    // Ed25519 uses no random number, so every signature executes the same instructions.
    let key = PrivateJwk::generate("tb-1740172800".parse()?, KeySpec::EdDsa)?;
    let signer = Signer::new(&key)?;
    let claims = serde_json::to_vec(&IssuerClaims::new(&machine, &settings, now, id))?;
    count("signature (EdDSA)", || Ok(signer.sign(black_box(&claims))?))
}

fn policy() -> Outcome<()> {
    let visitor = |json| -> Outcome<_> {
        Ok(Visitor::from_whois(
            serde_json::from_str(json)?,
            "example-devnet.ts.net",
        )?)
    };
    let (user, machine) = (visitor(USER)?, visitor(MACHINE)?);
    let rule = |number| {
        format!(
            "[[rule]]\nname = 'rule-{number}'\ndecision = 'allow'\nwho = ['user-{number}@example.com', 'tag:none']\n\
             hosts = ['*.example.com']\nmethods = ['GET']\npaths = ['/docs/{number}', '/docs']\n"
        )
    };
    let last = "[[rule]]\nname = 'all'\ndecision = 'allow'\nwho = ['*']\n".to_owned();
    let text = (0..50).map(rule).chain([last]).collect::<String>();
    let rules = Rules::parse(&text, CAPABILITY)?;
    for (name, visitor, path, decides) in [
        ("decision by a grant", &machine, "/docs/a/page", "grant:1"),
        (
            "decision by the last of 51 rules",
            &user,
            "/docs/7/page",
            "rule:all",
        ),
    ] {
        count(name, || {
            let target = Target {
                host: Some(Host::parse(black_box("wiki.example.com:443"))?),
                path: Some(policy::Path::parse(black_box(path))?),
                method: Some(Method::GET),
            };
            let decision = rules.decide(Who::Known(visitor), &target);
            if decision.rule.to_string() != decides {
                return Err(format!("{} decided", decision.rule).into());
            }
            Ok(decision)
        })?;
    }
    Ok(())
}

fn jwks() -> Outcome<()> {
    let public = |number: u32| -> Outcome<PublicJwk> {
        let kid = format!("tb-{}", 1_740_172_800 + number);
        Ok(PrivateJwk::generate(kid.parse()?, KeySpec::Es256)?
            .public()
            .clone())
    };
    let mut document = Document::default();
    for number in 0..10 {
        document.add(&public(number)?)?;
    }
    let (bytes, new) = (document.to_bytes(), public(10)?);
    count("a key into a JWKS of ten", || {
        let mut document = Document::parse(black_box(&bytes))?;
        document.add(&new)?;
        Ok(document.to_bytes())
    })
}
