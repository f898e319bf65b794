//! `POST /par`: clients push authorization requests (RFC 9126).

use ::http::{Method, StatusCode, request::Parts};
use axum::{body::Body, response::Response};
use jiff::Timestamp;
use tailbone_oidc::OidcError;

use super::{
    answers,
    requests::{authorization, caller_for_secrets, form},
    routes::Oidc,
};

pub(super) async fn push(oidc: &Oidc, request: &Parts, body: Body, internet: bool) -> Response {
    let pushed = async {
        if request.method != Method::POST {
            return Err(OidcError::method_not_allowed());
        }
        let form = form(body).await?;
        let caller = caller_for_secrets(oidc, request, internet).await?;
        let authorization = authorization(&request.headers);
        let now = Timestamp::now();
        oidc.provider.push(&form, authorization, &caller, now).await
    };
    match pushed.await {
        Ok(answer) => answers::json(StatusCode::CREATED, &answer),
        Err(error) => answers::error(oidc.errors, &request.headers, &error),
    }
}
