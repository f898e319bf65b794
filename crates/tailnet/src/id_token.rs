//! ID tokens from the platform that the program runs on, for a node that joins as a federated
//! identity: GitHub Actions, AWS or Google Cloud.
//!
//! Go asks for one when the node has no login in its state: it writes a byte on a socket, and the
//! answer is one JSON object (`vendor/libtailscale/node/login_federated.go`). The program asks, and
//! not Go, because it contains an AWS SDK anyway, and Go's would take 2.2 MB more.
//!
//! Invariants
//! - The platforms are tried in tsnet's order: GitHub, then AWS by its metadata service, then
//!   Google Cloud, then AWS by the variables of ECS.
//! - An error contains no token. Every answer comes within [`ANSWER_WITHIN`].
//! - The metadata services are asked without a proxy, and no redirect is followed.

use std::{error::Error as _, io, os::fd::OwnedFd, time::Duration};

use aws_config::{BehaviorVersion, SdkConfig};
use reqwest::{Method, Response, Url};
use serde::{Deserialize, Serialize};
use tailbone_values::Secret;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};
use zeroize::Zeroizing;

/// Limit for the whole answer. Detection alone may take two requests.
const ANSWER_WITHIN: Duration = Duration::from_secs(45);

/// Limit for one request to a metadata service or to GitHub.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// How long AWS's token is good for. It is used at once.
const AWS_TOKEN_SECONDS: i32 = 300;

/// The header by which Google's metadata service is told apart from anything else at its name.
const METADATA_FLAVOR: &str = "Metadata-Flavor";

/// Answers on a new socket, of which this returns Go's end.
pub(super) fn offer(audience: &str) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let audience = audience.trim().to_owned();
    tokio::spawn(async move { answer(ours, &Platform::of_this_process(), &audience).await });
    Ok(theirs.into_std()?.into())
}

