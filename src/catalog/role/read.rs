//! Reads `CREATE ROLE` and `GRANT`, as PostgreSQL writes them.

use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

use super::{Place, Privilege, Privileges, Rights, Role};
use crate::catalog::Fault;

/// Functions that do something, which not everybody may.
const FUNCTIONS: [&str; 1] = ["pg_reload_conf"];

/// What one statement says.
#[derive(Debug)]
pub enum Told {
    Role(Role),
    /// `GRANT of TO roles`
    Member {
        of: Vec<String>,
        roles: Vec<String>,
    },
    /// `GRANT privileges ON subjects TO roles`
    Grant {
        privileges: Privileges,
        subjects: Vec<Subject>,
        roles: Vec<String>,
    },
}

/// What a privilege is granted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// `ALL TABLES IN SCHEMA schema`
    Every {
        schema: String,
    },
    Table {
        schema: String,
        table: String,
    },
    /// `CREATE ON SCHEMA schema`
    Create {
        schema: String,
    },
    Function {
        name: String,
    },
}

/// Reads all statements of `text`; `file` is for messages.
pub fn statements(file: &str, text: &str) -> Result<Vec<(Place, Told)>, Fault> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize_with_location();
    let tokens = tokens.map_err(|error| Fault {
        file: file.to_owned(),
        line: error.location.line,
        column: error.location.column,
        reason: error.message,
    })?;
    let solid = |token: &TokenWithSpan| !matches!(token.token, Token::Whitespace(_) | Token::EOF);
    let mut told = Vec::new();
    for statement in tokens.split(|token| token.token == Token::SemiColon) {
        let tokens: Vec<&TokenWithSpan> = statement.iter().filter(|token| solid(token)).collect();
        let Some(first) = tokens.first() else { continue };
        let Location { line, column } = first.span.start;
        let at = Place { file: file.to_owned(), line, column };
        let mut reader = Reader { tokens: &tokens, next: 0, file };
        told.push((at, reader.statement()?));
    }
    Ok(told)
}

struct Reader<'a> {
    tokens: &'a [&'a TokenWithSpan],
    next: usize,
    file: &'a str,
}

