//! Who may come in: a client says who it is, proves it, and becomes a [`Client`], without which there is no session.
//!
//! | | `trust` | `scram` |
//! |---|---|---|
//! | no roles | anybody, as anybody | nobody |
//! | roles | who names one that may log in | who knows its password too |
//!
//! A role that does not exist, or has no password, is asked for one all the same: names cannot be probed.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use rand::RngCore;
use tokio::sync::OwnedSemaphorePermit;

pub mod attempts;
pub mod passwords;
pub mod queue;
pub mod scram;

use self::attempts::Attempts;
use self::passwords::Passwords;
use self::queue::{Queue, QueueBounds};
use self::scram::{Exchange, Mechanism, ScramError};
use super::access_log::{AccessLog, Event, Record, Weight};
use super::error::{QueryError, SqlState};
use super::tls::{Tls, TlsError};
use super::{Database, DefineError};
use crate::catalog::role::Role;
use crate::catalog::verifier::Verifier;
use crate::metrics::Metrics;
use crate::runtime::chain;

/// How long a password that was checked is known, for protocols that send it with each request.
const CHECKED_PATIENCE: Duration = Duration::from_secs(60);
/// Passwords that are known at once.
const CHECKED_MAX: usize = 1024;

/// How clients prove who they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Method {
    /// Not at all.
    #[default]
    Trust,
    /// By a password, which over Postgres wire is not sent.
    Scram,
}

/// From where clients are listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    Loopback,
    /// They prove who they are, and nobody between listens, or may.
    Network,
}

impl Exposure {
    pub fn new(method: Method, tls: bool, allow_plain: bool) -> Self {
        match method {
            Method::Scram if tls || allow_plain => Self::Network,
            _ => Self::Loopback,
        }
    }
}

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Postgres,
    Flight,
    Http,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Flight => "flight",
            Self::Http => "http",
        }
    }
}

/// Whence a client comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// None where it is the process itself.
    pub address: Option<SocketAddr>,
    pub protocol: Protocol,
    pub tls: bool,
}

/// A name that was proven, or is taken on trust.
#[derive(Debug)]
pub struct Known {
    user: String,
}

/// Who was let in. Holds a connection of its role.
#[derive(Debug)]
pub struct Client {
    pub user: String,
    pub origin: Origin,
    pub(super) place: Place,
}

/// Lets clients in.
#[derive(Debug)]
pub struct Gate {
    database: Arc<dyn Database>,
    method: Method,
    passwords: Passwords,
    /// From it come the salts that roles without a password have.
    mock_key: [u8; 32],
    attempts: Attempts,
    checked: Mutex<HashMap<[u8; 32], Instant>>,
    taken: Arc<Taken>,
    queues: QueueBounds,
    tls: Option<Arc<Tls>>,
    log: Option<Arc<AccessLog>>,
    metrics: Arc<Metrics>,
}

/// Of each role that is connected: how often, and its queries.
type Taken = Mutex<BTreeMap<String, (usize, Arc<Queue>)>>;

/// A connection of a role; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    taken: Arc<Taken>,
    user: String,
    queue: Arc<Queue>,
}

impl Place {
    /// The right to run a query.
    pub(super) async fn turn(&self) -> Result<OwnedSemaphorePermit, QueryError> {
        self.queue.enter(&self.user).await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        if let Some((count, _)) = taken.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.user);
            }
        }
    }
}

impl Gate {
    pub fn new(database: Arc<dyn Database>, method: Method, passwords: Passwords, metrics: Arc<Metrics>) -> Self {
        let mut mock_key = [0; 32];
        rand::rng().fill_bytes(&mut mock_key);
        Self {
            database,
            method,
            passwords,
            mock_key,
            attempts: Attempts::default(),
            checked: Mutex::default(),
            taken: Arc::default(),
            queues: QueueBounds::default(),
            tls: None,
            log: None,
            metrics,
        }
    }

    #[must_use]
    pub fn with_queues(self, queues: QueueBounds) -> Self {
        Self { queues, ..self }
    }

    /// Offers TLS.
    #[must_use]
    pub fn with_tls(self, tls: Option<Arc<Tls>>) -> Self {
        Self { tls, ..self }
    }

    /// Tells who comes and what they do.
    #[must_use]
    pub fn with_log(self, log: Option<Arc<AccessLog>>) -> Self {
        Self { log, ..self }
    }

