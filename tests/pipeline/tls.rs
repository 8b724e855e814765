//! TLS over Postgres wire, Flight SQL and HTTP, with certificates that lie in `tests/tls`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow_flight::sql::client::FlightSqlServiceClient;
use futures::TryStreamExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::{Client, NoTls};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::transport::Endpoint;

use crate::server::{Ask, rows};
use crate::world::World;

const ROLES: &str = "\
CREATE ROLE analyst LOGIN;
GRANT SELECT ON ALL TABLES IN SCHEMA public, system TO analyst;
GRANT EXECUTE ON FUNCTION pg_reload_conf() TO analyst;
";

fn stored(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

/// A server that has the first certificate, and asks for passwords.
async fn world() -> World {
    let mut world = World::new(1).await;
    world.write_sql("roles/all.sql", ROLES);
    let [certificate, key] = ["c.pem", "k.pem"].map(|name| world.path(name));
    world.set("VIEWLEDGER_TLS_CERTIFICATE", certificate.display().to_string());
    world.set("VIEWLEDGER_TLS_KEY", key.display().to_string());
    world.set("VIEWLEDGER_AUTH_METHOD", "scram");
    world.set("VIEWLEDGER_PASSWORD_ANALYST", "secret");
    lay(&world, "first");
    world
}

fn lay(world: &World, which: &str) {
    std::fs::copy(stored(&format!("{which}.pem")), world.path("c.pem")).unwrap();
    std::fs::copy(stored(&format!("{which}.key")), world.path("k.pem")).unwrap();
}

/// A connection that trusts this certificate alone.
async fn secure(stream: TcpStream, which: &str, protocol: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    let pem = std::fs::read(stored(&format!("{which}.pem"))).unwrap();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Asks for TLS as PostgreSQL's clients do; what the server answers.
async fn asked_for_tls(address: SocketAddr) -> (TcpStream, u8) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await.unwrap();
    let answer = stream.read_u8().await.unwrap();
    (stream, answer)
}

async fn postgres(ask: &Ask, which: &str) -> Result<Client, String> {
    let (stream, answer) = asked_for_tls(ask.at.pg).await;
    assert_eq!(answer, b'S');
    let stream = secure(stream, which, b"postgresql").await.map_err(|error| error.to_string())?;
    let mut config = tokio_postgres::Config::new();
    config
        .user("analyst")
        .password("secret")
        .dbname("viewledger")
        .ssl_mode(tokio_postgres::config::SslMode::Disable);
    let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(client)
}

async fn flight(ask: &Ask) -> Result<usize, String> {
    let address = ask.at.flight;
    let connector = tower::service_fn(move |_| async move {
        secure(TcpStream::connect(address).await?, "first", b"h2").await.map(TokioIo::new)
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    let mut client = FlightSqlServiceClient::new(channel.map_err(|error| error.to_string())?);
    client.handshake("analyst", "secret").await.map_err(|error| error.to_string())?;
    let info =
        client.execute("SELECT * FROM system.settings".into(), None).await.map_err(|error| error.to_string())?;
    let rows = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.map_err(|error| error.to_string())?;
    let batches: Vec<_> = rows.try_collect().await.map_err(|error| error.to_string())?;
    Ok(batches.iter().map(|batch| batch.num_rows()).sum())
}

async fn http(ask: &Ask) -> std::io::Result<String> {
    let mut stream = secure(TcpStream::connect(ask.at.http).await?, "first", b"http/1.1").await?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    // The server closes the socket without a farewell.
    let _ = stream.read_to_end(&mut answer).await;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_protocol_speaks_tls_with_the_certificate_as_it_is_now() {
    let world = world().await;
    let server = world.serve().await;
    let client = postgres(&server, "first").await.unwrap();
    assert_eq!(rows(&client, "SELECT session_user").await.unwrap(), ["analyst"]);
    assert!(flight(&server).await.unwrap() > 10);
    assert!(http(&server).await.unwrap().starts_with("HTTP/1.1 200"), "{:?}", http(&server).await);
    // Those of this machine may do without.
    server.until_ready().await;

    let stranger = postgres(&server, "second").await.err().unwrap();
    assert!(stranger.contains("certificate"), "{stranger}");
    lay(&world, "second");
    rows(&client, "SELECT pg_reload_conf()").await.unwrap();
    assert!(postgres(&server, "second").await.is_ok() && postgres(&server, "first").await.is_err());
    assert_eq!(rows(&client, "SELECT 1").await.unwrap(), ["1"], "who was connected stays so");
    std::fs::copy(stored("first.key"), world.path("k.pem")).unwrap();
    let fault = rows(&client, "SELECT pg_reload_conf()").await.unwrap_err();
    assert!(fault.contains("cannot be used"), "{fault}");
    assert!(postgres(&server, "second").await.is_ok(), "as it was");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_tls_is_required_nobody_comes_without() {
    let mut world = world().await;
    world.set("VIEWLEDGER_TLS_REQUIRED", "true");
    // Others than this machine may come, as they prove who they are.
    world.set("VIEWLEDGER_SERVER_BIND", "0.0.0.0");
    let server = world.serve().await;
    let config =
        format!("host=127.0.0.1 port={} user=analyst password=secret dbname=viewledger", server.at.pg.port());
    let refused = tokio_postgres::connect(&config, NoTls).await.map(drop).unwrap_err();
    let told = refused.as_db_error().unwrap();
    assert_eq!((told.code().code(), told.message()), ("28000", "connections without TLS are refused"));
    assert!(server.get("/healthz").await.is_err());
    let plain = Endpoint::new(format!("http://127.0.0.1:{}", server.at.flight.port())).unwrap();
    let plain = plain.connect().await;
    let shaken = match plain {
        Ok(channel) => FlightSqlServiceClient::new(channel).handshake("analyst", "secret").await.map(drop).is_ok(),
        Err(_) => false,
    };
    assert!(!shaken);
    let client = postgres(&server, "first").await.unwrap();
    assert_eq!(rows(&client, "SELECT session_user").await.unwrap(), ["analyst"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_binds_the_exchange_to_the_certificate() {
    let world = world().await;
    let server = world.serve().await;
    let port = server.at.pg.port();
    let psql = move |more: &str, password: &str| {
        let root = stored("first.pem");
        let to = format!(
            "host=localhost hostaddr=127.0.0.1 port={port} user=analyst dbname=viewledger sslmode=verify-full \
             sslrootcert={} {more}",
            root.display()
        );
        Command::new("psql")
            .args(["-X", "-t", "-c", "SELECT session_user", &to])
            .env("PGPASSWORD", password)
            .output()
    };
    let run = tokio::task::spawn_blocking(move || {
        let Ok(output) = psql("channel_binding=require", "secret") else {
            println!("skipped: no psql");
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "analyst", "{said}");
        assert!(psql("channel_binding=disable", "secret").unwrap().status.success());
        let wrong = psql("channel_binding=require", "Secret").unwrap();
        let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
        assert!(said.contains("password authentication failed for user \"analyst\""), "{said}");
    });
    run.await.unwrap();
    server.stop().await;
}
