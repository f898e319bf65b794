//! What applications do with codes and tokens: `/token`, `/userinfo`, `/introspect`, `/revoke`.

use ::http::{Method, StatusCode, request::Parts};
use axum::{body::Body, response::Response};
use jiff::Timestamp;
use serde_json::json;
use tailbone_oidc::{OidcError, provider::UserInfo};

use super::{
    answers,
    requests::{authorization, bearer, caller_for_secrets, form},
    routes::Oidc,
};
use crate::{audit, http::form::is_form, telemetry::audit::Decision};

pub(super) async fn token(oidc: &Oidc, request: &Parts, body: Body, internet: bool) -> Response {
    let answered = async {
        if request.method != Method::POST {
            return Err(OidcError::method_not_allowed());
        }
        let form = form(body).await?;
        let caller = caller_for_secrets(oidc, request, internet).await?;
        let authorization = authorization(&request.headers);
        let now = Timestamp::now();
        let provider = &oidc.provider;
        let answer = provider.token(&form, authorization, &caller, now).await;
        let grant_type = tailbone_values::excerpt(form.get("grant_type").unwrap_or_default());
        match &answer {
            Ok(_) => audit!(Decision::Allowed, "issued oidc tokens", grant_type),
            Err(error) => audit!(
                Decision::Refused,
                "oidc tokens",
                grant_type,
                reason = error.code,
                detail = %error.description
            ),
        }
        answer
    };
    match answered.await {
        Ok(answer) => answers::json(StatusCode::OK, &answer),
        Err(error) => answers::error(oidc.errors, &request.headers, &error),
    }
}

pub(super) async fn userinfo(oidc: &Oidc, request: &Parts, body: Body) -> Response {
    let posted = match request.method {
        Method::GET | Method::HEAD => None,
        Method::POST if is_form(&request.headers) => match form(body).await {
            Ok(form) => form.get("access_token").map(str::to_owned),
            Err(error) => return answers::error(oidc.errors, &request.headers, &error),
        },
        Method::POST => None,
        _ => {
            let error = OidcError::method_not_allowed();
            return answers::error(oidc.errors, &request.headers, &error);
        }
    };
    let token = match (bearer(&request.headers), posted.as_deref()) {
        (Some(_), Some(_)) => {
            let error = OidcError::invalid_request("the token is in two places");
            return answers::error(oidc.errors, &request.headers, &error);
        }
        (bearer, posted) => bearer.or(posted),
    };
    match oidc.provider.userinfo(token, Timestamp::now()).await {
        Ok(UserInfo::Claims(claims)) => answers::json(StatusCode::OK, &claims),
        Ok(UserInfo::Signed(token)) => answers::jwt(token),
        Err(refused) => answers::bearer_error(oidc.errors, &request.headers, &refused),
    }
}

pub(super) async fn introspect(
    oidc: &Oidc,
    request: &Parts,
    body: Body,
    internet: bool,
) -> Result<Response, OidcError> {
    if request.method != Method::POST {
        return Err(OidcError::method_not_allowed());
    }
    let form = form(body).await?;
    let caller = caller_for_secrets(oidc, request, internet).await?;
    let authorization = authorization(&request.headers);
    let now = Timestamp::now();
    let provider = &oidc.provider;
    let inspector = provider
        .inspector(&form, authorization, &caller, now)
        .await?;
    let told = provider.introspect(&form, inspector.as_ref(), now).await?;
    Ok(match told {
        Some(claims) => answers::json(StatusCode::OK, &claims),
        None => answers::json(StatusCode::OK, &json!({"active": false})),
    })
}

pub(super) async fn revoke(oidc: &Oidc, request: &Parts, body: Body) -> Result<(), OidcError> {
    if request.method != Method::POST {
        return Err(OidcError::method_not_allowed());
    }
    let form = form(body).await?;
    let authorization = authorization(&request.headers);
    oidc.provider
        .revoke(&form, authorization, Timestamp::now())
        .await
}
