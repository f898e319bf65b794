//! Speed of the program's own signer alone, with which `scripts/bench` compares tokens per second.
//!
//! ```text
//! sign --seconds 1             signatures per second and processor time of each, on one
//!                              thread and on one per core; JSON
//! sign --write-keys DIR COUNT  a key directory as an old installation has it
//! ```

use std::{
    env,
    error::Error,
    fs,
    num::NonZero,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tailbone::{
    config::KeySpec,
    keys::{KeyId, PrivateJwk, Signer},
};

/// As long as the claims of a machine's token.
const CLAIMS: &[u8] = &[b'x'; 300];

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["--write-keys", directory, count] => write_keys(Path::new(directory), count.parse()?),
        ["--seconds", seconds, ..] => rates(Duration::from_secs_f64(seconds.parse()?)),
        // `cargo bench` passes no such argument.
        _ => rates(Duration::from_secs(1)),
    }
}

fn rates(time: Duration) -> Outcome<()> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let mut all = serde_json::Map::new();
    for (name, spec) in [
        ("RS256", KeySpec::Rs256 { bits: 2048 }),
        ("ES256", KeySpec::Es256),
        ("EdDSA", KeySpec::EdDsa),
    ] {
        let kid = KeyId::generate("bench", Timestamp::now())?;
        let signer = Signer::new(&PrivateJwk::generate(kid, spec)?)?;
        let one = rate(&signer, 1, time)?;
        all.insert(
            name.to_owned(),
            json!({ "one": one, "all": rate(&signer, cores, time)? }),
        );
    }
    println!("{}", Value::Object(all));
    Ok(())
}

/// Signatures per second of this many threads in total, and the processor time of one signature.
fn rate(signer: &Signer, threads: usize, time: Duration) -> Outcome<Value> {
    let done = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| busy(signer, time)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a thread panicked")?)
            .collect::<Outcome<Vec<_>>>()
    })?;
    let rate: f64 = done.iter().map(|one| one.count / one.wall).sum();
    let cpu: f64 = done.iter().map(|one| one.cpu).sum();
    let count: f64 = done.iter().map(|one| one.count).sum();
    Ok(json!({ "threads": threads, "per_second": rate, "cpu_us": cpu * 1e6 / count }))
}

struct Done {
    count: f64,
    /// Seconds.
    wall: f64,
    cpu: f64,
}

fn busy(signer: &Signer, time: Duration) -> Outcome<Done> {
    signer.sign(CLAIMS)?;
    let (began, cpu) = (Instant::now(), thread_cpu());
    let mut count = 0.0;
    while began.elapsed() < time {
        std::hint::black_box(signer.sign(CLAIMS)?);
        count += 1.0;
    }
    Ok(Done {
        count,
        wall: began.elapsed().as_secs_f64(),
        cpu: thread_cpu() - cpu,
    })
}

fn thread_cpu() -> f64 {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime))
        .unwrap_or_default()
        .as_secs_f64()
}

/// Keys an hour apart, the newest made just now, without the facts that this program writes beside
/// them: what it finds when it takes over from the original.
fn write_keys(directory: &Path, count: i64) -> Outcome<()> {
    fs::create_dir_all(directory)?;
    let now = Timestamp::now().as_second();
    for number in 0..count {
        let kid: KeyId = format!("tb-{}", now - number * 3600).parse()?;
        let key = PrivateJwk::generate(kid.clone(), KeySpec::Es256)?;
        let file = |kind| directory.join(format!("{}.{kind}.jwk", kid.as_str()));
        fs::write(file("private"), key.to_file())?;
        fs::write(file("public"), key.public().to_file())?;
    }
    Ok(())
}
