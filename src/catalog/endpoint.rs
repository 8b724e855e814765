//! Endpoints of HTTP: a route with typed parameters, and the query that answers it.
//!
//! A file in `sql/api` declares one. It begins with a header, lines of `--`, and goes on with one SELECT that names its
//! parameters with a dollar:
//!
//! ```sql
//! -- GET /videos/{video_id}/days
//! -- about: How often one video was watched on each day.
//! -- path video_id TEXT: the video
//! -- query since DATE DEFAULT '2026-01-01': the first day
//! -- query limit BIGINT BETWEEN 1 AND 1000 DEFAULT 100: at most so many days
//! -- returns: rows
//! SELECT ... WHERE video_id = $video_id AND day >= $since ORDER BY day LIMIT $limit
//! ```
//!
//! | line | says |
//! |---|---|
//! | `GET /route` | the first; a segment in braces is a parameter |
//! | `about: text` | what it answers |
//! | `path name TYPE: text` | a parameter of the route, in text what it means |
//! | `query name TYPE [BETWEEN a AND b] [DEFAULT value]: text` | one behind the `?`; without DEFAULT it has to be given |
//! | `returns: row` or `rows` | one object, and 404 when there is none; or an array, in the order that ORDER BY gives |
//!
//! A line that begins with three spaces goes on with the text of the line above.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{Query, Statement, Value, ValueWithSpan, VisitMut, VisitorMut};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Location, Token};

use self::parameter::{Parameter, Place};
use self::route::Route;
use super::Fault;
use super::ddl::{column_type, fault, parser_fault};

pub mod parameter;
pub mod route;

/// A route and the query that answers it.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    pub route: Route,
    /// What it answers.
    pub about: String,
    /// In the order of `$1`, `$2`, ... in the query.
    pub parameters: Vec<Parameter>,
    pub returns: Returns,
    pub query: Box<Query>,
    pub file: String,
    /// Where the query begins.
    pub line: u64,
}

/// What an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Returns {
    /// One row, or none.
    Row,
    /// Any number of rows, in order.
    Rows,
}

/// Parameters that the server itself understands.
const RESERVED_PARAMETERS: [&str; 1] = ["format"];

/// Reads the text of one file.
///
/// # Errors
/// The first thing that is wrong in it.
pub fn parse(file: &str, text: &str) -> Result<Endpoint, Fault> {
    let mut header = Header::new(file);
    let lines = text.lines().enumerate().skip_while(|(_, line)| line.trim().is_empty());
    for (index, line) in lines {
        let Some(content) = line.strip_prefix("--") else { break };
        header.line(index as u64 + 1, content)?;
    }
    let Header { route, about, parameters, returns, .. } = header;
    let Some((route, at)) = route else {
        return Err(fault(file, Location::new(1, 1), "an endpoint begins with a line -- GET /route".to_owned()));
    };
    let missing = |what: &str| fault(file, at, format!("the header says nothing about {what}"));
    let about = about.ok_or_else(|| missing("what it answers: add -- about: ..."))?;
    let returns =
        returns.ok_or_else(|| missing("how much it answers: add -- returns: row, or -- returns: rows"))?;
    let (mut query, start) = query(file, text)?;
    check_route(file, &route, at, &parameters)?;
    number_parameters(file, &mut query, &parameters)?;
    if returns == Returns::Rows && query.order_by.is_none() {
        let reason = "what returns rows needs an ORDER BY: without one their order is another each time";
        return Err(fault(file, start, reason.to_owned()));
    }
    Ok(Endpoint { route, about, parameters, returns, query, file: file.to_owned(), line: start.line })
}

/// What was read of a header.
struct Header<'a> {
    file: &'a str,
    route: Option<(Route, Location)>,
    about: Option<String>,
    parameters: Vec<Parameter>,
    returns: Option<Returns>,
    last: Last,
}

/// Whose text a line goes on with that begins with spaces.
#[derive(Clone, Copy)]
enum Last {
    Nothing,
    About,
    Parameter,
}

impl<'a> Header<'a> {
    fn new(file: &'a str) -> Self {
        Self { file, route: None, about: None, parameters: Vec::new(), returns: None, last: Last::Nothing }
    }

