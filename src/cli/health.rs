//! `viewledger health`: asks the server on this machine, for watchdogs that have no HTTP client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Common, io_runtime};
use crate::config::Config;
use crate::serve::tls::pinned;

/// Ask the server that runs with these settings whether it is healthy, and print its answer.
///
/// Exit code 0 when it is, 1 when it is not or does not answer.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  viewledger health
  viewledger health --ready --config /etc/viewledger/viewledger.toml")]
pub struct Args {
    /// Whether queries are answered from complete data, instead of whether the process is to be restarted
    #[arg(long)]
    ready: bool,
    #[command(flatten)]
    common: Common,
}

/// The server answers these from memory.
const PATIENCE: Duration = Duration::from_secs(4);
/// Of an answer.
const BYTES_MAX: u64 = 1 << 20;

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.common.load()?;
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let address = SocketAddr::new(reachable(config.server.bind), config.server.http_port);
    let answer =
        io_runtime()?.block_on(async { tokio::time::timeout(PATIENCE, ask(&config, address, path)).await });
    let answer = answer.with_context(|| format!("{address} did not answer within {} s", PATIENCE.as_secs()))??;
    let (code, body) = parse(&answer).with_context(|| format!("{address} did not answer in HTTP"))?;
    println!("{}", body.trim_end());
    Ok(if code == 200 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where a server that listens on `bind` can be reached from its own machine.
fn reachable(bind: IpAddr) -> IpAddr {
    match bind {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

async fn ask(config: &Config, address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let refused = || format!("no server answers at {address}; its settings are looked for as with `serve`");
    let stream = TcpStream::connect(address).await.with_context(refused)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    match config.tls.files() {
        Some((certificate, _)) => {
            let stream = pinned::connect(stream, certificate).await.context("cannot agree on TLS")?;
            converse(stream, &request).await
        }
        None => converse(stream, &request).await,
    }
}

async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> anyhow::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let read = stream.take(BYTES_MAX).read_to_end(&mut answer).await;
    // A peer that hangs up without saying so under TLS has said all there was.
    ensure!(!answer.is_empty(), "the server hung up{}", read.err().map(|e| format!(": {e}")).unwrap_or_default());
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn parse(answer: &str) -> Option<(u16, &str)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((code, body))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_answer_is_read_or_refused() {
        assert_eq!(parse("HTTP/1.1 503 Service Unavailable\r\na: b\r\n\r\n{}"), Some((503, "{}")));
        for wrong in ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 2"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn every_address_is_no_address_to_connect_to() {
        assert_eq!(reachable("0.0.0.0".parse().unwrap()).to_string(), "127.0.0.1");
        assert_eq!(reachable("::".parse().unwrap()).to_string(), "::1");
        assert_eq!(reachable("10.1.2.3".parse().unwrap()).to_string(), "10.1.2.3");
    }
}
