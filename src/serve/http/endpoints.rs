//! The endpoints of `sql/api`: every other path.
//!
//! What is answered is read from one snapshot, whose name is the answer's ETag where nothing but the snapshot decides about
//! it. A client that has the answer of the present snapshot is told so before anything is planned.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion::catalog::CatalogProvider;
use datafusion::common::{ParamValues, ScalarValue};
use tokio::sync::OwnedSemaphorePermit;

use super::Desk;
use super::answer::{Shape, certified, encode, response, streamed, whole};
use super::format::{Extent, Pieces};
use super::negotiate::{Coding, Format, coding, format};
use super::problem::Problem;
use super::sql::begin;
use crate::catalog::endpoint::Returns;
use crate::catalog::endpoint::parameter::{Parameter, Place};
use crate::merge::endpoints::PlannedEndpoint;
use crate::serve::error::QueryError;
use crate::serve::session::{Encode, Outcome, Prepared, Session, Stop};
use crate::serve::tls::sockets::Peer;

/// Answers shorter than this are not made shorter.
const CODED_BYTES_MIN: usize = 1024;

/// The statement of an endpoint, prepared once.
#[derive(Debug)]
pub(super) struct Kept {
    endpoint: Arc<PlannedEndpoint>,
    prepared: Prepared,
}

pub(super) async fn answer(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Response, Problem> {
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    let (mut session, permit) = desk.connect(headers, peer).await?;
    begin(&mut session).await?;
    let pinned = session.catalog()?;
    let path = segments(uri)?;
    let endpoints = desk.database().endpoints(pinned.as_ref());
    let found = endpoints.iter().find_map(|endpoint| Some((endpoint, endpoint.declared.route.values(&path)?)));
    let Some((endpoint, in_path)) = found else { return Err(unknown(uri)) };
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(Problem::wrong_method("GET, HEAD"));
    }
    let mut given = in_query(uri)?;
    let format = format(headers, given.remove("format").as_deref())?;
    let values = values(endpoint, &in_path, given)?;
    let shape = Shape { format, coding: coding(headers, format) };
    let user = session.user().to_owned();
    let mut question = Question { desk: &desk, endpoint, values, shape, pinned, user };
    if let Some(tag) = question.tag().filter(|tag| has(headers, tag)) {
        return Ok(question.unchanged(&tag));
    }
    let answered = question.ask(session, permit).await?;
    Ok(question.told(answered, question.tag()))
}

/// What is asked of an endpoint.
struct Question<'a> {
    desk: &'a Desk,
    endpoint: &'a Arc<PlannedEndpoint>,
    values: Option<ParamValues>,
    shape: Shape,
    pinned: Arc<dyn CatalogProvider>,
    user: String,
}

