//! `GET /openapi.json`: what the server answers over HTTP, as an OpenAPI 3.1 document made from the definitions.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use serde_json::{Map, Value, json};

use super::negotiate::Format;
use super::problem::Problem;
use super::{Desk, TIMEOUT_HEADER};
use crate::catalog::endpoint::Returns;
use crate::catalog::endpoint::parameter::{Fallback, Parameter, Place};
use crate::catalog::stream::ColumnType;
use crate::merge::endpoints::PlannedEndpoint;

pub(super) async fn answer(State(desk): State<Arc<Desk>>) -> Result<Response, Problem> {
    let pinned = desk.database().pin()?;
    let document = document(&desk.database().endpoints(pinned.as_ref()));
    let text = format!("{document:#}\n");
    Ok(([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-cache")], text).into_response())
}

fn document(endpoints: &[Arc<PlannedEndpoint>]) -> Value {
    let mut paths = Map::new();
    for endpoint in endpoints {
        paths.insert(endpoint.declared.route.to_string(), json!({ "get": operation(endpoint) }));
    }
    paths.insert("/sql".to_owned(), json!({ "post": statement() }));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Viewledger",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "An answer is read from one snapshot. Integers beyond 2^53 - 1 and all decimals are strings.",
        },
        "paths": paths,
        "components": {
            "schemas": { "Problem": problem() },
            "headers": {
                "Generation": {
                    "description": "The generation of batch views that was read.",
                    "schema": { "type": "integer" },
                },
                "Complete": {
                    "description": "Whether every record that Kafka is known to hold is counted.",
                    "schema": { "type": "boolean" },
                },
            },
            "parameters": {
                "format": {
                    "name": "format",
                    "in": "query",
                    "description": "What the answer is written in, where the header Accept cannot be set.",
                    "required": false,
                    "schema": { "type": "string", "enum": Format::all().map(Format::name) },
                },
                "timeout": {
                    "name": TIMEOUT_HEADER,
                    "in": "header",
                    "description": "How long the statement may take, such as 500ms or 1min.",
                    "required": false,
                    "schema": { "type": "string" },
                },
            },
            "responses": problems(),
            "securitySchemes": { "basic": { "type": "http", "scheme": "basic" } },
        },
        "security": [{}, { "basic": [] }],
    })
}

/// What may go wrong, by its name among the components.
const PROBLEMS: [(&str, &str, &str); 8] = [
    ("BadRequest", "400", "A parameter or the statement is wrong; `position` says where in the statement."),
    ("Unauthorized", "401", "Who asks is not known."),
    ("Forbidden", "403", "The session may not do this, or a page of another site asks."),
    ("NotFound", "404", "There is nothing here."),
    ("NotAcceptable", "406", "The answer cannot be written as wanted."),
    ("Internal", "500", "The server failed."),
    ("Unavailable", "503", "The process begins, or too much is asked at once: try again after Retry-After."),
    ("Timeout", "504", "The statement took longer than its limit."),
];

fn problems() -> Value {
    let problem = json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } });
    let all = PROBLEMS
        .iter()
        .map(|(name, _, what)| ((*name).to_owned(), json!({ "description": what, "content": problem })));
    Value::Object(all.collect())
}

/// With what may go wrong.
fn responses(good: BTreeMap<&str, Value>) -> Value {
    let bad = PROBLEMS.iter().map(|(name, status, _)| {
        ((*status).to_owned(), json!({ "$ref": format!("#/components/responses/{name}") }))
    });
    Value::Object(good.into_iter().map(|(status, response)| (status.to_owned(), response)).chain(bad).collect())
}

fn operation(endpoint: &PlannedEndpoint) -> Value {
    let declared = &endpoint.declared;
    let row = row(&endpoint.schema);
    let rows = match declared.returns {
        Returns::Row => row,
        Returns::Rows => json!({ "type": "array", "items": row }),
    };
    let mut parameters: Vec<Value> = declared.parameters.iter().map(parameter).collect();
    parameters.push(json!({ "$ref": "#/components/parameters/format" }));
    parameters.push(json!({ "$ref": "#/components/parameters/timeout" }));
    let mut headers = certificate_headers();
    if endpoint.varies.is_none() {
        let tag = json!({ "description": "Names these bytes: If-None-Match asks whether they changed.", "schema": { "type": "string" } });
        headers.insert("ETag".to_owned(), tag);
    }
    let mut good = BTreeMap::new();
    good.insert("200", json!({ "description": declared.about, "headers": headers, "content": content(&rows) }));
    if endpoint.varies.is_none() {
        good.insert("304", json!({ "description": "What the client has is what there is." }));
    }
    json!({
        "operationId": operation_id(&declared.route.to_string()),
        "summary": declared.about,
        "parameters": parameters,
        "responses": responses(good),
    })
}

/// `/videos/{video_id}/views` is `get_videos_video_id_views`.
fn operation_id(route: &str) -> String {
    let words = route.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    words.fold("get".to_owned(), |all, word| all + "_" + word)
}