impl Reader<'_> {
    fn statement(&mut self) -> Result<Told, Fault> {
        let told = if self.takes(&["CREATE", "ROLE"]) {
            Told::Role(self.role()?)
        } else if self.takes(&["GRANT"]) {
            self.grant()?
        } else {
            return Err(self.fault("only CREATE ROLE and GRANT are understood here"));
        };
        match self.peek() {
            None => Ok(told),
            Some(token) => Err(self.fault(format!("expected ; after the statement, found {token}"))),
        }
    }

    /// `name [WITH] [LOGIN | NOLOGIN] [CONNECTION LIMIT n] [PASSWORD 'verifier' | PASSWORD NULL]`
    fn role(&mut self) -> Result<Role, Fault> {
        let name = self.name("a role's name")?;
        if name.starts_with("pg_") || ["public", "none"].contains(&name.as_str()) {
            return Err(self.behind(format!("role name \"{name}\" is reserved")));
        }
        let mut role = Role {
            name,
            login: false,
            connections_max: None,
            verifier: None,
            member_of: Default::default(),
            rights: Rights::default(),
        };
        self.takes(&["WITH"]);
        while self.peek().is_some() {
            if self.takes(&["LOGIN"]) {
                role.login = true;
            } else if self.takes(&["NOLOGIN"]) {
                role.login = false;
            } else if self.takes(&["CONNECTION", "LIMIT"]) {
                role.connections_max = self.limit()?;
            } else if self.takes(&["PASSWORD", "NULL"]) {
                role.verifier = None;
            } else if self.takes(&["ENCRYPTED", "PASSWORD"]) || self.takes(&["PASSWORD"]) {
                let Some(Token::SingleQuotedString(text)) = self.take() else {
                    return Err(self.behind("expected a verifier in quotes after PASSWORD"));
                };
                let verifier = text.parse();
                role.verifier = Some(verifier.map_err(|error| {
                    self.behind(format!(
                        "{error}; a file holds no password but its verifier, which `viewledger password` prints"
                    ))
                })?);
            } else {
                return Err(self.fault("a role takes LOGIN, CONNECTION LIMIT n and PASSWORD 'SCRAM-SHA-256$...'"));
            }
        }
        Ok(role)
    }

    /// None for -1, which is no limit.
    fn limit(&mut self) -> Result<Option<usize>, Fault> {
        if self.peek() == Some(&Token::Minus) {
            self.next += 1;
            return match self.take() {
                Some(Token::Number(one, _)) if one == "1" => Ok(None),
                _ => Err(self.behind("a connection limit is a number of connections, or -1 for none")),
            };
        }
        let number = match self.take() {
            Some(Token::Number(number, _)) => number.parse().ok(),
            _ => None,
        };
        let number = number.ok_or_else(|| self.behind("a connection limit is a number of connections"))?;
        Ok(Some(number))
    }

    fn grant(&mut self) -> Result<Told, Fault> {
        let words = self.tokens.get(self.next..).unwrap_or_default();
        let on = words.iter().any(|token| is(&token.token, "ON"));
        if !on {
            let of = self.list("a role's name")?;
            return Ok(Told::Member { of, roles: self.to()? });
        }
        if self.takes(&["CREATE", "ON", "SCHEMA"]) {
            let schemas = self.list("a schema's name")?;
            let subjects = schemas.into_iter().map(|schema| Subject::Create { schema }).collect();
            return Ok(Told::Grant { privileges: Privileges::default(), subjects, roles: self.to()? });
        }
        if self.takes(&["EXECUTE", "ON", "FUNCTION"]) {
            let name = self.name("a function's name")?;
            if !FUNCTIONS.contains(&name.as_str()) {
                let known = FUNCTIONS.join("(), ");
                return Err(self.behind(format!("function {name} needs no right; the ones that do are {known}()")));
            }
            if self.take() != Some(Token::LParen) || self.take() != Some(Token::RParen) {
                return Err(self.behind(format!("write {name}()")));
            }
            let subjects = vec![Subject::Function { name }];
            return Ok(Told::Grant { privileges: Privileges::default(), subjects, roles: self.to()? });
        }
        let privileges = self.privileges()?;
        let subjects = if self.takes(&["ALL", "TABLES", "IN", "SCHEMA"]) {
            let schemas = self.list("a schema's name")?;
            schemas.into_iter().map(|schema| Subject::Every { schema }).collect()
        } else {
            self.takes(&["TABLE"]);
            let mut tables = vec![self.table()?];
            while self.comma() {
                tables.push(self.table()?);
            }
            tables
        };
        Ok(Told::Grant { privileges, subjects, roles: self.to()? })
    }

    /// Up to and with `ON`.
    fn privileges(&mut self) -> Result<Privileges, Fault> {
        let mut privileges = Privileges::default();
        if self.takes(&["ALL"]) {
            self.takes(&["PRIVILEGES"]);
            privileges = Privilege::ALL.into_iter().fold(privileges, Privileges::with);
        } else {
            loop {
                let found = Privilege::ALL.into_iter().find(|privilege| self.takes(&[privilege.name()]));
                let names = Privilege::ALL.map(Privilege::name).join(", ");
                let found = found.ok_or_else(|| self.fault(format!("on a table there are {names} and ALL")))?;
                privileges = privileges.with(found);
                if !self.comma() {
                    break;
                }
            }
        }
        match self.takes(&["ON"]) {
            true => Ok(privileges),
            false => Err(self.fault("expected ON; columns have no privileges of their own")),
        }
    }

    /// Without a schema it is in `public`.
    fn table(&mut self) -> Result<Subject, Fault> {
        let first = self.name("a table's name")?;
        if self.peek() != Some(&Token::Period) {
            return Ok(Subject::Table { schema: "public".to_owned(), table: first });
        }
        self.next += 1;
        Ok(Subject::Table { schema: first, table: self.name("a table's name")? })
    }

    fn to(&mut self) -> Result<Vec<String>, Fault> {
        match self.takes(&["TO"]) {
            true => self.list("a role's name"),
            false => Err(self.fault("expected TO and the name of a role")),
        }
    }

    fn list(&mut self, what: &str) -> Result<Vec<String>, Fault> {
        let mut names = vec![self.name(what)?];
        while self.comma() {
            names.push(self.name(what)?);
        }
        Ok(names)
    }

    fn name(&mut self, what: &str) -> Result<String, Fault> {
        match self.take() {
            Some(Token::Word(word)) if word.quote_style.is_some() => Ok(word.value),
            Some(Token::Word(word)) => Ok(word.value.to_lowercase()),
            Some(other) => Err(self.behind(format!("expected {what}, found {other}"))),
            None => Err(self.fault(format!("expected {what}"))),
        }
    }

    fn comma(&mut self) -> bool {
        let comma = self.peek() == Some(&Token::Comma);
        self.next += usize::from(comma);
        comma
    }

    /// Passes over these keywords, all or none.
    fn takes(&mut self, keywords: &[&str]) -> bool {
        let ahead = self.tokens.get(self.next..).unwrap_or_default();
        let found =
            ahead.len() >= keywords.len() && keywords.iter().zip(ahead).all(|(word, token)| is(&token.token, word));
        self.next += if found { keywords.len() } else { 0 };
        found
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next).map(|token| &token.token)
    }

    fn take(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.next).map(|token| token.token.clone());
        self.next += 1;
        token
    }

    /// At the next token.
    fn fault(&self, reason: impl Into<String>) -> Fault {
        self.at(self.next, reason.into())
    }

    /// At the token that was taken last.
    fn behind(&self, reason: impl Into<String>) -> Fault {
        self.at(self.next.saturating_sub(1), reason.into())
    }

    fn at(&self, index: usize, reason: String) -> Fault {
        let token = self.tokens.get(index).or(self.tokens.last());
        let Location { line, column } = token.map_or(Location::new(1, 1), |token| token.span.start);
        Fault { file: self.file.to_owned(), line, column, reason }
    }
}

fn is(token: &Token, keyword: &str) -> bool {
    matches!(token, Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(keyword))
}
