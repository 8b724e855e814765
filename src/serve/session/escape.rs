//! `LIKE 'a/_%' ESCAPE '/'`: the engine knows no escape but the backslash, so patterns are written with that.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{Expr, Statement, Value, VisitMut, VisitorMut};

use super::psql::call;

pub(super) fn with_backslashes(mut statement: Statement) -> Statement {
    let _ = VisitMut::visit(&mut statement, &mut Patterns);
    statement
}

struct Patterns;

impl VisitorMut for Patterns {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Like { pattern, escape_char, .. } | Expr::ILike { pattern, escape_char, .. } = expr
            && let Some(Value::SingleQuotedString(escape)) = escape_char.as_ref().map(|value| &value.value)
            && let Some(escape) = at_most_one(escape)
            && escape != Some('\\')
        {
            if let Expr::Value(text) = pattern.as_mut()
                && let Value::SingleQuotedString(pattern) = &mut text.value
            {
                *pattern = rewritten(pattern, escape);
            } else {
                let unknown = std::mem::replace(pattern.as_mut(), Expr::Value(Value::Null.with_empty_span()));
                **pattern = rewriting(unknown, escape);
            }
            *escape_char = None;
        }
        ControlFlow::Continue(())
    }
}

/// The escape, which is none for `ESCAPE ''`; an error of the engine's if it has more letters than one.
fn at_most_one(text: &str) -> Option<Option<char>> {
    let mut chars = text.chars();
    let first = chars.next();
    chars.next().is_none().then_some(first)
}

fn rewritten(pattern: &str, escape: Option<char>) -> String {
    let mut made = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(letter) = chars.next() {
        match letter {
            '\\' => made.push_str("\\\\"),
            letter if Some(letter) == escape => {
                made.push('\\');
                made.extend(chars.next());
            }
            letter => made.push(letter),
        }
    }
    made
}

/// What gives [`rewritten`] of a pattern that is computed.
fn rewriting(pattern: Expr, escape: Option<char>) -> Expr {
    /// Stands for an escaped escape while the others are turned into backslashes; no text of a client's holds it.
    const ESCAPED: &str = "\u{1}";
    let replace = |text, from: &str, to: &str| {
        let quoted = |text: &str| Expr::Value(Value::SingleQuotedString(text.to_owned()).with_empty_span());
        call("replace", [text, quoted(from), quoted(to)])
    };
    let backslashes = replace(pattern, "\\", "\\\\");
    let Some(escape) = escape.map(String::from) else { return backslashes };
    let kept = replace(backslashes, &escape.repeat(2), ESCAPED);
    replace(replace(kept, &escape, "\\"), ESCAPED, &escape)
}

#[cfg(test)]
mod tests {
    use super::rewritten;

    #[test]
    fn an_escape_becomes_a_backslash_and_a_backslash_stays_itself() {
        assert_eq!(rewritten("pg/_%", Some('/')), "pg\\_%");
        assert_eq!(rewritten("a//b\\c", Some('/')), "a\\/b\\\\c");
        assert_eq!(rewritten("50!%", Some('!')), "50\\%");
        assert_eq!(rewritten("a\\_", None), "a\\\\_");
    }
}
