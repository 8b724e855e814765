//! HTTP for operators: whether the process is healthy and ready, and what it counts.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use serde::Serialize;

use super::{Certificate, Database, ServeError};
use crate::metrics::Metrics;
use crate::runtime::{Health, Shutdown};

#[derive(Debug, Clone)]
struct Operations {
    database: Arc<dyn Database>,
    metrics: Arc<Metrics>,
    health: Health,
}

impl Operations {
    fn certificate(&self) -> Option<Certificate> {
        let pinned = self.database.pin().ok()?;
        self.database.certificate(pinned.as_ref())
    }
}

/// Body of `/healthz` and `/readyz`.
#[derive(Debug, Serialize)]
struct Report {
    status: &'static str,
    reasons: Vec<String>,
}

/// Answers until `shutdown`.
pub async fn serve_http<L: Listener<Addr = SocketAddr>>(
    listener: L,
    database: Arc<dyn Database>,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    health: Health,
) -> Result<(), ServeError> {
    let address = listener.local_addr();
    let routes = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(print_metrics))
        .route("/snapshot", get(snapshot))
        .with_state(Operations { database, metrics, health });
    axum::serve(listener, routes).with_graceful_shutdown(async move { shutdown.wait().await }).await.map_err(
        |source| ServeError::Bind {
            address: address.unwrap_or_else(|_| std::net::SocketAddr::from(([127, 0, 0, 1], 0))),
            key: "server.http_port",
            flag: "--http-port",
            source,
        },
    )
}

/// 503 once a background part failed for good: restart the process.
async fn healthz(State(operations): State<Operations>) -> Response {
    let reasons = operations.health.failures();
    let status = if reasons.is_empty() { "healthy" } else { "failed" };
    report(reasons.is_empty(), status, reasons)
}

/// 503 while queries would not be answered from complete and fresh enough data.
async fn readyz(State(operations): State<Operations>) -> Response {
    let readiness = operations.database.readiness();
    let status = if readiness.ready { "ready" } else { "not ready" };
    let answer = report(readiness.ready, status, readiness.reasons);
    match operations.certificate() {
        Some(certificate) => (certificate_headers(&certificate), answer).into_response(),
        None => answer,
    }
}

/// The completeness certificate of what a query that came now would read.
async fn snapshot(State(operations): State<Operations>) -> Response {
    match operations.certificate() {
        Some(certificate) => {
            let kind = [(header::CONTENT_TYPE, "application/json")];
            (kind, certificate_headers(&certificate), certificate.json).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn certificate_headers(certificate: &Certificate) -> [(&'static str, String); 2] {
    [
        ("x-viewledger-generation", certificate.generation.to_string()),
        ("x-viewledger-complete", certificate.complete.to_string()),
    ]
}

async fn print_metrics(State(operations): State<Operations>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], operations.metrics.encode()).into_response()
}

fn report(good: bool, status: &'static str, reasons: Vec<String>) -> Response {
    let code = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, axum::Json(Report { status, reasons })).into_response()
}