fn statement() -> Value {
    let body = json!({
        "required": true,
        "content": {
            "application/sql": { "schema": { "type": "string" } },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["sql"],
                    "additionalProperties": false,
                    "properties": {
                        "sql": { "type": "string", "description": "One statement, with $1, $2, ... for its parameters." },
                        "parameters": {
                            "type": "array",
                            "items": { "type": ["string", "number", "boolean", "null"] },
                        },
                    },
                },
            },
        },
    });
    let rows = json!({ "type": ["array", "object"], "description": "Rows, or what the statement did." });
    let done = json!({ "description": "What the statement gave.", "headers": certificate_headers(), "content": content(&rows) });
    json!({
        "operationId": "run_sql",
        "summary": "Runs one statement.",
        "parameters": [
            { "$ref": "#/components/parameters/format" },
            { "$ref": "#/components/parameters/timeout" },
        ],
        "requestBody": body,
        "responses": responses(BTreeMap::from([("200", done)])),
    })
}

fn certificate_headers() -> Map<String, Value> {
    let header = |name: &str| json!({ "$ref": format!("#/components/headers/{name}") });
    [("Viewledger-Generation", "Generation"), ("Viewledger-Complete", "Complete")]
        .map(|(name, component)| (name.to_owned(), header(component)))
        .into_iter()
        .collect()
}

/// The same rows in every format.
fn content(rows: &Value) -> Value {
    let of = |format: Format| match format {
        Format::Json => json!({ "schema": rows }),
        _ => json!({}),
    };
    Value::Object(Format::all().into_iter().map(|format| (format.media_type().to_owned(), of(format))).collect())
}

fn parameter(parameter: &Parameter) -> Value {
    let mut schema = match &parameter.kind {
        ColumnType::Uuid => json!({ "type": "string", "format": "uuid" }),
        ColumnType::Decimal { .. } => json!({ "type": "string", "pattern": DECIMAL }),
        ColumnType::Int32 => json!({ "type": "integer", "format": "int32" }),
        ColumnType::Int64 => json!({ "type": "integer", "format": "int64" }),
        ColumnType::Float64 => json!({ "type": "number" }),
        kind => json!(typed(&kind.data_type())),
    };
    if let Some((least, greatest)) = parameter.between {
        schema["minimum"] = least.into();
        schema["maximum"] = greatest.into();
    }
    if let Some(Fallback::Text(text)) = &parameter.default {
        let number = serde_json::from_str(text).ok().filter(Value::is_number);
        let plain = matches!(parameter.kind, ColumnType::Int32 | ColumnType::Int64 | ColumnType::Float64);
        schema["default"] = match parameter.kind {
            ColumnType::Boolean => (text == "true").into(),
            _ => number.filter(|_| plain).unwrap_or_else(|| text.as_str().into()),
        };
    }
    let place = match parameter.place {
        Place::Path => "path",
        Place::Query => "query",
    };
    json!({
        "name": parameter.name,
        "in": place,
        "description": parameter.about,
        "required": parameter.default.is_none(),
        "schema": schema,
    })
}

const DECIMAL: &str = r"^-?\d+(\.\d+)?$";

fn row(schema: &Schema) -> Value {
    object(schema.fields().iter().map(AsRef::as_ref))
}

fn object<'a>(fields: impl Iterator<Item = &'a Field>) -> Value {
    let fields: Vec<&Field> = fields.collect();
    let names: Vec<&String> = fields.iter().map(|field| field.name()).collect();
    let properties: Map<String, Value> = fields.iter().map(|field| (field.name().clone(), column(field))).collect();
    json!({ "type": "object", "required": names, "properties": properties })
}

fn column(field: &Field) -> Value {
    let mut schema = typed(field.data_type());
    if field.is_nullable() {
        let kinds = match schema["type"].take() {
            Value::Array(kinds) => kinds,
            kind => vec![kind],
        };
        schema["type"] = kinds.into_iter().chain(["null".into()]).collect();
    }
    schema
}

/// How values of a type are written, see `json`.
fn typed(data_type: &DataType) -> Value {
    match data_type {
        DataType::Null => json!({ "type": "null" }),
        DataType::Boolean => json!({ "type": "boolean" }),
        DataType::Int64 | DataType::UInt64 => json!({ "type": ["integer", "string"] }),
        integer if integer.is_integer() => json!({ "type": "integer" }),
        DataType::Float16 => json!({ "type": "string" }),
        float if float.is_floating() => json!({ "type": ["number", "string"] }),
        decimal if decimal.is_decimal() => json!({ "type": "string", "pattern": DECIMAL }),
        DataType::Timestamp(_, Some(_)) => json!({ "type": "string", "format": "date-time" }),
        DataType::Date32 => json!({ "type": "string", "format": "date" }),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            json!({ "type": "array", "items": column(item) })
        }
        DataType::Struct(fields) => object(fields.iter().map(AsRef::as_ref)),
        _ => json!({ "type": "string" }),
    }
}

fn problem() -> Value {
    let text = |what: &str| json!({ "type": "string", "description": what });
    json!({
        "type": "object",
        "description": "A problem document, as in RFC 9457.",
        "required": ["type", "title", "status", "message"],
        "properties": {
            "type": { "type": "string" },
            "title": text("What the status means."),
            "status": { "type": "integer" },
            "sqlstate": text("The code of PostgreSQL for it."),
            "message": text("What is wrong."),
            "detail": text("More of it."),
            "hint": text("What to do about it."),
            "position": { "type": "integer", "description": "Character in the statement, from 1." },
            "parameter": text("The parameter that it is about."),
        },
    })
}
