//! Reads `CREATE STREAM`, `CREATE TABLE`, `CREATE MATERIALIZED VIEW`, `CREATE VIEW` and `CREATE FUNCTION`.
//!
//! `CREATE STREAM` takes what `CREATE TABLE` takes: columns with types, NOT NULL, CHECK, PRIMARY KEY, and
//! `WITH (topic = '...', format = 'json', event_time = 'column')`.

use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, ColumnDef, ColumnOption, CreateTable, CreateTableOptions, CreateView, DataType as SqlType,
    ExactNumberInfo, Expr, Ident, IndexColumn, ObjectName, Spanned, SqlOption, Statement, StructField,
    TableConstraint, TimezoneInfo, Value,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Location, Token};

use super::function::Function;
use super::schedule::RefreshEvery;
use super::stream::{Check, Column, ColumnType, Stream};
use super::table::Table;
use super::version::VERSION_MARK;
use super::view::{OrdinaryView, REFRESH_EVERY_DEFAULT, View};
use super::{Fault, RESERVED_SCHEMAS, qualified};

/// One statement of a file in `sql/`.
#[derive(Debug, Clone, PartialEq)]
pub enum Definition {
    Stream(Stream),
    Table(Table),
    View(View),
    Ordinary(OrdinaryView),
    Function(Function),
}

impl Definition {
    /// Where the statement begins.
    pub fn line(&self) -> u64 {
        match self {
            Self::Stream(stream) => {
                stream.declared_at.rsplit_once(':').and_then(|(_, line)| line.parse().ok()).unwrap_or(1)
            }
            Self::Table(table) => table.line,
            Self::View(view) => view.line,
            Self::Ordinary(view) => view.line,
            Self::Function(function) => function.line,
        }
    }
}

/// Reads all statements of `text`; `file` is for messages.
pub fn parse(file: &str, text: &str) -> Result<Vec<Definition>, Fault> {
    let at = |location: Location, reason: String| fault(file, location, reason);
    let mut parser = Parser::new(&GenericDialect {})
        .try_with_sql(text)
        .map_err(|error| parser_fault(file, Location::new(1, 1), error))?;
    let mut definitions = Vec::new();
    loop {
        while parser.consume_token(&Token::SemiColon) {}
        let first = parser.peek_token();
        if first.token == Token::EOF {
            return Ok(definitions);
        }
        let start = first.span.start;
        let above = comment_lines(text, start.line);
        let comment = comment(&above);
        let definition = if is_create_stream(&parser) {
            let (_create, _stream) = (parser.next_token(), parser.next_token());
            let table = parser
                .parse_create_table(false, false, None, false)
                .map_err(|error| parser_fault(file, start, error))?;
            Definition::Stream(stream(table, comment, file, start)?)
        } else {
            match parser.parse_statement().map_err(|error| parser_fault(file, start, error))? {
                Statement::CreateView(declared) => view(declared, comment, file, start)?,
                Statement::CreateTable(declared) => Definition::Table(table(declared, comment, file, start)?),
                Statement::CreateFunction(declared) => {
                    let name = qualified_name(&declared.name).map_err(|reason| at(start, reason))?;
                    let read = Function::read(declared, name, comment, file, start.line);
                    Definition::Function(read.map_err(|reason| at(start, reason))?)
                }
                _ => {
                    let reason = "only CREATE STREAM, CREATE TABLE, CREATE MATERIALIZED VIEW, CREATE VIEW and CREATE \
                                  FUNCTION are understood here";
                    return Err(at(start, reason.into()));
                }
            }
        };
        let next = parser.peek_token();
        if next.token != Token::EOF && next.token != Token::SemiColon {
            return Err(at(next.span.start, format!("expected ; after the statement, found {}", next.token)));
        }
        let mut definition = definition;
        if let Definition::View(view) = &mut definition {
            let end = match next.token {
                Token::EOF => text.len(),
                _ => byte_offset(text, next.span.start),
            };
            let written = text.get(byte_offset(text, start)..end).unwrap_or_default().trim_end();
            view.statement = above.iter().copied().chain([written]).collect::<Vec<_>>().join("\n");
        }
        definitions.push(definition);
    }
}

fn is_create_stream(parser: &Parser<'_>) -> bool {
    let create = parser.peek_nth_token(0).token;
    let stream = parser.peek_nth_token(1).token;
    matches!(create, Token::Word(word) if word.keyword == Keyword::CREATE)
        && matches!(stream, Token::Word(word) if word.value.eq_ignore_ascii_case("stream"))
}

