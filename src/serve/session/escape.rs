//! `LIKE 'a/_%' ESCAPE '/'`: the engine knows no escape but the backslash, so patterns are written with that.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{Expr, Statement, Value, VisitMut, VisitorMut};

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
            && let Expr::Value(text) = pattern.as_mut()
            && let Value::SingleQuotedString(pattern) = &mut text.value
            && let Some(escape) = only(escape)
            && escape != '\\'
        {
            *pattern = rewritten(pattern, escape);
            *escape_char = None;
        }
        ControlFlow::Continue(())
    }
}

fn only(text: &str) -> Option<char> {
    let mut chars = text.chars();
    chars.next().filter(|_| chars.next().is_none())
}

fn rewritten(pattern: &str, escape: char) -> String {
    let mut made = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(letter) = chars.next() {
        match letter {
            '\\' => made.push_str("\\\\"),
            letter if letter == escape => {
                made.push('\\');
                made.extend(chars.next());
            }
            letter => made.push(letter),
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::rewritten;

    #[test]
    fn an_escape_becomes_a_backslash_and_a_backslash_stays_itself() {
        assert_eq!(rewritten("pg/_%", '/'), "pg\\_%");
        assert_eq!(rewritten("a//b\\c", '/'), "a\\/b\\\\c");
        assert_eq!(rewritten("50!%", '!'), "50\\%");
    }
}
