//! The first messages of a client: who it is, how it proves that, which database it wants, whether there is room.
//!
//! | message | answer where passwords are asked for |
//! |---|---|
//! | start-up | the mechanisms: SCRAM-SHA-256, and bound to the certificate where there is one |
//! | first of SCRAM | salt and iterations; of a role without a password too, so that names cannot be probed |
//! | last of SCRAM | the server's own proof, and the session; or a refusal, ever later |

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use futures::{Sink, SinkExt};
use parking_lot::Mutex;
use pgwire::api::auth::{
    ServerParameterProvider, StartupHandler, finish_authentication, protocol_negotiation,
    save_startup_parameters_to_metadata,
};
use pgwire::api::{ClientInfo, PgWireConnectionState};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::startup::{Authentication, PasswordMessageFamily, Startup as StartupMessage};
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};

use super::backends::{Backends, Claim, Place};
use super::presence::Presence;
use super::{fatal, turned_away, wire};
use crate::metrics::Metrics;
use crate::serve::DATABASE;
use crate::serve::auth::scram::{Exchange, Mechanism, ScramError};
use crate::serve::auth::{Known, Method, Origin, Protocol, wrong_password};
use crate::serve::error::SqlState;
use crate::serve::session::{QueryService, Session};
use crate::serve::tls::Loaded;

/// Lets a client in.
#[derive(Debug)]
pub(super) struct Startup {
    pub(super) service: Arc<QueryService>,
    backends: Arc<Backends>,
    presence: Arc<Presence>,
    stage: Mutex<Stage>,
    /// What the connection was offered.
    tls: Option<Arc<Loaded>>,
}

/// How far the conversation has come.
#[derive(Debug)]
enum Stage {
    Silent,
    /// The mechanisms were offered.
    Offered(Asked),
    Challenged(Asked, Box<Exchange>),
    Over,
}

/// What the start-up message asks for.
#[derive(Debug, Clone)]
struct Asked {
    user: String,
    parameters: BTreeMap<String, String>,
    origin: Origin,
}

/// A session on the wire; lives in pgwire's store for the connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) session: tokio::sync::Mutex<Session>,
    /// Names of prepared statements, which `DEALLOCATE ALL` must forget.
    pub(super) prepared: parking_lot::Mutex<std::collections::BTreeSet<String>>,
    metrics: Arc<Metrics>,
    _place: Place,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.metrics.pg_connections.dec();
    }
}

impl Startup {
    pub(super) fn new(
        service: Arc<QueryService>,
        backends: Arc<Backends>,
        presence: Arc<Presence>,
        tls: Option<Arc<Loaded>>,
    ) -> Self {
        Self { service, backends, presence, stage: Mutex::new(Stage::Silent), tls }
    }

    /// By what a client knows the certificate; None without TLS.
    fn binding(&self, origin: Origin) -> Option<&[u8]> {
        self.tls.as_ref().filter(|_| origin.tls)?.binding()
    }

    fn asked<C: ClientInfo>(&self, client: &C, startup: &StartupMessage) -> PgWireResult<Asked> {
        let parameters = startup.parameters.clone();
        let user = parameters
            .get("user")
            .filter(|user| !user.is_empty())
            .ok_or_else(|| {
                fatal(SqlState::INVALID_AUTHORIZATION, "no user name was given in the start-up message")
            })?
            .clone();
        let database = parameters.get("database").unwrap_or(&user);
        if database != DATABASE {
            let message = format!("database \"{database}\" does not exist; the only one is \"{DATABASE}\"");
            return Err(fatal(SqlState::UNKNOWN_CATALOG, message));
        }
        let origin =
            Origin { address: Some(client.socket_addr()), protocol: Protocol::Postgres, tls: client.is_secure() };
        self.service.gate().admit(origin).map_err(turned_away)?;
        Ok(Asked { user, parameters, origin })
    }

    /// The session of a client whose name is known.
    async fn enter<C>(&self, client: &mut C, asked: &Asked, known: Known) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let (gate, metrics) = (self.service.gate(), self.service.metrics());
        let claim = match gate.has_reserved_connections(&asked.user) {
            true => Claim::Reserved,
            false => Claim::Ordinary,
        };
        let admitted = gate.enter(known, asked.origin).map_err(turned_away)?;
        let permit = self.backends.room(claim).map_err(|why| {
            metrics.pg_connections_refused.inc();
            fatal(SqlState::TOO_MANY_CONNECTIONS, why)
        })?;
        let (number, secret) = self.backends.number(client);
        let mut session = self.service.connect(admitted, number);
        apply_parameters(&session, &asked.parameters)?;
        session.arrive();
        let reported = session.settings().reported();
        let place = self.backends.open(number, &secret, session.cancels(), permit);
        metrics.pg_connections.inc();
        client.set_pid_and_secret_key(number, secret);
        client.session_extensions().insert(Connection {
            session: tokio::sync::Mutex::new(session),
            prepared: parking_lot::Mutex::default(),
            metrics: Arc::clone(metrics),
            _place: place,
        });
        self.presence.expect_until(None);
        finish_authentication(client, &Reported(reported)).await
    }

    /// Answers the first half of an exchange.
    fn challenge(&self, asked: Asked, message: PasswordMessageFamily) -> PgWireResult<String> {
        let initial = message.into_sasl_initial_response()?;
        let refused = |error: ScramError| fatal(SqlState::PROTOCOL_VIOLATION, error.to_string());
        let mechanism = Mechanism::named(&initial.auth_method).ok_or_else(|| {
            fatal(SqlState::PROTOCOL_VIOLATION, "the mechanism is none of those that were offered")
        })?;
        let first = initial.data.unwrap_or_default();
        let binding = self.binding(asked.origin);
        let begun = self.service.gate().challenge(&asked.user, mechanism, binding, &first);
        let (exchange, answer) = begun.map_err(refused)?;
        *self.stage.lock() = Stage::Challenged(asked, Box::new(exchange));
        Ok(answer)
    }

    /// Checks the second half; a client that fails waits for its answer.
    async fn check(
        &self,
        asked: &Asked,
        exchange: Exchange,
        message: PasswordMessageFamily,
    ) -> PgWireResult<(Known, String)> {
        let last = message.into_sasl_response()?;
        let gate = self.service.gate();
        match gate.proven(&asked.user, exchange, &last.data) {
            Ok(proven) => {
                gate.succeeded(asked.origin);
                Ok(proven)
            }
            Err(ScramError::Wrong) => {
                gate.failed(&asked.user, asked.origin).await;
                Err(turned_away(wrong_password(&asked.user)))
            }
            Err(malformed) => Err(fatal(SqlState::PROTOCOL_VIOLATION, malformed.to_string())),
        }
    }
}

