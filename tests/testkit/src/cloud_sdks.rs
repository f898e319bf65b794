//! SDKs of the clouds for Python (`tests/python/cloud_sdks.py`), and the token services that they
//! buy at (`tests/python/token_services.py`), which check tokens with PyJWT.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::{
    files::{certificate_file, tree, venv},
    s3::{self, S3Server},
};

pub const ROLE: &str = "arn:aws:iam::123456789012:role/web";

/// The provider of Google Cloud, which is its own audience.
pub const GOOGLE: &str =
    "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/w/providers/p";

/// The audience of Microsoft Entra.
pub const AZURE: &str = "api://AzureADTokenExchange";

/// What the clouds trust: tokens of this issuer about this subject. `tailbone` is the program that
/// SDKs start, and `reach` what its commands are told of the issuer.
pub fn settings(issuer: &str, subject: &str, tailbone: &str, reach: &[&str]) -> Value {
    json!({
        "issuer": issuer,
        "subject": subject,
        "certificate": certificate_file("first.crt"),
        "key": certificate_file("first.key"),
        "tailbone": tailbone,
        "reach": reach,
        "role": ROLE,
        "client_id": "00000000-0000-0000-0000-000000000002",
        "google_audience": GOOGLE,
    })
}

/// The role may read the object of this store.
pub fn store(store: &S3Server) -> Value {
    json!({
        "s3": format!("http://{}", store.addr),
        "bucket": s3::BUCKET,
        "object": s3::KEY_PATH,
        "access": s3::ACCESS,
        "secret": s3::SECRET,
    })
}

/// All these settings; later ones win.
pub fn joined<const N: usize>(parts: [Value; N]) -> Value {
    let mut all = serde_json::Map::new();
    for part in parts {
        let Value::Object(part) = part else {
            panic!("settings are an object")
        };
        all.extend(part);
    }
    Value::Object(all)
}

/// What the script's functions got, or what it said when one failed.
pub async fn run(functions: &[&str], settings: Value) -> Result<Value, String> {
    let mut command = Command::new(venv("bin/python"));
    command
        .arg(tree("tests/python/cloud_sdks.py"))
        .args(functions)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let input = settings.to_string();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        child.wait_with_output().unwrap()
    });
    let output = output.await.unwrap();
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The token services as a program, for SDKs in other languages. It ends when dropped.
pub struct TokenServices {
    pub url: String,
    child: Child,
    said: Arc<Mutex<Vec<Value>>>,
    _settings: NamedTempFile,
}

impl TokenServices {
    pub fn start(settings: &Value) -> Self {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(settings.to_string().as_bytes()).unwrap();
        let mut child = Command::new(venv("bin/python"))
            .arg(tree("tests/python/token_services.py"))
            .arg(file.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut lines = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
        let first = lines.next().expect("the services start");
        let said = Arc::<Mutex<Vec<Value>>>::default();
        let kept = said.clone();
        std::thread::spawn(move || lines.for_each(|line| kept.lock().unwrap().push(line)));
        Self {
            url: first["url"].as_str().unwrap().to_owned(),
            child,
            said,
            _settings: file,
        }
    }

    /// A record of each token that they were shown: `service`, `token` and `subject`, or `refused`.
    pub fn said(&self) -> Vec<Value> {
        self.said.lock().unwrap().clone()
    }
}

impl Drop for TokenServices {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The file of AWS's settings with a profile `web`, which becomes the role by the token in a file.
pub fn aws_profile(token_file: &Path, services: &TokenServices) -> String {
    format!(
        "[profile web]\nregion = us-east-1\nrole_arn = {ROLE}\nrole_session_name = web\n\
         web_identity_token_file = {}\nservices = local\n\n[services local]\nsts =\n  \
         endpoint_url = {}\n",
        token_file.display(),
        services.url,
    )
}