    /// `content` is what comes after the dashes.
    fn line(&mut self, line: u64, content: &str) -> Result<(), Fault> {
        let text = content.trim();
        let indent = content.chars().take_while(|c| c.is_whitespace()).count();
        let at = Location::new(line, indent as u64 + 3);
        let wrong = |reason: String| Err(fault(self.file, at, reason));
        if text.is_empty() {
            return Ok(());
        }
        if indent >= 3 {
            return self.go_on(at, text);
        }
        if self.route.is_none() {
            let Some(route) = text.strip_prefix("GET ") else {
                return wrong(format!("an endpoint begins with a line -- GET /route, not with {text:?}"));
            };
            let route = Route::parse(route.trim()).map_err(|reason| fault(self.file, at, reason))?;
            self.route = Some((route, at));
            return Ok(());
        }
        let (head, about) = match colon(text) {
            Some(colon) => (text[..colon].trim_end(), text[colon + 1..].trim().to_owned()),
            None => return wrong(format!("write the line as -- key: text, not {text:?}")),
        };
        let (key, rest) = head.split_once(' ').unwrap_or((head, ""));
        match (key, rest.trim()) {
            ("about", "") if self.about.is_some() => wrong("about is said twice".to_owned()),
            ("about", "") => {
                (self.about, self.last) = (Some(about), Last::About);
                Ok(())
            }
            ("returns", "") if self.returns.is_some() => wrong("returns is said twice".to_owned()),
            ("returns", "") => {
                self.last = Last::Nothing;
                self.returns = Some(match about.as_str() {
                    "row" => Returns::Row,
                    "rows" => Returns::Rows,
                    other => return wrong(format!("returns is row or rows, not {other:?}")),
                });
                Ok(())
            }
            ("about" | "returns", _) => wrong(format!("write the line as -- {key}: text, not {text:?}")),
            ("path" | "query", "") => wrong(format!("write a parameter as -- {key} name TYPE: text")),
            ("path", rest) => self.parameter(Place::Path, at, rest, about),
            ("query", rest) => self.parameter(Place::Query, at, rest, about),
            _ => wrong(format!("unknown key {key}; a header has about, path, query and returns")),
        }
    }

    fn go_on(&mut self, at: Location, text: &str) -> Result<(), Fault> {
        let above = match self.last {
            Last::Nothing => None,
            Last::About => self.about.as_mut(),
            Last::Parameter => self.parameters.last_mut().map(|parameter| &mut parameter.about),
        };
        match above {
            Some(above) => {
                above.push(' ');
                above.push_str(text);
                Ok(())
            }
            None => {
                Err(fault(self.file, at, "a line that begins with three spaces goes on with a text".to_owned()))
            }
        }
    }

    /// `name TYPE [BETWEEN a AND b] [DEFAULT value]`.
    fn parameter(&mut self, place: Place, at: Location, declared: &str, about: String) -> Result<(), Fault> {
        let (name, rest) = declared.split_once(' ').unwrap_or((declared, ""));
        let wrong = |reason: String| fault(self.file, at, format!("parameter {name}: {reason}"));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !name.chars().all(plain) || !name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') {
            return Err(wrong("a name is lower-case letters, digits and _".to_owned()));
        }
        if RESERVED_PARAMETERS.contains(&name) {
            return Err(wrong("this name belongs to the server".to_owned()));
        }
        if self.parameters.iter().any(|other| other.name == name) {
            return Err(wrong("is declared twice".to_owned()));
        }
        let parsed = |error| wrong(parser_fault(self.file, at, error).reason);
        let mut parser = Parser::new(&GenericDialect {}).try_with_sql(rest).map_err(parsed)?;
        let sql_type = parser.parse_data_type().map_err(parsed)?;
        let kind = column_type(&sql_type).map_err(wrong)?;
        let between = match parser.parse_keyword(Keyword::BETWEEN) {
            true => {
                let least = constant(&mut parser).map_err(wrong)?;
                parser.expect_keyword(Keyword::AND).map_err(parsed)?;
                Some((least, constant(&mut parser).map_err(wrong)?))
            }
            false => None,
        };
        let default = match parser.parse_keyword(Keyword::DEFAULT) {
            true => Some(constant(&mut parser).map_err(wrong)?),
            false => None,
        };
        let next = parser.peek_token();
        if next.token != Token::EOF {
            return Err(wrong(format!("expected BETWEEN, DEFAULT or a colon, found {}", next.token)));
        }
        let parameter = Parameter {
            name: name.to_owned(),
            place,
            kind,
            between: None,
            default: None,
            about,
            at: (at.line, at.column),
        };
        let parameter = parameter.bounded(between, default).map_err(wrong)?;
        self.parameters.push(parameter);
        self.last = Last::Parameter;
        Ok(())
    }
}