impl Question<'_> {
    /// Equal tags are of equal bytes for the same user: the snapshot has one name, everywhere and for ever, its definitions belong to it, and
    /// the path has all values.
    fn tag(&self) -> Option<HeaderValue> {
        let Shape { format, coding } = self.shape;
        // The buffers behind such values are cut as it happens, and Arrow sends them as they are.
        let loose = |field: &FieldRef| {
            matches!(field.data_type(), DataType::Utf8View | DataType::BinaryView) || field.data_type().is_nested()
        };
        if self.endpoint.varies.is_some()
            || format == Format::Arrow && self.endpoint.schema.fields().iter().any(loose)
        {
            return None;
        }
        let identity = self.desk.database().identity(self.pinned.as_ref())?;
        // What one may read, another may not: nobody is told that the answer to somebody else stays as it was.
        let user = URL_SAFE_NO_PAD.encode(&self.user);
        HeaderValue::try_from(format!("\"{identity}-{user}-{}-{}\"", format.name(), coding.name())).ok()
    }

    fn unchanged(&self, tag: &HeaderValue) -> Response {
        let mut answered = response(axum::body::Body::empty(), self.shape);
        *answered.status_mut() = StatusCode::NOT_MODIFIED;
        answered.headers_mut().remove(header::CONTENT_TYPE);
        answered.headers_mut().remove(header::CONTENT_ENCODING);
        self.told(answered, Some(tag.clone()))
    }

    /// With what was read, and how to ask for it again.
    fn told(&self, answered: Response, tag: Option<HeaderValue>) -> Response {
        let certificate = self.desk.database().certificate(self.pinned.as_ref());
        let mut answered = certified(answered, certificate.as_ref());
        let headers = answered.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if let Some(tag) = tag {
            headers.insert(header::ETAG, tag);
        }
        answered
    }

    async fn ask(&mut self, mut session: Session, permit: OwnedSemaphorePermit) -> Result<Response, Problem> {
        let patience = self.desk.service.limits().write_timeout;
        let prepared = self.desk.prepared(&mut session, self.endpoint).await?;
        let mut stop = session.stop(&prepared.statement);
        let schema = &self.endpoint.schema;
        match self.endpoint.declared.returns {
            Returns::Rows => {
                let encode = |schema: &SchemaRef| encode(schema, self.shape, Pieces::Even, patience);
                let work = session.execute(&prepared.statement, self.values.clone(), Some(&prepared), encode);
                let outcome = stop.race(work).await??;
                self.pinned = session.catalog()?;
                match outcome {
                    Outcome::Rows { rows, .. } => {
                        Ok(response(streamed(rows, stop, (session, permit)).await?, self.shape))
                    }
                    Outcome::Table { batch, .. } => {
                        Ok(response(whole(schema, &batch, Extent::Any, self.shape)?, self.shape))
                    }
                    _ => Err(QueryError::internal("an endpoint gave no rows").into()),
                }
            }
            Returns::Row => {
                let batches = |_: &SchemaRef| Ok(Encode::new(usize::MAX, Ok));
                let work = session.execute(&prepared.statement, self.values.clone(), Some(&prepared), batches);
                let outcome = stop.race(work).await??;
                self.pinned = session.catalog()?;
                let row = one_row(outcome, &mut stop).await?;
                let Some(row) = row else { return Err(self.nothing()) };
                let bytes = whole(schema, &row, Extent::One, Shape { coding: Coding::Identity, ..self.shape })?;
                if bytes.len() < CODED_BYTES_MIN || self.shape.coding == Coding::Identity {
                    return Ok(response(bytes, Shape { coding: Coding::Identity, ..self.shape }));
                }
                Ok(response(whole(schema, &row, Extent::One, self.shape)?, self.shape))
            }
        }
    }

    fn nothing(&self) -> Problem {
        let declared = &self.endpoint.declared;
        let in_path: Vec<&str> = declared.route.parameters().collect();
        let message = format!("{} has nothing for this {}", declared.route, in_path.join(" and "));
        Problem::new(StatusCode::NOT_FOUND, message.trim_end())
    }
}

impl Desk {
    /// The endpoint's statement, prepared by the first who asks.
    async fn prepared(
        &self,
        session: &mut Session,
        endpoint: &Arc<PlannedEndpoint>,
    ) -> Result<Prepared, QueryError> {
        let route = endpoint.declared.route.to_string();
        if let Some(kept) = self.kept.lock().get(&route).filter(|kept| Arc::ptr_eq(&kept.endpoint, endpoint)) {
            return Ok(kept.prepared.clone());
        }
        let statement = session.parse(&endpoint.sql).await?.pop();
        let statement = statement.ok_or_else(|| QueryError::internal("an endpoint has no statement"))?;
        let prepared = session.prepare(statement).await?;
        let prepared = Prepared { schema: Some(Arc::clone(&endpoint.schema)), ..prepared };
        let mut kept = self.kept.lock();
        // What is declared no longer goes with the first that is new.
        if kept.get(&route).is_some_and(|kept| !Arc::ptr_eq(&kept.endpoint, endpoint)) {
            kept.clear();
        }
        kept.insert(route, Kept { endpoint: Arc::clone(endpoint), prepared: prepared.clone() });
        Ok(prepared)
    }
}

/// The row of a result that has one, or none.
async fn one_row(outcome: Outcome<RecordBatch>, stop: &mut Stop) -> Result<Option<RecordBatch>, QueryError> {
    let several =
        || QueryError::internal("the endpoint declares that it returns one row, and its query gave several");
    let mut rows = match outcome {
        Outcome::Table { batch, .. } if batch.num_rows() > 1 => return Err(several()),
        Outcome::Table { batch, .. } => return Ok((batch.num_rows() == 1).then_some(batch)),
        Outcome::Rows { rows, .. } => rows,
        _ => return Err(QueryError::internal("an endpoint gave no rows")),
    };
    let mut row: Option<RecordBatch> = None;
    while let Some(batch) = stop.race(rows.next()).await?.transpose()? {
        if row.is_some() || batch.num_rows() > 1 {
            return Err(several());
        }
        row = (batch.num_rows() == 1).then_some(batch);
    }
    Ok(row)
}

