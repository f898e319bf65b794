//! A proxy for `CONNECT` that knows the hosts of one server. Programs that take their proxy from
//! `HTTPS_PROXY` find there, at the hosts' own names, a server that listens on loopback.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// The most bytes that the head of a request may have.
const MAX_HEAD: usize = 8 * 1024;

/// A running proxy. It ends when dropped.
pub struct ConnectProxy {
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

impl ConnectProxy {
    /// Connections to port 443 of these hosts go to `server`; others are refused.
    pub async fn start(hosts: &[&str], server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        // Python says HTTP/1.0.
        let line = |host: &&str| format!("CONNECT {host}:443 HTTP/1.");
        let lines: Vec<String> = hosts.iter().map(line).collect();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let lines = lines.clone();
                tokio::spawn(async move {
                    // A client that goes away has seen enough.
                    let _ = forward(client, &lines, server).await;
                });
            }
        });
        Self { addr, task }
    }

    /// The value of `HTTPS_PROXY`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(mut client: TcpStream, lines: &[String], server: SocketAddr) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
        head.push(client.read_u8().await?);
    }
    if !lines.iter().any(|line| head.starts_with(line.as_bytes())) {
        return client.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").await;
    }
    let mut server = TcpStream::connect(server).await?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
