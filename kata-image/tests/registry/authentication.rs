//! Who asks: passwords, tokens, files of credentials, and what is said when they are wrong.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kata_image::{Image, Platform, Reference, Registries, TransferError};
use serde_json::{Value, json};

use crate::docker_registry::DockerRegistry;
use crate::programs::{Certificates, chain, have, image, read_all, registries, run};
use crate::server::{Heard, Served, Server, answer};

/// `tests:secret`, by bcrypt at its least cost.
const HTPASSWD: &str = "tests:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

fn pull(registries: &Registries, reference: &Reference) -> Result<Image, TransferError> {
    Image::pull(registries, reference, &Platform::host())
}

fn credential_file(host: &str, user_and_password: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let auth = STANDARD.encode(user_and_password);
    fs::write(&path, json!({"auths": {host: {"auth": auth}}}).to_string()).unwrap();
    (directory, path)
}

#[test]
fn passwords_are_taken_from_options_and_files() {
    if !have(
        "passwords_are_taken_from_options_and_files",
        &[DockerRegistry::PROGRAM],
    ) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let users = directory.path().join("htpasswd");
    fs::write(&users, HTPASSWD).unwrap();
    let auth = json!({"htpasswd": {"realm": "tests", "path": users}});
    let registry = DockerRegistry::start(&json!({}), &auth);
    let host = registry.host.as_str();
    let reference: Reference = format!("{host}/team/app:1").parse().unwrap();
    let image = image();
    let known = registries().credentials(host, "tests", "secret");
    image.push(&known, &reference, &mut |_| {}).unwrap();
    read_all(&pull(&known, &reference).unwrap());

    let (_directory, file) = credential_file(&format!("{host}/team"), "tests:secret");
    let by_file = registries().credential_files([file]);
    assert_eq!(pull(&by_file, &reference).unwrap().digest(), image.digest());

    let error = pull(&registries(), &reference).unwrap_err().to_string();
    let expected = "does not allow to pull team/app (without credentials: none are known)";
    assert!(
        error.starts_with(&format!("{host} {expected} (UNAUTHORIZED: ")),
        "{error}"
    );
    let (_directory, file) = credential_file(host, "tests:wrong");
    let wrong = registries().credential_files([file.clone()]);
    let error = pull(&wrong, &reference).unwrap_err().to_string();
    assert!(
        error.contains(&format!("(with the credentials of {})", file.display())),
        "{error}"
    );
    assert!(!error.contains("wrong"), "{error}");
    let error = image
        .push(&registries(), &reference, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with(&format!("{host} does not allow to push to team/app")),
        "{error}"
    );
}

/// A server that gives tokens as docker's registry takes them: RS256, with the certificate in the header. Everybody may
/// read `public/…`, `tests` with `secret` may do everything.
struct TokenServer {
    server: Server,
    certificates: Arc<Certificates>,
}

impl TokenServer {
    fn start() -> Self {
        let certificates = Arc::new(Certificates::make());
        let keys = Arc::clone(&certificates);
        let server = Server::start(move |heard, connection| give_token(heard, connection, &keys));
        Self { server, certificates }
    }

    fn registry(&self) -> DockerRegistry {
        let auth = json!({"token": {
            "realm": format!("http://{}/token", self.server.host()),
            "service": "tests", "issuer": "tests",
            "rootcertbundle": self.certificates.path("ca.crt"),
        }});
        DockerRegistry::start(&json!({}), &auth)
    }
}

