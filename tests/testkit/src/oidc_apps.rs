//! Real programs that log people in before a page, each on a free port of loopback: oauth2-proxy,
//! and Apache with mod_auth_openidc. The page behind them shows the headers that it received, and
//! so whom the program takes the person for.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::{
    connect_proxy::ConnectProxy,
    files::{cache, certificate_file},
    proxies::{Proxy, free_addr},
};

/// Bytes by which a program keeps its cookies secret.
const COOKIE_SECRET: &str = "0123456789abcdef0123456789abcdef";

/// The provider as these programs know it, and the page before which they stand.
#[derive(Clone, Copy)]
pub struct AppSetup<'a> {
    pub issuer: &'a str,
    /// Who signs the certificate of the provider's web server.
    pub ca_file: &'a Path,
    pub client_id: &'a str,
    pub secret: &'a str,
    /// The way to the provider.
    pub proxy: &'a ConnectProxy,
    pub page: SocketAddr,
}

/// An application's place, before it is started: the provider must know its addresses first.
pub struct AppPlace {
    addr: SocketAddr,
    folder: TempDir,
}

impl AppPlace {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        // Apache started by root serves as another user.
        let everybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder.path(), everybody).unwrap();
        Self {
            addr: free_addr(),
            folder,
        }
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Default for AppPlace {
    fn default() -> Self {
        Self::new()
    }
}

/// oauth2-proxy. It ends when dropped.
pub struct OAuth2Proxy {
    pub program: Proxy,
    _place: AppPlace,
}

impl OAuth2Proxy {
    pub fn url(place: &AppPlace) -> String {
        format!("http://{}", place.addr)
    }

    pub fn redirect_uri(place: &AppPlace) -> String {
        format!("{}/oauth2/callback", Self::url(place))
    }

    /// After a sign-out it leads browsers to this host too.
    pub async fn start(place: AppPlace, setup: AppSetup<'_>, host: &str) -> Self {
        let secret = place.write("secret", setup.secret);
        let mut command = Command::new(cache("bin/oauth2-proxy"));
        command
            .arg("--provider=oidc")
            .arg(format!("--oidc-issuer-url={}", setup.issuer))
            .arg(format!("--provider-ca-file={}", setup.ca_file.display()))
            .arg(format!("--client-id={}", setup.client_id))
            .arg(format!("--client-secret-file={}", secret.display()))
            .arg(format!("--redirect-url={}", Self::redirect_uri(&place)))
            .arg("--scope=openid email profile")
            .arg("--code-challenge-method=S256")
            .arg("--email-domain=*")
            .arg("--skip-provider-button=true")
            .arg("--cookie-secure=false")
            .arg(format!("--cookie-secret={COOKIE_SECRET}"))
            .arg(format!("--whitelist-domain={host}"))
            .arg(format!("--http-address={}", place.addr))
            .arg(format!("--upstream=http://{}", setup.page))
            .env("HTTPS_PROXY", setup.proxy.url());
        let program = Proxy::start("oauth2-proxy", command, place.folder.path(), place.addr).await;
        Self {
            program,
            _place: place,
        }
    }
}

/// Apache with mod_auth_openidc, as `https://localhost` with a certificate of the kit, so that the
/// provider can tell it of logouts. It ends when dropped.
pub struct Apache {
    pub program: Proxy,
    _place: AppPlace,
}

impl Apache {
    pub fn url(place: &AppPlace) -> String {
        format!("https://localhost:{}", place.addr.port())
    }

    pub fn redirect_uri(place: &AppPlace) -> String {
        format!("{}/callback", Self::url(place))
    }

    /// Where the provider tells it that a session has ended.
    pub fn backchannel_logout_uri(place: &AppPlace) -> String {
        format!("{}?logout=backchannel", Self::redirect_uri(place))
    }

    pub async fn start(place: AppPlace, setup: AppSetup<'_>) -> Self {
        let ca_file = place.write("provider.pem", fs::read(setup.ca_file).unwrap());
        let folder = place.folder.path().display();
        let modules = [
            "mpm_event",
            "authn_core",
            "authz_core",
            "authz_user",
            "ssl",
            "socache_shmcb",
            "proxy",
            "proxy_http",
            "auth_openidc",
        ];
        let modules: String = modules
            .iter()
            .map(|name| format!("LoadModule {name}_module {MODULES}/mod_{name}.so\n"))
            .collect();
        let config = format!(
            "ServerRoot {folder}\n\
             DefaultRuntimeDir {folder}\n\
             PidFile apache.pid\n\
             ServerName localhost\n\
             {modules}\
             User www-data\n\
             Group www-data\n\
             StartServers 1\n\
             ThreadsPerChild 8\n\
             MaxRequestWorkers 8\n\
             ErrorLog /dev/stderr\n\
             LogLevel warn auth_openidc:info\n\
             Listen {addr}\n\
             SSLEngine on\n\
             SSLCertificateFile {certificate}\n\
             SSLCertificateKeyFile {key}\n\
             OIDCProviderMetadataURL {issuer}/.well-known/openid-configuration\n\
             OIDCProviderBackChannelLogoutSupported On\n\
             OIDCCABundlePath {ca_file}\n\
             OIDCOutgoingProxy {proxy}\n\
             OIDCClientID {client_id}\n\
             OIDCClientSecret {secret}\n\
             OIDCRedirectURI {redirect_uri}\n\
             OIDCCryptoPassphrase {COOKIE_SECRET}\n\
             OIDCScope \"openid email profile\"\n\
             OIDCPKCEMethod S256\n\
             OIDCRemoteUserClaim email\n\
             ProxyPass /callback !\n\
             ProxyPass / http://{page}/\n\
             <Location />\n\
             AuthType openid-connect\n\
             Require valid-user\n\
             </Location>\n",
            addr = place.addr,
            certificate = certificate_file("first.crt").display(),
            key = certificate_file("first.key").display(),
            issuer = setup.issuer,
            ca_file = ca_file.display(),
            proxy = setup.proxy.addr,
            client_id = setup.client_id,
            secret = setup.secret,
            redirect_uri = Self::redirect_uri(&place),
            page = setup.page,
        );
        let config = place.write("apache.conf", config);
        let mut command = Command::new("apache2");
        command.arg("-DFOREGROUND").arg("-f").arg(config);
        let program = Proxy::start("apache2", command, place.folder.path(), place.addr).await;
        Self {
            program,
            _place: place,
        }
    }
}

/// Where Debian's packages have Apache's modules.
const MODULES: &str = "/usr/lib/apache2/modules";
