//! Cursors of SQL: `DECLARE`, `FETCH`, `MOVE`, `CLOSE`. A cursor is a running query whose rows wait until they are fetched; it
//! goes forward only.

use std::collections::VecDeque;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::ParamValues;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::statement::Query;
use super::{Encode, Outcome, Rows, Session, run, shown_schema};
use crate::serve::error::{QueryError, SqlState};

/// Rows that come from the engine as one.
const BATCH_ROWS: usize = 8192;
/// Bytes that one FETCH may give.
const FETCH_BYTES_MAX: usize = 64 << 20;
/// Cursors of one session.
const CURSORS_MAX: usize = 100;

/// A statement about cursors.
#[derive(Debug, Clone)]
pub enum CursorStatement {
    Declare {
        name: String,
        query: Query,
        /// It outlives its transaction.
        hold: bool,
    },
    Fetch {
        name: String,
        /// None for all.
        count: Option<usize>,
        /// `MOVE`: the rows are passed over.
        silent: bool,
    },
    /// One, or all.
    Close(Option<String>),
}

/// A query that was begun, and rows of it that were not asked for yet.
#[derive(Debug)]
pub(super) struct Cursor {
    schema: SchemaRef,
    rows: Rows<RecordBatch>,
    waiting: VecDeque<RecordBatch>,
    ended: bool,
    pub(super) hold: bool,
}

impl CursorStatement {
    /// Reads a statement that begins with one of the four words. `query` reads what comes after `FOR`.
    pub(super) fn read(
        tokens: &[TokenWithSpan],
        query: impl FnOnce(&[TokenWithSpan]) -> Result<Query, QueryError>,
    ) -> Result<Self, QueryError> {
        let solid: Vec<&Token> = tokens
            .iter()
            .map(|token| &token.token)
            .filter(|token| !matches!(token, Token::Whitespace(_) | Token::EOF))
            .collect();
        let first = solid.first().map(|token| token.to_string().to_uppercase()).unwrap_or_default();
        let wrong = || {
            QueryError::new(SqlState::SYNTAX, format!("syntax error in {first}"))
                .hint("DECLARE name CURSOR FOR SELECT ...; FETCH 100 FROM name; CLOSE name")
        };
        match first.as_str() {
            "DECLARE" => {
                let is_for = |token: &TokenWithSpan| is(&token.token, Keyword::FOR);
                let at = tokens.iter().position(is_for).ok_or_else(wrong)?;
                let (before, behind) = tokens.split_at(at);
                let before: Vec<&Token> = before.iter().map(|token| &token.token).collect();
                let has = |keyword| before.iter().any(|token| is(token, keyword));
                if !has(Keyword::CURSOR) || has(Keyword::BINARY) || (has(Keyword::SCROLL) && !has(Keyword::NO)) {
                    return Err(
                        wrong().detail("there are only cursors that go forward, in the format of the protocol")
                    );
                }
                let name = name(solid.get(1)).ok_or_else(wrong)?;
                let hold = has(Keyword::HOLD) && has(Keyword::WITH);
                Ok(Self::Declare { name, query: query(behind.get(1..).unwrap_or_default())?, hold })
            }
            "CLOSE" => match solid.as_slice() {
                [_, all] if is(all, Keyword::ALL) => Ok(Self::Close(None)),
                [_, one] => Ok(Self::Close(Some(name(Some(one)).ok_or_else(wrong)?))),
                _ => Err(wrong()),
            },
            _ => {
                let (last, rest) = solid.split_last().ok_or_else(wrong)?;
                let mut how: Vec<&Token> = rest.iter().skip(1).copied().collect();
                how.pop_if(|token| is(token, Keyword::FROM) || is(token, Keyword::IN));
                if how.first().is_some_and(|token| is(token, Keyword::FORWARD)) {
                    how.remove(0);
                }
                let count = match how.as_slice() {
                    [] => Some(1),
                    [next] if is(next, Keyword::NEXT) => Some(1),
                    [all] if is(all, Keyword::ALL) => None,
                    [Token::Number(number, _)] => Some(number.parse().map_err(|_| wrong())?),
                    _ => return Err(wrong().detail("a cursor goes forward only")),
                };
                let name = name(Some(last)).ok_or_else(wrong)?;
                Ok(Self::Fetch { name, count, silent: first == "MOVE" })
            }
        }
    }
}

fn is(token: &Token, keyword: Keyword) -> bool {
    matches!(token, Token::Word(word) if word.quote_style.is_none() && word.keyword == keyword)
}

fn name(token: Option<&&Token>) -> Option<String> {
    match token? {
        Token::Word(word) if word.quote_style.is_some() => Some(word.value.clone()),
        Token::Word(word) => Some(word.value.to_lowercase()),
        _ => None,
    }
}

