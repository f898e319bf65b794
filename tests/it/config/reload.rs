//! What a reload exchanges in a running server, and what needs a restart.

use std::collections::BTreeMap;

use tailbone::config::table;

use super::{contract::contract, load};

#[test]
fn a_reload_applies_a_changed_setting_or_names_it() {
    // Nothing of a running server depends on these.
    let silent = [
        // Commands that are no server.
        "output",
        "no-confirmation",
        "admin.client.host",
        "admin.client.port",
        "admin.client.timeout",
        // How the node joins, which it has.
        "server.tailscale.authkey",
        "server.tailscale.clientSecret",
        "server.tailscale.clientId",
        "server.tailscale.idToken",
        "server.tailscale.audience",
        "server.tailscale.joinTimeout",
        "server.tailscale.joinRetry",
        "server.tailscale.waitForDir",
        // Only allows what other settings say.
        "sts.host.plain",
    ];
    let contract = contract();
    for setting in table::ALL {
        let others = match setting.key {
            "server.telemetry.otlp.headers" => vec!["a=b"],
            "keys.signer" => vec!["vault"],
            key => match contract.iter().find(|row| row.key == key) {
                Some(row) => row.others.to_vec(),
                None => vec!["another"],
            },
        };
        let variable = setting.variable();
        let bucket = match setting.key {
            "keys.keyPath" | "keys.s3.endpoint" | "keys.s3.pathStyle" => "acme-jwks",
            _ => "",
        };
        let workload_bucket = match setting.key {
            "workload.keys.keyPath" => "acme-workload-jwks",
            _ => "",
        };
        let oidc_store = match setting.key {
            "oidc.storePassword" | "oidc.storeCaFile" | "oidc.storeConnections" => {
                "postgres://tailbone@db.example.com/idp"
            }
            _ => "",
        };
        let with = |value: Option<&str>| {
            let mut typed = BTreeMap::from([
                ("TB_COMPONENTS", "issuer,admin,gate,sts,metrics"),
                ("TB_KEYS_BUCKET", bucket),
                ("TB_WORKLOAD_KEYS_BUCKET", workload_bucket),
                ("TB_OIDC_STORE", oidc_store),
                ("TB_KEYS_VAULT_ADDRESS", "https://vault.example.com"),
                ("TB_KEYS_VAULT_TOKEN", "hush"),
                ("TB_KEYS_AZURE_VAULT", "https://acme.vault.azure.net"),
                ("TB_WORKLOAD_KEYS_STORAGE", "AzureKeyVaultSecrets"),
                ("TB_WORKLOAD_KEYS_AZURE_TENANTID", "t"),
                ("TB_WORKLOAD_KEYS_AZURE_CLIENTID", "i"),
                ("TB_WORKLOAD_KEYS_AZURE_CLIENTSECRET", "hush"),
                ("TB_KEYS_PKCS11_MODULE", "/module.so"),
                ("TB_KEYS_PKCS11_TOKEN", "token"),
                ("TB_KEYS_PKCS11_PIN", "hush"),
                ("TB_GATE_TOKEN", "true"),
                ("TB_GATE_UPSTREAM", "http://127.0.0.1:3000"),
                ("TB_GATE_AUTH_PROXIES", "tag:proxy"),
                ("TB_GATE_AUTH_SOCKET", "/gate.sock"),
                ("TB_SERVER_TELEMETRY_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
                ("TB_STS_CLIENTID", "id"),
                ("TB_OIDC_GROUPS_CLIENTID", "id"),
                ("TB_OIDC_GROUPS_CLIENTSECRET", "hush"),
                ("TB_STS_CLIENTSECRET", "hush"),
                ("TB_STS_HOST_LISTEN", "127.0.0.1:8443"),
                ("TB_STS_HOST_CERT", "/tls.crt"),
                ("TB_STS_HOST_KEY", "/tls.key"),
            ]);
            typed.extend(value.map(|value| (variable.as_str(), value)));
            load(&typed.into_iter().collect::<Vec<_>>())
                .unwrap_or_else(|mistakes| panic!("{}: {mistakes}", setting.key))
        };
        let mut running = with(None);
        let Some(new) = others
            .iter()
            .map(|other| with(Some(other)))
            .find(|new| *new != running)
        else {
            assert!(
                silent.contains(&setting.key),
                "{} changes nothing",
                setting.key
            );
            continue;
        };
        let before = running.clone();
        let first = running.reload(&new);
        let reported = !first.applied.is_empty() || !first.needs_restart.is_empty();
        let expected = !silent.contains(&setting.key);
        assert_eq!(reported, expected, "{}: {first:?}", setting.key);
        assert_eq!(
            first.applied.is_empty(),
            running == before,
            "{}",
            setting.key
        );
        // What is applied is reported once; what needs a restart at each reload.
        let again = running.reload(&new);
        assert_eq!(
            (again.applied.len(), again.needs_restart),
            (0, first.needs_restart),
            "{}",
            setting.key
        );
    }
}

#[test]
fn a_reload_names_the_place_of_the_nodes_state() {
    let mut running = load(&[]).unwrap();
    let new = load(&[("TB_SERVER_TAILSCALE_STATE", "kube:tailbone-state")]).unwrap();
    assert_eq!(running.reload(&new).needs_restart, ["server.tailscale"]);
}
