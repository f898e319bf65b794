//! The page of an error: what happened, whose turn it is, and the request's id for those who look
//! into the log.

use ::http::StatusCode;
use askama::Template;
use axum::response::Response;
use tailbone_oidc::OidcError;

use super::Page;

/// Where the error happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Place {
    Device,
    Login,
    SignOut,
}

/// An error that the client cannot be told.
pub(in super::super) fn error(place: Place, error: &OidcError, request_id: &str) -> Response {
    #[derive(Template)]
    #[template(path = "error.html")]
    struct Trouble<'a> {
        title: &'a str,
        signing_out: bool,
        happened: &'a str,
        turn: &'a str,
        description: &'a str,
        code: &'a str,
        request_id: &'a str,
    }
    let Words {
        title,
        happened,
        turn,
    } = words(place, error);
    let trouble = Trouble {
        title,
        signing_out: place == Place::SignOut,
        happened,
        turn,
        description: &error.description,
        code: error.code,
        request_id,
    };
    let page = Page {
        title,
        ..Page::default()
    };
    page.answer(error.status, trouble.render())
}

#[derive(Debug, Clone, Copy)]
struct Words {
    title: &'static str,
    happened: &'static str,
    turn: &'static str,
}

fn words(place: Place, error: &OidcError) -> Words {
    let title = match place {
        Place::Device => "Connecting a device does not work",
        Place::Login => "This login does not work",
        Place::SignOut => "Signing out does not work",
    };
    match (error.status, error.code) {
        (StatusCode::UNAUTHORIZED, "access_denied") => Words {
            title: "Only from inside of the tailnet",
            happened: "People log in here by their connection to the tailnet. Yours comes from \
                       the internet, so this server cannot know who you are.",
            turn: "It is your turn: connect this device to Tailscale, then open the page again.",
        },
        (StatusCode::FORBIDDEN, "access_denied") if place == Place::Device => Words {
            title: "This machine has no user",
            happened: "It is a tagged machine of the tailnet. Such a machine stands for a \
                       service, so it can connect no device for a person.",
            turn: "It is your turn: open this page on a device of your own.",
        },
        (StatusCode::TOO_MANY_REQUESTS, _) => Words {
            title,
            happened: "There were more tries than this server allows in so short a time.",
            turn: "It is your turn: wait, then try again.",
        },
        (StatusCode::METHOD_NOT_ALLOWED, _) => Words {
            title,
            happened: "The page was opened in a way that it does not know.",
            turn: "It is your turn: go back to the application and begin again.",
        },
        (StatusCode::SERVICE_UNAVAILABLE, _) => Words {
            title,
            happened: "This server has trouble that may pass.",
            turn: "It is your turn: try again in a few seconds. If it lasts, tell those who run \
                   this server; the request id leads them to its log.",
        },
        (status, _) if status.is_server_error() => Words {
            title,
            happened: "This server failed.",
            turn: "It is the turn of those who run this server; the request id leads them to its \
                   log.",
        },
        (_, "invalid_client") => Words {
            title,
            happened: "The application is not registered at this server, or no longer.",
            turn: "It is the turn of those who run the application: they register it here, or \
                   mend its client id.",
        },
        _ if place == Place::Device => Words {
            title,
            happened: "The page was opened with a request that cannot be answered.",
            turn: "It is your turn: open the page anew and type the code of the device.",
        },
        _ => Words {
            title,
            happened: "The application sent a request that cannot be answered.",
            turn: "It is the turn of those who run the application: they need the words below.",
        },
    }
}