/// A constant as text; none for NULL.
fn constant(parser: &mut Parser<'_>) -> Result<Option<String>, String> {
    let minus = parser.consume_token(&Token::Minus);
    let value = parser.parse_value().map_err(|error| error.to_string())?.value;
    match value {
        Value::Number(number, _) => Ok(Some(if minus { format!("-{number}") } else { number })),
        Value::SingleQuotedString(text) if !minus => Ok(Some(text)),
        Value::Boolean(flag) if !minus => Ok(Some(flag.to_string())),
        Value::Null if !minus => Ok(None),
        other => Err(format!("expected a constant, found {other}")),
    }
}

/// The first colon that is not within quotes.
fn colon(text: &str) -> Option<usize> {
    let mut quoted = false;
    text.char_indices().find_map(|(at, c)| {
        quoted ^= c == '\'';
        (c == ':' && !quoted).then_some(at)
    })
}

/// The one SELECT of the file, and where it begins.
fn query(file: &str, text: &str) -> Result<(Box<Query>, Location), Fault> {
    let first = Location::new(1, 1);
    let mut parser =
        Parser::new(&GenericDialect {}).try_with_sql(text).map_err(|error| parser_fault(file, first, error))?;
    let start = parser.peek_token().span.start;
    let statement = parser.parse_statement().map_err(|error| parser_fault(file, start, error))?;
    while parser.consume_token(&Token::SemiColon) {}
    let next = parser.peek_token();
    if next.token != Token::EOF {
        return Err(fault(
            file,
            next.span.start,
            format!("a file has one endpoint and one SELECT; found {}", next.token),
        ));
    }
    match statement {
        Statement::Query(query) => Ok((query, start)),
        _ => Err(fault(file, start, "an endpoint is answered by one SELECT".to_owned())),
    }
}

/// The route's parameters are those that are declared as `path`.
fn check_route(file: &str, route: &Route, at: Location, parameters: &[Parameter]) -> Result<(), Fault> {
    let declared = |name: &str| parameters.iter().any(|p| p.place == Place::Path && p.name == name);
    if let Some(name) = route.parameters().find(|name| !declared(name)) {
        let reason = format!("the route has {{{name}}}, which is not declared: add -- path {name} TYPE: ...");
        return Err(fault(file, at, reason));
    }
    let strange =
        parameters.iter().find(|p| p.place == Place::Path && !route.parameters().any(|name| name == p.name));
    match strange {
        Some(parameter) => Err(fault(
            file,
            Location::new(parameter.at.0, parameter.at.1),
            format!("parameter {0}: the route has no {{{0}}}", parameter.name),
        )),
        None => Ok(()),
    }
}

/// Turns `$name` into `$1`, `$2`, ..., as sessions know parameters. Each is declared, and each is used.
fn number_parameters(file: &str, query: &mut Query, parameters: &[Parameter]) -> Result<(), Fault> {
    let mut numbering = Numbering { parameters, used: vec![false; parameters.len()] };
    if let ControlFlow::Break((name, at)) = query.visit(&mut numbering) {
        let known: Vec<String> = parameters.iter().map(|parameter| format!("${}", parameter.name)).collect();
        let known = if known.is_empty() { "nothing".to_owned() } else { known.join(", ") };
        return Err(fault(file, at, format!("parameter {name} is not declared; the header declares {known}")));
    }
    let unused = numbering.used.iter().zip(parameters).find(|(used, _)| !**used);
    match unused {
        Some((_, parameter)) => Err(fault(
            file,
            Location::new(parameter.at.0, parameter.at.1),
            format!("parameter {} is declared and not used", parameter.name),
        )),
        None => Ok(()),
    }
}

struct Numbering<'a> {
    parameters: &'a [Parameter],
    used: Vec<bool>,
}

impl VisitorMut for Numbering<'_> {
    type Break = (String, Location);

    fn pre_visit_value(&mut self, value: &mut ValueWithSpan) -> ControlFlow<Self::Break> {
        let Value::Placeholder(name) = &value.value else { return ControlFlow::Continue(()) };
        let known = self.parameters.iter().position(|p| name.strip_prefix('$') == Some(p.name.as_str()));
        match known {
            Some(index) => {
                if let Some(used) = self.used.get_mut(index) {
                    *used = true;
                }
                value.value = Value::Placeholder(format!("${}", index + 1));
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break((name.clone(), value.span.start)),
        }
    }
}

#[cfg(test)]
mod tests;