pub(super) fn fault(file: &str, at: Location, reason: String) -> Fault {
    Fault { file: file.to_owned(), line: at.line, column: at.column, reason }
}

/// The parser writes the place into its message; take it out again.
pub(super) fn parser_fault(file: &str, start: Location, error: ParserError) -> Fault {
    let message = match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message,
        ParserError::RecursionLimitExceeded => "the statement is nested too deeply".to_owned(),
    };
    let place = message.rsplit_once(" at Line: ").and_then(|(reason, place)| {
        let (line, column) = place.split_once(", Column: ")?;
        Some((reason.to_owned(), Location::new(line.trim().parse().ok()?, column.trim().parse().ok()?)))
    });
    match place {
        Some((reason, location)) => fault(file, location, reason),
        None => fault(file, start, message),
    }
}

/// The `--` lines directly above a statement.
fn comment_lines(text: &str, line: u64) -> Vec<&str> {
    let first = usize::try_from(line).unwrap_or(usize::MAX).saturating_sub(1);
    let lines: Vec<&str> = text.lines().take(first).collect();
    let count = lines.iter().rev().take_while(|line| line.trim_start().starts_with("--")).count();
    lines.into_iter().rev().take(count).rev().collect()
}

/// They say what a row is.
fn comment(lines: &[&str]) -> Option<String> {
    let words = lines.iter().filter_map(|line| line.trim_start().strip_prefix("--")).map(str::trim);
    let comment = words.collect::<Vec<_>>().join(" ");
    (!comment.trim().is_empty()).then(|| comment.trim().to_owned())
}

/// Where a place lies in the text; the tokenizer counts lines and characters from 1.
fn byte_offset(text: &str, at: Location) -> usize {
    let line = usize::try_from(at.line).unwrap_or(usize::MAX).saturating_sub(1);
    let column = usize::try_from(at.column).unwrap_or(usize::MAX).saturating_sub(1);
    let start: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    let rest = text.get(start..).unwrap_or_default();
    start + rest.char_indices().nth(column).map_or(rest.len(), |(offset, _)| offset)
}

/// The name of a table or an ordinary view, which may stand in a schema of its own.
fn qualified_name(name: &ObjectName) -> Result<String, String> {
    let parts: Option<Vec<String>> = name.0.iter().map(|part| part.as_ident().map(normalize)).collect();
    let parts = parts.unwrap_or_default();
    if let Some(part) = parts.iter().find(|part| part.contains(['.', '/']) || part.is_empty()) {
        return Err(format!("{part:?} in {name}: a name has no dot or slash in it"));
    }
    match parts.as_slice() {
        [table] => Ok(table.clone()),
        [schema, _] if RESERVED_SCHEMAS.contains(&schema.as_str()) => {
            Err(format!("{name}: what is in schema {schema} is made by the engine; choose another schema"))
        }
        [schema, table] => Ok(qualified(schema, table)),
        _ => Err(format!("{name} must be a name, or schema.name")),
    }
}

fn single_name(name: &ObjectName) -> Result<String, String> {
    match name.0.as_slice() {
        [part] => part.as_ident().map(normalize).ok_or_else(|| format!("{name} is not a plain name")),
        _ => Err(format!("{name} must be a name without a schema; its schema is implied")),
    }
}