fn give_token(heard: &Heard, connection: &mut TcpStream, keys: &Certificates) {
    let query = heard.path.split_once('?').map_or("", |(_, query)| query);
    let known = match heard.header("authorization") {
        "" => false,
        header if header == format!("Basic {}", STANDARD.encode("tests:secret")) => true,
        _ => return answer(connection, "401 Unauthorized", "", b""),
    };
    let mut access = Vec::new();
    for parameter in query.split('&') {
        let Some(scope) = parameter.strip_prefix("scope=") else {
            continue;
        };
        let scope = scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
        let words: Vec<_> = scope.split(':').collect();
        let actions = words[2]
            .split(',')
            .filter(|action| known || (*action == "pull" && words[1].starts_with("public/")));
        access.push(json!({"type": "repository", "name": words[1], "actions": actions.collect::<Vec<_>>()}));
    }
    let token = sign(&Value::Array(access), keys);
    let body = json!({"token": token, "expires_in": 300}).to_string();
    answer(
        connection,
        "200 OK",
        "Content-Type: application/json\r\n",
        body.as_bytes(),
    );
}

fn sign(access: &Value, keys: &Certificates) -> String {
    let pem = String::from_utf8(keys.read("leaf.crt")).unwrap();
    let der: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [der]});
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let claims = json!({
        "iss": "tests", "sub": "tests", "aud": "tests", "jti": "1",
        "iat": now - 10, "nbf": now - 10, "exp": now + 300, "access": access,
    });
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", encode(&header), encode(&claims));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("text");
    fs::write(&file, &text).unwrap();
    let key = keys.path("leaf.key");
    let signature = run(
        "openssl",
        &[
            "dgst",
            "-sha256",
            "-sign",
            key.to_str().unwrap(),
            file.to_str().unwrap(),
        ],
    );
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn tokens_are_fetched_once_for_each_scope() {
    if !have(
        "tokens_are_fetched_once_for_each_scope",
        &[DockerRegistry::PROGRAM, "openssl"],
    ) {
        return;
    }
    let tokens = TokenServer::start();
    let registry = tokens.registry();
    let reference: Reference = format!("{}/public/app:1", registry.host).parse().unwrap();
    let known = registries().credentials(&registry.host, "tests", "secret");
    image().push(&known, &reference, &mut |_| {}).unwrap();
    assert_eq!(tokens.server.heard().len(), 1);
    assert!(tokens.server.heard()[0].path.contains("account=tests"));

    let anonymous = registries();
    let image = pull(&anonymous, &reference).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| read_all(&image));
        }
    });
    read_all(&pull(&anonymous, &reference).unwrap());
    assert_eq!(tokens.server.heard().len(), 2);
    assert!(tokens.server.heard()[1].header("authorization").is_empty());

    let private: Reference = format!("{}/private/app:1", registry.host).parse().unwrap();
    let error = pull(&anonymous, &private).unwrap_err().to_string();
    let expected = "does not allow to pull private/app (without credentials: none are known)";
    assert!(
        error.starts_with(&format!("{} {expected}", registry.host)),
        "{error}"
    );
    let wrong = registries().credentials(&registry.host, "tests", "wrong");
    let error = pull(&wrong, &reference).unwrap_err().to_string();
    assert!(error.contains("(with the credentials of the options)"), "{error}");
    let error = image
        .push(&anonymous, &reference, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with(&format!("{} does not allow to push", registry.host)),
        "{error}"
    );
}

/// A registry that takes the tokens of a list, one after another, each for so many requests.
fn rotating(uses: usize) -> Server {
    let served = Served::new();
    let counter = std::sync::atomic::AtomicUsize::new(0);
    let taken = std::sync::Mutex::new(("none".to_owned(), 0));
    Server::start(move |heard, connection| {
        if heard.path.starts_with("/token") {
            let number = counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            *taken.lock().unwrap() = (format!("Bearer t{number}"), 0);
            let body = json!({"access_token": format!("t{number}")}).to_string();
            return answer(connection, "200 OK", "", body.as_bytes());
        }
        let mut taken = taken.lock().unwrap();
        if heard.header("authorization") != taken.0 || taken.1 == uses {
            let challenge = format!(
                "WWW-Authenticate: Bearer realm=\"http://{}/token\"\r\n",
                heard.header("host")
            );
            return answer(connection, "401 Unauthorized", &challenge, b"");
        }
        taken.1 += 1;
        served.answer(heard, connection);
    })
}

