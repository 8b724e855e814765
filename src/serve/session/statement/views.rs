//! Statements on materialized views, which the SQL parser does not know or not in this form.

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::{is_solid, is_word};
use crate::serve::error::{QueryError, SqlState};
use crate::serve::{RefreshScope, ViewChange};

/// `REFRESH MATERIALIZED VIEW [CONCURRENTLY] [schema.]name [WITH [FULL] DATA]`
pub(super) fn refresh(tokens: &[TokenWithSpan]) -> Result<(String, RefreshScope), QueryError> {
    let mut rest: Vec<&TokenWithSpan> = tokens.iter().filter(|token| is_solid(token)).skip(3).collect();
    if rest.first().is_some_and(|token| is_word(token, "CONCURRENTLY")) {
        rest.remove(0);
    }
    let (name, options) = relation(&rest);
    let scope = match options {
        [] => Some(RefreshScope::New),
        [with, data] if is_word(with, "WITH") && is_word(data, "DATA") => Some(RefreshScope::New),
        [with, full, data] if is_word(with, "WITH") && is_word(full, "FULL") && is_word(data, "DATA") => {
            Some(RefreshScope::Full)
        }
        _ => None,
    };
    name.zip(scope).ok_or_else(|| {
        QueryError::new(SqlState::SYNTAX, "syntax error in REFRESH MATERIALIZED VIEW")
            .hint("REFRESH MATERIALIZED VIEW name, or ... name WITH FULL DATA to compute it from the whole archive")
    })
}

/// `ALTER MATERIALIZED VIEW [schema.]name SET (version = n)`
pub(super) fn promotion(tokens: &[TokenWithSpan]) -> Result<ViewChange, QueryError> {
    let rest: Vec<&TokenWithSpan> = tokens.iter().filter(|token| is_solid(token)).skip(3).collect();
    let (view, rest) = relation(&rest);
    let version = match rest {
        [set, open, version, equals, number, close]
            if is_word(set, "SET")
                && open.token == Token::LParen
                && is_word(version, "version")
                && equals.token == Token::Eq
                && close.token == Token::RParen =>
        {
            match &number.token {
                Token::Number(number, false) | Token::SingleQuotedString(number) => number.parse().ok(),
                _ => None,
            }
        }
        _ => None,
    };
    view.zip(version).map(|(view, version)| ViewChange::Promote { view, version }).ok_or_else(|| {
        QueryError::new(SqlState::SYNTAX, "syntax error in ALTER MATERIALIZED VIEW")
            .hint("ALTER MATERIALIZED VIEW name SET (version = 2)")
    })
}

/// `DROP MATERIALIZED VIEW [schema.]name`, where a name such as `"v@2"` is one version
pub(super) fn dropping(tokens: &[TokenWithSpan]) -> Result<ViewChange, QueryError> {
    let rest: Vec<&TokenWithSpan> = tokens.iter().filter(|token| is_solid(token)).skip(3).collect();
    match relation(&rest) {
        (Some(view), []) => Ok(ViewChange::Drop { view }),
        _ => Err(QueryError::new(SqlState::SYNTAX, "syntax error in DROP MATERIALIZED VIEW")
            .hint("DROP MATERIALIZED VIEW name, or \"name@2\" for one version; definitions are kept as evidence")),
    }
}

/// The name that `tokens` begin with, without its schema, and the rest.
fn relation<'a, 'b>(tokens: &'b [&'a TokenWithSpan]) -> (Option<String>, &'b [&'a TokenWithSpan]) {
    let mut rest = tokens;
    let mut name = None;
    while let [first, behind @ ..] = rest
        && let Token::Word(word) = &first.token
    {
        name = Some(if word.quote_style.is_some() { word.value.clone() } else { word.value.to_lowercase() });
        rest = behind;
        match behind {
            [period, after @ ..] if period.token == Token::Period => rest = after,
            _ => break,
        }
    }
    (name, rest)
}