/// Unquoted names are lower case, as in Postgres.
pub fn normalize(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

type Options = Vec<(Ident, String)>;

fn options(file: &str, start: Location, options: &CreateTableOptions) -> Result<Options, Fault> {
    let given = match options {
        CreateTableOptions::None => return Ok(Vec::new()),
        CreateTableOptions::With(given) => given,
        other => return Err(fault(file, start, format!("write options as WITH (name = 'value'), not {other}"))),
    };
    given
        .iter()
        .map(|option| match option {
            SqlOption::KeyValue { key, value: Expr::Value(value) } => match &value.value {
                Value::SingleQuotedString(text) => Ok((key.clone(), text.clone())),
                other => Err(fault(file, key.span.start, format!("{key} takes a quoted text, not {other}"))),
            },
            other => Err(fault(file, start, format!("write {other} as name = 'value'"))),
        })
        .collect()
}

fn view(declared: CreateView, comment: Option<String>, file: &str, start: Location) -> Result<Definition, Fault> {
    let refused = |reason: &str| Err(fault(file, start, reason.to_owned()));
    let name = match declared.materialized {
        true => single_name(&declared.name),
        false => qualified_name(&declared.name),
    };
    let name = name.map_err(|reason| fault(file, start, reason))?;
    if !declared.columns.is_empty() {
        return refused("write the names of a view's columns in its SELECT: SELECT expression AS name");
    }
    if declared.temporary || declared.if_not_exists || declared.to.is_some() || declared.or_alter {
        return refused("write CREATE VIEW or CREATE MATERIALIZED VIEW, without TEMPORARY, IF NOT EXISTS or TO");
    }
    let options = options(file, start, &declared.options)?;
    let (query, file, line) = (declared.query, file.to_owned(), start.line);
    if !declared.materialized {
        let mut enforced = false;
        for (key, text) in options {
            match normalize(&key).as_str() {
                "enforced" => {
                    enforced = flag(&key, &text).map_err(|reason| fault(&file, key.span.start, reason))?
                }
                _ => {
                    let reason = format!(
                        "unknown option {key}; an ordinary view, which is computed when it is read, takes enforced"
                    );
                    return Err(fault(&file, key.span.start, reason));
                }
            }
        }
        return Ok(Definition::Ordinary(OrdinaryView { name, query, enforced, comment, file, line }));
    }
    if name.contains(VERSION_MARK) {
        return Err(fault(
            &file,
            start,
            format!("view {name}: a name has no {VERSION_MARK}, which marks versions"),
        ));
    }
    let mut view = View {
        name,
        refresh_every: REFRESH_EVERY_DEFAULT,
        billable: false,
        query,
        comment,
        statement: String::new(),
        file,
        line,
    };
    for (key, text) in options {
        let wrong = |reason: String| fault(&view.file, key.span.start, reason);
        match normalize(&key).as_str() {
            "refresh_every" => {
                view.refresh_every = RefreshEvery::parse(&text).map_err(wrong)?;
            }
            "billable" => {
                view.billable = flag(&key, &text).map_err(wrong)?;
            }
            _ => {
                return Err(wrong(format!("unknown option {key}; a view takes refresh_every and billable")));
            }
        }
    }
    Ok(Definition::View(view))
}

fn flag(key: &Ident, text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{key} is 'true' or 'false', not {text:?}"))
}

/// What streams and tables have in common.
struct Columns {
    columns: Vec<Column>,
    places: Vec<(u64, u64)>,
    /// Where the key is declared, and its columns.
    key: Option<(Location, Vec<usize>)>,
    checks: Vec<Check>,
}

fn columns(
    kind: &'static str,
    name: &str,
    table: &CreateTable,
    file: &str,
    start: Location,
) -> Result<Columns, Fault> {
    let mut rules = Rules { file, kind, name, key: None, checks: Vec::new() };
    let mut columns: Vec<Column> = Vec::with_capacity(table.columns.len());
    let mut places = Vec::with_capacity(table.columns.len());
    for definition in &table.columns {
        let column = column(file, definition)?;
        if columns.iter().any(|c| c.name == column.name) {
            return Err(fault(
                file,
                definition.name.span.start,
                format!("column {} is declared twice", column.name),
            ));
        }
        columns.push(column);
        places.push((definition.name.span.start.line, definition.name.span.start.column));
        for option in &definition.options {
            rules.column_option(definition, option.name.as_ref(), &option.option)?;
        }
    }
    for constraint in &table.constraints {
        rules.table_constraint(constraint, start)?;
    }
    let Rules { key, checks, .. } = rules;
    let index = |ident: &Ident| {
        let name = normalize(ident);
        let found = columns.iter().position(|c| c.name == name);
        found.ok_or_else(|| fault(file, ident.span.start, format!("no column {ident}")))
    };
    let key = match key.as_deref() {
        Some(idents @ [first, ..]) => {
            Some((first.span.start, idents.iter().map(index).collect::<Result<Vec<_>, _>>()?))
        }
        _ => None,
    };
    for column in key.iter().flat_map(|(_, key)| key) {
        if let Some(column) = columns.get_mut(*column) {
            column.required = true;
        }
    }
    Ok(Columns { columns, places, key, checks })
}

fn stream(table: CreateTable, comment: Option<String>, file: &str, start: Location) -> Result<Stream, Fault> {
    let name = single_name(&table.name).map_err(|reason| fault(file, start, reason))?;
    let Columns { columns, places, key, checks } = columns("stream", &name, &table, file, start)?;
    let key = match key.as_ref().map(|(at, key)| (at, key.as_slice())) {
        None => None,
        Some((_, [key])) => Some(*key),
        Some((at, _)) => return Err(fault(file, *at, "PRIMARY KEY of a stream takes one column".into())),
    };
    let index = |name: &str| columns.iter().position(|c| c.name == name);
    let (mut topic, mut event_time) = (None, None);
    for (option, text) in options(file, start, &table.table_options)? {
        let at = option.span.start;
        match normalize(&option).as_str() {
            "topic" => topic = Some(text),
            "format" if text == "json" => {}
            "format" => return Err(fault(file, at, format!("format {text:?} is not understood; use 'json'"))),
            "event_time" => {
                let column = index(&text).ok_or_else(|| fault(file, at, format!("no column {text}")))?;
                event_time = Some(column);
            }
            _ => {
                let reason = format!("unknown option {option}; a stream takes topic, format and event_time");
                return Err(fault(file, at, reason));
            }
        }
    }
    if let Some(column) = event_time.and_then(|i| columns.get(i))
        && column.kind != ColumnType::Timestamp
    {
        return Err(fault(file, start, format!("event_time column {} must be TIMESTAMPTZ", column.name)));
    }
    if let Some(column) = key.and_then(|i| columns.get(i))
        && !matches!(column.kind, ColumnType::Text | ColumnType::Uuid | ColumnType::Int32 | ColumnType::Int64)
    {
        let reason = format!("PRIMARY KEY column {} must be a UUID, text or integer", column.name);
        return Err(fault(file, start, reason));
    }
    Ok(Stream {
        topic: topic.ok_or_else(|| fault(file, start, format!("stream {name} needs WITH (topic = '...')")))?,
        places,
        declared_at: format!("{file}:{}", start.line),
        name,
        columns,
        key,
        event_time,
        checks,
        comment,
    })
}

fn table(table: CreateTable, comment: Option<String>, file: &str, start: Location) -> Result<Table, Fault> {
    let name = qualified_name(&table.name).map_err(|reason| fault(file, start, reason))?;
    let refused = |reason: String| Err(fault(file, start, reason));
    if name.contains(VERSION_MARK) {
        return refused(format!("table {name}: a name has no {VERSION_MARK}, which marks versions"));
    }
    if table.query.is_some() || table.like.is_some() || table.clone.is_some() || table.columns.is_empty() {
        return refused(format!("table {name}: write its columns, and fill it with INSERT"));
    }
    if table.or_replace || table.temporary || table.if_not_exists || table.external {
        return refused("write CREATE TABLE without OR REPLACE, TEMPORARY, EXTERNAL or IF NOT EXISTS".into());
    }
    let mut append_only = false;
    for (option, text) in options(file, start, &table.table_options)? {
        let wrong = |reason| fault(file, option.span.start, reason);
        match normalize(&option).as_str() {
            "append_only" => append_only = flag(&option, &text).map_err(wrong)?,
            _ => return Err(wrong(format!("unknown option {option}; a table takes append_only"))),
        }
    }
    let Columns { columns, places, key, checks } = columns("table", &name, &table, file, start)?;
    let nested = |column: &Column| matches!(column.kind, ColumnType::List(_) | ColumnType::Struct(_));
    if let Some((column, (line, place))) = columns.iter().zip(&places).find(|(column, _)| nested(column)) {
        let at = Location::new(*line, *place);
        return Err(fault(file, at, format!("column {}: a table has no arrays and structs", column.name)));
    }
    let key = key.map(|(_, key)| key).unwrap_or_default();
    let (file, line) = (file.to_owned(), start.line);
    Ok(Table { name, append_only, columns, key, checks, comment, places, file, line })
}

/// Collects the constraints of a stream or table.
struct Rules<'a> {
    file: &'a str,
    kind: &'static str,
    name: &'a str,
    key: Option<Vec<Ident>>,
    checks: Vec<Check>,
}