/// The values of all parameters, in the order of the statement's.
fn values(
    endpoint: &PlannedEndpoint,
    in_path: &[(&str, &str)],
    mut in_query: HashMap<String, String>,
) -> Result<Option<ParamValues>, Problem> {
    let parameters = &endpoint.declared.parameters;
    let value = |parameter: &Parameter| -> Result<ScalarValue, Problem> {
        let name = parameter.name.as_str();
        let given = match parameter.place {
            Place::Path => in_path.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned()),
            Place::Query => in_query.remove(name),
        };
        let value = match given {
            Some(text) => parameter.value(&text),
            None => parameter.absent().unwrap_or_else(|| Err("is missing: it has no default".to_owned())),
        };
        value.map_err(|reason| Problem::parameter(name, reason))
    };
    let values = parameters.iter().map(value).collect::<Result<Vec<_>, _>>()?;
    if let Some(name) = in_query.keys().min() {
        let known: Vec<&str> = parameters
            .iter()
            .filter(|p| p.place == Place::Query)
            .map(|p| p.name.as_str())
            .chain(["format"])
            .collect();
        return Err(Problem::parameter(name, format!("is not known; there are {}", known.join(", "))));
    }
    Ok((!values.is_empty()).then(|| ParamValues::from(values)))
}

/// Whether the client has what this tag stands for. `*` asks for nothing that could be told without reading.
fn has(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let known = headers.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    let mut known = known.flat_map(|value| value.split(','));
    known.any(|known| known.trim().trim_start_matches("W/").as_bytes() == tag.as_bytes())
}

fn unknown(uri: &Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no endpoint {}", uri.path()))
        .hint("GET /openapi.json says which there are; statements go to POST /sql")
}

fn segments(uri: &Uri) -> Result<Vec<String>, Problem> {
    let path = uri.path().strip_prefix('/').unwrap_or(uri.path());
    path.split('/').map(decoded).collect()
}

/// Each parameter once.
fn in_query(uri: &Uri) -> Result<HashMap<String, String>, Problem> {
    let mut given = HashMap::new();
    for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decoded(&name.replace('+', " "))?;
        if given.insert(name.clone(), decoded(&value.replace('+', " "))?).is_some() {
            return Err(Problem::parameter(&name, "is given twice"));
        }
    }
    Ok(given)
}

/// Text with its `%41`s read.
fn decoded(text: &str) -> Result<String, Problem> {
    let wrong = || Problem::new(StatusCode::BAD_REQUEST, format!("{text:?} is not UTF-8 in percent encoding"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2).ok_or_else(wrong)?;
        let digits =
            std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        bytes.push(digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).ok_or_else(wrong)?);
        rest = behind;
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_and_parameters_are_decoded_once() {
        let uri: Uri = "/videos/a%2Fb%20c+d/views?x=1+2%2B&y=&z&%C3%A4=%25".parse().unwrap();
        assert_eq!(segments(&uri).unwrap(), ["videos", "a/b c+d", "views"]);
        let given = in_query(&uri).unwrap();
        let of = |name: &str| given.get(name).map(String::as_str);
        assert_eq!((of("x"), of("y"), of("z"), of("ä")), (Some("1 2+"), Some(""), Some(""), Some("%")));
        for wrong in ["/a?x=1&x=2", "/a?x=%", "/a?x=%4", "/a?x=%zz", "/a?x=%ff", "/a?x=%+1"] {
            assert!(in_query(&wrong.parse().unwrap()).is_err(), "{wrong}");
        }
        assert!(segments(&"/%e4".parse().unwrap()).is_err());
    }

    #[test]
    fn a_tag_is_found_among_those_that_the_client_has() {
        let tag = HeaderValue::from_static("\"a-1-json\"");
        let had = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, value.parse().unwrap());
            has(&headers, &tag)
        };
        assert!(had("\"a-1-json\""));
        assert!(had("\"x\", W/\"a-1-json\""));
        assert!(!had("\"a-1-jso\""));
        assert!(!had("a-1-json"));
        assert!(!had("*"));
        assert!(!has(&HeaderMap::new(), &tag));
    }
}
