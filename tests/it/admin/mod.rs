//! The admin API from its callers' point of view: over a fake tailnet and on the local socket, with
//! our client and with one that only knows the Go program's messages.

pub(crate) mod authorization;
mod cli;
mod concurrent_changes;
mod housekeeping;
mod methods;
mod old_client;
mod pages;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tailbone::{
    admin::{
        AdminApi, AdminSocket, Requester,
        proto::{
            GenerateNewKeysRequest, Key, ListKeysRequest, admin_service_client::AdminServiceClient,
        },
        router,
    },
    config::{Authorization, KeySpec},
    http::{
        layers,
        serve::{Limits, Server, serve},
    },
    jwks::{FilePublisher, Publisher, life::KeyLife},
    keys::KeyStore,
    part::ServerState,
    tailnet::fake::{FakeNode, Identity},
};
use tempfile::TempDir;
use testkit::{http::dial, keys::policy, soon, world::World};
use tonic::transport::{Channel, Endpoint};

pub(crate) const ADMIN_CAPABILITY: &str = "tailbone.dev/cap/admin";
pub(crate) const PORT: u16 = 50051;
const CACHE_TIME: Duration = Duration::from_secs(300);
const SKEW: Duration = Duration::from_secs(60);

type Api = AdminServiceClient<Channel>;

/// A server of the admin API on a world of its own, with its socket and one key.
struct AdminServer {
    world: World,
    keys: KeyLife,
    dir: TempDir,
    /// Kept because dropping a server stops it.
    _servers: [Server; 2],
}

impl AdminServer {
    async fn new() -> Self {
        Self::with(Authorization::Grant).await
    }

    async fn with(mode: Authorization) -> Self {
        let dir = TempDir::new().unwrap();
        let publisher = FilePublisher::new(dir.path().join("keys").join("jwks.json"));
        Self::at(dir, mode, Arc::new(publisher)).await
    }

    async fn at(dir: TempDir, mode: Authorization, publisher: Arc<dyn Publisher>) -> Self {
        let store = KeyStore::new(dir.path().join("keys"));
        let keys = KeyLife::new(store, publisher, policy(), "tb", KeySpec::Es256).in_told_time();
        // Two keys from the same second have no defined order; the first key must be the older one.
        let before = Timestamp::now() - Duration::from_secs(10);
        keys.start(before).await.expect("a first key");
        keys.sync(Timestamp::now()).await.expect("a look");
        let world = World::new();
        let state = ServerState::default();
        state.membership.joined(world.faulty.clone());
        let routes = routes(keys.clone(), mode, state);
        let tailnet = world.serve(PORT, routes.clone()).await;
        let local = serve_socket(&dir.path().join("admin.sock"), routes);
        Self {
            world,
            keys,
            dir,
            _servers: [tailnet, local],
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }

    fn keys_dir(&self) -> PathBuf {
        self.dir.path().join("keys")
    }

    async fn local(&self) -> Api {
        let path = self.socket();
        let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        AdminServiceClient::new(over(stream).await)
    }

    /// A client on a node of its own.
    async fn caller(&self, host: &str, identity: Identity) -> Api {
        AdminServiceClient::new(self.channel(&self.world.join(host, identity)).await)
    }

    async fn channel(&self, node: &FakeNode) -> Channel {
        over(dial(node, &format!("tailbone:{PORT}")).await).await
    }

    async fn owner(&self) -> Api {
        self.caller("desk", Identity::user("owner@example.com"))
            .await
    }

    /// The key ids in the stored document.
    fn published(&self) -> Vec<String> {
        published(&self.keys_dir())
    }
}

/// The routes of the admin API.
pub(crate) fn routes(keys: KeyLife, mode: Authorization, state: ServerState) -> Router {
    let admin = AdminApi {
        sets: Arc::default(),
        keys,
        spec: KeySpec::Es256,
        mode,
        state,
        changes: Arc::default(),
    };
    layers::wrap_grpc(router(admin).unwrap(), "admin")
}

/// Serves these routes at a local socket.
pub(crate) fn serve_socket(path: &Path, routes: Router) -> Server {
    let socket = AdminSocket::bind(path).unwrap();
    serve(
        "admin socket",
        socket,
        routes,
        Limits::default(),
        Requester::identify,
    )
}

fn published(keys_dir: &Path) -> Vec<String> {
    let document: serde_json::Value =
        serde_json::from_slice(&std::fs::read(keys_dir.join("jwks.json")).unwrap()).unwrap();
    let keys = document["keys"].as_array().unwrap();
    keys.iter()
        .map(|key| key["kid"].as_str().unwrap().to_owned())
        .collect()
}

/// A channel over a single stream. It lives as long as it is used.
pub(crate) async fn over<S>(stream: S) -> Channel
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut stream = Some(TokioIo::new(stream));
    let once = tower::service_fn(move |_| {
        let stream = stream.take().ok_or(std::io::ErrorKind::NotConnected);
        std::future::ready(stream.map_err(std::io::Error::from))
    });
    soon(
        "a connection",
        Endpoint::from_static("http://tailbone").connect_with_connector(once),
    )
    .await
    .unwrap()
}

async fn generate(api: &mut Api) -> Key {
    let answer = soon(
        "a key",
        api.generate_new_keys(GenerateNewKeysRequest::default()),
    )
    .await
    .unwrap();
    answer.into_inner().key.unwrap()
}

async fn list(api: &mut Api) -> Vec<Key> {
    let answer = soon("a list", api.list_keys(ListKeysRequest {})).await;
    answer.unwrap().into_inner().keys
}
