-- Times are milliseconds since 1970. BYTES, ORDERED_TEXT and COMPACT stand for words that the
-- databases spell differently (schema.rs).

CREATE TABLE oidc_clients (
    id ORDERED_TEXT PRIMARY KEY,
    origin TEXT NOT NULL,
    owner TEXT,
    secrets TEXT NOT NULL,
    registration_token BYTES,
    metadata TEXT NOT NULL,
    -- What administrators find the client by, in small letters.
    search TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    expires_at BIGINT,
    version BIGINT NOT NULL,
    -- Grows when the id is used again after a removal. A grant belongs to one incarnation.
    incarnation BIGINT NOT NULL,
    -- The client is gone; its grants go one batch after the other.
    removed_at BIGINT
);
CREATE INDEX oidc_clients_expires ON oidc_clients (expires_at)
    WHERE expires_at IS NOT NULL AND removed_at IS NULL;
CREATE INDEX oidc_clients_removed ON oidc_clients (removed_at) WHERE removed_at IS NOT NULL;

-- How many registered clients there are: of each owner, and under '' in total.
CREATE TABLE oidc_client_counts (
    owner ORDERED_TEXT PRIMARY KEY,
    clients BIGINT NOT NULL
) COMPACT;

CREATE TABLE oidc_imports (
    source ORDERED_TEXT PRIMARY KEY,
    imported_at BIGINT NOT NULL
) COMPACT;

CREATE TABLE oidc_grants (
    id BYTES PRIMARY KEY,
    client_id ORDERED_TEXT NOT NULL,
    -- Of the client; absent for a client that is not in the table.
    incarnation BIGINT,
    subject ORDERED_TEXT,
    session BYTES,
    created_at BIGINT NOT NULL,
    -- Nothing of the grant can be used from then on.
    expires_at BIGINT NOT NULL,
    details TEXT NOT NULL,
    code BYTES,
    code_expires_at BIGINT,
    redeemed_at BIGINT,
    refresh BYTES,
    refresh_expires_at BIGINT,
    -- The refresh token before, and what makes the one of now out of it.
    previous BYTES,
    previous_salt BYTES,
    replaced_at BIGINT
);
CREATE UNIQUE INDEX oidc_grants_code ON oidc_grants (code) WHERE code IS NOT NULL;
CREATE INDEX oidc_grants_expires ON oidc_grants (expires_at);
CREATE INDEX oidc_grants_client ON oidc_grants (client_id, created_at);
CREATE INDEX oidc_grants_subject ON oidc_grants (subject, created_at) WHERE subject IS NOT NULL;
CREATE INDEX oidc_grants_session ON oidc_grants (session) WHERE session IS NOT NULL;

CREATE TABLE oidc_access_tokens (
    digest BYTES PRIMARY KEY,
    grant_id BYTES NOT NULL,
    client_id ORDERED_TEXT NOT NULL,
    incarnation BIGINT,
    issued_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    details TEXT NOT NULL
);
CREATE INDEX oidc_access_tokens_expires ON oidc_access_tokens (expires_at);

CREATE TABLE oidc_sessions (
    id BYTES PRIMARY KEY,
    cookie BYTES NOT NULL,
    subject ORDERED_TEXT NOT NULL,
    authenticated_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    details TEXT NOT NULL
);
CREATE UNIQUE INDEX oidc_sessions_cookie ON oidc_sessions (cookie);
CREATE INDEX oidc_sessions_subject ON oidc_sessions (subject, created_at);
CREATE INDEX oidc_sessions_expires ON oidc_sessions (expires_at);

-- Whom the end of a session concerns.
CREATE TABLE oidc_session_clients (
    session BYTES NOT NULL REFERENCES oidc_sessions (id) ON DELETE CASCADE,
    client_id ORDERED_TEXT NOT NULL,
    PRIMARY KEY (session, client_id)
) COMPACT;

CREATE TABLE oidc_pushed_requests (
    reference BYTES PRIMARY KEY,
    client_id ORDERED_TEXT NOT NULL,
    parameters TEXT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX oidc_pushed_requests_expires ON oidc_pushed_requests (expires_at);

CREATE TABLE oidc_devices (
    device_code BYTES PRIMARY KEY,
    user_code BYTES NOT NULL,
    client_id ORDERED_TEXT NOT NULL,
    details TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    poll_interval BIGINT NOT NULL,
    polled_at BIGINT,
    -- Absent while nobody has decided; else 1 or 0.
    approved BIGINT
);
CREATE UNIQUE INDEX oidc_devices_user_code ON oidc_devices (user_code);
CREATE INDEX oidc_devices_expires ON oidc_devices (expires_at);

CREATE TABLE oidc_assertions (
    digest BYTES PRIMARY KEY,
    expires_at BIGINT NOT NULL
) COMPACT;
CREATE INDEX oidc_assertions_expires ON oidc_assertions (expires_at);