/// Waits for the question and answers it. The other end may close at any time, which ends this.
async fn answer(mut socket: UnixStream, platform: &Platform, audience: &str) {
    let mut question = [0];
    if socket.read_exact(&mut question).await.is_err() {
        return;
    }
    let obtained = tokio::select! {
        obtained = timeout(ANSWER_WITHIN, platform.obtain(audience)) => obtained,
        _ = socket.read(&mut question) => return,
    };
    let obtained = obtained.unwrap_or_else(|_| {
        Err(Refusal(format!(
            "the platform did not answer within {} s",
            ANSWER_WITHIN.as_secs()
        )))
    });
    let message = match &obtained {
        Ok(token) => Answer::IdToken(token.reveal()),
        Err(refusal) => Answer::Error(&refusal.0),
    };
    let mut json = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
    if serde_json::to_writer(&mut *json, &message).is_ok() {
        // If Go no longer reads, the node is being closed.
        let _ = socket.write_all(&json).await;
    }
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer<'a> {
    IdToken(&'a str),
    Error(&'a str),
}

/// Why there is no token, in words for the operator.
#[derive(Debug, PartialEq, Eq)]
struct Refusal(String);

/// Where the tokens of this machine come from.
struct Platform {
    github: Option<GitHub>,
    /// AWS's metadata service.
    aws: String,
    /// Google Cloud's metadata service.
    google: String,
    /// Whether this is a task of AWS ECS.
    ecs: bool,
}

struct GitHub {
    url: String,
    token: Secret,
}

impl Platform {
    fn of_this_process() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let github = variable("ACTIONS_ID_TOKEN_REQUEST_URL")
            .zip(variable("ACTIONS_ID_TOKEN_REQUEST_TOKEN").map(Secret::new));
        Self {
            github: github.map(|(url, token)| GitHub { url, token }),
            aws: "http://169.254.169.254".into(),
            google: "http://metadata.google.internal".into(),
            ecs: variable("ECS_CONTAINER_METADATA_URI_V4").is_some(),
        }
    }

    async fn obtain(&self, audience: &str) -> Result<Secret, Refusal> {
        if let Some(github) = &self.github {
            return github.token(audience).await;
        }
        let metadata = client(reqwest::Client::builder().no_proxy())?;
        if self.has_aws(&metadata).await {
            return aws_token(audience).await;
        }
        if self.has_google(&metadata).await {
            return self.google_token(&metadata, audience).await;
        }
        if self.ecs {
            return aws_token(audience).await;
        }
        Err(Refusal(
            "this machine is neither a job of GitHub Actions nor on AWS or Google Cloud; set \
             server.tailscale.idToken in place of server.tailscale.audience"
                .into(),
        ))
    }

    async fn has_aws(&self, client: &reqwest::Client) -> bool {
        let asked = client
            .request(Method::PUT, format!("{}/latest/api/token", self.aws))
            .header("X-aws-ec2-metadata-token-ttl-seconds", "1")
            .send()
            .await;
        asked.is_ok_and(|answer| answer.status() == reqwest::StatusCode::OK)
    }

    async fn has_google(&self, client: &reqwest::Client) -> bool {
        let asked = client
            .get(&self.google)
            .header(METADATA_FLAVOR, "Google")
            .send()
            .await;
        asked.is_ok_and(|answer| {
            answer
                .headers()
                .get(METADATA_FLAVOR)
                .is_some_and(|flavor| flavor == "Google")
        })
    }

    async fn google_token(
        &self,
        client: &reqwest::Client,
        audience: &str,
    ) -> Result<Secret, Refusal> {
        const FROM: &str = "Google Cloud's metadata service";
        let path = "computeMetadata/v1/instance/service-accounts/default/identity";
        let mut url = parse(&format!("{}/{path}", self.google), FROM)?;
        url.query_pairs_mut()
            .append_pair("audience", audience)
            .append_pair("format", "full");
        let request = client.get(url).header(METADATA_FLAVOR, "Google");
        let body = body(request.send().await, FROM).await?;
        some_token(std::str::from_utf8(&body).unwrap_or_default(), FROM)
    }
}

impl GitHub {
    async fn token(&self, audience: &str) -> Result<Secret, Refusal> {
        const FROM: &str = "GitHub's token endpoint";
        #[derive(Deserialize)]
        struct Body {
            value: String,
        }
        let mut url = parse(&self.url, "ACTIONS_ID_TOKEN_REQUEST_URL")?;
        if !audience.is_empty() {
            let others: Vec<_> = url
                .query_pairs()
                .filter(|(name, _)| name != "audience")
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
                .collect();
            url.query_pairs_mut()
                .clear()
                .extend_pairs(others)
                .append_pair("audience", audience);
        }
        let request = client(reqwest::Client::builder())?
            .get(url)
            .bearer_auth(self.token.reveal())
            .header("Accept", "application/json");
        let body = body(request.send().await, FROM).await?;
        let body: Body = serde_json::from_slice(&body)
            .map_err(|_| Refusal(format!("{FROM} gave an answer that contains no token")))?;
        some_token(&Zeroizing::new(body.value), FROM)
    }
}

/// With the credentials and the region that the AWS SDK finds: variables, profile, web identity,
/// container, instance.
async fn aws_token(audience: &str) -> Result<Secret, Refusal> {
    let shared = aws_config::load_defaults(BehaviorVersion::latest()).await;
    aws_token_with(&shared, audience).await
}

async fn aws_token_with(shared: &SdkConfig, audience: &str) -> Result<Secret, Refusal> {
    let asked = aws_sdk_sts::Client::new(shared)
        .get_web_identity_token()
        .audience(audience)
        .signing_algorithm("ES384")
        .duration_seconds(AWS_TOKEN_SECONDS)
        .send()
        .await;
    match asked {
        Ok(answer) => some_token(answer.web_identity_token().unwrap_or_default(), "AWS STS"),
        Err(error) => {
            let mut words = String::from("AWS sts:GetWebIdentityToken failed");
            let mut cause = error.source();
            while let Some(error) = cause {
                words = format!("{words}: {error}");
                cause = error.source();
            }
            Err(Refusal(words))
        }
    }
}

fn client(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, Refusal> {
    builder
        .redirect(reqwest::redirect::Policy::none())
        .timeout(REQUEST_WITHIN)
        .build()
        .map_err(|error| Refusal(error.to_string()))
}

fn parse(url: &str, from: &str) -> Result<Url, Refusal> {
    Url::parse(url).map_err(|error| Refusal(format!("{from} is no address: {error}")))
}

/// The body of an answer with a good status. Of another one only the status is told.
async fn body(asked: reqwest::Result<Response>, from: &str) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let failed = |error: reqwest::Error| {
        let cause = error
            .source()
            .map_or_else(String::new, |cause| format!(": {cause}"));
        Refusal(format!("{from} cannot be asked{cause}"))
    };
    let mut answer = asked.map_err(failed)?;
    if !answer.status().is_success() {
        return Err(Refusal(format!("{from} answered with {}", answer.status())));
    }
    let mut body = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
    while let Some(part) = answer.chunk().await.map_err(failed)? {
        if body.len() + part.len() > MAX_ANSWER {
            return Err(Refusal(format!("{from} sent more than {MAX_ANSWER} bytes")));
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

fn some_token(text: &str, from: &str) -> Result<Secret, Refusal> {
    match text.trim() {
        "" => Err(Refusal(format!("{from} gave an empty token"))),
        token => Ok(Secret::new(token)),
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_sts::config::{Credentials, Region, SharedCredentialsProvider};
    use tokio::{
        io::{AsyncBufReadExt as _, BufReader},
        net::TcpListener,
        task::JoinHandle,
    };

    use super::*;

    /// Answers one request per entry, each on a connection of its own, and returns the requests.
    async fn server(answers: Vec<String>) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (socket, _) = listener.accept().await.unwrap();
                let mut socket = BufReader::new(socket);
                let (mut head, mut length) = (String::new(), 0);
                loop {
                    let start = head.len();
                    socket.read_line(&mut head).await.unwrap();
                    let line = head[start..].trim_end().to_ascii_lowercase();
                    if let Some(size) = line.strip_prefix("content-length: ") {
                        length = size.parse().unwrap();
                    }
                    if line.is_empty() {
                        break;
                    }
                }
                let mut sent = vec![0; length];
                socket.read_exact(&mut sent).await.unwrap();
                requests.push(head + std::str::from_utf8(&sent).unwrap());
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
            requests
        });
        (address, served)
    }

    fn http(status: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
    }

    /// A machine without any platform.
    async fn nowhere() -> Platform {
        let (closed, _) = server(Vec::new()).await;
        Platform {
            github: None,
            aws: closed.clone(),
            google: closed,
            ecs: false,
        }
    }

    #[tokio::test]
    async fn a_job_of_github_gets_a_token_for_the_audience() {
        let (url, served) = server(vec![http("200 OK", "", r#"{"value":"a.b.c"}"#)]).await;
        let platform = Platform {
            github: Some(GitHub {
                url: format!("{url}/token?api=1&audience=other"),
                token: Secret::new("job"),
            }),
            ..nowhere().await
        };
        let token = platform.obtain("api.example/x y").await.unwrap();
        assert_eq!(token.reveal(), "a.b.c");
        let request = served.await.unwrap().remove(0);
        assert!(
            request.starts_with("GET /token?api=1&audience=api.example%2Fx+y HTTP/1.1"),
            "{request}"
        );
        assert!(request.contains("authorization: Bearer job"), "{request}");
    }

    #[tokio::test]
    async fn a_refusal_of_github_names_the_status_and_no_token() {
        for (answer, words) in [
            (
                http("403 Forbidden", "", "job-secret"),
                "GitHub's token endpoint answered with 403 Forbidden",
            ),
            (
                http("200 OK", "", "job-secret"),
                "GitHub's token endpoint gave an answer that contains no token",
            ),
            (
                http("200 OK", "", r#"{"value":" "}"#),
                "GitHub's token endpoint gave an empty token",
            ),
            (
                http("302 Found", "location: http://127.0.0.1:9/\r\n", ""),
                "GitHub's token endpoint answered with 302 Found",
            ),
        ] {
            let (url, _) = server(vec![answer]).await;
            let platform = Platform {
                github: Some(GitHub {
                    url,
                    token: Secret::new("job-secret"),
                }),
                ..nowhere().await
            };
            assert_eq!(
                platform.obtain("api").await.unwrap_err(),
                Refusal(words.into())
            );
        }
    }

    #[tokio::test]
    async fn google_is_recognised_by_its_header_and_asked_for_the_whole_token() {
        let flavor = "metadata-flavor: Google\r\n";
        let (google, served) = server(vec![
            http("200 OK", flavor, "computeMetadata/"),
            http("200 OK", flavor, "a.b.c\n"),
        ])
        .await;
        let platform = Platform {
            google,
            ..nowhere().await
        };
        assert_eq!(platform.obtain("api").await.unwrap().reveal(), "a.b.c");
        let requests = served.await.unwrap();
        assert!(
            requests[1].starts_with(
                "GET /computeMetadata/v1/instance/service-accounts/default/identity?audience=api&format=full "
            ),
            "{}",
            requests[1]
        );
        assert!(
            requests
                .iter()
                .all(|request| request.contains("metadata-flavor: Google")),
            "{requests:?}"
        );
    }

    #[tokio::test]
    async fn aws_is_recognised_by_the_token_of_its_metadata_service() {
        let (aws, served) = server(vec![
            http("200 OK", "", "session"),
            http("404 Not Found", "", ""),
        ])
        .await;
        let platform = Platform {
            aws,
            ..nowhere().await
        };
        let client = client(reqwest::Client::builder().no_proxy()).unwrap();
        assert!(platform.has_aws(&client).await);
        assert!(!platform.has_aws(&client).await);
        let request = served.await.unwrap().remove(0);
        assert!(request.starts_with("PUT /latest/api/token "), "{request}");
    }

    #[tokio::test]
    async fn a_machine_without_a_platform_is_told_what_to_set() {
        let refusal = nowhere().await.obtain("api").await.unwrap_err();
        assert!(
            refusal.0.contains("server.tailscale.idToken"),
            "{refusal:?}"
        );
    }

    fn aws(endpoint: &str) -> SdkConfig {
        let credentials = Credentials::new("AKIDEXAMPLE", "key-secret", None, None, "test");
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-central-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .endpoint_url(endpoint)
            .build()
    }

    #[tokio::test]
    async fn aws_signs_a_short_token_for_the_audience() {
        let xml = "<GetWebIdentityTokenResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
                   <GetWebIdentityTokenResult><WebIdentityToken>a.b.c</WebIdentityToken>\
                   <Expiration>2026-11-30T19:00:00Z</Expiration></GetWebIdentityTokenResult>\
                   </GetWebIdentityTokenResponse>";
        let (endpoint, served) =
            server(vec![http("200 OK", "content-type: text/xml\r\n", xml)]).await;
        let token = aws_token_with(&aws(&endpoint), "api").await.unwrap();
        assert_eq!(token.reveal(), "a.b.c");
        let request = served.await.unwrap().remove(0);
        for part in [
            "Action=GetWebIdentityToken",
            "Audience.member.1=api",
            "SigningAlgorithm=ES384",
            "DurationSeconds=300",
            "/eu-central-1/sts/aws4_request",
        ] {
            assert!(request.contains(part), "{part}: {request}");
        }
    }

    #[tokio::test]
    async fn a_refusal_of_aws_is_told_in_its_words() {
        let xml = "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>\
                   <Type>Sender</Type><Code>AccessDenied</Code><Message>not this role</Message>\
                   </Error><RequestId>r</RequestId></ErrorResponse>";
        let (endpoint, _) = server(vec![http(
            "403 Forbidden",
            "content-type: text/xml\r\n",
            xml,
        )])
        .await;
        let Refusal(words) = aws_token_with(&aws(&endpoint), "api").await.unwrap_err();
        assert!(
            words.contains("AccessDenied") && words.contains("not this role"),
            "{words}"
        );
        assert!(!words.contains("key-secret"), "{words}");
    }

    #[tokio::test]
    async fn the_question_is_answered_once_and_the_socket_closed() {
        let (url, _) = server(vec![http("200 OK", "", r#"{"value":"a.b.c"}"#)]).await;
        let platform = Platform {
            github: Some(GitHub {
                url,
                token: Secret::new("job"),
            }),
            ..nowhere().await
        };
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let answering = tokio::spawn(async move { answer(ours, &platform, "api").await });
        theirs.write_all(&[0]).await.unwrap();
        let mut json = String::new();
        theirs.read_to_string(&mut json).await.unwrap();
        assert_eq!(json, r#"{"id_token":"a.b.c"}"#);
        answering.await.unwrap();
    }

    #[tokio::test]
    async fn without_a_question_nobody_is_asked() {
        let platform = nowhere().await;
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        timeout(Duration::from_secs(20), answer(ours, &platform, "api"))
            .await
            .unwrap();
    }
}