impl Rules<'_> {
    fn column_option(
        &mut self,
        column: &ColumnDef,
        name: Option<&Ident>,
        option: &ColumnOption,
    ) -> Result<(), Fault> {
        match option {
            ColumnOption::Null | ColumnOption::NotNull => Ok(()),
            ColumnOption::PrimaryKey(_) => self.primary_key(column.name.span.start, vec![column.name.clone()]),
            ColumnOption::Check(check) => {
                self.check(name.or(check.name.as_ref()), Some(&column.name), &check.expr);
                Ok(())
            }
            other => {
                let reason = format!("column {}: {other} is not understood in a {}", column.name, self.kind);
                Err(fault(self.file, column.name.span.start, reason))
            }
        }
    }

    fn table_constraint(&mut self, constraint: &TableConstraint, start: Location) -> Result<(), Fault> {
        match constraint {
            TableConstraint::Check(check) => {
                self.check(check.name.as_ref(), None, &check.expr);
                Ok(())
            }
            TableConstraint::PrimaryKey(key) => {
                let column = |column: &IndexColumn| match &column.column.expr {
                    Expr::Identifier(ident) => Ok(ident.clone()),
                    other => Err(fault(self.file, start, format!("PRIMARY KEY takes columns, not {other}"))),
                };
                let columns = key.columns.iter().map(column).collect::<Result<Vec<_>, _>>()?;
                let at = columns.first().map_or(start, |first| first.span.start);
                self.primary_key(at, columns)
            }
            other => Err(fault(self.file, start, format!("{other} is not understood in a {}", self.kind))),
        }
    }

    fn primary_key(&mut self, at: Location, columns: Vec<Ident>) -> Result<(), Fault> {
        match self.key.replace(columns) {
            None => Ok(()),
            Some(_) => Err(fault(self.file, at, format!("a {} has one PRIMARY KEY", self.kind))),
        }
    }

    fn check(&mut self, name: Option<&Ident>, column: Option<&Ident>, expr: &Expr) {
        let name = match (name, column) {
            (Some(name), _) => normalize(name),
            (None, Some(column)) => format!("{}_{}_check", self.name, normalize(column)),
            (None, None) => format!("{}_check{}", self.name, self.checks.len() + 1),
        };
        let at = expr.span().start;
        self.checks.push(Check { name, sql: expr.to_string(), line: at.line, column: at.column });
    }
}

