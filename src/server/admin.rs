//! The admin API: its routes with their warnings, and the local admin socket, which is served from
//! the first moment of the process.

use std::{io, sync::Arc};

use axum::Router;

use super::ServerError;
use crate::{
    admin::{AdminApi, AdminSocket, AdminSocketError, Requester, router},
    config::{Authorization, Component, Settings},
    http::{
        layers,
        serve::{Listeners, Listening, LiveLimits, Server, serve},
    },
    jwks::{KeySet, life::KeyLife},
    part::ServerState,
};

/// The routes for all listeners of the admin API.
pub(super) fn routes(
    settings: &Settings,
    keys: &KeyLife,
    sets: Arc<[KeySet]>,
    state: &ServerState,
) -> Result<Router, ServerError> {
    let admin = AdminApi {
        keys: keys.clone(),
        sets,
        spec: settings.keys.spec,
        mode: settings.admin.authorization,
        state: state.clone(),
        changes: Arc::default(),
    };
    let router = router(admin).map_err(|error| ServerError::Runtime(io::Error::other(error)))?;
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

/// Serves the local socket, whichever components are on: the machine's operator uses it to inspect
/// and repair the server.
///
/// If the socket cannot be made, the server starts without it and warns, because tokens are more
/// important. Only a socket of another live server ends the start: two servers on one state
/// directory ruin it.
pub(super) fn serve_local_socket(
    settings: &Settings,
    router: Router,
    limits: LiveLimits,
    listeners: &Listeners,
) -> Result<Option<Server>, ServerError> {
    match AdminSocket::bind(&settings.admin.socket) {
        Ok(socket) => {
            tracing::info!(target: "server", socket = %settings.admin.socket.display(), "local admin socket open");
            let server = serve("admin socket", socket, router, limits, Requester::identify);
            listeners.add(Listening {
                name: server.name(),
                addr: settings.admin.socket.display().to_string(),
                load: server.load(),
                certificate: None,
            });
            Ok(Some(server))
        }
        Err(error @ AdminSocketError::InUse { .. }) => Err(error.into()),
        Err(error) => {
            tracing::warn!(target: "admin", error = crate::telemetry::error_chain(&error), "the local admin socket is not available");
            Ok(None)
        }
    }
}
