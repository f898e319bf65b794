//! The AWS KMS of moto, for tests, on a free loopback port. It ends when dropped.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Instant,
};

use aws_config::SdkConfig;
use aws_sdk_s3::config::Region;
use tailbone_keys::remote::awskms::{AwsKms, AwsKmsSettings};

use crate::{files::venv, patience, s3};

pub struct Moto {
    child: Child,
    pub addr: SocketAddr,
}

impl Moto {
    pub fn start() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        drop(socket);
        let mut child = Command::new(venv("bin/moto_server"))
            .args(["--host", "127.0.0.1", "--port", &addr.port().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto: run scripts/setup --tests");
        let began = Instant::now();
        while TcpStream::connect(addr).is_err() {
            let ended = child.try_wait().unwrap();
            assert!(
                ended.is_none() && began.elapsed() < patience(),
                "moto does not answer: {ended:?}"
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Self { child, addr }
    }

    pub fn service(&self) -> AwsKms {
        service_at(self.addr)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// KMS at `addr`: the server or a proxy in front of it.
pub fn service_at(addr: SocketAddr) -> AwsKms {
    let settings = AwsKmsSettings {
        endpoint: Some(format!("http://{addr}")),
        region: None,
    };
    AwsKms::with_config(&config(), settings)
}

fn config() -> SdkConfig {
    let config = s3::config(patience()).into_builder();
    config.region(Region::from_static("eu-central-1")).build()
}
