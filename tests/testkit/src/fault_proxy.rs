//! A loopback HTTP proxy in front of a server that does to requests what faulty networks and
//! servers do.
//!
//! One request per connection, passed on byte for byte except for `Connection: close`, so that
//! signatures stay valid.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

#[derive(Debug, Clone)]
pub enum Fault {
    /// Answers this without asking the server.
    Answer { status: u16, body: Vec<u8> },
    /// Announces a body of this many bytes and sends it.
    Announce(u64),
    /// Asks the server after this delay.
    Delay(Duration),
    /// Passes the request on and closes the connection without an answer.
    DropAfter,
    /// Passes the request on, then answers with this body instead of the server's.
    Replace(Vec<u8>),
    /// Answers what the server answered to the GET before the last one that was passed on.
    Stale,
    /// Sends half of the body and closes the connection.
    Truncate,
}

impl Fault {
    pub fn status(status: u16) -> Self {
        Self::Answer {
            status,
            body: Vec::new(),
        }
    }

    pub fn code(status: u16, code: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>x</Message></Error>"
        );
        Self::Answer {
            status,
            body: body.into_bytes(),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// For the next requests of that method.
    next: VecDeque<(&'static str, Fault)>,
    /// For all requests of that method.
    always: Option<(&'static str, Fault)>,
    requests: Vec<String>,
    answers: Vec<Vec<u8>>,
}

pub struct FaultProxy {
    pub addr: SocketAddr,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl FaultProxy {
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = state.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let state = shared.clone();
                tokio::spawn(async move {
                    // A client that hangs up is not an error here.
                    let _ = serve(stream, upstream, &state).await;
                });
            }
        });
        Self { addr, state, task }
    }

    /// Applies `fault` to the next request of `method`.
    pub fn once(&self, method: &'static str, fault: Fault) {
        self.state.lock().unwrap().next.push_back((method, fault));
    }

    /// Applies `fault` to every request of `method`, until [`Self::heal`].
    pub fn always(&self, method: &'static str, fault: Fault) {
        self.state.lock().unwrap().always = Some((method, fault));
    }

    pub fn heal(&self) {
        let mut state = self.state.lock().unwrap();
        state.always = None;
        state.next.clear();
    }

    /// The heads of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut client: TcpStream,
    upstream: SocketAddr,
    state: &Mutex<State>,
) -> std::io::Result<()> {
    let request = read_message(&mut client).await?;
    let head = String::from_utf8_lossy(&request[..head_length(&request).unwrap_or(request.len())])
        .into_owned();
    let method = head.split(' ').next().unwrap_or_default().to_owned();
    let fault = {
        let mut state = state.lock().unwrap();
        state.requests.push(head.clone());
        match state.next.iter().position(|(wanted, _)| *wanted == method) {
            Some(position) => state.next.remove(position).map(|(_, fault)| fault),
            None => state
                .always
                .clone()
                .filter(|(wanted, _)| *wanted == method)
                .map(|(_, fault)| fault),
        }
    };
    match &fault {
        Some(Fault::Answer { status, body }) => {
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            client.write_all(head.as_bytes()).await?;
            client.write_all(body).await?;
            return client.shutdown().await;
        }
        Some(Fault::Announce(length)) => {
            let head = format!(
                "HTTP/1.1 200 OK\r\nETag: \"x\"\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{{"
            );
            client.write_all(head.as_bytes()).await?;
            // Goes on until the client hangs up.
            let blanks = [b' '; 65536];
            for _ in 0..length / 65536 {
                client.write_all(&blanks).await?;
            }
            return client.shutdown().await;
        }
        Some(Fault::Delay(time)) => tokio::time::sleep(*time).await,
        _ => {}
    }
    let mut answer = pass_on(&request, upstream).await?;
    let split = head_length(&answer).unwrap_or(answer.len());
    match &fault {
        Some(Fault::DropAfter) => return Ok(()),
        Some(Fault::Replace(body)) => answer = with_body(&answer[..split], body),
        Some(Fault::Truncate) => answer.truncate(split + (answer.len() - split) / 2),
        Some(Fault::Stale) => {
            let state = state.lock().unwrap();
            if let Some(old) = state.answers.iter().rev().nth(1) {
                answer.clone_from(old);
            }
        }
        _ if method == "GET" => state.lock().unwrap().answers.push(answer.clone()),
        _ => {}
    }
    client.write_all(&answer).await?;
    client.shutdown().await
}

async fn pass_on(request: &[u8], upstream: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut server = TcpStream::connect(upstream).await?;
    let first = request
        .windows(2)
        .position(|pair| pair == b"\r\n")
        .unwrap_or(0);
    server.write_all(&request[..first]).await?;
    server.write_all(b"\r\nConnection: close").await?;
    server.write_all(&request[first..]).await?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).await?;
    Ok(answer)
}

async fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut message = Vec::new();
    let mut part = vec![0; 65536];
    loop {
        if let Some(head) = head_length(&message) {
            let length = content_length(&message[..head]);
            if message.len() >= head + length {
                return Ok(message);
            }
        }
        match stream.read(&mut part).await? {
            0 => return Ok(message),
            read => message.extend_from_slice(&part[..read]),
        }
    }
}

fn head_length(message: &[u8]) -> Option<usize> {
    message
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .map(|position| position + 4)
}

fn content_length(head: &[u8]) -> usize {
    String::from_utf8_lossy(head)
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

fn with_body(head: &[u8], body: &[u8]) -> Vec<u8> {
    let head = String::from_utf8_lossy(head);
    let kept: Vec<_> = head
        .trim_end()
        .lines()
        .filter(|line| !line.to_ascii_lowercase().starts_with("content-length:"))
        .collect();
    let mut answer = format!(
        "{}\r\nContent-Length: {}\r\n\r\n",
        kept.join("\r\n"),
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    answer
}