#[test]
fn a_token_that_expired_is_replaced_once() {
    let server = rotating(1);
    let reference: Reference = format!("{}/a/b:1", server.host()).parse().unwrap();
    read_all(&pull(&registries(), &reference).unwrap());
    let tokens = server
        .heard()
        .iter()
        .filter(|heard| heard.path.starts_with("/token"))
        .count();
    assert_eq!(tokens, 3, "manifest, configuration and layer");
    let never = rotating(0);
    let reference: Reference = format!("{}/a/b:1", never.host()).parse().unwrap();
    let error = pull(&registries(), &reference).unwrap_err().to_string();
    assert!(error.contains("does not allow"), "{error}");
    assert_eq!(never.heard().len(), 3, "asked, token, asked again");
}

#[test]
fn an_identity_token_is_exchanged_and_never_sent_to_the_registry() {
    let served = Served::new();
    let server = Server::start(move |heard, connection| {
        if heard.path == "/token" {
            let body = String::from_utf8_lossy(&heard.body).into_owned();
            assert!(
                body.contains("grant_type=refresh_token&refresh_token=id%2Ftoken&"),
                "{body}"
            );
            assert!(
                body.contains("&scope=repository%3Aa%2Fb%3Apull&service=s"),
                "{body}"
            );
            return answer(connection, "200 OK", "", br#"{"access_token":"good"}"#);
        }
        if heard.header("authorization") == "Bearer good" {
            return served.answer(heard, connection);
        }
        let challenge = format!(
            "WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"s\"\r\n",
            heard.header("host")
        );
        answer(connection, "401 Unauthorized", &challenge, b"");
    });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    fs::write(
        &file,
        json!({"auths": {server.host(): {"identitytoken": "id/token"}}}).to_string(),
    )
    .unwrap();
    let reference: Reference = format!("{}/a/b:1", server.host()).parse().unwrap();
    read_all(&pull(&registries().credential_files([file]), &reference).unwrap());
    assert!(
        server
            .heard()
            .iter()
            .all(|heard| !heard.header("authorization").contains("id"))
    );
}

#[test]
fn a_token_server_in_the_clear_is_not_asked() {
    let server = Server::start(|_, connection| {
        let challenge = "WWW-Authenticate: Bearer realm=\"http://auth.invalid/token?x=secret\"\r\n";
        answer(connection, "401 Unauthorized", challenge, b"");
    });
    let reference: Reference = format!("{}/a/b:1", server.host()).parse().unwrap();
    let known = registries().credentials(&server.host(), "u", "p");
    let error = chain(&pull(&known, &reference).unwrap_err());
    let expected = "sends us to http://auth.invalid/token, which is not encrypted, for a token";
    assert_eq!(error, format!("{} {expected}", server.host()));
}

#[test]
fn challenges_and_tokens_that_mean_nothing_are_told() {
    let check = |challenge: &'static str, token: &'static str, expected: &str| {
        let server = Server::start(move |heard, connection| {
            if heard.path.starts_with("/token") {
                return answer(
                    connection,
                    "200 OK",
                    "Content-Type: text/html\r\n",
                    token.as_bytes(),
                );
            }
            let challenge = challenge.replace("HOST", heard.header("host"));
            answer(
                connection,
                "401 Unauthorized",
                &format!("WWW-Authenticate: {challenge}\r\n"),
                b"",
            );
        });
        let reference: Reference = format!("{}/a/b:1", server.host()).parse().unwrap();
        let error = chain(&pull(&registries(), &reference).unwrap_err());
        assert!(error.contains(expected), "{error}");
    };
    check(
        "Negotiate",
        "",
        "asks for credentials by \"Negotiate\", which is not understood",
    );
    check(
        "Bearer realm=\"nowhere\"",
        "",
        "asks for credentials by \"nowhere\", which is not understood",
    );
    check(
        "Bearer realm=\"http://HOST/token\"",
        "<html>",
        "is no registry: a token came as \"text/html\"",
    );
}
