//! The admin API in this process: the local socket, served from the first moment on, and the warnings that belong to it.

use std::{io, sync::Arc};

use ::http::Extensions;
use axum::Router;

use super::StartError;
use crate::{
    admin::{Admin, Socket, SocketError, router},
    config::{Authorization, Component, Settings},
    http::{
        layers,
        serve::{Listeners, Listening, LiveLimits, Server, serve},
    },
    jwks::life::KeyLife,
    part::ServerState,
};

/// The routes for the tailnet and the socket alike.
pub(super) fn routes(
    settings: &Settings,
    keys: &KeyLife,
    state: &ServerState,
) -> Result<Router, StartError> {
    let admin = Admin {
        keys: keys.clone(),
        spec: settings.keys.spec,
        mode: settings.admin.authorization,
        state: state.clone(),
        changes: Arc::default(),
    };
    let router = router(admin).map_err(|error| StartError::Runtime(io::Error::other(error)))?;
    if settings.admin.authorization == Authorization::Open
        && settings.components.contains(&Component::Admin)
    {
        tracing::warn!(
            target: "admin",
            "admin.authorization is open: every user and machine of the tailnet that reaches the admin port can make and remove signing keys"
        );
    }
    Ok(layers::wrap_grpc(router, "admin"))
}

/// Serves the local socket, whichever components are on: it is how the machine's operator sees and mends things.
///
/// A socket that cannot be made ends the start only when another server has it: two servers on one state directory ruin it. Else
/// tokens are worth more than the socket, and the log says what is missing.
pub(super) fn local(
    settings: &Settings,
    router: Router,
    limits: LiveLimits,
    listeners: &Listeners,
) -> Result<Option<Server>, StartError> {
    match Socket::bind(&settings.admin.socket) {
        Ok(socket) => {
            tracing::info!(target: "server", socket = %settings.admin.socket.display(), "local admin socket open");
            let identify = |requester| {
                let mut known = Extensions::new();
                known.insert(requester);
                known
            };
            let server = serve("admin socket", socket, router, limits, identify);
            listeners.add(Listening {
                name: server.name(),
                addr: settings.admin.socket.display().to_string(),
                load: server.load(),
            });
            Ok(Some(server))
        }
        Err(error @ SocketError::Live { .. }) => Err(error.into()),
        Err(error) => {
            tracing::warn!(target: "admin", error = crate::telemetry::chain(&error), "there is no local admin socket");
            Ok(None)
        }
    }
}
