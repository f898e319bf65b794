//! Answers in JSON.
//!
//! axum has such a type too. But it switches on a feature of serde_json (`raw_value`) by which a
//! `Value` is no longer what stands in the document: an object whose first member has a certain
//! name becomes whatever JSON its string contains. Documents from outside are read as `Value`s, so
//! no crate may switch it on (`deny.toml`).

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Serialize;

/// A value as the body of an answer.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
            // A map whose keys are no strings, which no answer has.
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }
}