    pub fn tls(&self) -> Option<&Arc<Tls>> {
        self.tls.as_ref()
    }

    pub fn log(&self) -> Option<&Arc<AccessLog>> {
        self.log.as_ref()
    }

    pub fn method(&self) -> Method {
        self.method
    }

    /// Reads passwords, certificate and key in files again; what cannot be used stays as it was.
    pub fn reload(&self) -> Result<(), DefineError> {
        self.passwords.reload().map_err(|error| DefineError::Failed(chain(&error)))?;
        let tls = self.tls.as_ref().map_or(Ok::<(), TlsError>(()), |tls| tls.reload());
        tls.map_err(|error| DefineError::Failed(chain(&error)))
    }

    /// Whether a client that comes so may say who it is.
    pub fn admit(&self, origin: Origin) -> Result<(), QueryError> {
        let plain = || self.tls.as_ref().is_none_or(|tls| ip(origin).is_none_or(|ip| tls.admits_plain(ip)));
        if origin.tls || plain() {
            return Ok(());
        }
        Err(QueryError::new(SqlState::INVALID_AUTHORIZATION, "connections without TLS are refused")
            .hint("connect with sslmode=require or better"))
    }

    /// Whether somebody could prove to be `role`.
    pub fn has_password(&self, role: &Role) -> bool {
        self.passwords.of(&role.name).is_some() || role.verifier.is_some()
    }

    /// Takes a name as it is said, where nothing has to be proven.
    pub fn trusted(&self, user: &str) -> Result<Known, QueryError> {
        match self.method {
            Method::Trust => Ok(Known { user: user.to_owned() }),
            Method::Scram => Err(wrong_password(user)),
        }
    }

    /// Answers the first message of an exchange.
    pub fn challenge(
        &self,
        user: &str,
        mechanism: Mechanism,
        binding: Option<&[u8]>,
        first: &[u8],
    ) -> Result<(Exchange, String), ScramError> {
        let nonce = STANDARD.encode(rand::random::<[u8; 18]>());
        Exchange::begin(self.verifier(user), mechanism, binding, first, &nonce)
    }

    /// Checks the last message of the exchange; with what is to be told to the client.
    pub fn proven(&self, user: &str, exchange: Exchange, last: &[u8]) -> Result<(Known, String), ScramError> {
        let answer = exchange.finish(last)?;
        Ok((Known { user: user.to_owned() }, answer))
    }

    /// Checks a password that was sent as it is. A wrong one is answered late.
    pub async fn check_password(&self, user: &str, password: &str, origin: Origin) -> Result<Known, QueryError> {
        if self.method == Method::Trust {
            return self.trusted(user);
        }
        let verifier = self.verifier(user);
        let mut said = Vec::with_capacity(verifier.stored_key.len() + password.len());
        said.extend_from_slice(&verifier.stored_key);
        said.extend_from_slice(password.as_bytes());
        let known_by = scram::sign(&self.mock_key, &said);
        if !self.was_checked(&known_by) {
            let password = password.to_owned();
            let check = tokio::task::spawn_blocking(move || scram::matches(&password, &verifier));
            if !check.await.unwrap_or(false) {
                self.failed(user, origin).await;
                return Err(wrong_password(user));
            }
            self.note_checked(known_by);
        }
        self.succeeded(origin);
        Ok(Known { user: user.to_owned() })
    }

    /// Lets in who is known, where its role may log in and has a connection left.
    pub fn enter(&self, known: Known, origin: Origin) -> Result<Client, QueryError> {
        let Known { user } = known;
        self.place(&user)
            .map(|place| Client { user: user.clone(), origin, place })
            .inspect_err(|error| self.note_refused(&user, origin, error.state))
    }

