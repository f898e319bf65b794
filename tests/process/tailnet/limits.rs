//! Without free descriptors, connections are lost but the listener survives.

use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tailbone::tailnet::ListenAddr;
use testkit::{
    eventually, soon,
    tailnet::{DevnetTailnet, Owner, Tailnet, running},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Resources;
use crate::alone;

#[test]
fn a_listener_outlives_the_limit_of_descriptors() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let server = tailnet
            .node("server", Owner::User("alice@example.com"))
            .await;
        let caller = tailnet.node("caller", Owner::User("bob@example.com")).await;
        let addr = format!("{}:80", running(&*server).await.addresses[0]);
        let mut listener = server.listen(ListenAddr::Port(80)).await.unwrap();
        let serving = tokio::spawn(async move {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else {
                    return;
                };
                tokio::spawn(async move {
                    let mut byte = [0];
                    while let Ok(1) = stream.read(&mut byte).await {
                        if stream.write_all(&byte).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let ask = || async {
            let mut stream = caller
                .dial(&addr, Duration::from_secs(2))
                .await
                .map_err(|e| e.to_string())?;
            stream.write_all(b"x").await.map_err(|e| e.to_string())?;
            stream.read_u8().await.map_err(|e| e.to_string())?;
            Ok::<_, String>(stream)
        };
        soon("the first", ask()).await.unwrap();

        let usual = getrlimit(Resource::Nofile);
        let few = Rlimit {
            current: Some(Resources::now().await.fds as u64 + 30),
            ..usual
        };
        setrlimit(Resource::Nofile, few).unwrap();
        // All are held at the same time, and there cannot be enough descriptors for them.
        let many =
            join_all((0..60).map(|_| tokio::time::timeout(Duration::from_secs(4), ask()))).await;
        let served = many.iter().filter(|one| matches!(one, Ok(Ok(_)))).count();
        eprintln!("{served} of 60 were served with 30 descriptors");
        assert!(served < 60);
        assert!(!serving.is_finished(), "the listener ended");
        drop(many);

        setrlimit(Resource::Nofile, usual).unwrap();
        eventually("it works again", ask).await;
        for _ in 0..20 {
            soon("and again", ask()).await.unwrap();
        }
        tailnet.end().await;
        soon("the end", serving).await.unwrap();
    });
}