fn column(file: &str, definition: &ColumnDef) -> Result<Column, Fault> {
    let required =
        definition.options.iter().any(|o| matches!(o.option, ColumnOption::NotNull | ColumnOption::PrimaryKey(_)));
    let name = normalize(&definition.name);
    let at = definition.name.span.start;
    if name.starts_with('_') {
        return Err(fault(file, at, format!("column {name}: names that begin with _ belong to the engine")));
    }
    let kind =
        column_type(&definition.data_type).map_err(|reason| fault(file, at, format!("column {name}: {reason}")))?;
    Ok(Column { name, kind, required })
}

pub(super) fn column_type(sql: &SqlType) -> Result<ColumnType, String> {
    Ok(match sql {
        SqlType::Text | SqlType::Varchar(_) | SqlType::String(_) | SqlType::CharacterVarying(_) => ColumnType::Text,
        SqlType::Uuid => ColumnType::Uuid,
        SqlType::Boolean | SqlType::Bool => ColumnType::Boolean,
        SqlType::Int(_) | SqlType::Integer(_) | SqlType::Int4(_) | SqlType::SmallInt(_) => ColumnType::Int32,
        SqlType::BigInt(_) | SqlType::Int8(_) => ColumnType::Int64,
        SqlType::DoublePrecision | SqlType::Double(_) | SqlType::Float8 => ColumnType::Float64,
        SqlType::Decimal(ExactNumberInfo::PrecisionAndScale(p, s))
        | SqlType::Numeric(ExactNumberInfo::PrecisionAndScale(p, s)) => {
            match (u8::try_from(*p), i8::try_from(*s)) {
                (Ok(precision @ 1..=38), Ok(scale)) if scale >= 0 && i16::from(scale) <= i16::from(precision) => {
                    ColumnType::Decimal { precision, scale }
                }
                _ => return Err(format!("{sql}: precision is 1 to 38 and scale at most the precision")),
            }
        }
        SqlType::Timestamp(_, TimezoneInfo::Tz | TimezoneInfo::WithTimeZone) => ColumnType::Timestamp,
        SqlType::Timestamp(..) => return Err("write TIMESTAMPTZ: an event time without a zone is ambiguous".into()),
        SqlType::Date => ColumnType::Date,
        SqlType::Array(
            ArrayElemTypeDef::AngleBracket(item)
            | ArrayElemTypeDef::SquareBracket(item, _)
            | ArrayElemTypeDef::Parenthesis(item),
        ) => ColumnType::List(Box::new(column_type(item)?)),
        SqlType::Struct(fields, _) => {
            ColumnType::Struct(fields.iter().map(struct_column).collect::<Result<_, _>>()?)
        }
        other => {
            return Err(format!(
                "type {other} is not understood; use TEXT, UUID, BOOLEAN, INTEGER, BIGINT, DOUBLE PRECISION, \
                 DECIMAL(p, s), TIMESTAMPTZ, DATE, STRUCT<...> or an array of them"
            ));
        }
    })
}

fn struct_column(field: &StructField) -> Result<Column, String> {
    let name = field.field_name.as_ref().ok_or("every field of a STRUCT needs a name")?;
    Ok(Column { name: normalize(name), kind: column_type(&field.field_type)?, required: false })
}

#[cfg(test)]
mod tests;