    fn place(&self, user: &str) -> Result<Place, QueryError> {
        let mut limit = None;
        if let Some(roles) = self.database.roles() {
            let Some(role) = roles.get(user) else {
                let names: Vec<&str> =
                    roles.iter().filter(|role| role.login).map(|role| role.name.as_str()).collect();
                return Err(unknown_role(user).hint(format!("connect as one of: {}", names.join(", "))));
            };
            if !role.login {
                let message = format!("role \"{user}\" is not permitted to log in");
                return Err(QueryError::new(SqlState::INVALID_AUTHORIZATION, message)
                    .hint("declare it with LOGIN, or connect as a role that is a member of it"));
            }
            limit = role.connections_max;
        }
        let mut taken = self.taken.lock();
        let fresh = || (0, Arc::new(Queue::new(self.queues)));
        let (count, queue) = taken.entry(user.to_owned()).or_insert_with(fresh);
        if limit.is_some_and(|limit| *count >= limit) {
            let message = format!("too many connections for role \"{user}\"");
            return Err(QueryError::new(SqlState::TOO_MANY_CONNECTIONS, message)
                .hint("close one, or raise its CONNECTION LIMIT in sql/roles"));
        }
        *count += 1;
        Ok(Place { taken: Arc::clone(&self.taken), user: user.to_owned(), queue: Arc::clone(queue) })
    }

    /// Whether connections are kept for `user`.
    pub fn has_reserved_connections(&self, user: &str) -> bool {
        let roles = self.database.roles();
        roles.is_none_or(|roles| roles.get(user).is_some_and(|role| role.has_reserved_connections()))
    }

    /// Counts a failed attempt, and returns when it may be answered.
    pub async fn failed(&self, user: &str, origin: Origin) {
        self.note_refused(user, origin, SqlState::INVALID_PASSWORD);
        self.metrics.authentications_failed.inc();
        let delay = self.attempts.failed(ip(origin), Instant::now());
        tracing::warn!(address = ?origin.address, protocol = origin.protocol.name(), "a client could not prove who it is");
        tokio::time::sleep(delay).await;
    }

    fn note_refused(&self, user: &str, origin: Origin, state: SqlState) {
        if let Some(log) = &self.log {
            // As long as a role's name may be.
            let role: String = user.chars().take(63).collect();
            let mut record = Record::of(log.now(), Event::Refused, Weight::Kept, role.into(), origin);
            record.state = Some(state);
            log.note(record);
        }
    }

    pub fn succeeded(&self, origin: Origin) {
        self.attempts.succeeded(ip(origin));
    }

    /// Of a role that has none: one that no password fits, and that stays the same.
    fn verifier(&self, user: &str) -> Verifier {
        let declared = || {
            let roles = self.database.roles()?;
            let role = roles.get(user)?;
            self.passwords.of(user).or_else(|| role.verifier.clone())
        };
        declared().unwrap_or_else(|| {
            let key = |about: &str| scram::sign(&self.mock_key, format!("{about} {user}").as_bytes());
            let salt = key("salt").into_iter().take(scram::SALT_BYTES).collect();
            let (stored_key, server_key) = (key("stored"), key("server"));
            Verifier { iterations: scram::ITERATIONS, salt, stored_key, server_key }
        })
    }

    fn was_checked(&self, known_by: &[u8; 32]) -> bool {
        self.checked.lock().get(known_by).is_some_and(|at| at.elapsed() < CHECKED_PATIENCE)
    }

    fn note_checked(&self, known_by: [u8; 32]) {
        let mut checked = self.checked.lock();
        if checked.len() >= CHECKED_MAX {
            checked.retain(|_, at| at.elapsed() < CHECKED_PATIENCE);
        }
        if checked.len() < CHECKED_MAX {
            checked.insert(known_by, Instant::now());
        }
    }
}

fn ip(origin: Origin) -> Option<IpAddr> {
    origin.address.map(|address| address.ip())
}

/// The same whether there is such a role or not.
pub fn wrong_password(user: &str) -> QueryError {
    QueryError::new(SqlState::INVALID_PASSWORD, format!("password authentication failed for user \"{user}\""))
}

pub fn unknown_role(user: &str) -> QueryError {
    QueryError::new(SqlState::INVALID_AUTHORIZATION, format!("role \"{user}\" does not exist"))
}

/// The user and the password of a header `Basic ...`; None when it is none.
pub fn basic(header: &str) -> Option<(String, String)> {
    use base64::alphabet;
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    // Clients in Go leave the padding out.
    const BASE64: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let (scheme, rest) = header.split_once(' ')?;
    let decoded = scheme.eq_ignore_ascii_case("basic").then(|| BASE64.decode(rest.trim()).ok()).flatten()?;
    let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    (!user.is_empty()).then(|| (user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests;
