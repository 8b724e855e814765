//! Statements as they may be shown: without passwords, and not longer than a screen or two.

/// Bytes of a statement that are kept.
const STATEMENT_MAX: usize = 8 << 10;
const HIDDEN: &str = "'***'";

/// Hides every literal behind the word PASSWORD, and verifiers wherever they stand.
pub(super) fn redacted(statement: &str) -> String {
    let lower = statement.to_ascii_lowercase();
    let secret = [lower.find("password"), lower.find("scram-sha-256$").map(|at| at.saturating_sub(1))];
    let Some(from) = secret.into_iter().flatten().min() else { return cut(statement) };
    let (before, rest) = statement.split_at_checked(from).unwrap_or((statement, ""));
    let mut shown = before.to_owned();
    let mut rest = rest;
    while let Some(at) = rest.find(['\'', '$']) {
        let (plain, literal) = rest.split_at_checked(at).unwrap_or((rest, ""));
        shown.push_str(plain);
        rest = match literal.strip_prefix('\'') {
            Some(quoted) => {
                shown.push_str(HIDDEN);
                behind_quotes(quoted)
            }
            None => match dollar_quoted(literal) {
                Some(behind) => {
                    shown.push_str(HIDDEN);
                    behind
                }
                // A parameter.
                None => {
                    shown.push('$');
                    literal.get(1..).unwrap_or_default()
                }
            },
        };
    }
    shown.push_str(rest);
    cut(&shown)
}

/// What follows a literal whose first quote was read; nothing where it does not end. Two quotes are one within it, and so
/// is one behind a backslash, which hides more than it has to where it ends the literal.
fn behind_quotes(quoted: &str) -> &str {
    let mut chars = quoted.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '\'' if chars.peek().is_some_and(|(_, next)| *next == '\'') => {
                chars.next();
            }
            '\'' => return quoted.get(at + 1..).unwrap_or_default(),
            _ => {}
        }
    }
    ""
}

/// What follows `$tag$...$tag$`; None where it is no such literal.
fn dollar_quoted(literal: &str) -> Option<&str> {
    let tag = literal.get(1..)?.split_once('$')?.0;
    let named = tag.chars().all(|c| c.is_alphanumeric() || c == '_') && !tag.starts_with(|c: char| c.is_numeric());
    let mark = literal.get(..tag.len() + 2).filter(|_| named)?;
    let rest = literal.get(mark.len()..)?;
    Some(rest.split_once(mark).map_or("", |(_, behind)| behind))
}

fn cut(statement: &str) -> String {
    if statement.len() <= STATEMENT_MAX {
        return statement.to_owned();
    }
    let mut end = STATEMENT_MAX;
    while !statement.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", statement.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_hidden_and_nothing_else() {
        for (statement, shown) in [
            ("SELECT 'a' FROM t WHERE x = $1", "SELECT 'a' FROM t WHERE x = $1"),
            ("ALTER ROLE a PASSWORD 'se''cret' LOGIN", "ALTER ROLE a PASSWORD '***' LOGIN"),
            ("alter role a password 'secret'; SELECT 'b'", "alter role a password '***'; SELECT '***'"),
            ("CREATE ROLE a PASSWORD $$se'cret$$ LOGIN", "CREATE ROLE a PASSWORD '***' LOGIN"),
            ("CREATE ROLE a PASSWORD $x$secret$x$", "CREATE ROLE a PASSWORD '***'"),
            ("CREATE ROLE a PASSWORD E'sec\\'ret' x", "CREATE ROLE a PASSWORD E'***' x"),
            ("CREATE ROLE a PASSWORD 'secret", "CREATE ROLE a PASSWORD '***'"),
            ("SELECT password FROM t WHERE a = $1", "SELECT password FROM t WHERE a = $1"),
            ("SELECT 'SCRAM-SHA-256$4096:x$y:z'", "SELECT '***'"),
            ("SELECT 'ü', 'x' -- Password 'ü'", "SELECT 'ü', 'x' -- Password '***'"),
        ] {
            assert_eq!(redacted(statement), shown);
        }
        let long = "ü".repeat(STATEMENT_MAX);
        assert!(redacted(&long).len() <= STATEMENT_MAX + 3);
    }
}
