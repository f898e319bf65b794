//! A web service that is a machine on the tailnet and knows its callers.
//!
//! ```text
//! TS_AUTHKEY=tskey-auth-… cargo run --example whoami     # a key is only needed the first time
//! curl http://whoami/                                    # from any machine on the tailnet
//! ```
//!
//! The node's state is kept in ./whoami-state. `TS_CONTROL_URL` selects another control server.

use std::{error::Error, sync::Arc};

use axum::{Router, routing::get};
use tailbone::{
    config::Secret,
    gate::{Admitted, GateLayer},
    http::{
        host::{HostRule, NodeNames},
        layers,
        serve::{Limits, serve},
    },
    identity::{Caller, Directory, TailnetListener},
    policy::{CAPABILITY, Mistakes, Rules},
    tailnet::{BackendState, Config, EmbeddedNode, ListenAddr, Node},
};

const RULES: &str = r#"
[[rule]]
name = "probe"
decision = "anonymous"
paths = ["/healthz"]

[[rule]]
name = "people and machines of our tailnet"
decision = "allow"
"#;

/// The service. Requests that the layer admits have an `Admitted`.
pub fn app() -> Result<Router, Mistakes> {
    let gate = GateLayer::new(Rules::parse(RULES, CAPABILITY)?);
    Ok(Router::new()
        .route("/", get(hello))
        .route("/tags", get(tags))
        .route("/healthz", get(async || "fine\n"))
        .layer(gate))
}

/// For every admitted caller, including those of other tailnets and anonymous ones if a rule admits
/// them.
async fn hello(admitted: Admitted) -> String {
    match admitted.visitor() {
        Some(visitor) => format!(
            "{} at {}\n",
            visitor.caller_any_tailnet(),
            visitor.node_name()
        ),
        None => "somebody\n".to_owned(),
    }
}

/// For callers of our own tailnet; others are refused before the handler runs.
async fn tags(caller: Caller) -> String {
    match caller {
        Caller::Machine(machine) => machine.tags.join(",") + "\n",
        Caller::User(user) => format!("{} has no tags\n", user.login),
        // The extractor has refused these callers: they have no identity.
        Caller::Funnel(_) => String::new(),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let node: Arc<dyn Node> = Arc::new(
        EmbeddedNode::start(&Config {
            hostname: "whoami".into(),
            dir: "whoami-state".into(),
            auth_key: std::env::var("TS_AUTHKEY").ok().map(Secret::new),
            control_url: std::env::var("TS_CONTROL_URL").ok(),
            ..Config::default()
        })
        .await?,
    );
    let running = |status: &Arc<_>| -> bool {
        let status: &tailbone::tailnet::Status = status;
        status.state == BackendState::Running
    };
    node.watch().wait_for(running).await?;
    let listener = TailnetListener(node.listen(ListenAddr::Port(80)).await?);
    let routes = layers::wrap(app()?, "whoami");
    // Another name in a request means that a web page's name was made to resolve to our address.
    let names = NodeNames::default();
    let status = node.watch().borrow().clone();
    names.set(&status.name, &status.hostname, &status.addresses);
    let hosts = HostRule::of_node(names, &[]);
    let directory = Directory::new(node);
    let mut server = serve("whoami", listener, routes, Limits::default(), move |peer| {
        let mut known = directory.identify(peer);
        known.insert(hosts.clone());
        known
    });
    println!("listening on the tailnet, port 80");
    Err(server.failed().await.into())
}
