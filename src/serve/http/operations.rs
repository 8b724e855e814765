//! For operators: whether the process is healthy and ready, what it counts, and what a query would read.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Desk;
use super::answer::certificate_headers;
use super::problem::Problem;
use crate::serve::Certificate;

/// Body of `/healthz` and `/readyz`.
#[derive(Debug, Serialize)]
struct Report {
    status: &'static str,
    reasons: Vec<String>,
}

/// 503 once a background part failed for good: restart the process.
pub(super) async fn healthz(State(desk): State<Arc<Desk>>) -> Response {
    let reasons = desk.health.failures();
    let status = if reasons.is_empty() { "healthy" } else { "failed" };
    report(reasons.is_empty(), status, reasons)
}

/// 503 while queries would not be answered from complete and fresh enough data.
pub(super) async fn readyz(State(desk): State<Arc<Desk>>) -> Response {
    let readiness = desk.database().readiness();
    let status = if readiness.ready { "ready" } else { "not ready" };
    let answer = report(readiness.ready, status, readiness.reasons);
    match certificate(&desk) {
        Some(certificate) => (certificate_headers(&certificate), answer).into_response(),
        None => answer,
    }
}

/// The completeness certificate of what a query that came now would read.
pub(super) async fn snapshot(State(desk): State<Arc<Desk>>) -> Response {
    match certificate(&desk) {
        Some(certificate) => {
            let kind = [(header::CONTENT_TYPE, "application/json")];
            (kind, certificate_headers(&certificate), certificate.json).into_response()
        }
        None => Problem::new(StatusCode::NOT_FOUND, "there is no snapshot to certify").into_response(),
    }
}

pub(super) async fn print_metrics(State(desk): State<Arc<Desk>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], desk.service.metrics().encode()).into_response()
}

fn certificate(desk: &Desk) -> Option<Certificate> {
    let pinned = desk.database().pin().ok()?;
    desk.database().certificate(pinned.as_ref())
}

fn report(good: bool, status: &'static str, reasons: Vec<String>) -> Response {
    let code = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, axum::Json(Report { status, reasons })).into_response()
}
