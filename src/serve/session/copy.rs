//! `COPY ... TO STDOUT`: which rows, and how they are written. What comes by `FROM STDIN` is in `from`.

mod binary;
mod columns;
pub mod from;
mod lines;

use datafusion::sql::sqlparser::ast::{
    self, CopyLegacyCsvOption, CopyLegacyOption, CopyOption, CopySource, CopyTarget,
};

use super::statement::Query;
use crate::serve::error::{QueryError, SqlState};

/// The rows of a query, in a form that is not that of results.
#[derive(Debug, Clone)]
pub struct Copy {
    pub query: Query,
    pub format: CopyFormat,
}

/// How rows are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyFormat {
    /// A line a row; special characters have a backslash before them.
    Text {
        delimiter: char,
        null: String,
        header: bool,
    },
    /// As RFC 4180 has it, with lines that end in one character.
    Csv {
        delimiter: char,
        null: String,
        header: bool,
        quote: char,
        escape: char,
        force: Forced,
    },
    Binary,
}

/// Columns whose values are always quoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forced {
    All,
    Columns(Vec<String>),
}

/// Options as they were given, in either of their two spellings.
#[derive(Debug, Default)]
struct Given {
    format: Option<String>,
    delimiter: Option<char>,
    null: Option<String>,
    header: bool,
    quote: Option<char>,
    escape: Option<char>,
    force: Vec<ast::Ident>,
}

impl Copy {
    /// Reads a statement that the parser found to be COPY; `query` wraps the rows that it asks for.
    pub(super) fn read(
        statement: ast::Statement,
        query: impl FnOnce(ast::Statement) -> Query,
    ) -> Result<Self, QueryError> {
        let ast::Statement::Copy { source, to, target, options, legacy_options, .. } = statement else {
            return Err(QueryError::internal("not a COPY"));
        };
        if !to || target != CopyTarget::Stdout {
            return Err(QueryError::refused("COPY to anything but STDOUT"));
        }
        let format = Given::of(options, legacy_options)?.format()?;
        let rows = match source {
            CopySource::Query(rows) => *rows,
            CopySource::Table { table_name, columns } => whole(&table_name, &columns)?,
        };
        Ok(Self { query: query(ast::Statement::Query(Box::new(rows))), format })
    }
}

/// `SELECT columns FROM table`.
fn whole(table: &ast::ObjectName, columns: &[ast::Ident]) -> Result<ast::Query, QueryError> {
    let columns = match columns {
        [] => "*".to_owned(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let text = format!("SELECT {columns} FROM {table}");
    let parsed = datafusion::sql::sqlparser::parser::Parser::new(&super::dialect::Postgres)
        .try_with_sql(&text)
        .and_then(|mut parser| parser.parse_query());
    parsed.map(|query| *query).map_err(|error| QueryError::new(SqlState::SYNTAX, format!("COPY {table}: {error}")))
}

fn unsupported(what: &str) -> QueryError {
    QueryError::new(SqlState::FEATURE_NOT_SUPPORTED, format!("COPY with {what} is not supported"))
}

impl Given {
    fn of(options: Vec<CopyOption>, legacy: Vec<CopyLegacyOption>) -> Result<Self, QueryError> {
        let mut given = Self::default();
        for option in options {
            match option {
                CopyOption::Format(name) => given.format = Some(name.value.to_lowercase()),
                CopyOption::Delimiter(delimiter) => given.delimiter = Some(delimiter),
                CopyOption::Null(null) => given.null = Some(null),
                CopyOption::Header(header) => given.header = header,
                CopyOption::Quote(quote) => given.quote = Some(quote),
                CopyOption::Escape(escape) => given.escape = Some(escape),
                CopyOption::ForceQuote(columns) => given.force = columns,
                CopyOption::Encoding(name) if ["utf8", "utf-8"].contains(&name.to_lowercase().as_str()) => {}
                other => return Err(unsupported(&other.to_string())),
            }
        }
        for option in legacy {
            match option {
                CopyLegacyOption::Binary => given.format = Some("binary".to_owned()),
                CopyLegacyOption::Delimiter(delimiter) => given.delimiter = Some(delimiter),
                CopyLegacyOption::Null(null) => given.null = Some(null),
                CopyLegacyOption::Header => given.header = true,
                CopyLegacyOption::Csv(more) => {
                    given.format = Some("csv".to_owned());
                    for option in more {
                        match option {
                            CopyLegacyCsvOption::Header => given.header = true,
                            CopyLegacyCsvOption::Quote(quote) => given.quote = Some(quote),
                            CopyLegacyCsvOption::Escape(escape) => given.escape = Some(escape),
                            CopyLegacyCsvOption::ForceQuote(columns) => given.force = columns,
                            other => return Err(unsupported(&other.to_string())),
                        }
                    }
                }
                other => return Err(unsupported(&other.to_string())),
            }
        }
        Ok(given)
    }

    fn format(self) -> Result<CopyFormat, QueryError> {
        let Self { format, delimiter, null, header, quote, escape, force } = self;
        let wrong = |what: &str| Err(QueryError::new(SqlState::INVALID_PARAMETER, format!("COPY {what}")));
        let ascii =
            [delimiter, quote, escape].into_iter().flatten().all(|c| c.is_ascii() && c != '\n' && c != '\r');
        if !ascii {
            return wrong("delimiter, quote and escape must each be one ASCII character, and no end of line");
        }
        if null.as_deref().is_some_and(|null| null.contains(['\n', '\r'])) {
            return wrong("null representation cannot use an end of line");
        }
        match format.as_deref().unwrap_or("text") {
            "text" if quote.is_some() || escape.is_some() || !force.is_empty() => {
                wrong("quote, escape and force quote are of CSV mode")
            }
            "text" => Ok(CopyFormat::Text {
                delimiter: delimiter.unwrap_or('\t'),
                null: null.unwrap_or_else(|| "\\N".to_owned()),
                header,
            }),
            "csv" => {
                let quote = quote.unwrap_or('"');
                let delimiter = delimiter.unwrap_or(',');
                if quote == delimiter {
                    return wrong("delimiter and quote must be different");
                }
                let all = force.iter().any(|column| column.value == "*");
                let columns = force.into_iter().map(|column| column.value).collect();
                let force = if all { Forced::All } else { Forced::Columns(columns) };
                let null = null.unwrap_or_default();
                Ok(CopyFormat::Csv { delimiter, null, header, quote, escape: escape.unwrap_or(quote), force })
            }
            "binary" if header || delimiter.is_some() || null.is_some() => {
                wrong("header, delimiter and null are not of binary mode")
            }
            "binary" => Ok(CopyFormat::Binary),
            other => wrong(&format!("format \"{other}\" not recognized: there are text, csv and binary")),
        }
    }
}