impl Session {
    /// The columns of an open cursor.
    pub fn cursor_schema(&self, name: &str) -> Option<SchemaRef> {
        self.cursors.get(name).map(|cursor| SchemaRef::clone(&cursor.schema))
    }

    pub(super) async fn on_cursor<T>(
        &mut self,
        statement: &CursorStatement,
        parameters: Option<ParamValues>,
    ) -> Result<Outcome<T>, QueryError> {
        match statement {
            CursorStatement::Declare { name, query, hold } => {
                self.declare(name, query, *hold, parameters).await?;
                Ok(Outcome::Done("DECLARE CURSOR"))
            }
            CursorStatement::Fetch { name, count, silent } => {
                let cursor = self.cursors.get_mut(name).ok_or_else(|| unknown(name))?;
                let batch = cursor.fetch(count.unwrap_or(usize::MAX), *silent).await?;
                Ok(match silent {
                    true => Outcome::Changed { rows: batch.num_rows() as u64, tag: "MOVE" },
                    false => Outcome::Table { batch, tag: "FETCH" },
                })
            }
            CursorStatement::Close(None) => {
                self.cursors.clear();
                Ok(Outcome::Done("CLOSE CURSOR ALL"))
            }
            CursorStatement::Close(Some(name)) => {
                self.cursors.remove(name).ok_or_else(|| unknown(name))?;
                Ok(Outcome::Done("CLOSE CURSOR"))
            }
        }
    }

    async fn declare(
        &mut self,
        name: &str,
        query: &Query,
        hold: bool,
        parameters: Option<ParamValues>,
    ) -> Result<(), QueryError> {
        if !hold && !self.in_transaction() {
            let message = "DECLARE CURSOR can only be used in transaction blocks";
            return Err(QueryError::new(SqlState("25P01"), message).hint("BEGIN first, or DECLARE ... WITH HOLD"));
        }
        if self.cursors.contains_key(name) {
            return Err(QueryError::new(SqlState("42P03"), format!("cursor \"{name}\" already exists")));
        }
        if self.cursors.len() >= CURSORS_MAX {
            let message = format!("more than {CURSORS_MAX} cursors in one session");
            return Err(QueryError::new(SqlState::PROGRAM_LIMIT, message).hint("CLOSE some of them"));
        }
        let turn = self.place.turn().await?;
        let mut planned = self.plan(query, parameters).await?;
        planned.turn = Some(turn);
        let schema = shown_schema(query, SchemaRef::new(planned.plan.schema().as_arrow().clone()));
        let service = &self.service;
        let encode = Encode::new(BATCH_ROWS, Ok);
        let rows = run::run(&service.queries, &service.metrics, planned, service.limits.pieces_buffered, encode);
        let cursor = Cursor { schema, rows, waiting: VecDeque::new(), ended: false, hold };
        self.cursors.insert(name.to_owned(), cursor);
        Ok(())
    }
}

fn unknown(name: &str) -> QueryError {
    QueryError::new(SqlState("34000"), format!("cursor \"{name}\" does not exist"))
}

impl Cursor {
    /// The next `count` rows, fewer at the end.
    async fn fetch(&mut self, count: usize, silent: bool) -> Result<RecordBatch, QueryError> {
        let (mut taken, mut rows, mut bytes) = (Vec::new(), 0, 0);
        while rows < count {
            let batch = match self.waiting.pop_front() {
                Some(batch) => batch,
                None if self.ended => break,
                None => match self.rows.next().await {
                    Some(batch) => batch.inspect_err(|_| self.ended = true)?,
                    None => {
                        self.ended = true;
                        break;
                    }
                },
            };
            let wanted = batch.num_rows().min(count - rows);
            if wanted < batch.num_rows() {
                self.waiting.push_front(batch.slice(wanted, batch.num_rows() - wanted));
            }
            let part = batch.slice(0, wanted);
            // A slice holds all of its batch, so its own share is counted.
            bytes += batch.get_array_memory_size() * wanted / batch.num_rows().max(1);
            if bytes > FETCH_BYTES_MAX && !silent {
                let message = format!("the rows of one FETCH take more than {} MiB", FETCH_BYTES_MAX >> 20);
                return Err(QueryError::new(SqlState::PROGRAM_LIMIT, message).hint("fetch fewer rows at once"));
            }
            rows += wanted;
            taken.push(part);
        }
        // Columns are called what the client sees.
        let parts =
            taken.iter().map(|part| RecordBatch::try_new(SchemaRef::clone(&self.schema), part.columns().to_vec()));
        let parts: Result<Vec<_>, _> = parts.collect();
        let whole = parts.and_then(|parts| concat_batches(&self.schema, &parts));
        whole.map_err(|error| QueryError::internal(error.to_string()))
    }
}
