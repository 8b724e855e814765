//! The first message of a client: who it is, which database it wants, whether there is room.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use futures::Sink;
use pgwire::api::ClientInfo;
use pgwire::api::auth::{
    ServerParameterProvider, StartupHandler, finish_authentication, protocol_negotiation,
    save_startup_parameters_to_metadata,
};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};

use super::backends::{Backends, Place};
use super::presence::Presence;
use super::{fatal, wire};
use crate::metrics::Metrics;
use crate::serve::DATABASE;
use crate::serve::error::SqlState;
use crate::serve::session::{QueryService, Session};

/// Lets a client in.
#[derive(Debug)]
pub(super) struct Startup {
    pub(super) service: Arc<QueryService>,
    backends: Arc<Backends>,
    presence: Arc<Presence>,
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
    pub(super) fn new(service: Arc<QueryService>, backends: Arc<Backends>, presence: Arc<Presence>) -> Self {
        Self { service, backends, presence }
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
        let PgWireFrontendMessage::Startup(ref startup) = message else {
            return Err(fatal(SqlState::PROTOCOL_VIOLATION, "expected a start-up message"));
        };
        protocol_negotiation(client, startup).await?;
        save_startup_parameters_to_metadata(client, startup);
        let parameters = &startup.parameters;
        let user = parameters
            .get("user")
            .filter(|user| !user.is_empty())
            .ok_or_else(|| fatal(SqlState("28000"), "no user name was given in the start-up message"))?;
        let database = parameters.get("database").unwrap_or(user);
        if database != DATABASE {
            let message = format!("database \"{database}\" does not exist; the only one is \"{DATABASE}\"");
            return Err(fatal(SqlState::UNKNOWN_CATALOG, message));
        }
        let Some(permit) = self.backends.room() else {
            self.service.metrics().pg_connections_refused.inc();
            return Err(fatal(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already"));
        };
        let (number, secret) = self.backends.number(client);
        let session = self.service.connect(user, number);
        apply_parameters(&session, parameters)?;
        let reported = session.settings().reported();
        let place = self.backends.open(number, &secret, session.cancels(), permit);
        let metrics = Arc::clone(self.service.metrics());
        metrics.pg_connections.inc();
        client.set_pid_and_secret_key(number, secret);
        client.session_extensions().insert(Connection {
            session: tokio::sync::Mutex::new(session),
            prepared: parking_lot::Mutex::default(),
            metrics,
            _place: place,
        });
        self.presence.expect_until(None);
        finish_authentication(client, &Reported(reported)).await
    }
}

/// Settings in the start-up message; an unknown one refuses the connection, as in PostgreSQL.
fn apply_parameters(
    session: &Session,
    parameters: &std::collections::BTreeMap<String, String>,
) -> PgWireResult<()> {
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