#[async_trait]
impl StartupHandler for Startup {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let stage = std::mem::replace(&mut *self.stage.lock(), Stage::Over);
        match (stage, message) {
            (Stage::Silent, PgWireFrontendMessage::Startup(startup)) => {
                protocol_negotiation(client, &startup).await?;
                save_startup_parameters_to_metadata(client, &startup);
                let asked = self.asked(client, &startup)?;
                if self.service.gate().method() == Method::Trust {
                    let known = self.service.gate().trusted(&asked.user).map_err(turned_away)?;
                    return self.enter(client, &asked, known).await;
                }
                let plus = self.binding(asked.origin).map(|_| Mechanism::Plus);
                let offered = plus.into_iter().chain([Mechanism::Plain]);
                let offered = offered.map(|mechanism| mechanism.name().to_owned()).collect();
                client.set_state(PgWireConnectionState::AuthenticationInProgress);
                *self.stage.lock() = Stage::Offered(asked);
                client.send(PgWireBackendMessage::Authentication(Authentication::SASL(offered))).await?;
                Ok(())
            }
            (Stage::Offered(asked), PgWireFrontendMessage::PasswordMessageFamily(message)) => {
                let answer = self.challenge(asked, message)?;
                let answer = Authentication::SASLContinue(answer.into());
                client.send(PgWireBackendMessage::Authentication(answer)).await?;
                Ok(())
            }
            (Stage::Challenged(asked, exchange), PgWireFrontendMessage::PasswordMessageFamily(message)) => {
                let (known, answer) = self.check(&asked, *exchange, message).await?;
                let answer = Authentication::SASLFinal(answer.into());
                client.feed(PgWireBackendMessage::Authentication(answer)).await?;
                self.enter(client, &asked, known).await
            }
            _ => Err(fatal(
                SqlState::PROTOCOL_VIOLATION,
                "expected a start-up message, or the answer to a challenge",
            )),
        }
    }
}

/// Settings in the start-up message; an unknown one refuses the connection, as in PostgreSQL.
fn apply_parameters(session: &Session, parameters: &BTreeMap<String, String>) -> PgWireResult<()> {
    let refused = |error: crate::serve::error::QueryError| match wire(error) {
        PgWireError::UserError(info) => fatal(SqlState::INVALID_PARAMETER, info.message.clone()),
        other => other,
    };
    for (name, value) in parameters {
        match name.as_str() {
            "user" | "database" => {}
            "replication" => {
                if !matches!(value.as_str(), "false" | "off" | "no" | "0") {
                    return Err(fatal(SqlState::FEATURE_NOT_SUPPORTED, "replication is not supported"));
                }
            }
            "options" => {
                for (name, value) in command_line_options(value) {
                    session.settings().set_default(&name, &value).map_err(refused)?;
                }
            }
            name if name.starts_with("_pq_.") => {}
            name => session.settings().set_default(name, value).map_err(refused)?,
        }
    }
    Ok(())
}

/// `-c name=value` and `--name=value`, as in PGOPTIONS; a backslash keeps a blank.
fn command_line_options(text: &str) -> Vec<(String, String)> {
    let mut words = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let Some(word) = words.last_mut() else { break };
        match c {
            '\\' => word.extend(chars.next()),
            c if c.is_whitespace() => words.push(String::new()),
            c => word.push(c),
        }
    }
    let pair = |text: &str| text.split_once('=').map(|(name, value)| (name.replace('-', "_"), value.to_owned()));
    let mut found = Vec::new();
    let mut words = words.iter().filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("-c") {
            Some("") => words.next().and_then(|next| pair(next)),
            Some(rest) => pair(rest),
            None => word.strip_prefix("--").and_then(pair),
        };
        found.extend(setting);
    }
    found
}

/// The settings that a client is told at start-up.
#[derive(Debug)]
struct Reported(Vec<(&'static str, String)>);

impl ServerParameterProvider for Reported {
    fn server_parameters<C: ClientInfo>(&self, _: &C) -> Option<HashMap<String, String>> {
        Some(self.0.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_as_a_command_line() {
        let options = command_line_options(r"-c statement_timeout=5s --search-path=a\ b -cjit=off junk");
        let expected = [("statement_timeout", "5s"), ("search_path", "a b"), ("jit", "off")];
        let expected: Vec<_> = expected.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        assert_eq!(options, expected);
    }
}
